"""`soundwave-hf train RECIPE`: one function runs any stage from a YAML recipe."""

import copy
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import EarlyStoppingCallback, TrainerCallback, TrainerState, set_seed
from transformers.trainer import TRAINER_STATE_NAME

from ..atomic import make_folder
from ..data.card import count_rows
from ..data.check import check_clips
from ..data.rows import RowCheck
from ..data.sources import digest_source, fill_seconds, open_rows, open_streams, transcripts
from ..data.tiny import TINY_DATA, write_tiny_data
from ..paths import soundwave_home
from ..processing.processing_soundwave import SoundwaveProcessor
from .arguments import SoundwaveTrainingArguments
from .augment import Augmentation
from .build import add_lora, build_model
from .checkpoints import PreemptionCallback, last_checkpoint
from .collator import SoundwaveCollator
from .earlier_run import look_for_run, record_run
from .encoder_cache import EncoderCache
from .evaluate_during import SpeechEvaluationCallback, check_metric, metric_names
from .manifests import read_rows
from .mixture import LengthGroups, Mixture, MixtureStream
from .push import HubPush
from .recipe import RecipeArguments, read_recipe, read_recipes
from .record import describe_run
from .run_card import RunCard
from .stages import STAGES
from .trainer import SoundwaveSFTTrainer, SoundwaveTrainer
from .watch import PaceCallback


STREAM_ROWS = 20_000  # of a stream among which they are shuffled and put side by length; they hold no audio
STREAM_CLIPS = 1_000  # the same, of rows that hold their clips


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
    # What is missing is made by one process: in the others the library's `save_pretrained` writes nothing.
    with PartialState().main_process_first():
        _make_tiny_data(recipe)
        recipe.backbones  # noqa: B018 (found or made at the first call)
        processor = SoundwaveProcessor.from_backbones(*recipe.backbones, adapter=recipe.start_folder)
        check = RowCheck.of(processor, STAGES[recipe.stage].losses)
        data = _open_data(recipe, arguments, check)
    evaluated = _open_evaluated(recipe, arguments, check)
    record = record_run(recipe, arguments, _digests(recipe))
    earlier = look_for_run(arguments, record)
    PartialState().wait_for_everyone()  # nothing is written until all have looked
    if earlier.message and PartialState().is_main_process:
        print(earlier.message, flush=True)
    if not earlier.finished:
        _train(recipe, arguments, processor, data, evaluated, record, earlier.checkpoint, push)
    if push is not None and PartialState().is_main_process:
        push.finish()
    PartialState().wait_for_everyone()  # the next stage begins with what one process has written
    return arguments.output_dir


