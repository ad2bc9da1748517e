"""The rows of any source in parts (files or shards), read while they are used, and their columns.

Unlike `tables` and `streams`, a row that cannot be used does not stop the reading: it comes with its problem.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

import pyarrow as pa
from datasets import Audio, ClassLabel, Features, List, Value

from ..cuts import Cutter
from ..each_row import is_segment
from ..locate import OWN_KINDS, Found, Source, find, folder_of, list_sources
from ..named_rows import own_rows, refuse_unseen, undecoded, under_our_names, with_constants
from ..rows import COLUMNS, TEXTS, RowCheck, row_at_folder, stored_clip, stored_messages
from ..streams import library_stream, shards_of
from ..tables import MESSAGES, open_rows


SCANNED_KINDS = ("json", "csv", "audiofolder")  # their rows are read once before the run: they hold no recordings
FIRST_ROWS = 100  # of other kinds, which are looked at before the run
SCANNED_AT_ONCE = 1000
CHECK = RowCheck()


@dataclass(frozen=True)
class Row:
    """A row of a source: its name in errors, its values with our column names, and why it cannot be used, if so."""

    name: str
    values: dict
    problem: str | None = None


@dataclass(frozen=True)
class Part:
    """A file or shard of a source. `read` begins again each time."""

    source: Source
    kind: str
    read: Callable[[], Iterator[Row]] = field(repr=False)
    features: Features | None = None  # types of its columns, if the source declares them


def checked(name: str, row) -> Row:
    """A row with the reason why training could not use it, if there is one."""
    try:
        CHECK(row, name)
    except ValueError as error:
        return Row(name, dict(row) if isinstance(row, Mapping) else {}, str(error))
    return Row(name, dict(row))


# ---- parts of a source ----


def open_parts(source, columns: Mapping | None = None) -> list[Part]:
    """The parts of what `data` of a recipe takes, in the order of their rows.

    Raises: `FileNotFoundError`; `ValueError` for a split, file type or column that does not exist.
    """
    return [part for each in list_sources(source, columns) for part in _parts_of(find(each))]


def _parts_of(found: Found) -> list[Part]:
    source = found.source
    if found.has_parts:
        rows = open_rows(source, check=lambda row, name: None, with_seconds=False, keep_others=True)
        return [Part(source, "saved", lambda: _numbered(rows, source))]
    if found.kind in OWN_KINDS:
        return [Part(source, found.kind, lambda files=files: _read_own(found, files)) for files in shards_of(found)]
    stream, _ = library_stream(found)
    stream = under_our_names(undecoded(stream), source, keep_others=True)
    folder = folder_of(found)
    shards = [stream.shard(stream.num_shards, index) for index in range(stream.num_shards)]
    names = [
        f"`{source.path}`" if len(shards) == 1 else f"shard {index} of `{source.path}`" for index in range(len(shards))
    ]
    return [
        Part(
            source, found.kind, lambda shard=shard, name=name: _numbered(shard, source, name, folder), stream.features
        )
        for shard, name in zip(shards, names, strict=True)
    ]


def _read_own(found: Found, files: Sequence[str]) -> Iterator[Row]:
    named = own_rows(files, found.kind, found.source, cut=False)
    try:
        with Cutter() as cutter:
            for name, row in named:
                yield _cut(cutter, name, row) if found.kind == "recordings" else checked(name, row)
    except ValueError as error:
        if found.kind != "webdataset":
            raise  # found before the run: these files are read once at its start
        yield Row(f"the rest of `{files[0]}`", {}, str(error))


def _cut(cutter: Cutter, name: str, row: Mapping) -> Row:
    """A row whose clip may be a segment of a recording. A recording that cannot be cut is the row's problem."""
    if not is_segment(row.get("audio")):
        return checked(name, row)
    try:
        return checked(name, {**row, "audio": cutter.cut(row["audio"], str(row.get("id")), name)})
    except (OSError, ValueError) as error:
        return Row(name, dict(row), str(error))


def _numbered(rows, source: Source, name: str | None = None, folder: str | None = None) -> Iterator[Row]:
    name = name or f"`{source.path}`"
    for index, row in enumerate(rows):
        row = row_at_folder(row, os.getcwd() if folder is None else folder)  # no path stays relative
        yield checked(f"row {index} of {name}", with_constants(row, source))


# ---- columns of the shards ----


