"""Files of rows, read one row at a time: JSON lines, JSON, CSV, TSV, audio folders and WebDataset tars.

`datasets` reads these too. But it needs torchcodec for tars and audio folders, it guesses types (a transcript "null"
in a CSV becomes a missing value), and it does not say which line of which file a row came from. It is used for Parquet
and Arrow, but for the metadata of an audio folder.
"""

import csv
import json
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import PurePosixPath

import fsspec
from pyarrow import ArrowInvalid
from pyarrow.parquet import ParquetFile


KINDS = {
    **{".jsonl": "json", ".ndjson": "json", ".json": "json", ".csv": "csv", ".tsv": "csv"},
    **{".parquet": "parquet", ".arrow": "arrow"},
    **{".tar": "webdataset", ".tgz": "webdataset"},
}
COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
AUDIO_SUFFIXES = (
    *(".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".mp4", ".aac", ".webm", ".aiff", ".aif", ".au", ".wma"),
)
METADATA_FILES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


def kind_of(path: str) -> str | None:
    """The kind of a file of rows, by its ending; None for another file."""
    return KINDS.get(_suffix(path))


def is_clip(path: str) -> bool:
    """Whether a file is a recording, by its ending. A compressed one is not: its reader takes none."""
    return _name(path).suffix in AUDIO_SUFFIXES


def read_file(path: str, kind: str) -> Iterator[tuple[str, dict]]:
    """Rows of one file, each with the name that errors use ("line 3 of `train.csv`"); paths are not changed.

    Raises: `FileNotFoundError`; `ValueError` for a line that is not a row, and a file without rows.
    """
    read = {"json": read_json, "csv": _read_csv, "parquet": _read_parquet, "webdataset": _read_tar}[kind]
    number = 0
    try:
        for named in read(path):
            number += 1
            yield named
    except UnicodeDecodeError as error:
        raise ValueError(f"`{path}` is not in UTF-8 ({error.reason} at byte {error.start}): convert it.") from error
    except (EOFError, zlib.error) as error:
        raise ValueError(
            f"`{path}` is compressed and was cut off or damaged after row {number} ({error}): copy it again."
        ) from error
    except csv.Error as error:
        raise ValueError(f"`{path}` cannot be read as CSV after row {number}: {error}.") from error
    except ArrowInvalid as error:
        raise ValueError(f"`{path}` cannot be read as Parquet after row {number}: {error}.") from error
    except tarfile.TarError as error:
        raise ValueError(f"`{path}` cannot be read as a tar after clip {number}: {error}.") from error
    if not number:
        what = "one JSON object a line, one for each clip" if kind == "json" else "at least one clip"
        raise ValueError(f"`{path}` is empty: it needs {what}.")


def _suffix(path: str) -> str:
    """The lower-case ending of a name, without the ending of a compression."""
    path = _name(path)
    return path.with_suffix("").suffix if path.suffix in COMPRESSIONS else path.suffix


def _name(path: str) -> PurePosixPath:
    """A path in lower case, a URL without its query."""
    return PurePosixPath((path.partition("?")[0] if "://" in path else path).lower())


def _open_text(path: str, newline: str | None = None):
    return fsspec.open(path, "rt", encoding="utf-8-sig", compression="infer", newline=newline).open()


def read_json(path: str) -> Iterator[tuple[str, dict]]:
    """Like `read_file`, for JSON lines or one JSON list. A file without rows is no error."""
    with _open_text(path) as file:
        if _suffix(path) == ".json" and _begins_with_list(file):
            yield from ((f"row {number} of `{path}`", row) for number, row in enumerate(_parse(file.read(), path)))
            return
        for number, line in enumerate(file, start=1):
            if line.strip():
                name = f"line {number} of `{path}`"
                yield name, _parse(line, name)


def _begins_with_list(file) -> bool:
    """Whether the first character of a text that is no white space is a bracket. The file then stands at its begin."""
    while (character := file.read(1)).isspace():
        pass
    file.seek(0)
    return character == "["


def _parse(text: str, name: str):
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{name} is not JSON: {error}.") from error


def _read_csv(path: str) -> Iterator[tuple[str, dict]]:
    with _open_text(path, newline="") as file:
        rows = csv.reader(file, delimiter="\t" if _suffix(path) == ".tsv" else ",", strict=True)
        header = next(rows, [])
        if len(header) == 1 and (other := next((mark for mark in ";\t,|" if mark in header[0]), None)) is not None:
            raise ValueError(
                f"The fields of `{path}` are separated by {other!r}: save it with commas as .csv or tabs as .tsv."
            )
        if len(set(header)) != len(header):
            raise ValueError(f"`{path}` names a column twice: its first line is {header}.")
        for row in rows:
            name = f"line {rows.line_num} of `{path}`"
            if row and len(row) != len(header):
                raise ValueError(
                    f"{name} has {len(row)} fields and the first line names {len(header)} columns, {header}: put text "
                    "that holds the separator or a line break in double quotes."
                )
            if row:
                # A CSV has no null: an empty field counts as missing.
                yield name, {key: value or None for key, value in zip(header, row, strict=True)}


def number_fields(row: dict, name: str) -> dict:
    """Convert `seconds` of a CSV to a number. Raises: `ValueError` if it is not a number."""
    if not isinstance(row.get("seconds"), str):
        return row
    try:
        return {**row, "seconds": float(row["seconds"])}
    except ValueError:
        raise ValueError(f"{name} has `seconds` {row['seconds']!r}; expected a number.") from None


def _read_parquet(path: str) -> Iterator[tuple[str, dict]]:
    with fsspec.open(path, "rb").open() as file:
        rows = (row for batch in ParquetFile(file).iter_batches() for row in batch.to_pylist())
        yield from ((f"row {number} of `{path}`", row) for number, row in enumerate(rows))


def _read_tar(path: str) -> Iterator[tuple[str, dict]]:
    """Files whose names differ only in the ending make one row: `a.flac`, `a.txt` -> `{"flac": clip, "txt": text}`."""
    row, last = {}, None
    with fsspec.open(path, "rb").open() as file, tarfile.open(fileobj=file, mode="r|*") as tar:
        for member in tar:
            folder, _, base = member.name.rpartition("/")
            key, _, ending = base.partition(".")
            if not member.isfile() or not key or not ending:
                continue
            key = f"{folder}/{key}" if folder else key
            if last is not None and key != last:
                yield f"clip `{last}` of `{path}`", row
                row = {}
            row, last = {**row, **_tar_fields(member.name, ending, tar.extractfile(member).read())}, key
    if last is not None:
        yield f"clip `{last}` of `{path}`", row


def _tar_fields(name: str, ending: str, content: bytes) -> dict:
    """A file of a tar as columns. Each field of a JSON file becomes one column, such as `json.text`."""
    kind = "." + ending.rpartition(".")[2].lower()
    if kind in AUDIO_SUFFIXES:
        return {ending: {"path": name, "bytes": content}}
    if kind in (".txt", ".text", ".transcript", ".lab", ".cls"):
        return {ending: content.decode("utf-8").strip()}
    if kind == ".json":
        values = _parse(content.decode("utf-8"), f"`{name}`")
        return {f"{ending}.{key}": value for key, value in values.items()} if isinstance(values, dict) else {}
    return {}


def read_metadata(path: str) -> Iterator[tuple[str, dict]]:
    """Like `read_file`, for the metadata of an audio folder: `audio` is the clip that `file_name` names."""
    for name, row in read_file(path, kind_of(path)):
        if isinstance(row, dict) and row.get("file_name"):
            row = {"audio": row["file_name"]} | row
        yield name, row


__all__ = ["AUDIO_SUFFIXES", "KINDS", "is_clip", "kind_of", "number_fields", "read_file", "read_json", "read_metadata"]
