"""`data:` of a recipe -> rows, whole or streamed: of a hub data set, of files, of folders, or of a list of these."""

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import datasets
from datasets import Audio, Dataset, DatasetDict, Features, List, Value
from datasets import IterableDataset as Stream

from ..paths import expand_path
from .lengths import clip_seconds, many_seconds
from .readers import KINDS, kind_of, number_fields, read_audio_folder, read_file
from .rows import (
    COLUMNS,
    RowCheck,
    at_folder,
    check_columns,
    clips_of,
    rename,
    stored_messages,
    suggest_columns,
    transcripts_of,
)


EVERY_ROW = "every row"  # name of the one stream where rows are not told apart by task
UNKNOWN_SIZE = 100_000  # rows that an epoch of a stream counts, where nobody says how many it has
OWN_KINDS = ("json", "csv", "webdataset", "audiofolder")  # read by `readers`; the library reads the others
WHOLE_BYTES, BLOCKS, BLOCK_BYTES = 1 << 30, 64, 1 << 20  # of a file for its digest
FILES_IN_ORDER = re.compile(r"[*?\[]")
CLIP = {"bytes": Value("binary"), "path": Value("string")}
MESSAGES = List(
    {"role": Value("string"), "content": List({"type": Value("string"), "text": Value("string"), "audio": CLIP})}
)


@dataclass(frozen=True)
class Source:
    """One place that rows come from, as `load_dataset` takes it.

    Args:
        path (`str`): a file, a pattern of files, a folder, or the name of a data set on the hub.
        config, split, revision, data_files, data_dir: as `load_dataset` has them; `config` is its `name`.
        streaming (`bool`, *optional*): whether its rows are read as they come.
        columns (`dict`): `their_name: our_name`.
        source, task (`str`, *optional*): given to rows that have none.
    """

    path: str
    config: str | None = None
    split: str | None = None
    revision: str | None = None
    data_files: str | Sequence | Mapping | None = None
    data_dir: str | None = None
    streaming: bool | None = None
    columns: Mapping[str, str | None] = field(default_factory=dict)
    source: str | None = None
    task: str | None = None

    def __post_init__(self):
        check_columns(self.columns)
        for name in ("path", "config", "split", "revision", "data_dir", "source", "task"):
            if (value := getattr(self, name)) is not None and (not isinstance(value, str) or not value):
                raise ValueError(f"`{name}` of `data` is {value!r}; expected text.")
        if self.streaming not in (None, True, False):
            raise ValueError(f"`streaming` of `data` is {self.streaming!r}; give true or false.")

    @classmethod
    def read(cls, value, columns: Mapping | None = None) -> "Source":
        """A string, or a mapping of `path` (or `name`), `config`, `split`, `streaming`, `revision`, ...

        Args: columns: of a source that has none of its own.
        """
        if isinstance(value, str | os.PathLike):
            value = {"path": os.fspath(value)}
        if not isinstance(value, Mapping):
            raise ValueError(f"`data` holds {value!r}; give a path, the name of a data set, or a mapping with `path`.")
        value = dict(value)
        if "path" in value and "name" in value:  # as of `load_dataset`
            if "config" in value:
                raise ValueError("`data` has `name` and `config`, which are one thing beside `path`: leave one out.")
            value["config"] = value.pop("name")
        elif "name" in value:
            value["path"] = value.pop("name")
        known = [f.name for f in fields(cls)]
        unknown = [key for key in value if key not in known]
        if unknown or "path" not in value:
            what = f"the keys {unknown}" if unknown else "no `path`"
            raise ValueError(f"A source of `data` has {what}: its keys are `name` and {', '.join(known)}.")
        source = cls(**{"columns": columns or {}, **value})
        if not looks_local(source.path):
            return source
        return replace(source, path=expand_path(source.path, "`path` of `data`"))


def looks_local(path: str) -> bool:
    """Whether a string names files or a folder here, and not a data set on the hub."""
    if "://" in path:
        return False
    if path.startswith((".", "/", "~", "$")) or FILES_IN_ORDER.search(path) or kind_of(path):
        return True
    return path.count("/") > 1 or os.path.exists(path)


