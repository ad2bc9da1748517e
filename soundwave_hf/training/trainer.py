"""What the trainers of all stages share, and that of stages I and II. That of stage III is in `sft.py`."""

import inspect
import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate.data_loader import DataLoaderShard
from accelerate.utils import gather_object
from datasets import Dataset
from datasets import IterableDataset as Stream
from datasets.distributed import split_dataset_by_node
from safetensors.torch import save_file
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, IterableDataset
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, has_length
from transformers.utils import GENERATION_CONFIG_NAME

from ..atomic import atomic_file, atomic_files
from ..data.rows import RowCheck
from ..data.sources import check_rows, lengths_of, row_seconds, undecoded
from ..modeling.backbones_soundwave import TRAINED_FILE, load_trained
from ..modeling.decoding_soundwave import DEFAULTS
from ..modeling.encoder_lora_soundwave import has_encoder_lora, load_encoder_lora, save_encoder_lora
from ..modeling.folders_soundwave import refuse_other_kind
from ..modeling.positions_soundwave import POSITION_OPTIONS
from ..modeling.trained_fields_soundwave import checked_by_caller
from .arguments import SoundwaveTrainingArguments, order_seed
from .checkpoints import last_checkpoint, writing_checkpoint
from .evaluate_during import evaluation_collator
from .mixture import (
    DrawnRows,
    GivenRows,
    LengthGroups,
    Mixture,
    MixtureBatchSampler,
    MixtureStream,
    RepeatedStream,
    StreamBatchSampler,
    number_tasks,
)
from .run_card import RunCard
from .saving import (
    base_of,
    has_own_adapter,
    load_own_adapter,
    names_its_base,
    names_of_stage_one,
    refuse_lost_weights,
    refuse_other_adapters,
    saved_form,
)
from .stages import Stage, check_trainable
from .watch import CollapseCallback, PlotCallback


def shared_prefix(inputs: dict[str, torch.Tensor], audio_token_id: int) -> int:
    """How many text tokens at the start are the same in all rows of a batch."""
    ids = inputs["input_ids"]
    same = (ids == ids[:1]).all(dim=0) & (ids[0] != audio_token_id) & inputs["attention_mask"].bool().all(dim=0)
    return int(same.int().cumprod(dim=0).sum())


def count_clips(inputs: dict[str, torch.Tensor]) -> int | torch.Tensor:
    """Clips of a batch that have a transcript, where possible without waiting for the device."""
    if "ctc_labels" not in inputs:
        return 0
    return inputs["ctc_mask"].sum() if "ctc_mask" in inputs else len(inputs["ctc_labels"])


def count_labels(inputs: dict[str, torch.Tensor]) -> int | torch.Tensor:
    """Tokens of a batch that the next-token loss counts."""
    return inputs["labels"][:, 1:].ne(-100).sum() if "labels" in inputs else 0


def has_clips(inputs: dict[str, torch.Tensor]) -> bool:
    """Whether a batch holds clips, or is text only."""
    return "input_features" in inputs or "encoder_states" in inputs


def audio_part(model: nn.Module) -> nn.Module:
    """The module that has the audio side: `SoundwaveModel`, or `SoundwaveForCTC` itself."""
    return next(module for module in model.modules() if hasattr(module, "keep_mask"))


@dataclass
class ScoringCollator:
    """A collator whose batches also say which tokens the LLM has to score.

    The numbers are computed here, on the CPU: on the device each would stop a training step until it is known.

    Args:
        collator (`Callable`): makes the batches.
        audio_token_id (`int`): of the model.
    """

    collator: Callable[[list], dict]
    audio_token_id: int

    def __call__(self, rows: list) -> dict:
        batch = self.collator(rows)
        if "input_ids" not in batch or (labels := batch.get("labels")) is None:
            return batch
        # Scores over the vocabulary cost as much as the LLM here: none for the prompt that all rows begin with.
        first = max(int(labels.ne(-100).any(dim=0).int().argmax()) - 1, 0)
        batch["logits_to_keep"] = labels.shape[1] - first
        if len(labels) > 1 and has_clips(batch):
            batch["shared_prefix"] = min(first, shared_prefix(batch, self.audio_token_id))
        return batch


class EpochCallback(TrainerCallback):
    """Tells the sampler and the collator the epoch. After a resume the data loader does not."""

    def __init__(self, trainer: Trainer):
        self.trainer = trainer

    def on_epoch_begin(self, args, state, control, **kwargs):
        epoch = int(state.epoch or 0)
        self.trainer.data_collator.epoch = epoch
        if self.trainer.mixture_sampler is not None:
            self.trainer.mixture_sampler.set_epoch(epoch)


