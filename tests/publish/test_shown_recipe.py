"""What a card shows of a recipe: no path of the machine, whatever the current folder holds."""

import json

import pytest
import yaml

from soundwave_hf.data.used import DataUsed
from soundwave_hf.publish.runs import describe_runs, shown_recipe


@pytest.fixture
def crowded(tmp_path, monkeypatch):
    """The current folder has folders that are named as values of a recipe."""
    for name in ("align", "mit", "gpt2", "openai/whisper-base", "openslr/librispeech_asr", "corpus", "private/calls"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


NAMES = {
    "stage": "align",
    "encoder": "openai/whisper-base",
    "llm": "gpt2",
    "license": "mit",
    "lora": {"init_lora_weights": "corpus"},
    "attn_implementation": "kernels-community/flash-attn",
    "lr": 1,
}


def test_values_stay_if_the_current_folder_has_something_of_that_name(crowded):
    assert shown_recipe(NAMES) == NAMES


def test_a_data_set_of_the_hub_stays_and_a_folder_of_data_does_not(crowded):
    recipe = {"data": ["openslr/librispeech_asr", "corpus", {"path": "private/calls", "split": "x"}]}
    assert shown_recipe(recipe, ["openslr/librispeech_asr"]) == {"data": ["openslr/librispeech_asr", {"split": "x"}]}
    assert shown_recipe({"eval_data": {"clean": "corpus"}}) == {"eval_data": {}}


def test_the_record_of_exported_weights_keeps_them_too(crowded):
    run = crowded / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text(yaml.safe_dump(NAMES | {"data": ["openslr/librispeech_asr", "corpus"]}))
    (run / "data_card.md").write_text(DataUsed(datasets=("openslr/librispeech_asr",)).comment())
    (found,) = json.loads(describe_runs(run))["runs"]
    assert found["recipe"] == NAMES | {"data": ["openslr/librispeech_asr"]}


@pytest.mark.parametrize(
    "path",
    [
        "/a",
        "~/a",
        "./a",
        "../a",
        "$HOME/a",
        "a/b/c",
        "C:\\a",
        "file:///a",
        "file:a",
        "a/rows.jsonl",
        "ds.json",
        "/no/x",
    ],
)
@pytest.mark.parametrize("key", ["data", "encoder", "deepspeed"])
def test_paths_are_never_shown(path, key):
    assert shown_recipe({key: path, "lr": 1}) == {"lr": 1}
    assert shown_recipe({key: {"path": path, "repeat": {path: 2}}}) == {key: {"repeat": {}}}


def test_a_checkpoint_of_the_machine_is_not_shown():
    assert shown_recipe({"resume_from_checkpoint": "runs/checkpoint-5"}) == {}