def _train(recipe, arguments, processor, data, evaluated, record, checkpoint: str | None, push: HubPush | None):
    """Build the model and its trainer, train to the end, and save."""
    stage = STAGES[recipe.stage]
    set_seed(arguments.seed)  # of fresh adapters; the trainer sets it again for the steps
    model = build_model(recipe, torch.bfloat16 if arguments.bf16 else None)
    collator = SoundwaveCollator(processor, ".", stage.losses, Augmentation(**recipe.augment), arguments.seed)
    if recipe.ctc_negatives is not None:
        collator.set_negatives(data.texts(), recipe.ctc_negatives)
    if recipe.encoder_cache is not None:
        collator.encoder_cache = EncoderCache(soundwave_home() / "encoder_states", **recipe.encoder_cache)
    files = describe_run(recipe.written, recipe.sources, data.counts, record) | data.record
    trainer_class = SoundwaveSFTTrainer if recipe.stage == "instruct" else SoundwaveTrainer
    trainer = trainer_class(
        model=model,
        args=arguments,
        train_dataset=data.rows,
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
        _announce(recipe, arguments, model, data.counts)
    if collator.encoder_cache is not None:
        collator.encoder_cache.fill(trainer.audio_model, collator, data.rows)
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


def _open_evaluated(recipe: RecipeArguments, arguments: SoundwaveTrainingArguments, check: RowCheck):
    """The data sets of `eval_data`: none, one, or several by name; what is to be the best can be measured on them."""
    sets = {
        name: open_rows(source, recipe.columns, check=check, home=soundwave_home())
        for name, source in recipe.evaluated.items()
    }
    if sets:
        stage = STAGES[recipe.stage]
        check_metric(arguments.metric_for_best_model, {name: metric_names(stage, rows) for name, rows in sets.items()})
    return sets.get("", sets) or None


def _digests(recipe: RecipeArguments) -> list[str]:
    """What tells the data of a run from others: content, or name and revision, and what the recipe makes of them."""
    digests = [digest for source in recipe.sources for digest in digest_source(source).values()]
    return digests + (["without bad clips"] if recipe.check_audio == "skip" else [])


@dataclass
class _Data:
    """The data of a run: rows in memory, or this process's share of the streams.

    Args:
        counts (`dict`): clips and seconds by source.
        texts (`Callable`): gives the transcripts, one by one.
        record (`dict`): files, by name, that say more of it.
    """

    rows: Dataset | MixtureStream
    counts: dict[tuple[str], tuple[int, float]]
    texts: Callable[[], Iterable[str]]
    record: dict[str, str] = field(default_factory=dict)


def _make_tiny_data(recipe: RecipeArguments):
    for source in recipe.sources:
        folder = Path(source.path).parent
        if not Path(source.path).is_file() and folder == soundwave_home() / TINY_DATA:
            make_folder(write_tiny_data, folder)


def _open_data(recipe: RecipeArguments, arguments: SoundwaveTrainingArguments, check: RowCheck) -> _Data:
    """The recipe's data, every row of it that can be seen beforehand checked."""
    if recipe.streaming:
        return _open_streams(recipe, arguments, check)
    options = {"repeat": recipe.repeat, "check": check, "home": soundwave_home()}
    rows, record = open_rows(recipe.sources, with_seconds=not recipe.check_audio, **options), {}
    if recipe.check_audio:
        rows, bad = check_clips(rows, skip=recipe.check_audio == "skip", max_seconds=recipe.max_batch_seconds)
        rows = fill_seconds(rows, "the data")
        record = {"skipped_clips.jsonl": "".join(json.dumps(vars(clip)) + "\n" for clip in bad)} if bad else {}
    light = rows.select_columns([name for name in ("source", "seconds") if name in rows.column_names])
    counts = count_rows(
        ({"source": row.get("source") or "-", "seconds": row["seconds"]} for row in light), ("source",)
    )
    return _Data(rows, counts, lambda: transcripts(rows), record)


def _open_streams(recipe: RecipeArguments, arguments: SoundwaveTrainingArguments, check: RowCheck) -> _Data:
    opened = open_streams(recipe.sources, by_task=bool(recipe.mixture), check=check)
    batch_size, group = arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps
    held = STREAM_CLIPS if opened.hold_audio else STREAM_ROWS
    groups = LengthGroups(batch_size, group, max(1, held // (batch_size * group)), recipe.max_batch_seconds)
    if opened.seconds:
        groups.check(opened.seconds)
    mixture = Mixture(**recipe.mixture) if recipe.mixture else Mixture(step=0)
    place = (arguments.seed, arguments.process_index, arguments.world_size)
    rows = MixtureStream(opened.streams, opened.sizes, groups, mixture, *place)
    return _Data(rows, opened.counts, lambda: transcripts(row for each in opened.streams.values() for row in each))


def _announce(recipe, arguments, model, counts):
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    clips, seconds = (sum(column) for column in zip(*counts.values(), strict=True))
    hours = f"{seconds / 3600:.1f} h" if seconds == seconds else "unknown length"
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
        f"{clips or 'an unknown number of'} clips ({hours}), {size} a step, to {arguments.output_dir}",
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
