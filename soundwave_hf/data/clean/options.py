"""Thresholds of filters: dataclass fields with a type and a range, checked when a filter is made."""

import dataclasses
import math
import os
import types
from typing import get_args, get_type_hints

from .filter import Filter


KINDS = {float: "a number", int: "a whole number", str: "text", bool: "true or false"}


def number(default, least: float = -math.inf, most: float = math.inf):
    """A dataclass field with a range. `...` as the default makes the field required."""
    given = {} if default is ... else {"default": default}
    return dataclasses.field(**given, metadata={"least": least, "most": most})


class Thresholds:
    """A dataclass that checks its fields when it is made. `name` is what errors call it.

    Raises: `TypeError` for a value of another type, `ValueError` for one out of range or a minimum above its maximum.
    """

    def __post_init__(self):
        kinds = get_type_hints(type(self))
        for field in dataclasses.fields(self):
            setattr(self, field.name, self._checked(field, kinds[field.name]))
        low = {name: value for name, value in vars(self).items() if name.startswith("min_") and value is not None}
        for name, value in low.items():
            other = "max_" + name.removeprefix("min_")
            if (limit := getattr(self, other, None)) is not None and value > limit:
                raise ValueError(
                    f"`{self.name}` has `{name}: {value}` above `{other}: {limit}`, so it would keep no row: lower "
                    "the first or raise the second."
                )

    def _checked(self, field: dataclasses.Field, kind):
        """The value of a field, whole numbers as `float` where the field is one."""
        value = getattr(self, field.name)
        optional = isinstance(kind, types.UnionType) and type(None) in get_args(kind)
        kind = next(part for part in get_args(kind) if part is not type(None)) if optional else kind
        if value is None and optional:
            return None
        if kind is str and isinstance(value, os.PathLike):
            return os.fspath(value)
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        right = is_whole or isinstance(value, float) if kind is float else isinstance(value, kind)
        if not right or (kind is int and isinstance(value, bool)) or (kind is str and not value):
            raise TypeError(
                f"`{self.name}` has `{field.name}: {value!r}`; expected {KINDS[kind]}{' or null' if optional else ''}."
            )
        least, most = field.metadata.get("least", -math.inf), field.metadata.get("most", math.inf)
        if kind in (int, float) and not (math.isfinite(value) and least <= value <= most):
            raise ValueError(f"`{self.name}` has `{field.name}: {value}`; expected {_range(least, most)}.")
        return float(value) if kind is float else value


class ThresholdFilter(Thresholds, Filter):
    """A filter that checks its fields when it is made."""


def _range(least: float, most: float) -> str:
    if math.isinf(most):
        return "a finite number" if math.isinf(least) else f"{least:g} or more"
    return f"{most:g} or less" if math.isinf(least) else f"a number from {least:g} to {most:g}"


__all__ = ["ThresholdFilter", "Thresholds", "number"]
