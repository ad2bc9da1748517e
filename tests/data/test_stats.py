"""`soundwave-hf data stats`: counts that can be worked out by hand."""

import json

import pytest
import soundfile
import yaml
from datasets import Audio, Dataset

from soundwave_hf import cli
from soundwave_hf.data.mixture import Mixture
from soundwave_hf.data.stats import Spread, collect_stats
from soundwave_hf.data.tiny import write_tiny_llm
from tests.data.corpora import RATE, ramp, write_clip, write_kaldi, write_lines


@pytest.fixture
def rows(tmp_path):
    """Three transcripts of 1, 2 and 4 s, an answer, a row of text alone."""
    for name, seconds in (("a", 1.0), ("b", 2.0), ("c", 4.0)):
        write_clip(tmp_path / f"{name}.wav", seconds)
    rows = [
        {"audio": "a.wav", "text": "go on", "speaker": "ann", "language": "en", "source": "s", "task": "asr"},
        {"audio": "b.wav", "text": "halt", "speaker": "ben", "language": "de", "source": "s", "task": "asr"},
        {"audio": "c.wav", "text": "stop it", "speaker": "ann", "language": "en", "source": "t", "task": "asr"},
        {"audio": "a.wav", "text": "go on", "question": "Who?", "answer": "Ann.", "source": "t", "task": "who"},
        {"question": "2 + 2?", "answer": "4", "source": "t", "task": "chat"},
    ]
    write_lines(tmp_path / "rows.jsonl", rows)
    return tmp_path / "rows.jsonl"


def test_the_counts_of_five_rows(rows):
    report = collect_stats(str(rows)).report()
    assert (report["rows"], report["clips"], report["rows_of_text_alone"]) == (5, 4, 1)
    assert report["hours"] == pytest.approx(8 / 3600)
    assert report["speakers"] == 2
    assert report["languages"] == {
        "en": {"rows": 2, "hours": 5 / 3600},
        "de": {"rows": 1, "hours": 2 / 3600},
        "-": {"rows": 2, "hours": 1 / 3600},
    }
    assert {name: each["rows"] for name, each in report["tasks"].items()} == {"asr": 3, "who": 1, "chat": 1}
    assert {name: each["rows"] for name, each in report["sources"].items()} == {"s": 2, "t": 3}
    # "go on", "halt", "stop it", "Ann.": 5 + 4 + 7 + 4 characters and 2 + 1 + 2 + 1 words in 8 s
    assert report["characters_per_second"] == pytest.approx(20 / 8)
    assert report["words_per_second"] == pytest.approx(6 / 8)
    assert [(each["from"], each["clips"]) for each in report["histogram"][:4]] == [(0, 0), (1, 2), (2, 1), (3, 1)]
    assert report["seconds"]["min"] == 1 and report["seconds"]["p50"] == 1 and report["seconds"]["max"] == 4


def test_percentiles_are_the_nearest_rank():
    spread = Spread(0.01)
    for number in range(1, 101):
        spread.add(number / 10)
    found = spread.summary()
    assert (found["p5"], found["p50"], found["p99"], found["max"]) == (0.5, 5.0, 9.9, 10.0)
    assert found["mean"] == pytest.approx(5.05)


def test_with_an_llm_targets_are_its_tokens(rows, tmp_path, capsys):
    write_tiny_llm(tmp_path / "llm")  # a token for each byte
    assert cli.main(["data", "stats", str(rows), "--llm", str(tmp_path / "llm")]) == 0
    assert "over all clips: 2.50 tokens and 0.75 words a second" in capsys.readouterr().out


def test_the_shares_are_those_that_training_draws(rows):
    report = collect_stats(str(rows), repeat={"s": 2}).report(Mixture(1.0, 1.0), epochs=2)
    # asr: 2 * 2 + 1 = 5 rows, chat 1, who 1
    assert report["mixture"][0]["shares"] == pytest.approx({"asr": 5 / 7, "chat": 1 / 7, "who": 1 / 7})
    weights = {"asr": (5 / 7) ** 0.5, "chat": (1 / 7) ** 0.5, "who": (1 / 7) ** 0.5}
    total = sum(weights.values())
    assert report["mixture"][1]["temperature"] == 2
    assert report["mixture"][1]["shares"] == pytest.approx({task: each / total for task, each in weights.items()})


def test_a_mixture_of_rows_without_tasks_is_refused(tmp_path):
    write_clip(tmp_path / "a.wav")
    write_lines(tmp_path / "rows.jsonl", [{"audio": "a.wav", "text": "go"}])
    with pytest.raises(ValueError, match="line 1 of .* has neither `task` nor `source`"):
        collect_stats(str(tmp_path / "rows.jsonl")).report(Mixture(), 1)


