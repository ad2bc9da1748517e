"""Trainers of the three stages: losses normalised over the whole accumulated batch, each logged apart."""

import os

import torch
from safetensors.torch import save_file
from transformers import Trainer, TrainerCallback
from trl import SFTTrainer

from ..modeling.backbones_soundwave import TRAINED_FILE, load_trained
from .sampler import LengthGroupedSampler
from .stages import Stage, check_trainable


AUDIO_FRAMES_PER_SECOND = 50  # of a Whisper encoder


def shared_prefix(inputs: dict[str, torch.Tensor], audio_token_id: int) -> int:
    """How many tokens of text all rows of a batch begin with."""
    ids = inputs["input_ids"]
    same = (ids == ids[:1]).all(dim=0) & (ids[0] != audio_token_id) & inputs["attention_mask"].bool().all(dim=0)
    return int(same.int().cumprod(dim=0).sum())


class EpochCallback(TrainerCallback):
    """Tells sampler and collator the epoch, also after a resume, when the data loader no longer does."""

    def __init__(self, trainer: Trainer):
        self.trainer = trainer

    def on_epoch_begin(self, args, state, control, **kwargs):
        epoch = int(state.epoch or 0)
        self.trainer.data_collator.epoch = epoch
        if self.trainer.length_sampler is not None:
            self.trainer.length_sampler.set_epoch(epoch)


class SoundwaveTrainerMixin:
    """What the stages share: the table's check, batches of like length, and what is logged beside the loss.

    Logged: `ctc_loss` and `ce_loss` where taken, `positions_per_second` (of all that is heard, trailing silence too),
    `blank_share` (of the frames' CTC labels) and `ctc_skipped` (clips whose targets do not fit into their frames).
    With `ctc_negatives` the labels are those over the candidates.

    Args: stage (`Stage`, *optional*): where given, exactly its parameters must train.
    """

    def __init__(self, *args, stage: Stage | None = None, **kwargs):
        self.stage = stage
        self.length_sampler = None
        self._sums: dict[str, torch.Tensor] = {}
        super().__init__(*args, **kwargs)
        self.add_callback(EpochCallback(self))
        self._audio_model().register_forward_hook(self._watch_audio)

    def _audio_model(self):
        """The module whose output tells positions: `SoundwaveModel`, or `SoundwaveForCTC` itself."""
        return next(module for module in self.model.modules() if hasattr(module, "keep_mask"))

    def _watch_audio(self, module, inputs, output):
        audio = getattr(output, "audio_output", output)
        if not module.training or audio is None:
            return
        seconds = audio.num_frames.sum() * module.config.stack_factor / AUDIO_FRAMES_PER_SECOND
        frames = torch.arange(audio.ctc_best.shape[1], device=audio.num_frames.device) < audio.num_frames[:, None]
        blanks = (audio.ctc_best == module.config.audio_token_id) & frames
        self._add("positions_per_second", audio.num_positions.sum(), seconds)
        self._add("blank_share", blanks.sum(), audio.num_frames.sum())
        if audio.num_ctc_skipped is not None:
            self._add("ctc_skipped", audio.num_ctc_skipped, 1.0)

    def _add(self, name: str, total, count):
        pair = torch.stack([torch.as_tensor(total).detach().double().cpu(), torch.as_tensor(count).double().cpu()])
        self._sums[name] = self._sums.get(name, 0) + pair

    def log(self, logs: dict[str, float], *args, **kwargs):
        if "loss" in logs and self._sums:
            names = sorted(self._sums)
            sums = torch.stack([self._sums[name] for name in names])
            if self.accelerator.num_processes > 1:
                sums = self.accelerator.reduce(sums.to(self.args.device), "sum")
            for name, (total, count) in zip(names, sums.tolist(), strict=True):
                logs[name] = int(total) if name == "ctc_skipped" else total / count
            self._sums = {}
        super().log(logs, *args, **kwargs)

    def create_optimizer(self, *args, **kwargs):
        if self.stage is not None:
            check_trainable(self.model, self.stage)
        return super().create_optimizer(*args, **kwargs)

    def _get_train_sampler(self, train_dataset=None):
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        rows = self.train_dataset if train_dataset is None else train_dataset
        self.length_sampler = LengthGroupedSampler(
            list(rows["seconds"]), self.args.train_batch_size * self.args.gradient_accumulation_steps, self.args.seed
        )
        return self.length_sampler


