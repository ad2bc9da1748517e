"""`soundwave-hf train RECIPE`: one function runs any stage from a YAML recipe."""

import copy
import os
from pathlib import Path

import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import EarlyStoppingCallback, TrainerCallback, TrainerState, set_seed
from transformers.trainer import TRAINER_STATE_NAME

from ..data.backbones import soundwave_home
from ..data.card import count_rows
from ..data.tiny import TINY_DATA, make_folder, write_tiny_data
from ..processing.processing_soundwave import SoundwaveProcessor
from .arguments import SoundwaveTrainingArguments
from .augment import Augmentation
from .build import add_lora, build_model
from .checkpoints import PreemptionCallback, last_checkpoint
from .collator import SoundwaveCollator
from .earlier_run import look_for_run, record_run
from .encoder_cache import EncoderCache
from .evaluate_during import SpeechEvaluationCallback, check_metric, metric_names
from .manifests import find_manifests, open_streams, read_lines, read_rows
from .mixture import LengthGroups, Mixture, MixtureStream
from .push import HubPush
from .recipe import RecipeArguments, read_recipe, read_recipes
from .record import describe_run, file_digest
from .run_card import RunCard
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

    A folder that holds the run goes on from its last checkpoint, or is left as it is where the run is finished.

    Raises: `SystemExit` of code 143 after a SIGTERM and 130 after Ctrl-C, with a checkpoint; `OSError` where one
    cannot be written; `ValueError` where the folder holds another run; `RuntimeError` where the run diverges;
    `ConnectionError` where what is trained cannot be pushed to the hub.
    """
    if arguments.n_gpu > 1:
        raise ValueError(
            f"One process would train on {arguments.n_gpu} GPUs: start one a GPU, `torchrun --nproc_per_node "
            f"{arguments.n_gpu} -m soundwave_hf.cli train ...`, or choose one with CUDA_VISIBLE_DEVICES."
        )
    push = HubPush(arguments) if arguments.push_to_hub else None
    arguments = copy.copy(arguments)
    arguments.push_to_hub = False  # which is done here
    path = recipe.manifest
    # What is missing is made by one process: in the others the library's `save_pretrained` writes nothing.
    with PartialState().main_process_first():
        if not path.is_file() and path.parent == soundwave_home() / TINY_DATA:
            make_folder(write_tiny_data, path.parent)
        rows = _open_rows(recipe, arguments, path)
        recipe.backbones  # noqa: B018 (found or made at the first call)
    evaluated = _open_evaluated(recipe, arguments)
    record = record_run(recipe, arguments, [file_digest(manifest) for manifest in find_manifests(path)])
    earlier = look_for_run(arguments, record)
    PartialState().wait_for_everyone()  # nothing is written until all have looked
    if earlier.message and PartialState().is_main_process:
        print(earlier.message, flush=True)
    if not earlier.finished:
        _train(recipe, arguments, rows, evaluated, record, earlier.checkpoint, push)
    if push is not None and PartialState().is_main_process:
        push.finish()
    PartialState().wait_for_everyone()  # the next stage begins with what one process has written
    return arguments.output_dir


def _train(recipe, arguments, rows, evaluated, record, checkpoint: str | None, push: HubPush | None):
    """Build the model and its trainer, train to the end, and save."""
    stage, path = STAGES[recipe.stage], recipe.manifest
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
    files = describe_run(recipe.written, find_manifests(path), counts, record)
    trainer_class = SoundwaveSFTTrainer if recipe.stage == "instruct" else SoundwaveTrainer
    trainer = trainer_class(
        model=model,
        args=arguments,
        train_dataset=rows,
        eval_dataset=evaluated,
        data_collator=collator,
        processing_class=processor,
        stage=stage,
        mixture=Mixture(**recipe.mixture) if recipe.mixture and not recipe.streaming else None,
        max_batch_seconds=None if recipe.streaming else recipe.max_batch_seconds,
        record=files,
        card=RunCard(recipe.stage, files["data_card.md"], recipe.license),
    )
    if trainer.is_world_process_zero():
        _announce(recipe, arguments, model, counts)
    if collator.encoder_cache is not None:
        collator.encoder_cache.fill(trainer.audio_model, collator, rows)
    for callback in _callbacks(recipe, trainer, checkpoint, push):
        trainer.add_callback(callback)
    with PreemptionCallback(trainer.accelerator) as preemption:
        trainer.add_callback(preemption)
        trainer.train(resume_from_checkpoint=checkpoint)
    if preemption.stopped:
        saved = last_checkpoint(arguments.output_dir)
        print(f"{preemption.signal_name}: saved {saved}; the same command goes on from there.", flush=True)
        raise SystemExit(preemption.exit_code)
    if trainer.state.global_step == 0:
        raise ValueError(f"No step was trained, and nothing is saved in `{arguments.output_dir}`: give more data.")
    trainer.save_model()
    trainer.save_state()
    trainer.accelerator.wait_for_everyone()


def _callbacks(recipe, trainer, checkpoint: str | None, push: HubPush | None) -> list[TrainerCallback]:
    """What stands beside a trainer, in this order: scores come before what stops by them."""
    callbacks: list[TrainerCallback] = [PaceCallback()]
    if recipe.evaluated:
        callbacks.append(SpeechEvaluationCallback(trainer, recipe.eval_samples))
    if recipe.early_stopping_patience is not None:
        stopping = EarlyStoppingCallback(recipe.early_stopping_patience, recipe.early_stopping_threshold)
        if checkpoint is not None:  # a resumed run has been waiting for that long
            state = TrainerState.load_from_json(os.path.join(checkpoint, TRAINER_STATE_NAME))
            waited = state.stateful_callbacks.get("EarlyStoppingCallback", {}).get("attributes", {})
            stopping.early_stopping_patience_counter = waited.get("early_stopping_patience_counter", 0)
        callbacks.append(stopping)
    return callbacks if push is None else [*callbacks, push]


def _open_evaluated(recipe: RecipeArguments, arguments: SoundwaveTrainingArguments):
    """The data sets of `eval_data`: none, one, or several by name; what is to be the best can be measured on them."""
    sets = {name: read_evaluated(source) for name, source in recipe.evaluated.items()}
    if sets:
        stage = STAGES[recipe.stage]
        check_metric(arguments.metric_for_best_model, {name: metric_names(stage, rows) for name, rows in sets.items()})
    return sets.get("", sets) or None


def read_evaluated(source: str) -> Dataset:
    """Rows to evaluate on, their clips' paths seen from the current folder."""
    path = Path(source)
    rows = read_rows(path, {}).to_list()
    return Dataset.from_list([{**row, "audio": str(path.parent / row["audio"])} for row in rows])


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
    changes = {name for name in ("speed", "noise", "narrow", "room") if recipe.augment.get(name)}
    if changes and "gain" not in recipe.augment:
        print(
            "`augment` has no `gain`: clips keep their level. Earlier versions changed that of every clip by -12 to "
            "+2 dB, which `gain: 1.0` does.",
            flush=True,
        )
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
