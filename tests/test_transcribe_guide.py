"""The commands and the Python of docs/transcribe.md run, on a tiny model and clips of noise."""

import io
import json
import re
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from transformers import AutoModelForMultimodalLM, AutoProcessor

from soundwave_hf import cli
from soundwave_hf.evaluation import shipped
from tests.tiny_models import save_tiny_soundwave


GUIDE = (Path(__file__).parents[1] / "docs" / "transcribe.md").read_text(encoding="utf-8")
BLOCK, LIVE = re.findall(r"```bash\n(.*?)```", GUIDE, re.DOTALL)
STREAM, PYTHON = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    folder = save_tiny_soundwave(tmp_path_factory.mktemp("saved"))
    return AutoModelForMultimodalLM.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current folder, with the recordings that the guide names."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "calls").mkdir()
    for name in ("speech.wav", "talk.flac", "calls/a.wav", "calls/b.wav"):
        soundfile.write(name, 0.1 * np.random.default_rng(0).standard_normal(8_000), 16_000)
    return tmp_path


def test_the_guide_tells_of_each_option():
    (verbs,) = [action for action in cli.build_parser()._actions if action.choices and "transcribe" in action.choices]
    options = {option for action in verbs.choices["transcribe"]._actions for option in action.option_strings}
    told = set(re.findall(r"--[\w-]+", GUIDE))
    assert options - {"-h", "--help", "--debug"} <= told


@pytest.mark.parametrize("command", BLOCK.splitlines())
def test_a_command_runs(command, here, loaded, monkeypatch, capsys):
    monkeypatch.setattr(shipped, "load_adapter", lambda *given, **placing: loaded)
    program, *words = shlex.split(command)
    if "--ctc-only" not in words:
        words += ["--max-new-tokens", "3"]  # a random model does not stop by itself
    assert program == "soundwave-hf" and cli.main(words) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    written = {path.suffix for path in here.rglob("*") if path.suffix not in (".wav", ".flac", ".jsonl", "")}
    if "--output" in words or "--beside" in words:
        assert written and not printed
    else:
        assert printed and not written


@pytest.mark.parametrize("command", LIVE.splitlines())
def test_a_live_command_runs(command, here, loaded, monkeypatch, capsys):
    monkeypatch.setattr(shipped, "load_adapter", lambda *given, **placing: loaded)
    ffmpeg, piped = command.split(" | ")
    assert ffmpeg == "ffmpeg -i talk.flac -f s16le -ac 1 -ar 16000 -"  # which need not be installed
    samples, _ = soundfile.read("talk.flac", dtype="int16")
    pipe = SimpleNamespace(buffer=io.BytesIO(samples.tobytes()), isatty=lambda: False)
    monkeypatch.setattr(sys, "stdin", pipe)
    program, *words = shlex.split(piped)
    assert program == "soundwave-hf" and cli.main([*words, "--max-new-tokens", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    if "json" in words:
        lines = [json.loads(line)["text"] for line in lines if json.loads(line)["final"]]
    assert len([line for line in lines if line]) == 1


def test_its_live_python_runs(here, loaded, capsys):
    model, processor = loaded
    words = "talk.samplerate)\n"
    assert STREAM.count(words) == 1
    exec(STREAM.replace(words, "talk.samplerate, max_new_tokens=3)\n"), {"model": model, "processor": processor})
    assert capsys.readouterr().out.splitlines()[-1].startswith("final 0.0 0.5 ")


def test_its_python_runs(here, loaded, capsys):
    model, processor = loaded
    exec(PYTHON.replace("batch_size=8", "batch_size=8, max_new_tokens=3"), {"model": model, "processor": processor})
    assert "0.00 0.50" in capsys.readouterr().out
