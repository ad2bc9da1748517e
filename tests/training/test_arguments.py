import os
import warnings

import pytest

from soundwave_hf import SoundwaveTrainingArguments
from soundwave_hf.training.arguments import KERNEL_CACHES
from soundwave_hf.training.run import read_recipe


def test_training_on_a_cpu_keeps_few_compiled_kernels_unless_the_user_says_otherwise(tmp_path, monkeypatch):
    ours, theirs = KERNEL_CACHES
    monkeypatch.setenv(ours, "removed")
    monkeypatch.delenv(ours)
    monkeypatch.setenv(theirs, "500")
    SoundwaveTrainingArguments(str(tmp_path), use_cpu=True)
    assert (os.environ[ours], os.environ[theirs]) == ("32", "500")


def test_checkpointing_of_activations_goes_by_either_name_and_without_a_warning(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        by_default = SoundwaveTrainingArguments(str(tmp_path), use_cpu=True)
        by_new_name = SoundwaveTrainingArguments(str(tmp_path), use_cpu=True, activation_checkpointing=True)
        by_older_name = SoundwaveTrainingArguments(str(tmp_path), use_cpu=True, gradient_checkpointing=True)
    assert [each.activation_checkpointing for each in (by_default, by_new_name, by_older_name)] == [False, True, True]
    assert [each.gradient_checkpointing for each in (by_default, by_new_name, by_older_name)] == [False, True, True]


def test_a_recipe_with_two_values_of_checkpointing_is_refused(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "stage: align\nactivation_checkpointing: false\ngradient_checkpointing: true\n", encoding="utf-8"
    )
    with pytest.raises(ValueError, match="`gradient_checkpointing` is another name of `activation_checkpointing`"):
        read_recipe(recipe)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train_sampling_strategy": "group_by_lenght"}, "is 'group_by_lenght'; .* Did you mean `group_by_length`"),
        ({"train_sampling_strategy": None}, "is None; expected one of random, sequential"),
        ({"per_device_train_batch_size": 0}, "`per_device_train_batch_size` is 0; expected 1 or more"),
        ({"per_device_eval_batch_size": -1}, "`per_device_eval_batch_size` is -1"),
        ({"gradient_accumulation_steps": 0}, "`gradient_accumulation_steps` is 0"),
    ],
)
def test_batches_that_cannot_be_made_are_refused(tmp_path, values, message):
    with pytest.raises(ValueError, match=message):
        SoundwaveTrainingArguments(str(tmp_path), **values)


@pytest.mark.parametrize("strategy", ["random", "sequential", "group_by_length"])
def test_the_orders_of_clips_that_transformers_knows_are_taken(tmp_path, strategy):
    assert (
        SoundwaveTrainingArguments(str(tmp_path), train_sampling_strategy=strategy).train_sampling_strategy == strategy
    )


def test_half_precision_is_refused_where_it_would_have_no_effect(tmp_path):
    with pytest.raises(ValueError, match="`fp16` is True, and a CPU would train in float32: .* or give `bf16`"):
        SoundwaveTrainingArguments(str(tmp_path), use_cpu=True, fp16=True)