@dataclass(frozen=True)
class Columns:
    """The columns of all shards of a run.

    Args:
        ours (`tuple[str, ...]`): those of `COLUMNS` that the rows have.
        many (`bool`): whether rows have lists of clips and transcripts.
        others (`Features`): the other columns.
        as_json (`frozenset[str]`): those of the others whose values have no common type and are stored as JSON text.
    """

    ours: tuple[str, ...]
    many: bool
    others: Features
    as_json: frozenset[str] = frozenset()

    @property
    def features(self) -> Features:
        """The types of the columns, as `load_dataset` gives them."""
        kinds = dict.fromkeys(TEXTS, Value("string")) | {"messages": MESSAGES}
        kinds |= {"audio": List(Audio()) if self.many else Audio(), "seconds": Value("float64")}
        kinds |= {"text": List(Value("string")) if self.many else Value("string")}
        ours = {name: kinds[name] for name in COLUMNS if name in self.ours}
        return Features({**ours, **self.others})

    def stored(self, row: Mapping) -> dict:
        """The values of a row in the types of the columns."""
        values = {name: row.get(name) for name in (*self.ours, *self.others)}
        for name in self.as_json & values.keys():
            values[name] = None if values[name] is None else json.dumps(values[name], ensure_ascii=False, default=str)
        for name in TEXTS:
            if isinstance(values.get(name), int | float):  # a speaker's number, as text: the same as from `open_rows`
                values[name] = pa.scalar(values[name]).cast(pa.string()).as_py()
        if row.get("messages") is not None:
            values["messages"] = stored_messages(row["messages"], "")
        for name, change in (("audio", stored_clip), ("text", lambda text: text)):
            if (value := row.get(name)) is not None:
                each = [change(item) for item in value] if isinstance(value, list | tuple) else [change(value)]
                values[name] = each if self.many else each[0]
        return values

    def with_label_names(self, row: Mapping) -> dict:
        """A row with names in place of the numbers of labels."""
        kinds = {name: kind for name, kind in self.others.items() if isinstance(kind, ClassLabel)}
        labels = {name: kind for name, kind in kinds.items() if row.get(name) in range(kind.num_classes)}
        return {**row, **{name: kind.int2str(row[name]) for name, kind in labels.items()}}

    def left_out(self, row: Mapping) -> list[str]:
        """Names of the row's columns that the shards do not have."""
        return [name for name, value in row.items() if value is not None and name not in (*self.ours, *self.others)]

    def table(self, rows: Sequence[dict]) -> pa.Table:
        """Rows, as from `stored`, as a table. Raises: `pa.ArrowException`, `ValueError`, `TypeError`."""
        return pa.Table.from_pylist(list(rows), self.features.arrow_schema)

    def refuse_unfit(self, row: Row) -> Row:
        """The row, with a problem if a value does not have the type of its column."""
        if row.problem is not None:
            return row
        try:
            self.table([self.stored(row.values)])
        except (pa.ArrowException, ValueError, TypeError, OSError, OverflowError) as error:
            return Row(row.name, row.values, f"{row.name} has a value that its column cannot hold: {error}")
        return row


@dataclass
class _Scan:
    """What was seen of the rows so far."""

    ours: set = field(default_factory=set)
    many: bool = False
    schema: pa.Schema = field(default_factory=lambda: pa.schema([]))
    as_json: set = field(default_factory=set)
    declared: dict[str, list] = field(default_factory=dict)  # by column, for each source that declares or lacks a type
    rows: int = 0
    refused: int = 0
    first_problem: str = ""

    def add(self, rows: Sequence[Row]):
        for row in rows:
            self.rows += 1
            if row.problem is not None:
                self.refused += 1
                self.first_problem = self.first_problem or row.problem
            self.ours |= {name for name in COLUMNS if row.values.get(name) is not None}
            self.many |= any(isinstance(row.values.get(name), list | tuple) for name in ("audio", "text"))
        for name in dict.fromkeys(key for row in rows for key in row.values if key not in COLUMNS):
            self._add_column(name, [row.values.get(name) for row in rows])

    def _add_column(self, name: str, values: list):
        try:
            seen = pa.schema([(name, pa.array(values).type)])
            self.schema = pa.unify_schemas([self.schema, seen], promote_options="permissive")
        except (pa.ArrowException, OverflowError):
            self.as_json.add(name)

    def declare(self, names: Iterable[str], features: Features | None):
        """Note the types that a source declares for its columns, or that it declares none."""
        for name in names if features is None else features:
            if name not in COLUMNS:
                self.declared.setdefault(name, []).append((features or {}).get(name))

    def columns(self, has_clips: bool) -> Columns:
        """A column has its declared type if all sources that have it agree, or else the type of its values."""
        agreed = {name: kinds[0] for name, kinds in self.declared.items() if all(kind == kinds[0] for kind in kinds)}
        agreed = {name: kind for name, kind in agreed.items() if kind is not None}
        text = self.as_json | {each.name for each in self.schema if pa.types.is_null(each.type)}
        types = {each.name: pa.string() if each.name in text else each.type for each in self.schema}
        types |= {name: pa.string() for name in sorted(self.as_json - types.keys())}
        others = {**Features.from_arrow_schema(pa.schema(list(types.items()))), **agreed}
        ours = self.ours | ({"seconds"} if has_clips else set())
        return Columns(tuple(sorted(ours)), self.many, Features(others), frozenset(self.as_json - agreed.keys()))


def scan(parts: Sequence[Part]) -> tuple[Columns, int | None]:
    """The columns of the rows, and their number if all of them were read.

    Manifests (JSON, CSV, audio folders) are read whole; of other sources the first rows.

    Raises: `ValueError` if a column is mapped that does not exist, or no row of those read can be used.
    """
    seen, complete, looked_at = _Scan(), True, set()
    for part in parts:
        whole = part.kind in SCANNED_KINDS
        complete &= whole
        if whole or part.source.path not in looked_at:
            looked_at.add(part.source.path)
            _scan_part(part, seen, whole)
    if seen.refused == seen.rows:
        raise ValueError(seen.first_problem or f"`{parts[0].source.path}` has no rows.")
    return seen.columns(has_clips=bool(seen.ours & {"audio", "messages"})), seen.rows if complete else None


def _scan_part(part: Part, seen: _Scan, whole: bool):
    rows, names = part.read(), set()
    rows = rows if whole else islice(rows, FIRST_ROWS)
    before = seen.rows - seen.refused
    while batch := list(islice(rows, SCANNED_AT_ONCE)):
        names.update(name for row in batch for name in row.values)
        seen.add(batch)
    seen.declare(names, part.features)
    for theirs, ours in part.source.columns.items():
        if names and ours is not None and ours not in names:
            refuse_unseen(part.source.columns, {*names} - {theirs}, part.source.path)
    if names and seen.rows - seen.refused == before:
        raise ValueError(f"No row of `{part.source.path}` can be used. {seen.first_problem}")


__all__ = ["Columns", "Part", "Row", "checked", "open_parts", "scan"]
