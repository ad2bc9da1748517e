"""The three stages of the paper (section 3, Table 14) as one table: what trains, and on which losses."""

import re
from dataclasses import dataclass

from torch import nn


# LoRA on the attention projections of the LLM alone; the encoder's and the adapters' carry the same names.
LORA_TARGETS = r".*language_model\.layers\.\d+\.self_attn\.[qkvo]_proj"
ADAPTERS = ("alignment_adapter", "ctc_head", "shrinking_adapter")


@dataclass(frozen=True)
class Stage:
    """One stage of training.

    Args:
        trains (`tuple[str, ...]`): regular expressions; a parameter trains if one of them occurs in its name.
        losses (`tuple[str, ...]`): of "ctc" (over the LLM's vocabulary) and "ce" (next token).
        has_llm (`bool`): whether the LLM is run, and so loaded.
    """

    trains: tuple[str, ...]
    losses: tuple[str, ...]
    has_llm: bool = True


STAGES = {
    "align": Stage(trains=(r"\balignment_adapter\.", r"\bctc_head\."), losses=("ctc",), has_llm=False),
    "shrink": Stage(
        trains=(r"\balignment_adapter\.", r"\bctc_head\.", r"\bshrinking_adapter\.", r"\.lora_"), losses=("ce", "ctc")
    ),
    "instruct": Stage(trains=(r"\.lora_",), losses=("ce",)),
}


def trains(stage: Stage, name: str) -> bool:
    """Whether the parameter of this name trains in this stage; PEFT's frozen originals do not."""
    return ".original_module." not in name and any(re.search(pattern, name) for pattern in stage.trains)


def freeze_all_but(model: nn.Module, stage: Stage):
    """Set `requires_grad` of every parameter as the stage says, and bring what trains to float32.

    Raises: `ValueError` where one of the stage's expressions fits no parameter.
    """
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trains(stage, name))
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    for pattern in stage.trains:
        if not any(re.search(pattern, name) for name in names):
            raise ValueError(
                f"The stage trains `{pattern}`, which is in no parameter's name of {type(model).__name__}."
            )


def check_trainable(model: nn.Module, stage: Stage):
    """Raise `ValueError` unless exactly the stage's parameters train."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad != trains(stage, name):
            state = "trains" if parameter.requires_grad else "is frozen"
            raise ValueError(f"`{name}` {state}, against the stage's table ({', '.join(stage.trains)}).")


__all__ = ["ADAPTERS", "LORA_TARGETS", "STAGES", "Stage", "check_trainable", "freeze_all_but", "trains"]
