"""Training runs as a card describes them: read from the folder of a run, and kept with weights that leave it."""

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from ..data.used import DataUsed, read_comment
from ..json_files import read_json_object
from ..secret_values import refuse_secrets


TRAINER_STATE, RECIPE, DATA_CARD, VERSIONS = "trainer_state.json", "recipe.yaml", "data_card.md", "versions.json"
RECORD = "training_runs.json"  # beside exported and merged weights: their runs, without paths of the machine


@dataclass(frozen=True)
class Run:
    """One training run.

    Args:
        stage (`str`, *optional*): of the recipe.
        recipe (`dict`): its keys; history (`list[dict]`): a trainer's `log_history`.
        data (`DataUsed`), versions (`dict[str, str]`): of the packages.
    """

    stage: str | None = None
    recipe: Mapping = field(default_factory=dict)
    history: Sequence[Mapping] = ()
    data: DataUsed = DataUsed()
    versions: Mapping[str, str] = field(default_factory=dict)


# ---- reading ----


def read_runs(folders: Iterable[str | os.PathLike]) -> list[Run]:
    """The runs in these folders, each after the runs that it started from.

    Raises: `FileNotFoundError` for a folder without a recipe and without the record of an export.
    """
    runs: dict[str, Run] = {}
    for folder in folders:
        found = runs_of(Path(folder))
        if not found:
            raise FileNotFoundError(
                f"`{folder}` has no {RECIPE} and no {RECORD}: give the output folder of a training run."
            )
        for place, run in found.items():
            runs.setdefault(place, run)
    return list(runs.values())


def runs_of(folder: Path, seen: Sequence[Path] = ()) -> dict[str, Run]:
    """By their places: the run in a folder after those that it started from, as far as they are on this machine.

    Exported and merged weights have a record of their runs instead. Args: seen: folders that have been read.
    """
    place = folder.resolve()
    if place in seen:
        return {}
    if (folder / RECIPE).is_file():
        start = _read_yaml(folder / RECIPE).get("start_from")
        earlier = runs_of(Path(os.path.expanduser(start)), (*seen, place)) if isinstance(start, str) else {}
        return {**earlier, str(place): read_run(folder)}
    if (folder / RECORD).is_file():
        return {f"{place} {number}": run for number, run in enumerate(_read_record(folder / RECORD))}
    return {}


def read_run(folder: Path) -> Run:
    """The run in a folder."""
    recipe = _read_yaml(folder / RECIPE)
    state = read_json(folder / TRAINER_STATE)
    card = folder / DATA_CARD
    return Run(
        stage=recipe.get("stage"),
        recipe=recipe,
        history=state.get("log_history") or [],
        data=read_comment(card.read_text(encoding="utf-8")) if card.is_file() else DataUsed(),
        versions=read_json(folder / VERSIONS),
    )


def _read_record(path: Path) -> list[Run]:
    try:
        return [Run(**{**values, "data": DataUsed.of(values["data"])}) for values in read_json(path)["runs"]]
    except (KeyError, TypeError) as error:
        raise ValueError(f"`{path}` is no record of training runs ({error!r}): export or merge again.") from error


def _read_yaml(path: Path) -> dict:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"`{path}` cannot be read as YAML: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"`{path}` holds no recipe; expected keys and values.")
    return values


def read_json(path: Path) -> dict:
    """A JSON object, empty if there is no file. Raises: `ValueError` if the file holds something else."""
    if not path.is_file():
        return {}
    return read_json_object(path, "copy it again")


# ---- keeping ----


def describe_runs(folder: str | os.PathLike) -> str | None:
    """The text of `training_runs.json` for weights of a run's folder; None without a run.

    Raises: `ValueError` if a recipe holds what looks like a token or password.
    """
    found = runs_of(Path(folder)).values()
    if not found:
        return None
    runs = [dataclasses.asdict(dataclasses.replace(run, recipe=shown_recipe(run.recipe))) for run in found]
    for run in runs:
        refuse_secrets(run["recipe"], f"The recipe of `{folder}`")
    return json.dumps({"runs": runs}, indent=1, ensure_ascii=False) + "\n"


def shown_recipe(recipe: Mapping) -> dict:
    """A recipe without values that are paths of the machine or names of accounts."""
    hidden = {"output_dir", "logging_dir", "run_name", "hub_model_id", "start_from", "encoder_cache"}
    kept = {key: value for key, value in recipe.items() if key not in hidden}
    return {key: shown for key, value in kept.items() if (shown := _without_paths(value)) is not None}


def _without_paths(value):
    if isinstance(value, str):
        looks = os.path.isabs(value) or value.startswith(("~", ".", "$")) or os.path.exists(value)
        return None if looks or value.count("/") > 1 and "://" not in value else value
    if isinstance(value, Mapping):
        return {key: shown for key, each in value.items() if (shown := _without_paths(each)) is not None}
    if isinstance(value, list | tuple):
        return [shown for each in value if (shown := _without_paths(each)) is not None]
    return value


__all__ = ["RECIPE", "RECORD", "Run", "describe_runs", "read_json", "read_runs", "shown_recipe"]
