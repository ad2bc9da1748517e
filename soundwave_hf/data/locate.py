"""Parse `data:` of a recipe into sources, and find the files of each."""

import glob
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path

import datasets

from ..paths import expand_path
from ..processing.sources_soundwave import is_url, without_secrets
from ..secret_values import hide_secrets
from .layouts import find_layout, find_splits
from .readers import KINDS, kind_of
from .rows import check_columns


# Read by `readers` and `layouts`; the library `datasets` reads the others. "layout" is a corpus of whole clips.
OWN_KINDS = ("json", "csv", "webdataset", "audiofolder", "layout", "recordings")
HOLD_AUDIO = ("webdataset", "recordings")  # kinds whose rows hold clips: of a tar, or cut from longer recordings
FILES_IN_ORDER = re.compile(r"[*?\[]")
# The digest of a file over `WHOLE_BYTES` reads so many blocks of it.
WHOLE_BYTES, BLOCKS, BLOCK_BYTES = 1 << 30, 64, 1 << 20


@dataclass(frozen=True)
class Source:
    """One place that rows come from, as `load_dataset` takes it.

    Args:
        path (`str`): a file, a pattern of files, a folder, or the name of a data set on the hub.
        config, split, revision, data_files, data_dir: as in `load_dataset`, where `config` is called `name`. The split
            `all` is all splits.
        layout (`str`, *optional*): how the corpus in the folder `path` is arranged, one of `layouts.LAYOUTS`.
        streaming (`bool`, *optional*): whether its rows are read while they are used.
        columns (`dict`): `their_name: our_name`.
        source, task (`str`, *optional*): defaults for rows without these columns.
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
    layout: str | None = None

    def __post_init__(self):
        check_columns(self.columns)
        for name in ("path", "config", "split", "revision", "data_dir", "source", "task", "layout"):
            if (value := getattr(self, name)) is not None and (not isinstance(value, str) or not value):
                raise ValueError(f"`{name}` of `data` is {value!r}; expected text.")
        if self.layout is not None:
            find_layout(self.layout)
            for name in ("data_files", "data_dir", "revision"):
                if getattr(self, name) is not None:
                    raise ValueError(f"`{name}` was given, and a layout finds its own files: leave `{name}` out.")
        if self.streaming not in (None, True, False):
            raise ValueError(f"`streaming` of `data` is {self.streaming!r}; give true or false.")

    @classmethod
    def read(cls, value, columns: Mapping | None = None) -> "Source":
        """A string, or a mapping of `path` (or `name`), `config`, `split`, `streaming`, `revision`, ...

        Args: columns: default for sources without `columns`.
        """
        if isinstance(value, str | os.PathLike):
            value = {"path": os.fspath(value)}
        if not isinstance(value, Mapping):
            raise ValueError(f"`data` holds {value!r}; give a path, the name of a data set, or a mapping with `path`.")
        value = dict(value)
        if "path" in value and "name" in value:  # as in `load_dataset`
            if "config" in value:
                raise ValueError(
                    "`data` has `path`, `name` and `config`, but `name` is the config there: leave one of them out."
                )
            value["config"] = value.pop("name")
        elif "name" in value:
            value["path"] = value.pop("name")
        known = [f.name for f in fields(cls)]
        unknown = [key for key in value if key not in known]
        if unknown or "path" not in value:
            what = f"the keys {unknown}" if unknown else "no `path`"
            raise ValueError(
                f"A source of `data` has {what}: its keys are `path` (or `name`), {', '.join(known[1:])}."
            )
        source = cls(**{"columns": columns or {}, **value})
        if source.layout is None and not looks_local(source.path):
            return source
        return replace(source, path=expand_path(source.path, "`path` of `data`"))


def looks_local(path: str) -> bool:
    """Whether a string names local files or a local folder, and not a data set on the hub."""
    if "://" in path:
        return False
    if path.startswith((".", "/", "~", "$")) or FILES_IN_ORDER.search(path) or kind_of(path):
        return True
    return path.count("/") > 1 or os.path.exists(path)


def list_sources(value, columns: Mapping | None = None) -> list[Source]:
    """The sources in `data` of a recipe, which is one source or a list of them."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        if value and all(isinstance(each, Source) for each in value):
            return list(value)
        if not value:
            raise ValueError("`data` is an empty list; give at least one source.")
        return [Source.read(each, columns) for each in value]
    return [value] if isinstance(value, Source) else [Source.read(value, columns)]


