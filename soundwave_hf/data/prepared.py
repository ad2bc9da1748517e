"""The files of a prepared set: what `data clean`, `data build` or a user left in a folder, split by split."""

import glob
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow.parquet

from ..json_files import read_json_object
from .readers import METADATA_FILES, is_clip, kind_of


BUILT = "build.json"  # the recipe of `data build`, in its folder
KEPT = "kept"  # subfolder with the rows that `data clean` keeps
REPORT = "report.json"  # of `data clean`, beside it
HUB_DATA = "data"  # subfolder with the rows of a set of the hub
ENDS = 1 << 16  # bytes of each end of a file that its digest reads; Parquet has the counts of its columns at the end
NUMBER = re.compile(r"[-_]\d{3,}(-of-\d+)?$")  # `train-00000-of-00003`
SPLIT_NAMES = ("train", "validation", "valid", "dev", "test", "all")
# The split of a folder of this name, as in `datasets`.
SPLIT_FOLDERS = {"train": "train", **dict.fromkeys(("validation", "valid", "dev"), "validation"), "test": "test"}
SAVED = ("dataset_dict.json", "state.json")  # of `save_to_disk`


@dataclass(frozen=True)
class Part:
    """Files of rows with the same columns.

    Args:
        config (`str`): `default`, or the name that `load_dataset` takes where the parts have other columns.
        split (`str`): as in `load_dataset`.
        pattern (`str | tuple[str, ...]`): of the files, relative to the folder; several for a folder of clips with a
            `metadata.csv`, `.jsonl` or `.parquet`: that file, and the clips.
        files (`tuple[Path, ...]`): in order.
    """

    config: str
    split: str
    pattern: str | tuple[str, ...]
    files: tuple[Path, ...]

    @property
    def is_audio_folder(self) -> bool:
        return not isinstance(self.pattern, str)

    @property
    def source(self) -> str:
        """What `data` of a recipe takes for its rows."""
        folder = self.files[0].parent
        return str(folder if self.is_audio_folder else folder / Path(self.pattern).name)


def find_parts(folder: str | os.PathLike) -> list[Part]:
    """The parts of a prepared set.

    Raises: `FileNotFoundError` if there is no such folder; `ValueError` if it holds no rows, files of one name and
        different types, or others beside those that `data clean` kept.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder `{folder}` (current folder: {os.getcwd()}).")
    if (folder / BUILT).is_file():
        return _built_parts(folder)
    if any((folder / name).is_file() for name in SAVED):
        raise ValueError(
            f"`{folder}` was written by `save_to_disk`, and `load_dataset` does not read that form: write its rows to "
            "another folder as Parquet, `load_from_disk(FOLDER).to_parquet(FILE)`."
        )
    if _groups(folder / KEPT) and (others := _groups(folder)):
        raise ValueError(
            f"`{folder}` holds rows in `{KEPT}/`, as `data clean` leaves them, and beside it, `{min(others)}`: move "
            "one of them to another folder."
        )
    for name in (KEPT, "", HUB_DATA):
        if groups := _groups(folder / name):
            return _parts(groups, name)
    if parts := _split_folders(folder):
        return parts
    raise ValueError(
        f"`{folder}` holds no rows: expected .jsonl, .csv or .parquet files in it, in `{KEPT}/` or in `{HUB_DATA}/`."
    )


def _built_parts(folder: Path) -> list[Part]:
    """One config for each step of `data build` that has rows."""
    from .build.recipe import manifests

    recipe = read_json_object(folder / BUILT, "build the rows again in a new folder", needed=("recipe",))["recipe"]
    names = [step.get("name") or step["build"] for step in recipe["steps"]]
    patterns = {name: manifests(name, recipe.get("format", "jsonl")) for name in names}
    files = {name: tuple(sorted(folder.glob(pattern))) for name, pattern in patterns.items()}
    if not any(files.values()):
        raise ValueError(f"`{folder}` holds no rows: `data build` has not made any yet.")
    return [Part(name, "train", pattern, files[name]) for name, pattern in patterns.items() if files[name]]


def _groups(place: Path) -> dict[str, list[Path]]:
    """Files of rows by their name without a shard's number."""
    groups: dict[str, list[Path]] = {}
    files = sorted(place.iterdir()) if place.is_dir() else []
    for file in files:
        if (
            kind_of(file.name) in ("json", "csv", "parquet")
            and file.suffix != ".json"
            and not file.name.startswith(".")
        ):
            stem = file.name[: -len("".join(Path(file.name).suffixes))] if file.suffix == ".gz" else file.stem
            name = "metadata" if file.name in METADATA_FILES else NUMBER.sub("", stem)
            groups.setdefault(name, []).append(file)
    return groups


