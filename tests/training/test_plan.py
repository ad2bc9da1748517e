"""A plan's numbers against those of real steps and real models."""

import re
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from transformers import Trainer, WhisperFeatureExtractor

from soundwave_hf import cli
from soundwave_hf.data import tiny
from soundwave_hf.data.tiny import MEL_BINS, byte_tokenizer, write_tiny_data
from soundwave_hf.training.costs import Batch, Numerics, batch_parts
from soundwave_hf.training.plan import GIB, Gpus, Plan, knobs, llm_sizes, lora_sizes, part_of, report
from soundwave_hf.training.run import read_recipe
from soundwave_hf.training.stages import STAGES
from soundwave_hf.training.trainer import SoundwaveTrainer, shared_prefix
from tests.tiny_models import save_tiny_llm, save_tiny_whisper
from tests.training.test_recipes import RECIPES
from tests.training.workspace import Workspace, train


# Operations of attention on a CPU, which PyTorch counts on GPUs alone.
ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda *shapes, **_: sdpa_flop_count(*shapes[:3]),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda *shapes, **_: sdpa_backward_flop_count(
        *shapes[:4]
    ),
}
# Sizes of encoder and LLM, clips of a batch, and attention.
SIZES = {
    "narrow": ({}, {}, 4, "eager"),
    "deep": (
        {"d_model": 32, "encoder_ffn_dim": 64},
        {"hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4}
        | {"num_key_value_heads": 2},
        2,
        "eager",
    ),
    "wide": (
        {"d_model": 64, "encoder_ffn_dim": 128},
        {"hidden_size": 64, "intermediate_size": 192, "num_attention_heads": 4, "num_key_value_heads": 2}
        | {"head_dim": 16},
        8,
        "sdpa",
    ),
}


def make_sized(folder, audio: dict, text: dict) -> Workspace:
    """Backbones of these sizes, and clips of nearly one length, as those of a batch are."""
    encoder = save_tiny_whisper(folder / "whisper", num_mel_bins=MEL_BINS, max_source_positions=1500, **audio)
    WhisperFeatureExtractor(feature_size=MEL_BINS).save_pretrained(encoder)
    tokenizer = byte_tokenizer()
    llm = save_tiny_llm(
        folder / "llm", vocab_size=len(tokenizer), tie_word_embeddings=True, max_position_embeddings=1024, **text
    )
    tokenizer.save_pretrained(llm)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny, "SECONDS", [1.0 + index / 50 for index in range(12)])
        write_tiny_data(folder / "data")
    return Workspace(encoder, llm, folder / "data")


@dataclass
class Step:
    """One real step: its batch, bytes kept when its forward has ended, operations of both passes, and its model."""

    batch: Batch
    kept: int
    flops: int
    model: torch.nn.Module


class Kept:
    """Holds one tensor for the backward pass, so that it can be seen whether anything still waits for it."""

    def __init__(self, tensor: torch.Tensor):
        self.tensor = tensor


def bytes_kept(compute: Callable, others: list[torch.Tensor]) -> tuple[torch.Tensor, int]:
    """What `compute` returns, and the bytes that its graph holds beside parameters and inputs, each storage once."""
    kept: list[weakref.ref] = []

    def pack(tensor):
        one = Kept(tensor)
        kept.append(weakref.ref(one))
        return one

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda one: one.tensor):
        loss = compute()
    storages = {one.tensor.untyped_storage() for ref in kept if (one := ref()) is not None}
    sizes = {storage.data_ptr(): storage.nbytes() for storage in storages}
    for tensor in others:
        sizes.pop(tensor.untyped_storage().data_ptr(), None)
    return loss, sum(sizes.values())


def measure(trainer, model, inputs: dict, run: Callable) -> tuple[torch.Tensor, Step]:
    """One step of a trainer, with what it takes."""
    found, compute = {}, trainer.compute_loss

    def watched(*arguments, **options):
        tensors = [value for value in inputs.values() if isinstance(value, torch.Tensor)]
        others = [*model.parameters(), *model.buffers(), *tensors]
        loss, found["kept"] = bytes_kept(lambda: compute(*arguments, **options), others)
        return loss

    def look(module, given, output):
        found["positions"] = int(getattr(output, "audio_output", output).num_positions.max())

    handle = trainer.audio_model.register_forward_hook(look)
    trainer.compute_loss = watched
    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as flops:
        loss = run()
    handle.remove()
    del trainer.compute_loss
    batch = batch_seen(trainer, inputs, found["positions"])
    return loss, Step(batch, found["kept"], flops.get_total_flops(), model)


