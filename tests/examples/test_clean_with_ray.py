"""Ray Data keeps the rows that `data clean` keeps."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from soundwave_hf.data.clean.run import clean
from soundwave_hf.data.sources import open_rows


ROOT = Path(__file__).parents[2]
FILTERS = {"seconds": {"min_seconds": 1}, "near_duplicate_audio": False}


def test_two_workers_keep_the_rows_that_clean_keeps(tmp_path, monkeypatch):
    ray = pytest.importorskip("ray", reason="ray is not installed: `pip install ray`")
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=":")
    monkeypatch.setattr(sys, "path", [str(ROOT / "examples"), *sys.path])
    from clean_with_ray import clean_with_ray

    lines = []
    for number, seconds in enumerate([1.5, 0.5, 2.0, 1.2]):
        samples = np.random.default_rng(number).normal(0, 0.1, int(16_000 * seconds))
        soundfile.write(tmp_path / f"{number}.wav", samples, 16_000)
        lines.append(json.dumps({"audio": f"{number}.wav", "text": f"this is row number {number}"}))
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    clean(str(tmp_path / "rows.jsonl"), tmp_path / "clean", FILTERS)
    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False)
    try:
        assert clean_with_ray(str(tmp_path / "rows.jsonl"), tmp_path / "ray", FILTERS, workers=2) == (4, 3)
    finally:
        ray.shutdown()
    kept = sorted(open_rows(str(tmp_path / "ray"))["text"])
    assert kept == sorted(open_rows(str(tmp_path / "clean"))["text"]) == [f"this is row number {n}" for n in (0, 2, 3)]