def list_sources(value, columns: Mapping | None = None) -> list[Source]:
    """`data` of a recipe -> its sources; a list has several."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        if value and all(isinstance(each, Source) for each in value):
            return list(value)
        if not value:
            raise ValueError("`data` is an empty list; name a source at least.")
        return [Source.read(each, columns) for each in value]
    return [value] if isinstance(value, Source) else [Source.read(value, columns)]


# ---- where the rows of a source lie ----


@dataclass(frozen=True)
class Found:
    """What a source turned out to be.

    Args:
        kind (`str`): of `OWN_KINDS`, "saved" (`save_to_disk`), or "library".
        files (`tuple[str, ...]`): of the rows, in order; empty where only the library knows.
        splits (`tuple[str, ...]`): the one that is meant, or several of one kind joined by `+`.
        builder: of the library, where it has one.
    """

    source: Source
    kind: str
    files: tuple[str, ...] = ()
    split: str = "train"
    builder: object = None
    splits: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def find(source: Source) -> Found:
    """Look at a source without reading its rows.

    Raises: `FileNotFoundError` where it is not there; `ValueError` for a split or config that it has not.
    """
    path = Path(source.path)
    if path.is_dir() and (path / "dataset_dict.json").is_file():
        names = datasets.load_from_disk(str(path)).keys()
        return Found(source, "saved", _arrow_files(path), _choose_split(source, list(names)))
    if path.is_dir() and (path / "state.json").is_file():
        return Found(source, "saved", _arrow_files(path), _choose_split(source, ["train"]))
    if path.is_file() or FILES_IN_ORDER.search(source.path) or kind_of(source.path):
        return _find_files(source, find_files(source.path))
    return _find_built(source)


def find_files(path: str | os.PathLike) -> list[Path]:
    """The file at a path, or those that its last part fits as a pattern (`train-*.jsonl`), by name.

    Raises: `FileNotFoundError` where there is none.
    """
    path = Path(path)
    found = sorted(path.parent.glob(path.name)) if set("*?[") & set(path.name) else [path]
    if not found or not all(each.is_file() for each in found):
        raise FileNotFoundError(
            f"There is no data manifest `{path}`, seen from the folder {os.getcwd()}: check the path. The shipped "
            "weights' own data are built by `examples/soundwave-small/build_data.py`."
        )
    return found


def _find_files(source: Source, files: list[Path]) -> Found:
    kinds = {kind_of(str(file)) for file in files}
    if len(kinds) > 1 or None in kinds:
        names = sorted({file.suffix or file.name for file in files})
        raise ValueError(f"`{source.path}` is of {', '.join(names)}; expected files of one of {', '.join(KINDS)}.")
    for key in ("config", "data_files", "data_dir", "revision"):
        if getattr(source, key) is not None:
            raise ValueError(f"`{key}` is given, and `{source.path}` is a file: leave it out.")
    names, (kind,) = tuple(map(str, files)), kinds
    split = _choose_split(source, ["train"])
    if kind in OWN_KINDS:
        return Found(source, kind, names, split, splits={"train": names})
    builder = datasets.load_dataset_builder(kind, data_files={"train": list(names)})
    return Found(source, "library", names, split, builder)


def _find_built(source: Source) -> Found:
    """A folder or a data set of the hub, as the library's builders see it."""
    options = {key: getattr(source, key) for key in ("data_files", "data_dir", "revision")}
    try:
        builder = datasets.load_dataset_builder(source.path, source.config, **options)
    except ValueError as error:  # the library lists the configs that there are
        raise ValueError(f"`data` `{source.path}`: {error}") from error
    except (OSError, datasets.exceptions.DatasetsError) as error:
        if Path(source.path).is_dir():
            raise ValueError(f"The folder `{source.path}` holds no data that is known: {error}") from error
        raise FileNotFoundError(
            f"There is no data at `{source.path}`: it is no file or folder, seen from {os.getcwd()}, and the hub did "
            f"not deliver a data set of that name ({error})."
        ) from error
    by_split = {str(split): tuple(map(str, files)) for split, files in (builder.config.data_files or {}).items()}
    split = _choose_split(source, list(by_split) or [str(split) for split in builder.info.splits or []])
    kind = type(builder).__module__.rpartition(".")[2]
    if kind not in OWN_KINDS:
        return Found(source, "library", by_split.get(split, ()), split, builder)
    return Found(source, kind, by_split.get(split, ()), split, builder, by_split)


