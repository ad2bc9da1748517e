"""The benchmark measures what it says, on a problem of a moment."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]
SIZES = {"batch": 2, "frames": 100, "vocabulary": 20_000, "width": 32, "targets": 8}


@pytest.mark.slow
def test_its_table_shows_the_memory_of_all_scores_and_equal_losses():
    arguments = [word for name, size in SIZES.items() for word in (f"--{name}", str(size))]
    command = [sys.executable, str(ROOT / "benchmarks" / "ctc.py"), *arguments, "--repeats", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    printed = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    title, empty, header, line, *rows = printed.splitlines()
    assert title.startswith("2 clips x 100 frames, vocabulary 20,000, width 32, 8 targets, float32 on cpu, 1 threads")
    assert (empty, line.count("|")) == ("", header.count("|"))
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert [row[0] for row in cells] == ["frozen", "trained"]
    all_scores = 200 * 20_000 * 4 / 2**20  # 15.3 MiB
    for row in cells:
        plain, ours, ratio = (float(cell) for cell in row[1:4])
        # Scores, their log-softmax and the gradients of both: three of them at once, or all four.
        assert 3 * all_scores - 2 < plain < 5 * all_scores
        assert 0 < ours < 1.5 * all_scores  # chunks of 2,048 columns, and what is small
        assert ratio < 0.5
        assert float(row[-1]) < 1e-5
