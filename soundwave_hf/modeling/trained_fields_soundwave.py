"""The config fields that trained adapters depend on, saved as a tensor among their weights.

PEFT saves and loads only tensors. Without this one, adapters would load silently on a model with another
`blank_margin` or without label embeddings. PEFT saves the tensor with the alignment adapter (`modules_to_save`). When
PEFT loads it, it is compared with the model's config.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import nn


# Fields that determine which weights exist or what they mean.
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
    "encoder_lora",
)
LATER_FIELDS = {"ctc_text": "lower", "encoder_lora": None}  # fields that old tensors lack, and their value there
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
    """`"`blank_margin` is 0.0, not 1.0"` for each field that differs; empty if none does."""
    names = sorted(name for name in found.keys() & expected.keys() if found[name] != expected[name])
    return "; ".join(f"`{name}` is {found[name]!r}, not {expected[name]!r}" for name in names)


def as_tensor(fields: dict) -> torch.Tensor:
    """Fields as the bytes of their JSON, `(bytes,)`, which half precision can represent exactly."""
    return torch.tensor(list(json.dumps(fields, sort_keys=True).encode()), dtype=torch.uint8)


def from_tensor(saved: torch.Tensor) -> dict:
    return LATER_FIELDS | json.loads(bytes(saved.to(torch.uint8).tolist()))


def keep_trained_fields(adapter: nn.Module):
    """Make an alignment adapter save its fields with PEFT and compare them on loading."""
    adapter.register_state_dict_post_hook(_write)
    adapter.register_load_state_dict_pre_hook(_compare)


def _is_sharded(module: nn.Module) -> bool:
    """Whether weights are sharded. The libraries that do this gather only parameters."""
    return any(hasattr(p, "device_mesh") or hasattr(p, "ds_id") for p in module.parameters())


def _write(module: nn.Module, state_dict: dict, prefix: str, local_metadata):
    # Only in the state of the adapter itself, and of PEFT's copy of it in the whole model: PEFT needs both. A
    # checkpoint of the whole model has a config.json instead.
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
