"""The config fields that trained adapters depend on, saved as a tensor among their weights.

PEFT saves and loads only tensors: without this, adapters would load silently on a model with another `blank_margin` or
without label embeddings. PEFT saves the tensor with the alignment adapter (`modules_to_save`), and it is compared with
the model's config when PEFT loads it.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import nn


# Fields that change which weights there are or what the model makes of them.
TRAINED_FIELDS = (
    "stack_factor",
    "alignment_layers",
    "alignment_attention",
    "look_back",
    "keep_blanks",
    "tie_ctc_head",
    "blank_margin",
    "label_embeddings",
    "adapter_heads",
    "ctc_text",
)
LATER_FIELDS = {"ctc_text": "lower"}  # younger than the first tensors of fields, and the value that those stand for
TENSOR = "trained_fields"  # its name in the alignment adapter
OWN_WAYS = (
    "Load the folder by `SoundwaveForConditionalGeneration.from_pretrained(folder)`, which reads the fields from "
    "its config.json; with `merge_lora=False` it returns a `PeftModel`."
)

_is_checked = ContextVar("is_checked", default=False)


@contextmanager
def checked_by_caller() -> Iterator[None]:
    """A context for loading weights whose config.json was already checked: the tensor is not compared again."""
    token = _is_checked.set(True)
    try:
        yield
    finally:
        _is_checked.reset(token)


def trained_fields(config) -> dict:
    """The values of `TRAINED_FIELDS` in a `SoundwaveConfig`."""
    return {name: getattr(config, name) for name in TRAINED_FIELDS}


def differing_fields(found: dict, expected: dict) -> str:
    """`"`blank_margin` is 0.0, not 1.0"` for each field of both that differs; empty if none does."""
    names = sorted(name for name in found.keys() & expected.keys() if found[name] != expected[name])
    return "; ".join(f"`{name}` is {found[name]!r}, not {expected[name]!r}" for name in names)


def as_tensor(fields: dict) -> torch.Tensor:
    """Fields as the bytes of their JSON, `(bytes,)`: they survive a cast to half precision."""
    return torch.tensor(list(json.dumps(fields, sort_keys=True).encode()), dtype=torch.uint8)


def from_tensor(saved: torch.Tensor) -> dict:
    return LATER_FIELDS | json.loads(bytes(saved.to(torch.uint8).tolist()))


def keep_trained_fields(adapter: nn.Module):
    """Make an alignment adapter save its fields with PEFT, and compare them when they are loaded."""
    adapter.register_state_dict_post_hook(_write)
    adapter.register_load_state_dict_pre_hook(_compare)


def _is_sharded(module: nn.Module) -> bool:
    """Whether libraries for training in parts hold its weights, which gather parameters and nothing else."""
    return any(hasattr(p, "device_mesh") or hasattr(p, "ds_id") for p in module.parameters())


def _write(module: nn.Module, state_dict: dict, prefix: str, local_metadata):
    # Of the adapter alone, as PEFT asks which weights it has, and of the whole model around PEFT's copy of it. A
    # checkpoint of the whole model has its config.json instead.
    if (prefix == "" or "modules_to_save." in prefix) and not _is_checked.get() and not _is_sharded(module):
        state_dict[prefix + TENSOR] = as_tensor(trained_fields(module.config))


def _compare(module: nn.Module, state_dict: dict, prefix: str, *_):
    """Raises: `ValueError` if the weights were trained with other fields than the module's config has."""
    saved = state_dict.pop(prefix + TENSOR, None)
    if saved is None or _is_checked.get():
        return
    if differing := differing_fields(trained_fields(module.config), from_tensor(saved)):
        raise ValueError(f"These adapters were trained with another config: here {differing}. {OWN_WAYS}")


__all__ = [
    "OWN_WAYS",
    "TRAINED_FIELDS",
    "checked_by_caller",
    "differing_fields",
    "keep_trained_fields",
    "trained_fields",
]