def _choose_split(source: Source, names: list[str]) -> str:
    """The split that was named, or the one that is meant: the only one, or `train`.

    Raises: `ValueError` that names those that there are.
    """
    if source.split is not None:
        # Parts of splits, as the library writes them: `train[:10%]+validation`.
        wanted = [part.partition("[")[0].strip() for part in source.split.split("+")]
        if names and (missing := [name for name in wanted if name not in names and name != "all"]):
            raise ValueError(f"`{source.path}` has no split `{missing[0]}`; its splits are {names}.")
        return source.split
    if len(names) > 1 and "train" not in names:
        raise ValueError(f"`{source.path}` has the splits {names}: say with `split` which one.")
    return "train" if "train" in names or not names else names[0]


def _arrow_files(folder: Path) -> tuple[str, ...]:
    return tuple(str(file) for file in sorted(folder.rglob("*.arrow")))


# ---- rows of one source, one by one ----


def _own_rows(files: Sequence[str], kind: str, source: Source) -> Iterator[tuple[str, dict]]:
    """Rows of files that are read here, named, under our names, with whole paths."""
    named = (
        read_audio_folder(files)
        if kind == "audiofolder"
        else ((name, row) for file in files for name, row in _read_at_folder(file, kind, source.columns))
    )
    seen: set[str] = set()
    for name, row in named:
        if isinstance(row, dict):
            seen.update(row)
            row = _with_constants(rename(row, source.columns, name), source)
            row = row if kind == "json" else number_fields(row, name)
        yield name, row
    _refuse_unseen(source, seen)


def _read_at_folder(file: str, kind: str, columns: Mapping) -> Iterator[tuple[str, dict]]:
    folder = os.path.dirname(file if "://" in file else os.path.abspath(file))
    audio = next((theirs for theirs, ours in columns.items() if ours == "audio"), "audio")
    messages = next((theirs for theirs, ours in columns.items() if ours == "messages"), "messages")
    for name, row in read_file(file, kind):
        if isinstance(row, dict) and row.get(audio) is not None and kind != "webdataset":
            clips = row[audio]
            whole = [at_folder(c, folder) for c in clips] if isinstance(clips, list) else at_folder(clips, folder)
            row = {**row, audio: whole}
        if isinstance(row, dict) and row.get(messages) is not None:
            row = {**row, messages: _stored(row[messages], folder, name)}
        yield name, row


def _stored(messages, folder: str, name: str):
    try:
        return stored_messages(messages, folder)
    except (AttributeError, KeyError, TypeError, ValueError):
        return messages  # the check of the row says what is wrong with them


def _with_constants(row: dict, source: Source) -> dict:
    for key in ("source", "task"):
        if getattr(source, key) is not None and row.get(key) is None:
            row = {**row, key: getattr(source, key)}
    return row


def _refuse_unseen(source: Source, seen: set[str]):
    for theirs in source.columns:
        if seen and theirs not in seen:
            raise ValueError(
                f"`columns` maps `{theirs}`, and `{source.path}` has no such column: it has {sorted(seen)}."
            )


def _checked_rows(found: Found, check: RowCheck) -> Iterator[tuple[str, dict]]:
    for name, row in _own_rows(found.files, found.kind, found.source):
        check(row, name)
        yield name, row


# ---- all rows ----


