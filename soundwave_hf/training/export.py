"""`soundwave-hf export RUN DST`: the adapters of a run in half precision, as a folder to share."""

import json
import os
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers.utils import GENERATION_CONFIG_NAME

from ..atomic import atomic_file, refuse_file_name
from ..json_files import read_json_object
from ..modeling.configuration_soundwave import SoundwaveConfig, relative_name
from ..modeling.folders_soundwave import ENCODER_LORA_FILE, LORA_CONFIG, LORA_WEIGHTS, TRAINED_FILE, WHOLE_FILES
from ..modeling.trained_fields_soundwave import TENSOR, as_tensor, trained_fields
from ..publish.runs import RECORD, describe_runs


WEIGHT_FILES = (".safetensors", ".bin", ".pt", ".gguf")  # endings that no folder to write may have
# Files that not every run has, or that make a folder one of another kind.
OPTIONAL = (GENERATION_CONFIG_NAME, ENCODER_LORA_FILE, RECORD, TRAINED_FILE)
OPTIONAL += WHOLE_FILES


def export_adapter(run: str | os.PathLike, destination: str | os.PathLike, hub_name: str | None = None) -> Path:
    """Write the adapters and LoRA of a stage II or III run as float16, with the configs that loading them needs.

    A LoRA of the encoder is copied as it is. `training_runs.json` keeps the recipe, data and log of the run, and of
    those that it started from, for the model card.

    Args: hub_name: the hub repository of the folder. The Auto classes of transformers need it as the base model in
        adapter_config.json, which they read before they ask our class.

    Raises: `FileNotFoundError` if the run has none, `ValueError` if a weight has no finite float16 value,
    `FileExistsError` if the destination is the run, or holds other weights (the same may be exported again) or a file
    of theirs that loading would read, `OSError` if it cannot be written. The destination then stays as it was.
    """
    refuse_file_name(destination, "DST", WEIGHT_FILES, "leave its ending out")
    run, destination = Path(run), Path(destination)
    if run.resolve() == destination.resolve():
        raise FileExistsError(f"`{destination}` is the run itself: name another folder, which gets float16 weights.")
    needed = [LORA_WEIGHTS, LORA_CONFIG, "config.json", "processor_config.json"]
    missing = [name for name in needed if not (run / name).is_file()]
    if missing:
        raise FileNotFoundError(f"`{run}` lacks {missing}: give the output folder of a finished stage II or III.")
    if (run / GENERATION_CONFIG_NAME).is_file():
        needed.append(GENERATION_CONFIG_NAME)
    weights = half_weights(run)
    _refuse_other_weights(destination, weights)
    copied = [ENCODER_LORA_FILE] if (run / ENCODER_LORA_FILE).is_file() else []
    record = describe_runs(run)
    names = [*needed[1:], *copied, *([RECORD] if record is not None else []), LORA_WEIGHTS]
    if strange := [name for name in OPTIONAL if name not in names and (destination / name).exists()]:
        raise FileExistsError(
            f"`{destination}` holds {strange}, which `{run}` does not give: remove it, or name another folder."
        )
    with ExitStack() as files:  # all of them or none: old weights must not get a new config
        parts = {name: files.enter_context(atomic_file(destination / name)) for name in names}
        for name in copied:
            parts[name].write_bytes((run / name).read_bytes())
        if record is not None:
            parts[RECORD].write_text(record, encoding="utf-8")
        save_file(weights, parts[LORA_WEIGHTS], metadata={"format": "pt"})
        for name in needed[1:]:
            config = read_json_object(run / name, "copy it again")
            for part in ("audio_config", "text_config"):
                _name_from(config.get(part, {}), run, destination)
            config = without_places(config)
            if hub_name is not None and name == LORA_CONFIG:
                config["base_model_name_or_path"] = hub_name
            parts[name].write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    print(f"{destination / LORA_WEIGHTS}: {(destination / LORA_WEIGHTS).stat().st_size / 1e6:.1f} MB")
    return destination


def _refuse_other_weights(destination: Path, weights: dict[str, torch.Tensor]):
    """Raises: `FileExistsError` if the destination holds other weights. (The config fields among them may differ.)"""
    path = destination / LORA_WEIGHTS
    if not path.is_file():
        return
    there, compared = load_file(path), [name for name in weights if not name.endswith(f".{TENSOR}")]
    if there.keys() != weights.keys() or not all(_is_same(there[name], weights[name]) for name in compared):
        raise FileExistsError(
            f"`{destination}` holds other weights, which would be lost: name another folder, or remove it."
        )


def _is_same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


def half_weights(run: Path) -> dict[str, torch.Tensor]:
    """The adapters of a run as float16, with the fields of its config.json, which may have been edited since.

    Raises: `ValueError` if a weight has no finite float16 value.
    """
    fields = as_tensor(trained_fields(SoundwaveConfig.from_pretrained(run)))
    weights = {
        name: (weight.to(torch.float16) if weight.is_floating_point() else weight).contiguous()
        for name, weight in load_file(run / LORA_WEIGHTS).items()
    }
    refuse_infinite(weights.items(), run, "needs float32")
    return weights | {name: fields for name in weights if name.endswith(f".{TENSOR}")}


def refuse_infinite(weights: Iterable[tuple[str, torch.Tensor]], run: str | os.PathLike, way_out: str):
    """Raises: `ValueError` if a weight that is to be written is NaN or infinite, as too large ones become in float16.

    Args: run: where the weights are from. way_out: what a run needs that has not diverged.
    """
    for name, weight in weights:
        if not torch.isfinite(weight).all():
            dtype = str(weight.dtype).removeprefix("torch.")
            raise ValueError(f"`{name}` in `{run}` has no finite {dtype} value: the run diverged, or {way_out}.")


def _name_from(backbone: dict, run: Path, destination: Path):
    """Make the relative path of a backbone start at the destination instead of the run."""
    if (name := backbone.get("_name_or_path") or "").startswith("."):
        backbone["_name_or_path"] = relative_name(str((run / name).resolve()), str(destination.resolve()))


def without_places(config):
    """A config without absolute paths of this machine."""
    if isinstance(config, dict):
        kept = {key: value for key, value in config.items() if not (isinstance(value, str) and os.path.isabs(value))}
        return {key: without_places(value) for key, value in kept.items() if key != "_model_name_or_path"}
    return config


__all__ = ["export_adapter", "refuse_infinite", "without_places"]
