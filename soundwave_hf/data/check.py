"""Check the clips of a data set before training: which cannot be read, are silent, or have a wrong length."""

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import Dataset
from tqdm.auto import tqdm

from ..atomic import atomic_file, refuse_output
from ..processing.audio_soundwave import load_clip
from ..processing.containers_soundwave import BadAudio
from ..processing.sources_soundwave import without_secrets
from .cuts import Cutter
from .each_row import each_row, is_segment, with_whole_clip
from .locate import files_of
from .named_rows import arrow_chunks
from .rows import COLUMNS, RowCheck, at_folder, clips_of, transcripts_of
from .sources import open_rows, with_label_names


RATE = 16_000  # Hz, of the encoder
SHORTEST_SECONDS = 0.04  # one position of the adapter
SILENT_PEAK = 1e-3  # 60 dB below full scale
LENGTH_TOLERANCE = 0.5  # seconds; a row's `seconds` may differ from the clip's by this, or by a tenth if that is more
CLIPS_AT_ONCE = 64
SKIPPED_CLIPS = "skipped_clips.jsonl"  # in a run's folder: the bad clips that it left out
LISTED = 20  # bad clips and rows that a message names
UNUSABLE = "unusable"  # the kind of a row that training would refuse without reading its clip


@dataclass(frozen=True)
class BadClip:
    """A clip that should not be trained on: its row number, its name, and the reason as a word and a sentence.

    For a row of the kind `UNUSABLE`, the name is that of the row.
    """

    row: int
    clip: str
    kind: str
    reason: str


def find_bad_clips(rows: Dataset, max_seconds: float | None = None) -> list[BadClip]:
    """Read every clip of the rows. Shows progress.

    Args: max_seconds: the longest clip that is accepted.
    """
    bad = []
    columns = [name for name in ("audio", "messages", "text", "seconds") if name in rows.column_names]
    light = rows.select_columns(columns)
    bar = tqdm(total=len(rows), desc="checking clips", unit="row", disable=len(rows) < CLIPS_AT_ONCE)
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for start in range(0, len(rows), CLIPS_AT_ONCE):
            numbers = range(start, min(start + CLIPS_AT_ONCE, len(rows)))
            found = threads.map(lambda number: list(_bad_clips(light[number], number, max_seconds)), numbers)
            bad += [clip for clips in found for clip in clips]
            bar.update(len(numbers))
    bar.close()
    return bad


def check_each_row(source, columns: Mapping | None, max_seconds: float | None) -> tuple[list[BadClip], int]:
    """Check the rows of a source and read their clips, a few at once. Shows progress.

    Returns: what is bad, and the number of rows.

    Raises: `ValueError` if no row can be used; the errors of `each_row`.
    """
    bad, count, numbered = [], 0, enumerate(each_row(source, columns))
    with (
        ThreadPoolExecutor(os.cpu_count()) as threads,
        Cutter() as cutter,
        tqdm(desc="checking", unit="row", delay=2) as bar,
    ):
        while block := list(islice(numbered, CLIPS_AT_ONCE)):
            judged = [_usable_row(number, *named, cutter) for number, named in block]
            usable = [(number, row) for (number, _), row in zip(block, judged, strict=True) if isinstance(row, dict)]
            read = threads.map(lambda each: list(_bad_clips(each[1], each[0], max_seconds)), usable)
            found = [row for row in judged if isinstance(row, BadClip)] + [clip for clips in read for clip in clips]
            bad += sorted(found, key=lambda clip: clip.row)
            count += len(block)
            bar.update(len(block))
    if count and sum(clip.kind == UNUSABLE for clip in bad) == count:
        raise ValueError(f"No row can be used. {bad[0].reason}")
    return bad, count


