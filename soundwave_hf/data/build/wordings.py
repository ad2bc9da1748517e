"""Wordings of tasks, from the files in `wordings/`: how a request is put, and how a full sentence answers it."""

import string
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ...keys import read_yaml_file
from .draws import NotBuilt
from .grounding import fold


FOLDER = Path(__file__).with_name("wordings")
FEWEST = 50  # wordings of a task (paper, appendix A)
KEYS = ("wordings", "sentences", "absent")


@dataclass(frozen=True)
class Wordings:
    """What a file holds.

    Args:
        wordings: requests. Each has all placeholders of the task.
        sentences: answers with `{label}`, and any placeholder of the task; empty for a task with free answers.
        absent: the sentences of a grounding answer for a phrase that is not said.
    """

    wordings: tuple[str, ...]
    sentences: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()


def placeholders(text: str) -> set[str]:
    """`"Is {phrase} said?"` -> `{"phrase"}`. Raises: `ValueError` for a brace that opens or closes nothing."""
    return {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}


@cache
def read_wordings(task: str, needed: tuple[str, ...] = (), folder: Path = FOLDER) -> Wordings:
    """The wordings of a task.

    Args:
        needed: placeholders that each wording must have. Sentences may have them.
        folder: of the YAML files, one for each task.
    Raises: `ValueError` for fewer than 50 wordings, two that differ only in case or marks, and a placeholder that is
        missing or unknown; `FileNotFoundError`.
    """
    path = folder / f"{task}.yaml"
    given = read_yaml_file(path)
    if not isinstance(given, dict) or set(given) - set(KEYS) or "wordings" not in given:
        raise ValueError(f"`{path}` holds {sorted(given) if isinstance(given, dict) else given!r}; expected {KEYS}.")
    lists = {key: _texts(given.get(key, []), f"`{key}` of `{path}`") for key in KEYS}
    if len(lists["wordings"]) < FEWEST:
        raise ValueError(f"`{path}` has {len(lists['wordings'])} wordings; expected at least {FEWEST}.")
    for text in lists["wordings"]:
        _check_placeholders(text, set(needed), set(needed), path)
    for text in lists["sentences"]:
        _check_placeholders(text, {"label"}, {"label", *needed}, path)
    for text in lists["absent"]:
        _check_placeholders(text, set(needed), set(needed), path)
    return Wordings(**{key: tuple(texts) for key, texts in lists.items()})


def _texts(given, name: str) -> Sequence[str]:
    if not isinstance(given, list) or not all(isinstance(text, str) and text.strip() for text in given):
        raise ValueError(f"{name} is {given!r}; expected a list of texts.")
    seen: dict[str, str] = {}
    for text in given:
        if (known := seen.setdefault(fold(text), text)) is not text:
            raise ValueError(f"{name} has {known!r} and {text!r}, which differ only in case or marks: remove one.")
    return given


def _check_placeholders(text: str, needed: set[str], allowed: set[str], path: Path):
    try:
        found = placeholders(text)
    except ValueError as error:
        raise ValueError(f"{text!r} in `{path}` has a brace without its other half ({error}).") from error
    if found - allowed or needed - found:
        raise ValueError(
            f"{text!r} in `{path}` has the placeholders {sorted(found)}; expected {sorted(needed)}"
            f"{f' of {sorted(allowed)}' if allowed != needed else ''}."
        )


def fill(text: str, values: dict[str, str], name: str) -> str:
    """A wording with its placeholders filled. Raises: `NotBuilt` for a placeholder without a value."""
    if missing := sorted(placeholders(text) - {key for key, value in values.items() if value}):
        raise NotBuilt(f"{name} has no value for the placeholder {{{missing[0]}}} of the wording {text!r}.")
    return text.format(**values)


@cache
def choice_lines(folder: Path = FOLDER) -> tuple[str, ...]:
    """How options are introduced; each has `{options}`."""
    path = folder / "choices.yaml"
    lines = _texts(read_yaml_file(path), f"`{path}`")
    for line in lines:
        _check_placeholders(line, {"options"}, {"options"}, path)
    return tuple(lines)


__all__ = ["FEWEST", "FOLDER", "Wordings", "choice_lines", "fill", "placeholders", "read_wordings"]