def files_of(value) -> list[str]:
    """The files of this machine that hold the rows of `data` of a recipe, as far as they are known."""
    local = [source for source in list_sources(value) if looks_local(source.path)]
    return [file for source in local for file in find(source).files]


# ---- files of a source ----


@dataclass(frozen=True)
class Found:
    """A source that was inspected: its kind, files and split.

    Args:
        kind (`str`): one of `OWN_KINDS`, "saved" (by `save_to_disk`), or "library".
        files (`tuple[str, ...]`): files with the rows, in order; empty if only the library knows them.
        split (`str`): the split to read, or several joined by `+`.
        builder (*optional*): builder of `datasets`.
        splits (`dict`): files of each split, if they are known.
    """

    source: Source
    kind: str
    files: tuple[str, ...] = ()
    split: str = "train"
    builder: object = None
    splits: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def has_parts(self) -> bool:
        """Whether `split` names a part of a split (`train[:10%]`), or several splits."""
        return "[" in self.split or "+" in self.split


def find(source: Source) -> Found:
    """Inspect a source without reading its rows.

    Raises: `FileNotFoundError` if it does not exist; `ValueError` for a split or config that does not exist.
    """
    path = Path(source.path)
    if source.layout is not None:
        return _find_layout(source)
    if path.is_dir() and (path / "dataset_dict.json").is_file():
        splits = {name: _arrow_files(path / name) for name in datasets.load_from_disk(str(path))}
        return Found(source, "saved", _arrow_files(path), _choose_split(source, list(splits)), splits=splits)
    if path.is_dir() and (path / "state.json").is_file():
        return Found(source, "saved", _arrow_files(path), _choose_split(source, ["train"]))
    if not path.is_dir() and (path.is_file() or FILES_IN_ORDER.search(source.path) or kind_of(source.path)):
        return _find_files(source, find_files(source.path))
    return _find_built(source)


def _find_layout(source: Source) -> Found:
    splits = find_splits(source.layout, source.path, source.config)
    split = _choose_split(source, list(splits))
    # Whether rows are cut is asked of all splits: `split` may name several.
    cuts = any(find_layout(source.layout).cuts(files) for files in splits.values())
    files = tuple(file for name in splits_of(split, splits) for file in splits[name])
    return Found(source, "recordings" if cuts else "layout", files, split, splits=splits)


def find_files(path: str | os.PathLike) -> list[Path]:
    """The file at a path, or else the files that match its last part as a pattern (`train-*.jsonl`), sorted by name.

    Raises: `FileNotFoundError` if there is none; `ValueError` for a URL.
    """
    if is_url(os.fspath(path)):
        raise ValueError(
            f"`{without_secrets(os.fspath(path))}` is a URL: download the file, or name a data set of the Hub."
        )
    path = Path(path)
    found = [path] if path.is_file() else sorted(path.parent.glob(path.name))
    if not found or not all(each.is_file() for each in found):
        raise FileNotFoundError(f"There is no file `{path}` (current folder: {os.getcwd()}): check the path.")
    return found


def _find_files(source: Source, files: list[Path]) -> Found:
    kinds = {kind_of(str(file)) for file in files}
    if len(kinds) > 1 or None in kinds:
        names = sorted({file.suffix or file.name for file in files})
        raise ValueError(f"`{source.path}` has files of type {', '.join(names)}; expected one of {', '.join(KINDS)}.")
    for key in ("config", "data_files", "data_dir", "revision"):
        if getattr(source, key) is not None:
            raise ValueError(f"`{key}` was given, but `{source.path}` is a file: leave `{key}` out.")
    names, (kind,) = tuple(map(str, files)), kinds
    split = _choose_split(source, ["train"])
    if kind in OWN_KINDS:
        return Found(source, kind, names, split, splits={"train": names})
    builder = datasets.load_dataset_builder(kind, data_files={"train": [glob.escape(name) for name in names]})
    return Found(source, "library", names, split, builder)


