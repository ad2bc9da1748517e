"""python benchmarks/training.py [--clips 48 --batch 16 --rounds 3 --stages align shrink --output FILE]

Clips a second and peak memory of stages I and II as the recipes train them, against the published code's way and
against ours without each of our measures, one at a time (`--variants`):

    published         clip by clip, padded to 30 s, all 750 frames scored against a free head of the whole vocabulary,
                      plain CTC; in stage II the whole sequence through the LLM and its head. As many clips are
                      accumulated as our batches have. That code is for inference: training is read into it
    ours              the package's own trainer and recipe
    cached            ours, the encoder's states read from disk
    padded            ours, clips padded to 30 s, all frames true
    plain_ctc         ours, a score for every frame and token, `log_softmax`, `torch.nn.functional.ctc_loss`
    whole_vocabulary  ours, every token in the CTC's normaliser (no `ctc_negatives`)
    random_batches    ours, clips of any length together
    by_seconds        ours, batches of at most 30 s, padding counted: the audio that the published way has at once. Two
                      are accumulated
    one_by_one        ours, clip by clip, as many accumulated
    prefix_each_row   ours, the text that all rows begin with (system prompt, question) read once for each row

All train on the same clips of the recipes' data (of the batches of like length that a pool of 50 makes, some at even
places in order of length), without augmentation, on the CPU, in the recipes' precision; stage I
from fresh adapters, stage II from the shipped ones, whose head the published way gets as a matrix of its own. Decoding
and log-mel are in the time, in the training process (no loader workers). Each run is a process of its own, and the
variants take turns, so that other work on the machine meets all alike; ratios are medians over rounds.

Memory is the growth of the process's resident memory, at its highest (Linux: `VmHWM`, set back just before), over what
was there when model, rows and trainer were made, one clip had gone forth and back, and what was free had gone back to
the system: gradients, states of the optimizer and all that a step needs, without weights and libraries. Ours needs
more where the longest clips of a batch are longer, unless `max_batch_seconds` bounds it.

At the end: a stage II step over a stage I step on the same batches, and the epochs after which the time that the
encoder cache saves has paid for writing it.
"""

import argparse
import ctypes
import gc
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
import types
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from ctc import MEBIBYTE, Memory
from torch import nn
from transformers import TrainerCallback, set_seed
from transformers.utils.logging import disable_progress_bar

from soundwave_hf.data.rows import at_folder
from soundwave_hf.evaluation.shipped import ADAPTER, REPOSITORY
from soundwave_hf.modeling.ctc_soundwave import CTCResult
from soundwave_hf.modeling.modeling_soundwave import LIKELY_TOKENS
from soundwave_hf.paths import soundwave_home
from soundwave_hf.processing.processing_soundwave import SoundwaveProcessor
from soundwave_hf.training.collator import SoundwaveDataCollator
from soundwave_hf.training.encoder_cache import EncoderCache
from soundwave_hf.training.recipe import RecipeArguments
from soundwave_hf.training.run import build_model, read_recipe, read_rows
from soundwave_hf.training.stages import STAGES
from soundwave_hf.training.trainer import SoundwaveTrainer


SMALL = REPOSITORY / "examples" / "soundwave-small" / "recipes"
RECIPES = {"align": "1_align.yaml", "shrink": "2_shrink.yaml"}
RECIPE_KEYS = ("encoder", "llm", "data", "ctc_negatives")  # which the command may replace


# ---- the published way ----


