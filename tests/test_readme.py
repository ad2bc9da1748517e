"""README's Python runs as it stands there, on the shipped weights and real backbones; its table is what was scored."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from soundwave_hf import __version__, cli
from soundwave_hf.data.backbones import resolve_backbone
from soundwave_hf.evaluation.evaluate import Scores, score_table
from soundwave_hf.evaluation.shipped import ADAPTER, ENCODER, LLM
from tests.evaluation.test_shipped import backbone_on_disk


REPOSITORY = Path(__file__).resolve().parents[1]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def block_about(words: str) -> str:
    (block,) = [block for block in BLOCKS if words in block]
    return block


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder that looks like a checkout from inside and takes what the lines write."""
    for name in (ENCODER, LLM):
        backbone_on_disk(name)
    for name in ("examples", "recipes", "weights"):
        os.symlink(REPOSITORY / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", [REPOSITORY / "README.md", ADAPTER / "README.md"], ids=["README", "card"])
def test_the_table_is_what_was_measured(page):
    report = json.loads((ADAPTER / "evaluation.json").read_text(encoding="utf-8"))
    assert report["weights"] == ADAPTER.name
    table = score_table({name: Scores(**scores) for name, scores in report["sets"].items()})
    assert table in page.read_text(encoding="utf-8")


def test_the_files_that_answer_a_newcomers_questions_exist():
    page = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = page.split("## Where things are")[1].split("\n## ")[0].splitlines()
    assert "[docs/architecture.md](docs/architecture.md)" in README
    cells = [row.split(" | ", 1)[1] for row in rows if " | " in row and "`" in row.split(" | ", 1)[1]]
    assert len(cells) >= 30
    for cell in cells:
        names = [name for name in re.findall(r"`([\w./-]+)`", cell) if "/" in name or name.endswith(".py")]
        assert names and all((REPOSITORY / name).exists() for name in names), cell


def test_six_lines_transcribe(checkout, capsys):
    block = block_about("apply_transcription_request")
    assert len([line for line in block.splitlines() if line]) == 6
    exec(block, {})
    assert "young man" in capsys.readouterr().out


@pytest.mark.slow  # a training step of the real backbones
def test_the_command_fine_tunes_the_shipped_weights(checkout):
    (line,) = [line for line in README.splitlines() if line.startswith("soundwave-hf train finetune")]
    row = "examples/spoken_question.flac,What is the capital of France?"
    (checkout / "train.csv").write_text(f"audio,text\n{row}\n")
    assert cli.main([*shlex.split(line)[1:], "--max_steps", "1"]) == 0
    assert (checkout / "runs" / "mine" / "adapter_model.safetensors").is_file()


@pytest.mark.slow
def test_the_lines_that_transcribe_write_nothing_else(tmp_path, monkeypatch):
    # Adapters of tiny backbones, which are made beforehand: a first use tells of them.
    monkeypatch.setenv("SOUNDWAVE_HOME", str(tmp_path))
    for name in ("tiny-random-whisper", "tiny-random-llama"):
        resolve_backbone(name)
    adapters = REPOSITORY / "tests" / "fixtures" / "0.1" / "instruct"
    block = block_about("apply_transcription_request").replace("weights/soundwave-small", str(adapters))
    assert str(adapters) in block
    ran = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True, cwd=REPOSITORY)
    # bitsandbytes, which the tests install, says this itself on processors with avx512_bf16.
    written = [line for line in ran.stderr.splitlines() if not line.startswith("Failed to load CPU gemm_4bit_forward")]
    assert (ran.returncode, written) == (0, [])
    assert ran.stdout.endswith("\n")


def test_citation_and_changelog_know_this_version():
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__
    assert f"## {__version__}" in (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
