"""A LoRA of the Whisper encoder, which Stage I may train beside the alignment adapter. The paper has none.

Its file travels with the adapters of all later stages, and every loader merges it into the encoder. The config holds
its digest, so that the adapters never run on another encoder than they were trained with.
"""

import hashlib
import json
import os
import re

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from .configuration_soundwave import SoundwaveConfig
from .folders_soundwave import ENCODER_LORA_FILE


def has_encoder_lora(folder: str) -> bool:
    """Whether a folder of trained adapters has a LoRA of the encoder."""
    return os.path.isfile(os.path.join(folder, ENCODER_LORA_FILE))


def read_encoder_lora(folder: str) -> tuple[dict[str, torch.Tensor], dict] | None:
    """The LoRA in a folder of trained adapters: matrices by name, and `r`, `lora_alpha` and `digest`.

    Returns None if the adapters were trained without one.

    Raises: `FileNotFoundError` if the folder's config names a LoRA and its file is missing; `ValueError` if the file
    is another than the config names.
    """
    expected, path = SoundwaveConfig.from_pretrained(folder).encoder_lora, os.path.join(folder, ENCODER_LORA_FILE)
    if expected is None:
        return None
    if not has_encoder_lora(folder):
        raise FileNotFoundError(
            f"`{folder}` lacks {ENCODER_LORA_FILE}: its adapters were trained on an encoder with a LoRA. Copy the "
            "file from the run that wrote the folder."
        )
    with safe_open(path, "pt") as file:
        matrices = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        settings = json.loads(file.metadata()["lora"])
    found = _digest(matrices, settings)
    if found != expected:
        raise ValueError(
            f"`{path}` is not the file that was saved with these adapters: its digest is {found}, and config.json has "
            f"{expected}. Copy all files of the folder again."
        )
    return matrices, settings | {"digest": found}


def merge_encoder_lora(model, folder: str):
    """Add the encoder's LoRA in a folder of trained adapters, if there is one, to a model's encoder.

    W + lora_alpha / r * B A is computed in float32 and rounded once. A second call changes nothing.

    Raises: see `read_encoder_lora`; `ValueError` if the encoder holds another LoRA, or lacks a matrix.
    """
    found = read_encoder_lora(folder)
    if found is None:
        return
    matrices, settings = found
    if model.config.encoder_lora is not None:
        if model.config.encoder_lora != settings["digest"]:
            raise ValueError(
                f"The model's encoder holds another LoRA ({model.config.encoder_lora}) than `{folder}` "
                f"({settings['digest']}): load the folder onto the backbones it names."
            )
        return
    tower = _tower(model)
    scale = settings["lora_alpha"] / settings["r"]
    with torch.no_grad():
        for name in sorted({name.rpartition(".lora_")[0] for name in matrices}):
            try:
                weight = tower.get_submodule(name).weight
            except AttributeError:
                raise ValueError(f"`{folder}` has a LoRA for `{name}`, which the encoder lacks.") from None
            change = matrices[f"{name}.lora_B.weight"].float() @ matrices[f"{name}.lora_A.weight"].float()
            weight.copy_(weight.float() + scale * change.to(weight.device))
    tower.merged_lora = found
    model.config.encoder_lora = settings["digest"]


def add_encoder_lora(model, targets: str, r: int, lora_alpha: float, lora_dropout: float = 0.0):
    """Add a new LoRA, which trains, to a model's encoder.

    Args: targets: regular expression for the names of the encoder's linear layers, see `lora_targets`.
    """
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(r=r, lora_alpha=lora_alpha, lora_dropout=lora_dropout, target_modules=targets)
    inject_adapter_in_model(config, _tower(model))
    _tower(model).own_lora = {"r": r, "lora_alpha": lora_alpha}


def continue_encoder_lora(model, folder: str):
    """Add the LoRA in a folder of trained adapters to a model's encoder, so that it trains on."""
    matrices, settings = read_encoder_lora(folder)
    names = sorted({name.rpartition(".lora_")[0] for name in matrices})
    add_encoder_lora(model, "|".join(map(re.escape, names)), settings["r"], settings["lora_alpha"])
    _copy_matrices(matrices, lora_matrices(model))


def load_encoder_lora(model, folder: str):
    """Copy the matrices of the LoRA in a folder into one that `add_encoder_lora` has added.

    Raises: `ValueError` if it has other matrices.
    """
    matrices, _ = read_encoder_lora(folder)
    expected = lora_matrices(model)
    if matrices.keys() != expected.keys():
        raise ValueError(
            f"`{folder}` has a LoRA of {len(matrices)} matrices, and the encoder's has {len(expected)}: they differ "
            f"in {sorted(matrices.keys() ^ expected.keys())[:4]}."
        )
    _copy_matrices(matrices, expected)


def lora_matrices(model, whole: dict[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
    """The matrices of the LoRA in a model's encoder, by their names in the file.

    Args: whole: parameters of the model by name, where the model's own are sharded.
    """
    found = {}
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            short = name.partition("audio_tower.")[2].replace(".default.", ".")
            found[short] = parameter if whole is None else whole[name]
    return found


def save_encoder_lora(model, folder: str, whole: dict[str, torch.Tensor] | None = None):
    """Write the LoRA of a model's encoder, one that trains or one that was merged, and note its digest in the config.

    Args: whole: see `lora_matrices`.
    """
    tower = _tower(model)
    if settings := getattr(tower, "own_lora", None):
        matrices = {name: matrix.detach().cpu().contiguous() for name, matrix in lora_matrices(model, whole).items()}
    elif merged := getattr(tower, "merged_lora", None):
        matrices, settings = merged
    else:
        return
    model.config.encoder_lora = write_encoder_lora(matrices, settings, folder)


def write_encoder_lora(matrices: dict[str, torch.Tensor], settings: dict, folder: str) -> str:
    """Write the LoRA of an encoder to a folder of trained adapters.

    Args: matrices, settings: as `read_encoder_lora` gives them.
    Returns: its digest, which belongs in the folder's config as `encoder_lora`.
    """
    kept = json.dumps({name: settings[name] for name in ("r", "lora_alpha")})  # one key: their order would vary
    save_file(matrices, os.path.join(folder, ENCODER_LORA_FILE), metadata={"lora": kept})
    return _digest(matrices, settings)


@torch.no_grad()
def _copy_matrices(matrices: dict[str, torch.Tensor], own: dict[str, torch.Tensor]):
    for name, matrix in matrices.items():
        own[name].copy_(matrix)


def _digest(matrices: dict[str, torch.Tensor], settings: dict) -> str:
    digest = hashlib.sha256(f"{settings['r']} {settings['lora_alpha']}".encode())
    for name in sorted(matrices):
        digest.update(f"{name} {matrices[name].dtype} {tuple(matrices[name].shape)}".encode())
        digest.update(matrices[name].contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _tower(model) -> nn.Module:
    return next(module for name, module in model.named_modules() if name.rpartition(".")[2] == "audio_tower")


__all__ = [
    "add_encoder_lora",
    "continue_encoder_lora",
    "has_encoder_lora",
    "load_encoder_lora",
    "lora_matrices",
    "merge_encoder_lora",
    "read_encoder_lora",
    "save_encoder_lora",
    "write_encoder_lora",
]