def published_loss(model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """The loss of one clip as the published code computes its parts, with a score for every frame and token.

    Args:
        model: `SoundwaveForCTC`, or with the LLM `SoundwaveForConditionalGeneration` or a `PeftModel` of it; its CTC
            head has a matrix of its own.
        inputs: what `PaddedCollator` makes of one row.
    """
    audio_model, config = find_audio_model(model), model.config
    states = audio_model.audio_tower(inputs["input_features"]).last_hidden_state
    aligned, mask = audio_model.alignment_adapter(states, None)  # [1, frames, width]
    head = audio_model.ctc_head
    scores = aligned @ head.weight.T.to(aligned.dtype)  # [1, frames, vocabulary]
    if head.blank_bias is not None:
        scores[..., head.blank_id] += head.blank_bias
    targets = inputs["ctc_labels"]
    log_probs = scores.log_softmax(dim=-1, dtype=torch.float32).transpose(0, 1)
    lengths = [torch.tensor([log_probs.shape[0]]), torch.tensor([targets.shape[1]])]
    ctc_loss = nn.functional.ctc_loss(log_probs, targets, *lengths, head.blank_id, zero_infinity=True)
    if "input_ids" not in inputs:
        return ctc_loss
    keep = audio_model.keep_mask(published_labels(scores, head), mask)
    positions = audio_model.shrinking_adapter(aligned, mask, keep)  # [positions, width]
    embed = audio_model.get_input_embeddings()
    if config.label_embeddings:
        positions = positions + added_embeddings(scores[keep], head, embed, config.label_embeddings)
    place = int((inputs["input_ids"][0] == config.audio_token_id).nonzero())
    text, labels = embed(inputs["input_ids"][0]), inputs["labels"][0]
    merged = torch.cat([text[:place], positions.to(text), text[place + 1 :]])
    labels = torch.cat([labels[:place], labels.new_full((len(positions),), -100), labels[place + 1 :]])
    hidden = audio_model.language_model(inputs_embeds=merged[None]).last_hidden_state
    logits = model.get_output_embeddings()(hidden)[0].float()  # [positions and tokens, vocabulary]
    return nn.functional.cross_entropy(logits[:-1], labels[1:]) + config.ctc_loss_weight * ctc_loss


def published_labels(scores: torch.Tensor, head: nn.Module) -> torch.Tensor:
    """The likeliest label of each frame, the blank where it leads by its margin."""
    return with_margin(scores, head.blank_id, head.config.blank_margin).argmax(dim=-1)


def added_embeddings(scores: torch.Tensor, head: nn.Module, embed: nn.Module, kind: bool | str) -> torch.Tensor:
    """What `label_embeddings` adds to positions `(positions, vocabulary)`: `(positions, width)`."""
    labels = published_labels(scores, head)
    if kind != "expected":
        return embed(labels)
    tokens = scores.detach().index_fill(1, torch.tensor(head.blank_id, device=scores.device), -torch.inf)
    best = tokens.topk(min(LIKELY_TOKENS, tokens.shape[1] - 1), dim=1)
    expected = (best.values.softmax(dim=1)[..., None] * embed(best.indices)).sum(dim=1)
    return torch.where((labels == head.blank_id)[:, None], embed(labels), expected)


def with_margin(scores: torch.Tensor, blank_id: int, margin: float) -> torch.Tensor:
    """Scores from which the blank's margin is taken off, or those that came where it is 0."""
    if not margin:
        return scores.detach()
    scores = scores.detach().clone()
    scores[..., blank_id] -= margin
    return scores


def find_audio_model(model: nn.Module) -> nn.Module:
    """The part that encodes and aligns: `SoundwaveModel`, or `SoundwaveForCTC` itself."""
    return next(module for module in model.modules() if hasattr(module, "keep_mask"))


def own_head(module: nn.Module) -> nn.Module:
    """The CTC head that trains, where PEFT wraps it."""
    return module.modules_to_save["default"] if hasattr(module, "modules_to_save") else module


def untie(model: nn.Module):
    """Give a tied CTC head a matrix of its own that scores as before, and trains; the blank keeps its bias."""
    audio_model = find_audio_model(model)
    head = own_head(audio_model.ctc_head)
    rows = audio_model.token_table().detach().float().clone()
    rows[head.blank_id] = head.blank_weight.detach()
    head.weight, head.blank_weight = nn.Parameter(rows), None


@dataclass
class PaddedCollator(SoundwaveDataCollator):
    """Log-mel of Whisper's whole window, all of it true."""

    def features(self, clips: list, draws: list) -> dict[str, torch.Tensor]:
        extractor = self.processor.feature_extractor
        samples = self.processor.load_clips([at_folder(clip, self.folder) for clip in clips])
        features = extractor(samples, sampling_rate=extractor.sampling_rate, return_tensors="pt").input_features
        return {
            "input_features": features,
            "input_features_mask": torch.ones(len(clips), features.shape[2], dtype=torch.long),
        }


# ---- ours without a measure ----


def plain_ctc(head, aligned, num_frames, token_embeddings, ctc_labels=None, candidates=None) -> CTCResult:
    """What `SoundwaveCTCHead.forward` returns, from a score for every frame and token."""
    scores = head.logits(aligned, token_embeddings)
    best = with_margin(scores, head.blank_id, head.config.blank_margin).argmax(dim=-1)
    log_probs = scores.log_softmax(dim=-1, dtype=torch.float32)
    blank_log_probs = log_probs[..., head.blank_id].detach()
    if ctc_labels is None:
        return CTCResult(best, blank_log_probs=blank_log_probs)
    target_lengths = ctc_labels.ne(-100).sum(dim=1)
    losses = nn.functional.ctc_loss(
        log_probs.transpose(0, 1),
        ctc_labels.clamp(min=0),
        num_frames,
        target_lengths,
        head.blank_id,
        "none",
        zero_infinity=True,
    )
    return CTCResult(best, losses, torch.ones_like(losses, dtype=torch.bool), blank_log_probs)


@dataclass(frozen=True)
class Variant:
    """What differs from ours.

    Args:
        changes (`dict[str, str]`): keys of the recipe.
        collator (`type`): makes the batches.
        plain_ctc (`bool`): whether the CTC head scores every frame and token.
        cached (`bool`): whether the encoder's states come from disk.
        one_by_one (`bool`): whether batches are accumulated clips.
        shares_prefix (`bool`): whether the LLM reads the text that all rows begin with once for the batch.
    """

    changes: dict[str, str] = field(default_factory=dict)
    collator: type = SoundwaveDataCollator
    plain_ctc: bool = False
    cached: bool = False
    one_by_one: bool = False
    shares_prefix: bool = True


VARIANTS = {
    "published": Variant(collator=PaddedCollator, one_by_one=True),
    "ours": Variant(),
    "cached": Variant(cached=True),
    "padded": Variant(collator=PaddedCollator),
    "plain_ctc": Variant({"ctc_negatives": "null"}, plain_ctc=True),
    "whole_vocabulary": Variant({"ctc_negatives": "null"}),
    "random_batches": Variant({"train_sampling_strategy": "random"}),
    "by_seconds": Variant({"max_batch_seconds": "30", "gradient_accumulation_steps": "2"}),
    "one_by_one": Variant(one_by_one=True),
    "prefix_each_row": Variant(shares_prefix=False),
}


# ---- one run ----


@dataclass(frozen=True)
class Problem:
    """What is trained on what; `None` is what the recipe says.

    Args:
        clips (`int`), batch (`int`), epochs (`int`): clips drawn from the data, clips of a step, passes over all.
        adapter (`str`): what stage II starts from.
        cache (`str`): folder of the encoder's states.
    """

    clips: int
    batch: int
    epochs: int
    adapter: str
    cache: str
    encoder: str | None = None
    llm: str | None = None
    data: str | None = None
    ctc_negatives: str | None = None


class Clock(TrainerCallback):
    """Seconds, wall clock and CPU, from the begin of training to the end of its last step."""

    def on_train_begin(self, *args, **kwargs):
        self.begun = time.perf_counter(), time.process_time()

    def on_step_end(self, *args, **kwargs):
        self.seconds = time.perf_counter() - self.begun[0]
        self.cpu_seconds = time.process_time() - self.begun[1]


def read(problem: Problem, stage: str, variant: Variant, output: str):
    """The recipe of a stage and its training arguments, for one variant."""
    given = {name: getattr(problem, name) for name in RECIPE_KEYS}
    changes = {name: value for name, value in given.items() if value is not None}
    changes |= {"output_dir": output, "augment": "{}", "repeat": "{}"}
    changes |= {"max_steps": "-1", "num_train_epochs": str(problem.epochs)}
    # So small that the losses of all variants are those of the same weights.
    changes |= {"learning_rate": "1e-6", "lr_scheduler_type": "constant", "warmup_steps": "0"}
    changes |= {"use_cpu": "true", "dataloader_num_workers": "0", "dataloader_pin_memory": "false"}
    changes |= {"save_strategy": "'no'", "disable_tqdm": "true", "plot_loss": "false", "logging_strategy": "'no'"}
    size, accumulated = (1, problem.batch) if variant.one_by_one else (problem.batch, 1)
    changes |= {"per_device_train_batch_size": str(size), "gradient_accumulation_steps": str(accumulated)}
    # The head's start tells nothing of the time.
    changes |= {"warm_start": "false"} if stage == "align" else {"start_from": problem.adapter, "lora": "{}"}
    return read_recipe(SMALL / RECIPES[stage], changes | variant.changes)


def manifest_of(recipe: RecipeArguments) -> Path:
    """The first list of the recipe's clips."""
    first = recipe.data[0] if isinstance(recipe.data, list) else recipe.data
    return soundwave_home() / first


def measure(problem: Problem, stage: str, name: str) -> dict[str, float]:
    """Clips a second, CPU seconds a clip, mebibytes and mean loss of one variant, in this process."""
    disable_progress_bar()
    variant = VARIANTS[name]
    with tempfile.TemporaryDirectory() as output, redirect_stdout(sys.stderr):  # the trainer prints its logs
        recipe, arguments = read(problem, stage, variant, output)
        set_seed(arguments.seed)
        manifest = manifest_of(recipe)
        all_rows = read_rows(manifest, {})
        rows = draw_rows(all_rows, problem)
        model = build_model(recipe, torch.bfloat16 if arguments.bf16 else None)
        processor = SoundwaveProcessor.from_backbones(*recipe.backbones, adapter=recipe.start_folder)
        collator = variant.collator(processor, manifest.parent, STAGES[stage].losses, seed=arguments.seed)
        if name == "published":
            untie(model)
        if not variant.shares_prefix and stage == "shrink":
            find_audio_model(model).shares_prefix = lambda: False
        if variant.plain_ctc:
            head = own_head(find_audio_model(model).ctc_head)
            head.forward = types.MethodType(plain_ctc, head)
        if recipe.ctc_negatives is not None and name != "published":
            collator.set_negatives(all_rows["text"], recipe.ctc_negatives)
        if variant.cached:
            collator.encoder_cache = EncoderCache(Path(problem.cache))
            collator.encoder_cache.fill(find_audio_model(model), collator, rows)
        train = train_published if name == "published" else train_ours
        return train(problem, stage, model, arguments, rows, collator)


def draw_rows(rows, problem: Problem):
    """The clips of some batches, at even places among those that a pool of the recipes' sampler makes."""
    if len(rows) < problem.clips:
        raise ValueError(f"`--clips` is {problem.clips} and the data has {len(rows)} clips: give fewer.")
    pool = np.random.default_rng(0).permutation(len(rows))[: max(50 * problem.batch, problem.clips)]
    pool = pool[np.argsort(np.asarray(rows["seconds"])[pool], kind="stable")]
    count, there = problem.clips // problem.batch, len(pool) // problem.batch
    places = (np.arange(count) + 0.5) / count * there
    return rows.select(pool[: there * problem.batch].reshape(there, -1)[places.astype(int)].flatten())


def warm_up(loss_of, model: nn.Module, collator: SoundwaveDataCollator, rows, in_bf16: bool) -> Memory:
    """One short clip forth and back, which starts threads and libraries; then memory counts."""
    shortest = rows[int(np.argmin(rows["seconds"]))]
    inputs = SoundwaveDataCollator(collator.processor, collator.folder, collator.losses)([shortest])
    model.train()
    with torch.autocast("cpu", torch.bfloat16, enabled=in_bf16):
        loss = loss_of(inputs)
    loss.backward()
    model.zero_grad()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return Memory("cpu")


def train_ours(problem, stage, model, arguments, rows, collator) -> dict[str, float]:
    """Train with the package's trainer and measure."""
    clock = Clock()
    trainer = SoundwaveTrainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        data_collator=collator,
        stage=STAGES[stage],
        callbacks=[clock],
    )
    memory = warm_up(lambda inputs: model(**inputs).loss, model, collator, rows, arguments.bf16)
    loss = trainer.train().training_loss
    return results(problem, clock, memory, loss)


