"""`soundwave_hf.train`: recipes as files, names and dicts, with Python values that replace theirs."""

import subprocess
import sys
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from datasets import Dataset
from transformers import TrainingArguments
from trl import SFTConfig

from soundwave_hf import SoundwaveDataCollator, SoundwaveSFTConfig, SoundwaveTrainingArguments, train
from soundwave_hf.data.rows import RowCheck
from soundwave_hf.modeling.modeling_soundwave import SoundwaveForCTC
from soundwave_hf.training import run
from soundwave_hf.training.augment import Augmentation
from soundwave_hf.training.collator import SoundwaveCollator
from soundwave_hf.training.recipe import arguments_class, find_recipe, load_recipes
from soundwave_hf.training.sft import SoundwaveSFTTrainer
from soundwave_hf.training.trainer import SoundwaveTrainer
from tests.training.workspace import train as train_watched


REPOSITORY = Path(__file__).parents[2]


# ---- the function ----


def test_a_dict_and_python_values_train_what_a_file_and_texts_do(workspace, tmp_path):
    recipe = workspace.recipe("align", tmp_path / "file")
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    before = yaml.safe_dump(recipe)
    run.run_recipe(path, {"max_steps": "2", "augment.noise": "0.5"})
    folder = train(recipe, output_dir=tmp_path / "dict", steps=2, augment={"noise": 0.5})
    assert folder == str(tmp_path / "dict")
    weights = [(tmp_path / name / "trained.safetensors").read_bytes() for name in ("file", "dict")]
    assert weights[0] == weights[1]
    assert yaml.safe_dump(recipe) == before
    written = yaml.safe_load((tmp_path / "dict" / "recipe.yaml").read_text())
    assert (written["max_steps"], written["augment"]) == (2, {"noise": 0.5})


def test_values_of_python_reach_the_arguments_as_they_are(workspace, tmp_path):
    recipe = workspace.recipe("shrink", tmp_path / "out", augment={"speed": 0.1})
    overrides = {
        "data": [Path(workspace.data / "train.jsonl"), {"path": workspace.data / "instruct.jsonl", "task": "x"}],
        "max_steps": np.int64(7),
        "learning_rate": 3e-5,
        "bf16": True,
        "augment.noise": 0.25,
        "lora": {"r": 2, "target_modules": ("q_proj", "v_proj")},
        "mixture": {"temperature": 2.0},
    }
    ((ours, arguments),) = load_recipes(recipe, overrides)
    assert [source.task for source in ours.sources] == [None, "x"]
    assert (arguments.max_steps, arguments.learning_rate, arguments.bf16) == (7, 3e-5, True)
    assert ours.augment == Augmentation(speed=0.1, noise=0.25)
    assert ours.lora == {"r": 2, "target_modules": ["q_proj", "v_proj"]}
    assert ours.mixture.temperature == 2.0
    assert yaml.safe_load(yaml.safe_dump(ours.written)) == ours.written


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"learning_rat": 1e-4}, "the key `learning_rat`, which does not exist. Did you mean `learning_rate`?"),
        ({"max_step": 3}, "the key `max_step`, which does not exist. Did you mean `max_steps`?"),
        ({"augment": {"nois": 0.1}}, "the key `nois`, which does not exist. Did you mean `noise`?"),
        ({"augment.nois": 0.1}, "the key `nois`, which does not exist. Did you mean `noise`?"),
        ({"recipe": "x"}, "the key `recipe`, which does not exist"),
        ({"steps": 3, "max_steps": 4}, "two values of one setting: `steps` is another name of `max_steps`"),
        ({"data": torch.zeros(2)}, "`data` is a Tensor; give text, a number, true or false, a path, a list or a m"),
        ({"augment": "noise"}, "`augment` of the recipe is 'noise'; give `key: value` pairs"),
        ({"hub_token": "hf_" + "a1B2" * 8}, "An override sets `hub_token`, which would be written into the files"),
        ({"packing": True}, "the key `packing`, which does not exist"),
    ],
)
def test_a_mistake_in_a_value_is_refused_before_anything_is_written(workspace, tmp_path, overrides, message):
    recipe = {key: value for key, value in workspace.recipe("align", tmp_path / "out").items() if key != "max_steps"}
    with pytest.raises(ValueError, match=message):
        train(recipe, **overrides)
    assert not (tmp_path / "out").exists()


