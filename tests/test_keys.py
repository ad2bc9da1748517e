"""YAML that is broken is named wherever it is read, and no error quotes it: it may hold a token."""

from pathlib import Path

import pytest

from soundwave_hf.cli_data import read_source
from soundwave_hf.cli_hub import read_licenses
from soundwave_hf.cli_options import read_columns
from soundwave_hf.data.build.recipe import read_build_recipe
from soundwave_hf.data.build.wordings import choice_lines, read_wordings
from soundwave_hf.data.clean.settings import read_settings
from soundwave_hf.evaluation.sets import named_sources
from soundwave_hf.keys import read_yaml
from soundwave_hf.publish.card_parts import read_card
from soundwave_hf.publish.runs import read_run
from soundwave_hf.training.recipe import load_recipes, parse_overrides


TEXTS = {
    "data check SOURCE": read_source,
    "--columns": read_columns,
    "--licenses": read_licenses,
    "--data": lambda text: named_sources([text]),
    "--augment": lambda text: parse_overrides({"augment": text}),
    "card": lambda text: read_card(f"---\n{text}\n---\n", "README.md"),
}
FILES = {
    "recipe.yaml": load_recipes,
    "recipe.yaml of a run": lambda path: read_run(path.parent),
    "build.yaml": lambda path: read_build_recipe(path, path.parent),
    "filters.yaml": read_settings,
    "emotion.yaml": lambda path: read_wordings("emotion", (), path.parent),
    "choices.yaml": lambda path: choice_lines(path.parent),
}


@pytest.mark.parametrize("door", TEXTS)
def test_a_text_that_is_no_yaml_is_refused_unseen(door):
    with pytest.raises(ValueError, match="cannot be read as YAML: .* in line [12]") as refused:
        TEXTS[door]("{token: abc123, [def456")
    assert "abc123" not in str(refused.value) and "def456" not in str(refused.value)


@pytest.mark.parametrize("door", FILES)
def test_a_file_that_is_no_yaml_is_named_unseen(door, tmp_path):
    path = Path(tmp_path / door.split()[0])
    path.write_text("token: abc123: def456\n")
    with pytest.raises(
        ValueError, match=f"{path.name}` cannot be read as YAML: mapping values .* in line 1"
    ) as refused:
        FILES[door](path)
    assert "abc123" not in str(refused.value) and "def456" not in str(refused.value)


@pytest.mark.parametrize("door", FILES)
def test_a_file_in_another_encoding_is_named(door, tmp_path):
    path = Path(tmp_path / door.split()[0])
    path.write_bytes("a: é\n".encode("latin-1"))
    with pytest.raises(ValueError, match=f"{path.name}` is not in UTF-8 .* at byte 3.: convert it"):
        FILES[door](path)


def test_a_day_that_does_not_exist_is_no_yaml():
    with pytest.raises(ValueError, match="^The text cannot be read as YAML: not YAML.$"):
        read_yaml("day: 2026-02-30", "The text")


def test_a_mapping_that_is_a_token_is_not_repeated():
    with pytest.raises(ValueError, match="`--columns` is `[*]+`; expected a mapping"):
        read_columns("hf_" + "aB3" * 10)
