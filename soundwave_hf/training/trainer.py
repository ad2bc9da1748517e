"""Trainers of the three stages: losses normalised over the whole accumulated batch, each logged apart."""

import json
import math
import os
from pathlib import Path

import torch
from accelerate.data_loader import DataLoaderShard
from datasets import Dataset
from datasets import IterableDataset as Stream
from safetensors.torch import save_file
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import SFTTrainer

from ..atomic import atomic_file, atomic_files
from ..data.rows import RowCheck
from ..data.sources import check_rows, lengths_of, undecoded
from ..modeling.backbones_soundwave import TRAINED_FILE, load_trained
from ..modeling.trained_fields_soundwave import checked_by_caller
from .arguments import SoundwaveTrainingArguments
from .checkpoints import last_checkpoint, writing_checkpoint
from .encoder_cache import FRAMES_PER_SECOND
from .evaluate_during import evaluation_collator
from .mixture import (
    DrawnRows,
    GivenRows,
    LengthGroups,
    Mixture,
    MixtureBatchSampler,
    MixtureStream,
    StreamBatchSampler,
    number_tasks,
)
from .run_card import RunCard
from .stages import Stage, check_trainable
from .watch import CollapseCallback, PlotCallback


def shared_prefix(inputs: dict[str, torch.Tensor], audio_token_id: int) -> int:
    """How many tokens of text all rows of a batch begin with."""
    ids = inputs["input_ids"]
    same = (ids == ids[:1]).all(dim=0) & (ids[0] != audio_token_id) & inputs["attention_mask"].bool().all(dim=0)
    return int(same.int().cumprod(dim=0).sum())


def count_clips(inputs: dict[str, torch.Tensor]) -> int:
    """Clips of a batch that have a transcript."""
    if "ctc_labels" not in inputs:
        return 0
    return int(inputs["ctc_mask"].sum()) if "ctc_mask" in inputs else len(inputs["ctc_labels"])


def has_clips(inputs: dict[str, torch.Tensor]) -> bool:
    """Whether a batch holds clips, or is of text alone."""
    return "input_features" in inputs or "encoder_states" in inputs


def count_labels(inputs: dict[str, torch.Tensor]) -> int:
    """Tokens of a batch that are to be foretold."""
    return int(inputs["labels"][:, 1:].ne(-100).sum()) if "labels" in inputs else 0


class EpochCallback(TrainerCallback):
    """Tells sampler and collator the epoch, also after a resume, when the data loader no longer does."""

    def __init__(self, trainer: Trainer):
        self.trainer = trainer

    def on_epoch_begin(self, args, state, control, **kwargs):
        epoch = int(state.epoch or 0)
        self.trainer.data_collator.epoch = epoch
        if self.trainer.mixture_sampler is not None:
            self.trainer.mixture_sampler.set_epoch(epoch)


def trainable(rows):
    """A data set of the library with its clips undecoded, as the collator takes them; others as they are."""
    return undecoded(rows) if isinstance(rows, Dataset | Stream) else rows