def _find_built(source: Source) -> Found:
    """A folder or a data set on the hub, found by the library's builders."""
    if Path(source.path).is_dir() and "[" in (folder := os.path.abspath(source.path)):
        raise ValueError(
            f"The library `datasets` reads the `[` in the name of the folder `{folder}` as a pattern: rename the "
            "folder, or name the files in it."
        )
    options = {key: getattr(source, key) for key in ("data_files", "data_dir", "revision")}
    try:
        builder = datasets.load_dataset_builder(source.path, source.config, **options)
    except ValueError as error:  # the library's message lists the configs
        raise ValueError(f"`data` `{hide_secrets(source.path)}`: {hide_secrets(str(error))}") from error
    except (OSError, datasets.exceptions.DatasetsError) as error:
        if Path(source.path).is_dir():
            raise ValueError(f"The folder `{source.path}` holds no data in a known format: {error}") from error
        raise FileNotFoundError(
            f"There is no data at `{source.path}`: it is not a file or folder (current folder: {os.getcwd()}), and no "
            f"data set of that name could be downloaded from the hub ({error})."
        ) from error
    by_split = {str(split): tuple(map(str, files)) for split, files in (builder.config.data_files or {}).items()}
    split = _choose_split(source, list(by_split) or [str(split) for split in builder.info.splits or []])
    kind = type(builder).__module__.rpartition(".")[2]
    if kind not in OWN_KINDS:
        return Found(source, "library", by_split.get(split, ()), split, builder, by_split)
    return Found(source, kind, by_split.get(split, ()), split, builder, by_split)


def _choose_split(source: Source, names: list[str]) -> str:
    """The split that the source names; by default the only one, or `train`. `all` is all of them, joined by `+`.

    Raises: `ValueError` that lists the splits, if the named one does not exist or none is named.
    """
    if source.split == "all" and names and "all" not in names:
        return "+".join(names)
    if source.split is not None:
        # Parts of splits in the library's syntax: `train[:10%]+validation`.
        wanted = [part.partition("[")[0].strip() for part in source.split.split("+")]
        if names and (missing := [name for name in wanted if name not in names]):
            raise ValueError(f"`{source.path}` has no split `{missing[0]}`; its splits are {names}.")
        return source.split
    if len(names) > 1 and "train" not in names:
        raise ValueError(f"`{source.path}` has the splits {names}: choose one with `split`.")
    return "train" if "train" in names or not names else names[0]


def splits_of(split: str, names: Iterable[str]) -> list[str]:
    """The splits that are read for `train` or `train[:10%]+validation`."""
    named = {part.partition("[")[0].strip() for part in split.split("+")}
    return [name for name in names if name in named]


def _arrow_files(folder: Path) -> tuple[str, ...]:
    files = sorted(folder.rglob("*.arrow"))
    return tuple(str(file) for file in files if not file.name.startswith("cache-"))  # `map` leaves those there


def folder_of(found: Found, split: str | None = None) -> str | None:
    """The folder of a source's local files, where relative paths begin. Args: split: by default that of `found`."""
    files = found.splits.get(split or found.split) or found.files
    local = files and "://" not in files[0]
    return os.path.dirname(os.path.abspath(files[0])) if local else None


# ---- digests: have the data changed? ----


def digest_source(source: Source) -> dict[str, str]:
    """Digests that change if the data of a source change.

    Returns: the digest of each file by its name, or the revision of a data set on the hub; under "read as", the
        columns and parts that are read.
    """
    found = find(source)
    if not found.files or "://" in found.files[0]:
        digests = {source.path: getattr(found.builder, "hash", None) or source.revision or "unknown"}
    else:
        # In a folder, files may have equal names in different folders.
        is_folder = source.layout or os.path.isdir(source.path)
        name = partial(os.path.relpath, start=source.path) if is_folder else os.path.basename
        digests = {name(file): file_digest(file) for file in found.files}
    parts = {"config": source.config, "split": found.split, "source": source.source, "task": source.task}
    chosen = {key: value for key, value in parts.items() if value not in (None, "train")}
    chosen |= {"columns": dict(source.columns)} if source.columns else {}
    chosen |= {"layout": source.layout} if source.layout else {}
    return digests | ({"read as": json.dumps(chosen, sort_keys=True)} if chosen else {})


def file_digest(path: str | os.PathLike) -> str:
    """sha256 of a file; for a file over a gigabyte, of its size and of evenly spaced blocks."""
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
    """Name and digest of each file, or name and revision of a data set on the hub, and the parts that are read."""
    found = find(source)
    kind = "sha256" if found.files and "://" not in found.files[0] else "revision"
    return "; ".join(
        f"read as `{digest}`" if name == "read as" else f"`{name}`, {kind} `{digest}`"
        for name, digest in digest_source(source).items()
    )


__all__ = [
    "HOLD_AUDIO",
    "OWN_KINDS",
    "Found",
    "Source",
    "describe_source",
    "digest_source",
    "file_digest",
    "files_of",
    "find",
    "find_files",
    "folder_of",
    "list_sources",
    "looks_local",
    "splits_of",
]
