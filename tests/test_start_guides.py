"""What README.md, quickstart.md, fine_tune.md, stages.md and backbones.md show runs, on tiny backbones."""

import os
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

from soundwave_hf import cli, load_adapter
from soundwave_hf.data.manifest import write_rows
from soundwave_hf.data.tiny import write_tiny_llm, write_tiny_whisper
from soundwave_hf.evaluation import shipped
from tests.modeling.test_load_adapters import write_adapters


ROOT = Path(__file__).parents[1]
CLIP = "examples/librivox/sense_and_sensibility_01_austen-0880.flac"
SHORT = ("--max-new-tokens", "3")  # a random model does not stop by itself


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands(page: str, verb: str) -> list[list[str]]:
    """The words of each `soundwave-hf VERB` that begins a line of a page."""
    lines = [line for block in blocks(page, "bash") for line in block.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith(f"soundwave-hf {verb}")]


@pytest.fixture(scope="module")
def backbones(tmp_path_factory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("backbones")
    write_tiny_whisper(folder / "whisper")
    write_tiny_llm(folder / "llm")
    return str(folder / "whisper"), str(folder / "llm")


def load_what_is_here(folder, **options):
    """The weights of the current folder in place of the shipped ones, which have other backbones."""
    return load_adapter("weights/soundwave-small" if Path(folder) == shipped.ADAPTER else folder, **options)


@pytest.fixture
def here(tmp_path, monkeypatch, backbones) -> Path:
    """The current folder of a user: a checkout with other weights, and the recordings and rows that pages name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SOUNDWAVE_HOME", str(tmp_path / "home"))
    write_adapters(*backbones, tmp_path / "weights" / "soundwave-small")
    monkeypatch.setattr(shipped, "load_adapter", load_what_is_here)
    for name in ("examples", "recipes"):
        os.symlink(ROOT / name, tmp_path / name)
    (tmp_path / "calls").mkdir()
    for name in ("speech.wav", "calls/a.wav", "calls/b.wav"):
        soundfile.write(name, 0.1 * np.random.default_rng(0).standard_normal(8_000), 16_000)
    row = {"audio": "speech.wav", "text": "Go on."}
    write_rows(tmp_path / "train.jsonl", [row])
    write_rows(tmp_path / "instruct.jsonl", [row | {"question": "Who speaks?", "answer": "Ann."}])
    for name in ("train", "test"):
        (tmp_path / f"{name}.csv").write_text("audio,text\nspeech.wav,Go on.\n")
    return tmp_path


def run(words: list[str], capsys) -> str:
    assert cli.main(words) == 0, capsys.readouterr().err
    return capsys.readouterr().out


@pytest.mark.parametrize("page", ["README.md", "docs/fine_tune.md"])
def test_the_commands_that_fine_tune(page, here, capsys):
    ((check,), (train,), (evaluate,)) = (commands(page, verb) for verb in ("data check", "train", "evaluate"))
    assert "0 bad clips in 1 rows" in run(check, capsys)
    run([*train, "--max_steps", "1", "--plot_loss", "false"], capsys)
    table = run([*evaluate, *SHORT], capsys)
    assert table.startswith("| set | clips | seconds |") and "runs/mine" in str(evaluate)
    for transcribe in commands(page, "transcribe"):
        if "--adapter" in transcribe:
            run([*transcribe, *SHORT], capsys)


def test_the_commands_of_readme_that_transcribe(here, capsys):
    printed, written = commands("README.md", "transcribe")
    run([*printed, *SHORT], capsys)
    run([*written, *SHORT], capsys)
    names = sorted(path.name for path in (here / "texts").iterdir() if not path.name.startswith("."))
    assert names == ["a.srt", "a.txt", "b.srt", "b.txt"]


def test_the_python_of_the_quick_start(here, capsys):
    names = {}
    for block in blocks("docs/quickstart.md", "python"):
        block = block.replace('device_map="cuda"', 'device_map="cpu"')
        exec(re.sub(r"max_new_tokens=\d+", "max_new_tokens=3", block), names)
    assert "chunk_length_s" not in names and len(capsys.readouterr().out.splitlines()) >= 3


def test_the_command_of_the_quick_start(here, capsys):
    (command,) = commands("docs/quickstart.md", "transcribe")
    assert len(run([*command, *SHORT], capsys).splitlines()) == 5


def test_the_quick_start_has_the_six_lines_of_readme():
    assert blocks("docs/quickstart.md", "python")[0] == blocks("README.md", "python")[0]


def test_the_three_stages_run_in_their_order(here, backbones, capsys):
    for name, recipe in zip(("align", "shrink", "instruct"), blocks("docs/stages.md", "yaml"), strict=True):
        values = {**yaml.safe_load(recipe), "max_steps": 1, "plot_loss": False, "report_to": "none", "use_cpu": True}
        values |= dict(zip(("encoder", "llm"), backbones, strict=True)) if name == "align" else {}
        assert recipe.startswith(f"# {name}.yaml\n")
        (here / f"{name}.yaml").write_text(yaml.safe_dump(values))
    for command in commands("docs/stages.md", "train")[1:]:
        run(command, capsys)
    (transcribe,) = commands("docs/stages.md", "transcribe")
    run([*transcribe, *SHORT], capsys)


@pytest.mark.slow  # the three stages of the tiny recipe, 30 steps each
def test_the_tiny_recipe_runs(here, capsys):
    command = commands("docs/stages.md", "train")[0]
    assert command == ["train", "tiny"]
    run(command, capsys)
    assert (here / "home" / "runs" / "tiny" / "3_instruct" / "adapter_model.safetensors").is_file()


def test_any_pair_of_backbones_is_joined(backbones):
    (block,) = blocks("docs/backbones.md", "python")
    names = {}
    for name, folder in zip(("openai/whisper-small", "Qwen/Qwen3-0.6B"), backbones, strict=True):
        assert block.count(name) == 1
        block = block.replace(name, folder)
    exec(block, names)
    assert names["model"].config.text_config.vocab_size == len(names["processor"].tokenizer)


def test_the_plan_needs_no_backbone(here, capsys):
    (command,) = commands("docs/backbones.md", "plan")
    assert "GiB" in run(command, capsys)


def test_the_recipes_of_the_table_join_the_backbones_that_it_names():
    table = re.findall(
        r"^\| `(recipes/[^`]+)` \| `([^`]+)`, `([^`]+)` \|$", (ROOT / "docs/backbones.md").read_text(), re.M
    )
    assert len(table) == len([path for path in (ROOT / "recipes").iterdir() if "_" in path.name])
    for folder, encoder, llm in table:
        recipe = yaml.safe_load((ROOT / folder / "1_align.yaml").read_text(encoding="utf-8"))
        assert (recipe["encoder"], recipe["llm"]) == (encoder, llm)
