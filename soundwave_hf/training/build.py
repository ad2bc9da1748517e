"""The model of a stage: joined backbones, the adapters of the stage before, and a new LoRA if the stage needs one."""

import os
import re

import torch
from peft import LoraConfig, get_peft_model

from ..modeling.backbones_soundwave import (
    TRAINED_FILE,
    adapter_fields,
    load_adapter,
    load_lora,
    load_trained,
    refuse_other_fields,
)
from ..modeling.encoder_lora_soundwave import add_encoder_lora, continue_encoder_lora, has_encoder_lora
from ..modeling.folders_soundwave import backbone_name
from ..modeling.modeling_soundwave import SoundwaveForConditionalGeneration, SoundwaveForCTC
from .recipe import RecipeArguments
from .stages import ADAPTERS, Stage, freeze_all_but, lora_targets, stage_of


def build_model(recipe: RecipeArguments, dtype: torch.dtype | None):
    """The model of a stage with the adapters it starts from. Exactly the stage's parameters train."""
    stage = stage_of(recipe)
    encoder, llm = recipe.backbones
    start = recipe.start_folder
    start_fields = {} if start is None else adapter_fields(start, encoder, llm, recipe.allow_other_backbones)
    has_lora = start is not None and not os.path.isfile(os.path.join(start, TRAINED_FILE))
    _check_start(recipe, stage, start_fields, has_lora)
    model_fields = {**start_fields, **recipe.model}
    model_class = SoundwaveForConditionalGeneration if stage.has_llm else SoundwaveForCTC
    if recipe.quantization:
        model_fields["quantization_config"] = recipe.quantization
    model = model_class.from_backbones(
        encoder, llm, dtype=dtype, warm_start=recipe.warm_start is not False and start is None, **model_fields
    )
    if recipe.attn_implementation is not None:
        model.set_attn_implementation(recipe.attn_implementation)
    # Saved beside the adapters: the names of the backbones, not their folders on this machine.
    model.config.audio_config.name_or_path = backbone_name(recipe.encoder)
    model.config.text_config.name_or_path = backbone_name(recipe.llm)
    for name in ADAPTERS:
        if (adapter := getattr(model.base_model, name, None)) is not None:
            adapter.float()
    if has_lora:
        model = load_lora(model, start, is_trainable=True, changed=recipe.model)
    elif start is not None and not recipe.trains_encoder:
        load_adapter(model, start)
    elif start is not None:
        load_trained(model, os.path.join(start, TRAINED_FILE))
    if recipe.trains_encoder:
        train_encoder(model, recipe)
    if stage.has_llm and not has_lora:
        model = add_lora(model, recipe.lora)
    freeze_all_but(model, stage)
    return model


def add_lora(model: SoundwaveForConditionalGeneration, fields: dict):
    """Add a new LoRA, with the fields of a recipe, to the LLM. PEFT then saves the adapters too."""
    targets = lora_targets(model.model.language_model, fields.get("target_modules"))
    refuse_unmatched([name for name, _ in model.named_modules() if re.fullmatch(targets, name)], fields)
    return get_peft_model(
        model, LoraConfig(**{**fields, "target_modules": targets, "modules_to_save": list(ADAPTERS)})
    )


def refuse_unmatched(targets: list[str], fields: dict):
    """Raise `ValueError` if an entry of a recipe's `lora` matches no module: PEFT would ignore it.

    Args: targets: whole names of the modules that the LoRA is for; fields: of `lora`.
    """

    def refuse(key: str, entry: str):
        names = sorted({name.rpartition(".")[2] for name in targets})
        raise ValueError(
            f"`lora.{key}` has {entry!r}, which matches none of the LoRA's modules: name some of {names}, or give an "
            f"expression for whole names, such as `{targets[0]}`."
        )

    excluded = fields.get("exclude_modules") or []
    left = list(targets)
    for entry in [excluded] if isinstance(excluded, str) else excluded:
        ending = entry if isinstance(excluded, str) else rf"(.*\.)?{re.escape(entry)}"
        if not any(re.fullmatch(ending, name) for name in targets):
            refuse("exclude_modules", entry)
        left = [name for name in left if not re.fullmatch(ending, name)]
    for key in ("rank_pattern", "alpha_pattern"):
        patterns = list(fields.get(key) or {})
        # As PEFT finds them: the first that matches a name counts.
        matched = {next((each for each in patterns if re.match(rf"(.*\.)?({each})$", name)), None) for name in left}
        for entry in patterns:
            if entry not in matched:
                refuse(key, entry)


def train_encoder(model: SoundwaveForCTC, recipe: RecipeArguments):
    """Add the LoRA of the encoder: a new one, or that of `start_from`."""
    if recipe.encoder_lora is None:
        continue_encoder_lora(model, recipe.start_folder)
        return
    fields = {"r": LoraConfig().r, "lora_alpha": LoraConfig().lora_alpha, **recipe.encoder_lora}
    targets = lora_targets(model.audio_tower, fields.pop("target_modules", None), "encoder_lora")
    add_encoder_lora(model, targets, **fields)


def _check_start(recipe: RecipeArguments, stage: Stage, start_fields: dict, has_lora: bool):
    """Raise `ValueError` if the recipe does not fit the weights that it starts from."""
    if recipe.stage == "instruct" and not has_lora:
        raise ValueError(f"`start_from` is `{recipe.start_from}`, which holds no LoRA: name a stage `shrink` folder.")
    if has_lora and not stage.has_llm:
        raise ValueError(f"`start_from` is `{recipe.start_from}`, which holds LoRA: stage `align` has no LLM for it.")
    if recipe.lora and (has_lora or not stage.has_llm):
        reason = f"`{recipe.start_from}` holds a LoRA already" if has_lora else "the stage has no LLM"
        raise ValueError(f"`lora` is given, and {reason}: leave it out.")
    if recipe.start_from is not None and has_encoder_lora(recipe.start_folder):
        if recipe.encoder_lora is not None:
            raise ValueError(
                f"`encoder_lora` is given, and `{recipe.start_from}` holds a LoRA of the encoder already, which "
                "trains on: leave it out."
            )
        if recipe.trains_encoder and recipe.encoder_cache is not None:
            raise ValueError(
                f"`encoder_cache` encodes each clip once, and the LoRA of the encoder in `{recipe.start_from}` trains "
                "on: leave `encoder_cache` out."
            )
    refuse_other_fields(recipe.model, start_fields, str(recipe.start_from))


__all__ = ["add_lora", "build_model", "train_encoder"]
