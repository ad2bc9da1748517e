"""Arguments of stages I and II. Those of stage III, which are TRL's, are in `sft.py`."""

import difflib
import os
from dataclasses import dataclass, field

import torch
from torch.optim.lr_scheduler import LRScheduler
from transformers import TrainingArguments, get_scheduler

from ..secret_values import refuse_secrets


KERNEL_CACHES = ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY")  # PyTorch's and oneDNN's
LOWER_IS_BETTER = ("loss", "wer", "cer")
SAMPLING_STRATEGIES = ("random", "sequential", "group_by_length", "batch_rebalance")  # of transformers


@dataclass
class SoundwaveTrainingArguments(TrainingArguments):
    """Arguments of [`SoundwaveTrainer`]: `transformers.TrainingArguments` with defaults for speech.

    All columns reach the collator, and the CPU trains where there is no accelerator. The learning rate is 1e-4 by
    default, and the loss is logged every 10 steps. [`SoundwaveSFTTrainer`] takes these too, as `SoundwaveSFTConfig`.

    Args:
        max_blank_share (`float`, *optional*, defaults to 0.995): share of blanks among the frames' CTC labels from
            which a warning says that the CTC head has collapsed.
        plot_loss (`bool`, *optional*, defaults to `True`): whether to draw `loss.png` in the output folder at every
            save. Needs matplotlib.

    Example:

    ```python
    >>> from soundwave_hf import SoundwaveTrainingArguments

    >>> arguments = SoundwaveTrainingArguments("trained", learning_rate=3e-5, per_device_train_batch_size=16)
    >>> arguments.remove_unused_columns, arguments.logging_steps
    (False, 10)
    ```
    """

    learning_rate: float = field(default=1e-4, metadata={"help": "The initial learning rate for AdamW."})
    bf16: bool = field(default=False, metadata={"help": "Whether to use bf16 mixed precision."})
    activation_checkpointing: bool | None = field(
        default=None, metadata={"help": "Whether to compute activations again in the backward pass, to save memory."}
    )
    gradient_checkpointing: bool | None = field(
        default=None, metadata={"help": "The older name of `activation_checkpointing`."}
    )
    logging_steps: float = field(default=10, metadata={"help": "Steps between two logs, or a share of all steps."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Keep it: the collator needs every column."})
    max_blank_share: float = field(
        default=0.995, metadata={"help": "Share of blanks from which a warning says that CTC has collapsed."}
    )
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Keep it: a loss that is NaN or infinite must show, and stops the run."}
    )
    plot_loss: bool = field(default=True, metadata={"help": "Whether to draw `loss.png` at every save."})

    def __post_init__(self):
        refuse_secrets(dict(vars(self)), type(self).__name__)  # saved with every checkpoint
        self._check_length()
        self._check_batches()
        self._choose_direction()
        if not 0 < self.max_blank_share <= 1:
            raise ValueError(f"`max_blank_share` is {self.max_blank_share}; give a share of 0 to 1.")
        # transformers warns of the older name, which TRL sets by default.
        if self.activation_checkpointing is None:
            self.activation_checkpointing = bool(self.gradient_checkpointing)
        # transformers refuses bf16 without an accelerator unless `use_cpu` is set.
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
        if self.use_cpu and self.fp16:
            raise ValueError("`fp16` is True, and a CPU would train in float32: leave it out, or give `bf16`.")
        if self.use_cpu:
            # Both libraries cache one compiled bfloat16 kernel of half a megabyte for each shape, 1,024 by default.
            # Batches of speech rarely share shapes. Both read this variable at their first kernel.
            for name in KERNEL_CACHES:
                os.environ.setdefault(name, "32")
        super().__post_init__()

    def learning_rate_schedule(self, steps: int) -> LRScheduler:
        """The schedule of the learning rate in a run of so many steps, for a single weight.

        Raises: `TypeError` or `ValueError` if it cannot be made of `lr_scheduler_kwargs`.
        """
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=self.learning_rate)
        warmup_steps, options = self.get_warmup_steps(steps), self.lr_scheduler_kwargs or {}
        return get_scheduler(self.lr_scheduler_type, optimizer, warmup_steps, steps, scheduler_specific_kwargs=options)

    def _check_length(self):
        if self.max_steps == 0 or self.max_steps < -1 or (self.max_steps == -1 and self.num_train_epochs <= 0):
            name = "num_train_epochs" if self.max_steps == -1 else "max_steps"
            raise ValueError(f"`{name}` is {getattr(self, name)}: a run needs at least one step. Give more than 0.")

    def _check_batches(self):
        """Raise `ValueError` for sizes below 1, and for an order of the clips that transformers does not know.

        transformers checks neither: a misspelt order would be random.
        """
        for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
            if not getattr(self, name) >= 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}; expected 1 or more.")
        if (strategy := self.train_sampling_strategy) not in SAMPLING_STRATEGIES:
            close = difflib.get_close_matches(str(strategy), SAMPLING_STRATEGIES, n=1)
            raise ValueError(
                f"`train_sampling_strategy` is {strategy!r}; expected one of {', '.join(SAMPLING_STRATEGIES)}."
                + (f" Did you mean `{close[0]}`?" if close else "")
            )

    def _choose_direction(self):
        """Set `greater_is_better` for error rates: transformers takes every metric but a loss for a score."""
        metric = self.metric_for_best_model
        if metric is None:
            return
        greater = False if metric.endswith(LOWER_IS_BETTER) else True if metric.endswith("exact_match") else None
        if None not in (greater, self.greater_is_better) and greater != self.greater_is_better:
            raise ValueError(
                f"`greater_is_better` is {self.greater_is_better}, and a {'higher' if greater else 'lower'} "
                f"`{metric}` is better: leave it out."
            )
        if greater is not None:
            self.greater_is_better = greater


def order_seed(arguments: TrainingArguments) -> int:
    """The seed of the order of the data: `data_seed`, or without one `seed`."""
    return arguments.seed if arguments.data_seed is None else arguments.data_seed


__all__ = ["KERNEL_CACHES", "SoundwaveTrainingArguments", "order_seed"]