def _parts(groups: dict[str, list[Path]], place: str) -> list[Part]:
    for name, files in groups.items():
        if len(endings := {file.suffix for file in files}) > 1:
            raise ValueError(f"`{files[0].parent}` has `{name}` as {', '.join(sorted(endings))}: keep one of them.")
    prefix = f"{place}/" if place else ""
    if place == KEPT:  # one file for each block that was judged
        files = tuple(file for files in groups.values() for file in files)
        return [Part("default", "train", prefix + file_pattern("", files), files)]
    if "metadata" in groups:
        metadata = groups["metadata"][0]
        if others := [file.name for name, files in groups.items() if name != "metadata" for file in files]:
            raise ValueError(
                f"`{metadata.parent}` has {metadata.name}, whose rows are its clips, and other files of rows, "
                f"{', '.join(others)}: move those to another folder."
            )
        return [Part("default", "train", _folder_patterns(metadata, prefix), (metadata,))]
    if len(groups) == 1:
        ((name, files),) = groups.items()
        split = name if name in SPLIT_NAMES[1:-1] else "train"
        return [Part("default", split, prefix + file_pattern(name, files), tuple(files))]
    words = {_word(name): name for name in groups}
    if twice := [name for name in groups if words[_word(name)] != name]:
        files = f"`{twice[0]}` and `{words[_word(twice[0])]}`"
        raise ValueError(f"The files {files} would both be called `{_word(twice[0])}`: rename one of them.")
    same = len({frozenset(_columns(files[0])) for files in groups.values()}) == 1
    return [
        Part(
            "default" if same else _word(name),
            _word(name) if same else "train",
            prefix + file_pattern(name, files),
            tuple(files),
        )
        for name, files in groups.items()
    ]


def _split_folders(folder: Path) -> list[Part]:
    """The parts of `train/metadata.csv`, `test/metadata.csv` and so on, with the clips beside each."""
    groups = {name: _groups(folder / name) for name in SPLIT_FOLDERS}
    found = {name: parts for name, parts in groups.items() if "metadata" in parts}
    return [replace(_parts(parts, name)[0], split=SPLIT_FOLDERS[name]) for name, parts in found.items()]


def _folder_patterns(metadata: Path, prefix: str) -> tuple[str, ...]:
    """Patterns of a metadata file and of the clips in its folder, by their endings."""
    endings = sorted({file.suffix for file in metadata.parent.rglob("*") if is_clip(file.name)})
    return (prefix + metadata.name, *(f"{prefix}**/*{ending}" for ending in endings))


def file_pattern(name: str, files: Sequence[Path]) -> str:
    """A pattern that these files match, and no other file of their folder. Args: name: how all of them begin.

    Raises: `ValueError` if there is none.
    """
    if len(files) == 1 and name:
        return glob.escape(files[0].name)
    mark = files[0].name[len(name)] if name else ""  # `-` or `_` before the number
    numbered = re.sub(r"\d", "[0-9]", files[0].name[len(name) :])
    for pattern in (f"{glob.escape(name)}{mark}*{files[0].suffix}", glob.escape(name) + numbered):
        found = [file for file in files[0].parent.glob(pattern) if not file.name.startswith(".")]
        if sorted(found) == sorted(files):
            return pattern
    raise ValueError(
        f"No pattern matches the files of `{name or KEPT}` in `{files[0].parent}` alone, such as "
        f"`{files[0].name}` and `{files[-1].name}`: number them all in one way (`{name or 'rows'}-00000.jsonl`)."
    )


def _word(name: str) -> str:
    """A name as `load_dataset` takes it for a split."""
    return re.sub(r"\W+", "_", name).strip("_") or "train"


def _columns(file: Path) -> list[str]:
    if file.suffix == ".parquet":
        return pyarrow.parquet.read_schema(file).names
    for row in first_rows(file, 1):
        return list(row)
    return []


def first_rows(file: Path, count: int) -> Iterator[dict]:
    """The first rows of a file of text."""
    from .readers import read_file

    for (_, row), _ in zip(read_file(str(file), kind_of(file.name)), range(count), strict=False):
        yield row


def files_digest(parts: Sequence[Part]) -> str:
    """A digest of files of rows, by names, sizes, beginnings and ends. It changes when they are made anew."""
    digest = hashlib.sha256()
    for file in (file for part in parts for file in part.files):
        with open(file, "rb") as content:
            size = os.path.getsize(file)
            digest.update(f"{file.name} {size} ".encode())
            digest.update(content.read(ENDS))
            content.seek(max(0, size - ENDS))
            digest.update(content.read(ENDS))
    return digest.hexdigest()[:16]


def read_report(folder: str | os.PathLike) -> dict:
    """The report that `data clean` wrote beside its rows; empty without one."""
    path = Path(folder) / REPORT
    return read_json_object(path, "clean the rows again, or move the file away") if path.is_file() else {}


__all__ = ["BUILT", "HUB_DATA", "KEPT", "REPORT", "Part", "file_pattern", "files_digest", "find_parts", "read_report"]
