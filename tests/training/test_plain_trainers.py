"""The model under `transformers.Trainer` and TRL's `SFTTrainer` as they come, beside this package's own trainers."""

import itertools
import re
from pathlib import Path

import pytest
import torch
from datasets import Audio, Dataset, concatenate_datasets
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from torch import nn
from transformers import Trainer, TrainingArguments
from trl import SFTConfig, SFTTrainer

from soundwave_hf.modeling.modeling_soundwave import SoundwaveForConditionalGeneration, SoundwaveForCTC
from soundwave_hf.training.arguments import SoundwaveTrainingArguments
from soundwave_hf.training.augment import Augmentation
from soundwave_hf.training.collator import SoundwaveDataCollator
from soundwave_hf.training.mixture import Mixture
from soundwave_hf.training.run import read_rows
from soundwave_hf.training.sft import SoundwaveSFTConfig, SoundwaveSFTTrainer
from soundwave_hf.training.stages import ADAPTERS
from soundwave_hf.training.trainer import SoundwaveTrainer, trainable
from tests.training.workspace import Workspace, everything_in, train, without_dropout


LORA = {"r": 4, "lora_alpha": 8, "target_modules": r".*language_model.*\.(q|v)_proj"}


@pytest.fixture
def rows(workspace) -> Dataset:
    return read_rows(workspace.data / "instruct.jsonl", {}).select(range(8))


def make_model(workspace: Workspace, lora: bool, model_class=SoundwaveForConditionalGeneration) -> nn.Module:
    """The same weights at each call: with LoRA it alone trains, without it all but the encoder."""
    torch.manual_seed(0)
    model = model_class.from_backbones(workspace.encoder, workspace.llm)
    model.base_model.audio_tower.requires_grad_(False)
    if lora:
        model = get_peft_model(model, LoraConfig(**LORA))
    without_dropout(model)
    return model


def run(workspace: Workspace, rows: Dataset, folder, trainer_class, model: nn.Module, losses: tuple, parts=1, **more):
    """Two SGD steps on the eight rows, each in so many parts. Returns the trainer."""
    kinds = {Trainer: TrainingArguments, SFTTrainer: SFTConfig}
    arguments_class = kinds.get(trainer_class, SoundwaveTrainingArguments)
    options = {"remove_unused_columns": False, "bf16": False, "activation_checkpointing": False}
    if arguments_class is SoundwaveTrainingArguments:
        options["plot_loss"] = False
    if arguments_class is SFTConfig:
        options |= {"dataset_kwargs": {"skip_prepare_dataset": True}, "max_length": None}
    arguments = arguments_class(
        str(folder),
        max_steps=2,
        per_device_train_batch_size=8 // parts,
        gradient_accumulation_steps=parts,
        train_sampling_strategy="sequential",
        optim="sgd",
        learning_rate=0.1,
        lr_scheduler_type="constant",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
        **options,
    )
    collator = SoundwaveDataCollator(workspace.processor(), workspace.data, losses)
    if issubclass(trainer_class, SFTTrainer):  # which would look for one by the name of the model's folder
        more["processing_class"] = workspace.processor()
    trainer = trainer_class(model=model, args=arguments, train_dataset=rows, data_collator=collator, **more)
    trainer.train()
    return trainer


def logged(trainer, name: str = "loss") -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def assert_same_steps(found, expected):
    """Losses, gradient norms and all weights after two steps."""
    for name in ("loss", "grad_norm"):
        assert logged(found, name) == pytest.approx(logged(expected, name), rel=1e-5), name
    theirs = everything_in(expected.model)
    for name, value in everything_in(found.model).items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-5, atol=1e-5, msg=name)
    assert len(logged(found)) == 2 and logged(found)[0] != logged(found)[1]


@pytest.mark.parametrize("lora", [False, True], ids=["whole", "lora"])
def test_the_librarys_trainer_takes_the_steps_of_ours_on_both_losses(workspace, rows, tmp_path, lora):
    plain, ours = (
        run(workspace, rows, tmp_path, kind, make_model(workspace, lora), ("ce", "ctc"))
        for kind in (Trainer, SoundwaveTrainer)
    )
    assert logged(ours, "ctc_loss")[0] > 0
    assert_same_steps(plain, ours)


@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, True], ids=["whole", "lora"])
def test_all_trainers_take_the_same_steps_on_the_next_token_in_one_part_and_in_four(workspace, rows, tmp_path, lora):
    expected = run(workspace, rows, tmp_path, SoundwaveSFTTrainer, make_model(workspace, lora), ("ce",))
    for kind, parts in ((SFTTrainer, 1), (SFTTrainer, 4), (Trainer, 1), (Trainer, 4), (SoundwaveTrainer, 1)):
        found = run(workspace, rows, tmp_path, kind, make_model(workspace, lora), ("ce",), parts)
        assert_same_steps(found, expected)


