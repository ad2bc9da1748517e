"""All rows of one or several sources as one `Dataset` whose clips are not decoded."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
from datasets import Audio, Dataset, Features, List, Value
from pyarrow import ArrowInvalid, ArrowTypeError

from .layouts import find_layout
from .lengths import file_key, many_seconds, row_seconds
from .locate import HOLD_AUDIO, OWN_KINDS, Found, find, list_sources, splits_of
from .named_rows import (
    arrow_chunks,
    checked_rows,
    layout_rows,
    library_rows,
    missing_columns,
    parts_of,
    tar_rows,
    under_our_names,
    with_constant_columns,
)
from .rows import COLUMNS, TEXTS, RowCheck, check_repeat, clips_of, stored_clip, stored_messages


CLIP = {"bytes": Value("binary"), "path": Value("string")}
MESSAGES = List(
    {"role": Value("string"), "content": List({"type": Value("string"), "text": Value("string"), "audio": CLIP})}
)


def open_rows(
    source,
    columns: Mapping | None = None,
    repeat: Mapping[str, int] | None = None,
    check: RowCheck | None = None,
    home: Path | None = None,
    with_seconds: bool = True,
    keep_others: bool = False,
) -> Dataset:
    """All rows of one or several sources as a `Dataset` whose clips are not decoded.

    Args:
        source: any value of `data` in a recipe: a path, a pattern, the name of a data set, a mapping, a list of these.
        columns: `their_name: our_name`.
        repeat: how often the rows of a source are repeated; each copy has its own number in column `row`.
        check: refuses rows; by default `RowCheck()`, which does not know the control tokens.
        home: folder with the cache of clip lengths.
        with_seconds: whether to read missing lengths from the clips' headers.
        keep_others: whether to keep the columns that are not among `COLUMNS`; there is no number in `row` then.

    Returns: rows with `audio` (an absolute path, or `{"path", "bytes"}`), `text`, `seconds`, those of the other
        `COLUMNS` that the data has, and `row`, the number of each row.

    Raises: `FileNotFoundError`; `ValueError` for a row that cannot be read, with file, row and value.
    """
    options = _Options(check or RowCheck(), home, with_seconds, keep_others)
    parts = [_load(find(each), options) for each in list_sources(source, columns)]
    rows = parts[0] if len(parts) == 1 else _join(parts)
    rows = _repeat(rows, repeat or {})
    return rows if keep_others else rows.add_column("row", list(range(len(rows))))


@dataclass(frozen=True)
class _Options:
    check: RowCheck
    home: Path | None
    with_seconds: bool
    keep_others: bool


def _load(found: Found, options: _Options) -> Dataset:
    if found.kind not in OWN_KINDS:
        rows = _library_rows(found, options.keep_others)
        _check_table(rows, found.source.path, options.check)
        return fill_seconds(rows, f"`{found.source.path}`") if options.with_seconds else rows
    if found.has_parts:
        return _load_parts(found, options)
    return _load_split(found, found.splits[found.split], options)


def _load_parts(found: Found, options: _Options) -> Dataset:
    """Parts of splits, such as `train[:10%]+validation`, of files that `readers` reads."""
    names = splits_of(found.split, found.splits)
    whole = {name: _load_split(found, found.splits[name], options) for name in names}
    return parts_of(whole, found.split)


def _load_split(found: Found, files: Sequence[str], options: _Options) -> Dataset:
    files = _download(files)
    found = Found(found.source, found.kind, tuple(files), found.split)
    if found.kind in HOLD_AUDIO:
        return _from_clips(found, options.check)
    names, rows = [], []
    for name, row in checked_rows(found, options.check):
        names.append(name)
        rows.append(row)
    lacking = [index for index, row in enumerate(rows) if row.get("seconds") is None and options.with_seconds]
    lengths = many_seconds([clips_of(rows[i]) for i in lacking], [names[i] for i in lacking], options.home)
    for index, seconds in zip(lacking, lengths, strict=True):
        rows[index] = {**rows[index], "seconds": seconds}
    return _table(rows, options.keep_others)


def _from_clips(found: Found, check: RowCheck) -> Dataset:
    """Rows of tars and segments of recordings. The library caches them on disk, not in memory."""
    files, shards, features = found.files, list(found.files), None
    if found.kind == "recordings":
        rows = layout_rows(found.files, found.source.layout, cut=False)
        files = [*files, *sorted({_path_of(row["audio"]) for _, row in rows})]
        shards, features = [tuple(found.files)], _layout_features(found.source)
    # Part of the library's cache key: a changed file of the same name is read again.
    states = tuple(file_key(file) for file in files)  # a list would count as shards
    options = {"shards": shards, "found": found, "check": check, "states": states}
    try:
        return Dataset.from_generator(tar_rows, features=features, gen_kwargs=options)
    except datasets.exceptions.DatasetGenerationError as error:
        raise error.__cause__ or error from None


def _path_of(clip) -> str:
    return clip["path"] if isinstance(clip, Mapping) else clip


def _layout_features(source) -> Features:
    """Types of the columns of a layout: a column may be null in the first thousand rows and text later."""
    names = [source.columns.get(name, name) for name in find_layout(source.layout).columns]
    names = {name for name in names if name in COLUMNS} | {"seconds"}
    names |= {name for name in ("source", "task") if getattr(source, name) is not None}
    kinds = {"audio": CLIP, "seconds": Value("float64")}
    return Features({name: kinds.get(name, Value("string")) for name in COLUMNS if name in names})


def _download(files: Sequence[str]) -> list[str]:
    """Local paths of files. Those on the hub are downloaded."""
    if not any("://" in file for file in files):
        return list(files)
    from huggingface_hub import HfFileSystem, hf_hub_download

    local = []
    for file in files:
        place = HfFileSystem().resolve_path(file.removeprefix("hf://"))
        local.append(hf_hub_download(place.repo_id, place.path_in_repo, repo_type="dataset", revision=place.revision))
    return local


def _table(rows: list[dict], keep_others: bool = False) -> Dataset:
    """Rows as columns. If some rows have several clips, `audio` and `text` of all rows are lists."""
    if not keep_others:
        rows = [{key: value for key, value in row.items() if key in COLUMNS} for row in rows]
    for key in ("audio", "text"):
        if any(isinstance(row.get(key), list | tuple) for row in rows):
            rows = [row | {key: _as_list(row.get(key))} for row in rows]
    if any(isinstance(clip, Mapping) for row in rows for clip in _as_list(row.get("audio")) or ()):
        rows = [row if row.get("audio") is None else row | {"audio": _as_stored(row["audio"])} for row in rows]
    columns = dict.fromkeys(key for row in rows for key in row)
    kinds = dict.fromkeys(TEXTS, Value("string"))
    kinds |= {"seconds": Value("float64"), "messages": MESSAGES}
    kinds = {key: kind for key, kind in kinds.items() if key in columns}
    rows = [{**dict.fromkeys(columns), **row} for row in rows]
    try:
        table = Dataset.from_list(rows)
    except (ArrowInvalid, ArrowTypeError) as error:
        raise ValueError(f"A column has values of several types ({error}): {_several_types(rows)}.") from error
    if all(table.features[key] == kind for key, kind in kinds.items()):
        return table
    return table.cast(Features({**table.features, **kinds}))


def _several_types(rows: list[dict]) -> str:
    """The columns with values of several types, and what to do about them."""
    found = {}
    for row in rows:
        for key, value in row.items():
            if value is not None:
                found.setdefault(key, set()).add("number" if isinstance(value, int | float) else type(value).__name__)
    mixed = [f"`{key}` ({', '.join(sorted(kinds))})" for key, kinds in found.items() if len(kinds) > 1]
    where = " and ".join(mixed) or "values inside a column"
    return f"{where}. Give all rows one type, or leave a column out by `columns: {{name: null}}`"


def _as_list(value):
    return list(value) if isinstance(value, list | tuple) else None if value is None else [value]


def _as_stored(audio):
    """Clips as `{"bytes", "path"}`. One that has no such form stays without sound: it is named where it is read."""
    if isinstance(audio, list | tuple):
        return [_as_stored(clip) for clip in audio]
    try:
        return stored_clip(audio)
    except (LookupError, StopIteration, TypeError, ValueError, AttributeError, RuntimeError):
        return {"bytes": None, "path": audio.get("path") if isinstance(audio, Mapping) else None}


def _library_rows(found: Found, keep_others: bool) -> Dataset:
    """Rows that the library loads, with our column names and undecoded clips."""

    def with_our_columns(rows: Dataset) -> Dataset:
        return with_constant_columns(under_our_names(rows, found.source, keep_others), found.source)

    return library_rows(found, with_our_columns)


def _check_table(rows: Dataset, path: str, check: RowCheck):
    if not len(rows):
        raise ValueError(f"`{path}` has no rows.")
    check_rows(rows, check, f"`{path}`")


def check_rows(rows, check: RowCheck, name: str = "the data set"):
    """Refuse bad rows of a `Dataset` or a list. Clips are not read: a row must only have them.

    Rows of a stream, and of a data set with a transform, are checked when they are read.
    """
    if isinstance(rows, list):
        for index, row in enumerate(rows):
            check(row, f"row {index} of {name}")
    if not isinstance(rows, Dataset) or rows.format["type"] is not None:
        return
    light = rows.select_columns([key for key in rows.column_names if key in COLUMNS and key != "audio"])
    there = _has_audio(rows) if "audio" in rows.column_names else [None] * len(rows)
    others = dict.fromkeys(rows.column_names) if missing_columns(rows.column_names) else {}
    for index, audio in enumerate(there):
        check({**others, **(light[index] if light.column_names else {}), "audio": audio}, f"row {index} of {name}")


def _has_audio(rows: Dataset) -> Iterator[object]:
    """For each row a placeholder for each of its clips. The samples are not read."""
    for column in arrow_chunks(rows, "audio"):
        if hasattr(column.type, "value_type"):
            counts = column.value_lengths().to_pylist()
            yield from (["clip"] * count if count is not None else None for count in counts)
        elif hasattr(column.type, "fields"):
            names = [field.name for field in column.type if field.name in CLIP]
            marks = zip(*(column.field(name).is_valid().to_pylist() for name in names), strict=True)
            yield from ("clip" if any(mark) else None for mark in marks)
        else:
            yield from column.to_pylist()


def fill_seconds(rows: Dataset, name: str) -> Dataset:
    """Rows with their lengths in the column `seconds`; `name` is what errors call the rows."""
    seconds = lengths_of(rows, name)
    rows = rows.remove_columns([name for name in ("seconds",) if name in rows.column_names])
    return rows.add_column("seconds", seconds)


def lengths_of(rows: Dataset, name: str, folder: str | os.PathLike = ".") -> list[float]:
    """Seconds of each row, from the column `seconds` or, if it is missing, from the clips' headers.

    Args: folder: base of relative paths.
    """
    known = rows["seconds"][:] if "seconds" in rows.column_names else [None] * len(rows)
    if None not in known:
        return [float(seconds) for seconds in known]
    names = [key for key in ("audio", "messages") if key in rows.column_names]
    clips_only = rows.select_columns(names) if names else [{}] * len(rows)  # a table without columns has no rows
    return [
        row_seconds(clips_only[index], f"row {index} of {name}", folder) if seconds is None else float(seconds)
        for index, seconds in enumerate(known)
    ]


def _join(parts: list[Dataset]) -> Dataset:
    """Concatenate sources, with all clips in one form. A column that a source lacks is null in its rows."""
    parts = [_with_texts(part) for part in parts]
    kinds = [part.features["audio"] for part in parts if "audio" in part.features]
    if any(kind != kinds[0] for kind in kinds):
        if any(isinstance(kind, List) for kind in kinds):
            raise ValueError(
                "Some sources have lists of clips in `audio`, others one clip a row: give lists everywhere."
            )
        stored = Audio(decode=False)
        parts = [part.cast_column("audio", stored) if "audio" in part.features else part for part in parts]
    try:
        return datasets.concatenate_datasets([_with_stored_messages(part) for part in parts])
    except (ValueError, TypeError, ArrowInvalid) as error:
        raise ValueError(
            f"The sources have a column with other types each ({error}): leave it out by `columns: {{name: null}}`."
        ) from error


def _with_texts(rows: Dataset) -> Dataset:
    """Rows whose speakers are text, also where a source numbers them."""
    kinds = {name: Value("string") for name in TEXTS if rows.features.get(name, Value("string")) != Value("string")}
    return rows.cast(Features({**rows.features, **kinds})) if kinds else rows


def _with_stored_messages(rows: Dataset) -> Dataset:
    if rows.features.get("messages", MESSAGES) == MESSAGES:
        return rows
    features = Features({**rows.features, "messages": MESSAGES})
    return rows.map(
        lambda row: {"messages": row["messages"] and stored_messages(row["messages"], "")}, features=features
    )


def _repeat(rows: Dataset, repeat: Mapping[str, int]) -> Dataset:
    if not repeat:
        return rows
    sources = rows["source"][:] if "source" in rows.column_names else [None] * len(rows)
    check_repeat(repeat, sources)
    return rows.select([index for index, name in enumerate(sources) for _ in range(repeat.get(name, 1))])


__all__ = ["check_rows", "fill_seconds", "lengths_of", "open_rows"]
