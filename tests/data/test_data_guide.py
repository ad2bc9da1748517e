"""docs/data.md: its commands run from top to bottom, on three small clips and tiny backbones."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from soundwave_hf import cli
from soundwave_hf.data.layouts import LAYOUTS
from soundwave_hf.data.sources import list_sources
from soundwave_hf.data.tiny import make_speech
from tests.data.corpora import RATE
from tests.local_hub import local_hub


GUIDE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
VERBS = ("check", "stats", "show", "card", "push")  # those of this page's own sections


def section(name: str) -> str:
    return GUIDE.split(f"\n## {name}\n")[1].split("\n## ")[0]


def blocks(name: str, kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", section(name), re.DOTALL)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """The current folder of a user, with recordings and the files that the page shows."""
    import soundfile

    place = tmp_path_factory.mktemp("guide")
    (place / "my_recordings").mkdir()
    (place / "set").mkdir()
    lines = ["file_name,text,speaker,language"]
    for number, (name, text) in enumerate([("a", "Go on."), ("b", "Well."), ("c", "No.")]):
        soundfile.write(place / "my_recordings" / f"{name}.wav", make_speech(1.0, number), RATE)
        lines.append(f"{name}.wav,{text},s{number % 2},en")
    (place / "my_recordings" / "metadata.csv").write_text("\n".join(lines) + "\n")
    (place / "set" / "questions.jsonl").write_text(blocks("Train", "json")[0])
    for name, recipe in zip(("align", "shrink", "instruct"), blocks("Train", "yaml"), strict=True):
        short = {**yaml.safe_load(recipe), "max_steps": 1, "plot_loss": False}
        (place / f"{name}.yaml").write_text(yaml.safe_dump(short))
    return place


def run(command: str, capsys) -> str:
    program, *words = shlex.split(command)
    if "transcribe" in words:
        words += ["--max-new-tokens", "3"]  # a random model does not stop by itself
    assert program == "soundwave-hf" and cli.main(words) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def test_every_command_runs_in_an_order_that_a_user_would_take(here, monkeypatch, capsys):
    monkeypatch.chdir(here)
    monkeypatch.setenv("SOUNDWAVE_HOME", str(here / "home"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", here / "cache")
    (checks, stats, shows, cards, trains) = (
        blocks(name, "bash")[0].splitlines() for name in ("Check", "Statistics", "Show", "Card and push", "Train")
    )
    for command in checks:
        assert "0 bad clips in 3 rows" in run(command, capsys)
    assert "3 rows, 3 clips, 0.00 hours, 2 speakers" in run(stats[0], capsys)
    assert "mixture: share of each task" in run(stats[1], capsys)
    assert "tokens a second" in run(stats[2], capsys)
    assert "<|im_start|>" in run(shows[0], capsys)
    run(shows[1], capsys)
    for command in trains:
        run(command, capsys)
    assert "positions, " in run(shows[2], capsys)
    for name in ("stats.json", "stats.png", "a.png", "peaks.png", "runs/3_instruct/adapter_config.json"):
        assert (here / name).is_file(), name
    assert "The card is in set/README.md" in run(cards[0], capsys)
    with local_hub(here / "hub", here / "home", {}) as server:
        monkeypatch.setenv("HF_TOKEN", server.token)
        for command in cards[1:]:
            assert "Pushed to " in run(command, capsys)
    assert [revision for _, revision in server.commits] == ["main", "next"]
    assert server.private_made == {"datasets/me/my-recordings"}


def data_verbs() -> dict:
    (verbs,) = [action for action in cli.build_parser()._actions if action.choices and "data" in action.choices]
    (actions,) = [action for action in verbs.choices["data"]._actions if action.choices]
    return actions.choices


@pytest.mark.parametrize("verb", VERBS)
def test_the_page_names_each_option(verb):
    options = {option for action in data_verbs()[verb]._actions for option in action.option_strings}
    assert options - {"-h", "--help", "--debug"} <= set(re.findall(r"--[\w-]+", GUIDE))


def test_the_page_names_each_layout_and_its_columns():
    table = dict(re.findall(r"^\| `(\w+)` \| folder.*\| (.*) \|$", section("Corpora by name"), re.MULTILINE))
    assert table.keys() == LAYOUTS.keys()
    for name, columns in table.items():
        named = set(re.findall(r"`(\w+)`", columns)) | {"id", "audio", "text"}
        assert named == set(LAYOUTS[name].columns) - {"seconds"}


def test_the_sources_of_the_page_are_sources():
    for line in blocks("Corpora by name", "yaml")[0].splitlines():
        assert list_sources(yaml.safe_load(line)["data"])
