"""Checks of what `forward` and `generate` are given."""

import difflib
import inspect
from collections.abc import Callable, Mapping
from functools import lru_cache

import numpy as np
import torch
from transformers.utils import TransformersKwargs


# The axes of inputs that have one form. Masks and position ids have several.
AXES = {
    "input_ids": "(batch, tokens)",
    "inputs_embeds": "(batch, tokens, width)",
    "labels": "(batch, tokens)",
    "ctc_labels": "(clips, targets)",
    "ctc_candidates": "(tokens)",
    "ctc_mask": "(clips)",
}
MAY_BE_EMPTY = ("ctc_labels", "ctc_candidates")  # clips without words have no targets
TOKEN_IDS = ("input_ids", "labels", "ctc_labels", "ctc_candidates")


def has_clips(inputs: Mapping) -> bool:
    """Whether inputs of `forward` or `generate` have clips."""
    return any(inputs.get(name) is not None for name in ("input_features", "encoder_states"))


def check_tensors(inputs: Mapping):
    """Check inputs by their names; those that are None are left out. No values are read.

    Raises: `ValueError` if one is no tensor, has other axes than `AXES` says, is empty, or holds ids as floats.
    """
    for name, value in inputs.items():
        if value is None:
            continue
        if not isinstance(value, torch.Tensor):
            # The library also has masks of its own kinds: block masks, and one for each kind of layer.
            if name == "attention_mask" and not isinstance(value, list | tuple | np.ndarray):
                continue
            raise ValueError(
                f"`{name}` arrived as {type(value).__name__}; expected a tensor: give the processor "
                f'`return_tensors="pt"`, or write `torch.as_tensor({name})`.'
            )
        if (axes := AXES.get(name)) is None:
            continue
        missing = axes.count(",") + 1 - value.ndim
        if missing or (0 in value.shape and name not in MAY_BE_EMPTY):
            hint = f" For one row write `{name}[None]`." if missing == 1 else ""
            raise ValueError(f"`{name}` has shape {tuple(value.shape)}; expected {axes}, each 1 or more.{hint}")
        if name in TOKEN_IDS and value.is_floating_point():
            raise ValueError(f"`{name}` arrived as {value.dtype}; expected ids, as in `{name}.long()`.")


def check_shapes(clips: Mapping, form: str, frames_axis: int, width: int | None = None):
    """Check the shapes of clips and of their mask, which may be None.

    Args: clips: the two by their names; form: expected shape of the clips; width: expected length of the last axis.
    """
    (name, values), (mask_name, mask) = clips.items()
    if values.ndim != 3 or width not in (None, values.shape[-1]):
        raise ValueError(f"`{name}` has shape {tuple(values.shape)}; expected {form}, one row for each clip.")
    if 0 in values.shape:
        raise ValueError(
            f"`{name}` has shape {tuple(values.shape)}; expected {form}, each 1 or more. Leave clips without frames "
            f"out, and without clips `{name}` too."
        )
    expected = values.shape[0], values.shape[frames_axis]
    if mask is not None and mask.shape != expected:
        frames = "mel_frames" if frames_axis == 2 else "frames"
        raise ValueError(
            f"`{mask_name}` has shape {tuple(mask.shape)} and `{name}` {tuple(values.shape)}: the mask must be "
            f"(clips, {frames}), here {tuple(expected)}."
        )


def check_values(clips: Mapping):
    """Check the values of clips and of their mask, which may be None. An accelerator is waited for once.

    Args: clips: the two by their names, the clips first.

    Raises: `ValueError` if a mask is not ones and then zeros, or a clip holds NaN or infinite values.
    """
    (name, values), (mask_name, mask) = clips.items()
    infinite = ~torch.isfinite(values)
    wrong = infinite.any()
    if mask is not None:
        unpadded = ~mask[:, 0].bool() | (mask.int().diff(dim=1) > 0).any(dim=1)  # [clips]
        wrong = wrong | unpadded.any()
    if not wrong:
        return
    if mask is not None and unpadded.any():
        raise ValueError(
            f"`{mask_name}` of clip {int(unpadded.int().argmax())} is not ones and then zeros: a clip needs at least "
            "one true frame and is padded on the right."
        )
    raise ValueError(
        f"`{name}` of clip {int(infinite.flatten(1).any(dim=1).int().argmax())} holds {values[infinite][0].item()}; "
        "expected finite values. Check how it was computed (division by the loudness of silence, half-precision "
        "overflow)."
    )


def check_ids(name: str, ids: torch.Tensor, vocabulary: int):
    """Raises: `ValueError` if ids are outside an LLM's vocabulary."""
    wrong = (ids < 0) | (ids >= vocabulary)
    if wrong.any():
        raise ValueError(
            f"`{name}` holds id {int(ids[wrong][0])} and the LLM's vocabulary has {vocabulary} ids: use the processor "
            "that was saved with the model."
        )


@lru_cache
def _known_arguments(function: Callable) -> frozenset[str]:
    # `unseen_by_trainer` removed the first from the signature; the whole model passes the others on.
    own = ("ctc_labels", "num_ctc_clips", "ctc_mask")
    return frozenset({*inspect.signature(function).parameters, *own, *TransformersKwargs.__annotations__})


@lru_cache
def _nearest_argument(function: Callable, name: str) -> str | None:
    return next(iter(difflib.get_close_matches(name, _known_arguments(function), n=1, cutoff=0.8)), None)


def refuse_misspelt(function: Callable, given: dict):
    """Refuse misspelt arguments of `function`. Other keywords go to the LLM, which ignores unknown ones.

    Raises: `ValueError` with the closest argument.
    """
    if torch.compiler.is_compiling():  # which warns of cached functions; an eager call checks the same names
        return
    for name in given.keys() - _known_arguments(function):
        if nearest := _nearest_argument(function, name):
            raise ValueError(f"`forward` got an unknown argument `{name}`. Did you mean `{nearest}`?")


def unseen_by_trainer(name: str):
    """Remove an argument from a function's signature.

    `Trainer` expects each argument with "label" in its name in every batch, or it reports no `eval_loss`.
    """

    def hide(function):
        signature = inspect.signature(function)
        kept = [parameter for parameter in signature.parameters.values() if parameter.name != name]
        function.__signature__ = signature.replace(parameters=kept)
        return function

    return hide


__all__ = [
    "check_ids",
    "check_shapes",
    "check_tensors",
    "check_values",
    "has_clips",
    "refuse_misspelt",
    "unseen_by_trainer",
]
