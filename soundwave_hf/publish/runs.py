"""Training runs as a card describes them: read from the folder of a run, and kept with weights that leave it."""

import dataclasses
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from transformers.utils import logging

from ..data.locate import looks_local
from ..data.used import DataUsed, read_comment, read_metadata
from ..json_files import read_json_object
from ..keys import read_yaml_file
from ..paths import expand_path, find_weights
from ..secret_values import refuse_secrets


logger = logging.get_logger(__name__)

TRAINER_STATE, RECIPE, DATA_CARD, VERSIONS = "trainer_state.json", "recipe.yaml", "data_card.md", "versions.json"
CARD, TITLE = "README.md", re.compile(r"^# (.+)$", re.MULTILINE)
HIDDEN = (
    "output_dir",
    "logging_dir",
    "run_name",
    "hub_model_id",
    "start_from",
    "encoder_cache",
    "resume_from_checkpoint",
)
FILE = re.compile(r"\.(jsonl?|ya?ml|[ct]sv|txt|parquet|py|pt|bin|safetensors)$", re.IGNORECASE)
RECORD = "training_runs.json"  # beside exported and merged weights: their runs, without paths of the machine


@dataclass(frozen=True)
class Run:
    """One training run.

    Args:
        stage (`str`, *optional*): of the recipe.
        recipe (`dict`): its keys; history (`list[dict]`): a trainer's `log_history`.
        data (`DataUsed`), versions (`dict[str, str]`): of the packages.
        weights, license (`str`, *optional*): name and licence of weights whose run is not here, from their card.
    """

    stage: str | None = None
    recipe: Mapping = field(default_factory=dict)
    history: Sequence[Mapping] = ()
    data: DataUsed = DataUsed()
    versions: Mapping[str, str] = field(default_factory=dict)
    weights: str | None = None
    license: str | None = None


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

    Exported and merged weights have a record of their runs instead, and those of somebody else only a card.

    Args: seen: folders that have been read.
    """
    place = folder.resolve()
    if place in seen:
        return {}
    if (folder / RECIPE).is_file():
        start = _read_recipe(folder / RECIPE).get("start_from")
        return {**(_earlier_runs(folder, start, (*seen, place)) if start else {}), str(place): read_run(folder)}
    if (folder / RECORD).is_file():
        return {f"{place} {number}": run for number, run in enumerate(_read_record(folder / RECORD))}
    known = _read_card(folder / CARD)
    return {} if known is None else {str(place): known}


def _earlier_runs(folder: Path, start: str, seen: Sequence[Path]) -> dict[str, Run]:
    """The runs of `start_from`, as far as they are here. A relative path begins in the current folder."""
    try:
        place = Path(expand_path(find_weights(start), "`start_from`"))
    except ValueError:  # a variable or user of another machine
        place = None
    found = {} if place is None else runs_of(place, seen)
    if not found:
        why = "no folder of that name is here: if it was one, start the command where the run was started"
        if place is not None and place.is_dir():
            why = f"that folder has no {RECIPE}, no {RECORD}, and no {CARD} that states a licence"
        logger.warning(
            f"`{folder}` started from `{start}`, and {why}. Its recipe, data and licence are left out: find out "
            "the licence, and give it to `soundwave-hf push` with `--license`."
        )
    return found


def known_weights(start: str | None) -> list[Run]:
    """The weights that a run starts from, or that those come from, where only their card is known."""
    runs = {} if start is None else runs_of(Path(find_weights(start)))
    return [run for run in runs.values() if run.weights]


def _read_card(path: Path) -> Run | None:
    """What the card of weights says of them; None without a card that states a licence."""
    license, languages = read_metadata(path) if path.is_file() else (None, [])
    if license is None:
        return None
    title = TITLE.search(path.read_text(encoding="utf-8"))
    name = title[1].strip() if title else path.resolve().parent.name
    return Run(weights=name, license=license, data=DataUsed(languages=tuple(languages)))


def read_run(folder: Path) -> Run:
    """The run in a folder."""
    recipe = _read_recipe(folder / RECIPE)
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


def _read_recipe(path: Path) -> dict:
    values = read_yaml_file(path)
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
    runs = [_described(run) for run in found]
    for run in runs:
        refuse_secrets(run["recipe"], f"The recipe of `{folder}`")
    return json.dumps({"runs": runs}, indent=1, ensure_ascii=False) + "\n"


def _described(run: Run) -> dict:
    return dataclasses.asdict(dataclasses.replace(run, recipe=shown_recipe(run.recipe, run.data.datasets)))


def shown_recipe(recipe: Mapping, datasets: Sequence[str] = ()) -> dict:
    """A recipe without values that are paths of the machine or names of accounts.

    Only data may be named by a folder that looks like a word; other values are paths by their form alone. So a card
    does not depend on what else the current folder holds. Args: datasets: names in the recipe that are of the Hub.
    """
    kept = {key: value for key, value in recipe.items() if key not in HIDDEN}
    places = {key: _is_place if key in ("data", "eval_data") else _is_path for key in kept}
    shown = {key: _without_paths(value, places[key], datasets) for key, value in kept.items()}
    return {key: value for key, value in shown.items() if value is not None}


def _without_paths(value, is_path: Callable[[str], bool], datasets: Sequence[str]):
    if isinstance(value, str):
        return None if value not in datasets and is_path(value) else value
    if isinstance(value, Mapping):  # `repeat` has sources as keys
        found = {key: each for key, each in value.items() if not _is_path(str(key))}
        shown = {key: _without_paths(each, is_path, datasets) for key, each in found.items()}
        return {key: each for key, each in shown.items() if each is not None}
    if isinstance(value, list | tuple):
        return [shown for each in value if (shown := _without_paths(each, is_path, datasets)) is not None]
    return value


def _is_path(value: str) -> bool:
    """Whether a value has the form of a path. `user/model` and words have not."""
    if value.startswith(("/", "~", ".", "$", "file:")) or "\\" in value:
        return True
    return "://" not in value and (value.count("/") > 1 or FILE.search(value) is not None)


def _is_place(value: str) -> bool:
    """Whether training reads data of this name from the machine."""
    return _is_path(value) or looks_local(value)


__all__ = ["RECIPE", "RECORD", "Run", "describe_runs", "known_weights", "read_json", "read_runs", "shown_recipe"]
