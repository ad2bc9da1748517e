"""The commands, the settings and the Python of docs/data.md, "Clean", run on small data."""

import argparse
import dataclasses
import json
import re
import shlex
from pathlib import Path

import datasets
import numpy as np
import pytest
import soundfile
import yaml

from soundwave_hf import cli, cli_data
from soundwave_hf.data.clean import report
from soundwave_hf.data.clean.settings import filter_classes, read_settings
from soundwave_hf.data.sources import open_rows


GUIDE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
(SECTION,) = re.findall(r"^## Clean\n(.*?)(?=^## |\Z)", GUIDE, re.DOTALL | re.MULTILINE)
COMMANDS = "".join(re.findall(r"```bash\n(.*?)```", SECTION, re.DOTALL)).splitlines()
SETTINGS, MODELS = re.findall(r"```yaml\n(.*?)```", SECTION, re.DOTALL)
(PYTHON,) = re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current folder, with six clips of 3.5 s; the last is in the test set."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(report, "draw", lambda *arguments: None)
    lines = []
    for number in range(6):
        rng = np.random.default_rng(number)
        pitches = np.repeat(rng.uniform(200, 3500, (3, 70)), 800, axis=1)
        samples = 0.1 * np.sin(2 * np.pi * np.cumsum(pitches, axis=1) / 16_000).sum(axis=0)
        soundfile.write(f"{number}.wav", samples, 16_000)
        lines.append(
            {"audio": f"{number}.wav", "text": "one two three four five six seven eight".split(" ", number)[-1]}
        )
    Path("rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    Path("test.jsonl").write_text(json.dumps({"audio": "5.wav", "text": "another transcript altogether"}) + "\n")
    return tmp_path


def test_the_commands_run_and_the_shards_are_the_whole(here):
    for command in COMMANDS:
        program, *words = shlex.split(command)
        assert program == "soundwave-hf" and cli.main(words) == 0
    assert len(open_rows("cleaned")) == 5  # the sixth is in the test set
    assert len(open_rows("merged")) == 6


def test_the_settings_are_those_of_filters():
    given = yaml.safe_load(SETTINGS)
    made = {each.name: each for each in read_settings(given)}
    assert made["seconds"].max_seconds == 30 and made["near_duplicate_text"].similarity == 0.8
    assert "clipping" not in made and made["leaked_text"].words == 5
    made = {each.name: each for each in read_settings(yaml.safe_load(MODELS))}
    assert made["whisper"].max_wer == 0.1 and made["ctc"].min_log_prob == -4


def test_the_table_of_filters_has_each_key_with_its_default():
    rows = dict(re.findall(r"^\| `(\w+)` \|.*\| (.*) \|$", SECTION, re.MULTILINE))
    needed = {"model": "folder", "similarity": 0.8}
    for name, made in filter_classes().items():
        for field in dataclasses.fields(made):
            value = field.default
            if field.name in needed or value is None:
                assert f"`{field.name}`" in rows[name] or f"{field.name}: {needed.get(field.name)}" in rows[name]
            else:
                default = f"{value:g}" if isinstance(value, float) else str(value).lower()
                assert f"{field.name}: {default}" in rows[name], (name, field.name)


def test_the_python_runs(here, capsys):
    names = {}
    exec(PYTHON, names)
    assert "6 of 6" in capsys.readouterr().out and len(names["rows"]) == 6


def test_every_option_is_named_in_the_section():
    verbs = argparse.ArgumentParser().add_subparsers()
    cli_data.add_clean(verbs)
    cli_data.add_merge(verbs)
    options = {option for verb in verbs.choices.values() for option in verb._option_string_actions}
    assert [option for option in options - {"-h", "--help", "--debug"} if option not in SECTION] == []