def test_no_value_is_taken_for_a_recipe():
    with pytest.raises(ValueError, match="holds no `key: value` lines"):
        load_recipes(yaml_file_of_a_list := Path(__file__).parent / "__init__.py")
    assert yaml_file_of_a_list.is_file()


# ---- recipes by name ----


@pytest.mark.parametrize("name", ["finetune", "finetune.yaml", "recipes/finetune.yaml", "recipes/finetune"])
def test_a_recipe_of_the_package_is_found_from_any_folder(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert find_recipe(name).resolve() == REPOSITORY / "recipes" / "finetune.yaml"
    ((recipe, _),) = load_recipes(name, {"data": "train.csv"})
    assert Path(recipe.start_folder).resolve() == REPOSITORY / "weights" / "soundwave-small"
    assert (recipe.encoder, recipe.llm) == ("openai/whisper-base", "HuggingFaceTB/SmolLM2-135M-Instruct")


def test_a_file_of_the_user_comes_before_a_recipe_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").write_text("stage: align")
    assert find_recipe("tiny") == Path("tiny")
    (tmp_path / "tiny").unlink()
    (tmp_path / "tiny").mkdir()
    assert find_recipe("tiny").resolve() == REPOSITORY / "recipes" / "tiny.yaml"


@pytest.mark.parametrize("name", ["1_align", "recipes/3_instruct.yaml"])
def test_a_recipe_that_has_moved_is_named_by_its_new_place(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    place = f"examples/soundwave-small/recipes/{Path(name).stem}.yaml"
    with pytest.raises(FileNotFoundError, match=f"is now `{place}`"):
        find_recipe(name)
    assert (REPOSITORY / place).is_file()


@pytest.mark.parametrize("name", ["accelerate/ddp", "../README.md", "nowhere"])
def test_what_is_no_recipe_of_the_package_is_not_found(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        FileNotFoundError,
        match="give a YAML file, or one of finetune, tiny, whisper-large-v3",
    ):
        find_recipe(name)


# ---- which classes a stage needs ----


def test_only_stage_three_takes_the_arguments_of_trl(tmp_path):
    assert arguments_class("align") is arguments_class("shrink") is SoundwaveTrainingArguments
    assert arguments_class("instruct") is SoundwaveSFTConfig
    assert issubclass(SoundwaveTrainingArguments, TrainingArguments)
    assert not issubclass(SoundwaveTrainingArguments, SFTConfig)
    assert issubclass(SoundwaveSFTConfig, SFTConfig) and issubclass(SoundwaveSFTConfig, SoundwaveTrainingArguments)
    plain, sft = (kind(str(tmp_path), use_cpu=True) for kind in (SoundwaveTrainingArguments, SoundwaveSFTConfig))
    for name in ("learning_rate", "bf16", "activation_checkpointing", "logging_steps", "remove_unused_columns"):
        assert getattr(plain, name) == getattr(sft, name)
    assert (plain.logging_steps, plain.learning_rate, plain.bf16) == (10, 1e-4, False)


def test_the_arguments_of_the_first_stages_become_those_of_trl(tmp_path):
    given = SoundwaveTrainingArguments(str(tmp_path), use_cpu=True, learning_rate=2e-3, max_steps=5, plot_loss=False)
    made = SoundwaveSFTConfig.of(given)
    assert (made.learning_rate, made.max_steps, made.plot_loss, made.max_length) == (2e-3, 5, False, None)


@pytest.mark.slow
def test_the_first_stages_train_without_an_import_of_trl(workspace, tmp_path):
    recipe = workspace.recipe("align", tmp_path / "out", max_steps=1, plot_loss=False)
    code = (
        f"import sys; from soundwave_hf import train; train({recipe!r});"
        "sys.exit(sorted(name for name in sys.modules if name.split('.')[0] == 'trl')[:3] or 0)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY)
    assert ran.returncode == 0, ran.stderr[-2000:]


def test_the_collator_has_its_old_name_too():
    assert SoundwaveCollator is SoundwaveDataCollator


# ---- what a step does ----


def test_the_rows_of_a_recipe_are_checked_once(workspace, tmp_path, monkeypatch):
    checked = []
    check = RowCheck.__call__
    monkeypatch.setattr(RowCheck, "__call__", lambda self, row, name: checked.append(name) or check(self, row, name))
    train(workspace.recipe("align", tmp_path / "out", max_steps=6))
    assert len(checked) == len(set(checked)) == 12  # of 24 that the steps read


def test_a_collator_that_a_user_makes_checks_each_row(workspace):
    collator = SoundwaveDataCollator(workspace.processor(), workspace.data)
    with pytest.raises(ValueError, match=r"Row 0 lacks \['text'\]"):
        collator([{"audio": "clips/0.wav"}])


WAITS = ("item", "tolist", "cpu", "numpy", "__int__", "__float__", "__bool__", "__index__")


@pytest.mark.parametrize("stage", ["align", "shrink", "instruct"])
def test_a_step_does_not_wait_for_the_device(workspace, chain, tmp_path, monkeypatch, stage):
    """Whatever brings a value to the CPU is called by the trainer at logs and saves alone, not in each step."""
    seen = []

    def watched(name, call):
        def method(self, *args, **kwargs):
            *before, caller, _ = traceback.extract_stack()
            ours = caller.filename.endswith(("training/trainer.py", "training/watch.py", "training/sft.py"))
            if ours and not any(frame.name == "save_model" for frame in before):
                seen.append(caller.name)
            return call(self, *args, **kwargs)

        return method

    starts = {"shrink": "align", "instruct": "shrink"}
    changes = {"start_from": str(chain[starts[stage]].folder)} if stage in starts else {}
    changes |= {"logging_steps": 4, "max_steps": 4, "save_strategy": "no", "mixture": {"temperature": 1}}
    with monkeypatch.context() as patch:
        for name in WAITS:
            patch.setattr(torch.Tensor, name, watched(name, getattr(torch.Tensor, name)))
        trained = train_watched(workspace.recipe(stage, tmp_path / stage, **changes))
    assert len(trained.logs) == 1 and "share/" in str(trained.logs[0])
    in_collator = {"shared_prefix", "__call__"} if stage == "shrink" else set()
    assert set(seen) <= {"_means", "_weights_finite", "_batches"} | in_collator
    assert seen.count("_means") == 1


@pytest.mark.parametrize("kind", [SoundwaveTrainer, SoundwaveSFTTrainer])
@pytest.mark.parametrize("loss_only", [True, False])
def test_losses_are_computed_without_a_cache(workspace, chain, tmp_path, kind, loss_only):
    trained = chain["instruct" if kind is SoundwaveSFTTrainer else "shrink"].trainer
    given = []
    handle = trained.audio_model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: given.append(kwargs.get("use_cache")), with_kwargs=True
    )
    try:
        batch = trained.data_collator([trained.train_dataset[0]])
        trained.prediction_step(trained.model, batch, prediction_loss_only=loss_only)
    finally:
        handle.remove()
    assert set(given) == {False}


@pytest.mark.parametrize("order", ["random", "group_by_length"])
def test_batches_of_training_say_which_tokens_are_scored_and_others_do_not(workspace, chain, order):
    trainer = chain["shrink"].trainer
    trainer.args.train_sampling_strategy = order
    batch = next(iter(trainer.get_train_dataloader()))
    labels = batch["labels"]
    first = min(row.ne(-100).nonzero()[0].item() for row in labels)  # the first token that any row learns
    assert batch["logits_to_keep"] == labels.shape[1] - (first - 1)
    assert 0 < batch["shared_prefix"] < first
    assert "logits_to_keep" not in next(iter(trainer.get_eval_dataloader(trainer.train_dataset)))
    assert isinstance(trainer.data_collator, SoundwaveDataCollator)


def test_lengths_are_read_from_the_collators_folder(workspace, tmp_path):
    rows = Dataset.from_list([{"audio": f"clips/{index}.wav", "text": "yes"} for index in range(4)])
    collator = SoundwaveDataCollator(workspace.processor(), workspace.data, losses=("ctc",))
    arguments = SoundwaveTrainingArguments(
        str(tmp_path), train_sampling_strategy="group_by_length", use_cpu=True, report_to="none"
    )
    model = SoundwaveForCTC.from_backbones(workspace.encoder, workspace.llm)
    trainer = SoundwaveTrainer(model=model, args=arguments, train_dataset=rows, data_collator=collator)
    assert len(trainer.get_train_dataloader()) == 1
