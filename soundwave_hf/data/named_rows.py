"""Rows of one source with our column names, from `readers` or from `datasets`."""

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

import datasets
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Audio, ClassLabel, Dataset, DatasetDict, Features, List, Value

from .cuts import Cutter
from .layouts import find_layout
from .lengths import with_seconds
from .locate import Found, Source, folder_of, splits_of
from .readers import METADATA_FILES, is_clip, number_fields, read_file, read_metadata
from .rows import COLUMNS, TEXTS, RowCheck, at_folder, rename, row_at_folder, stored_messages, suggest_columns


# ---- files that `readers` reads ----


def own_rows(files: Sequence[str], kind: str, source: Source, cut: bool = True) -> Iterator[tuple[str, dict]]:
    """Rows of files with our column names and absolute paths; each with the name that errors use.

    Args: cut: whether segments of recordings are cut; otherwise `audio` holds `path`, `start`, `end` and `channel`.
    """
    if kind == "audiofolder":
        named = _folder_rows(files, source.columns)
    elif kind in ("layout", "recordings"):
        named = layout_rows(files, source.layout, cut)
    else:
        named = ((name, row) for file in files for name, row in _read_at_folder(file, kind, source.columns))
    seen: set[str] = set()
    for name, row in named:
        if isinstance(row, dict):
            seen.update(row)
            row = with_constants(rename(row, source.columns, name), source)
            row = row if kind in ("json", "layout", "recordings") else number_fields(row, name)
        yield name, row
    if seen:
        refuse_unseen(source.columns, seen, source.path)


def layout_rows(files: Sequence[str], layout: str, cut: bool) -> Iterator[tuple[str, dict]]:
    """Rows of a corpus. Every row has all columns of the layout, with null where a value is unknown."""
    known = find_layout(layout)
    cut, number = cut and known.cuts(files), 0
    with Cutter() as cutter:
        for name, row in known.read(files):
            number += 1
            row = {**dict.fromkeys(known.columns), **row}
            if cut:  # all clips in one form
                is_whole = isinstance(row["audio"], str)
                stored = {"bytes": None, "path": row["audio"]}
                row["audio"] = stored if is_whole else cutter.cut(row["audio"], row["id"], name)
            yield name, row
    if not number:
        raise ValueError(f"`{files[0]}` is empty: it needs at least one clip.")


def _folder_rows(files: Sequence[str], columns: Mapping) -> Iterator[tuple[str, dict]]:
    """Rows of an audio folder: those of its metadata, or without one a row for each clip."""
    tables = [path for path in files if os.path.basename(path) in METADATA_FILES]
    for table in tables:
        yield from _at_folder(read_metadata(table), table, columns)
    if not tables:
        yield from ((f"`{path}`", {"audio": path}) for path in files if is_clip(path))


def _read_at_folder(file: str, kind: str, columns: Mapping) -> Iterator[tuple[str, dict]]:
    named = read_file(file, kind)
    return named if kind == "webdataset" else _at_folder(named, file, columns)


def _at_folder(named: Iterable[tuple[str, dict]], file: str, columns: Mapping) -> Iterator[tuple[str, dict]]:
    """Rows whose relative clip paths begin in the folder of the file that names them."""
    folder = os.path.dirname(file if "://" in file else os.path.abspath(file))
    audio = next((theirs for theirs, ours in columns.items() if ours == "audio"), "audio")
    messages = next((theirs for theirs, ours in columns.items() if ours == "messages"), "messages")
    for name, row in named:
        if isinstance(row, dict) and row.get(audio) is not None:
            row = {**row, audio: at_folder(row[audio], folder)}
        if isinstance(row, dict) and row.get(messages) is not None:
            row = {**row, messages: _stored(row[messages], folder)}
        yield name, row


def _stored(messages, folder: str):
    try:
        return stored_messages(messages, folder)
    except (AttributeError, KeyError, TypeError, ValueError):
        return messages  # the row check reports what is wrong with them


def with_constants(row: dict, source: Source) -> dict:
    for key in ("source", "task"):
        if getattr(source, key) is not None and row.get(key) is None:
            row = {**row, key: getattr(source, key)}
    return row


def with_constant_columns(rows: Dataset, source: Source) -> Dataset:
    """Like `with_constants`, for a table. A column that is no text stays: the check of the rows names it."""
    for key in ("source", "task"):
        value = getattr(source, key)
        if value is None or rows.features.get(key, Value("null")) not in map(
            Value, ("null", "string", "large_string")
        ):
            continue
        given = rows[key][:] if key in rows.column_names else [None] * len(rows)
        rows = _with_column(rows, key, [value if each is None else each for each in given], Value("string"))
    return rows


def refuse_unseen(columns: Mapping, names: Iterable[str], path: str):
    """Raises: `ValueError` if `columns` maps a column that is not among the names."""
    for theirs in columns:
        if theirs not in names:
            raise ValueError(f"`columns` maps `{theirs}`, and `{path}` has no such column: it has {sorted(names)}.")


