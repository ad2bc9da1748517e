"""Transcripts with times, and the files that hold them: plain text, JSON, SubRip, WebVTT, tab-separated values."""

import difflib
import html
import json
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from .modeling.spacing_soundwave import join_texts


LINE_CHARACTERS = 42  # longest line of a subtitle, a common limit
CUE_CHARACTERS = 2 * LINE_CHARACTERS  # two lines, if words have times


@dataclass(frozen=True)
class Word:
    """One word of a segment. It has no times if it could not be aligned."""

    text: str
    start: float | None = None  # seconds of the recording
    end: float | None = None
    confidence: float | None = None  # probability, 0 to 1
    supported: bool | None = None  # whether the sound supports it, if known

    def __post_init__(self):
        if (self.start is None) != (self.end is None):
            raise ValueError(f"The word {self.text!r} has one time; give `start` and `end`, or neither.")
        if self.start is not None:
            check_times(self.start, self.end)


@dataclass(frozen=True)
class Segment:
    """What is said in one piece of a recording.

    Raises: `ValueError` unless 0 <= start < end.
    """

    start: float  # seconds of the recording
    end: float
    text: str  # empty for silence
    words: tuple[Word, ...] | None = None  # None if word times were not requested
    confidence: float | None = None  # probability, 0 to 1
    finished: bool = True  # whether the text ended, and was not cut off

    def __post_init__(self):
        check_times(self.start, self.end)


@dataclass(frozen=True)
class Transcript:
    """What is said in a recording."""

    text: str
    segments: tuple[Segment, ...]  # in order; together they are the whole recording
    seconds: float  # length of the recording

    @classmethod
    def of_segments(cls, segments: Sequence[Segment], seconds: float) -> "Transcript":
        """A transcript whose text joins the texts of the segments."""
        return cls(join_texts(one_line(segment.text) for segment in segments), tuple(segments), seconds)


def check_times(start: float, end: float):
    if not 0 <= start < end:
        raise ValueError(f"A text begins at {start:g} s and ends at {end:g} s; expected 0 <= start < end.")


def one_line(text: str) -> str:
    """Replace line breaks, tabs and repeated spaces by single spaces."""
    return " ".join(text.split())


# ---- cues of subtitles ----


@dataclass(frozen=True)
class Cue:
    """A text that is shown at once."""

    start: int  # milliseconds
    end: int
    text: str  # one line


def cues(transcript: Transcript) -> Iterator[Cue]:
    """One cue for each segment with text, or several of at most two lines if its words have times."""
    for segment in transcript.segments:
        if one_line(segment.text):
            yield from cues_of_words(segment) if segment.words else [cue(segment.start, segment.end, segment.text)]


def cue(start: float, end: float, text: str) -> Cue:
    begin = milliseconds(start)
    return Cue(begin, max(milliseconds(end), begin + 1), one_line(text))  # at least 1 ms long after rounding


def milliseconds(seconds: float) -> int:
    return round(1000 * seconds)


def cues_of_words(segment: Segment) -> Iterator[Cue]:
    """Cues of at most two lines. A word without times joins the words before it."""
    groups: list[list[tuple[Word, str]]] = []
    for word, text in zip(segment.words, spaced(segment), strict=True):
        joins = groups and len(joined([*groups[-1], (word, text)])) <= CUE_CHARACTERS
        if groups and (joins or word.start is None):
            groups[-1].append((word, text))
        else:
            groups.append([(word, text)])
    # Every group but the first begins with a word that has times.
    first_end = groups[1][0][0].start if len(groups) > 1 else segment.end
    for group in groups:
        timed = [word for word, _ in group if word.start is not None]
        start = timed[0].start if timed else segment.start
        yield cue(start, timed[-1].end if timed else first_end, joined(group))


def spaced(segment: Segment) -> list[str]:
    """The text of each word, after a space if the segment's text has one there."""
    whole, place, found, before = one_line(segment.text), 0, [], ""
    for word in segment.words:
        text = one_line(word.text)
        begin = whole.find(text, place)
        if begin < 0:  # the segment's text has other words
            is_apart = join_texts([before, text]) != before + text
        else:
            is_apart, place = " " in whole[place:begin], begin + len(text)
        found.append(f" {text}" if is_apart else text)
        before = text
    return found


