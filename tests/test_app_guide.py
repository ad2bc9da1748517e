"""The commands of docs/app.md run, on a tiny model and clips of noise."""

import re
import shlex
from pathlib import Path

import pytest
import soundfile

from soundwave_hf import cli
from soundwave_hf.app import serve
from soundwave_hf.evaluation import shipped
from tests.app.tiny_page import load_tiny, noise, save_tiny


GUIDE = (Path(__file__).parents[1] / "docs" / "app.md").read_text(encoding="utf-8")
PAGE, SPACE, PICTURES = re.findall(r"```bash\n(.*?)```", GUIDE, re.DOTALL)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    speech = load_tiny(save_tiny(tmp_path_factory.mktemp("saved")))
    return speech.model, speech.processor


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "calls").mkdir()
    for name in ("speech.wav", "talk.flac", "calls/a.wav"):
        soundfile.write(name, noise(3.0), 16_000)
    return tmp_path


@pytest.mark.parametrize("verb", ["app", "inspect"])
def test_the_guide_tells_of_each_option(verb):
    (verbs,) = [action for action in cli.build_parser()._actions if action.choices and verb in action.choices]
    options = {option for action in verbs.choices[verb]._actions for option in action.option_strings}
    assert options - {"-h", "--help", "--debug"} <= set(re.findall(r"--[\w-]+", GUIDE))


@pytest.mark.parametrize("command", PAGE.splitlines())
def test_a_command_of_the_page_is_read(command, monkeypatch):
    seen = []
    monkeypatch.setattr(serve, "run_app", lambda **given: seen.append(given))
    monkeypatch.setattr("soundwave_hf.cli_app.given_placing", lambda arguments: {})  # this machine may have no GPU
    program, *words = shlex.split(command)
    assert program == "soundwave-hf" and cli.main(words) == 0 and len(seen) == 1


def test_a_space_is_written_as_the_guide_says(here):
    write, upload = (shlex.split(line) for line in SPACE.splitlines())
    assert cli.main(write[1:]) == 0 and (here / upload[3]).is_dir() and upload[:2] == ["hf", "upload"]


@pytest.mark.parametrize("command", PICTURES.splitlines())
def test_a_picture_is_drawn(command, here, loaded, monkeypatch):
    monkeypatch.setattr(shipped, "load_adapter", lambda *given, **placing: loaded)
    program, *words = shlex.split(command)
    assert program == "soundwave-hf" and cli.main(words) == 0
    assert len(list(here.rglob("*.png"))) == (2 if "calls" in words else 1)
