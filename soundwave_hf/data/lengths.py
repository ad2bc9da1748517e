"""Seconds of clips, read from the headers of their files once, and cached on disk if there are many."""

import io
import os
import sqlite3
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import lru_cache
from pathlib import Path

import soundfile

from .rows import at_folder, clips_of


THREADS = 8  # a header is a few bytes; most of the time goes into opening the file
KEPT_FROM = 1000  # at least this many files: their lengths are cached on disk


def clip_seconds(clip, name: str) -> float:
    """Length of a clip in any form that the collator takes.

    Args: name: what an error calls the clip.
    Raises: `FileNotFoundError`; `ValueError` if the header cannot be read.
    """
    if isinstance(clip, Mapping):
        if clip.get("array") is not None:
            return _array_seconds(clip["array"], clip.get("sampling_rate"), name)
        if clip.get("bytes") is None and clip.get("path") is None:
            return _loaded_seconds(clip, name)
        clip = clip["path"] if clip.get("bytes") is None else clip["bytes"]
    if isinstance(clip, str | os.PathLike) and _is_remote(os.fspath(clip)):
        return _loaded_seconds(os.fspath(clip), name)
    try:
        if isinstance(clip, bytes | bytearray | memoryview):
            return _header_seconds(io.BytesIO(clip))
        if isinstance(clip, str | os.PathLike):
            return _file_seconds(*file_key(os.fspath(clip)))
    except (OSError, ValueError) as error:
        raise type(error)(f"{name}: {error}") from error
    if (metadata := getattr(clip, "metadata", None)) is not None and hasattr(clip, "get_all_samples"):
        return float(metadata.duration_seconds_from_header)
    raise ValueError(f"{name} is {type(clip).__name__}, which does not state its length: give `seconds`.")


def file_key(path: str) -> tuple[str, int, int]:
    """Path, size and modification time of a file. If one of them changes, the content has changed.

    Raises: `FileNotFoundError`.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        raise FileNotFoundError(f"the clip `{path}` cannot be opened ({error.strerror}).") from error
    return os.path.abspath(path), status.st_size, status.st_mtime_ns


@lru_cache(maxsize=100_000)
def _file_seconds(path: str, size: int, time: int) -> float:
    return _header_seconds(path)


def _header_seconds(source: str | io.BytesIO) -> float:
    try:
        return soundfile.info(source).duration
    except (soundfile.SoundFileError, TypeError) as error:
        return _container_seconds(source, error)


def _container_seconds(source: str | io.BytesIO, first_error: Exception) -> float:
    """Seconds of a clip that soundfile cannot read (m4a, mp4, webm), by PyAV if it is installed."""
    which = f"the clip `{source}`" if isinstance(source, str) else "the clip"
    try:
        import av
    except ImportError:
        raise ValueError(
            f"{which} cannot be read by soundfile ({first_error}). For m4a, mp4, webm and aac install PyAV: "
            "`pip install av`."
        ) from first_error
    if isinstance(source, io.BytesIO):
        source.seek(0)
    try:
        with av.open(source) as container:
            if not container.streams.audio:
                raise ValueError("it holds no sound")
            stream = container.streams.audio[0]
            if container.duration is not None:
                return container.duration / av.time_base
            frames = list(container.decode(stream))
            return sum(frame.samples for frame in frames) / frames[0].sample_rate
    except (av.FFmpegError, ValueError, IndexError, OSError) as error:
        raise ValueError(f"{which} cannot be read as audio ({error}).") from error


def _array_seconds(array, rate, name: str) -> float:
    if not rate:
        raise ValueError(f"{name} is an array without `sampling_rate`: give it in Hz.")
    shape = getattr(array, "shape", (len(array),))
    return max(shape) / rate


def _is_remote(path: str) -> bool:
    return "://" in path[:64] or path.startswith("data:")


def _loaded_seconds(clip, name: str) -> float:
    """Seconds of a clip at a URL or in base64. It is loaded whole, because its header cannot be read alone."""
    from ..processing.audio_soundwave import load_clip

    return len(load_clip(clip, name, None, 16_000, 0.0)) / 16_000


def row_seconds(row: Mapping, name: str, folder: str | os.PathLike = ".") -> float:
    """Seconds of a row: its `seconds`, or else the sum of its clips' lengths.

    Args: name: of the row, for errors. folder: base of relative paths.
    """
    if row.get("seconds") is not None:
        return float(row["seconds"])
    return float(sum(clip_seconds(at_folder(clip, folder), name) for clip in clips_of(row)))


def with_seconds(row: Mapping, name: str) -> dict:
    """A row with its length in `seconds`: by default the sum of its clips' lengths."""
    return {**row, "seconds": row_seconds(row, name)}


# ---- many clips ----


def many_seconds(clips: Sequence[Sequence], names: Sequence[str], home: Path | None = None) -> list[float]:
    """Seconds of each row, the sum of its clips' lengths, from the cache in the folder `home` or the files' headers.

    Raises: the errors of `clip_seconds`.
    """
    paths = sorted({clip for row in clips for clip in row if isinstance(clip, str) and not _is_remote(clip)})
    kept = _Kept(home / "clip_lengths.sqlite") if home is not None and len(paths) >= KEPT_FROM else None
    known = kept.read(paths) if kept is not None else {}

    def seconds(row: Sequence, name: str) -> float:
        return sum(
            known[clip] if isinstance(clip, str) and clip in known else clip_seconds(clip, name) for clip in row
        )

    with ThreadPoolExecutor(THREADS) as threads:
        lengths = list(threads.map(seconds, clips, names))
    if kept is not None:
        new = {clip: n for row, n in zip(clips, lengths, strict=True) for clip in row if len(row) == 1}
        kept.write({clip: n for clip, n in new.items() if isinstance(clip, str) and clip not in known})
    return lengths


class _Kept:
    """Lengths of files in a database that several processes may use at the same time."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path

    def _open(self):
        database = sqlite3.connect(self.path, timeout=60)
        database.execute(
            "CREATE TABLE IF NOT EXISTS lengths (path TEXT PRIMARY KEY, size INTEGER, time INTEGER, seconds REAL)"
        )
        return closing(database)

    def read(self, paths: Sequence[str]) -> dict[str, float]:
        known = {}
        with self._open() as database:
            for path in paths:
                row = database.execute(
                    "SELECT size, time, seconds FROM lengths WHERE path = ?", (os.path.abspath(path),)
                ).fetchone()
                if row is not None and os.path.isfile(path) and file_key(path)[1:] == row[:2]:
                    known[path] = row[2]
        return known

    def write(self, lengths: dict[str, float]):
        rows = [(*file_key(path), seconds) for path, seconds in lengths.items() if not _is_remote(path)]
        with self._open() as database, database:
            database.executemany("INSERT OR REPLACE INTO lengths VALUES (?, ?, ?, ?)", rows)


__all__ = ["clip_seconds", "many_seconds", "row_seconds", "with_seconds"]
