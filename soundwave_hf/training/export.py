"""`soundwave-hf export RUN DST`: what a run trained, in half precision, as a folder to ship."""

import json
import os
from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from ..atomic import atomic_file
from ..modeling.configuration_soundwave import relative_name


WEIGHTS = "adapter_model.safetensors"


def export_adapter(run: str | os.PathLike, destination: str | os.PathLike, hub_name: str | None = None) -> Path:
    """Write the adapters and LoRA of a stage II or III run as float16, with the configs that loading them needs.

    Args: hub_name: the hub repository that the folder will be, by whose name the Auto classes of transformers then
        load it: they follow the name of a base model in adapter_config.json before they ask our class.

    Raises: `FileNotFoundError` where the run holds none, `ValueError` where a weight has no finite float16 value,
    `OSError` where the destination cannot be written; it is then as it was.
    """
    run, destination = Path(run), Path(destination)
    needed = [WEIGHTS, "adapter_config.json", "config.json", "processor_config.json"]
    missing = [name for name in needed if not (run / name).is_file()]
    if missing:
        raise FileNotFoundError(f"`{run}` lacks {missing}: give the output folder of a finished stage II or III.")
    weights = {
        name: (weight.to(torch.float16) if weight.is_floating_point() else weight).contiguous()
        for name, weight in load_file(run / WEIGHTS).items()
    }
    for name, weight in weights.items():
        if not torch.isfinite(weight).all():
            raise ValueError(f"`{name}` in `{run}` has no finite float16 value: the run diverged, or needs float32.")
    with ExitStack() as files:  # all of them, or none: old weights go with no new config
        parts = {name: files.enter_context(atomic_file(destination / name)) for name in [*needed[1:], WEIGHTS]}
        save_file(weights, parts[WEIGHTS], metadata={"format": "pt"})
        for name in needed[1:]:
            config = json.loads((run / name).read_text(encoding="utf-8"))
            for part in ("audio_config", "text_config"):
                _name_from(config.get(part, {}), run, destination)
            config = _without_places(config)
            if hub_name is not None and name == "adapter_config.json":
                config["base_model_name_or_path"] = hub_name
            parts[name].write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    print(f"{destination / WEIGHTS}: {(destination / WEIGHTS).stat().st_size / 1e6:.1f} MB")
    return destination


def _name_from(backbone: dict, run: Path, destination: Path):
    """A backbone that lies in a folder is named by its way from the destination, no longer from the run."""
    if (name := backbone.get("_name_or_path") or "").startswith("."):
        backbone["_name_or_path"] = relative_name(str((run / name).resolve()), str(destination.resolve()))


def _without_places(config):
    """A config without the folders of the machine that made it."""
    if isinstance(config, dict):
        kept = {key: value for key, value in config.items() if not (isinstance(value, str) and os.path.isabs(value))}
        return {key: _without_places(value) for key, value in kept.items() if key != "_model_name_or_path"}
    return config


__all__ = ["export_adapter"]