def _usable_row(number: int, name: str, row, cutter: Cutter) -> dict | BadClip:
    """A row whose clip is cut, or what is wrong with the row."""
    try:
        RowCheck()(with_whole_clip(row), name)
    except (ValueError, TypeError) as error:
        return BadClip(number, name, UNUSABLE, str(error))
    if not is_segment(row.get("audio")):
        return row
    try:
        return {**row, "audio": cutter.cut(row["audio"], str(row.get("id")), name)}
    except FileNotFoundError as error:
        return BadClip(number, name, "missing", str(error))
    except (OSError, ValueError) as error:
        return BadClip(number, name, "unreadable", str(error))


def _bad_clips(row: Mapping, number: int, max_seconds: float | None) -> Iterator[BadClip]:
    clips = clips_of(row)
    said = row.get("seconds") if len(clips) == 1 else None
    for place, (clip, text) in enumerate(zip(clips, transcripts_of(row), strict=True)):
        if (why := read_clip(clip, said, max_seconds, text)[1]) is not None:
            yield BadClip(number, name_of_clip(clip, place), *why)


def read_clip(
    clip, said_seconds: float | None = None, max_seconds: float | None = None, text: str | None = None
) -> tuple[np.ndarray | None, tuple[str, str] | None]:
    """The samples of a clip (mono, 16 kHz; None if it cannot be read), and what is wrong with it in a word and a text.

    Args: said_seconds: the length that its row states; text: its transcript. Where that is "", silence is right.
    """
    try:
        samples = load_clip(clip, "The clip", None, RATE, SHORTEST_SECONDS)
    except FileNotFoundError as error:
        return None, ("missing", str(error))
    except BadAudio as error:
        return None, (error.kind, str(error))
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        return None, ("unreadable", str(error))
    except (ImportError, MemoryError):
        raise
    except Exception as error:  # a decoder met what it was not written for: a broken file does not stop a long run
        return None, ("unreadable", f"{type(error).__name__}: {error}")
    seconds, peak = len(samples) / RATE, float(np.abs(samples).max())
    if peak < SILENT_PEAK and text != "":
        return samples, ("silent", f'Its loudest sample is {peak:.1g}, and its `text` is not "".')
    if max_seconds is not None and seconds > max_seconds:
        return samples, ("too long", f"It lasts {seconds:.1f} s and the limit is {max_seconds:g} s.")
    if said_seconds is not None and abs(seconds - said_seconds) > max(LENGTH_TOLERANCE, 0.1 * seconds):
        return samples, ("other length", f"Its row says {said_seconds:g} s and it lasts {seconds:.1f} s.")
    return samples, None


def name_of_clip(clip, place: int) -> str:
    """The path of a clip; its place in the row if it has none, or is written out (`data:`)."""
    path = clip.get("path") if isinstance(clip, Mapping) else clip
    is_named = isinstance(path, str | os.PathLike) and not str(path).startswith("data:")
    return without_secrets(str(path)) if is_named else f"clip {place}"


def describe_bad_clips(bad: list[BadClip], num_rows: int) -> str:
    """Counts by kind, and the names of the first ones."""
    kinds = Counter(clip.kind for clip in bad)
    rows = kinds.pop(UNUSABLE, 0)
    what = f"{kinds.total()} bad clips" + (f" and {rows} unusable rows" if rows else "")
    kinds = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    lines = [f"  row {clip.row}, {clip.clip}: {clip.kind}. {clip.reason}" for clip in bad[:LISTED]]
    more = [f"  and {len(bad) - LISTED} more"] if len(bad) > LISTED else []
    return "\n".join([f"{what} in {num_rows} rows: {kinds or 'none'}.", *lines, *more])


def check_clips(rows: Dataset, skip: bool, max_seconds: float | None = None) -> tuple[Dataset, list[BadClip]]:
    """Remove the rows with a bad clip. Returns the other rows and the bad clips, which are printed too.

    Raises: `ValueError` that lists the bad clips, without `skip` or if no row is left.
    """
    bad = find_bad_clips(rows, max_seconds)
    if not bad:
        return rows, []
    message = describe_bad_clips(bad, len(rows))
    if not skip:
        raise ValueError(f"{message}\nRepair them, or leave these rows out with `check_audio: skip`.")
    out = {clip.row for clip in bad}
    if len(out) == len(rows):
        raise ValueError(f"{message}\nNo row is left.")
    print(f"{message}\n{len(out)} rows are left out.", flush=True)
    return rows.select([number for number in range(len(rows)) if number not in out]), bad


