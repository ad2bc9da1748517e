"""In which form a trainer saves a model, and what that form would lose."""

import os
from collections.abc import Iterator

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn

from ..modeling.folders_soundwave import LORA_FILES
from .stages import ADAPTERS


STAGE_ONE = ("alignment_adapter", "ctc_head")
PARTS = (*ADAPTERS, "audio_tower", "embed_tokens", "lm_head")  # names of modules that `modules_to_save` may hold


def base_of(model: nn.Module) -> nn.Module:
    """A model without PEFT's wrapper. (transformers' own `add_adapter` adds none.)"""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def saved_form(model: nn.Module) -> str:
    """How a model is saved.

    Returns: "align" (Stage I: what trained), "lora" (adapters and LoRA, which are loaded onto backbones), "peft"
    (PEFT's files alone, which are loaded onto the model that they were trained on), or "whole".
    """
    configs = getattr(model, "peft_config", {}).values()
    if not configs:
        return "whole" if hasattr(base_of(model).base_model, "language_model") else "align"
    saved = [set(getattr(each, "modules_to_save", None) or ()) for each in configs]
    return "lora" if any(modules.issuperset(ADAPTERS) for modules in saved) and not names_its_base(model) else "peft"


def names_its_base(model: nn.Module) -> bool:
    """Whether PEFT's files name a whole model, onto which `from_pretrained` loads them."""
    name, configs = base_of(model).name_or_path, getattr(model, "peft_config", {}).values()
    return bool(name) and any(each.base_model_name_or_path == name for each in configs)


def names_of_stage_one(model: nn.Module) -> Iterator[str]:
    """Names of the parameters that Stage I saves: adapter and head, also if one is frozen, and what else trains or
    trained before. The encoder's LoRA has a file of its own.
    """
    before = getattr(model, "trained_besides", ())
    for name, parameter in model.named_parameters():
        is_own = parameter.requires_grad or name in before or set(STAGE_ONE) & set(name.split("."))
        if is_own and ".lora_" not in name:
            yield name


def refuse_lost_weights(model: nn.Module, audio_model: nn.Module):
    """Raise `ValueError` if weights train, or trained in Stage I, that the trainer would not save.

    Args: audio_model: the part of the model with the audio side.
    """
    form, own = saved_form(model), {name for name, _ in model.named_parameters()}
    refuse_other_adapters(model)
    if has_own_adapter(model) and len(active := model.active_adapters()) != 1:
        raise ValueError(f"The model has the active adapters {active}; train one alone: `model.set_adapter(name)`.")
    if form in ("lora", "peft") and (lost := _lost_beside_peft(model)):
        parts = sorted({next((part for part in name.split(".") if part in PARTS), name) for name in lost})
        raise ValueError(
            f"{len(lost)} parameters train beside the adapter, and PEFT would not save them: {lost[:4]}. Name their "
            f"modules in its config, `LoraConfig(..., modules_to_save={parts})`, or freeze them."
        )
    before = getattr(audio_model, "trained_besides", ())
    if before and (form == "lora" or form == "align" and not own.issuperset(before)):
        raise ValueError(
            f"Stage I trained {len(before)} weights of the backbones, such as `{before[0]}`, and this run would not "
            "save them. Train a LoRA of the encoder there instead (`encoder_lora` in a recipe). Or join the whole "
            "model, `SoundwaveForConditionalGeneration.from_backbones(adapter=folder)`, save it with "
            "`save_pretrained`, and train what `from_pretrained` loads."
        )


def refuse_other_adapters(model: nn.Module):
    """Raise `ValueError` if PEFT would save an adapter in a folder of its own, where no loading finds it."""
    if isinstance(model, PeftModel) and list(model.peft_config) != ["default"]:
        raise ValueError(
            f"The model has PEFT's adapters {list(model.peft_config)}, and of a saved folder only one called "
            "`default` is loaded: leave `adapter_name` out, and merge the others (`merge_and_unload`) or delete them "
            "(`delete_adapter`)."
        )


def _lost_beside_peft(model: nn.Module) -> list[str]:
    """Names of parameters that train and are not in PEFT's file."""
    state = model.state_dict(keep_vars=True)
    saved = [get_peft_model_state_dict(model, state, name, save_embedding_layers=False) for name in model.peft_config]
    kept = {id(weight) for weights in saved for weight in weights.values()}
    return [
        name
        for name, parameter in base_of(model).named_parameters()
        if parameter.requires_grad
        and id(parameter) not in kept
        # PEFT's own weights are named after its adapters; the originals of `modules_to_save` are not used.
        and not {*model.peft_config, "original_module"} & set(name.split("."))
    ]


def has_own_adapter(model: nn.Module) -> bool:
    """Whether a model has an adapter of transformers' `add_adapter`."""
    return hasattr(model, "peft_config") and not isinstance(model, PeftModel)


def load_own_adapter(model: nn.Module, folder: str | os.PathLike):
    """Load the files of a checkpoint into the adapter of `add_adapter`, which `Trainer` does not.

    Raises: `ValueError` if a weight is missing.
    """
    weights: dict[str, torch.Tensor] = {
        name.removeprefix("base_model.model."): weight
        for name, weight in load_file(os.path.join(folder, LORA_FILES[1])).items()
    }
    (adapter,) = model.active_adapters()
    expected = get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False).keys()
    if missing := sorted(expected - weights.keys()):
        raise ValueError(f"`{folder}` lacks {len(missing)} weights of the adapter `{adapter}`: {missing[:4]}.")
    set_peft_model_state_dict(model, weights, adapter)


__all__ = [
    "base_of",
    "has_own_adapter",
    "load_own_adapter",
    "names_its_base",
    "names_of_stage_one",
    "refuse_lost_weights",
    "refuse_other_adapters",
    "saved_form",
]