def test_trl_wraps_the_model_in_a_lora_itself(workspace, rows, tmp_path):
    given = run(workspace, rows, tmp_path, SFTTrainer, make_model(workspace, lora=True), ("ce",))
    torch.manual_seed(0)
    wrapped = run(
        workspace,
        rows,
        tmp_path,
        SFTTrainer,
        make_model(workspace, lora=False),
        ("ce",),
        peft_config=LoraConfig(**LORA),
    )
    trains = [{name for name, p in t.model.named_parameters() if p.requires_grad} for t in (given, wrapped)]
    assert trains[0] == trains[1]
    assert len(trains[0]) == 2 * 2 * 2 and all(".language_model." in name for name in trains[0])
    assert logged(wrapped)[0] == pytest.approx(logged(given)[0], rel=1e-5)  # a fresh LoRA adds nothing yet
    assert logged(wrapped)[1] < logged(wrapped)[0]


def test_parts_of_a_batch_weigh_the_ctc_by_their_labels_under_the_librarys_trainer(workspace, rows, tmp_path):
    model = make_model(workspace, lora=False)
    collator = SoundwaveDataCollator(workspace.processor(), workspace.data, ("ce", "ctc"))
    with torch.no_grad():
        outputs = [
            (model(**(batch := collator(list(rows.select(range(start, start + 2)))))), batch) for start in (0, 2, 4, 6)
        ]
    labels = [int(batch["labels"].ne(-100).sum()) for _, batch in outputs]
    assert len(set(labels)) > 1
    expected = sum(
        n * (output.ce_loss + model.config.ctc_loss_weight * output.ctc_loss)
        for n, (output, _) in zip(labels, outputs, strict=True)
    ) / sum(labels)
    trained = run(workspace, rows, tmp_path, Trainer, model, ("ce", "ctc"), parts=4)
    assert logged(trained)[0] == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("parts", [1, 4])
def test_the_librarys_trainer_takes_the_steps_of_ours_without_an_llm(workspace, rows, tmp_path, parts):
    plain, ours = (
        run(workspace, rows, tmp_path, kind, make_model(workspace, False, SoundwaveForCTC), ("ctc",), parts)
        for kind in (Trainer, SoundwaveTrainer)
    )
    assert_same_steps(plain, ours)


def test_a_learnt_prompt_takes_the_steps_of_the_librarys_trainer(workspace, rows, tmp_path):
    def trained(kind) -> Trainer:
        config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
        return run(workspace, rows, tmp_path, kind, get_peft_model(make_model(workspace, lora=False), config), ("ce",))

    assert_same_steps(trained(Trainer), trained(SoundwaveTrainer))