def joined(words: Sequence[tuple[Word, str]]) -> str:
    return "".join(text for _, text in words).strip()


def wrapped(text: str) -> str:
    """Lines of at most 42 characters, broken at spaces; a longer word is broken inside."""
    return "\n".join(textwrap.wrap(text, LINE_CHARACTERS, break_on_hyphens=False))


def clock(moment: int, decimal: str) -> str:
    """3,723,004 ms -> `01:02:03,004` or `01:02:03.004`."""
    seconds, rest = divmod(moment, 1000)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}{decimal}{rest:03}"


# ---- formats ----


def as_txt(transcript: Transcript) -> str:
    """The text on one line."""
    return f"{one_line(transcript.text)}\n"


def as_json(transcript: Transcript, audio: str | None = None, indent: int | None = 2) -> str:
    """An object with `text`, `seconds` and `segments`. Args: audio: name of the recording, as another field."""
    fields = {} if audio is None else {"audio": audio}
    fields |= {"text": transcript.text, "seconds": round(transcript.seconds, 3)}
    fields["segments"] = [segment_fields(segment) for segment in transcript.segments]
    return json.dumps(fields, ensure_ascii=False, indent=indent) + "\n"


def segment_fields(segment: Segment) -> dict:
    fields = {"start": round(segment.start, 3), "end": round(segment.end, 3), "text": segment.text}
    fields["finished"] = segment.finished
    if segment.confidence is not None:
        fields["confidence"] = round(segment.confidence, 4)
    if segment.words is not None:
        fields["words"] = [word_fields(word) for word in segment.words]
    return fields


def word_fields(word: Word) -> dict:
    """`start` and `end` are null for a word that could not be aligned."""
    start, end = (None if moment is None else round(moment, 3) for moment in (word.start, word.end))
    fields = {"word": word.text, "start": start, "end": end}
    if word.supported is not None:
        fields["supported"] = word.supported
    if word.confidence is not None:
        fields["confidence"] = round(word.confidence, 4)
    return fields


def as_srt(transcript: Transcript) -> str:
    """SubRip. The format has no escapes: `-->`, which separates times, becomes `->`, as in Whisper's files."""
    blocks = [
        f"{number}\n{clock(one.start, ',')} --> {clock(one.end, ',')}\n{wrapped(one.text.replace('-->', '->'))}\n"
        for number, one in enumerate(cues(transcript), start=1)
    ]
    return "\n".join(blocks)


def as_vtt(transcript: Transcript) -> str:
    """WebVTT, with `&`, `<` and `>` escaped (https://www.w3.org/TR/webvtt1/)."""
    blocks = [
        f"{clock(one.start, '.')} --> {clock(one.end, '.')}\n{html.escape(wrapped(one.text), quote=False)}\n"
        for one in cues(transcript)
    ]
    return "\n".join(["WEBVTT\n", *blocks])


def as_tsv(transcript: Transcript) -> str:
    """Columns `start`, `end` (whole milliseconds) and `text`, as Whisper writes them; a row for each cue."""
    rows = [f"{one.start}\t{one.end}\t{one.text}\n" for one in cues(transcript)]
    return "".join(["start\tend\ttext\n", *rows])


FORMATS: dict[str, Callable[[Transcript], str]] = {
    "txt": as_txt,
    "json": as_json,
    "srt": as_srt,
    "vtt": as_vtt,
    "tsv": as_tsv,
}


def read_formats(written: str | Sequence[str]) -> tuple[str, ...]:
    """`"srt,txt"` -> `("srt", "txt")`; `"all"` is every format.

    Raises: `ValueError` for an unknown format; it suggests the closest one.
    """
    names = [
        name.strip().lower().removeprefix(".")
        for name in (written.split(",") if isinstance(written, str) else written)
    ]
    known = [*FORMATS, "all"]
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.3)
            hint = f"Did you mean `{near[0]}`? " if near else ""
            raise ValueError(f"There is no format `{name}`. {hint}Choose from {', '.join(FORMATS)}, or `all`.")
    return tuple(FORMATS) if "all" in names else tuple(dict.fromkeys(names))


__all__ = ["FORMATS", "Segment", "Transcript", "Word", "cues", "read_formats"]