def trainable(rows):
    """A data set of `datasets`, or a dict of several, as the collator takes it; others as they are.

    Clips stay encoded, and values are Python's, also if the data set has the format of an array library.
    """
    if isinstance(rows, dict):
        return {name: trainable(each) for name, each in rows.items()}
    if isinstance(rows, Stream):
        return undecoded(rows.with_format(None))
    if not isinstance(rows, Dataset):
        return rows
    given = rows.format
    if given["type"] not in (None, "custom"):  # the second is a transform, which makes the rows
        columns = {name: given[name] for name in ("columns", "output_all_columns")}
        rows = rows.with_format(None, **columns)
    return undecoded(rows)


def _completed(given: dict) -> dict:
    """The arguments of a trainer, by name, with the data as the collator takes it, and with the collator's processor.

    Raises: `ValueError` if there is no collator, or the model is a name.
    """
    if isinstance(model := given.get("model"), str | os.PathLike):
        raise ValueError(
            f"`model` is the name {os.fspath(model)!r}: load it first, as "
            "`SoundwaveForConditionalGeneration.from_pretrained(name)`."
        )
    if (collator := given.get("data_collator")) is None:
        raise ValueError("There is no `data_collator`, which makes batches: give `SoundwaveDataCollator(processor)`.")
    if given.get("processing_class") is None:
        given["processing_class"] = getattr(collator, "processor", None)
    return given | {name: trainable(given[name]) for name in ("train_dataset", "eval_dataset") if name in given}


class WholeStream(IterableDataset):
    """A stream that accelerate splits by batches, not by shards: all processes then have equally many batches."""

    def __init__(self, rows: Stream):
        self.rows = rows

    def __iter__(self):
        return iter(self.rows)


