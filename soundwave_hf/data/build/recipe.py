"""The recipe of `soundwave-hf data build`: a YAML file or a dict -> steps, with every key checked."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from ...keys import read_yaml_file, refuse_unknown
from ...paths import expand_path
from .steps import STEPS, Step


FORMATS = ("jsonl", "parquet")
STEP_KEYS = ("build", "name", "from")


@dataclass(frozen=True)
class BuildRecipe:
    """What to build.

    Args:
        steps: in order. A step may read the rows of an earlier one.
        values: as they were written, to tell whether a folder holds the same run.
        seed: of all draws.
        format: `jsonl`, with clips as FLAC files beside it, or `parquet`, with clips inside.
        shard_rows: rows that are written at once; a run that is stopped loses at most these.
    """

    steps: tuple[Step, ...]
    values: dict
    seed: int = 0
    format: str = "jsonl"
    shard_rows: int = 1000


RECIPE_KEYS = ("seed", "format", "shard_rows", "steps")


def read_build_recipe(recipe: str | os.PathLike | Mapping, folder: Path) -> BuildRecipe:
    """A recipe with checked keys.

    Args:
        recipe: YAML file or dict.
        folder: where the rows will be, for steps that read those of another.
    Raises: `ValueError` for an unknown key, with the closest known one, and for a value that is not allowed;
        `FileNotFoundError`.
    """
    values = dict(recipe) if isinstance(recipe, Mapping) else _read_yaml(Path(recipe))
    refuse_unknown(values, RECIPE_KEYS, "The recipe", f"Its keys are {', '.join(RECIPE_KEYS)}.")
    seed, kind, shard_rows = (
        values.get(key, default) for key, default in (("seed", 0), ("format", "jsonl"), ("shard_rows", 1000))
    )
    if type(seed) is not int or type(shard_rows) is not int or shard_rows < 1:
        raise ValueError(
            f"`seed` is {seed!r} and `shard_rows` is {shard_rows!r}; give whole numbers, shards of 1 or more."
        )
    if kind not in FORMATS:
        raise ValueError(f"`format` is {kind!r}; give one of {', '.join(FORMATS)}.")
    given = values.get("steps")
    if not isinstance(given, Sequence) or isinstance(given, str) or not given:
        raise ValueError(f"`steps` is {given!r}; give a list of steps, each with `build` and `data`.")
    steps: list[Step] = []
    for place, step in enumerate(given):
        steps.append(_read_step(step, place, steps, seed, folder, kind))
    return BuildRecipe(tuple(steps), values, seed, kind, shard_rows)


def _read_yaml(path: Path) -> dict:
    if not path.is_file():
        raise FileNotFoundError(f"There is no recipe `{path}` (current folder: {os.getcwd()}).")
    values = read_yaml_file(path)
    if not isinstance(values, dict):
        raise ValueError(f"`{path}` holds {values!r}; expected keys and values, with a list of `steps`.")
    return values


def _read_step(given, place: int, earlier: Sequence[Step], seed: int, folder: Path, kind: str) -> Step:
    if not isinstance(given, Mapping) or given.get("build") not in STEPS:
        what = given.get("build") if isinstance(given, Mapping) else given
        raise ValueError(f"Step {place} has `build` {what!r}; give one of {', '.join(STEPS)}.")
    owner, name = STEPS[given["build"]], given.get("name", given["build"])
    keys = [f.name for f in fields(owner) if f.name not in ("name", "seed")]
    keys = (*STEP_KEYS, *keys)
    refuse_unknown(given, keys, f"Step `{name}`", f"Its keys are {', '.join(keys)}.")
    names = [step.name for step in earlier]
    if not isinstance(name, str) or not _is_name(name) or name in names:
        raise ValueError(
            f"Step {place} has the name {name!r}; give each step its own `name`, of letters, digits and `_`."
        )
    values = {key: value for key, value in given.items() if key not in STEP_KEYS}
    if "from" in given:
        if "data" in given or given["from"] not in names:
            raise ValueError(
                f"Step `{name}` has `from` {given['from']!r}; give an earlier step of {names}, and no `data`."
            )
        values["data"] = os.path.join(folder, manifests(given["from"], kind))
    for key in (*owner.paths, *(key for key in ("model", "add_tokens_to") if key in values)):
        values[key] = _expanded(values.get(key), f"`{key}` of step `{name}`")
    return owner(name=name, seed=seed, **values)


def _is_name(name: str) -> bool:
    return bool(name) and name[0].isalnum() and all(char.isalnum() or char == "_" for char in name)


def _expanded(value, name: str):
    """A source with `~` and `$VARIABLES` of its path replaced."""
    return expand_path(value, name) if isinstance(value, str) and value[:1] in "~$./" else value


def manifests(step: str, kind: str) -> str:
    """The pattern of the files of a step."""
    return f"{step}-*.{kind}"


__all__ = ["BuildRecipe", "manifests", "read_build_recipe"]
