"""The one arguments class of both trainers."""

import os
from dataclasses import dataclass, field
from typing import Any

import torch
from trl import SFTConfig


KERNEL_CACHES = ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY")  # PyTorch's and oneDNN's


@dataclass
class SoundwaveTrainingArguments(SFTConfig):
    """Arguments of [`SoundwaveTrainer`] and [`SoundwaveSFTTrainer`]: TRL's, which are `TrainingArguments` and more.

    What speech needs is set: columns reach the collator, nothing is cut or prepared beforehand, and on a machine
    without an accelerator the CPU trains. Full precision, a learning rate of 1e-4 and no activation checkpointing
    are the defaults, where TRL's are bfloat16, 2e-5 and checkpointing.

    Args:
        max_blank_share (`float`, *optional*, defaults to 0.995): share of blanks among the frames' CTC labels from
            which a warning says that the CTC head has collapsed.
        plot_loss (`bool`, *optional*, defaults to `True`): whether to draw `loss.png` in the output folder at every
            save. Needs matplotlib.

    Example:

    ```python
    >>> from soundwave_hf import SoundwaveTrainingArguments

    >>> arguments = SoundwaveTrainingArguments("trained", learning_rate=3e-5, per_device_train_batch_size=16)
    >>> arguments.remove_unused_columns, arguments.max_length
    (False, None)
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
    max_length: int | None = field(default=None, metadata={"help": "Leave it: no token is cut off."})
    dataset_kwargs: dict[str, Any] | str | None = field(
        default_factory=lambda: {"skip_prepare_dataset": True}, metadata={"help": "Leave it: the collator prepares."}
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "Leave it: the collator reads them all."})
    max_blank_share: float = field(
        default=0.995, metadata={"help": "Share of blanks from which a warning says that CTC has collapsed."}
    )
    plot_loss: bool = field(default=True, metadata={"help": "Whether to draw `loss.png` at every save."})

    def __post_init__(self):
        if not 0 < self.max_blank_share <= 1:
            raise ValueError(f"`max_blank_share` is {self.max_blank_share}; give a share of 0 to 1.")
        # By its new name: the library warns of the older one, which TRL sets by default.
        if self.activation_checkpointing is None:
            self.activation_checkpointing = bool(self.gradient_checkpointing)
        # The library refuses bf16 without an accelerator unless the CPU is asked for by name.
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
        if self.use_cpu:
            # They keep a compiled kernel, half a megabyte, for each shape in bfloat16, 1,024 of them by default, and
            # hardly a batch has the shapes of another. Both read this at their first kernel.
            for name in KERNEL_CACHES:
                os.environ.setdefault(name, "32")
        super().__post_init__()


__all__ = ["KERNEL_CACHES", "SoundwaveTrainingArguments"]
