"""What docs/data.md says about building runs, and its tables are true."""

import re
import shlex
import shutil
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import soundfile
from datasets import Dataset, load_dataset

from soundwave_hf.cli import main
from soundwave_hf.data.build import spoken
from soundwave_hf.data.build.recipe import RECIPE_KEYS
from soundwave_hf.data.build.steps import STEPS
from soundwave_hf.data.build.tasks import TASKS
from soundwave_hf.data.sources import open_rows
from tests.data.build_rows import clip, tone, write_source
from tests.tiny_models import save_tiny_soundwave


GUIDE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
SECTION = re.search(r"^## Build\n(.*?)(?=^## |\Z)", GUIDE, re.DOTALL | re.MULTILINE)[1]
# In place of flite where it is not installed.
OTHER_VOICE = f"{sys.executable} -c 'import sys, soundfile, numpy; soundfile.write(sys.argv[1], numpy.ones(8000) / 9, 8000)' {{out}} {{text_file}} {{voice}} {{stretch}}"  # noqa: E501


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", SECTION, re.DOTALL)


def table(title: str) -> dict[str, list[str]]:
    """Cells of each row of the table whose first heading is `title`, by its first cell."""
    text = SECTION.split(f"| {title} |")[1].split("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in text.split("\n")[2:] if line]
    return {re.sub(r"[`{}]", "", cells[0]): cells[1:] for cells in rows}


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("guide")
    save_tiny_soundwave(folder / "tiny")
    speech = [
        {
            "audio": clip(1.0),
            "text": f"it is {word}",
            "speaker": f"s{number % 3}",
            "emotion": ("sad", "happy")[number % 2],
        }
        for number, word in enumerate(["one", "two", "six", "ten", "red", "big"])
    ]
    write_source(folder, "train", speech)
    write_source(folder, "sounds", [{"audio": clip(0.5), "label": label} for label in ("cough", "throat clearing")])
    write_source(folder, "questions", [{"text": f"What is {n}?", "answer": f"{n} is a number."} for n in range(4)])
    for name in ("ann", "bob", "cough"):
        soundfile.write(folder / f"{name}.wav", tone(1.0), 16_000)
    return folder


def test_its_recipe_and_command_run(home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    (recipe,) = blocks("yaml")
    recipe = recipe.replace("  name: timed\n", f"  name: timed\n  model: {home / 'tiny'}\n")
    if shutil.which("flite") is None:
        recipe = re.sub(r"command: flite .*", lambda _: f"command: {OTHER_VOICE!r}", recipe)
    (home / "build.yaml").write_text(recipe)
    (command,) = blocks("bash")
    assert main(shlex.split(command)[1:]) == 0
    printed = capsys.readouterr().out
    assert "labelled: 6 rows" in printed and "instructions: 4 rows" in printed
    assert len(load_dataset("built", "labelled", cache_dir=str(home / "cache"))["train"]) == 6
    assert len(open_rows("built/labelled-*.jsonl")) == 6 and len(open_rows("built/conversations-*.jsonl")) == 6


def test_its_python_runs(home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    dataset = Dataset.from_list([{"audio": "ann.wav", "emotion": emotion} for emotion in ("sad", "happy")])
    names = {"dataset": dataset}
    for block in blocks("python"):
        exec(block, names)
    printed = capsys.readouterr().out
    assert printed == "Hello. <cough> Good day.\nThe first speaker says: Hello. The second speaker says: Good day.\n"
    assert names["dataset"][1]["messages"][1]["content"][0]["text"] == "happy"


def test_its_table_of_tasks_is_true():
    rows = table("task")
    assert rows.keys() == TASKS.keys()
    for name, (columns, forms, quotes, reads_text) in rows.items():
        task = TASKS[name]
        assert tuple(re.findall(r"`(\w+)`", columns)) == task.columns and tuple(forms.split(", ")) == task.forms
        assert (quotes == "yes", reads_text == "yes") == (task.quotes, task.reads_text)


def test_it_names_every_key_and_placeholder():
    assert table("key of a recipe").keys() == set(RECIPE_KEYS)
    assert table("placeholder").keys() == set(spoken.PLACEHOLDERS)
    keys = {field.name for step in STEPS.values() for field in fields(step)} - {"seed", "sound_columns"}
    assert [key for key in keys if f"`{key}" not in SECTION and f"  {key}:" not in SECTION] == []
    assert [name for name in STEPS if f"`{name}`" not in SECTION] == []