def checked_rows(found: Found, check: RowCheck) -> Iterator[tuple[str, dict]]:
    """Like `own_rows`, but a row that `check` refuses, and files that lack a needed column, are errors."""
    names: set[str] = set()
    for name, row in own_rows(found.files, found.kind, found.source):
        check(row, name)
        names.update(row)
        yield name, row
    refuse_missing(found.source, names, names)


def tar_rows(
    shards: Sequence[str | tuple[str, ...]], found: Found, check: RowCheck, states: Sequence = ()
) -> Iterator[dict]:
    """Rows of tars, or clips cut from recordings, with their lengths.

    Args: shards: files that are read alone, or tuples of files that are read together; states: sizes and times of the
        files. `datasets` includes them in its cache key.
    """
    for shard in shards:
        files = (shard,) if isinstance(shard, str) else tuple(shard)
        for name, row in checked_rows(Found(found.source, found.kind, files), check):
            yield with_seconds({key: value for key, value in row.items() if key in COLUMNS}, name)


# ---- what `datasets` loads ----


def under_our_names(rows, source: Source, keep_others: bool = False):
    """A `Dataset` or stream with our column names, which training can use.

    Args:
        keep_others: whether to keep the columns that are not among `COLUMNS`.

    Raises: `ValueError` if it lacks a column; the errors of `renamed`.
    """
    there = names_of(rows)
    rows = renamed(rows, source.columns, source.path)
    names = names_of(rows)
    known = [name for name in names if name in COLUMNS]
    refuse_missing(source, [name for name in there if source.columns.get(name, name) is not None], known)
    return with_label_names(rows.select_columns(names if keep_others else known), ("text", *TEXTS))


def names_of(rows) -> list[str]:
    """The columns of a `Dataset` or stream."""
    return list(next(iter(rows), {})) if rows.column_names is None else rows.column_names


def renamed(rows, columns: Mapping[str, str | None], path: str):
    """A `Dataset` or stream with other column names, without the columns that are mapped to null.

    Args: path: what errors call the rows.

    Raises: `ValueError` for a mapping of a column that is not there, or to a name that another column has.
    """
    names = names_of(rows)
    refuse_unseen(columns, names, path)
    dropped = [theirs for theirs, ours in columns.items() if ours is None]
    pairs = {theirs: ours for theirs, ours in columns.items() if ours is not None and ours != theirs}
    if clash := [ours for ours in pairs.values() if ours in names and ours not in (*dropped, *pairs)]:
        raise ValueError(
            f"`{path}` has a column `{clash[0]}`, and `columns` maps another one to that name: add "
            f"`{clash[0]}: null`, which leaves that column out."
        )
    rows = rows.remove_columns(dropped) if dropped else rows
    return rows.rename_columns(pairs) if pairs else rows


def with_label_names(rows, names: Sequence[str] | None = None):
    """A `Dataset` or stream with names of labels in place of their numbers.

    Args: names: of the columns; by default all.
    """
    kinds = {name: kind for name, kind in (rows.features or {}).items() if isinstance(kind, ClassLabel)}
    kinds = {name: kind for name, kind in kinds.items() if names is None or name in names}
    if not kinds:
        return rows
    if isinstance(rows, Dataset):  # a map would copy the clips
        for name, kind in kinds.items():
            rows = _with_column(rows, name, _names_of(rows[name], kind), Value("string"))
        return rows
    features = Features({**rows.features, **dict.fromkeys(kinds, Value("string"))})
    return rows.map(
        lambda row: {name: _names_of([row[name]], kind)[0] for name, kind in kinds.items()}, features=features
    )


def _with_column(rows: Dataset, name: str, values: list, kind) -> Dataset:
    """A table with other values in a column, which stands last if it is new."""
    order = list(dict.fromkeys([*rows.column_names, name]))
    rows = rows.add_column(f"new {name}", values, feature=kind)  # before the old one goes: without columns are no rows
    rows = rows.remove_columns([each for each in order if each == name and each in rows.column_names])
    return rows.rename_column(f"new {name}", name).select_columns(order)


def _names_of(numbers, kind: ClassLabel) -> list[str | None]:
    """Names of labels. In the library -1 is a row without a label."""
    return [None if number is None or number < 0 else kind.int2str(number) for number in numbers]


def refuse_missing(source: Source, names: Collection[str], ours: Collection[str]):
    """Raises: `ValueError` if a needed column is missing in `ours`. It suggests some of `names`, the source's own."""
    if missing := missing_columns(ours):
        raise ValueError(f"`{source.path}` lacks {missing}. {suggest_columns(names, missing)}")


