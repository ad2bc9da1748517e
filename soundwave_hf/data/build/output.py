"""Shards of rows on disk: JSON lines with FLAC files, or Parquet with the clips inside."""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets import Audio, Dataset, Features, List, Value

from ...atomic import atomic_file, atomic_folder
from ..tables import CLIP, MESSAGES
from .clips import as_clip, flac_bytes, samples_of
from .draws import NotBuilt


STATE = ".build"
TIMES = {"text": Value("string"), "start": Value("float64"), "end": Value("float64")}
KINDS = {  # of columns in Parquet; all others are text
    "audio": Audio(),
    "messages": MESSAGES,
    "seconds": Value("float64"),
    "speed": Value("float64"),
    "speakers": Value("int64"),
    "words": List(TIMES),
    "turns": List({**TIMES, "speaker": Value("string")}),
}


@dataclass(frozen=True)
class ShardWriter:
    """Writes the shards of a step.

    Args:
        folder: of the run.
        name: of the step.
        kind: `jsonl` or `parquet`.
        columns: of its rows; all shards have the same.
    """

    folder: Path
    name: str
    kind: str
    columns: Sequence[str]

    def marker(self, shard: int) -> Path:
        """The file that says that a shard is whole: its number of rows, and the rows that could not be made."""
        return self.folder / STATE / f"{self.name}-{shard:05d}.json"

    def manifest(self, shard: int) -> Path:
        return self.folder / f"{self.name}-{shard:05d}.{self.kind}"

    def write(self, shard: int, rows: Sequence[tuple[int, Mapping]], skipped: Sequence[Mapping]):
        """Write a shard. A shard without rows has a marker alone.

        Args: rows: each with its number, which names its clip.
        """
        skipped = list(skipped)
        write = self._write_jsonl if self.kind == "jsonl" else self._write_parquet
        written = write(shard, rows, skipped)
        with atomic_file(self.marker(shard)) as part:
            marker = {"rows": written, "skipped": sorted(skipped, key=lambda skip: skip["row"])}
            part.write_text(json.dumps(marker, ensure_ascii=False), encoding="utf-8")

    def _write_jsonl(self, shard: int, rows: Sequence[tuple[int, Mapping]], skipped: list) -> int:
        audio, lines = self.folder / "audio" / self.name / f"{shard:05d}", []
        shutil.rmtree(audio, ignore_errors=True)  # left by a run that was killed before it wrote the marker
        with atomic_folder(audio) as part:
            for number, row in rows:
                try:
                    clip = self._stored(row, part / f"{number:08d}.flac", audio)
                except NotBuilt as error:
                    skipped.append({"step": self.name, "row": number, "reason": str(error)})
                    continue
                row = {key: row[key] for key in self.columns if row.get(key) is not None} | clip
                lines.append(json.dumps(row, ensure_ascii=False, default=_as_json) + "\n")
            empty = not any(part.iterdir())
        if empty:
            audio.rmdir()
        if lines:
            with atomic_file(self.manifest(shard)) as part:
                part.write_text("".join(lines), encoding="utf-8")
        return len(lines)

    def _stored(self, row: Mapping, file: Path, audio_folder: Path) -> dict:
        """The clip of a row as a path. Samples and bytes become a FLAC file; a path in this folder gets relative."""
        if (clip := row.get("audio")) is None:
            return {}
        path = clip.get("path") if isinstance(clip, Mapping) and clip.get("bytes") is None else clip
        if isinstance(path, str | os.PathLike) and not (isinstance(clip, Mapping) and clip.get("array") is not None):
            path = os.fspath(path)
            return {"audio": os.path.relpath(path, self.folder) if path.startswith(f"{self.folder}{os.sep}") else path}
        file.write_bytes(_as_flac(row))
        return {"audio": os.path.relpath(audio_folder / file.name, self.folder)}

    def _write_parquet(self, shard: int, rows: Sequence[tuple[int, Mapping]], skipped: list) -> int:
        features = {name: KINDS.get(name, Value("string")) for name in self.columns}
        stored = []
        for number, row in rows:
            try:
                clip = _embedded(row, f"{self.name}-{number:08d}")
            except NotBuilt as error:
                skipped.append({"step": self.name, "row": number, "reason": str(error)})
                continue
            stored.append({name: _as_kind(row.get(name), features[name]) for name in features} | clip)
        if not stored:
            return 0
        table = Dataset.from_list(stored, features=Features({**features, "audio": CLIP}))
        with atomic_file(self.manifest(shard)) as part:
            table.cast_column("audio", Audio()).to_parquet(part)
        return len(stored)


def _as_flac(row: Mapping) -> bytes:
    clip = row["audio"]
    if isinstance(clip, Mapping) and clip.get("array") is not None:
        return flac_bytes(clip)
    return flac_bytes(as_clip(samples_of({"audio": clip}, "a row")))


def _embedded(row: Mapping, name: str) -> dict:
    """The clip of a row with its bytes. A file keeps its type; samples become FLAC."""
    if (clip := row.get("audio")) is None:
        return {"audio": None}
    if isinstance(clip, Mapping) and clip.get("bytes") is not None:
        return {"audio": {"bytes": clip["bytes"], "path": os.path.basename(clip.get("path") or f"{name}.flac")}}
    path = clip.get("path") if isinstance(clip, Mapping) else clip
    if isinstance(path, str | os.PathLike) and "://" not in os.fspath(path)[:64]:
        try:
            return {"audio": {"bytes": Path(path).read_bytes(), "path": os.path.basename(path)}}
        except OSError as error:
            raise NotBuilt(f"The clip `{path}` cannot be read: {error.strerror}.") from error
    return {"audio": {"bytes": _as_flac(row), "path": f"{name}.flac"}}


def _as_kind(value, kind):
    """A value for a column of Parquet. A label that is a number becomes text."""
    if value is None or kind != Value("string"):
        return _messages(value) if kind == MESSAGES and value is not None else value
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _messages(messages: Sequence[Mapping]) -> list[dict]:
    parts = {"text": None, "audio": None}
    return [
        {"role": message["role"], "content": [{**parts, **part} for part in message["content"]]}
        for message in messages
    ]


def _as_json(value):
    return value.item() if hasattr(value, "item") else str(value)


__all__ = ["ShardWriter"]
