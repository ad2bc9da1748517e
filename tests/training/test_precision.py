"""Steps in bfloat16 and float16, of clips and targets that are hard to train on."""

import json
from pathlib import Path

import pytest
import soundfile
import torch

from soundwave_hf.data.tiny import RATE, make_speech
from soundwave_hf.processing.processing_soundwave import MIN_MEL_FRAMES
from soundwave_hf.training import run, watch
from soundwave_hf.training.sft import SoundwaveSFTTrainer
from soundwave_hf.training.trainer import SoundwaveTrainer
from tests.training.workspace import (
    Workspace,
    everything_in,
    first_rows,
    train,
    without_dropout,
    write_manifest,
)


STAGES = ("align", "shrink", "instruct")
# 46 bytes with the first space; the clips have 28 to 43 frames.
LONG_TEXT = "far too long for forty three frames of speech"


def half_frozen(model):
    """Frozen parts in float16, as autocast on a GPU reads them."""
    without_dropout(model)
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.half()


@pytest.fixture(params=["bf16", "fp16"])
def precision(request, monkeypatch) -> dict:
    """What `train` needs for it. accelerate has float16 for GPUs alone, and a CPU only torch's own autocast."""
    if request.param == "bf16":
        return {"recipe": {"bf16": True}, "change": without_dropout}
    for trainer_class in (SoundwaveTrainer, SoundwaveSFTTrainer):
        monkeypatch.setattr(
            trainer_class, "compute_loss_context_manager", lambda self: torch.autocast("cpu", torch.float16)
        )
    return {"recipe": {}, "change": half_frozen}


def hard_manifest(workspace: Workspace, folder: Path) -> str:
    """Four batches of four: clips as they are, one whose target is too long, the shortest clip, all four too long."""
    rows = [
        json.loads(line) for line in Path(first_rows(workspace, 4, folder / "four.jsonl")).read_text().splitlines()
    ]
    shortest = MIN_MEL_FRAMES * 160 / RATE
    soundfile.write(folder / "short.wav", make_speech(shortest, seed=1), RATE, subtype="FLOAT")
    short = {**rows[3], "audio": str(folder / "short.wav"), "text": "A", "seconds": shortest}
    too_long = [row | {"text": LONG_TEXT} for row in rows]
    batches = [rows, [*rows[:3], too_long[3]], [*rows[:3], short], too_long]
    return str(write_manifest(folder / "hard.jsonl", [row for batch in batches for row in batch]))


@pytest.mark.parametrize("stage", STAGES)
def test_hard_clips_give_finite_losses_and_gradients(workspace, chain, tmp_path, precision, stage):
    start = {"shrink": "align", "instruct": "shrink"}.get(stage)
    recipe = workspace.recipe(
        stage,
        tmp_path / "out",
        data=hard_manifest(workspace, tmp_path),
        max_steps=4,
        learning_rate=1e-3,
        train_sampling_strategy="sequential",
        save_strategy="no",
        plot_loss=False,
        **precision["recipe"],
        **({"start_from": str(chain[start].folder)} if start else {}),
    )
    trained = train(recipe, change=precision["change"])
    assert len(trained.logs) == 4
    numbers = {f"{entry['step']} {name}": value for entry in trained.logs for name, value in entry.items()}
    assert {name: value for name, value in numbers.items() if not -1e6 < value < 1e6} == {}
    assert all(value.isfinite().all() for value in everything_in(trained.model).values())
    assert trained.moved()
    frozen = {p.dtype for n, p in trained.model.named_parameters() if "language_model" in n and not p.requires_grad}
    half = torch.bfloat16 if precision["recipe"] else torch.float16
    assert frozen == (set() if stage == "align" else {half})
    if stage == "instruct":
        return
    assert [entry["ctc_skipped"] for entry in trained.logs] == [0, 1, 0, 4]
    assert [entry["ctc_loss"] > 0 for entry in trained.logs] == [True, True, True, False]
    last = trained.logs[3]
    assert last["ctc_loss"] == 0
    assert (last["loss"], last["grad_norm"]) == (0, 0) if stage == "align" else last["loss"] == last["ce_loss"] > 0


@pytest.mark.parametrize("stage", STAGES)
def test_losses_scaled_for_float16_leave_finite_gradients(workspace, chain, tmp_path, stage):
    """With the scaler that float16 needs; on a CPU there is one too."""
    start = {"shrink": "align", "instruct": "shrink"}.get(stage)
    start = {"start_from": str(chain[start].folder)} if start else {}
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(workspace.recipe(stage, tmp_path / "out", **start)))
    recipe, _ = run.read_recipe(path)
    model = run.build_model(recipe, torch.float16).train()
    without_dropout(model)
    collator = run.SoundwaveDataCollator(workspace.processor(), workspace.data, run.STAGES[stage].losses)
    rows = [
        json.loads(line) | {"row": 0} for line in Path(hard_manifest(workspace, tmp_path)).read_text().splitlines()
    ]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert {parameter.dtype for parameter in trained} == {torch.float32}
    optimizer, scaler = torch.optim.SGD(trained, lr=1e-3), torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for start in range(0, len(rows), 4):
        with torch.autocast("cpu", torch.float16):
            loss = model(**collator(rows[start : start + 4])).loss
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        norm = torch.nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
        assert loss.isfinite() and norm.isfinite()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert scaler.get_scale() == 2.0**10  # which an infinite gradient would have halved


@pytest.mark.parametrize("stage", ["align", "shrink"])
def test_a_head_that_says_blank_alone_is_warned_of_while_it_trains(workspace, tmp_path, monkeypatch, stage):
    said = []
    monkeypatch.setattr(watch.logger, "warning", said.append)

    def collapse(model):
        for name, parameter in model.named_parameters():
            if name.endswith("blank_bias"):
                parameter.data += 100.0

    recipe = workspace.recipe(stage, tmp_path / "out", max_steps=5, learning_rate=0.0, plot_loss=False)
    trained = train(recipe, change=collapse)
    assert [entry["blank_share"] for entry in trained.logs] == [1.0] * 5
    (warning,) = said
    assert "Step 3: 100.0% of the frames are blank in the last 3 logs" in warning
    said.clear()
    assert train(recipe | {"output_dir": str(tmp_path / "well")}).logs[-1]["blank_share"] < 0.995
    assert not said
