"""No secret reaches a file that a run writes, what it prints, or an error."""

import contextlib
import os
from pathlib import Path

import pytest
import torch
import yaml

from soundwave_hf import cli
from soundwave_hf.training.arguments import SoundwaveTrainingArguments
from soundwave_hf.training.secret_values import hide_secrets, holds_secret, names_secret
from soundwave_hf.training.sft import SoundwaveSFTConfig


SECRET = "hf_AbCdEfGhIjKlMnOpQrStUvWxYz0123456789"


def run(workspace, tmp_path, words=(), **changes) -> int:
    """Exit code of `soundwave-hf train` on a recipe of one step with these changes."""
    recipe = workspace.recipe("align", tmp_path / "out", max_steps=1) | changes
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    with contextlib.suppress(SystemExit):
        return cli.main(["train", str(tmp_path / "recipe.yaml"), *words])
    return 2


def assert_nowhere(secret: str, folder: Path, printed: str):
    assert secret not in printed
    for path in folder.rglob("*"):
        assert not path.is_file() or secret.encode() not in path.read_bytes(), path


@pytest.mark.parametrize(
    "changes",
    [
        {"hub_token": SECRET},
        {"hub_token": "abc123"},  # of no known form
        {"push_to_hub_token": "abc123"},
        {"hub_tokn": SECRET},  # a key that nobody reads
        {"wandb_api_key": "abc123"},
        {"password": "abc123"},
        {"model_init_kwargs": {"token": "abc123"}},
        {"model_init_kwargs": {"headers": {"Authorization": "Bearer abc123def456"}}},
        {"run_name": SECRET},
        {"hub_model_id": f"me/{SECRET}"},
        {"llm": "https://me:abc123@host.example/llm"},
        {"data": "https://abc123@host.example/train.jsonl"},
        {"data": "https://host.example/train.jsonl?X-Amz-Signature=abc123"},
        {"repeat": {SECRET: 2}},
        {"report_to": ["none", SECRET]},
        {"lora": {"target_modules": [SECRET]}},
        {"deepspeed": {"comet": {"secret": "abc123"}}},
        {SECRET: 1},
    ],
)
def test_a_secret_of_a_recipe_is_refused_unseen(workspace, tmp_path, capfd, changes):
    assert run(workspace, tmp_path, **changes) == 2
    printed = "".join(capfd.readouterr())
    assert "`hf auth login`" in printed and "HF_TOKEN" in printed
    assert SECRET not in printed and "abc123" not in printed
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["--push_to_hub", "true", "--hub_token", SECRET],
        ["--hub_token", "[abc123"],  # no YAML
        ["--hub_token=abc123"],
        ["--model_init_kwargs.token", "abc123"],
        ["--run_name", SECRET],
        ["--hub_token", "abc123", "--hub_token", "abc123"],
        [SECRET],
        ["--seed.x", SECRET],
    ],
)
def test_a_secret_of_the_command_line_is_refused_unseen(workspace, tmp_path, capfd, words):
    assert run(workspace, tmp_path, words) == 2
    printed = "".join(capfd.readouterr())
    assert "soundwave-hf train: " in printed
    assert SECRET not in printed and "abc123" not in printed
    assert not (tmp_path / "out").exists()


def test_a_recipe_that_is_no_yaml_is_not_shown(tmp_path, capfd):
    (tmp_path / "recipe.yaml").write_text("stage: align\nhub_token: abc123: def456\n")
    assert cli.main(["train", str(tmp_path / "recipe.yaml")]) == 2
    printed = capfd.readouterr().err
    assert "cannot be read as YAML: mapping values are not allowed here in line 2." in printed
    assert "abc123" not in printed and "def456" not in printed


def test_other_verbs_do_not_repeat_one_either(capfd):
    with pytest.raises(SystemExit):
        cli.main(["export", "a", "b", "--token", SECRET])
    assert SECRET not in capfd.readouterr().err


def test_a_variable_does_not_bring_one_in(workspace, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("MY_PLACE", SECRET)
    assert run(workspace, tmp_path, output_dir=f"{tmp_path}/$MY_PLACE") == 2
    assert SECRET not in capfd.readouterr().err
    assert os.listdir(tmp_path) == ["recipe.yaml"]


def test_a_run_with_a_token_in_the_environment_writes_it_nowhere(workspace, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    assert run(workspace, tmp_path) == 0
    arguments = torch.load(tmp_path / "out" / "checkpoint-1" / "rng_state.pth", weights_only=False)
    assert arguments  # binary files are looked into as well
    assert_nowhere(SECRET, tmp_path / "out", "".join(capfd.readouterr()))


@pytest.mark.parametrize("given", [{"hub_token": SECRET}, {"run_name": SECRET}, {"model_init_kwargs": {"token": "x"}}])
def test_arguments_hold_none_since_each_checkpoint_holds_them(tmp_path, given):
    with pytest.raises(ValueError, match="hf auth login") as caught:
        arguments = SoundwaveSFTConfig if "model_init_kwargs" in given else SoundwaveTrainingArguments
        arguments(str(tmp_path), use_cpu=True, **given)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "hf_transformers",
        "HF_ENDPOINT",
        "runs/hf_baseline",
        "openai/whisper-base",
        "eos_token",
        "5d41402abc4b2a76b9719d911017c592",
        "a@b",
    ],
)
def test_words_and_revisions_are_no_secrets(text):
    assert not holds_secret(text)
    assert hide_secrets(text) == text


@pytest.mark.parametrize("key", ["eos_token", "pad_token", "include_num_input_tokens_seen", "keep_blanks", "author"])
def test_keys_of_text_are_no_secrets(key):
    assert not names_secret(key)


def test_a_message_hides_what_it_repeats():
    text = f"no repository at https://me:pw@host/x for {SECRET}"
    assert hide_secrets(text) == "no repository at https://***@host/x for ***"
