"""docs/training.md names each key that a recipe may hold and no other; its Python and its commands run."""

import json
import os
import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from trl import SFTConfig

from soundwave_hf import SoundwaveSFTConfig, cli
from soundwave_hf.training.recipe import LORA_OVERRULED, NOT_KEYS, OVERRULED, SECTIONS, RecipeArguments


ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)


def keys_under(heading: str, column: str = "key") -> list[str]:
    """What the table of this first column names under a heading."""
    section = GUIDE.split(f"\n### {heading}\n")[1].split("\n#")[0]
    table = section.split(f"| {column} |")[1].split("\n\n")[0]
    return re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)


def test_it_names_the_keys_that_are_no_others():
    assert sorted(keys_under("What is trained on what")) == sorted(
        {f.name for f in fields(RecipeArguments)} - NOT_KEYS
    )


@pytest.mark.parametrize("section", sorted(SECTIONS.keys() - {"lora"}))
def test_it_names_the_keys_of_a_section(section):
    assert sorted(keys_under(f"`{section}`")) == sorted(SECTIONS[section])


def test_it_names_what_a_lora_may_and_may_not_have():
    text = GUIDE.split("\n### `lora`\n")[1].split("\n#")[0]
    assert not LORA_OVERRULED.keys() & SECTIONS["lora"]
    assert LORA_OVERRULED.keys() | SECTIONS["lora"] <= set(re.findall(r"`(\w+)`", text))


def test_of_the_librarys_keys_it_names_those_of_the_recipes_and_our_own():
    named = keys_under("Those of transformers and TRL")
    known = {f.name for f in fields(SoundwaveSFTConfig)}
    recipes = [
        yaml.safe_load(path.read_text(encoding="utf-8"))
        for path in (ROOT / "examples/soundwave-small/recipes").glob("*.yaml")
    ]
    used = set().union(*recipes) - {f.name for f in fields(RecipeArguments)}
    ours = known - {f.name for f in fields(SFTConfig)}
    assert len(recipes) == 7 and ours
    assert used | ours <= set(named) <= known - OVERRULED.keys()
    assert len(named) == len(set(named))


def test_it_names_the_keys_that_are_refused():
    assert sorted(keys_under("Those of transformers and TRL", column="refused key")) == sorted(OVERRULED)


@pytest.mark.parametrize(
    ("about", "written"),
    [
        ("SoundwaveForCTC.from_backbones", "aligned/trained.safetensors"),
        ("load_lora", "instructed/adapter_model.safetensors"),
        ("import train\n", "runs/mine/adapter_model.safetensors"),
    ],
)
def test_its_python_runs(workspace, chain, tmp_path, monkeypatch, about, written):
    (block,) = [block for block in BLOCKS if about in block]
    changes = {
        "openai/whisper-base": workspace.encoder,
        "HuggingFaceTB/SmolLM2-135M-Instruct": workspace.llm,
        "weights/soundwave-small": str(chain["shrink"].folder),
        "max_steps=100": "max_steps=1",
        '"finetune"': f"'finetune', start_from={str(chain['shrink'].folder)!r}",
        "train.csv": "data/train.jsonl",
        "max_steps=50": "max_steps=1",
    }
    for name, here in changes.items():
        block = block.replace(name, here)
    os.symlink(workspace.data, tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    exec(block, {})
    assert (tmp_path / written).is_file()


def test_all_its_python_is_run():
    assert len(BLOCKS) == 4  # one of them by test_plain_trainers.py


def commands(verb: str) -> list[str]:
    """The lines of the page that begin with a verb."""
    lines = [line for block in re.findall(r"```bash\n(.*?)```", GUIDE, re.DOTALL) for line in block.splitlines()]
    return [line for line in lines if line.startswith(f"soundwave-hf {verb} ")]


def run(command: str, **changes: str) -> None:
    for there, here in changes.items():
        assert there in command
        command = command.replace(there, here)
    assert cli.main(shlex.split(command, comments=True)[1:]) == 0


def test_its_commands_check_data(workspace, tmp_path, monkeypatch, capsys):
    row = first_row(workspace)
    (tmp_path / "train.csv").write_text(f"path,sentence\n{row['audio']},{row['text']}\n")
    (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n")
    monkeypatch.chdir(tmp_path)
    for command in commands("data check"):
        run(command)
        assert "0 bad clips in 1 rows" in capsys.readouterr().out
    assert json.loads((tmp_path / "good.jsonl").read_text())["text"] == row["text"]


def first_row(workspace) -> dict:
    row = json.loads((workspace.data / "train.jsonl").read_text().splitlines()[0])
    return {"audio": str(workspace.data / row["audio"]), "text": row["text"]}


def test_its_commands_after_a_run(workspace, chain, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (export,), (merge,) = commands("export"), commands("merge")
    run(export, **{"~/.cache/soundwave-hf/runs/3_instruct": str(chain["instruct"].folder)})
    names = {"openai/whisper-base": workspace.encoder, "HuggingFaceTB/SmolLM2-135M-Instruct": workspace.llm}
    run(merge, **names)
    assert (tmp_path / "my-adapter" / "adapter_model.safetensors").is_file()
    assert (tmp_path / "my-model" / "model.safetensors").is_file()


def test_its_command_plans(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    (plan,) = commands("plan")
    run(plan)
    assert "GiB" in capsys.readouterr().out
