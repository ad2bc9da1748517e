"""The commands and the Python of docs/evaluation.md run, on a tiny model and clips of noise."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import soundfile
from transformers import AutoModelForMultimodalLM, AutoProcessor, WhisperFeatureExtractor

from soundwave_hf import cli
from tests.tiny import tiny_tokenizer
from tests.tiny_models import save_tiny_soundwave, save_tiny_whisper


GUIDE = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", GUIDE, re.DOTALL) for line in block.splitlines()]
(PYTHON,) = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The models and the data that the guide names."""
    folder = tmp_path_factory.mktemp("guide")
    for name in ("my-model", "other-model"):
        save_tiny_soundwave(folder / name)
    save_tiny_whisper(folder / "my-whisper", num_mel_bins=80, max_source_positions=100, vocab_size=300)
    WhisperFeatureExtractor(chunk_length=2).save_pretrained(folder / "my-whisper")
    tiny_tokenizer().save_pretrained(folder / "my-whisper")
    soundfile.write(folder / "clip.wav", 0.1 * np.random.default_rng(0).standard_normal(8_000), 16_000)
    row = {"audio": str(folder / "clip.wav")}
    for name, text in (("calls", "Good morning."), ("japanese", "おはよう。")):
        lines = [json.dumps({**row, "text": text}) + "\n"] * 2
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    lines = [{"set": "calls", "row": row, "reference": "Good morning.", "text": "Good"} for row in range(2)]
    (folder / "lines.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    for name in ("calls", "podcast"):
        (folder / f"{name}.csv").write_text(f"audio,sentence\n{row['audio']},Dear friends.\n", encoding="utf-8")
    return folder


def test_the_guide_has_commands_for_each_option():
    words = {word for command in COMMANDS for word in shlex.split(command) if word.startswith("--")}
    options = {option for action in evaluate_actions() for option in action.option_strings if "_" not in option}
    told = set(re.findall(r"`(--[\w-]+)", GUIDE)) | words
    assert words and options - {"-h", "--help", "--debug"} <= told


def evaluate_actions():
    (verbs,) = [action for action in cli.build_parser()._actions if action.choices and "evaluate" in action.choices]
    return verbs.choices["evaluate"]._actions


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_runs(command, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    program, *words = shlex.split(command)
    words = ["4" if word == "200" else word for word in words]  # tokens of a random model: it does not stop by itself
    if "--max-new-tokens" not in words:
        words += ["--max-new-tokens", "4"]
    assert program == "soundwave-hf" and cli.main(words) == 0, capsys.readouterr().err
    assert capsys.readouterr().out.startswith("| set | clips | seconds |")


def test_its_python_runs(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    model, processor = (auto.from_pretrained("my-model") for auto in (AutoModelForMultimodalLM, AutoProcessor))
    exec(PYTHON, {"model": model.eval(), "processor": processor})
    assert capsys.readouterr().out.splitlines()[-1] == "0.5"
