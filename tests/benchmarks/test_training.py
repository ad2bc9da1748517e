"""The training benchmark compares equal work, each of its variants trains, and its table has them all."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

from soundwave_hf import SoundwaveForCTC
from soundwave_hf.training.stages import ADAPTERS, STAGES, freeze_all_but, lora_targets
from tests.tiny_models import AUDIO, WINDOW, make_clips, spread_weights, tiny_config, tiny_model
from tests.training.workspace import make_workspace, train


ROOT = Path(__file__).parents[2]
TARGETS = torch.tensor([[4, 9, 9]])
PROMPT = torch.tensor([[5, 6, AUDIO, 7, 8, 3, 2]])
LABELS = torch.tensor([[-100, -100, -100, -100, 8, 3, 2]])


@pytest.fixture(scope="module")
def training():
    """The benchmark as a module; it imports its neighbour."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        import training

        yield training


@pytest.fixture
def clip() -> dict[str, torch.Tensor]:
    """One clip that fills the encoder's window, as `PaddedCollator` would make it."""
    features, mask = make_clips([WINDOW])
    return {"input_features": features, "input_features_mask": mask, "ctc_labels": TARGETS}


def test_the_published_way_takes_the_published_models_own_ctc_loss(training, clip):
    model = spread_weights(SoundwaveForCTC(tiny_config(compat="published"))).eval()
    assert model.ctc_head.weight is not None
    torch.testing.assert_close(training.published_loss(model, clip), model(**clip).loss)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"label_embeddings": True, "keep_blanks": False, "blank_margin": 1.0},
        {"label_embeddings": "expected", "keep_blanks": True},
    ],
)
def test_the_published_way_takes_the_published_models_own_losses(training, clip, fields):
    model = tiny_model(compat="published", **fields)
    prompt = {"input_ids": PROMPT, "labels": LABELS}
    output = model(**clip, **prompt)
    assert 1 < output.num_positions < output.num_frames
    loss = training.published_loss(model, {**clip, **prompt})
    torch.testing.assert_close(loss, output.loss)
    assert loss > output.ce_loss > 0
    wanted = torch.autograd.grad(output.loss, list(model.model.alignment_adapter.parameters()))
    found = torch.autograd.grad(loss, list(model.model.alignment_adapter.parameters()))
    for ours, published in zip(wanted, found, strict=True):
        torch.testing.assert_close(published, ours, rtol=1e-4, atol=1e-5)


def test_an_untied_head_scores_as_before_and_trains(training, clip):
    model = tiny_model()
    lora = LoraConfig(target_modules=lora_targets(model.model.language_model), modules_to_save=list(ADAPTERS))
    model = get_peft_model(model, lora).eval()
    freeze_all_but(model, STAGES["shrink"])
    prompt = {"input_ids": PROMPT, "labels": LABELS}
    before = model(**clip, **prompt).loss
    training.untie(model)
    loss = training.published_loss(model, {**clip, **prompt})
    torch.testing.assert_close(loss, before)
    loss.backward()
    end = "ctc_head.modules_to_save.default.weight"
    (weight,) = [weight for name, weight in model.named_parameters() if name.endswith(end)]
    assert weight.requires_grad and (weight.grad.abs().sum(dim=1) > 0).all()


