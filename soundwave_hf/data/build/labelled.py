"""Rows with all their columns, labels too: what builders read. Training reads only the columns of `rows.COLUMNS`."""

import difflib
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import accumulate

from datasets import Dataset

from ..lengths import file_key
from ..locate import OWN_KINDS, Found, find, list_sources, splits_of
from ..named_rows import (
    library_rows,
    own_rows,
    ranges_of,
    refuse_unseen,
    renamed,
    with_constant_columns,
    with_label_names,
)
from ..rows import COLUMNS, check_columns, rename


# Columns that builders read besides those of training.
LABEL_COLUMNS = (
    *("translation", "target_language", "words", "language", "gender", "emotion", "age", "entity", "entity_kind"),
    *("intent", "speaker", "speakers", "synthesized", "vocal_sound", "scene", "label", "turns", "voice", "speed"),
)
KNOWN_COLUMNS = (*COLUMNS, *LABEL_COLUMNS)


class LabelledRows:
    """The rows of one or several sources, by number. Clips are not decoded.

    Args:
        source: any value of `data` in a recipe.
        columns: `their_name: our_name`; our names are those of training and `LABEL_COLUMNS`.
        what: what errors call the source, such as "`data` of step `asr`".

    Raises: `FileNotFoundError`; `ValueError` for a mapping to an unknown name, or of a column that is not there, and
        for a line that is no row.
    """

    def __init__(self, source, columns: Mapping[str, str | None] | None = None, what: str = "`data`"):
        each_source = source if isinstance(source, Sequence) and not isinstance(source, str) else [source]
        if not each_source:
            raise ValueError(f"{what} is an empty list; give at least one source.")
        self.what = what
        self.parts = [_read_one(each, columns or {}) for each in each_source]
        self.ends = list(accumulate(len(part) for part in self.parts))
        if not len(self):
            raise ValueError(f"{what} has no rows.")

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, number: int) -> dict:
        part = bisect_right(self.ends, number)
        start = self.ends[part - 1] if part else 0
        return {key: value for key, value in self.parts[part][number - start].items() if value is not None}

    def __iter__(self) -> Iterator[dict]:
        return (self[number] for number in range(len(self)))

    def of_columns(self, *names: str) -> Iterator[dict]:
        """The rows with those columns alone, so that clips are not read."""
        for part in self.parts:
            if isinstance(part, Dataset):
                part = part.select_columns([name for name in names if name in part.column_names])
            for row in part:
                yield {name: row[name] for name in names if row.get(name) is not None}

    @cached_property
    def column_names(self) -> list[str]:
        """The columns that some row has."""
        names: dict[str, None] = {}
        for part in self.parts:
            for row in [dict.fromkeys(part.column_names, True)] if isinstance(part, Dataset) else part:
                names |= dict.fromkeys(key for key, value in row.items() if value is not None)
        return sorted(names)

    def need(self, *names: str):
        """Raises: `ValueError` if no row has one of the columns; it lists those that are there."""
        if missing := [name for name in names if name not in self.column_names]:
            raise ValueError(
                f"{self.what} has no column `{missing[0]}`. Its columns are {self.column_names}. Map others with "
                f"`columns: {{their_name: {missing[0]}}}`."
            )


def _read_one(source, columns: Mapping):
    """Rows of one source, a `Dataset` or a list of dicts, with our names."""
    own = source.get("columns", columns) if isinstance(source, Mapping) else columns
    training, labels = split_columns(own)
    given = {**source, "columns": training} if isinstance(source, Mapping) else source
    (each,) = list_sources([given], training)
    if each.streaming:
        raise ValueError(f"`{each.path}` has `streaming: true`, and rows are read by number here: leave it out.")
    found = find(each)
    if found.kind in OWN_KINDS:
        return _of_splits(found, labels)

    def with_our_columns(rows: Dataset) -> Dataset:
        return with_constant_columns(with_label_names(renamed(rows, {**training, **labels}, each.path)), each)

    return library_rows(found, with_our_columns)


def _of_splits(found: Found, labels: Mapping):
    """Rows of files that `readers` reads: one split, or parts of several (`train[:10%]+validation`)."""
    by_split = found.splits or {found.split: found.files}
    wanted = splits_of(found.split, by_split)
    whole = {name: _own_rows_of(Found(found.source, found.kind, by_split[name]), labels) for name in wanted}
    if found.split in whole:
        return whole[found.split]
    parts = ranges_of(found.split, {name: len(rows) for name, rows in whole.items()})
    return [whole[name][number] for name, numbers in parts for number in numbers]


def _own_rows_of(found: Found, labels: Mapping):
    if found.kind == "webdataset":  # cached on disk, because its rows hold their clips
        # Part of the library's cache key: a changed tar of the same name is read again.
        states = [file_key(file) for file in found.files]
        return Dataset.from_generator(_tar_rows, gen_kwargs={"found": found, "labels": labels, "states": states})
    seen: set[str] = set()
    rows = list(_own_rows(found, labels, seen))
    refuse_unseen(labels, seen, found.source.path)
    return rows


def split_columns(columns: Mapping) -> tuple[dict, dict]:
    """The mapping to the columns of training, and that to labels."""
    if not isinstance(columns, Mapping):
        check_columns(columns)
    for theirs, ours in columns.items():
        if ours is not None and ours not in KNOWN_COLUMNS:
            near = difflib.get_close_matches(str(ours), KNOWN_COLUMNS, n=1)
            hint = f"Did you mean `{near[0]}`?" if near else f"Our names are {', '.join(KNOWN_COLUMNS)}."
            raise ValueError(f"`columns` maps `{theirs}` to `{ours}`, which does not exist. {hint}")
    labels = {theirs: ours for theirs, ours in columns.items() if ours in LABEL_COLUMNS}
    training = {theirs: ours for theirs, ours in columns.items() if theirs not in labels}
    check_columns(training)
    return training, labels


def _own_rows(found: Found, labels: Mapping, seen: set[str] | None = None) -> Iterator[dict]:
    """Rows of files that `readers` reads. Args: seen: gets the columns that they have."""
    for name, row in own_rows(found.files, found.kind, found.source):
        if not isinstance(row, Mapping):
            raise ValueError(f"{name} is {row!r}; expected an object with columns.")
        if seen is not None:
            seen.update(row)
        yield rename(row, labels, name)


def _tar_rows(found: Found, labels: Mapping, states: Sequence) -> Iterator[dict]:
    return _own_rows(found, labels)


__all__ = ["KNOWN_COLUMNS", "LABEL_COLUMNS", "LabelledRows", "split_columns"]
