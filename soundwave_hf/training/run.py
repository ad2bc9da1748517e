"""`train(recipe)` and `soundwave-hf train RECIPE`: run the stages of a recipe."""

import copy
import itertools
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import EarlyStoppingCallback, TrainerCallback, TrainerState, set_seed
from transformers.trainer import TRAINER_STATE_NAME

from ..atomic import make_folder
from ..data.card import count_rows
from ..data.check import SKIPPED_CLIPS, check_clips
from ..data.rows import RowCheck
from ..data.sources import digest_source, fill_seconds, open_rows, open_streams, transcripts_with_language
from ..data.tiny import TINY_DATA, write_tiny_data
from ..paths import soundwave_home
from ..processing.processing_soundwave import SoundwaveProcessor
from ..publish.runs import known_weights
from .arguments import SoundwaveTrainingArguments, order_seed
from .build import add_lora, build_model
from .checkpoints import PreemptionCallback, last_checkpoint
from .collator import SoundwaveDataCollator
from .earlier_run import look_for_run, record_run
from .evaluate_during import SpeechEvaluationCallback, check_metric, metric_names
from .mixture import LengthGroups, Mixture, MixtureStream
from .push import HubPush
from .recipe import RecipeArguments, load_recipes, parse_overrides, read_recipe, read_recipes
from .record import describe_run
from .run_card import RunCard
from .stages import STAGES, stage_of
from .trainer import SoundwaveTrainer
from .watch import PaceCallback


STREAM_ROWS = 20_000  # of a stream in memory, in which rows are shuffled and grouped by length
STREAM_CLIPS = 1_000  # the same for rows that hold their audio


def train(recipe: str | os.PathLike | Mapping, /, **overrides) -> str:
    """Train a recipe, each stage from its last checkpoint if there is one.

    Args:
        recipe: a YAML file, the name of a recipe of this package (`"finetune"`, `"tiny"`), or a dict. A file may hold
            several recipes, which run in their order.
        overrides: values that replace those of the recipe, as Python values: numbers, lists, dicts, paths. A key with
            a dot, such as `**{"augment.speed": 0.1}`, replaces one value of a section.

    Returns: the output folder of the last stage.

    Raises: `ValueError` for an unknown key, with the closest known one; what `run_stage` raises.

    Example:

    ```python
    from soundwave_hf import train

    folder = train("finetune", data="train.csv", output_dir="runs/mine", max_steps=50)
    ```
    """
    return [run_stage(*each) for each in load_recipes(recipe, overrides)][-1]


def run_recipe(path: str | os.PathLike, overrides: Mapping[str, str] | None = None) -> str:
    """`train` with overrides as text, as the command line gives them."""
    return train(path, **parse_overrides(overrides))


def read_rows(path: str | os.PathLike, repeat: Mapping[str, int] | None = None) -> Dataset:
    """`soundwave_hf.data.sources.open_rows`, by its name in version 0.1.0."""
    return open_rows(str(path), repeat=repeat)


def run_stage(recipe: RecipeArguments, arguments: SoundwaveTrainingArguments) -> str:
    """Train one stage and write what it trained to `arguments.output_dir`; see `read_recipe`.

    If the folder holds this run, training continues from the last checkpoint. A finished run is left as it is.

    Raises: `SystemExit` with code 143 after SIGTERM and 130 after Ctrl-C, with a checkpoint saved; `OSError` if a
    checkpoint cannot be written; `ValueError` if the folder holds another run; `RuntimeError` if the run diverges;
    `ConnectionError` if the result cannot be pushed to the hub.
    """
    if arguments.n_gpu > 1:
        raise ValueError(
            f"One process would train on {arguments.n_gpu} GPUs: start one a GPU, `torchrun --nproc_per_node "
            f"{arguments.n_gpu} -m soundwave_hf.cli train ...`, or choose one with CUDA_VISIBLE_DEVICES."
        )
    push = HubPush(arguments) if arguments.push_to_hub else None
    arguments = copy.copy(arguments)
    arguments.push_to_hub = False  # done here, by `push`
    # The main process makes what is missing: in the others `save_pretrained` writes nothing.
    with PartialState().main_process_first():
        _make_tiny_data(recipe)
        recipe.backbones  # noqa: B018 (found or made at first use)
        processor = SoundwaveProcessor.from_backbones(
            *recipe.backbones, adapter=recipe.start_folder, ctc_text=recipe.model.get("ctc_text")
        )
        check = RowCheck.of(processor, STAGES[recipe.stage].losses)
        data = _open_data(recipe, arguments, check)
    evaluated = _open_evaluated(recipe, arguments, check)
    record = record_run(recipe, arguments, _digests(recipe))
    earlier = look_for_run(arguments, record)
    PartialState().wait_for_everyone()  # write nothing before every process has looked
    if earlier.message and PartialState().is_main_process:
        print(earlier.message, flush=True)
    if not earlier.finished:
        _fit(recipe, arguments, processor, data, evaluated, record, earlier.checkpoint, push)
    if push is not None and PartialState().is_main_process:
        push.finish()
    PartialState().wait_for_everyone()  # the next stage reads what one process has written
    return arguments.output_dir


