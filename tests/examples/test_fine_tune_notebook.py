"""examples/fine_tune.ipynb runs from top to bottom: fast with tiny backbones, and with the shipped weights."""

import csv
import json
import os
import shutil
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from soundwave_hf.data.tiny import write_tiny_llm, write_tiny_whisper
from soundwave_hf.evaluation.shipped import ENCODER, LLM
from tests.evaluation.test_shipped import backbone_on_disk
from tests.modeling.test_load_adapters import write_adapters


ROOT = Path(__file__).parents[2]
SPANISH = ROOT / "examples" / "spanish"
NOTEBOOK = json.loads((ROOT / "examples" / "fine_tune.ipynb").read_text(encoding="utf-8"))
CELLS = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def read(name: str) -> list[dict]:
    with open(SPANISH / f"{name}.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def run(changes: dict[str, str]) -> dict:
    """Run the cells in the current folder. Each change must hit exactly one cell. Returns the names."""
    names = {}
    for cell in CELLS:
        for old, new in changes.items():
            cell = cell.replace(old, new)
        exec(cell, names)
    assert all(sum(old in cell for cell in CELLS) == 1 for old in changes)
    return names


def take_rows(folder: Path, train: int, test: int) -> None:
    """A folder like examples/spanish with the first rows."""
    folder.mkdir()
    os.symlink(SPANISH / "clips", folder / "clips")
    for name, count in (("train", train), ("test", test)):
        lines = (SPANISH / f"{name}.csv").read_text(encoding="utf-8").splitlines(keepends=True)
        (folder / f"{name}.csv").write_text("".join(lines[: count + 1]), encoding="utf-8")


def test_the_clips_are_there_and_the_test_is_not_in_training():
    train, test = read("train"), read("test")
    assert (len(train), len(test)) == (404, 40)
    assert {row["audio"] for row in train + test} == {f"clips/{path.name}" for path in (SPANISH / "clips").iterdir()}
    assert not {row["text"] for row in train} & {row["text"] for row in test}
    assert not {row["voice"] for row in train} & {row["voice"] for row in test}


def test_its_cells_run_on_tiny_backbones(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SOUNDWAVE_HOME", str(tmp_path / "home"))
    encoder, llm = str(tmp_path / "whisper"), str(tmp_path / "llm")
    write_tiny_whisper(encoder)
    write_tiny_llm(llm)
    write_adapters(encoder, llm, tmp_path / "start")
    take_rows(tmp_path / "spanish", train=4, test=1)
    changes = {"examples/spanish": "spanish", "weights/soundwave-small": "start", "STEPS = 80": "STEPS = 1"}
    names = run(changes)
    printed = capsys.readouterr().out
    assert "train 4 clips, such as: Esta calle es muy tranquila de noche." in printed
    assert "WER after 1 steps: " in printed and names["after"].clips == 1
    assert (tmp_path / "runs" / "spanish" / "adapter_model.safetensors").is_file()


@pytest.mark.slow  # trains the shipped weights
def test_its_cells_run_on_the_shipped_weights_and_training_lowers_the_errors(tmp_path, monkeypatch):
    for name in (ENCODER, LLM):
        backbone_on_disk(name)
    monkeypatch.chdir(tmp_path)
    os.symlink(ROOT / "weights", tmp_path / "weights")
    take_rows(tmp_path / "spanish", train=64, test=8)
    names = run({"examples/spanish": "spanish", "STEPS = 80": "STEPS = 40"})
    assert names["after"].wer < names["before"].wer


@pytest.mark.slow  # 444 clips
@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="needs espeak-ng: apt-get install espeak-ng")
def test_the_clips_can_be_made_again(tmp_path, monkeypatch):
    monkeypatch.chdir(SPANISH)
    spec = spec_from_file_location("make_clips", SPANISH / "make_clips.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    module.make(tmp_path)
    for name in ("train", "test"):
        assert (tmp_path / f"{name}.csv").read_text() == (SPANISH / f"{name}.csv").read_text()
    assert len(list((tmp_path / "clips").iterdir())) == 444