class SoundwaveTrainerMixin:
    """What the trainers share: the check of what trains, batches of similar length, further metrics in the log.

    Logged: `ctc_loss` and `ce_loss`; `positions_per_second` of audio, trailing silence included; `blank_share` of the
    frames' CTC labels; `targets_per_frame` (CTC labels of the transcripts per frame); `ctc_skipped` (clips with more
    targets than frames can hold). With `ctc_negatives` the frames' labels are those among the candidates. With a
    mixture, `share/TASK` is that task's share of the clips.

    `train_dataset` is any `Dataset` or `IterableDataset` with the collator's columns. For batches of similar length
    (`train_sampling_strategy="group_by_length"`) and for a mixture, lengths come from the column `seconds`, or else
    from the headers of the clips. A stream without a length is read again and again, for a run of `max_steps`; a
    resumed run reads it from the start and skips what it has had. It may also be a `MixtureStream`. A checkpoint then
    holds the positions in each process's streams, and a resumed run continues there.

    Args:
        stage (`Stage`, *optional*): if given, exactly its parameters must train.
        record (`dict[str, str]`, *optional*): texts, by file name, for every checkpoint and the output folder.
        card (`RunCard`, *optional*): what the model card says beside backbones and measurements.
        mixture (`Mixture`, *optional*): shares of tasks in each epoch; a row's task is its `task`, or its `source`.
        max_batch_seconds (`float`, *optional*): most seconds of audio in a batch; the batch size stays the most clips.
    """

    def __init__(
        self,
        *args,
        stage: Stage | None = None,
        record: dict[str, str] | None = None,
        card: RunCard | None = None,
        mixture: Mixture | None = None,
        max_batch_seconds: float | None = None,
        **kwargs,
    ):
        self.stage, self.mixture, self.max_batch_seconds = stage, mixture, max_batch_seconds
        self.record, self.card = record or {}, card or RunCard()
        self.mixture_sampler: MixtureBatchSampler | None = None
        self.stream_sampler: StreamBatchSampler | None = None
        self.tasks: list[str] = []
        self._sums: dict[str, torch.Tensor] = {}
        self._evaluated: dict[str, torch.Tensor] = {}
        super().__init__(**_completed(dict(**inspect.signature(Trainer).bind_partial(*args).arguments, **kwargs)))
        # Dispatching cuts batches of a stream by their first dimension, and tensors of a batch differ in it.
        self.accelerator.dataloader_config.dispatch_batches = False
        if self.args.dataloader_persistent_workers:
            raise ValueError(
                "`dataloader_persistent_workers` is True, and workers that outlive an epoch would repeat its "
                "augmentation: leave it out."
            )
        self._refuse_other_processor()
        if isinstance(check := getattr(self.data_collator, "check", None), RowCheck):
            check_rows(self.train_dataset, check)
        self.add_callback(EpochCallback(self))
        if isinstance(self.args, SoundwaveTrainingArguments):
            self.add_callback(CollapseCallback())
            self.add_callback(PlotCallback())
        if self.model_init is None:
            self._watch(self.model)
        if self.args.label_names is None:
            # transformers would require both, and take a batch of text only for one without labels.
            self.label_names = ["labels" if self.has_llm else "ctc_labels"]

    def _refuse_other_losses(self):
        """Raise `ValueError` if the collator leaves out what the model's loss needs."""
        needed = "ce" if self.has_llm else "ctc"
        if needed not in (losses := getattr(self.data_collator, "losses", (needed,))):
            what = "an LLM, which learns the next token" if self.has_llm else "no LLM, and learns by CTC"
            raise ValueError(
                f"The collator's `losses` are {losses}, and the model ({type(self._base).__name__}) has {what}: give "
                f'"{needed}" too.'
            )

    def _refuse_other_processor(self):
        """Raise `ValueError` if the processor makes other CTC targets, or more token ids, than the model has."""
        config = self.audio_model.config
        expected, vocabulary = config.ctc_text, config.text_config.vocab_size
        for processor in (self.processing_class, getattr(self.data_collator, "processor", None)):
            if (found := getattr(processor, "ctc_text", expected)) != expected:
                raise ValueError(
                    f"`ctc_text` is {found!r} in the processor and {expected!r} in the model's config: give both the "
                    "same, `from_backbones(..., ctc_text=...)`."
                )
            # Ids of batches are not checked on an accelerator: that would make it wait at each step.
            if (size := len(getattr(processor, "tokenizer", None) or ())) > vocabulary:
                raise ValueError(
                    f"The processor's tokenizer has {size} tokens and the model's vocabulary {vocabulary}: use the "
                    "processor that was saved with the model, or call `model.resize_token_embeddings`."
                )

    def call_model_init(self, *args, **kwargs):
        """As in `Trainer`, which makes the model of `model_init` anew for each training."""
        model = super().call_model_init(*args, **kwargs)
        self._watch(model)
        return model

    def _watch(self, model: nn.Module):
        audio_part(model).register_forward_hook(self._watch_audio)

    @property
    def audio_model(self):
        return audio_part(self.model)

    @property
    def has_llm(self) -> bool:
        return hasattr(self.audio_model, "language_model")

    def _watch_audio(self, module, inputs, output):
        audio = getattr(output, "audio_output", output)
        if not module.training or audio is None:
            return
        seconds = audio.num_frames.sum() * module.config.frame_seconds
        frames = torch.arange(audio.ctc_best.shape[1], device=audio.num_frames.device) < audio.num_frames[:, None]
        blanks = (audio.ctc_best == module.config.audio_token_id) & frames
        self._add("positions_per_second", audio.num_positions.sum(), seconds)
        self._add("blank_share", blanks.sum(), audio.num_frames.sum())
        if audio.num_ctc_skipped is not None:
            self._add("ctc_skipped", audio.num_ctc_skipped, 1.0)

    def _add(self, name: str, total, count, sums: dict[str, torch.Tensor] | None = None):
        """Add to the sums of a metric, on the device: nothing waits for it before the next log."""
        sums = self._sums if sums is None else sums
        sums[name] = sums.get(name, 0) + torch.stack([self._on_device(total), self._on_device(count)])

    def _on_device(self, value) -> torch.Tensor:
        device = self.args.device
        dtype = torch.float32 if device.type == "mps" else torch.float64  # Apple GPUs have no float64
        if isinstance(value, torch.Tensor):
            return value.detach().to(device, dtype)
        return torch.full((), value, device=device, dtype=dtype)  # a copy from the CPU would wait for the device

    def _means(self, sums: dict[str, torch.Tensor]) -> dict[str, tuple[float, float]]:
        """Totals and counts of all processes, by name, of what any of them counted.

        All processes must call this together. Their names may differ: one of them may have had rows of text alone.
        """
        names = sorted(sums)
        if self.accelerator.num_processes > 1:
            names = sorted(set(gather_object(names)))
        if not names:
            return {}
        nothing = torch.stack([self._on_device(0.0)] * 2)
        table = torch.stack([sums.get(name, nothing) for name in names])
        if self.accelerator.num_processes > 1:
            table = self.accelerator.reduce(table, "sum")
        return {name: (total, count) for name, (total, count) in zip(names, table.tolist(), strict=True) if count}

    def log(self, logs: dict[str, float], *args, **kwargs):
        if "loss" in logs:
            for name, (total, count) in self._means(self._sums).items():
                logs[name] = int(total) if name == "ctc_skipped" else total / count
            self._sums = {}
        super().log(logs, *args, **kwargs)
        if "loss" in logs:
            self._refuse_diverged(logs["loss"])

    @torch.no_grad()
    def _refuse_diverged(self, loss: float | None = None):
        """Raise `RuntimeError` if a loss, or a weight that trains, is NaN or infinite."""
        if loss is not None and not math.isfinite(loss):
            found = f"the loss is {loss}"
        elif not self._weights_finite():
            loss = next((entry["loss"] for entry in reversed(self.state.log_history) if "loss" in entry), loss)
            found = f"weights are NaN or infinite, and the last logged loss was {loss}"
        else:
            return
        last = last_checkpoint(self.args.output_dir)
        kept = "There is no checkpoint before it" if last is None else f"The last good checkpoint is `{last}`"
        raise RuntimeError(
            f"Step {self.state.global_step}: {found}: the run has diverged, and this state was not saved. "
            f"{kept}. Lower `learning_rate` (it is {self.args.learning_rate:g}), warm it up for longer "
            f"(`warmup_steps`), or lower `max_grad_norm` ({self.args.max_grad_norm:g}), and look at the data of these "
            "steps; then train into a new `output_dir`."
        )

    def _weights_finite(self) -> bool:
        """Whether all weights that train are finite, with a single wait for the device."""
        weights = [weight for weight in self.model.parameters() if weight.requires_grad]
        sharded = any(hasattr(weight, "to_local") for weight in weights)
        finite = [getattr(weight, "to_local", lambda weight=weight: weight)().isfinite().all() for weight in weights]
        finite = torch.stack(finite).all() if finite else torch.tensor(True)
        if sharded and self.accelerator.num_processes > 1:  # each process holds a part
            return not self.accelerator.reduce((~finite).int().to(self.args.device), "sum").item()
        return bool(finite)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False):
        """As in `Trainer`. Raises: `RuntimeError` if weights are NaN or infinite."""
        self._refuse_diverged()
        super().save_model(output_dir, _internal_call)

    def _save(self, output_dir=None, state_dict=None):
        if not self.args.should_save:  # with sharded parameters, `Trainer` calls this in all processes
            return
        destination = output_dir or self.args.output_dir
        refuse_other_adapters(self.model)
        self._refuse_other_kind(destination)
        with atomic_files(destination) as folder:
            self._save_trained(str(folder), state_dict)
            if saved_form(self.model) in ("align", "lora"):
                self._save_beside_adapters(folder, destination, state_dict)
            # This replaces PEFT's card, which would load the adapters onto any model of their width.
            for name, text in {**self.record, "README.md": self._card()}.items():
                (folder / name).write_text(text, encoding="utf-8")

    def _refuse_other_kind(self, folder: str):
        """Raise `FileExistsError` if the folder holds a model with which loading would mix what is saved there."""
        configs = getattr(self.model, "peft_config", {}).values()
        bases = None if saved_form(self.model) == "whole" else {each.base_model_name_or_path for each in configs}
        refuse_other_kind(folder, bases)

    def _save_beside_adapters(self, folder: Path, destination: str, state_dict):
        """Write what adapters need besides their weights. A whole model has it; PEFT's adapter of one needs none."""
        save_encoder_lora(self._base, str(folder), state_dict)
        self._base.config.save_pretrained(folder, names_from=destination)
        # The rest of the generation config is the LLM's.
        config = getattr(self._base, "generation_config", None)
        defaults = {name: getattr(config, name, None) for name in (*DEFAULTS, *POSITION_OPTIONS)}
        if defaults := {name: value for name, value in defaults.items() if value is not None}:
            (folder / GENERATION_CONFIG_NAME).write_text(json.dumps(defaults) + "\n")

    @property
    def _base(self):
        return base_of(self.model)

    def _card(self) -> str:
        kind = "lora" if names_its_base(self.model) else saved_form(self.model)
        return self.card.text(self._base.config, self.state.log_history, kind)

    def create_model_card(self, *args, **kwargs):
        """Write this package's card to the output folder; TRL asks for one at each save."""
        if self.is_world_process_zero():
            with atomic_file(Path(self.args.output_dir, "README.md")) as part:
                part.write_text(self._card(), encoding="utf-8")

    def _save_trained(self, folder: str, state_dict: dict[str, torch.Tensor] | None):
        """Write weights and processor as `Trainer` does."""
        super()._save(folder, state_dict)

    def create_optimizer(self, *args, **kwargs):
        if self.stage is not None:
            check_trainable(self.model, self.stage)
        refuse_lost_weights(self.model, self.audio_model)
        self._refuse_other_kind(self.args.output_dir)  # before the training, too
        return super().create_optimizer(*args, **kwargs)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.stream_sampler is not None:
            self.stream_sampler.take(len(batches))
        for batch in batches:
            task_ids = batch.pop("task_ids", None)
            if task_ids is not None and len(self.tasks) > 1:
                for task_id, task in enumerate(self.tasks):
                    self._add(f"share/{task}", (task_ids == task_id).sum(), len(task_ids))
        return batches, num_items

    def _inputs_of_loss(self, inputs: dict) -> dict:
        """The inputs of a loss: the LLM need not keep keys and values; without one there are no labels but CTC's."""
        if self.has_llm:
            return {**inputs, "use_cache": False}
        return {name: value for name, value in inputs.items() if name != "labels" or "ctc_labels" not in inputs}

    def get_train_dataloader(self):
        """Batches in the order that the arguments ask for. Raises: `ValueError` if there is none."""
        rows = self.train_dataset
        if rows is None or (hasattr(rows, "__len__") and len(rows) == 0):
            what = "missing" if rows is None else f"empty ({type(rows).__name__})"
            raise ValueError(f"`train_dataset` is {what}: there is nothing to train on. Give it rows.")
        self._refuse_other_losses()
        batches = self._make_train_dataloader()
        if hasattr(rows, "__len__") and len(batches) == 0:
            raise ValueError(
                f"{len(rows)} rows make no batch of {self._train_batch_size} in {self.args.world_size} "
                "processes, since the last is dropped (`dataloader_drop_last`): nothing would be trained. Lower "
                "`per_device_train_batch_size`, or give more data."
            )
        return batches

    def _training_collator(self):
        return self.data_collator

    def _make_train_dataloader(self):
        rows, args = self.train_dataset, self.args
        grouped = args.train_sampling_strategy == "group_by_length"
        options = {
            "collate_fn": self._training_collator(),
            "num_workers": args.dataloader_num_workers,
            "pin_memory": args.dataloader_pin_memory,
            "multiprocessing_context": args.dataloader_multiprocessing_context,
            "prefetch_factor": args.dataloader_prefetch_factor,
            "in_order": args.dataloader_in_order,
        }
        if isinstance(rows, MixtureStream):
            self._check_stream(rows)
            self.tasks = rows.tasks
            self.stream_sampler = StreamBatchSampler(rows, args.max_steps * args.gradient_accumulation_steps)
            # Each process has its part of the streams already: `prepare` would split them again.
            return DataLoaderShard(GivenRows(), device=args.device, batch_sampler=self.stream_sampler, **options)
        if not grouped and self.mixture is None and self.max_batch_seconds is None:
            if isinstance(rows, IterableDataset | Stream) and not has_length(rows):
                return self._stream_dataloader(options)
            return self._plain_dataloader()
        if not hasattr(rows, "__len__"):
            given = {"train_sampling_strategy": grouped, "mixture": self.mixture is not None}
            wish = next((name for name, is_given in given.items() if is_given), "max_batch_seconds")
            raise ValueError(
                f"`{wish}` needs the lengths of all rows, and `train_dataset` is a stream ({type(rows).__name__}): "
                "leave it out, give a data set with a length, or a `MixtureStream` of your streams."
            )
        groups = LengthGroups(
            self._train_batch_size,
            group=args.gradient_accumulation_steps * args.world_size,
            pool=50 if grouped else 1,
            max_batch_seconds=self.max_batch_seconds,
            drop_last=args.dataloader_drop_last,
        )
        task_ids = None
        if self.mixture is not None:
            self.tasks, task_ids = number_tasks(rows)
        self.mixture_sampler = MixtureBatchSampler(
            self._seconds(rows), groups, task_ids, self.mixture, order_seed(args)
        )
        return self.accelerator.prepare(
            DataLoader(DrawnRows(rows, task_ids), batch_sampler=self.mixture_sampler, **options)
        )

    def _stream_dataloader(self, options: dict):
        """Batches of a stream without a length, which is read again and again."""
        rows, args = self.train_dataset, self.args
        options = {**options, "batch_size": self._train_batch_size}
        mark = hasattr(self.data_collator, "epoch")
        if not isinstance(rows, Stream):
            return self.accelerator.prepare(DataLoader(RepeatedStream(rows, mark), **options))
        rows = split_dataset_by_node(rows, args.process_index, args.world_size)
        return DataLoaderShard(RepeatedStream(rows, mark), device=args.device, **options)

    def _plain_dataloader(self):
        """The loader of `Trainer`, with our collator for training."""
        collator = self.data_collator
        try:
            self.data_collator = self._training_collator()
            return super().get_train_dataloader()
        finally:
            self.data_collator = collator

    def _seconds(self, rows) -> list[float]:
        """Lengths of rows, from their column or from the headers of their clips."""
        folder = getattr(self.data_collator, "folder", ".")
        if isinstance(rows, Dataset):
            return lengths_of(rows, "the data set", folder)
        return [row_seconds(rows[index], f"row {index} of the data set", folder) for index in range(len(rows))]

    def _check_stream(self, stream: MixtureStream):
        """Raise `ValueError` if the trainer's arguments contradict the stream."""
        args, groups = self.args, stream.groups
        if self.mixture is not None or self.max_batch_seconds is not None:
            raise ValueError("A `MixtureStream` has its own mixture and groups: give them only to the stream.")
        if groups.batch_size != self._train_batch_size:
            raise ValueError(
                f"The stream's batches are of {groups.batch_size} clips and `per_device_train_batch_size` is "
                f"{self._train_batch_size}: give the same number."
            )
        if (stream.rank, stream.world_size) != (args.process_index, args.world_size):
            raise ValueError(
                f"The stream is part {stream.rank} of {stream.world_size} in process {args.process_index} of "
                f"{args.world_size}: give it the whole streams, `rank=arguments.process_index` and "
                "`world_size=arguments.world_size`."
            )
        if args.data_seed not in (None, stream.seed):
            raise ValueError(
                f"`data_seed` is {args.data_seed}, and the stream draws by its own `seed`, {stream.seed}: give it "
                "only to the stream, `MixtureStream(..., seed=...)`."
            )

    # ---- evaluation ----

    def get_eval_dataloader(self, eval_dataset=None):
        """Batches of the rows in their order, without augmentation."""
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(rows, str):
            rows = self.eval_dataset[rows]
        if rows is None:
            raise ValueError("There is nothing to evaluate on: give the trainer an `eval_dataset`.")
        return self._in_order(rows)

    def get_test_dataloader(self, test_dataset):
        return self._in_order(test_dataset)

    def _in_order(self, rows):
        rows = trainable(rows)
        if isinstance(rows, Stream) and self.accelerator.num_processes > 1:
            rows = WholeStream(rows)
        loader = DataLoader(
            rows,
            batch_size=self.args.eval_batch_size,
            collate_fn=evaluation_collator(self.data_collator),
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            multiprocessing_context=self.args.dataloader_multiprocessing_context,
            prefetch_factor=self.args.dataloader_prefetch_factor,
            generator=torch.Generator(),  # the global one belongs to training
        )
        return self.accelerator.prepare(loader)

    def prediction_step(self, model: nn.Module, inputs, prediction_loss_only, ignore_keys=None):
        """As in `Trainer`. Without an LLM the predictions are the CTC labels of the frames, see `_predictions`."""
        with torch.no_grad(), self.compute_loss_context_manager():
            output = model(**self._inputs_of_loss(inputs))
        self._count_losses(output, inputs)
        # A process whose batch has no loss must still join the others in gathering it.
        nothing = torch.full((), math.nan, device=self.args.device)
        loss = nothing if output.loss is None else output.loss.detach().float()
        if prediction_loss_only:
            return (loss, None, None)
        labels = [inputs.get(name) for name in self.label_names]
        if any(label is None for label in labels):
            labels = None
        elif len(labels) == 1:
            labels = labels[0]
        return (loss, self._predictions(output, ignore_keys), labels)

    def _count_losses(self, output, inputs: dict):
        """Add the losses of a batch to the sums of an evaluation."""
        for name, count in (("ce_loss", count_labels(inputs)), ("ctc_loss", count_clips(inputs))):
            if (part := getattr(output, name, None)) is not None:
                count = self._on_device(count)
                # The loss of a batch without labels is NaN, or has no meaning.
                total = torch.where(count > 0, self._on_device(part) * count, 0.0)
                self._add(name, total, count, self._evaluated)

    def _predictions(self, output, ignore_keys: list[str] | None):
        """What `compute_metrics` gets as `predictions`: the LLM's scores, or without an LLM the likeliest CTC label of
        each frame, `(clips, frames)`, padded with -100. (Scores of the CTC head need 450 MB for a clip of 30 s.)
        """
        ignored = {"loss", *(self._base.config.keys_to_ignore_at_inference if ignore_keys is None else ignore_keys)}
        kept = {name: value for name, value in output.items() if name not in ignored}
        if not self.has_llm and ignore_keys is None:
            frames = torch.arange(output.ctc_best.shape[1], device=output.ctc_best.device)
            kept["ctc_best"] = output.ctc_best.masked_fill(frames >= output.num_frames[:, None], -100)
        values = tuple(kept.values())
        return values[0] if len(values) == 1 else values

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ):
        """As in `Trainer`, with the means `eval_ce_loss` over labels and `eval_ctc_loss` over clips of all batches.

        With several processes, clips that fill up the last batch count twice.
        """
        self._evaluated = {}
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        losses = {name: total / count for name, (total, count) in self._means(self._evaluated).items()}
        output.metrics.pop(f"{metric_key_prefix}_loss", None)  # a mean over batches
        if losses:
            weight = self.audio_model.config.ctc_loss_weight if "ce_loss" in losses else 1.0
            losses["loss"] = losses.get("ce_loss", 0.0) + weight * losses.get("ctc_loss", 0.0)
            output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in losses.items()})
        return output

    # ---- checkpoints ----

    def _load_best_model(self):
        best = Path(
            self.args.output_dir, Path(self.state.best_model_checkpoint).name
        )  # the folder may have moved since
        if not best.is_dir():
            raise FileNotFoundError(
                f"The best checkpoint `{best}` no longer exists: its weights cannot be loaded. The last ones are in "
                f"`{last_checkpoint(self.args.output_dir)}`."
            )
        self.state.best_model_checkpoint = str(best)
        if self._loads_itself(best):
            self._load_from_checkpoint(str(best))
        else:
            super()._load_best_model()

    def _loads_itself(self, checkpoint: str | os.PathLike) -> bool:
        """Whether `Trainer` cannot load such a checkpoint: of Stage I, or of transformers' `add_adapter`."""
        return os.path.isfile(os.path.join(checkpoint, TRAINED_FILE)) or has_own_adapter(self.model)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        if not self._loads_itself(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        elif has_own_adapter(self.model):
            load_own_adapter(self.model, resume_from_checkpoint)
        else:
            load_trained(model or self.model, os.path.join(resume_from_checkpoint, TRAINED_FILE))
            if has_encoder_lora(resume_from_checkpoint):
                load_encoder_lora(model or self.model, resume_from_checkpoint)

    def _save_checkpoint(self, model, trial):
        self._refuse_diverged()  # before its folder is made
        with writing_checkpoint(Path(self.args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")):
            super()._save_checkpoint(model, trial)

    def _stream_file(self, checkpoint: str) -> Path:
        return Path(checkpoint, f"stream_state_{self.args.process_index}.json")

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        schedule = getattr(self.lr_scheduler, "scheduler", self.lr_scheduler)
        if checkpoint is not None and isinstance(schedule, LambdaLR):
            # The checkpoint holds the rate of the schedule before more steps stretched it.
            pairs = zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
            rates = [highest * share(schedule.last_epoch) for highest, share in pairs]
            for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
            schedule.load_state_dict({**schedule.state_dict(), "_last_lr": rates})
        if checkpoint is None or self.stream_sampler is None:
            return
        if not (path := self._stream_file(checkpoint)).is_file():
            raise FileNotFoundError(
                f"There is no `{path}`: the run did not read streams, or had fewer processes. Continue with the "
                "same data and number of processes."
            )
        num_passed = self.state.global_step * self.args.gradient_accumulation_steps
        self.stream_sampler.load_state_dict(json.loads(path.read_text(encoding="utf-8")), num_passed)

    def _save_rng_state(self, output_dir):
        super()._save_rng_state(output_dir)
        if self.stream_sampler is not None:
            state = json.dumps(self.stream_sampler.state_dict())
            self._stream_file(output_dir).write_text(state, encoding="utf-8")
        # The trainer's state, written next, marks a complete checkpoint: all processes must have written theirs.
        self.accelerator.wait_for_everyone()


class SoundwaveTrainer(SoundwaveTrainerMixin, Trainer):
    """Stages I and II: CTC over the LLM's vocabulary, alone or beside the next-token loss (paper section 3).

    Both losses are means over the whole accumulated batch of all processes: next-token over labels, CTC over clips.
    For another loss, override `compute_loss` in a class of your own: return a mean over the batch, add one to what
    `super().compute_loss` returns, or set `loss_is_scaled_for_ga = True` if yours is a part of the accumulated mean.
    Evaluations report the model's own losses.

    Saved are adapter, head and what else trained (Stage I), the whole model, or what PEFT saves; see `saved_form`.

    Args:
        stage (`Stage`, *optional*): a row of `STAGES`; if given, exactly its parameters must train.
        args (`TrainingArguments`): best [`SoundwaveTrainingArguments`].
        others: as in `Trainer`. `data_collator` says which columns the rows need.

    Raises: `ValueError` in `train` if other parameters train than the stage's, or would not be saved; at once for
    options of another loss (`label_smoothing_factor`, `compute_loss_func`, `average_tokens_across_devices=False` with
    several processes).

    Example:

    ```python
    >>> from soundwave_hf import STAGES, SoundwaveDataCollator, SoundwaveForCTC, SoundwaveProcessor
    >>> from soundwave_hf import SoundwaveTrainer, SoundwaveTrainingArguments

    >>> trainer = SoundwaveTrainer(
    ...     model=SoundwaveForCTC.from_backbones(encoder, llm),
    ...     args=SoundwaveTrainingArguments("trained", max_steps=1, report_to="none", disable_tqdm=True),
    ...     train_dataset=[{"row": 0, "audio": "speech.wav", "text": "what the clip says"}],
    ...     data_collator=SoundwaveDataCollator(SoundwaveProcessor.from_backbones(encoder, llm), ".", ("ctc",)),
    ...     stage=STAGES["align"],
    ... )
    >>> trainer.train().global_step
    {...}
    1
    >>> trainer.save_model()  # what trained, for `from_backbones(encoder, llm, adapter="trained")`
    ```
    """

    # So that a `compute_loss` of your own may return a mean over its batch, and may add one to ours.
    loss_is_scaled_for_ga = False

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._refuse_other_loss()

    def _refuse_other_loss(self):
        """Raise `ValueError` for options that change the loss in ways that are not computed here."""
        args = self.args
        smoothing = args.label_smoothing_factor
        if smoothing:
            raise ValueError(
                f"`label_smoothing_factor` is {smoothing}, and `SoundwaveTrainer` computes its losses without it: "
                "leave it out."
            )
        if self.compute_loss_func is not None:
            raise ValueError(
                f"`compute_loss_func` is {self.compute_loss_func!r}, and `SoundwaveTrainer` computes the CTC loss and "
                "the next-token loss itself: leave it out, or override `compute_loss` in a class of your own."
            )
        if self.has_llm and args.world_size > 1 and not args.average_tokens_across_devices:
            raise ValueError(
                f"`average_tokens_across_devices` is False with {args.world_size} processes, and the next-token loss "
                "is a mean over the tokens of all processes: leave it out, or set it to True."
            )

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        clips = torch.zeros((), dtype=torch.long, device=device) + sum(map(count_clips, batches))
        num_clips = self.accelerator.gather(clips).sum()
        self._num_ctc_clips, self._has_ctc = num_clips.clamp(min=1), self._on_device(num_clips > 0)
        return batches, num_items

    def _training_collator(self):
        if not self.has_llm:
            return self.data_collator
        return ScoringCollator(self.data_collator, self.audio_model.config.audio_token_id)

    def _shares_prefix(self) -> bool:
        """Whether the LLM may read the start of all rows once, and no prompt that PEFT learns comes before it."""
        configs = getattr(self.model, "peft_config", {}).values()
        return self.audio_model.shares_prefix() and not any(each.is_prompt_learning for each in configs)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs = self._inputs_of_loss(inputs)
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs)
        if self.has_llm and not self._shares_prefix():  # known only once the model is sharded
            inputs.pop("shared_prefix", None)
        output = model(**inputs, num_items_in_batch=num_items_in_batch, num_ctc_clips=self._num_ctc_clips)
        # The last step of an epoch may have fewer batches.
        batches = 1 / self.current_gradient_accumulation_steps / self.accelerator.num_processes
        if output.ce_loss is not None:
            self._add("ce_loss", output.ce_loss, batches)
        # A batch of text alone counts where another batch of the step, in any process, has CTC.
        self._add("ctc_loss", 0.0 if output.ctc_loss is None else output.ctc_loss, batches * self._has_ctc)
        if "ctc_labels" in inputs:
            self._add("targets_per_frame", inputs["ctc_labels"].ne(-100).sum(), output.num_frames.sum())
        # Data parallel training averages the gradients of the processes; each holds its part of one mean. So does each
        # batch of a step, by whose number `Trainer` then divides.
        parts = 1 if self.loss_is_scaled_for_ga else self.current_gradient_accumulation_steps
        loss = output.loss * self.accelerator.num_processes * parts
        return (loss, output) if return_outputs else loss

    def _save_trained(self, folder, state_dict):
        if saved_form(self.model) != "align":
            super()._save_trained(folder, state_dict)
            return
        # With sharded parameters, the whole ones are in the state that `Trainer` gathered.
        whole = dict(self.model.named_parameters()) if state_dict is None else state_dict
        trained = {name: whole[name].detach().cpu().contiguous() for name in names_of_stage_one(self.model)}
        save_file(trained, os.path.join(folder, TRAINED_FILE), metadata={"format": "pt"})
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        with checked_by_caller():  # a checkpoint of this run, possibly of an older version
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self):
        with checked_by_caller():
            super()._load_best_model()


__all__ = ["SoundwaveTrainer", "SoundwaveTrainerMixin"]
