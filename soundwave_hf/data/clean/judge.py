"""Judge rows one by one: clips that cannot be used, and the filters. Pure functions of the rows."""

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from ..check import RATE, name_of_clip, read_clip
from ..rows import clips_of, transcripts_of
from .duplicates import plain_text
from .filter import Clip, Filter
from .fingerprint import peaks_of
from .parts import Row, checked
from .settings import read_filters


BATCH = 16  # rows whose samples are in memory at once, and clips that a filter gets at once
BAD_ROW = "row"  # reason of rows that training could not use
BAD_CLIP = "clip: "  # beginning of the reasons of clips that cannot be used; then a kind of `check`


@dataclass
class Verdict:
    """What is known of a row by itself.

    Args:
        name (`str`): file and line, or source and number.
        reasons (`list[str]`): names of the filters that drop it, and kinds of bad clips; empty for a row that is kept.
        why (`str`): a sentence about a bad row or clip.
        values (`dict`): measured value by filter; of several clips the first that is not kept, or else the first.
        seconds (`float`, *optional*): of its clips together; None if one could not be read.
        texts (`list[str]`): `plain_text` of its transcripts, or of its answer.
        peaks (`list[bytes]`): fingerprint of each clip.
    """

    name: str
    reasons: list[str] = field(default_factory=list)
    why: str = ""
    values: dict = field(default_factory=dict)
    seconds: float | None = None
    texts: list[str] = field(default_factory=list)
    peaks: list[bytes] = field(default_factory=list)


class Judge:
    """Judges rows by filters. A model that a filter needs is loaded at the first row, in each process.

    Args:
        filters (`list[Filter]`): all of them judge every clip that can be read, so that a report can count each.
        fingerprints (`bool`): whether to compute `peaks`.
    """

    def __init__(self, filters: Sequence[Filter], fingerprints: bool = False):
        self.filters, self.fingerprints, self.loaded = list(filters), fingerprints, False

    def __call__(self, rows: Sequence[Row]) -> list[Verdict]:
        """The verdicts of rows, in their order."""
        if not self.loaded:
            for each in self.filters:
                each.load()
            self.loaded = True
        rows, verdicts = iter(rows), []
        while batch := list(islice(rows, BATCH)):
            verdicts += self._judge(batch)
        return verdicts

    def _judge(self, rows: Sequence[Row]) -> list[Verdict]:
        verdicts, clips, owners = [], [], []
        for row in rows:
            verdict, read = self._read(row)
            verdicts.append(verdict)
            clips += read
            owners += [verdict] * len(read)
        for each in self.filters:
            judged = [place for place, clip in enumerate(clips) if clip.text is not None or not each.reads_text]
            for begin in range(0, len(judged), BATCH):
                places = judged[begin : begin + BATCH]
                self._apply(each, [clips[place] for place in places], [owners[place] for place in places])
        return verdicts

    def _read(self, row: Row) -> tuple[Verdict, list[Clip]]:
        """A verdict without values, and the row's clips if all of them can be used."""
        verdict = Verdict(row.name)
        if row.problem is not None:
            verdict.reasons, verdict.why = [BAD_ROW], row.problem
            return verdict, []
        clips, texts = clips_of(row.values), transcripts_of(row.values, row.name)
        said = row.values.get("seconds") if len(clips) == 1 else None
        read = [read_clip(clip, said, text=text) for clip, text in zip(clips, texts, strict=True)]
        spoken = [text for text in texts if text is not None] or [row.values.get("answer") or ""]
        verdict.texts = [plain_text(text) for text in spoken]
        for place, (_, wrong) in enumerate(read):
            if wrong is not None:
                kind, sentence = wrong
                verdict.reasons.append(BAD_CLIP + kind)
                verdict.why = verdict.why or f"{name_of_clip(clips[place], place)}: {sentence}"
        verdict.reasons = list(dict.fromkeys(verdict.reasons))
        if all(samples is not None for samples, _ in read):
            verdict.seconds = sum(len(samples) for samples, _ in read) / RATE
        if verdict.reasons:
            return verdict, []
        if self.fingerprints:
            verdict.peaks = [peaks_of(samples).tobytes() for samples, _ in read]
        judged = [
            Clip(row.values, text, len(samples) / RATE, samples)
            for (samples, _), text in zip(read, texts, strict=True)
        ]
        return verdict, judged

    def _apply(self, each: Filter, clips: Sequence[Clip], owners: Sequence[Verdict]):
        values = each.measure(clips)
        if len(values) != len(clips):
            raise TypeError(f"The filter `{each.name}` gave {len(values)} values for {len(clips)} clips.")
        for value, verdict in zip(values, owners, strict=True):
            if value is None:
                continue
            drops = not each.keeps(value)
            if each.name not in verdict.values or (drops and each.name not in verdict.reasons):
                verdict.values[each.name] = plain_value(value)
            if drops and each.name not in verdict.reasons:
                verdict.reasons.append(each.name)


def plain_value(value) -> float | int | str:
    """A value for JSON: six digits, so that the last bits of a sum do not matter."""
    if isinstance(value, np.generic):
        value = value.item()
    return float(f"{value:.6g}") if isinstance(value, float) else value


class CleanRows:
    """Judges batches of rows, for `Dataset.map` and Ray Data. It adds two columns and drops nothing.

    `dropped_by` has the names of the filters that drop the row, with ", " between them; it is empty for a row to keep.
    `measured` has the values as JSON text. Near duplicates and leaks are not found: they need all rows.

    >>> rows = rows.map(CleanRows(filters), batched=True, batch_size=64)
    >>> rows = rows.filter(lambda row: not row["dropped_by"])

    Args: filters: as in `clean`: a YAML file, a mapping of thresholds, or a list of `Filter`.
    """

    def __init__(self, filters=None):
        self.filters, _ = read_filters(filters)
        self.judge = None

    def __getstate__(self) -> dict:
        return {"filters": self.filters, "judge": None}

    def __call__(self, batch: Mapping[str, Sequence]) -> dict[str, Sequence]:
        """Args: batch: columns with our names, such as `audio` and `text`. Clips may be decoded or not."""
        # A copy loads the models, so that `self.filters` can go to another process without them.
        self.judge = self.judge or Judge(copy.deepcopy(self.filters))
        verdicts = self.judge(list(_rows_of(batch)))
        return {
            **batch,
            "dropped_by": [", ".join(verdict.reasons) for verdict in verdicts],
            "measured": [json.dumps(verdict.values, ensure_ascii=False) for verdict in verdicts],
        }


def _rows_of(batch: Mapping[str, Sequence]) -> Iterator[Row]:
    names = list(batch)
    for number, values in enumerate(zip(*batch.values(), strict=True)):
        yield checked(f"row {number} of the batch", dict(zip(names, map(_plain, values), strict=True)))


def _plain(value):
    """The value of a numpy column, as Ray gives it, as Python's own."""
    return value.item() if isinstance(value, np.generic) else value


__all__ = ["BAD_CLIP", "BAD_ROW", "CleanRows", "Judge", "Verdict", "plain_value"]
