"""The last step of cleaning, in the order of the rows: leaks, near duplicates, and the shards of the result."""

import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from tqdm.auto import tqdm

from ...atomic import atomic_file
from ..prepared import KEPT
from .duplicates import (
    AUDIO,
    LEAKED_AUDIO,
    LEAKED_TEXT,
    TEXT,
    AudioIndex,
    Comparisons,
    HeldOutTexts,
    TextIndex,
    count_words,
)
from .report import Totals
from .shards import WORK, judged_files, read_verdicts, write_kept


DROPPED = "dropped"


@dataclass
class HeldOut:
    """The recordings and texts of evaluation sets."""

    recordings: AudioIndex
    texts: HeldOutTexts


def decide(folders: Sequence[Path], against: Path | None, limits: Comparisons, out: Path, totals: Totals):
    """Write the shards of kept rows and the lists of dropped ones to `out`, and count them in `totals`.

    Args:
        folders: those with the verdicts of all blocks.
        against (`Path`, *optional*): verdicts of the rows of the evaluation sets.
    """
    indexes = out / WORK
    with (
        closing(AudioIndex(indexes / "held_out.sqlite")) as recordings,
        closing(AudioIndex(indexes / "recordings.sqlite")) as kept_recordings,
        closing(TextIndex(indexes / "texts.sqlite", limits.seed)) as kept_texts,
    ):
        words = 1 if limits.leaked_text is None else limits.leaked_text.words
        held_out = HeldOut(recordings, HeldOutTexts(_read_held_out(against, recordings, totals), words))
        files = judged_files(folders)
        for file in tqdm(files, desc="finding duplicates", unit="block", disable=len(files) < 10):
            kept, dropped, place = [], [], 0
            for line in read_verdicts(file):
                survives = not line["reasons"]
                find_leaks(line, held_out, limits)
                if not line["reasons"]:
                    find_doubles(line, kept_recordings, kept_texts, limits)
                if not line["reasons"]:
                    _remember(line, kept_recordings, kept_texts, limits)
                    kept.append(place)
                else:
                    dropped.append(line)
                place += survives
                totals.add(line)
            if kept:
                write_kept(file, kept, out / KEPT / file.name)
            if dropped:
                _write_dropped(dropped, out / DROPPED / f"{file.stem}.jsonl")


def _read_held_out(against: Path | None, recordings: AudioIndex, totals: Totals) -> Iterator[tuple[str, str]]:
    """Put the recordings of evaluation sets into the index; yield name and text of each row."""
    for line in read_verdicts(against) if against is not None else ():
        totals.held_out += 1
        totals.unread_held_out += bool(line["reasons"])
        for peaks in line["peaks"]:
            recordings.put(line["name"], peaks)
        for text in line["texts"]:
            yield line["name"], text


def find_leaks(line: dict, held_out: HeldOut, limits: Comparisons):
    """Add leaks to the reasons of a row. Its values are then the names of the evaluation rows."""
    if limits.leaked_audio is not None and held_out.recordings.count:
        found = (held_out.recordings.find(peaks, limits.leaked_audio.shared) for peaks in line["peaks"])
        _drop(line, LEAKED_AUDIO, next((name for name, _ in found if name is not None), None))
    if limits.leaked_text is not None:
        found = (held_out.texts.find(text) for text in line["texts"])
        _drop(line, LEAKED_TEXT, next((name for name in found if name is not None), None))


def find_doubles(line: dict, recordings: AudioIndex, texts: TextIndex, limits: Comparisons):
    """Add near duplicates of kept rows to the reasons of a row. All its clips, or its whole text, are then there."""
    if limits.near_duplicate_audio is not None and line["peaks"]:
        found = [recordings.find(peaks, limits.near_duplicate_audio.shared)[0] for peaks in line["peaks"]]
        _drop(line, AUDIO, None if None in found else found[0])
    if (text := _long_text(line, limits)) is not None:
        _drop(line, TEXT, texts.find(text, limits.near_duplicate_text.similarity)[0])


def _long_text(line: dict, limits: Comparisons) -> str | None:
    """The text of a row, if texts are compared and it is long enough."""
    text, limit = " ".join(line["texts"]), limits.near_duplicate_text
    return None if limit is None or count_words(text.split()) < limit.words else text


def _drop(line: dict, reason: str, name: str | None):
    if name is not None:
        line["reasons"].append(reason)
        line["values"][reason] = name


def _remember(line: dict, recordings: AudioIndex, texts: TextIndex, limits: Comparisons):
    if limits.near_duplicate_audio is not None:
        for peaks in line["peaks"]:
            recordings.put(line["name"], peaks)
    if (text := _long_text(line, limits)) is not None:
        texts.put(line["name"], text)


def _write_dropped(lines: Sequence[dict], path: Path):
    """One JSON object a row: its name, the reasons, the measured values, and the row without the bytes of clips."""
    with atomic_file(path) as part, open(part, "w", encoding="utf-8") as file:
        for line in lines:
            about = {"name": line["name"], "reasons": line["reasons"], "why": line["why"], "values": line["values"]}
            file.write(json.dumps({**about, "row": line["listing"]}, ensure_ascii=False) + "\n")


__all__ = ["DROPPED", "HeldOut", "decide", "find_doubles", "find_leaks"]