class SoundwaveTrainer(SoundwaveTrainerMixin, Trainer):
    """Stages I and II: CTC over the LLM's vocabulary, alone or beside the next-token loss (paper section 3).

    Both losses are means over the whole accumulated batch of all processes: next-token over labels, CTC over clips.

    Args:
        stage (`Stage`, *optional*): a row of `STAGES`; where given, exactly its parameters must train.
        args, kwargs: as in `Trainer`. Rows are the collator's (`SoundwaveCollator`): `remove_unused_columns=False`.

    Raises: `ValueError` in `train` where what trains is not what the stage says.

    Example:

    ```python
    >>> from pathlib import Path
    >>> from transformers import TrainingArguments
    >>> from soundwave_hf import STAGES, SoundwaveForCTC, SoundwaveProcessor, SoundwaveTrainer
    >>> from soundwave_hf.training.collator import SoundwaveCollator

    >>> stage = STAGES["align"]
    >>> trainer = SoundwaveTrainer(
    ...     model=SoundwaveForCTC.from_backbones(encoder, llm),
    ...     args=TrainingArguments(
    ...         "trained", max_steps=1, remove_unused_columns=False, report_to="none", disable_tqdm=True, use_cpu=True
    ...     ),
    ...     train_dataset=[{"row": 0, "audio": "speech.wav", "text": "what the clip says"}],
    ...     data_collator=SoundwaveCollator(
    ...         SoundwaveProcessor.from_backbones(encoder, llm), Path("."), stage.losses
    ...     ),
    ...     stage=stage,
    ... )
    >>> trainer.train().global_step  # prints what it measured as well
    {'train_runtime': ...}
    1
    >>> trainer.save_model()  # what trained, for `from_backbones(encoder, llm, adapter="trained")`
    ```
    """

    loss_is_scaled_for_ga = True

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        clips = torch.tensor(sum(len(batch["input_features_mask"]) for batch in batches), device=device)
        self._num_ctc_clips = self.accelerator.gather(clips).sum()
        return batches, num_items

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs)
        if (labels := inputs.get("labels")) is not None:
            # Scores over the vocabulary cost as much as the LLM here: none for the prompt that all rows begin with.
            first = max(int(labels.ne(-100).any(dim=0).int().argmax()) - 1, 0)
            inputs = {**inputs, "logits_to_keep": labels.shape[1] - first}
            audio_model = self._audio_model()
            if len(labels) > 1 and audio_model.shares_prefix():
                inputs["shared_prefix"] = min(first, shared_prefix(inputs, audio_model.config.audio_token_id))
        output = model(**inputs, num_items_in_batch=num_items_in_batch, num_ctc_clips=self._num_ctc_clips)
        # An epoch's last step may have fewer batches than the others.
        batches = 1 / self.current_gradient_accumulation_steps / self.accelerator.num_processes
        for name in ("ce_loss", "ctc_loss"):
            if (part := getattr(output, name)) is not None:
                self._add(name, part.detach(), batches)
        # Data parallel training averages gradients, and each process holds its share of one mean.
        loss = output.loss * self.accelerator.num_processes
        return (loss, output) if return_outputs else loss

    def _save(self, output_dir=None, state_dict=None):
        if hasattr(self.model, "peft_config"):
            super()._save(output_dir, state_dict)
            self.model.get_base_model().config.save_pretrained(output_dir or self.args.output_dir)
            return
        # The frozen parts are on the hub already: a checkpoint holds what trained.
        folder = output_dir or self.args.output_dir
        os.makedirs(folder, exist_ok=True)
        trained = {name: p.detach().cpu() for name, p in self.model.named_parameters() if p.requires_grad}
        save_file(trained, os.path.join(folder, TRAINED_FILE), metadata={"format": "pt"})
        self.model.config.save_pretrained(folder)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        trained = os.path.join(resume_from_checkpoint, TRAINED_FILE)
        if os.path.isfile(trained):
            load_trained(model or self.model, trained)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)


class SoundwaveSFTTrainer(SoundwaveTrainerMixin, SFTTrainer):
    """Stage III: TRL's supervised fine-tuning, its loss untouched."""

    def _save(self, output_dir=None, state_dict=None):
        super()._save(output_dir, state_dict)
        base = self.model.get_base_model() if hasattr(self.model, "peft_config") else self.model
        base.config.save_pretrained(output_dir or self.args.output_dir)


__all__ = ["SoundwaveSFTTrainer", "SoundwaveTrainer"]