def train_published(problem, stage, model, arguments, rows, collator) -> dict[str, float]:
    """Train as one would with the published modules and plain PyTorch, and measure."""
    clock = Clock()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    memory = warm_up(lambda inputs: published_loss(model, inputs), model, collator, rows, arguments.bf16)
    clock.on_train_begin()
    optimizer = torch.optim.AdamW(trained, arguments.learning_rate, weight_decay=arguments.weight_decay, fused=True)
    order, total = np.random.default_rng(arguments.seed), 0.0
    drawn = np.concatenate([order.permutation(problem.clips) for _ in range(problem.epochs)])
    steps = drawn.reshape(-1, problem.batch).tolist()
    for step in steps:
        for index in step:
            inputs = collator([rows[index]])
            with torch.autocast("cpu", torch.bfloat16, enabled=arguments.bf16):
                loss = published_loss(model, inputs) / problem.batch
            loss.backward()
            total += loss.item()
        nn.utils.clip_grad_norm_(trained, arguments.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        clock.on_step_end()
    return results(problem, clock, memory, total / len(steps))


def results(problem: Problem, clock: Clock, memory: Memory, loss: float) -> dict[str, float]:
    clips = problem.epochs * problem.clips
    return {
        "clips_per_second": clips / clock.seconds,
        "cpu_seconds_per_clip": clock.cpu_seconds / clips,
        "mebibytes": memory.growth() / MEBIBYTE,
        "loss": loss,
    }


def write_cache(problem: Problem) -> dict[str, float]:
    """Seconds to encode a clip and put its states on disk."""
    disable_progress_bar()
    with tempfile.TemporaryDirectory() as output:
        recipe, arguments = read(problem, "align", VARIANTS["cached"], output)
    manifest = manifest_of(recipe)
    rows = draw_rows(read_rows(manifest, {}), problem)
    model = build_model(recipe, torch.bfloat16 if arguments.bf16 else None)
    processor = SoundwaveProcessor.from_backbones(*recipe.backbones)
    collator = SoundwaveDataCollator(processor, manifest.parent, ("ctc",))
    begun = time.perf_counter()
    EncoderCache(Path(problem.cache)).fill(model, collator, rows)
    return {"seconds_per_clip": (time.perf_counter() - begun) / problem.clips}


# ---- all runs ----


def apart(function, *arguments) -> dict[str, float]:
    """A function's result, from a process of its own that has nothing but the libraries."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["soundwave_hf.training.run"])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def run_round(problem: Problem, stages: list[str], names: list[str]) -> dict[str, dict]:
    """One run of each variant in each stage, in turns."""
    runs = {}
    with tempfile.TemporaryDirectory() as cache:
        problem = replace(problem, cache=cache)
        if "cached" in names:
            runs["write_cache"] = apart(write_cache, problem)
        for stage in stages:
            for name in names:
                runs[f"{stage} {name}"] = apart(measure, problem, stage, name)
                print(f"{stage} {name}: {runs[f'{stage} {name}']}", file=sys.stderr, flush=True)
    return runs


def median(rounds: list[dict], value) -> float:
    return statistics.median(value(runs) for runs in rounds)


def table(rounds: list[dict], stage: str, names: list[str]) -> str:
    """Markdown: a row a variant; ratios are of the first variant's."""
    first = f"{stage} {names[0]}"
    lines = [
        f"| {stage} | clips a second | CPU s a clip | MiB | loss | speed / {names[0]} | memory / {names[0]} |",
        "|---" * 7 + "|",
    ]
    for name in names:
        key = f"{stage} {name}"
        cells = [
            f"{median(rounds, lambda runs, key=key, unit=unit: runs[key][unit]):,.{digits}f}"
            for unit, digits in (("clips_per_second", 2), ("cpu_seconds_per_clip", 3), ("mebibytes", 0), ("loss", 3))
        ]
        for unit in ("clips_per_second", "mebibytes"):
            ratio = median(rounds, lambda runs, key=key, unit=unit: runs[key][unit] / runs[first][unit])
            cells.append(f"{ratio:.3f}")
        lines.append(f"| {' | '.join([name, *cells])} |")
    return "\n".join(lines) + "\n"


def step_ratio(runs: dict) -> float:
    """How many times longer our step of stage II takes than our step of stage I on the same batch."""
    return runs["align ours"]["clips_per_second"] / runs["shrink ours"]["clips_per_second"]


def epochs_to_pay(runs: dict, stage: str) -> float:
    """Epochs after which the cached states have saved the time of writing them; infinite where they save none."""
    saved = 1 / runs[f"{stage} ours"]["clips_per_second"] - 1 / runs[f"{stage} cached"]["clips_per_second"]
    return runs["write_cache"]["seconds_per_clip"] / saved if saved > 0 else float("inf")


def summary(rounds: list[dict], stages: list[str], names: list[str]) -> str:
    lines = [table(rounds, stage, names) for stage in stages]
    if set(stages) == set(RECIPES) and "ours" in names:
        lines.append(f"A step of stage II over one of stage I on the same batch: {median(rounds, step_ratio):.2f}.")
    if {"ours", "cached"} <= set(names):
        written = median(rounds, lambda runs: runs["write_cache"]["seconds_per_clip"])
        lines.append(f"Writing the encoder cache takes {written:.4f} s a clip, and pays after, in epochs:")
        for stage in stages:
            lines.append(f"{stage} {median(rounds, lambda runs, stage=stage: epochs_to_pay(runs, stage)):.1f}")
    return "\n".join(lines)


def read_arguments(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=48, help="drawn from the data, each trained on equally often")
    parser.add_argument("--batch", type=int, default=16, help="clips of a step")
    parser.add_argument("--steps", type=int, help="steps, of whole epochs; default: one epoch")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each variant")
    parser.add_argument("--stages", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="ratios: of the first")
    for key in RECIPE_KEYS:
        parser.add_argument(f"--{key}", help="default: the recipes'")
    parser.add_argument("--adapter", default=str(ADAPTER), help="what stage II starts from; default: the shipped one")
    parser.add_argument("--output", type=Path, help="JSON to write all runs to")
    given = parser.parse_args(words)
    given.steps = given.clips // given.batch if given.steps is None else given.steps
    if given.clips % given.batch or not given.steps or given.steps * given.batch % given.clips:
        parser.error(
            f"{given.steps} steps of {given.batch} are no whole epochs of {given.clips} clips: let `--clips` be a "
            "multiple of `--batch`, and leave `--steps` out or let them make whole epochs."
        )
    return given


def main(words: list[str]):
    """Measure and print."""
    given = read_arguments(words)
    sizes = {name: getattr(given, name) for name in ("clips", "batch", "adapter", *RECIPE_KEYS)}
    problem = Problem(**sizes, epochs=given.steps * given.batch // given.clips, cache="")
    print(
        f"{given.clips} clips, {given.steps} steps of {given.batch}, medians of {given.rounds} rounds, "
        f"{torch.get_num_threads()} threads\n",
        flush=True,
    )
    rounds = [run_round(problem, given.stages, given.variants) for _ in range(given.rounds)]
    print(summary(rounds, given.stages, given.variants))
    if given.output is not None:
        given.output.write_text(json.dumps({"problem": asdict(problem), "rounds": rounds}, indent=2) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