def test_bad_rows_are_counted_with_their_reasons_and_stop_nothing(rows, capsys):
    bad = [{"audio": "gone.wav", "text": "x"}, {"audio": "rows.jsonl", "text": "x"}, {"audio": "a.wav", "text": " "}]
    with open(rows, "a") as file:
        file.writelines(json.dumps(row) + "\n" for row in bad)
    assert cli.main(["data", "stats", str(rows)]) == 0
    printed = capsys.readouterr().out
    assert "3 more rows cannot be used:" in printed and "5 rows, 4 clips" in printed
    assert "line 6 of" in printed and "cannot be opened" in printed and "line 8 of" in printed


def test_a_set_without_a_good_row_is_an_error(tmp_path, capsys):
    write_lines(tmp_path / "rows.jsonl", [{"audio": "gone.wav", "text": "x"}])
    assert cli.main(["data", "stats", str(tmp_path / "rows.jsonl")]) == 2
    assert "No row can be used. line 1 of" in capsys.readouterr().err


def test_json_and_png_are_written_and_other_endings_refused_first(rows, tmp_path, capsys):
    words = ["data", "stats", str(rows), "--mixture", "{step: 5}", "--epochs", "3"]
    outputs = ["--output", str(tmp_path / "s.json"), "--output", str(tmp_path / "s.png")]
    assert cli.main([*words, *outputs]) == 0
    written = json.loads((tmp_path / "s.json").read_text())
    assert written["rows"] == 5 and [each["epoch"] for each in written["mixture"]] == [0, 1, 2]
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()
    assert cli.main(["data", "stats", "nowhere.jsonl", "--output", "s.pdf"]) == 2
    assert "give a file that ends in .json or .png" in capsys.readouterr().err


def test_a_recipe_names_data_mixture_and_llm(rows, tmp_path, capsys):
    write_tiny_llm(tmp_path / "llm")
    recipe = {"stage": "align", "encoder": "tiny-random-whisper", "llm": str(tmp_path / "llm"), "data": str(rows)}
    recipe |= {"repeat": {"s": 2}, "mixture": {"temperature": 1, "step": 1}, "output_dir": str(tmp_path / "run")}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert cli.main(["data", "stats", str(tmp_path / "recipe.yaml"), "--epochs", "1"]) == 0
    printed = capsys.readouterr().out
    assert "tokens a second" in printed and "0.714" in printed  # 5 / 7


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--mixture", "{temprature: 1}"], "`--mixture` has ['temprature']; its keys are temperature and step"),
        (["--mixture", "{temperature: 0}"], "`mixture` has `temperature` 0"),
        (["--epochs", "0"], "`--epochs` is 0; give 1 or more"),
    ],
)
def test_wrong_options_are_one_line(rows, words, message, capsys):
    assert cli.main(["data", "stats", str(rows), *words]) == 2
    assert message in capsys.readouterr().err


def test_parquet_and_segments_are_counted_too(tmp_path):
    clips = [str(write_clip(tmp_path / f"{n}.wav", 1.0)) for n in range(3)]
    table = Dataset.from_dict({"audio": clips, "text": ["a", "b", "c"], "speaker": [7, 8, 7]})
    table.cast_column("audio", Audio(decode=False)).to_parquet(tmp_path / "rows.parquet")
    assert collect_stats(str(tmp_path / "rows.parquet")).report()["speakers"] == 2
    report = collect_stats({"layout": "kaldi", "path": str(write_kaldi(tmp_path / "kaldi"))}).report()
    assert report["hours"] == pytest.approx((0.5 + 0.25 + 0.4) / 3600)
    parts = {"path": str(tmp_path / "rows.parquet"), "split": "train[:2]"}
    assert collect_stats(parts).report()["hours"] == pytest.approx(2 / 3600)


def test_a_relative_path_in_parquet_begins_at_its_folder(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "a.wav", ramp(1.0), RATE)
    Dataset.from_dict({"audio": ["a.wav"], "text": ["a"]}).to_parquet(tmp_path / "rows.parquet")
    monkeypatch.chdir("/")
    assert collect_stats(str(tmp_path / "rows.parquet")).report()["hours"] == pytest.approx(1 / 3600)


def test_the_names_of_the_lines_stand_apart_from_their_values(rows, capsys):
    assert cli.main(["data", "stats", str(rows)]) == 0
    printed = capsys.readouterr().out
    assert "\nseconds of a row    mean 2.00" in printed and "\ncharacters a second mean" in printed


def test_ends_are_those_of_the_values_and_not_of_their_bins():
    spread = Spread(0.1)
    for value in (1.53, 1.57):
        spread.add(value)
    found = spread.summary()
    assert (found["min"], found["max"]) == (1.53, 1.57) and found["mean"] == pytest.approx(1.55)
