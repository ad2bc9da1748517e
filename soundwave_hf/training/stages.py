"""The three stages of the paper (section 3, Table 14) as one table: what trains, and with which losses."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn


# The attention projections of Llama, Qwen, Mistral, SmolLM and Gemma: LoRA's targets if a recipe names no others.
LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
# All matrices of Whisper's encoder layers: targets of `encoder_lora` if a recipe names no others.
ENCODER_LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
LLM_LORA, ENCODER_LORA = r"\blanguage_model\.(.*\.)?lora_", r"\baudio_tower\.(.*\.)?lora_"
ADAPTERS = ("alignment_adapter", "ctc_head", "shrinking_adapter")


@dataclass(frozen=True)
class Stage:
    """One stage of training.

    Args:
        trains (`tuple[str, ...]`): regular expressions; a parameter trains if one of them occurs in its name.
        losses (`tuple[str, ...]`): of "ctc" (over the LLM's vocabulary) and "ce" (next token).
        has_llm (`bool`): whether the LLM is loaded and run.
    """

    trains: tuple[str, ...]
    losses: tuple[str, ...]
    has_llm: bool = True


STAGES = {
    "align": Stage(trains=(r"\balignment_adapter\.", r"\bctc_head\."), losses=("ctc",), has_llm=False),
    "shrink": Stage(
        trains=(r"\balignment_adapter\.", r"\bctc_head\.", r"\bshrinking_adapter\.", LLM_LORA), losses=("ce", "ctc")
    ),
    "instruct": Stage(trains=(LLM_LORA,), losses=("ce",)),
}


def stage_of(recipe) -> Stage:
    """The row of `STAGES` for a recipe (`RecipeArguments`), with the encoder's LoRA if that trains."""
    stage = STAGES[recipe.stage]
    return replace(stage, trains=(*stage.trains, ENCODER_LORA)) if recipe.trains_encoder else stage


def trains(stage: Stage, name: str) -> bool:
    """Whether the parameter of this name trains in this stage. PEFT's frozen originals do not."""
    return ".original_module." not in name and any(re.search(pattern, name) for pattern in stage.trains)


def freeze_all_but(model: nn.Module, stage: Stage):
    """Set `requires_grad` of every parameter as the stage says, and cast what trains to float32.

    Raises: `ValueError` if an expression of the stage matches no parameter.
    """
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trains(stage, name))
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    for pattern in stage.trains:
        if not any(re.search(pattern, name) for name in names):
            raise ValueError(
                f"The stage trains `{pattern}`, and {type(model).__name__} has no parameter of such a name."
            )


def lora_targets(part: nn.Module, names: Sequence[str] | None = None, key: str = "lora") -> str:
    """The regular expression with which PEFT finds the modules of these names in the LLM of a whole model and nowhere
    else, or in the encoder alone.

    Args:
        part (`nn.Module`): the LLM inside a Soundwave model, `model.model.language_model`; for `key` "encoder_lora"
            its encoder, `model.audio_tower` of `SoundwaveForCTC`.
        names (`Sequence[str]`, *optional*): last parts of modules' names; `LORA_TARGETS` or `ENCODER_LORA_TARGETS` by
            default.
        key (`str`): the recipe's section that names them, for the error.

    Raises: `ValueError` if the part has no module of one of the names.
    """
    default = LORA_TARGETS if key == "lora" else ENCODER_LORA_TARGETS
    wanted = default if names is None else names
    last_parts = {name.rpartition(".")[2] for name, _ in part.named_modules()}
    if isinstance(wanted, str) or not wanted or (missing := [name for name in wanted if name not in last_parts]):
        # Targets are matrices, such as `nn.Linear` and GPT-2's `Conv1D`, but not embeddings.
        linear = {
            name.rpartition(".")[2]
            for name, module in part.named_modules()
            if getattr(getattr(module, "weight", None), "dim", int)() == 2 and not isinstance(module, nn.Embedding)
        }
        what = (
            f"`{key}.target_modules` is {names!r}" if names is not None else f"LoRA goes to {list(wanted)} by default"
        )
        lacks = "" if isinstance(wanted, str) or not wanted else f", and {type(part).__name__} has no {missing}"
        raise ValueError(
            f"{what}{lacks}: list names of its modules in the recipe, `{key}: {{target_modules: [...]}}`, "
            f"from {sorted(linear)}."
        )
    inside = r".*\blanguage_model\." if key == "lora" else ""
    return rf"{inside}(.*\.)?({'|'.join(map(re.escape, wanted))})"


def check_trainable(model: nn.Module, stage: Stage):
    """Raise `ValueError` unless exactly the stage's parameters train."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad != trains(stage, name):
            state = "trains" if parameter.requires_grad else "is frozen"
            raise ValueError(f"`{name}` {state}, and the stage trains exactly {', '.join(stage.trains)}.")


__all__ = [
    "ADAPTERS",
    "ENCODER_LORA",
    "ENCODER_LORA_TARGETS",
    "LORA_TARGETS",
    "STAGES",
    "Stage",
    "check_trainable",
    "freeze_all_but",
    "lora_targets",
    "stage_of",
    "trains",
]
