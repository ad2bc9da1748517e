"""Stage III on TRL: the only file of this package that imports it."""

from dataclasses import dataclass, field, fields
from typing import Any

from transformers import TrainingArguments
from trl import SFTConfig, SFTTrainer

from .arguments import SoundwaveTrainingArguments
from .mixture import MixtureStream
from .trainer import SoundwaveTrainerMixin


@dataclass
class SoundwaveSFTConfig(SoundwaveTrainingArguments, SFTConfig):
    """`trl.SFTConfig` with the defaults of [`SoundwaveTrainingArguments`]: the arguments of [`SoundwaveSFTTrainer`].

    TRL cuts off no tokens and prepares no rows: the collator does that. Full precision and no activation checkpointing
    are the defaults, where TRL's are bfloat16 and checkpointing.

    Example:

    ```python
    >>> from soundwave_hf import SoundwaveSFTConfig

    >>> arguments = SoundwaveSFTConfig("tuned", learning_rate=3e-5)
    >>> arguments.max_length, arguments.dataset_kwargs
    (None, {'skip_prepare_dataset': True})
    ```
    """

    max_length: int | None = field(default=None, metadata={"help": "Keep it: no token is cut off."})
    dataset_kwargs: dict[str, Any] | str | None = field(
        default_factory=lambda: {"skip_prepare_dataset": True},
        metadata={"help": "Keep it: the collator prepares the rows."},
    )

    @classmethod
    def of(cls, arguments: TrainingArguments) -> "SoundwaveSFTConfig":
        """The same arguments as a config of this class; TRL's own fields get their defaults."""
        known = {f.name for f in fields(cls) if f.init}
        given = {name: value for name, value in arguments.to_dict().items() if name in known}
        return cls(**given | {"hub_token": arguments.hub_token})  # which `to_dict` hides


class SoundwaveSFTTrainer(SoundwaveTrainerMixin, SFTTrainer):
    r"""Stage III: TRL's supervised fine-tuning, with TRL's loss.

    Args:
        args (`SoundwaveSFTConfig`): or `SoundwaveTrainingArguments`.
        others: as in [`SoundwaveTrainer`].

    Example:

    ```python
    >>> from datasets import Dataset
    >>> from peft import LoraConfig, get_peft_model
    >>> from soundwave_hf import SoundwaveDataCollator, SoundwaveForConditionalGeneration, SoundwaveProcessor
    >>> from soundwave_hf import SoundwaveSFTConfig, SoundwaveSFTTrainer

    >>> joined = SoundwaveForConditionalGeneration.from_backbones(encoder, llm)
    >>> lora = LoraConfig(target_modules=r".*language_model.*\.(q|v)_proj")
    >>> row = {"row": 0, "audio": "speech.wav", "text": "hi", "question": "Who speaks?", "answer": "A guest."}
    >>> trainer = SoundwaveSFTTrainer(
    ...     model=get_peft_model(joined, lora),
    ...     args=SoundwaveSFTConfig("tuned", max_steps=1, report_to="none", disable_tqdm=True),
    ...     train_dataset=Dataset.from_list([row]),
    ...     data_collator=SoundwaveDataCollator(SoundwaveProcessor.from_backbones(encoder, llm), ".", ("ce",)),
    ...     processing_class=SoundwaveProcessor.from_backbones(encoder, llm),
    ... )
    >>> trainer.train().global_step
    {...}
    1
    ```
    """

    def __init__(self, model=None, args=None, **kwargs):
        if isinstance(args, SoundwaveTrainingArguments) and not isinstance(args, SFTConfig):
            args = SoundwaveSFTConfig.of(args)
        _refuse_preparation(args)
        rows = kwargs.get("train_dataset")
        if isinstance(rows, MixtureStream):
            # TRL accepts only data sets of `datasets`, and reads the columns of the first row.
            kwargs["train_dataset"] = next(iter(rows.streams.values()))
        super().__init__(model, args, **kwargs)
        if "ctc" in getattr(self.data_collator, "losses", ()):
            raise ValueError(
                f"The collator's `losses` are {self.data_collator.losses}, and TRL computes the next-token loss only: "
                'give `losses=("ce",)`, or train with `SoundwaveTrainer`, which adds the CTC loss.'
            )
        if isinstance(rows, MixtureStream):
            self.train_dataset = rows


def _refuse_preparation(args: TrainingArguments | None):
    """Raise `ValueError` for arguments with which TRL would write texts and ids into the rows itself."""
    leaves_rows = isinstance(args, SFTConfig) and (args.dataset_kwargs or {}).get("skip_prepare_dataset")
    if not leaves_rows or args.remove_unused_columns:
        raise ValueError(
            f"`args` is a {type(args).__name__} with which TRL would prepare the rows, and the collator does that: "
            "give `SoundwaveSFTConfig`, and leave its `dataset_kwargs` and `remove_unused_columns` as they are."
        )


__all__ = ["SoundwaveSFTConfig", "SoundwaveSFTTrainer"]
