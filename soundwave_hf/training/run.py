"""`soundwave-hf train RECIPE`: one function runs any stage from a YAML recipe."""

import os
from pathlib import Path

import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import set_seed

from ..data.backbones import soundwave_home
from ..data.card import count_rows
from ..data.tiny import TINY_DATA, make_folder, write_tiny_data
from ..processing.processing_soundwave import SoundwaveProcessor
from .arguments import SoundwaveTrainingArguments
from .augment import Augmentation
from .build import add_lora, build_model
from .checkpoints import PREEMPTED, PreemptionCallback, last_checkpoint
from .collator import SoundwaveCollator
from .encoder_cache import EncoderCache
from .manifests import find_manifests, open_streams, read_lines, read_rows
from .mixture import LengthGroups, Mixture, MixtureStream
from .recipe import RecipeArguments, read_recipe, read_recipes
from .record import describe_run
from .stages import STAGES
from .trainer import SoundwaveSFTTrainer, SoundwaveTrainer
from .watch import PaceCallback


STREAM_ROWS = 20_000  # of a stream among which they are shuffled and put side by length; they hold no audio


def run_recipe(path: str | os.PathLike, overrides: dict[str, str] | None = None) -> str:
    """Train as a file of recipes says, one after the other, each from its last checkpoint if there is one; returns the
    last one's output folder."""
    recipes = read_recipes(path, overrides)
    return [run_stage(recipe, arguments) for recipe, arguments in recipes][-1]


def run_stage(recipe: RecipeArguments, arguments: SoundwaveTrainingArguments) -> str:
    """Train one stage and write what it trained to `arguments.output_dir`; see `read_recipe`.

    Raises: `SystemExit` of code 143 after a SIGTERM, with a checkpoint; `OSError` where one cannot be written.
    """
    if arguments.n_gpu > 1:
        raise ValueError(
            f"One process would train on {arguments.n_gpu} GPUs: start one a GPU, `torchrun --nproc_per_node "
            f"{arguments.n_gpu} -m soundwave_hf.cli train ...`, or choose one with CUDA_VISIBLE_DEVICES."
        )
    stage = STAGES[recipe.stage]
    path = recipe.manifest
    # What is missing is made by one process: in the others the library's `save_pretrained` writes nothing.
    with PartialState().main_process_first():
        if not path.is_file() and path.parent == soundwave_home() / TINY_DATA:
            make_folder(write_tiny_data, path.parent)
        rows = _open_rows(recipe, arguments, path)
        recipe.backbones  # noqa: B018 (found or made at the first call)
    light = read_lines(path) if recipe.streaming else rows.select_columns({"source", "seconds"} & {*rows.column_names})
    counts = count_rows(
        ({"source": row.get("source") or "-", "seconds": row["seconds"]} for row in light), ("source",)
    )
    set_seed(arguments.seed)  # of fresh adapters; the trainer sets it again for the steps
    model = build_model(recipe, torch.bfloat16 if arguments.bf16 else None)
    processor = SoundwaveProcessor.from_backbones(*recipe.backbones, adapter=recipe.start_folder)
    collator = SoundwaveCollator(processor, path.parent, stage.losses, Augmentation(**recipe.augment), arguments.seed)
    if recipe.ctc_negatives is not None:
        texts = (row["text"] for row in read_lines(path)) if recipe.streaming else rows["text"]
        collator.set_negatives(texts, recipe.ctc_negatives)
    if recipe.encoder_cache is not None:
        collator.encoder_cache = EncoderCache(soundwave_home() / "encoder_states", **recipe.encoder_cache)
    trainer_class = SoundwaveSFTTrainer if recipe.stage == "instruct" else SoundwaveTrainer
    trainer = trainer_class(
        model=model,
        args=arguments,
        train_dataset=rows,
        data_collator=collator,
        processing_class=processor,
        stage=stage,
        mixture=Mixture(**recipe.mixture) if recipe.mixture and not recipe.streaming else None,
        max_batch_seconds=None if recipe.streaming else recipe.max_batch_seconds,
        record=describe_run(recipe.written, find_manifests(path), counts),
    )
    if trainer.is_world_process_zero():
        _announce(recipe, arguments, model, counts)
    if collator.encoder_cache is not None:
        collator.encoder_cache.fill(trainer.audio_model, collator, rows)
    trainer.add_callback(PaceCallback())
    with PreemptionCallback(trainer.accelerator) as preemption:
        trainer.add_callback(preemption)
        trainer.train(resume_from_checkpoint=last_checkpoint(arguments.output_dir))
    if preemption.stopped:
        print(
            f"SIGTERM: saved {last_checkpoint(arguments.output_dir)}; the same command goes on from there.", flush=True
        )
        raise SystemExit(PREEMPTED)
    trainer.save_model()
    trainer.save_state()
    trainer.accelerator.wait_for_everyone()  # the next stage begins with what one process has written
    return arguments.output_dir


def _open_rows(recipe: RecipeArguments, arguments: SoundwaveTrainingArguments, path: Path) -> Dataset | MixtureStream:
    """The recipe's data: all rows in memory, or this process's share of the streams."""
    if not recipe.streaming:
        return read_rows(path, recipe.repeat)
    batch_size, group = arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps
    pool = max(1, STREAM_ROWS // (batch_size * group))
    groups = LengthGroups(batch_size, group, pool, recipe.max_batch_seconds)
    if recipe.max_batch_seconds is not None:
        groups.check([row["seconds"] for row in read_lines(path)])
    streams, sizes = open_streams(path, by_task=bool(recipe.mixture))
    mixture = Mixture(**recipe.mixture) if recipe.mixture else Mixture(step=0)
    return MixtureStream(
        streams, sizes, groups, mixture, arguments.seed, arguments.process_index, arguments.world_size
    )


def _announce(recipe, arguments, model, counts):
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    clips, seconds = (sum(column) for column in zip(*counts.values(), strict=True))
    size = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    print(
        f"Stage {recipe.stage}: {trained / 1e6:.2f} M parameters on {' + '.join(STAGES[recipe.stage].losses)}, "
        f"{clips} clips ({seconds / 3600:.1f} h), {size} a step, to {arguments.output_dir}",
        flush=True,
    )


__all__ = [
    "RecipeArguments",
    "add_lora",
    "build_model",
    "last_checkpoint",
    "read_recipe",
    "read_recipes",
    "read_rows",
    "run_recipe",
    "run_stage",
]