def check_source(source, columns: Mapping | None, skip_to: str | None, max_seconds: float | None) -> list[BadClip]:
    """`soundwave-hf data check`: print the bad clips and rows of a source; write those without them to `skip_to`.

    Raises: `ValueError` if these rows cannot be written to `skip_to`, or no row is left; with `skip_to`, also for a
        row that training would refuse.
    """
    _check_request(source, skip_to, max_seconds)
    if skip_to is None:
        bad, count = check_each_row(source, columns, max_seconds)
        print(describe_bad_clips(bad, count), flush=True)
        return bad
    # `with_seconds=False`: a missing clip is then listed below and does not stop the check.
    rows = open_rows(source, columns, with_seconds=False, keep_others=True)
    if Path(skip_to).suffix == ".jsonl":
        _refuse_bytes(rows)
    kept, bad = check_clips(rows, skip=True, max_seconds=max_seconds)
    if not bad:
        print(describe_bad_clips(bad, len(rows)), flush=True)
    _write_rows(kept, Path(skip_to))
    print(f"{len(kept)} rows are in {skip_to}.", flush=True)
    return bad


def _check_request(source, skip_to: str | None, max_seconds: float | None):
    """Refuse what cannot be done before any clip is read."""
    if skip_to is not None:
        if Path(skip_to).suffix not in (".jsonl", ".parquet"):
            raise ValueError(
                f"`--skip` is `{skip_to}`; give a file that ends in .jsonl, or .parquet for clips inside it."
            )
        refuse_output(skip_to, "--skip", files_of(source))
    if max_seconds is not None and not max_seconds > 0:
        raise ValueError(f"`--max-seconds` is {max_seconds:g}; give a number over 0.")


def _refuse_bytes(rows: Dataset):
    """Raises: `ValueError` that names a column with bytes, which JSON cannot hold."""
    for name in rows.column_names:
        if any(map(_holds_bytes, arrow_chunks(rows, name))):
            others = "" if name in COLUMNS else f", or leave the column out with `--columns '{{{name}: null}}'`"
            raise ValueError(
                f"The rows contain bytes in `{name}`, and JSON cannot hold those: give `--skip` a file that ends in "
                f".parquet{others}."
            )


def _holds_bytes(values: pa.Array) -> bool:
    if pa.types.is_binary(values.type) or pa.types.is_large_binary(values.type):
        return values.null_count < len(values)
    if hasattr(values.type, "value_type"):
        return _holds_bytes(values.flatten())
    return pa.types.is_struct(values.type) and any(_holds_bytes(values.field(each.name)) for each in values.type)


def _write_rows(rows: Dataset, path: Path):
    if path.suffix == ".parquet":
        with atomic_file(path) as part:
            rows.to_parquet(part)
        return
    with atomic_file(path) as part, open(part, "w", encoding="utf-8") as file:
        for row in with_label_names(rows):
            values = {key: _as_json(value, key in ("audio", "messages")) for key, value in row.items()}
            values = {key: value for key, value in values.items() if value is not None}
            file.write(json.dumps(values, default=str) + "\n")  # dates as text, as in `data clean`


def _as_json(value, holds_clips: bool):
    """A row's value for JSON: without null keys, and with paths in place of clips."""
    if isinstance(value, Mapping):
        if holds_clips and {"path"} <= set(value) <= {"bytes", "path"}:
            return at_folder(value["path"], os.getcwd())
        return {key: _as_json(inner, holds_clips) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_as_json(inner, holds_clips) for inner in value]
    return value


__all__ = [
    "RATE",
    "BadClip",
    "check_clips",
    "check_source",
    "describe_bad_clips",
    "find_bad_clips",
    "name_of_clip",
    "read_clip",
]