class SoundwaveTrainerMixin:
    """What the stages share: the table's check, batches of like length, and what is logged beside the loss.

    Logged: `ctc_loss` and `ce_loss` where taken, `positions_per_second` (of all that is heard, trailing silence too),
    `blank_share` (of the frames' CTC labels), `targets_per_frame` (CTC labels of the transcripts, for each frame) and
    `ctc_skipped` (clips whose targets do not fit into their frames). With `ctc_negatives` the frames' labels are those
    over the candidates. With a mixture, `share/TASK` of the clips.

    `train_dataset` is any `Dataset` or `IterableDataset` with the collator's columns; its clips are decoded by the
    collator. Where batches are of like length (`train_sampling_strategy="group_by_length"`) or a mixture's, lengths
    come from the column `seconds`, or else from the clips' headers.

    `train_dataset` may be a `MixtureStream`, for a run of `max_steps`. A checkpoint then holds where the streams of
    each process stood, and a resumed run reads on from there.

    Args:
        stage (`Stage`, *optional*): where given, exactly its parameters must train.
        record (`dict[str, str]`, *optional*): files, by name, that every checkpoint and the output folder hold too.
        card (`RunCard`, *optional*): what the model card says beside the backbones and what was measured.
        mixture (`Mixture`, *optional*): shares of tasks, epoch by epoch; a row's task is its `task`, or its `source`.
        max_batch_seconds (`float`, *optional*): audio of a batch; it then has at most the arguments' batch size.
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
        for name in ("train_dataset", "eval_dataset"):
            if (given := kwargs.get(name)) is not None:
                each = {key: trainable(rows) for key, rows in given.items()} if isinstance(given, dict) else None
                kwargs[name] = trainable(given) if each is None else each
        super().__init__(*args, **kwargs)
        if isinstance(self.train_dataset, Stream):
            # Dispatched, batches would be cut by their first dimension, of which a row may have another number.
            self.accelerator.dataloader_config.dispatch_batches = False
        self._refuse_other_ctc_text()
        if isinstance(check := getattr(self.data_collator, "check", None), RowCheck):
            check_rows(self.train_dataset, check)
        self.add_callback(EpochCallback(self))
        if isinstance(self.args, SoundwaveTrainingArguments):
            self.add_callback(CollapseCallback())
            self.add_callback(PlotCallback())
        self.audio_model.register_forward_hook(self._watch_audio)
        if self.args.label_names is None:
            # The library would ask for both, and take a batch of plain text for one without labels.
            self.label_names = ["labels" if hasattr(self.audio_model, "language_model") else "ctc_labels"]

    def _refuse_other_ctc_text(self):
        """Raise `ValueError` where the processor makes other targets than the model's config says."""
        expected = self.audio_model.config.ctc_text
        for processor in (self.processing_class, getattr(self.data_collator, "processor", None)):
            if (found := getattr(processor, "ctc_text", expected)) != expected:
                raise ValueError(
                    f"`ctc_text` is {found!r} in the processor and {expected!r} in the model's config: give both the "
                    "same, `from_backbones(..., ctc_text=...)`."
                )

    @property
    def audio_model(self):
        """The module whose output tells positions: `SoundwaveModel`, or `SoundwaveForCTC` itself."""
        return next(module for module in self.model.modules() if hasattr(module, "keep_mask"))

    def _watch_audio(self, module, inputs, output):
        audio = getattr(output, "audio_output", output)
        if not module.training or audio is None:
            return
        seconds = audio.num_frames.sum() * module.config.stack_factor / FRAMES_PER_SECOND
        frames = torch.arange(audio.ctc_best.shape[1], device=audio.num_frames.device) < audio.num_frames[:, None]
        blanks = (audio.ctc_best == module.config.audio_token_id) & frames
        self._add("positions_per_second", audio.num_positions.sum(), seconds)
        self._add("blank_share", blanks.sum(), audio.num_frames.sum())
        if audio.num_ctc_skipped is not None:
            self._add("ctc_skipped", audio.num_ctc_skipped, 1.0)

    def _add(self, name: str, total, count, sums: dict[str, torch.Tensor] | None = None):
        sums = self._sums if sums is None else sums
        pair = torch.stack([torch.as_tensor(total).detach().double().cpu(), torch.as_tensor(count).double().cpu()])
        sums[name] = sums.get(name, 0) + pair

    def _means(self, sums: dict[str, torch.Tensor]) -> dict[str, tuple[float, float]]:
        """Totals and counts of all processes, by name."""
        names = sorted(sums)
        table = torch.stack([sums[name] for name in names])
        if self.accelerator.num_processes > 1:
            table = self.accelerator.reduce(table.to(self.args.device), "sum")
        return dict(zip(names, table.tolist(), strict=True))

    def log(self, logs: dict[str, float], *args, **kwargs):
        if "loss" in logs and self._sums:
            for name, (total, count) in self._means(self._sums).items():
                logs[name] = int(total) if name == "ctc_skipped" else total / count
            self._sums = {}
        super().log(logs, *args, **kwargs)
        if "loss" in logs:
            self._refuse_diverged(logs["loss"])

    @torch.no_grad()
    def _refuse_diverged(self, loss: float | None = None):
        """Raise `RuntimeError` where a loss, or a weight that trains, is no finite number."""
        if loss is None or math.isfinite(loss):
            if not self._weights_finite():
                loss = next((entry["loss"] for entry in reversed(self.state.log_history) if "loss" in entry), loss)
                found = f"weights are no numbers any more, and the last logged loss was {loss}"
            else:
                return
        else:
            found = f"the loss is {loss}"
        last = last_checkpoint(self.args.output_dir)
        kept = "There is no checkpoint before it" if last is None else f"The last good checkpoint is `{last}`"
        raise RuntimeError(
            f"Step {self.state.global_step}: {found}: the run has diverged, and nothing of it was saved since. "
            f"{kept}. Lower `learning_rate` (it is {self.args.learning_rate:g}), warm it up for longer "
            f"(`warmup_steps`), or lower `max_grad_norm` ({self.args.max_grad_norm:g}), and look at the data of these "
            "steps; then train into a new `output_dir`."
        )

    def _weights_finite(self) -> bool:
        """Whether all that trains is finite, with one wait for the device."""
        weights = [weight for weight in self.model.parameters() if weight.requires_grad]
        sharded = any(hasattr(weight, "to_local") for weight in weights)
        finite = [getattr(weight, "to_local", lambda weight=weight: weight)().isfinite().all() for weight in weights]
        finite = torch.stack(finite).all() if finite else torch.tensor(True)
        if sharded and self.accelerator.num_processes > 1:  # each process holds a part
            return not self.accelerator.reduce((~finite).int().to(self.args.device), "sum").item()
        return bool(finite)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False):
        """As in the library; weights that are no numbers are refused."""
        self._refuse_diverged()
        super().save_model(output_dir, _internal_call)

    def _save(self, output_dir=None, state_dict=None):
        if not self.args.should_save:  # where parameters are sharded, the library calls all processes
            return
        destination = output_dir or self.args.output_dir
        with atomic_files(destination) as folder:
            self._save_trained(str(folder), state_dict)
            self._base.config.save_pretrained(folder, names_from=destination)  # PEFT writes none
            # In the place of PEFT's, which would have the adapters loaded onto any model of their width.
            for name, text in {**self.record, "README.md": self._card()}.items():
                (folder / name).write_text(text, encoding="utf-8")

    @property
    def _base(self):
        """The model without PEFT's wrapper."""
        return self.model.get_base_model() if hasattr(self.model, "peft_config") else self.model

    def _card(self) -> str:
        return self.card.text(self._base.config, self.state.log_history, has_lora=hasattr(self.model, "peft_config"))

    def create_model_card(self, *args, **kwargs):
        """Write this package's card to the output folder; TRL asks for one at each save."""
        if self.is_world_process_zero():
            with atomic_file(Path(self.args.output_dir, "README.md")) as part:
                part.write_text(self._card(), encoding="utf-8")

    def _save_trained(self, folder: str, state_dict: dict[str, torch.Tensor] | None):
        """Write weights and processor as the library does."""
        super()._save(folder, state_dict)

    def create_optimizer(self, *args, **kwargs):
        if self.stage is not None:
            check_trainable(self.model, self.stage)
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

    def get_train_dataloader(self):
        """Batches in the order of the arguments. Raises: `ValueError` where there is none."""
        batches = self._make_train_dataloader()
        if hasattr(self.train_dataset, "__len__") and len(batches) == 0:
            raise ValueError(
                f"{len(self.train_dataset)} rows make no batch of {self._train_batch_size} in {self.args.world_size} "
                "processes where the last is dropped (`dataloader_drop_last`): nothing would be trained. Lower "
                "`per_device_train_batch_size`, or give more data."
            )
        return batches

    def _make_train_dataloader(self):
        rows, args = self.train_dataset, self.args
        grouped = args.train_sampling_strategy == "group_by_length"
        options = {
            "collate_fn": self.data_collator,
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
            # Processes share the streams already: the accelerator would split them once more.
            return DataLoaderShard(GivenRows(), device=args.device, batch_sampler=self.stream_sampler, **options)
        if not grouped and self.mixture is None and self.max_batch_seconds is None:
            return super().get_train_dataloader() if not hasattr(rows, "__len__") or len(rows) else []
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
        self.mixture_sampler = MixtureBatchSampler(self._seconds(rows), groups, task_ids, self.mixture, args.seed)
        return self.accelerator.prepare(
            DataLoader(DrawnRows(rows, task_ids), batch_sampler=self.mixture_sampler, **options)
        )

    def _seconds(self, rows) -> list[float]:
        """Lengths of rows: of their column, or of their clips' headers."""
        if isinstance(rows, Dataset):
            return lengths_of(rows, "the data set", getattr(self.data_collator, "folder", "."))
        return [row["seconds"] for row in rows]

    def _check_stream(self, stream: MixtureStream):
        """Raise `ValueError` where trainer and stream do not say the same."""
        args, groups = self.args, stream.groups
        if self.mixture is not None or self.max_batch_seconds is not None:
            raise ValueError("A `MixtureStream` has a mixture and groups of its own: give them to it alone.")
        if groups.batch_size != self._train_batch_size:
            raise ValueError(
                f"The stream's batches are of {groups.batch_size} clips and `per_device_train_batch_size` is "
                f"{self._train_batch_size}: give the same number."
            )
        if (stream.rank, stream.world_size) != (args.process_index, args.world_size):
            raise ValueError(
                f"The stream is part {stream.rank} of {stream.world_size} in process {args.process_index} of "
                f"{args.world_size}: give it whole streams, `rank=arguments.process_index` and "
                "`world_size=arguments.world_size`."
            )

    # ---- evaluation ----

    def get_eval_dataloader(self, eval_dataset=None):
        """Batches of the rows in their order, of a collator that augments nothing."""
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(rows, str):
            rows = self.eval_dataset[rows]
        if rows is None:
            raise ValueError("There is nothing to evaluate on: give the trainer an `eval_dataset`.")
        return self._in_order(rows)

    def get_test_dataloader(self, test_dataset):
        return self._in_order(test_dataset)

    def _in_order(self, rows):
        loader = DataLoader(
            rows,
            batch_size=self.args.eval_batch_size,
            collate_fn=evaluation_collator(self.data_collator),
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            multiprocessing_context=self.args.dataloader_multiprocessing_context,
            prefetch_factor=self.args.dataloader_prefetch_factor,
            generator=torch.Generator(),  # the global one's numbers are those of training
        )
        return self.accelerator.prepare(loader)

    def prediction_step(self, model: nn.Module, inputs, prediction_loss_only, ignore_keys=None):
        if not prediction_loss_only:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        with torch.no_grad(), self.compute_loss_context_manager():
            output = model(**inputs)
        for name, count in (("ce_loss", count_labels(inputs)), ("ctc_loss", count_clips(inputs))):
            if (part := getattr(output, name, None)) is not None and count:
                self._add(name, part.double() * count, count, self._evaluated)
        return (None if output.loss is None else output.loss.detach(), None, None)

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ):
        """As in the library, with `eval_ce_loss` of a label and `eval_ctc_loss` of a clip, whatever the batches.

        With several processes a clip that fills up the last batch counts twice there.
        """
        self._evaluated = {}
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        if self._evaluated:
            losses = {name: total / count for name, (total, count) in self._means(self._evaluated).items()}
            weight = self.audio_model.config.ctc_loss_weight if "ce_loss" in losses else 1.0
            losses["loss"] = losses.get("ce_loss", 0.0) + weight * losses.get("ctc_loss", 0.0)
            output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in losses.items()})
        return output

    # ---- checkpoints ----

    def _load_best_model(self):
        best = Path(self.args.output_dir, Path(self.state.best_model_checkpoint).name)  # the folder may have moved
        if not best.is_dir():
            raise FileNotFoundError(
                f"The best checkpoint, `{best}`, is gone: its weights cannot be loaded. The last ones are in "
                f"`{last_checkpoint(self.args.output_dir)}`."
            )
        self.state.best_model_checkpoint = str(best)
        super()._load_best_model()

    def _save_checkpoint(self, model, trial):
        self._refuse_diverged()  # before a place is made for it
        with writing_checkpoint(Path(self.args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")):
            super()._save_checkpoint(model, trial)

    def _stream_file(self, checkpoint: str) -> Path:
        return Path(checkpoint, f"stream_state_{self.args.process_index}.json")

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        schedule = getattr(self.lr_scheduler, "scheduler", self.lr_scheduler)
        if checkpoint is not None and isinstance(schedule, LambdaLR):
            # The rate in the checkpoint is that of the schedule as it was, which more steps stretch.
            pairs = zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
            rates = [highest * share(schedule.last_epoch) for highest, share in pairs]
            for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
            schedule.load_state_dict({**schedule.state_dict(), "_last_lr": rates})
        if checkpoint is None or self.stream_sampler is None:
            return
        if not (path := self._stream_file(checkpoint)).is_file():
            raise FileNotFoundError(
                f"There is no `{path}`: the run did not read streams, or had fewer processes. Go on with the data and "
                "the number of processes that it had."
            )
        num_passed = self.state.global_step * self.args.gradient_accumulation_steps
        self.stream_sampler.load_state_dict(json.loads(path.read_text(encoding="utf-8")), num_passed)

    def _save_rng_state(self, output_dir):
        super()._save_rng_state(output_dir)
        if self.stream_sampler is not None:
            state = json.dumps(self.stream_sampler.state_dict())
            self._stream_file(output_dir).write_text(state, encoding="utf-8")
        # The trainer's state, by which a checkpoint is known to be whole, waits for what all processes write.
        self.accelerator.wait_for_everyone()


class SoundwaveTrainer(SoundwaveTrainerMixin, Trainer):
    """Stages I and II: CTC over the LLM's vocabulary, alone or beside the next-token loss (paper section 3).

    Both losses are means over the whole accumulated batch of all processes: next-token over labels, CTC over clips.

    Args:
        stage (`Stage`, *optional*): a row of `STAGES`; where given, exactly its parameters must train.
        args, kwargs: as in `Trainer`; `args` best of [`SoundwaveTrainingArguments`]. Rows are the collator's.

    Raises: `ValueError` in `train` where what trains is not what the stage says.

    Example:

    ```python
    >>> from soundwave_hf import STAGES, SoundwaveCollator, SoundwaveForCTC, SoundwaveProcessor
    >>> from soundwave_hf import SoundwaveTrainer, SoundwaveTrainingArguments

    >>> trainer = SoundwaveTrainer(
    ...     model=SoundwaveForCTC.from_backbones(encoder, llm),
    ...     args=SoundwaveTrainingArguments("trained", max_steps=1, report_to="none", disable_tqdm=True),
    ...     train_dataset=[{"row": 0, "audio": "speech.wav", "text": "what the clip says"}],
    ...     data_collator=SoundwaveCollator(SoundwaveProcessor.from_backbones(encoder, llm), ".", ("ctc",)),
    ...     stage=STAGES["align"],
    ... )
    >>> trainer.train().global_step
    {...}
    1
    >>> trainer.save_model()  # what trained, for `from_backbones(encoder, llm, adapter="trained")`
    ```
    """

    loss_is_scaled_for_ga = True

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        clips = torch.tensor(sum(map(count_clips, batches)), device=device)
        self._num_ctc_clips = self.accelerator.gather(clips).sum().clamp(min=1)
        self._takes_ctc = any("ctc_labels" in batch for batch in batches)
        return batches, num_items

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs)
        if not hasattr(self.audio_model, "language_model"):  # the labels are `ctc_labels` by another name
            inputs = {name: value for name, value in inputs.items() if name != "labels" or "ctc_labels" not in inputs}
        elif (labels := inputs.get("labels")) is not None:
            # Scores over the vocabulary cost as much as the LLM here: none for the prompt that all rows begin with.
            first = max(int(labels.ne(-100).any(dim=0).int().argmax()) - 1, 0)
            inputs = {**inputs, "logits_to_keep": labels.shape[1] - first, "use_cache": False}
            audio_model = self.audio_model
            if len(labels) > 1 and has_clips(inputs) and audio_model.shares_prefix():
                inputs["shared_prefix"] = min(first, shared_prefix(inputs, audio_model.config.audio_token_id))
        output = model(**inputs, num_items_in_batch=num_items_in_batch, num_ctc_clips=self._num_ctc_clips)
        # An epoch's last step may have fewer batches than the others.
        batches = 1 / self.current_gradient_accumulation_steps / self.accelerator.num_processes
        for name in ("ce_loss", "ctc_loss"):
            if (part := getattr(output, name)) is not None:
                self._add(name, part.detach(), batches)
            elif name == "ctc_loss" and self._takes_ctc:  # the mean of the step is that of its other batches
                self._add(name, 0.0, batches)
        if "ctc_labels" in inputs:
            self._add("targets_per_frame", inputs["ctc_labels"].ne(-100).sum(), output.num_frames.sum())
        # Data parallel training averages gradients, and each process holds its share of one mean.
        loss = output.loss * self.accelerator.num_processes
        return (loss, output) if return_outputs else loss

    def _save_trained(self, folder, state_dict):
        if hasattr(self.model, "peft_config"):
            super()._save_trained(folder, state_dict)
            return
        # The frozen parts are on the hub already: a checkpoint holds what trained.
        # Where parameters are sharded, whole ones are in the state that the library gathered.
        whole = dict(self.model.named_parameters()) if state_dict is None else state_dict
        names = [name for name, parameter in self.model.named_parameters() if parameter.requires_grad]
        trained = {name: whole[name].detach().cpu().contiguous() for name in names}
        save_file(trained, os.path.join(folder, TRAINED_FILE), metadata={"format": "pt"})
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        trained = os.path.join(resume_from_checkpoint, TRAINED_FILE)
        if os.path.isfile(trained):
            load_trained(model or self.model, trained)
        else:
            with checked_by_caller():  # a checkpoint of this run, maybe one of an older version
                super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self):
        # The library knows whole models and PEFT's.
        if os.path.isfile(os.path.join(self.state.best_model_checkpoint, TRAINED_FILE)):
            self._load_from_checkpoint(self.state.best_model_checkpoint)
        else:
            with checked_by_caller():
                super()._load_best_model()


