"""`data:` of a recipe -> its sources, and where the rows of each lie."""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import datasets

from ..paths import expand_path
from .readers import KINDS, kind_of
from .rows import check_columns


OWN_KINDS = ("json", "csv", "webdataset", "audiofolder")  # read by `readers`; the library reads the others
FILES_IN_ORDER = re.compile(r"[*?\[]")
WHOLE_BYTES, BLOCKS, BLOCK_BYTES = 1 << 30, 64, 1 << 20  # of a file for its digest


@dataclass(frozen=True)
class Source:
    """One place that rows come from, as `load_dataset` takes it.

    Args:
        path (`str`): a file, a pattern of files, a folder, or the name of a data set on the hub.
        config, split, revision, data_files, data_dir: as `load_dataset` has them; `config` is its `name`.
        streaming (`bool`, *optional*): whether its rows are read while they are used.
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
    """A source, and what a look at it found: its kind, files and split.

    Args:
        kind (`str`): of `OWN_KINDS`, "saved" (`save_to_disk`), or "library".
        files (`tuple[str, ...]`): of the rows, in order; empty if only the library knows.
        split (`str`): the one to read, or several joined by `+`.
        builder: of `datasets`, where it has one.
        splits (`dict`): files of each split, where they are known.
    """

    source: Source
    kind: str
    files: tuple[str, ...] = ()
    split: str = "train"
    builder: object = None
    splits: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def find(source: Source) -> Found:
    """Look at a source without reading its rows.

    Raises: `FileNotFoundError` if it is not there; `ValueError` for a split or config that does not exist.
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

    Raises: `FileNotFoundError` if there is none.
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
            raise ValueError(f"The folder `{source.path}` holds no data of a known form: {error}") from error
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
    """The split that the source names; by default the only one, or `train`.

    Raises: `ValueError` that lists the splits, if the named one does not exist or none is named.
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


# ---- what tells data from other data ----


def digest_source(source: Source) -> dict[str, str]:
    """Digests that change where the data of a source change.

    Returns: by name, the digest of each file or the revision of a data set of the hub; under "read as", the columns
        and parts that are read.
    """
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


__all__ = [
    "OWN_KINDS",
    "Found",
    "Source",
    "describe_source",
    "digest_source",
    "file_digest",
    "find",
    "find_files",
    "list_sources",
    "looks_local",
]