def _fit(recipe, arguments, processor, data, evaluated, record, checkpoint: str | None, push: HubPush | None):
    """Build the model and its trainer, train to the end, and save."""
    trainer = _make_trainer(recipe, arguments, processor, data, evaluated, record)
    collator = trainer.data_collator
    if trainer.is_world_process_zero():
        _announce(recipe, arguments, trainer.model, data.counts)
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


def _make_trainer(recipe, arguments, processor, data, evaluated, record):
    stage = stage_of(recipe)
    set_seed(arguments.seed)  # for new adapters; the trainer sets it again for the steps
    model = build_model(recipe, torch.bfloat16 if arguments.bf16 else None)
    files = describe_run(recipe.written, recipe.sources, data.counts, record) | data.record
    return trainer_class(recipe.stage)(
        model=model,
        args=arguments,
        train_dataset=data.rows,
        eval_dataset=evaluated,
        data_collator=_make_collator(recipe, processor, arguments.seed, data),
        processing_class=processor,
        stage=stage,
        mixture=None if recipe.streaming else recipe.mixture,
        max_batch_seconds=None if recipe.streaming else recipe.max_batch_seconds,
        record=files,
        card=RunCard(
            recipe.stage,
            files["data_card.md"],
            recipe.license,
            recipe.written,
            json.loads(files["versions.json"]),
            known_weights(recipe.start_from),
        ),
    )


def trainer_class(stage: str) -> type[SoundwaveTrainer]:
    """The trainer of a stage. Only that of stage III needs TRL."""
    if stage != "instruct":
        return SoundwaveTrainer
    from .sft import SoundwaveSFTTrainer

    return SoundwaveSFTTrainer


def _make_collator(recipe, processor, seed: int, data: "_Data") -> SoundwaveDataCollator:
    collator = SoundwaveDataCollator(
        processor,
        losses=STAGES[recipe.stage].losses,
        augmentation=recipe.augment,
        seed=seed,
        encoder_cache=recipe.encoder_cache,
        check_rows=False,  # whoever opened the rows has checked them
    )
    if recipe.ctc_negatives is not None:
        collator.set_negatives(data.texts(), recipe.ctc_negatives)
    return collator


def _callbacks(recipe, trainer, checkpoint: str | None, push: HubPush | None) -> list[TrainerCallback]:
    """The callbacks of a run in their order: early stopping needs the scores of the evaluation before it."""
    callbacks: list[TrainerCallback] = [PaceCallback()]
    if recipe.evaluated:
        callbacks.append(SpeechEvaluationCallback(trainer, recipe.eval_samples))
    if recipe.early_stopping_patience is not None:
        stopping = EarlyStoppingCallback(recipe.early_stopping_patience, recipe.early_stopping_threshold)
        if checkpoint is not None:  # evaluations that the run had waited before it stopped
            state = TrainerState.load_from_json(os.path.join(checkpoint, TRAINER_STATE_NAME))
            waited = state.stateful_callbacks.get("EarlyStoppingCallback", {}).get("attributes", {})
            stopping.early_stopping_patience_counter = waited.get("early_stopping_patience_counter", 0)
        callbacks.append(stopping)
    return callbacks if push is None else [*callbacks, push]