def missing_columns(names: Collection[str]) -> list[str]:
    """The needed columns that are missing."""
    has_clips = {"audio", "messages"} & {*names} or {"question", "answer"} <= {*names}
    missing = [] if has_clips else ["audio"]
    return missing + ([] if {"text", "answer", "messages"} & {*names} else ["text"])


def _with_places(rows: Dataset, folder: str | None) -> Dataset:
    """Rows whose relative clip paths begin in a folder. If all clips are inside the rows, nothing is copied."""
    names = [name for name in ("audio", "messages") if name in rows.column_names]
    if folder is None or not names or not _names_files(rows.select_columns(names), folder):
        return rows
    return rows.map(
        lambda row: row_at_folder({name: row[name] for name in names}, folder), features=Features(rows.features)
    )


def _names_files(rows: Dataset, folder: str) -> bool:
    """Whether a clip is a path, and not inside its row."""
    if "audio" in rows.column_names and any(map(_is_named, arrow_chunks(rows, "audio"))):
        return True
    messages = rows["messages"] if "messages" in rows.column_names else []
    return any(row_at_folder({"messages": each}, folder)["messages"] != each for each in messages)


def arrow_chunks(rows: Dataset, name: str) -> Iterator[pa.Array]:
    """The values of a column in their order, some hundred rows at once. No bytes are copied."""
    for table in rows.select_columns(name).with_format("arrow").iter(256):
        yield from table[name].chunks


def _is_named(clips: pa.Array) -> bool:
    if hasattr(clips.type, "value_type"):
        return _is_named(clips.flatten())
    if not pa.types.is_struct(clips.type):
        return pa.types.is_string(clips.type) or pa.types.is_large_string(clips.type)
    fields = {field.name: clips.field(field.name) for field in clips.type}
    named = fields["path"].is_valid() if "path" in fields else pa.array([], pa.bool_())
    named = pc.and_(named, fields["bytes"].is_null()) if {"path", "bytes"} <= fields.keys() else named
    return bool(pc.any(named).as_py())


def undecoded(rows):
    """A `Dataset` or stream whose clips stay encoded, because `datasets` needs torchcodec to decode them."""
    changed = {name: _undecoded(kind) for name, kind in (rows.features or {}).items()}
    for name, kind in changed.items():
        if kind != rows.features[name]:
            rows = rows.cast_column(name, kind)
    return rows


def _undecoded(kind):
    if isinstance(kind, Audio):
        return Audio(sampling_rate=kind.sampling_rate, decode=False)
    if isinstance(kind, List):
        return List(_undecoded(kind.feature))
    if isinstance(kind, dict):
        return {name: _undecoded(inner) for name, inner in kind.items()}
    return kind


def parts_of(splits: Mapping[str, Dataset], split: str) -> Dataset:
    """One split, or parts of several in the library's syntax: `train[:10%]+validation`."""
    parts = ranges_of(split, {name: len(rows) for name, rows in splits.items()})
    chosen = [splits[name].select(numbers) for name, numbers in parts]
    return chosen[0] if len(chosen) == 1 else datasets.concatenate_datasets(chosen)


def ranges_of(split: str, sizes: Mapping[str, int]) -> list[tuple[str, range]]:
    """The split of each part of `train[:10%]+validation`, and the numbers of its rows. Args: sizes: rows by split."""
    parts = []
    for part in split.split("+"):
        name, bracket, limits = part.strip().partition("[")
        # Under another name: the library refuses a hyphen, and LibriSpeech has `train-clean-100`.
        (read,) = datasets.ReadInstruction.from_spec(f"rows{bracket}{limits}").to_absolute({"rows": sizes[name]})
        parts.append((name, range(sizes[name])[read.from_ : read.to]))
    return parts


def library_rows(found: Found, change: Callable[[Dataset], Dataset]) -> Dataset:
    """Rows that the library loads, with undecoded clips. Relative paths begin in the folder of their split.

    Args: change: what is done to the rows of each split, such as renaming their columns.
    """
    splits = library_splits(found)
    whole = {
        name: _with_places(change(undecoded(splits[name])), folder_of(found, name))
        for name in splits_of(found.split, splits)
    }
    return whole[found.split] if found.split in whole else parts_of(whole, found.split)


def library_splits(found: Found) -> Mapping[str, Dataset]:
    """All splits that `save_to_disk` wrote, or that a builder makes."""
    if found.kind == "saved":
        loaded = datasets.load_from_disk(found.source.path)
        return loaded if isinstance(loaded, DatasetDict) else {"train": loaded}
    found.builder.download_and_prepare()
    return found.builder.as_dataset()


__all__ = [
    "arrow_chunks",
    "checked_rows",
    "missing_columns",
    "layout_rows",
    "library_rows",
    "library_splits",
    "own_rows",
    "parts_of",
    "ranges_of",
    "refuse_unseen",
    "renamed",
    "tar_rows",
    "under_our_names",
    "undecoded",
    "with_constant_columns",
    "with_constants",
    "with_label_names",
]