class OneMoreTerm(SoundwaveTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss = super().compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
        return loss + sum(weight.square().mean() for weight in model.parameters() if weight.requires_grad)


class OwnMean(SoundwaveTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return model(**inputs).loss


class OwnPart(SoundwaveTrainer):
    loss_is_scaled_for_ga = True

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return super().compute_loss(model, inputs, num_items_in_batch=num_items_in_batch) / 2


@pytest.mark.parametrize("kind", [SoundwaveTrainer, OneMoreTerm, OwnMean, OwnPart])
def test_a_class_with_its_own_loss_takes_the_same_steps_in_one_part_and_in_four(workspace, rows, tmp_path, kind):
    whole, parts = (
        run(workspace, rows, tmp_path, kind, make_model(workspace, False, SoundwaveForCTC), ("ctc",), parts)
        for parts in (1, 4)
    )
    assert_same_steps(parts, whole)


def test_what_the_librarys_trainer_saves_is_a_whole_model(workspace, rows, tmp_path):
    trainer = run(workspace, rows, tmp_path, Trainer, make_model(workspace, lora=False), ("ce", "ctc"))
    trainer.save_model(tmp_path / "saved")
    loaded = SoundwaveForConditionalGeneration.from_pretrained(tmp_path / "saved")
    for name, value in everything_in(loaded).items():
        torch.testing.assert_close(value, everything_in(trainer.model)[name], rtol=0, atol=0, msg=name)


# ---- what our trainers save of a whole checkpoint ----


@pytest.fixture(scope="module")
def merged(workspace, tmp_path_factory) -> str:
    """A whole checkpoint. Its LLM holds a LoRA, and is no longer the backbone that the config names."""
    folder = tmp_path_factory.mktemp("merged")
    joined = SoundwaveForConditionalGeneration.from_backbones(workspace.encoder, workspace.llm)
    get_peft_model(joined, LoraConfig(**LORA, init_lora_weights=False)).merge_and_unload().save_pretrained(folder)
    workspace.processor().save_pretrained(folder)
    return str(folder)


def form_of(merged: str, form: str) -> nn.Module:
    """The whole checkpoint, ready to train: all but the encoder, or a LoRA in one of three ways."""
    torch.manual_seed(0)
    model = SoundwaveForConditionalGeneration.from_pretrained(merged)
    without_dropout(model)
    if form == "add_adapter":
        model.add_adapter(LoraConfig(**LORA))
    if form == "get_peft_model":
        model = get_peft_model(model, LoraConfig(**LORA))
    if form == "modules_to_save":
        model = get_peft_model(model, LoraConfig(**LORA, modules_to_save=list(ADAPTERS)))
    return model


def trainer_of(workspace: Workspace, folder, kind, model: nn.Module, max_steps: int, losses=("ce",), **more):
    """A trainer of large steps on eight rows, that saves after each."""
    compute_metrics = more.pop("compute_metrics", None)
    config = SoundwaveSFTConfig if kind is SoundwaveSFTTrainer else SoundwaveTrainingArguments
    options = {"save_strategy": "steps", "save_steps": 1, "learning_rate": 1.0, "max_grad_norm": 0.0, **more}
    arguments = config(
        str(folder),
        max_steps=max_steps,
        per_device_train_batch_size=4,
        train_sampling_strategy="sequential",
        lr_scheduler_type="constant",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        plot_loss=False,
        dataloader_pin_memory=False,
        **options,
    )
    rows = read_rows(workspace.data / "train.jsonl", {}).select(range(8))
    return kind(
        model=model,
        args=arguments,
        train_dataset=rows,
        eval_dataset=rows,
        data_collator=SoundwaveDataCollator(workspace.processor(), workspace.data, losses),
        processing_class=workspace.processor(),
        compute_metrics=compute_metrics,
    )


@torch.no_grad()
def logits_of(workspace: Workspace, model: nn.Module) -> torch.Tensor:
    rows = [read_rows(workspace.data / "train.jsonl", {})[index] for index in (0, 1)]
    return model.eval()(**SoundwaveDataCollator(workspace.processor(), workspace.data, ("ce",))(rows)).logits


FORMS = ["whole", "add_adapter", "get_peft_model", "modules_to_save"]


@pytest.mark.parametrize("kind", [SoundwaveTrainer, SoundwaveSFTTrainer])
@pytest.mark.parametrize("form", FORMS)
def test_what_our_trainers_save_of_a_whole_checkpoint_loads_and_goes_on(workspace, merged, tmp_path, form, kind):
    whole = trainer_of(workspace, tmp_path / "out", kind, form_of(merged, form), 3)
    before = logits_of(workspace, whole.model)
    whole.train()
    whole.save_model()
    expected = logits_of(workspace, whole.model)
    assert (expected - before).abs().max() > 0.1
    for folder in (tmp_path / "out", tmp_path / "out" / "checkpoint-3"):
        loaded = SoundwaveForConditionalGeneration.from_pretrained(folder)
        torch.testing.assert_close(logits_of(workspace, loaded), expected, rtol=1e-4, atol=1e-4)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "SoundwaveForConditionalGeneration.from_pretrained" in card
    assert ("holds the whole model" in card) == ("# Soundwave speech model" in card) == (form == "whole")
    resumed = trainer_of(workspace, tmp_path / "again", kind, form_of(merged, form), 3)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    for name, value in everything_in(whole.model).items():
        torch.testing.assert_close(everything_in(resumed.model)[name], value, rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize("form", FORMS)
def test_our_trainer_loads_the_best_of_a_whole_checkpoint(workspace, merged, tmp_path, form):
    evaluations = itertools.count()
    options = {
        "eval_strategy": "steps",
        "eval_steps": 1,
        "load_best_model_at_end": True,
        "metric_for_best_model": "number",
        "greater_is_better": False,  # so that the first checkpoint is the best, and not the model after the last step
        "compute_metrics": lambda prediction: {"number": next(evaluations)},
    }
    trainer = trainer_of(workspace, tmp_path, SoundwaveTrainer, form_of(merged, form), 2, **options)
    trainer.train()
    first, last = (entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry)
    assert trainer.state.best_global_step == 1 and abs(first - last) > 1e-4
    assert trainer.evaluate()["eval_loss"] == pytest.approx(first, rel=1e-6)


@pytest.mark.parametrize("modules", [None, list(ADAPTERS)], ids=["lora", "modules_to_save"])
def test_a_lora_that_trl_adds_is_saved_for_the_whole_checkpoint(workspace, merged, rows, tmp_path, modules):
    config = LoraConfig(**LORA, modules_to_save=modules)
    model = SoundwaveForConditionalGeneration.from_pretrained(merged)
    trainer = run(workspace, rows, tmp_path, SoundwaveSFTTrainer, model, ("ce",), peft_config=config)
    trainer.save_model()
    expected = logits_of(workspace, trainer.model)
    assert not (tmp_path / "config.json").exists()
    loaded = SoundwaveForConditionalGeneration.from_pretrained(tmp_path)
    torch.testing.assert_close(logits_of(workspace, loaded), expected, rtol=1e-4, atol=1e-4)
    # As earlier versions saved it.
    model.config.save_pretrained(tmp_path)
    loaded = SoundwaveForConditionalGeneration.from_pretrained(tmp_path)
    torch.testing.assert_close(logits_of(workspace, loaded), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("modules", [None, ["alignment_adapter"]], ids=["lora", "a part of the adapters"])
def test_a_card_says_how_to_load_what_names_no_model(workspace, rows, tmp_path, modules):
    model = get_peft_model(make_model(workspace, lora=False), LoraConfig(**LORA, modules_to_save=modules))
    processor = workspace.processor()
    trainer = run(workspace, rows, tmp_path, SoundwaveTrainer, model, ("ce",), processing_class=processor)
    trainer.save_model()
    (lines,) = re.findall(r"```python\n(.*?)```", (tmp_path / "README.md").read_text(), re.DOTALL)
    names = {"given": make_model(workspace, lora=False), "place": str(tmp_path)}
    exec(lines.replace("folder = ...", "folder = place").replace("model = ...", "model = given"), names)
    expected = logits_of(workspace, trainer.model)
    torch.testing.assert_close(logits_of(workspace, names["model"]), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("names", [["speech"], ["default", "two"]])
def test_an_adapter_that_loading_would_not_find_is_refused_before_the_first_step(workspace, rows, tmp_path, names):
    model = get_peft_model(make_model(workspace, lora=False), LoraConfig(**LORA), adapter_name=names[0])
    for name in names[1:]:
        model.add_adapter(name, LoraConfig(**LORA))
    model.set_adapter(names[-1])
    with pytest.raises(ValueError, match=re.escape(f"PEFT's adapters {names}, and of a saved folder only one called")):
        run(workspace, rows, tmp_path, SoundwaveTrainer, model, ("ce",))
    trainer = trainer_of(workspace, tmp_path / "saved", SoundwaveTrainer, model, 1)
    with pytest.raises(ValueError, match="only one called `default` is loaded"):
        trainer.save_model()


@pytest.mark.parametrize("form", ["add_adapter", "get_peft_model"])
def test_weights_that_peft_would_not_save_are_refused_before_the_first_step(workspace, merged, tmp_path, form):
    model = form_of(merged, form)
    for name, parameter in model.named_parameters():
        if "shrinking_adapter" in name or "blank_bias" in name:
            parameter.requires_grad_(True)
    trainer = trainer_of(workspace, tmp_path, SoundwaveTrainer, model, 1)
    with pytest.raises(ValueError, match=r"would not save them.*modules_to_save=\['ctc_head', 'shrinking_adapter'\]"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_adapters_are_not_trained_into_the_folder_of_a_whole_model(workspace, tmp_path):
    """Loading that folder would give the whole model, without what was trained."""
    trainer = stage_one(workspace, tmp_path / "out", "ctc_head", 1)
    trainer.model.save_pretrained(tmp_path / "out")
    for save in (trainer.train, trainer.save_model):
        with pytest.raises(FileExistsError, match="holds model.safetensors, and adapters would be saved beside it"):
            save()
    assert trainer.state.global_step == 0 and not (tmp_path / "out" / "trained.safetensors").exists()


def test_biases_that_peft_saves_may_train(workspace, merged, tmp_path):
    model = SoundwaveForConditionalGeneration.from_pretrained(merged)
    model = get_peft_model(model, LoraConfig(r=4, target_modules=r".*alignment_adapter.*\.fc1", bias="all"))
    assert any(name.endswith("fc1.base_layer.bias") and p.requires_grad for name, p in model.named_parameters())
    trainer_of(workspace, tmp_path, SoundwaveTrainer, model, 1, save_strategy="no").train()


# ---- what our trainer saves in Stage I ----


def stage_one(workspace: Workspace, folder, trains: str, max_steps: int, adapter: str | None = None):
    """A trainer of Stage I in which exactly the parameters train whose names hold `trains`."""
    torch.manual_seed(0)
    model = SoundwaveForCTC.from_backbones(workspace.encoder, workspace.llm, adapter=adapter)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trains in name)
    without_dropout(model)
    return trainer_of(workspace, folder, SoundwaveTrainer, model, max_steps, ("ctc",), learning_rate=1e-2)


@pytest.mark.parametrize("trains", ["ctc_head", "alignment_adapter", "audio_tower"])
def test_any_part_that_trains_in_stage_one_is_saved_beside_the_adapter_and_the_head(workspace, tmp_path, trains):
    whole = stage_one(workspace, tmp_path / "out", trains, 3)
    whole.train()
    whole.save_model()
    loaded = SoundwaveForCTC.from_pretrained(tmp_path / "out")
    resumed = stage_one(workspace, tmp_path / "again", trains, 3)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    for name, value in everything_in(whole.model).items():
        torch.testing.assert_close(everything_in(resumed.model)[name], value, rtol=0, atol=1e-6, msg=name)
        torch.testing.assert_close(everything_in(loaded)[name], value, rtol=0, atol=0, msg=name)


def test_an_encoder_that_stage_one_trained_stays_or_is_refused(workspace, tmp_path):
    first = stage_one(workspace, tmp_path / "first", "audio_tower", 2)
    first.train()
    first.save_model()
    second = stage_one(workspace, tmp_path / "second", "alignment_adapter", 2, adapter=str(tmp_path / "first"))
    second.train()
    second.save_model()
    loaded = SoundwaveForCTC.from_pretrained(tmp_path / "second")
    for name, value in first.model.audio_tower.named_parameters():
        torch.testing.assert_close(loaded.audio_tower.get_parameter(name), value, rtol=0, atol=0, msg=name)
    recipe = workspace.recipe("shrink", tmp_path / "shrink", start_from=str(tmp_path / "second"))
    with pytest.raises(ValueError, match=r"Stage I trained \d+ weights of the backbones, such as `audio_tower\."):
        train(recipe)
    # The way out that the error names.
    folder = str(tmp_path / "second")
    joined = SoundwaveForConditionalGeneration.from_backbones(adapter=folder)
    joined.save_pretrained(tmp_path / "joined")
    model = SoundwaveForConditionalGeneration.from_pretrained(tmp_path / "joined")
    trainer = trainer_of(workspace, tmp_path / "whole", SoundwaveTrainer, model, 1, learning_rate=1e-3)
    trainer.train()
    found = SoundwaveForConditionalGeneration.from_pretrained(tmp_path / "whole" / "checkpoint-1").model.audio_tower
    for name, value in first.model.audio_tower.named_parameters():
        torch.testing.assert_close(found.get_parameter(name), value, rtol=0, atol=0, msg=name)


# ---- data sets of the library as they are ----


def plain_dataset(workspace: Workspace) -> Dataset:
    """Clips inside, as on the hub: a column `audio` that would be decoded, their transcripts, and no other column."""
    rows = read_rows(workspace.data / "train.jsonl", {}).select(range(8))
    inside = [{"audio": {"path": None, "bytes": Path(row["audio"]).read_bytes()}, "text": row["text"]} for row in rows]
    return Dataset.from_list(inside).cast_column("audio", Audio())


def fast(folder, kind=SoundwaveTrainingArguments, **options):
    """Arguments of two steps of four clips."""
    extra = {"plot_loss": False} if kind is SoundwaveTrainingArguments else {"remove_unused_columns": False}
    options = {"max_steps": 2, "per_device_train_batch_size": 4, "logging_steps": 1, **options}
    return kind(str(folder), save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=True, **extra, **options)


@pytest.mark.parametrize("order", ["random", "group_by_length"])
def test_our_trainer_takes_a_plain_dataset(workspace, tmp_path, order):
    collator = SoundwaveDataCollator(workspace.processor())
    model = make_model(workspace, lora=True)
    arguments = fast(tmp_path, train_sampling_strategy=order)
    rows = plain_dataset(workspace)
    trainer = SoundwaveTrainer(model=model, args=arguments, train_dataset=rows, data_collator=collator)
    trainer.train()
    assert len(logged(trainer)) == 2 and logged(trainer, "ctc_loss")[0] > 0
    assert rows.features["audio"].decode  # the caller's own is left as it was


@pytest.mark.parametrize("streamed", [False, True], ids=["at hand", "streamed"])
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_the_format_of_a_data_set_changes_no_row(workspace, kind, streamed):
    rows = Dataset.from_list([{"audio": "a.wav", "text": ["Yes.", None], "seconds": 2.5, "row": 3, "answer": "No."}])
    shown = rows.to_iterable_dataset().with_format(kind) if streamed else rows.with_format(kind)
    (row,) = trainable(shown)
    assert row == rows[0] and type(row["seconds"]) is float and type(row["text"]) is list


def test_columns_that_a_format_hides_stay_hidden():
    rows = Dataset.from_list([{"audio": "a.wav", "text": "Yes.", "answer": "No."}])
    assert list(trainable(rows.with_format("torch", columns=["audio", "text"]))[0]) == ["audio", "text"]
    transformed = rows.with_transform(lambda batch: {"text": [text.upper() for text in batch["text"]]})
    assert trainable(transformed)[0] == {"text": "YES."}


@pytest.mark.parametrize("sft", [False, True], ids=["SoundwaveTrainer", "SoundwaveSFTTrainer"])
def test_our_trainers_take_a_plain_stream(workspace, tmp_path, sft):
    rows = plain_dataset(workspace)
    rows = rows.add_column("question", ["Who?"] * 8).add_column("answer", ["I."] * 8).to_iterable_dataset()
    more = {"processing_class": workspace.processor()} if sft else {}
    trainer = (SoundwaveSFTTrainer if sft else SoundwaveTrainer)(
        model=make_model(workspace, lora=True),
        args=fast(tmp_path, gradient_checkpointing=False, bf16=False),
        train_dataset=rows,
        data_collator=SoundwaveDataCollator(workspace.processor(), losses=("ce",)),
        **more,
    )
    trainer.train()
    assert len(logged(trainer)) == 2


NOISY = Augmentation(noise=1.0, speed=0.1)


def align_on(workspace: Workspace, folder, rows, resume=None, negatives=None, augmentation=NOISY, **options):
    """Stage I on clips with noise, in their order, with a checkpoint after each step. Returns the trainer."""
    collator = SoundwaveDataCollator(workspace.processor(), losses=("ctc",), augmentation=augmentation)
    if negatives is not None:
        collator.set_negatives(["Yes."], negatives)
    arguments = fast(folder, train_sampling_strategy="sequential", learning_rate=1e-2, max_grad_norm=0.0, **options)
    arguments.save_strategy, arguments.save_steps = "steps", 1
    model = make_model(workspace, lora=False, model_class=SoundwaveForCTC)
    trainer = SoundwaveTrainer(model=model, args=arguments, train_dataset=rows, data_collator=collator)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


class Passes(torch.utils.data.IterableDataset):
    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        return iter(self.rows)


@pytest.mark.parametrize("kind", ["datasets", "torch", "a worker"])
def test_each_pass_of_a_stream_is_an_epoch_of_the_same_rows_at_hand(workspace, tmp_path, kind):
    """Eight rows, four a step: the augmentation and the candidates of the CTC are those of three epochs."""
    rows = plain_dataset(workspace)
    stream = Passes(list(trainable(rows))) if kind == "torch" else rows.to_iterable_dataset()
    workers = {"dataloader_num_workers": 1} if kind == "a worker" else {}
    at_hand = align_on(workspace, tmp_path / "rows", rows, negatives=5, max_steps=6)
    streamed = align_on(workspace, tmp_path / "stream", stream, negatives=5, max_steps=6, **workers)
    assert logged(streamed) == pytest.approx(logged(at_hand), rel=1e-6)
    assert len(set(logged(at_hand))) == 6


def test_a_run_on_a_stream_goes_on_as_if_it_had_not_been_stopped(workspace, tmp_path):
    """Two batches of eight rows a pass, three a step: steps begin and end inside a pass."""
    stream = plain_dataset(workspace).to_iterable_dataset()
    options = {"max_steps": 4, "gradient_accumulation_steps": 3}
    whole = align_on(workspace, tmp_path / "whole", stream, **options)
    for step in (1, 2, 3):
        checkpoint = tmp_path / "whole" / f"checkpoint-{step}"
        resumed = align_on(workspace, tmp_path / f"from-{step}", stream, checkpoint, **options)
        assert logged(resumed) == pytest.approx(logged(whole), rel=1e-6)
        for name, value in everything_in(whole.model).items():
            torch.testing.assert_close(everything_in(resumed.model)[name], value, rtol=0, atol=1e-6, msg=name)


def test_a_step_on_a_stream_holds_its_own_batches_alone(workspace, tmp_path):
    rows, options = plain_dataset(workspace), {"max_steps": 3, "gradient_accumulation_steps": 3}
    at_hand = concatenate_datasets([rows] * 5)
    streamed, expected = (
        align_on(workspace, tmp_path, each, augmentation=Augmentation(), **options)
        for each in (rows.to_iterable_dataset(), at_hand)
    )
    for name in ("loss", "grad_norm"):
        assert logged(streamed, name) == pytest.approx(logged(expected, name), rel=1e-5)


def test_a_bad_value_of_a_plain_dataset_is_refused_before_the_first_step(workspace, tmp_path):
    rows = plain_dataset(workspace)
    rows = rows.remove_columns("text").add_column("text", ["a"] * 5 + [None, "b", "c"])
    with pytest.raises(ValueError, match=r"row 5 of the data set lacks \['text'\]"):
        SoundwaveTrainer(
            model=make_model(workspace, lora=True),
            args=fast(tmp_path),
            train_dataset=rows,
            data_collator=SoundwaveDataCollator(workspace.processor()),
        )


def test_a_model_that_is_made_for_each_training_is_watched(workspace, tmp_path):
    trainer = SoundwaveTrainer(
        model_init=lambda: make_model(workspace, lora=False, model_class=SoundwaveForCTC),
        args=fast(tmp_path),
        train_dataset=plain_dataset(workspace),
        data_collator=SoundwaveDataCollator(workspace.processor(), losses=("ctc",)),
    )
    for _ in range(2):
        trainer.train()
        first = trainer.state.log_history[0]
        assert 0 < first["blank_share"] <= 1 and first["positions_per_second"] > 0 and first["ctc_skipped"] == 0


def test_a_model_without_an_llm_leaves_the_llms_labels_of_a_batch_out(workspace, tmp_path):
    rows, evaluated = plain_dataset(workspace), []
    for losses in (("ctc",), ("ce", "ctc")):
        trainer = SoundwaveTrainer(
            model=make_model(workspace, lora=False, model_class=SoundwaveForCTC),
            args=fast(tmp_path),
            train_dataset=rows,
            eval_dataset=rows,
            data_collator=SoundwaveDataCollator(workspace.processor(), losses=losses),
            compute_metrics=lambda prediction: {"shape": str(prediction.label_ids.shape)},
        )
        trainer.train()
        metrics = trainer.evaluate()
        evaluated.append({name: metrics[name] for name in ("eval_loss", "eval_ctc_loss", "eval_shape")})
    assert evaluated[0] == evaluated[1]


def test_batches_of_text_alone_and_of_clips_share_a_step(workspace, tmp_path):
    text = {"question": "2 + 2?", "answer": "4"}
    spoken = {"audio": str(workspace.data / "clips/0.wav"), "text": "Yes."}

    def train_on(rows, parts):
        arguments = fast(
            tmp_path,
            max_steps=1,
            per_device_train_batch_size=len(rows) // parts,
            gradient_accumulation_steps=parts,
            train_sampling_strategy="sequential",
            optim="sgd",
        )
        collator = SoundwaveDataCollator(workspace.processor())
        trainer = SoundwaveTrainer(
            model=make_model(workspace, lora=True), args=arguments, train_dataset=rows, data_collator=collator
        )
        trainer.train()
        return trainer

    apart, together = train_on([text, text, spoken, spoken], 2), train_on([text, text, spoken, spoken], 1)
    for name in ("loss", "ctc_loss", "ce_loss", "grad_norm"):
        assert logged(apart, name) == pytest.approx(logged(together, name), rel=1e-4), name
    alone = train_on([text, text], 1)
    assert logged(alone)[0] > 0 and not logged(alone, "ctc_loss")


GUIDE = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", [Trainer, SFTTrainer])
def test_the_lines_of_the_guide_make_a_data_set_ready_for_the_librarys_trainers(workspace, tmp_path, kind):
    (lines,) = [block for block in re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL) if "cast_column" in block]
    names = {"dataset": plain_dataset(workspace), "processor": workspace.processor()}
    exec(lines, names)
    options = {"gradient_checkpointing": False, "bf16": False}
    if kind is SFTTrainer:
        options |= {"dataset_kwargs": {"skip_prepare_dataset": True}, "max_length": None}
    trainer = kind(
        model=make_model(workspace, lora=True),
        args=fast(tmp_path, TrainingArguments if kind is Trainer else SFTConfig, **options),
        train_dataset=names["dataset"],
        data_collator=names["collator"],
        processing_class=workspace.processor(),
    )
    trainer.train()
    assert len(logged(trainer)) == 2 and logged(trainer)[0] > 0


# ---- what is not carried out is refused ----


def arguments_of(folder, **more) -> SoundwaveTrainingArguments:
    options = {"max_steps": 1, "report_to": "none", "disable_tqdm": True, "plot_loss": False, "use_cpu": True, **more}
    return SoundwaveTrainingArguments(str(folder), save_strategy="no", per_device_train_batch_size=2, **options)


@pytest.mark.parametrize(
    ("arguments", "more", "message"),
    [
        ({"label_smoothing_factor": 0.1}, {}, "`label_smoothing_factor` is 0.1, and `SoundwaveTrainer`"),
        ({}, {"compute_loss_func": lambda *inputs, **options: 0}, "`compute_loss_func` is <function"),
    ],
)
def test_another_loss_is_refused(workspace, rows, tmp_path, arguments, more, message):
    with pytest.raises(ValueError, match=message):
        SoundwaveTrainer(
            model=make_model(workspace, lora=True),
            args=arguments_of(tmp_path, **arguments),
            train_dataset=rows,
            data_collator=SoundwaveDataCollator(workspace.processor(), workspace.data, ("ce",)),
            **more,
        )


@pytest.mark.parametrize("arguments_class", [SoundwaveTrainingArguments, TrainingArguments])
def test_workers_that_would_repeat_the_augmentation_of_an_epoch_are_refused(workspace, tmp_path, arguments_class):
    arguments = fast(tmp_path, arguments_class, dataloader_num_workers=1, dataloader_persistent_workers=True)
    collator = SoundwaveDataCollator(workspace.processor(), losses=("ce",))
    with pytest.raises(ValueError, match="workers that outlive an epoch would repeat its augmentation: leave it out"):
        SoundwaveTrainer(make_model(workspace, lora=True), arguments, collator, plain_dataset(workspace))


def test_a_mean_over_the_tokens_of_one_of_several_processes_is_refused(workspace, rows, tmp_path, monkeypatch):
    collator = SoundwaveDataCollator(workspace.processor(), workspace.data, ("ce",))
    model, arguments = make_model(workspace, lora=True), arguments_of(tmp_path, average_tokens_across_devices=False)
    SoundwaveTrainer(model=model, args=arguments, train_dataset=rows, data_collator=collator)  # one process
    monkeypatch.setattr(SoundwaveTrainingArguments, "world_size", 2)
    with pytest.raises(ValueError, match="`average_tokens_across_devices` is False with 2 processes"):
        SoundwaveTrainer(model=model, args=arguments, train_dataset=rows, data_collator=collator)


@pytest.mark.parametrize("kind", [SoundwaveTrainer, SoundwaveSFTTrainer])
def test_what_a_trainer_lacks_is_named(workspace, tmp_path, kind):
    rows, model = plain_dataset(workspace), make_model(workspace, lora=True)
    collator = SoundwaveDataCollator(workspace.processor(), losses=("ce",))
    with pytest.raises(ValueError, match=r"There is no `data_collator`, .*: give `SoundwaveDataCollator\(proc"):
        kind(model, fast(tmp_path), train_dataset=rows)
    with pytest.raises(ValueError, match="`model` is the name 'some/model': load it first, as `Soundwave"):
        kind("some/model", fast(tmp_path), data_collator=collator, train_dataset=rows)
    trainer = kind(model, fast(tmp_path), data_collator=collator, train_dataset=rows)
    assert trainer.processing_class is collator.processor
    for trainer.train_dataset, what in ((None, "missing"), ([], r"empty \(list\)")):
        with pytest.raises(ValueError, match=f"`train_dataset` is {what}: there is nothing to train on"):
            trainer.train()
    if kind is SoundwaveTrainer:  # which takes them by their place, too
        assert kind(model, fast(tmp_path), collator, rows).train_dataset[0] == trainable(rows)[0]


@pytest.mark.parametrize(
    ("model_class", "losses", "message"),
    [
        (SoundwaveForCTC, ("ce",), r"\(SoundwaveForCTC\) has no LLM, and learns by CTC: give \"ctc\" too"),
        (SoundwaveForConditionalGeneration, ("ctc",), 'has an LLM, which learns the next token: give "ce" too'),
    ],
)
def test_batches_without_what_the_models_loss_needs_are_refused(workspace, tmp_path, model_class, losses, message):
    collator = SoundwaveDataCollator(workspace.processor(), losses=losses)
    model, rows = make_model(workspace, False, model_class), plain_dataset(workspace)
    with pytest.raises(ValueError, match=message):
        SoundwaveTrainer(model, fast(tmp_path), collator, rows).train()


@pytest.mark.parametrize("kind", [SFTConfig, TrainingArguments, None])
def test_arguments_with_which_trl_would_prepare_the_rows_are_refused(workspace, tmp_path, kind):
    arguments = None if kind is None else fast(tmp_path, kind, bf16=False)
    name = "NoneType" if kind is None else kind.__name__
    with pytest.raises(ValueError, match=f"`args` is a {name} with which TRL would .*give `SoundwaveSFTConfig`"):
        SoundwaveSFTTrainer(
            model=make_model(workspace, lora=True),
            args=arguments,
            train_dataset=plain_dataset(workspace),
            data_collator=SoundwaveDataCollator(workspace.processor(), losses=("ce",)),
        )


def test_arguments_of_trl_that_leave_the_rows_alone_are_taken(workspace, tmp_path):
    options = {"dataset_kwargs": {"skip_prepare_dataset": True}, "max_length": None, "gradient_checkpointing": False}
    trainer = SoundwaveSFTTrainer(
        model=make_model(workspace, lora=True),
        args=fast(tmp_path, SFTConfig, bf16=False, **options),
        train_dataset=plain_dataset(workspace),
        data_collator=SoundwaveDataCollator(workspace.processor(), losses=("ce",)),
    )
    trainer.train()
    assert len(logged(trainer)) == 2


def test_trl_is_not_given_a_ctc_loss_that_it_would_drop(workspace, rows, tmp_path):
    with pytest.raises(ValueError, match=r"`losses` are \('ce', 'ctc'\), and TRL computes the next-token loss only"):
        run(workspace, rows, tmp_path, SoundwaveSFTTrainer, make_model(workspace, lora=True), ("ce", "ctc"))


# ---- data sets without a column of lengths ----


def train_align(workspace, folder, rows, **options):
    arguments = {"train_sampling_strategy": "group_by_length"} | options.pop("arguments", {})
    trainer = SoundwaveTrainer(
        model=make_model(workspace, lora=False, model_class=SoundwaveForCTC),
        args=arguments_of(folder, **arguments),
        train_dataset=rows,
        data_collator=SoundwaveDataCollator(workspace.processor(), workspace.data, ("ctc",)),
        **options,
    )
    trainer.train()
    return trainer


class GivenRows(torch.utils.data.Dataset):
    def __init__(self, rows: list[dict]):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        return self.rows[index]


@pytest.mark.parametrize("kind", [list, GivenRows])
def test_lengths_of_any_rows_come_from_their_clips(workspace, rows, tmp_path, kind):
    bare = [{key: row[key] for key in ("row", "audio", "text", "source")} for row in rows]
    trainer = train_align(workspace, tmp_path, kind(bare), mixture=Mixture())
    assert trainer.mixture_sampler.seconds == pytest.approx(rows["seconds"])


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, "train_sampling_strategy"),
        ({"arguments": {"train_sampling_strategy": "random"}, "mixture": Mixture()}, "mixture"),
        ({"arguments": {"train_sampling_strategy": "random"}, "max_batch_seconds": 9.0}, "max_batch_seconds"),
    ],
)
def test_a_stream_has_no_lengths_to_group_by(workspace, rows, tmp_path, options, name):
    with pytest.raises(ValueError, match=f"`{name}` needs the lengths of all rows, and `train_dataset` is a stream"):
        train_align(workspace, tmp_path, rows.to_iterable_dataset(), **options)


def test_two_active_adapters_are_refused_before_the_first_step(workspace, merged, rows, tmp_path):
    model = SoundwaveForConditionalGeneration.from_pretrained(merged)
    model.add_adapter(LoraConfig(**LORA), adapter_name="one")
    model.add_adapter(LoraConfig(**LORA), adapter_name="two")
    model.set_adapter(["one", "two"])
    with pytest.raises(ValueError, match=r"has the active adapters \['one', 'two'\]; train one alone"):
        run(workspace, rows, tmp_path, SoundwaveTrainer, model, ("ce",))