def open_rows(
    source,
    columns: Mapping | None = None,
    repeat: Mapping[str, int] | None = None,
    check: RowCheck | None = None,
    home: Path | None = None,
    with_seconds: bool = True,
) -> Dataset:
    """Every row of a source, or of a list of them, as a `Dataset` whose clips are not decoded.

    Args:
        source: what `data` of a recipe may be: a path, a pattern, the name of a data set, a mapping, a list of these.
        columns: `their_name: our_name`.
        repeat: how often rows of a source count; column `row` tells repeats apart.
        check: refuses rows; by default those that no stage can learn from, without a look at control tokens.
        home: folder where lengths of many clips are kept.
        with_seconds: whether to read the lengths that rows do not say from the clips' headers.

    Returns: rows with `audio` (a whole path, or `{"path", "bytes"}`), `text`, `seconds` and, where they have them,
        the other columns of `COLUMNS`; `row` is the number of each.

    Raises: `FileNotFoundError`; `ValueError` for what cannot be read, with file, row and value.
    """
    options = _Options(check or RowCheck(), home, with_seconds)
    parts = [_load(find(each), options) for each in list_sources(source, columns)]
    rows = parts[0] if len(parts) == 1 else _join(parts)
    rows = _repeat(rows, repeat or {}, source)
    return rows.remove_columns([name for name in ("row",) if name in rows.column_names]).add_column(
        "row", list(range(len(rows)))
    )


@dataclass(frozen=True)
class _Options:
    check: RowCheck
    home: Path | None
    with_seconds: bool


def _load(found: Found, options: _Options) -> Dataset:
    if found.kind not in OWN_KINDS:
        rows = _library_rows(found)
        _check_table(rows, found.source.path, options.check)
        return fill_seconds(rows, f"`{found.source.path}`") if options.with_seconds else rows
    if "[" in found.split or "+" in found.split or found.split == "all":
        return _load_parts(found, options)
    return _load_split(found, found.splits[found.split], options)


def _load_parts(found: Found, options: _Options) -> Dataset:
    """Parts of splits, `train[:10%]+validation`, of files that are read here."""
    names = {part.partition("[")[0].strip() for part in found.split.split("+")}
    names = found.splits.keys() if "all" in names else names
    whole = {name: _load_split(found, found.splits[name], options) for name in names}
    instruction = datasets.ReadInstruction.from_spec(found.split)
    parts = instruction.to_absolute({name: len(rows) for name, rows in whole.items()})
    return datasets.concatenate_datasets(
        [whole[part.splitname].select(range(part.from_ or 0, _end(part, whole))) for part in parts]
    )


def _end(part, whole: Mapping[str, Dataset]) -> int:
    return len(whole[part.splitname]) if part.to is None else part.to


def _load_split(found: Found, files: Sequence[str], options: _Options) -> Dataset:
    files = _download(files)
    found = Found(found.source, found.kind, tuple(files), found.split)
    if found.kind == "webdataset":
        return _from_tars(found, options.check)
    names, rows = [], []
    for name, row in _checked_rows(found, options.check):
        names.append(name)
        rows.append(row)
    lacking = [index for index, row in enumerate(rows) if row.get("seconds") is None and options.with_seconds]
    lengths = many_seconds([clips_of(rows[i]) for i in lacking], [names[i] for i in lacking], options.home)
    for index, seconds in zip(lacking, lengths, strict=True):
        rows[index] = {**rows[index], "seconds": seconds}
    return _table(rows)


def _from_tars(found: Found, check: RowCheck) -> Dataset:
    """Clips of tars, kept on disk by the library: memory does not hold them."""
    # Part of what the library knows its copy by: another tar of that name is another data set.
    states = [(os.path.abspath(file), os.stat(file).st_size, os.stat(file).st_mtime_ns) for file in found.files]
    try:
        return Dataset.from_generator(_tar_rows, gen_kwargs={"found": found, "check": check, "states": states})
    except datasets.exceptions.DatasetGenerationError as error:
        raise error.__cause__ or error from None


def _tar_rows(found: Found, check: RowCheck, states: list) -> Iterator[dict]:
    for name, row in _checked_rows(found, check):
        seconds = row.get("seconds")
        seconds = sum(clip_seconds(clip, name) for clip in clips_of(row)) if seconds is None else float(seconds)
        yield {key: value for key, value in row.items() if key in COLUMNS} | {"seconds": seconds}


def _download(files: Sequence[str]) -> list[str]:
    """Files of the hub as files here; local ones as they are."""
    if not any("://" in file for file in files):
        return list(files)
    from huggingface_hub import HfFileSystem, hf_hub_download

    local = []
    for file in files:
        place = HfFileSystem().resolve_path(file.removeprefix("hf://"))
        local.append(hf_hub_download(place.repo_id, place.path_in_repo, repo_type="dataset", revision=place.revision))
    return local


