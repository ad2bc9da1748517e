"""The YAML file of the filters: `{filter: {key: value} | false}`."""

import dataclasses
import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from ...keys import read_yaml_file
from ...paths import expand_path
from .duplicates import COMPARISONS, Comparison, Comparisons
from .filter import Filter
from .sound_filters import SOUND_FILTERS
from .text_filters import TEXT_FILTERS


NAME = "The settings of the filters"  # what errors call a mapping


def filter_classes() -> dict[str, type[Filter | Comparison]]:
    """All filters by name, in the order in which they run: those without a model first, comparisons last."""
    from .recognisers import RECOGNISERS

    return {each.name: each for each in (*TEXT_FILTERS, *SOUND_FILTERS, *RECOGNISERS, *COMPARISONS)}


def read_settings(settings: Mapping | str | os.PathLike | None = None) -> list[Filter | Comparison]:
    """The filters of a cleaning run.

    Args: settings: a mapping, or the path of a YAML file with one, from a filter's name to its keys. A filter that is
        not named has its defaults, the paper's values where the paper has one. `false` turns a filter off. `whisper`,
        `language` and `ctc` need a model and are off until they are named with one, and so is `near_duplicate_text`
        until it is named with a similarity:

        ```yaml
        seconds: {min_seconds: 1}
        clipping: false
        whisper: {model: openai/whisper-base, max_wer: 0.1}
        ctc: {model: weights/soundwave-small}
        near_duplicate_text: {similarity: 0.8}
        ```

    Raises: `ValueError` for an unknown filter or key (it suggests the closest valid one), a value out of range and a
        file that is not such YAML; `TypeError` for a value of another type; `FileNotFoundError`.
    """
    given, where = _read(settings)
    classes = filter_classes()
    for name in given:
        if name not in classes:
            raise ValueError(f"{where}: there is no filter `{name}`. {_closest(name, classes)}")
    filters = [_make(own, given.get(name, _default(own)), where) for name, own in classes.items()]
    return [each for each in filters if each is not None]


def _read(settings) -> tuple[Mapping, str]:
    """The mapping, and what errors call it."""
    if settings is None:
        return {}, NAME
    if isinstance(settings, Mapping):
        return settings, NAME
    path = Path(expand_path(settings, NAME))
    where = f"`{path}`"
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {where} with the settings of the filters.")
    values = read_yaml_file(path)
    if values is None:
        return {}, where
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} holds {values!r}; expected lines such as `seconds: {{min_seconds: 1}}`.")
    return values, where


def _default(own: type[Filter | Comparison]) -> Mapping | bool:
    """The setting of a filter that is not named: off if it needs a key."""
    return False if _required(own) else {}


def _required(own: type[Filter | Comparison]) -> list[str]:
    missing = dataclasses.MISSING
    return [
        field.name
        for field in dataclasses.fields(own)
        if field.default is missing and field.default_factory is missing
    ]


def _make(own: type[Filter | Comparison], keys, where: str) -> Filter | Comparison | None:
    if keys is False:
        return None
    known = [field.name for field in dataclasses.fields(own)]
    keys = {} if keys is True else keys
    if not isinstance(keys, Mapping):
        raise TypeError(
            f"{where}: `{own.name}` is {'null' if keys is None else repr(keys)}; expected keys such as "
            f"`{own.name}: {{{known[0]}: ...}}`, `true` for the defaults, or `false` to turn the filter off."
        )
    for key in keys:
        if key not in known:
            raise ValueError(f"{where}: `{own.name}` has no key `{key}`. {_closest(key, known)}")
    if lacking := [name for name in _required(own) if name not in keys]:
        raise ValueError(
            f"{where}: `{own.name}` needs `{lacking[0]}`: give it, such as `{own.name}: {{{lacking[0]}: NAME}}`, "
            f"or turn the filter off with `{own.name}: false`."
        )
    try:
        return own(**keys)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{where}: {error}") from error


def _closest(name, known) -> str:
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.4)
    hint = f"Did you mean `{near[0]}`? " if near else ""
    return f"{hint}Known are {', '.join(known)}."


# ---- settings of a run ----


def read_filters(filters) -> tuple[list[Filter], Comparisons]:
    """The filters of single rows, and the comparisons, of a YAML file, a mapping, or a list of both.

    Raises: `ValueError`, `TypeError` for a key or value that no filter has; `FileNotFoundError`.
    """
    if filters is None or isinstance(filters, str | os.PathLike | Mapping):
        filters = read_settings(filters)
    for each in filters:
        if not isinstance(each, Filter | Comparison):
            raise TypeError(f"`filters` holds {each!r}; expected `Filter` and `Comparison` objects.")
    rows = [each for each in filters if isinstance(each, Filter)]
    return rows, Comparisons.of(each for each in filters if isinstance(each, Comparison))


def settings_of(filters: Sequence[Filter], limits: Comparisons) -> dict:
    """Filters as the mapping that `read_filters` takes: those that are off are false."""
    off = dict.fromkeys(filter_classes(), False)
    return off | {each.name: filter_settings(each) for each in (*filters, *limits)}


def filter_settings(each: Filter | Comparison) -> dict:
    """The fields of a filter: its keys in the YAML file."""
    values = (
        {field.name: getattr(each, field.name) for field in dataclasses.fields(each)}
        if dataclasses.is_dataclass(each)
        else {}
    )
    return {
        name: value if isinstance(value, int | float | str | None) else str(value) for name, value in values.items()
    }


__all__ = ["filter_classes", "filter_settings", "read_filters", "read_settings", "settings_of"]
