"""The benchmark of positions transcribes the same clips with each setting."""

import numpy as np

from soundwave_hf import SoundwaveForConditionalGeneration, SoundwaveProcessor
from tests.tiny_models import save_tiny_soundwave


def test_settings_name_their_options(benchmark):
    assert benchmark.settings([5, 2.5], [8]) == {
        "as trained": {},
        "blanks kept": {"keep_blanks": True},
        "blanks left out": {"keep_blanks": False},
        "at least 8": {"min_positions_per_second": 8},
        "at most 5": {"max_positions_per_second": 5},
        "at most 2.5": {"max_positions_per_second": 2.5},
    }


def answers_of(options: dict) -> list[str]:
    return ["x" if "max_positions_per_second" in options else ""] * 2


def test_the_table_counts_positions_of_all_clips(benchmark, tmp_path, monkeypatch, capsys):
    folder = save_tiny_soundwave(tmp_path)
    loaded = SoundwaveForConditionalGeneration.from_pretrained(folder), SoundwaveProcessor.from_pretrained(folder)
    random = np.random.default_rng(0)
    rows = [
        {"audio": (random.normal(size=round(16_000 * seconds)).astype("float32"), 16_000), "text": "x"}
        | {"seconds": seconds + 0.1}  # with the silence that the processor adds
        for seconds in (0.9, 1.9, 40.0)
    ]
    monkeypatch.setattr(benchmark, "load_adapter", lambda folder: loaded)
    monkeypatch.setattr(benchmark, "read_set", lambda name: rows)
    monkeypatch.setattr(benchmark, "generated_texts", lambda *given, **options: (answers_of(options), []))
    benchmark.main(["--max", "0.6", "--min", "12.5", "--batch-size", "2", "--sets", "human"])
    lines = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| a")]
    # 0.6 a second: one position for 1 s and one for 2 s. 12.5: 13 of 1 s and 25 of 2 s.
    assert [line[:3] for line in lines[1:]] == [
        ["| at most 0.6", "0.67", "0.0"],
        ["| at least 12.5", "12.67", "100.0"],
    ]