def _table(rows: list[dict]) -> Dataset:
    """Rows as columns. Where some rows have several clips, `audio` and `text` of all are lists."""
    for key in ("audio", "text"):
        if any(isinstance(row.get(key), list | tuple) for row in rows):
            rows = [row | {key: _as_list(row.get(key))} for row in rows]
    if any(isinstance(row.get("audio"), Mapping) for row in rows):
        rows = [row | {"audio": _as_stored(row.get("audio"))} for row in rows]
    columns = dict.fromkeys(key for row in rows for key in row)
    kinds = {key: Value("string") for key in ("source", "task", "question", "answer")}
    kinds |= {"seconds": Value("float64"), "messages": MESSAGES}
    kinds = {key: kind for key, kind in kinds.items() if key in columns}
    table = Dataset.from_list([{**dict.fromkeys(columns), **row} for row in rows])
    if all(table.features[key] == kind for key, kind in kinds.items()):
        return table
    return table.cast(Features({**table.features, **kinds}))


def _as_list(value):
    return list(value) if isinstance(value, list | tuple) else None if value is None else [value]


def _as_stored(clip):
    if isinstance(clip, str):
        return {"bytes": None, "path": clip}
    return None if clip is None else {"bytes": clip.get("bytes"), "path": clip.get("path")}


def _library_rows(found: Found) -> Dataset:
    """What the library loads, under our names, clips undecoded."""
    source = found.source
    if found.kind == "saved":
        loaded = datasets.load_from_disk(source.path)
        rows = _part_of(loaded, found.split)
    else:
        found.builder.download_and_prepare()
        rows = found.builder.as_dataset(split=found.split)
    rows = _under_our_names(undecoded(rows), source)
    for key in ("source", "task"):
        if getattr(source, key) is not None and key not in rows.column_names:
            rows = rows.add_column(key, [getattr(source, key)] * len(rows))
    if rows.features.get("audio") == Value("string") and found.files:
        folder = os.path.dirname(os.path.abspath(found.files[0]))
        rows = rows.map(lambda row: {"audio": at_folder(row["audio"], folder)})
    return rows


def _part_of(loaded: Dataset | DatasetDict, split: str) -> Dataset:
    """A split, or parts of splits, of what `load_from_disk` gave."""
    splits = loaded if isinstance(loaded, DatasetDict) else {"train": loaded}
    parts = datasets.ReadInstruction.from_spec(split).to_absolute({name: len(rows) for name, rows in splits.items()})
    chosen = [splits[part.splitname].select(range(part.from_ or 0, _end(part, splits))) for part in parts]
    return chosen[0] if len(chosen) == 1 else datasets.concatenate_datasets(chosen)


def _under_our_names(rows, source: Source):
    """Columns of a `Dataset` or stream renamed, and those left out that nothing reads."""
    names = rows.column_names
    if names is None:  # a stream that does not know its columns
        names = list(next(iter(rows), {}))
    for theirs in source.columns:
        if theirs not in names:
            raise ValueError(f"`columns` maps `{theirs}`, and `{source.path}` has no such column: it has {names}.")
    dropped = [theirs for theirs, ours in source.columns.items() if ours is None]
    pairs = {theirs: ours for theirs, ours in source.columns.items() if ours is not None and ours != theirs}
    kept = [name for name in names if name not in dropped]
    if clash := [ours for ours in pairs.values() if ours in kept and ours not in pairs]:
        raise ValueError(
            f"`{source.path}` has a column `{clash[0]}`, and `columns` maps another one to it: add "
            f"`{clash[0]}: null`, which leaves that column out."
        )
    rows = rows.remove_columns(dropped) if dropped else rows
    rows = rows.rename_columns(pairs) if pairs else rows
    known = [name for name in (pairs.get(name, name) for name in kept) if name in COLUMNS]
    if missing := missing_columns(known):
        raise ValueError(f"`{source.path}` lacks {missing}. {suggest_columns(kept, missing)}")
    return rows.select_columns(known)