def batch_seen(trainer, inputs: dict, positions: int) -> Batch:
    clips, _, mel_frames = inputs["input_features"].shape
    targets = inputs["ctc_labels"].shape[1] if "ctc_labels" in inputs else 0
    if "input_ids" not in inputs:
        return Batch(clips, mel_frames, targets, positions)
    labels = inputs["labels"]
    tokens = labels.shape[1]
    if not isinstance(trainer, SoundwaveTrainer):  # TRL's head scores all tokens on a CPU
        return Batch(clips, mel_frames, targets, positions, tokens, scored=clips * (tokens - 1))
    first = int(labels.ne(-100).any(dim=0).int().argmax()) - 1
    prefix = 0
    if trainer.audio_model.shares_prefix():
        prefix = min(first, shared_prefix(inputs, trainer.audio_model.config.audio_token_id))
    return Batch(clips, mel_frames, targets, positions, tokens, prefix, clips * (tokens - first))


def train_measured(recipe: dict) -> Step:
    steps, run = [], Trainer.training_step

    def step(trainer, model, inputs, *rest):
        loss, one = measure(trainer, model, inputs, lambda: run(trainer, model, inputs, *rest))
        steps.append(one)
        return loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "training_step", step)
        train(recipe)
    return steps[0]


def recipes_of(workspace: Workspace, folder, clips: int, attention: str, **changes) -> dict[str, dict]:
    """A step of each stage, each from the folder of the one before."""
    own = {
        "align": {"model": {"adapter_dropout": 0.0}},
        "shrink": {"lora": {"r": 4, "lora_alpha": 8}, "start_from": str(folder / "align")},
        "instruct": {"start_from": str(folder / "shrink")},
    }
    shared = {"max_steps": 1, "per_device_train_batch_size": clips, "attn_implementation": attention, **changes}
    return {stage: workspace.recipe(stage, folder / stage, **own[stage], **shared) for stage in STAGES}