def test_the_plain_ctc_takes_the_models_own_loss(training, clip):
    model = spread_weights(SoundwaveForCTC(tiny_config(blank_margin=1.0))).eval()
    features, mask = make_clips([WINDOW, WINDOW // 2])
    batch = {"input_features": features, "input_features_mask": mask, "ctc_labels": torch.tensor([[4, 9], [7, -100]])}
    wanted = model(**batch)
    model.ctc_head.forward = training.types.MethodType(training.plain_ctc, model.ctc_head)
    found = model(**batch)
    torch.testing.assert_close(found.loss, wanted.loss)
    true = torch.arange(wanted.ctc_best.shape[1]) < wanted.num_frames[:, None]
    assert torch.equal(found.ctc_best[true], wanted.ctc_best[true])


@pytest.fixture(scope="module")
def options(tmp_path_factory) -> dict[str, str]:
    """Those of the command for tiny backbones and an adapter trained for a step."""
    folder = tmp_path_factory.mktemp("benchmark")
    workspace = make_workspace(folder)
    model = {"keep_blanks": False, "blank_margin": 0.8, "label_embeddings": "expected"}  # the recipe's
    adapter = train(workspace.recipe("shrink", folder / "adapter", model=model, max_steps=1)).folder
    backbones = {"encoder": workspace.encoder, "llm": workspace.llm, "adapter": str(adapter)}
    return {**backbones, "data": str(workspace.data / "train.jsonl"), "ctc_negatives": "20"}


@pytest.mark.parametrize("stage, name", [("align", "stage1.jsonl"), ("shrink", "stage2.jsonl")])
def test_the_clips_are_of_the_recipes_first_list(training, tmp_path, stage, name):
    problem = training.Problem(clips=8, batch=4, epochs=1, cache=str(tmp_path), adapter="adapter")
    recipe, _ = training.read(problem, stage, training.VARIANTS["ours"], str(tmp_path))
    assert training.manifest_of(recipe).name == name and training.manifest_of(recipe).is_absolute()


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["align", "shrink"])
def test_each_variant_trains_and_those_that_compute_the_same_have_the_same_loss(training, options, tmp_path, stage):
    problem = training.Problem(clips=8, batch=4, epochs=1, cache=str(tmp_path), **options)
    runs = {name: training.measure(problem, stage, name) for name in training.VARIANTS}
    for name, run in runs.items():
        assert run["clips_per_second"] > 0 and run["cpu_seconds_per_clip"] > 0, name
    loss = {name: run["loss"] for name, run in runs.items()}
    # In bfloat16.
    assert loss["cached"] == pytest.approx(loss["ours"], rel=0.01)
    assert loss["plain_ctc"] == pytest.approx(loss["whole_vocabulary"], rel=0.01)
    assert loss["ours"] < loss["whole_vocabulary"]  # fewer tokens compete
    assert loss["padded"] > loss["ours"]  # frames of silence


@pytest.mark.slow
def test_its_tables_have_the_variants_of_each_stage_and_what_the_cache_pays(options, tmp_path):
    sizes = {"clips": 8, "batch": 4, "rounds": 1, "output": tmp_path / "runs.json"}
    words = [word for name, value in {**options, **sizes}.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, str(ROOT / "benchmarks" / "training.py"), *words, "--variants", "ours", "cached"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    printed = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    assert printed.startswith("8 clips, 2 steps of 4, medians of 1 rounds, 1 threads\n")
    (runs,) = json.loads(sizes["output"].read_text())["rounds"]
    assert list(runs) == ["write_cache", "align ours", "align cached", "shrink ours", "shrink cached"]
    for stage in ("align", "shrink"):
        assert f"| {stage} | clips a second |" in printed
        speed = runs[f"{stage} cached"]["clips_per_second"] / runs[f"{stage} ours"]["clips_per_second"]
        memory = runs[f"{stage} cached"]["mebibytes"] / runs[f"{stage} ours"]["mebibytes"]
        assert f"| {speed:.3f} | {memory:.3f} |\n" in printed
    ratio = runs["align ours"]["clips_per_second"] / runs["shrink ours"]["clips_per_second"]
    assert f"A step of stage II over one of stage I on the same batch: {ratio:.2f}." in printed
    assert f"Writing the encoder cache takes {runs['write_cache']['seconds_per_clip']:.4f} s a clip" in printed


def test_clips_that_make_no_whole_steps_are_refused(training, capsys):
    for words in (["--clips", "20", "--batch", "16"], ["--clips", "32", "--batch", "16", "--steps", "3"]):
        with pytest.raises(SystemExit):
            training.read_arguments(words)
        assert "are no whole epochs of" in capsys.readouterr().err
    assert training.read_arguments(["--clips", "32", "--batch", "16", "--steps", "4"]).steps == 4