def undecoded(rows):
    """A `Dataset` or stream whose clips stay as they are stored, since decoding wants torchcodec."""
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


def _check_table(rows: Dataset, path: str, check: RowCheck):
    if not len(rows):
        raise ValueError(f"`{path}` has no rows.")
    check_rows(rows, check, f"`{path}`")


def check_rows(rows, check: RowCheck, name: str = "the data set"):
    """Refuse rows of a `Dataset` or a list by all but their clips, of which only is seen whether they are there.

    Rows of a stream, and of a data set with a transform of its own, are checked as they come.
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


def missing_columns(names: Sequence[str]) -> list[str]:
    """What rows of these columns lack."""
    has_clips = {"audio", "messages"} & {*names} or {"question", "answer"} <= {*names}
    missing = [] if has_clips else ["audio"]
    return missing + ([] if {"text", "answer", "messages"} & {*names} else ["text"])


def _has_audio(rows: Dataset) -> Iterator[object]:
    """For each row a stand-in for its clips: as many as it has, without their samples."""
    for table in rows.select_columns(["audio"]).with_format("arrow").iter(256):
        column = table["audio"].combine_chunks()
        if hasattr(column.type, "value_type"):
            counts = column.value_lengths().to_pylist()
            yield from (["clip"] * count if count is not None else None for count in counts)
        elif hasattr(column.type, "fields"):
            marks = zip(*(column.field(n).is_valid().to_pylist() for n in ("bytes", "path")), strict=True)
            yield from ("clip" if any(mark) else None for mark in marks)
        else:
            yield from column.to_pylist()


def fill_seconds(rows: Dataset, name: str) -> Dataset:
    """Rows with the length of each in `seconds`; `name` is what errors call them."""
    seconds = lengths_of(rows, name)
    rows = rows.remove_columns([name for name in ("seconds",) if name in rows.column_names])
    return rows.add_column("seconds", seconds)


def lengths_of(rows: Dataset, name: str, folder: str | os.PathLike = ".") -> list[float]:
    """Seconds of each row: of the column `seconds`, or, where that has none, of the clips' headers.

    Args: folder: what relative paths are seen from.
    """
    known = rows["seconds"][:] if "seconds" in rows.column_names else [None] * len(rows)
    if None not in known:
        return [float(seconds) for seconds in known]
    heard = rows.select_columns([key for key in ("audio", "messages") if key in rows.column_names])

    def length(index: int) -> float:
        clips = clips_of(heard[index])
        return sum(clip_seconds(at_folder(clip, folder), f"row {index} of {name}") for clip in clips)

    return [float(length(index) if seconds is None else seconds) for index, seconds in enumerate(known)]


def _join(parts: list[Dataset]) -> Dataset:
    """Sources one behind the other: our columns alone, clips in one form."""
    parts = [part.select_columns([name for name in part.column_names if name in COLUMNS]) for part in parts]
    kinds = [part.features["audio"] for part in parts if "audio" in part.features]
    if any(kind != kinds[0] for kind in kinds):
        if any(isinstance(kind, List) for kind in kinds):
            raise ValueError("Some sources have lists of clips in `audio` and some one clip a row: give all lists.")
        stored = Audio(decode=False)
        parts = [part.cast_column("audio", stored) if "audio" in part.features else part for part in parts]
    for key, kind in {"messages": MESSAGES}.items():
        parts = [_with_kind(part, key, kind) for part in parts]
    return datasets.concatenate_datasets(parts)


def _with_kind(rows: Dataset, key: str, kind) -> Dataset:
    if key not in rows.features or rows.features[key] == kind:
        return rows
    features = Features({**rows.features, key: kind})
    return rows.map(lambda row: {key: row[key] and stored_messages(row[key], "")}, features=features)


def _repeat(rows: Dataset, repeat: Mapping[str, int], source) -> Dataset:
    if not repeat:
        return rows
    sources = rows["source"][:] if "source" in rows.column_names else [None] * len(rows)
    if unknown := set(repeat) - set(sources):
        raise ValueError(f"`repeat` names {sorted(unknown)}, and no row of `{source}` has that source.")
    return rows.select([index for index, name in enumerate(sources) for _ in range(repeat.get(name, 1))])


# ---- streams ----


@dataclass
class Streams:
    """Rows that are read as they come.

    Args:
        streams (`dict`): a `datasets.IterableDataset` of each task's rows.
        sizes (`dict`): rows of each; of a data set that does not say, `UNKNOWN_SIZE`.
        counts (`dict`): clips and seconds by source, seconds NaN where they are not known beforehand.
        hold_audio (`bool`): whether rows hold clips, and not only their paths.
        seconds (`list`): the lengths that are known beforehand.
    """

    streams: dict[str, Stream] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    counts: dict[tuple[str], tuple[int, float]] = field(default_factory=dict)
    hold_audio: bool = False
    seconds: list[float] = field(default_factory=list)

    def add(self, task: str, stream: Stream, size: int):
        if task in self.streams:
            stream = datasets.concatenate_datasets([self.streams[task], stream])
        self.streams[task] = stream
        self.sizes[task] = self.sizes.get(task, 0) + size

    def count(self, source: str | None, clips: int, seconds: float):
        key = (source or "-",)
        known = self.counts.get(key, (0, 0.0))
        self.counts[key] = (known[0] + clips, known[1] + seconds)


def open_streams(
    source,
    by_task: bool = False,
    columns: Mapping | None = None,
    check: RowCheck | None = None,
) -> Streams:
    """A stream of each task's rows, whose shards are the files that have some.

    Files of JSON, CSV and audio folders are read to their ends beforehand, so that a row that cannot be learnt from
    is found before the first step. Rows of tars, Parquet and the hub are checked as they come.

    Args: by_task: whether to tell rows apart by their `task`, or else `source`; if not, they are one stream. Others
        as of `open_rows`.

    Raises: as `open_rows`; `ValueError` where a row has neither task nor source and needs one.
    """
    check, opened = check or RowCheck(), Streams()
    for each in list_sources(source, columns):
        found = find(each)
        if "[" in found.split or "+" in found.split:
            raise ValueError(f"`split` is {found.split!r}, and a stream has no parts: name one whole split.")
        if found.kind in ("json", "csv", "audiofolder"):
            _add_files(opened, found, by_task, check)
        else:
            _add_unseen(opened, found, by_task, check)
    opened.streams = {task: opened.streams[task] for task in sorted(opened.streams)}
    opened.sizes = {task: opened.sizes[task] for task in opened.streams}
    opened.counts = dict(sorted(opened.counts.items()))
    return opened


def _add_files(opened: Streams, found: Found, by_task: bool, check: RowCheck):
    """Streams of files that are counted first."""
    counts: dict[str, Counter] = {}
    shards = [found.files] if found.kind == "audiofolder" else [(file,) for file in found.files]
    for shard in shards:
        for name, row in _checked_rows(Found(found.source, found.kind, shard), check):
            counts.setdefault(_task_of(row, by_task, name), Counter())[shard] += 1
            seconds = row.get("seconds")
            opened.count(row.get("source"), 1, float("nan") if seconds is None else seconds)
            if seconds is not None:
                opened.seconds.append(seconds)
    for task, by_shard in counts.items():
        options = {"shards": [*by_shard], "task": task if by_task else None, "found": found}
        opened.add(task, Stream.from_generator(_rows_of_task, gen_kwargs=options), by_shard.total())


def _rows_of_task(shards: list[tuple[str, ...]], task: str | None, found: Found) -> Iterator[dict]:
    for shard in shards:
        for name, row in _own_rows(shard, found.kind, found.source):
            if task is None or _task_of(row, True, name) == task:
                yield _with_seconds(row, name)


def _task_of(row: Mapping, by_task: bool, name: str) -> str:
    if not by_task:
        return EVERY_ROW
    if (task := row.get("source") if row.get("task") is None else row["task"]) is None:
        raise ValueError(f"A mixture is of tasks, and {name} has neither `task` nor `source`: give it one of them.")
    return task


def _with_seconds(row: dict, name: str) -> dict:
    if row.get("seconds") is not None:
        return row
    return {**row, "seconds": float(sum(clip_seconds(clip, name) for clip in clips_of(row)))}


def _add_unseen(opened: Streams, found: Found, by_task: bool, check: RowCheck):
    """The stream of a source whose rows are seen first in training: one task, named by its mapping."""
    source, opened.hold_audio = found.source, True
    task = (source.task or source.source or source.path) if by_task else EVERY_ROW
    if found.kind == "webdataset":
        options = {"shards": list(found.files), "found": found, "check": check}
        stream, size = Stream.from_generator(_rows_of_tars, gen_kwargs=options), None
    else:
        stream, size = _library_stream(found)
        stream = _under_our_names(undecoded(stream), source)
        stream = stream.map(_Finish(source, check), with_indices=True)
    opened.add(task, stream, size or UNKNOWN_SIZE)
    opened.count(source.source or source.path, size or 0, float("nan"))


def _rows_of_tars(shards: list[str], found: Found, check: RowCheck) -> Iterator[dict]:
    for shard in shards:
        for name, row in _checked_rows(Found(found.source, found.kind, (shard,)), check):
            yield _with_seconds({key: value for key, value in row.items() if key in COLUMNS}, name)


def _library_stream(found: Found) -> tuple[Stream, int | None]:
    if found.kind == "saved":
        rows = _part_of(datasets.load_from_disk(found.source.path), found.split)
        return rows.to_iterable_dataset(num_shards=max(1, min(len(found.files), len(rows)))), len(rows)
    known = (found.builder.info.splits or {}).get(found.split)
    return found.builder.as_streaming_dataset(split=found.split), known.num_examples if known else None


@dataclass
class _Finish:
    """Checks a row of a stream as it comes, and adds its length."""

    source: Source
    check: RowCheck

    def __call__(self, row: dict, index: int) -> dict:
        name = f"row {index} of `{self.source.path}`"
        self.check(row, name)
        return _with_seconds(_with_constants(row, self.source), name)


# ---- what was read ----


def digest_source(source: Source) -> dict[str, str]:
    """What tells a source from another by name: a digest of each file, or the revision of a data set of the hub; and
    the columns and parts that are read of it."""
    found = find(source)
    if not found.files or "://" in found.files[0]:
        digests = {source.path: getattr(found.builder, "hash", None) or source.revision or "unknown"}
    else:
        digests = {os.path.basename(file): file_digest(file) for file in found.files}
    parts = {"config": source.config, "split": found.split, "source": source.source, "task": source.task}
    chosen = {key: value for key, value in parts.items() if value not in (None, "train")}
    chosen |= {"columns": dict(source.columns)} if source.columns else {}
    return digests | ({"read as": json.dumps(chosen, sort_keys=True)} if chosen else {})


def file_digest(path: str | os.PathLike) -> str:
    """sha256 of a file; of one over a gigabyte, of its size and of parts of it evenly spread."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        if size <= WHOLE_BYTES:
            return hashlib.file_digest(file, "sha256").hexdigest()
        digest = hashlib.sha256(str(size).encode())
        for block in range(BLOCKS):
            file.seek(size * block // BLOCKS)
            digest.update(file.read(BLOCK_BYTES))
        return digest.hexdigest()


def describe_source(source: Source) -> str:
    """Name and digest of each file, or name and revision of a data set of the hub, and what is read of it."""
    words = {"read as": "read as {}"}
    found = find(source)
    kind = "sha256" if found.files and "://" not in found.files[0] else "revision"
    return "; ".join(
        words[name].format(f"`{digest}`") if name in words else f"`{name}`, {kind} `{digest}`"
        for name, digest in digest_source(source).items()
    )


def transcripts(rows) -> Iterator[str]:
    """The transcripts of rows, one by one."""
    for row in rows:
        yield from (text for text in transcripts_of(row) if text is not None)


__all__ = [
    "Source",
    "Streams",
    "check_rows",
    "describe_source",
    "digest_source",
    "file_digest",
    "fill_seconds",
    "find",
    "find_files",
    "lengths_of",
    "list_sources",
    "looks_local",
    "open_rows",
    "open_streams",
    "transcripts",
    "undecoded",
]