@pytest.fixture(scope="module", params=SIZES)
def steps(request, tmp_path_factory) -> dict[str, Step]:
    """A real step of each stage."""
    audio, text, clips, attention = SIZES[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    recipes = recipes_of(make_sized(folder, audio, text), folder, clips, attention)
    return {stage: train_measured(recipe) for stage, recipe in recipes.items()}


def expected(stage: str, step: Step, encoder: dict | None = None, **numerics) -> tuple[float, float]:
    """Bytes and operations of a step by the formulas."""
    config = getattr(step.model, "get_base_model", lambda: step.model)().config
    eager = {"encoder", "adapters", "llm"} if config._attn_implementation == "eager" else set()
    llm = llm_sizes(step.model) if STAGES[stage].has_llm else {}
    parts = list(
        batch_parts(
            STAGES[stage],
            config,
            step.batch,
            Numerics(eager=frozenset(eager), **numerics),
            weight_bytes=4,
            candidates=config.text_config.vocab_size,
            llm=llm,
            encoder=encoder,
        )
    )
    return sum(part.kept for part in parts), sum(part.forward + part.backward for part in parts)


@pytest.mark.parametrize("stage", STAGES)
def test_bytes_kept_for_the_backward_pass_are_those_of_a_real_step(steps, stage):
    kept, _ = expected(stage, steps[stage])
    assert kept == pytest.approx(steps[stage].kept, rel=0.1)


@pytest.mark.parametrize("stage", STAGES)
def test_operations_are_those_of_a_real_step(steps, stage):
    step = steps[stage]
    _, flops = expected(stage, step)
    assert flops == pytest.approx(step.flops, rel=0.12)


@pytest.mark.parametrize("targets", [None, ["q_proj", "fc2"]])
@pytest.mark.parametrize("name", ["deep", "wide"])
def test_a_lora_of_the_encoder_costs_a_backward_pass_through_the_encoder(tmp_path, name, targets):
    audio, text, clips, attention = SIZES[name]
    recipe = recipes_of(make_sized(tmp_path, audio, text), tmp_path, clips, attention)["align"]
    lora = {"r": 4, **({"target_modules": targets} if targets else {})}
    step = train_measured(recipe | {"encoder_lora": lora})
    kept, flops = expected("align", step, encoder=lora_sizes(step.model.audio_tower))
    assert kept == pytest.approx(step.kept, rel=0.1)
    assert flops == pytest.approx(step.flops, rel=0.12)
    frozen, _ = expected("align", step)
    assert kept > 2 * frozen


@pytest.fixture
def shrink_step(tmp_path) -> Callable[..., Step]:
    """A real step of stage `shrink` alone, of these sizes and other values in its recipe."""

    def run(name: str, **changes) -> Step:
        audio, text, clips, attention = SIZES[name]
        recipe = recipes_of(make_sized(tmp_path, audio, text), tmp_path, clips, attention)["shrink"]
        return train_measured(recipe | {"start_from": None, "model": {"adapter_dropout": 0.0}, **changes})

    return run


def test_checkpointing_costs_another_forward(shrink_step):
    step = shrink_step("deep", activation_checkpointing=True)
    assert step.batch.prefix == 0  # which needs the cache that a checkpointed layer does not fill
    _, flops = expected("shrink", step, checkpointing=True)
    assert flops == pytest.approx(step.flops, rel=0.12)


def test_bytes_kept_under_mixed_precision_are_those_of_a_real_step(shrink_step):
    step = shrink_step("wide", bf16=True)
    kept, _ = expected("shrink", step, size=2)
    assert kept == pytest.approx(step.kept, rel=0.1)


# ---- parameters ----


def counts(model) -> dict[bool, dict[str, int]]:
    """Numbers in a real model's parameters, trained and not, by part."""
    found = {True: {}, False: {}}
    for name, parameter in model.named_parameters():
        part = found[parameter.requires_grad]
        part[part_of(name)] = part.get(part_of(name), 0) + parameter.numel()
    return found


@pytest.mark.parametrize("compat", ["paper", "published"])
def test_parameters_are_those_of_the_joined_model(workspace, tmp_path, compat):
    recipes = {stage: workspace.recipe(stage, tmp_path / stage, max_steps=1) for stage in STAGES}
    recipes["align"]["model"] = {"compat": compat}
    recipes["shrink"]["start_from"] = str(tmp_path / "align")
    recipes["instruct"]["start_from"] = str(tmp_path / "shrink")
    for stage in STAGES:
        real = counts(train(recipes[stage]).model)
        weights = Plan(*read_recipe(tmp_path / f"{stage}.yaml"), Gpus.read("1x80GB")).weights
        assert (weights.trained, weights.frozen) == (real[True], real[False])


@pytest.fixture(scope="module")
def llama_plans(tmp_path_factory) -> dict[str, Plan]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOUNDWAVE_HOME", str(tmp_path_factory.mktemp("home")))
        return {
            name: Plan(*read_recipe(RECIPES / "whisper-large-v3_llama-3.1-8b" / f"{name}.yaml"), Gpus.read("8x80GB"))
            for name in ("1_align", "2_shrink", "3_instruct")
        }


def test_parameters_of_llama_are_those_of_the_paper(llama_plans):
    # Table 1, in millions: 144, 67 and 55; LoRA is 54.5 by its sizes.
    trained = {name: plan.weights.trained for name, plan in llama_plans.items()}
    width, heard = 4096, 2 * 1280
    linear = width * width + width
    alignment = heard * width + width + 4 * linear + 2 * (2 * width * width) + 3 * width + 3 * 2 * width
    lora = 32 * 64 * 2 * ((4096 + 4096) + (4096 + 1024))
    assert trained["1_align"] == {"alignment adapter": alignment, "ctc head": width + 1}
    assert trained["2_shrink"] == trained["1_align"] | {"shrinking adapter": 4 * linear + 2 * width, "LoRA": lora}
    assert trained["3_instruct"] == {"LoRA": lora}
    millions = [number / 1e6 for number in (alignment, 4 * linear, lora)]
    assert millions == [pytest.approx(144, abs=1), pytest.approx(67, abs=0.5), pytest.approx(54.5, abs=0.05)]


def test_stage_one_holds_of_the_llm_its_embeddings(llama_plans):
    assert llama_plans["1_align"].weights.frozen["LLM"] == 128_257 * 4096
    # The 8,030,261,248 of the published Llama and a row for the audio token in both of its tables.
    assert llama_plans["2_shrink"].weights.frozen["LLM"] == 8_030_261_248 + 2 * 4096


# ---- what is told ----


def test_sharding_shares_out_what_is_not_the_encoder(llama_plans):
    alone, shared = (llama_plans["2_shrink"].memory(sharded) for sharded in (False, True))
    for row in ("frozen weights: LLM", "trained weights", "gradients", "optimizer (adamw_torch)"):
        assert shared[row] == pytest.approx(alone[row] / 8)
    assert shared["frozen weights: encoder"] == alone["frozen weights: encoder"]
    assert shared["gathered parameters"] > 0 == alone["gathered parameters"]


def test_what_does_not_fit_is_told_with_a_knob_that_helps(llama_plans):
    plan = llama_plans["2_shrink"]
    small = Plan(plan.recipe, plan.arguments, replace(plan.gpus, memory=48 * GIB))
    assert plan.fits(sharded=False) and not small.fits(sharded=False)
    helps = [knob for knob, other in knobs(small) if other.fits(sharded=False)]
    assert helps[0] == "activation_checkpointing: true"
    assert "DDP: does not fit, " in (text := report("x", small))
    assert "of 48 GiB. It does with `activation_checkpointing: true`" in text


def test_a_quantized_llm_takes_its_bits(llama_plans):
    plan = llama_plans["2_shrink"]
    recipe = replace(plan.recipe, quantization={"quant_method": "bitsandbytes", "load_in_4bit": True})
    quantized = Plan(recipe, plan.arguments, plan.gpus)
    # 32 layers of 218,103,808 numbers in matrices; the rest, 1.05 milliards, in bfloat16.
    row, matrices = "frozen weights: LLM", 32 * 218_103_808
    assert quantized.memory(False)[row] == plan.memory(False)[row] - matrices * (2 - 0.5625)
    with pytest.raises(ValueError, match="'quant_method': 'torchao'}, and a plan knows the sizes of load_in_4bit and"):
        Plan(replace(recipe, quantization={"quant_method": "torchao"}), plan.arguments, plan.gpus)


def test_the_heaviest_batch_within_seconds_may_be_of_short_clips(llama_plans):
    plan = llama_plans["2_shrink"]
    limited = Plan(replace(plan.recipe, max_batch_seconds=120.0), plan.arguments, plan.gpus)
    assert limited.batch(30.0, False).clips == 4 and limited.batch(7.5, False).clips == 16
    assert limited.heaviest_batch(False) == limited.batch(7.5, False)
    assert plan.heaviest_batch(False) == plan.batch(30.0, False)


def test_half_the_batch_and_twice_the_steps_are_the_same_work(llama_plans):
    plan = llama_plans["1_align"]
    (change, half), *_ = knobs(plan)
    assert change == "per_device_train_batch_size: 16, gradient_accumulation_steps: 16"
    assert half.clips_of_step == plan.clips_of_step == 8 * 32 * 8
    assert half.step_seconds == pytest.approx(plan.step_seconds)
    row = "saved activations: alignment adapter"
    assert half.memory(False)[row] == pytest.approx(plan.memory(False)[row] / 2)


def test_time_is_operations_over_what_is_reached(llama_plans):
    plan = llama_plans["2_shrink"]
    fast = Plan(plan.recipe, plan.arguments, Gpus.read("8x80GB", tflops=624.0, utilisation=0.5))
    assert plan.step_seconds == pytest.approx(sum(plan.step_flops.values()) / (312e12 * 0.4))
    assert plan.step_seconds == pytest.approx(2.5 * fast.step_seconds)


def test_a_manifest_tells_the_lengths_and_without_steps_their_number(workspace, tmp_path):
    recipe = workspace.recipe("align", tmp_path / "out", max_steps=-1, num_train_epochs=5, repeat={"s0": 2})
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    plan = Plan(*read_recipe(tmp_path / "recipe.yaml"), Gpus.read("2x16GB"))
    seconds = [s for index, s in enumerate(tiny.SECONDS) for _ in range(2 - index % 2)]
    assert (plan.speech.mean, plan.speech.longest) == (pytest.approx(sum(seconds) / 18), 1.5)
    assert plan.steps == 12  # 5 epochs of 18 clips, 2 x 4 at once: 11.25


def test_the_command_prints_a_plan_of_each_recipe(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("SOUNDWAVE_HOME", str(tmp_path))
    assert cli.main(["plan", str(RECIPES / "tiny.yaml"), "--gpus", "1x8GB", "--max_steps", "7"]) == 0
    printed = capsys.readouterr().out
    assert [stage for stage in STAGES if f"tiny.yaml: stage {stage} on 1 GPU of 8 GB" in printed] == list(STAGES)
    assert printed.count("alone: fits") == 3
    assert printed.count("\n7 steps, ") == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--gpus", "8*80"],
            r"`--gpus` is '8\*80'; expected the number of GPUs and the memory of each, such as `8x80GB`",
        ),
        (["--gpus", "0x80GB"], "`--gpus` is '0x80GB'"),
        (["--gpus", "1x8GB", "--utilisation", "40"], "`--utilisation` 40; expected more than 0, and a share"),
        (["--gpus", "1x8GB", "--optim", "lion_32bit"], "`optim` is `lion_32bit`, and a plan knows the states of"),
        (["--gpus", "1x8GB", "--llm", "no/llm"], "There is no config of `no/llm`: it is no folder"),
        (["--gpus", "1x8GB", "--max_step", "3"], "recipe 1 of .*tiny.yaml` has the key `max_step`"),
    ],
)
def test_what_a_plan_cannot_tell_is_one_line(monkeypatch, tmp_path, capsys, words, message):
    monkeypatch.setenv("SOUNDWAVE_HOME", str(tmp_path))
    assert cli.main(["plan", str(RECIPES / "tiny.yaml"), *words]) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert re.search(message, error)
