import json
import math
import pickle
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.nn import functional

from soundwave_hf.data.tiny import SECONDS
from soundwave_hf.modeling.modeling_soundwave import SoundwaveAudioModel
from soundwave_hf.training import trainer as trainer_file
from soundwave_hf.training.run import last_checkpoint
from soundwave_hf.training.trainer import shared_prefix
from tests.training.workspace import (
    EVERY_AUGMENTATION,
    SMALL_LORA,
    Trained,
    Workspace,
    everything_in,
    first_rows,
    train,
    without_dropout,
    write_manifest,
)


AUDIO_LOGS = {"positions_per_second", "blank_share"}
PROCESSOR_FILES = {
    "audio_soundwave.py",
    "containers_soundwave.py",
    "chat_soundwave.py",
    "languages_soundwave.py",
    "text_soundwave.py",
    "llm_tokenizer_soundwave.py",
    "processing_soundwave.py",
    "spelling_soundwave.py",
    "sources_soundwave.py",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
}
RECORD = {"recipe.yaml", "data_card.md", "versions.json", "run.json", "README.md"}
CHECKPOINT_FILES = {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"}


def start_of(stage: str, chain: dict[str, Trained]) -> dict:
    """The `start_from` of a stage: the folder of the one before it."""
    return {} if stage == "align" else {"start_from": str(chain["align" if stage == "shrink" else "shrink"].folder)}


# ---- what is logged ----


def untrain(trained: Trained):
    """Give the model the weights it had before the first step, in eval mode. Returns the model."""
    with torch.no_grad():
        for name, value in everything_in(trained.model).items():
            value.copy_(trained.before[name])
    return trained.model.eval()


@torch.no_grad()
def ctc_scores(model, batch: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """Log-probabilities `(frames, vocabulary)` of each clip, its own frames alone."""
    audio = next(module for module in model.modules() if isinstance(module, SoundwaveAudioModel))
    states, mask = audio.encode(batch["input_features"], batch["input_features_mask"])
    aligned, mask = audio.alignment_adapter(states, mask)
    scores = audio.ctc_head.logits(aligned, audio.get_input_embeddings().weight).log_softmax(dim=-1)
    return [row[: int(kept.sum())] for row, kept in zip(scores, mask, strict=True)]


def ctc_loss_by_hand(scores: list[torch.Tensor], ctc_labels: torch.Tensor, blank: int) -> float:
    """Mean over clips of the library's CTC loss per target."""
    losses = []
    for log_probs, row in zip(scores, ctc_labels, strict=True):
        targets = row[row != -100]
        loss = functional.ctc_loss(
            log_probs, targets, torch.tensor(len(log_probs)), torch.tensor(len(targets)), blank, reduction="sum"
        )
        losses.append(loss.item() / len(targets))
    return sum(losses) / len(losses)


@torch.no_grad()
def ce_loss_by_hand(model, batch: dict[str, torch.Tensor]) -> float:
    """Mean over the labels of a batch of the next-token loss."""
    inputs = {name: value for name, value in batch.items() if name not in ("labels", "ctc_labels")}
    logits, labels = model(**inputs).logits[:, :-1], batch["labels"][:, 1:]
    return functional.cross_entropy(logits[labels != -100], labels[labels != -100]).item()


@pytest.fixture(scope="module", params=["align", "shrink", "instruct"])
def one_step(request, workspace, chain, tmp_path_factory):
    """One step on the first four clips: stage, what was logged, the model as it was before, the batch."""
    folder = tmp_path_factory.mktemp("one_step")
    name = "instruct.jsonl" if request.param == "instruct" else "train.jsonl"
    manifest = first_rows(workspace, 4, folder / "four.jsonl", name)
    recipe = workspace.recipe(
        request.param, folder / "out", data=manifest, max_steps=1, **start_of(request.param, chain)
    )

    def prepare(model):
        without_dropout(model)
        for name, parameter in model.named_parameters():
            if name.endswith("blank_bias"):
                parameter.data -= 0.5 if request.param == "align" else 2.0  # so that blanks and tokens take turns

    trained = train(recipe, change=prepare)
    rows = [json.loads(line) | {"row": index} for index, line in enumerate(Path(manifest).read_text().splitlines())]
    return request.param, trained.logs[0], untrain(trained), trained.trainer.data_collator(rows)


def test_losses_are_logged_apart(one_step):
    stage, logged, model, batch = one_step
    expected = {}
    if stage != "instruct":
        expected["ctc_loss"] = ctc_loss_by_hand(ctc_scores(model, batch), batch["ctc_labels"], blank=259)
    if stage == "shrink":
        expected["ce_loss"] = ce_loss_by_hand(model, batch)
    total = {
        "align": expected.get("ctc_loss"),
        "shrink": expected.get("ce_loss", 0) + 0.3 * expected.get("ctc_loss", 0),
        "instruct": ce_loss_by_hand(model, batch) if stage == "instruct" else None,
    }[stage]
    assert {name: logged[name] for name in logged if name.endswith("_loss")} == pytest.approx(expected, rel=1e-5)
    assert logged["loss"] == pytest.approx(total, rel=1e-5)


def test_positions_and_blanks_are_counted_over_true_frames(one_step):
    _, logged, model, batch = one_step
    best = [scores.argmax(dim=-1).tolist() for scores in ctc_scores(model, batch)]
    # 1, 1.4, 0.8, 1.2 s and 0.3 s of silence: 130, 170, 110 and 150 mel frames, a quarter as many aligned ones.
    assert [len(labels) for labels in best] == [33, 43, 28, 38]
    positions = sum(1 + sum(a != b for a, b in zip(labels, labels[1:], strict=False)) for labels in best)
    assert logged["positions_per_second"] == pytest.approx(positions / (142 * 0.04))
    assert logged["blank_share"] == pytest.approx(sum(labels.count(259) for labels in best) / 142)
    assert 4 < positions < 132 and 0.05 < logged["blank_share"] < 0.99  # or other counts would do as well


def test_a_stage_logs_what_it_takes_and_nothing_else(one_step):
    stage, logged, _, _ = one_step
    ctc = {"ctc_loss", "ctc_skipped", "targets_per_frame"}
    extra = {"align": ctc, "shrink": ctc | {"ce_loss"}, "instruct": set()}
    every = AUDIO_LOGS | {"ctc_loss", "ctc_skipped", "ce_loss", "targets_per_frame"}
    assert every & logged.keys() == AUDIO_LOGS | extra[stage]


def test_logs_of_two_steps_are_means_over_both(workspace, tmp_path):
    single = train(workspace.recipe("align", tmp_path / "single", max_steps=2)).logs
    (both,) = train(workspace.recipe("align", tmp_path / "both", max_steps=2, logging_steps=2)).logs
    assert both["ctc_loss"] == pytest.approx((single[0]["ctc_loss"] + single[1]["ctc_loss"]) / 2)
    assert both["ctc_loss"] == pytest.approx(both["loss"])


# ---- batches ----


def test_rows_share_the_text_before_their_clips(one_step):
    stage, _, _, batch = one_step
    if stage == "align":
        assert "input_ids" not in batch
        return
    prefix = shared_prefix(batch, audio_token_id=259)
    assert (batch["input_ids"][:, prefix] == 259).all() and prefix > 40
    padded = batch | {"attention_mask": batch["attention_mask"].clone()}
    padded["attention_mask"][1, 0] = 0
    assert shared_prefix(padded, audio_token_id=259) == 0
    other = batch | {"input_ids": batch["input_ids"].clone()}
    other["input_ids"][2, 7] += 1
    assert shared_prefix(other, audio_token_id=259) == 7


@pytest.mark.parametrize("stage", ["align", "shrink", "instruct"])
def test_accumulation_gives_the_loss_and_the_step_of_one_batch(workspace, chain, tmp_path, stage):
    name = "instruct.jsonl" if stage == "instruct" else "train.jsonl"
    changes = {
        "data": first_rows(workspace, 8, tmp_path / "eight.jsonl", name),
        "max_steps": 1,
        "optim": "sgd",
        "learning_rate": 1e-2,
        "max_grad_norm": 0,
        **start_of(stage, chain),
    }
    whole, parts = (
        train(
            workspace.recipe(
                stage,
                tmp_path / f"batches_of_{batch}",
                per_device_train_batch_size=batch,
                gradient_accumulation_steps=8 // batch,
                **changes,
            ),
            change=without_dropout,
        )
        for batch in (8, 2)
    )
    losses = [name for name in whole.logs[0] if name.endswith("loss")]
    assert [parts.logs[0][name] for name in losses] == pytest.approx([whole.logs[0][n] for n in losses], rel=1e-5)
    assert parts.moved() == whole.moved()
    step, difference = 0.0, 0.0
    parts_now = everything_in(parts.model)
    for name, value in everything_in(whole.model).items():
        difference = max(difference, (parts_now[name] - value).abs().max().item())
        step = max(step, (value - whole.before[name]).abs().max().item())
    assert difference < 1e-5 < 1e-3 < step


def test_losses_are_right_where_an_epoch_ends_with_fewer_batches(workspace, tmp_path):
    recipe = workspace.recipe(
        "align",
        tmp_path / "out",
        data=first_rows(workspace, 10, tmp_path / "ten.jsonl"),
        max_steps=2,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
    )
    logs = train(recipe).logs  # steps of 8 clips and of 2
    assert [entry["ctc_loss"] for entry in logs] == pytest.approx([entry["loss"] for entry in logs], rel=1e-5)


# ---- targets that do not fit ----


@pytest.mark.parametrize("stage", ["align", "shrink"])
@pytest.mark.parametrize("num_long", [1, 4])
def test_targets_longer_than_their_frames_are_counted_and_skipped(workspace, chain, tmp_path, stage, num_long):
    manifest = Path(first_rows(workspace, 4, tmp_path / "four.jsonl"))
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    for row in rows[:num_long]:
        row["text"] = "far too long for forty three frames of speech"  # 46 bytes with the first space; 28 to 43 frames
    write_manifest(manifest, rows)
    recipe = workspace.recipe(stage, tmp_path / "out", data=str(manifest), max_steps=1, **start_of(stage, chain))
    trained = train(recipe, change=without_dropout)
    (entry,) = trained.logs
    assert entry["ctc_skipped"] == num_long
    assert all(math.isfinite(entry[name]) for name in ("loss", "ctc_loss", "grad_norm"))
    assert all(value.isfinite().all() for value in everything_in(trained.model).values())
    batch = trained.trainer.data_collator([row | {"row": index} for index, row in enumerate(rows)])
    fitting = ctc_scores(untrain(trained), batch)[num_long:]
    # The mean stays one over all four clips, so that a skipped one does not weigh the others up.
    expected = (
        ctc_loss_by_hand(fitting, batch["ctc_labels"][num_long:], blank=259) * len(fitting) / 4 if fitting else 0
    )
    assert entry["ctc_loss"] == pytest.approx(expected, rel=1e-5)


def test_a_transcript_without_words_is_no_target(workspace, tmp_path):
    manifest = Path(first_rows(workspace, 4, tmp_path / "four.jsonl"))
    rows = [json.loads(line) | {"text": "..."} for line in manifest.read_text().splitlines()]
    write_manifest(manifest, rows)
    (entry,) = train(workspace.recipe("align", tmp_path / "out", data=str(manifest), max_steps=1)).logs
    assert math.isfinite(entry["loss"])
    assert entry["ctc_skipped"] == 0


# ---- a run that was stopped ----


def long_recipe(workspace: Workspace, chain, stage: str, folder: Path) -> dict:
    """Two epochs of three steps of two batches, with everything that draws random numbers, saved at each step."""
    return workspace.recipe(
        stage,
        folder,
        max_steps=6,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        save_steps=1,
        augment=EVERY_AUGMENTATION,
        mixture={"temperature": 1, "step": 5},
        train_sampling_strategy="group_by_length",
        **start_of(stage, chain),
        **({"lora": SMALL_LORA} if stage == "shrink" else {}),
        **({"ctc_negatives": 40} if stage != "instruct" else {}),
    )


@pytest.fixture(scope="module")
def uninterrupted(workspace, chain, tmp_path_factory):
    """Whole runs by stage, made at first use."""
    runs = {}

    def run_of(stage: str) -> Trained:
        if stage not in runs:
            runs[stage] = train(long_recipe(workspace, chain, stage, tmp_path_factory.mktemp("whole") / stage))
        return runs[stage]

    return run_of


def stop_after(recipe: dict, step: int):
    with pytest.raises(KeyboardInterrupt):
        train(recipe, stop_after=step)
    assert last_checkpoint(recipe["output_dir"]).endswith(f"checkpoint-{step}")


def assert_same_run(found: Trained, expected: Trained):
    assert found.losses() == pytest.approx(expected.losses(), abs=1e-6)
    for name, value in everything_in(expected.model).items():
        torch.testing.assert_close(everything_in(found.model)[name], value, rtol=0, atol=1e-6)


# Inside the first epoch, at its end, inside the second.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "step"), [("align", 2), ("align", 3), ("align", 4), ("shrink", 2), ("shrink", 4), ("instruct", 4)]
)
def test_a_stopped_run_goes_on_as_if_it_had_not_been(workspace, chain, uninterrupted, tmp_path, stage, step):
    recipe = long_recipe(workspace, chain, stage, tmp_path / "out")
    stop_after(recipe, step)
    resumed = train(recipe)
    assert resumed.trainer.state.global_step == 6
    assert resumed.trainer.mixture_sampler.epoch == resumed.trainer.data_collator.epoch == 1
    assert resumed.moved()  # the rest was trained, not read
    assert_same_run(resumed, uninterrupted(stage))


@pytest.mark.slow
def test_a_stopped_run_with_batches_by_seconds_goes_on_as_if_it_had_not_been(workspace, chain, tmp_path):
    whole = long_recipe(workspace, chain, "align", tmp_path / "whole") | {"max_batch_seconds": 2.0}
    expected = train(whole)
    recipe = whole | {"output_dir": str(tmp_path / "out")}
    stop_after(recipe, 4)
    assert_same_run(train(recipe), expected)
    loader = expected.trainer.get_train_dataloader()
    # Without the 0.3 s of silence that each clip ends with; none is over 2 s with its padding.
    padded = [
        len(mask) * (mask.sum(dim=1).max().item() / 100 - 0.3) for mask in (b["input_features_mask"] for b in loader)
    ]
    assert max(padded) < 2.0 * 1.2  # a changed speed makes a clip longer


def test_the_shares_of_a_mixture_are_logged(workspace, tmp_path):
    recipe = workspace.recipe("align", tmp_path / "out", max_steps=9, mixture={"temperature": 1, "step": 5})
    logs = train(recipe).logs
    epochs = [[entry["share/sound"] for entry in logs[start : start + 3]] for start in (0, 3, 6)]
    # 9 and 3 clips of twelve: 3 of sounds, then 12 x 0.454 = 5.45 and 12 x 0.475 = 5.70.
    assert [sum(epoch) / 3 * 12 for epoch in epochs] == pytest.approx([3, 5, 6])
    assert all(entry["share/asr"] + entry["share/sound"] == pytest.approx(1) for entry in logs)


def test_a_checkpoint_broken_off_in_writing_is_passed_over(workspace, chain, uninterrupted, tmp_path):
    recipe = long_recipe(workspace, chain, "align", tmp_path / "out")
    stop_after(recipe, 4)
    broken = tmp_path / "out" / "checkpoint-4"
    (broken / "trainer_state.json").unlink()
    (broken / "optimizer.pt").write_bytes(b"half")
    assert last_checkpoint(tmp_path / "out").endswith("checkpoint-3")
    assert_same_run(train(recipe), uninterrupted("align"))


def test_the_last_checkpoint_is_the_last_by_number(tmp_path):
    assert last_checkpoint(tmp_path / "absent") is None
    for step in (9, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
    (tmp_path / "checkpoint-11").mkdir()
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")


def test_a_worker_makes_the_batches_of_the_process_itself(workspace, chain, uninterrupted, tmp_path):
    recipe = long_recipe(workspace, chain, "align", tmp_path / "out") | {"dataloader_num_workers": 1}
    assert train(recipe).losses() == pytest.approx(uninterrupted("align").losses(), abs=1e-6)


def test_the_collator_goes_through_a_pickle_as_to_a_spawned_worker(uninterrupted):
    trainer = uninterrupted("shrink").trainer
    collator, row = trainer.data_collator, trainer.train_dataset[0]
    made, remade = collator([row]), pickle.loads(pickle.dumps(collator))([row])
    assert made.keys() == remade.keys()
    assert all(torch.equal(made[name], remade[name]) for name in made)


def test_the_seed_of_a_recipe_decides_the_run(workspace, tmp_path):
    def losses(seed: int, state: int) -> list[float]:
        torch.manual_seed(state)
        recipe = workspace.recipe("align", tmp_path / f"{seed}_{state}", max_steps=2, seed=seed)
        return train(recipe | {"augment": EVERY_AUGMENTATION}).losses()

    first = losses(seed=1, state=0)
    assert losses(seed=1, state=7) == first
    assert losses(seed=2, state=0) != first


@pytest.mark.parametrize("order", [{"train_sampling_strategy": "group_by_length"}, {"streaming": True}])
def test_the_seed_of_the_data_decides_their_order_alone(workspace, tmp_path, order):
    def losses(data_seed: int | None) -> list[float]:
        recipe = workspace.recipe("align", tmp_path / f"{data_seed}", max_steps=2, data_seed=data_seed, **order)
        return train(recipe, change=without_dropout).losses()

    first = losses(None)
    assert losses(42) == first  # the value of `seed` by default
    assert losses(2) != first


def test_each_epoch_is_augmented_anew(workspace, tmp_path):
    recipe = workspace.recipe("align", tmp_path / "out", max_steps=3, per_device_train_batch_size=12)
    recipe |= {"augment": {"noise": 1.0}, "learning_rate": 0.0}
    losses = train(recipe, change=without_dropout).losses()  # three epochs of one step, of the same weights
    assert len({round(loss, 4) for loss in losses}) == 3
    plain = train(recipe | {"augment": {}, "output_dir": str(tmp_path / "plain")}, change=without_dropout).losses()
    assert plain == pytest.approx([plain[0]] * 3, rel=1e-5)


# ---- what is written ----


def test_stage_one_writes_what_trained(chain):
    folder = chain["align"].folder
    written = {"trained.safetensors", "config.json"} | PROCESSOR_FILES | RECORD
    assert {path.name for path in folder.iterdir()} == written | {"trainer_state.json", "checkpoint-3", "loss.png"}
    checkpoint = folder / "checkpoint-3"
    assert {path.name for path in checkpoint.iterdir()} == written | CHECKPOINT_FILES
    trained = {name: p for name, p in chain["align"].model.named_parameters() if p.requires_grad}
    for path in (folder, checkpoint):
        weights = load_file(path / "trained.safetensors")
        assert weights.keys() == trained.keys()
        assert all(torch.equal(weights[name], trained[name]) for name in weights)
    state = torch.load(checkpoint / "optimizer.pt", weights_only=True)["state"]
    assert len(state) == len(trained) == 22


@pytest.mark.parametrize(("stage", "num_trained"), [("shrink", 48), ("instruct", 16)])
def test_the_later_stages_write_adapters_and_lora(chain, stage, num_trained):
    folder = chain[stage].folder
    written = {"adapter_model.safetensors", "adapter_config.json", "config.json", "training_args.bin"}
    written |= PROCESSOR_FILES | RECORD
    assert {path.name for path in folder.iterdir()} == written | {"trainer_state.json", "checkpoint-3", "loss.png"}
    assert {path.name for path in (folder / "checkpoint-3").iterdir()} == written | CHECKPOINT_FILES
    kept = {
        name.replace(".modules_to_save.default.", ".").replace(".default.", "."): value
        for name, value in chain[stage].model.named_parameters()
        if ".modules_to_save." in name or ".lora_" in name
    }
    for path in (folder, folder / "checkpoint-3"):
        weights = load_file(path / "adapter_model.safetensors")
        # And the digest of the config's fields that they were trained with.
        assert weights.keys() == kept.keys() | {"base_model.model.model.alignment_adapter.trained_fields"}
        assert all(torch.equal(weights[name], kept[name]) for name in kept)
    state = torch.load(folder / "checkpoint-3" / "optimizer.pt", weights_only=True)["state"]
    assert len(state) == num_trained


# ---- other settings ----


@pytest.mark.parametrize("stage", ["align", "shrink", "instruct"])
def test_bf16_on_a_cpu_stays_finite_and_trains_in_float32(workspace, chain, tmp_path, stage):
    trained = train(workspace.recipe(stage, tmp_path / "out", bf16=True, max_steps=2, **start_of(stage, chain)))
    assert len(trained.losses()) == 2
    assert all(math.isfinite(loss) for loss in trained.losses())
    assert trained.moved()
    dtypes = {True: set(), False: set()}
    for name, parameter in trained.model.named_parameters():
        if ".original_module." not in name:
            dtypes[parameter.requires_grad].add(parameter.dtype)
        assert parameter.isfinite().all()
    assert dtypes[True] == {torch.float32}
    # The adapters that stage III leaves alone stay as stage II made them.
    assert dtypes[False] == {torch.bfloat16} | ({torch.float32} if stage == "instruct" else set())


@pytest.mark.parametrize("stage", ["shrink", "instruct"])
def test_activation_checkpointing_changes_no_loss(workspace, chain, tmp_path, stage):
    recipe = workspace.recipe(stage, tmp_path / "plain", **start_of(stage, chain))
    checkpointed = recipe | {"output_dir": str(tmp_path / "checkpointed"), "activation_checkpointing": True}
    runs = [train(each, change=without_dropout) for each in (recipe, checkpointed)]
    assert runs[1].losses() == pytest.approx(runs[0].losses(), rel=1e-5)


def test_clips_of_like_length_share_a_batch(workspace, tmp_path):
    recipe = workspace.recipe("align", tmp_path / "out", train_sampling_strategy="group_by_length")
    loader = train(recipe).trainer.get_train_dataloader()
    lengths = [batch["input_features_mask"].sum(dim=1).tolist() for batch in loader]
    by_length = sorted(round((seconds + 0.3) * 100) for seconds in SECONDS)
    assert sorted(sorted(batch) for batch in lengths) == [by_length[:4], by_length[4:8], by_length[8:]]


def test_a_last_save_that_fails_leaves_what_was_written_before(workspace, tmp_path, monkeypatch):
    trained = train(workspace.recipe("align", tmp_path / "out", max_steps=1))
    before = {path.name: path.read_bytes() for path in trained.folder.iterdir() if path.is_file()}

    def break_off(tensors, path, **kwargs):
        Path(path).write_bytes(b"half")
        raise SafetensorError("No space left on device")

    monkeypatch.setattr(trainer_file, "save_file", break_off)
    with pytest.raises(OSError, match="could not be written .*No space left"):
        trained.trainer.save_model()
    assert {path.name: path.read_bytes() for path in trained.folder.iterdir() if path.is_file()} == before
    assert not list(trained.folder.glob(".*"))