def _open_evaluated(recipe: RecipeArguments, arguments: SoundwaveTrainingArguments, check: RowCheck):
    """The data sets of `eval_data`: none, one, or several by name.

    Raises: `ValueError` if `metric_for_best_model` is not measured on them.
    """
    sets = {
        name: open_rows(source, recipe.columns, check=check, home=soundwave_home())
        for name, source in recipe.evaluated.items()
    }
    if sets:
        stage = STAGES[recipe.stage]
        check_metric(arguments.metric_for_best_model, {name: metric_names(stage, rows) for name, rows in sets.items()})
    return sets.get("", sets) or None


def _digests(recipe: RecipeArguments) -> list[str]:
    """Digests of the data: of its content, or of its name and revision, and whether bad clips are left out."""
    digests = [digest for source in recipe.sources for digest in digest_source(source).values()]
    return digests + (["without bad clips"] if recipe.check_audio == "skip" else [])


@dataclass
class _Data:
    """The data of a run: rows in memory, or this process's share of the streams.

    Args:
        counts (`dict`): clips and seconds by source.
        texts (`Callable`): gives the transcripts, one by one, with their languages.
        record (`dict`): texts of further files for the output folder, by file name.
    """

    rows: Dataset | MixtureStream
    counts: dict[tuple[str], tuple[int, float]]
    texts: Callable[[], Iterable[tuple[str, str | None]]]
    record: dict[str, str] = field(default_factory=dict)


def _make_tiny_data(recipe: RecipeArguments):
    for source in recipe.sources:
        folder = Path(source.path).parent
        if not Path(source.path).is_file() and folder == soundwave_home() / TINY_DATA:
            make_folder(write_tiny_data, folder)


def _open_data(recipe: RecipeArguments, arguments: SoundwaveTrainingArguments, check: RowCheck) -> _Data:
    """The recipe's data. Rows are checked here, or, in a stream that is not read beforehand, as they are read."""
    if recipe.streaming:
        return _open_streams(recipe, arguments, check)
    options = {"repeat": recipe.repeat, "check": check, "home": soundwave_home()}
    rows, record = open_rows(recipe.sources, with_seconds=not recipe.check_audio, **options), {}
    if recipe.check_audio:
        rows, bad = check_clips(rows, skip=recipe.check_audio == "skip", max_seconds=recipe.max_batch_seconds)
        rows = fill_seconds(rows, "the data")
        record = {SKIPPED_CLIPS: "".join(json.dumps(vars(clip)) + "\n" for clip in bad)} if bad else {}
    light = rows.select_columns([name for name in ("source", "seconds") if name in rows.column_names])
    counts = count_rows(
        ({"source": row.get("source") or "-", "seconds": row["seconds"]} for row in light), ("source",)
    )
    return _Data(rows, counts, lambda: transcripts_with_language(rows), record)


def _open_streams(recipe: RecipeArguments, arguments: SoundwaveTrainingArguments, check: RowCheck) -> _Data:
    opened = open_streams(recipe.sources, by_task=recipe.mixture is not None, check=check)
    batch_size, group = arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps
    held = STREAM_CLIPS if opened.hold_audio else STREAM_ROWS
    groups = LengthGroups(batch_size, group, max(1, held // (batch_size * group)), recipe.max_batch_seconds)
    if opened.seconds:
        groups.check(opened.seconds)
    place = (order_seed(arguments), arguments.process_index, arguments.world_size)
    rows = MixtureStream(opened.streams, opened.sizes, groups, recipe.mixture or Mixture(step=0), *place)
    every = itertools.chain.from_iterable
    return _Data(rows, opened.counts, lambda: transcripts_with_language(every(opened.streams.values())))


def _announce(recipe, arguments, model, counts):
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    clips, seconds = (sum(column) for column in zip(*counts.values(), strict=True))
    hours = f"{seconds / 3600:.1f} h" if seconds == seconds else "unknown length"
    size = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    if recipe.augment.changes_samples and "gain" not in recipe.written["augment"]:
        print(
            "`augment` has no `gain`: clips keep their level. Earlier versions changed the level of every clip by -12 "
            "to +2 dB, which `gain: 1.0` does.",
            flush=True,
        )
    losses = " and ".join({"ce": "next-token", "ctc": "CTC"}[loss] for loss in STAGES[recipe.stage].losses)
    print(
        f"Stage {recipe.stage}: {trained / 1e6:.2f} M parameters on {losses} loss, "
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
    "train",
]