class SoundwaveSFTTrainer(SoundwaveTrainerMixin, SFTTrainer):
    r"""Stage III: TRL's supervised fine-tuning, its loss untouched; arguments as in [`SoundwaveTrainer`].

    Example:

    ```python
    >>> from datasets import Dataset
    >>> from peft import LoraConfig, get_peft_model
    >>> from soundwave_hf import SoundwaveCollator, SoundwaveForConditionalGeneration, SoundwaveProcessor
    >>> from soundwave_hf import SoundwaveSFTTrainer, SoundwaveTrainingArguments

    >>> joined = SoundwaveForConditionalGeneration.from_backbones(encoder, llm)
    >>> lora = LoraConfig(target_modules=r".*language_model.*\.(q|v)_proj")
    >>> row = {"row": 0, "audio": "speech.wav", "text": "hi", "question": "Who speaks?", "answer": "A guest."}
    >>> trainer = SoundwaveSFTTrainer(
    ...     model=get_peft_model(joined, lora),
    ...     args=SoundwaveTrainingArguments("tuned", max_steps=1, report_to="none", disable_tqdm=True),
    ...     train_dataset=Dataset.from_list([row]),
    ...     data_collator=SoundwaveCollator(SoundwaveProcessor.from_backbones(encoder, llm), ".", ("ce",)),
    ...     processing_class=SoundwaveProcessor.from_backbones(encoder, llm),
    ... )
    >>> trainer.train().global_step
    {...}
    1
    ```
    """

    def __init__(self, *args, **kwargs):
        rows = kwargs.get("train_dataset")
        if not isinstance(rows, MixtureStream):
            super().__init__(*args, **kwargs)
            return
        # TRL takes what `datasets` itself makes, looks at the columns of its first row, and prepares nothing here.
        super().__init__(*args, **{**kwargs, "train_dataset": next(iter(rows.streams.values()))})
        self.train_dataset = rows


__all__ = ["SoundwaveSFTTrainer", "SoundwaveTrainer"]
