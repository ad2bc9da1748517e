"""Speech grounding: when a word or phrase is said, from word times of the CTC head or of the corpus."""

import math
import random
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...modeling.spacing_soundwave import join_texts, word_spans
from .clips import RATE, as_clip, samples_of
from .draws import NotBuilt
from .sounds import text_of


LONGEST_PHRASE = 4  # words
ABSENT_ANSWER = "It is not said."
WORD_FORMS = "`{text, start, end}`, `{word, start, end}` or `{text, timestamp: [start, end]}`"


@dataclass(frozen=True)
class Word:
    """A spoken word. Times are seconds of the clip, None for a word that could not be aligned."""

    text: str
    start: float | None
    end: float | None


def fold(text: str) -> str:
    """Lower case, no marks but apostrophes within words, single spaces: how phrases and options are compared.

    Vowel signs and accents stay: they tell words apart.
    """
    text = unicodedata.normalize("NFC", text).casefold().replace("’", "'")
    kept = "".join(char if char == "'" or unicodedata.category(char)[0] in "LNM" else " " for char in text)
    return " ".join(word for part in kept.split() if (word := part.strip("'")))


def split_words(text: str) -> list[str]:
    """The folded words of a text; in scripts without spaces, its characters."""
    folded = fold(text)
    return [folded[begin:end] for run in word_spans(folded) for begin, end in run]


# ---- words with times ----


def words_of(row: Mapping, name: str) -> list[Word]:
    """The column `words` of a row.

    Raises: `NotBuilt` if it is missing, empty, or an entry has no text, or times that are no interval.
    """
    given = row.get("words")
    if not isinstance(given, list | tuple) or not given:
        raise NotBuilt(
            f"{name} has `words` {given!r}; expected a list of {WORD_FORMS}. Its columns are {sorted(row)}. The step "
            "`build: word_times` makes them with a CTC head."
        )
    return [_word(entry, f"Word {place} of {name}") for place, entry in enumerate(given)]


def _word(entry, name: str) -> Word:
    if not isinstance(entry, Mapping):
        raise NotBuilt(f"{name} is {entry!r}; expected {WORD_FORMS}.")
    text = entry.get("text") if entry.get("text") is not None else entry.get("word")
    start, end = entry.get("timestamp") or (entry.get("start"), entry.get("end"))
    if not isinstance(text, str) or not text.strip():
        raise NotBuilt(f"{name} has the text {text!r}; expected a word.")
    if start is None and end is None:
        return Word(text.strip(), None, None)
    if not (_is_time(start) and _is_time(end) and start < end):
        raise NotBuilt(
            f"{name}, {text!r}, has the times {start!r} and {end!r}; expected seconds, the end after the start."
        )
    return Word(text.strip(), float(start), float(end))


def _is_time(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


def stored_words(words: Sequence[Word]) -> list[dict]:
    """Words as the column `words` holds them."""
    return [{"text": word.text, "start": word.start, "end": word.end} for word in words]


def with_word_times(row: Mapping, model, processor, name: str = "A row") -> dict:
    """A row with the column `words`: its transcript aligned with its clip by the CTC head.

    Args: model, processor: a `SoundwaveForConditionalGeneration` and its processor.
    Raises: `NotBuilt` if the clip or the text is missing, or no word could be aligned.
    """
    clip = as_clip(samples_of(row, name))
    inputs = processor.apply_transcription_request(clip)
    timed = processor.align_word_timestamps(text_of(row, name), model.get_ctc_clips(**inputs.to(model.device)))
    timed = timed[0] if isinstance(timed, list) else timed
    words = [Word(chunk["text"].strip(), *chunk["timestamp"]) for chunk in timed["chunks"]]
    if all(word.start is None for word in words):
        raise NotBuilt(f"None of the words of {name} could be aligned with its clip: {row['text']!r}.")
    return {**row, "words": stored_words(words), "seconds": len(clip["array"]) / RATE}


# ---- phrases ----


def find_phrase(words: Sequence[Word], phrase: str) -> list[tuple[float, float]]:
    """Start and end in seconds of each time that a phrase is said, without case and marks; empty if it is not said.

    Raises: `NotBuilt` if a word of it has no times; `ValueError` for a phrase without words.
    """
    wanted = split_words(phrase)
    if not wanted:
        raise ValueError(f"The phrase is {phrase!r}; expected at least one word.")
    found, first = [], 0
    said = [(part, place) for place, word in enumerate(words) for part in split_words(word.text)]
    while first + len(wanted) <= len(said):
        span = said[first : first + len(wanted)]
        if [part for part, _ in span] != wanted:
            first += 1
            continue
        start, end = words[span[0][1]].start, words[span[-1][1]].end
        if start is None or end is None:
            raise NotBuilt(f"The phrase {phrase!r} is said, and its words have no times.")
        found.append((start, end))
        first += len(wanted)
    return found


def draw_phrase(words: Sequence[Word], rng: random.Random, longest: int = LONGEST_PHRASE) -> str:
    """A phrase of the words, without its outer marks. All its words have times.

    Raises: `NotBuilt` if no word has times.
    """
    timed = [word.start is not None and bool(fold(word.text)) for word in words]
    starts = [place for place, good in enumerate(timed) if good]
    if not starts:
        raise NotBuilt("None of the words has times.")
    first = rng.choice(starts)
    run = next((count for count in range(1, longest) if not all(timed[first : first + count + 1])), longest)
    run = min(run, len(words) - first)
    chosen = words[first : first + rng.randint(1, run)]
    return without_outer_marks(join_texts(word.text for word in chosen))


def without_outer_marks(text: str) -> str:
    inner = [place for place, char in enumerate(text) if unicodedata.category(char)[0] in "LNM"]
    return text[inner[0] : inner[-1] + 1] if inner else ""


def say_intervals(intervals: Sequence[tuple[float, float]]) -> str:
    """`[(0.5, 0.84), (2, 2.4)]` -> `"0.50 to 0.84 seconds and 2.00 to 2.40 seconds"`; a sentence if there is none."""
    if not intervals:
        return ABSENT_ANSWER
    said = [f"{start:.2f} to {end:.2f} seconds" for start, end in intervals]
    return said[0] if len(said) == 1 else f"{', '.join(said[:-1])} and {said[-1]}"


__all__ = [
    "ABSENT_ANSWER",
    "LONGEST_PHRASE",
    "Word",
    "draw_phrase",
    "find_phrase",
    "fold",
    "say_intervals",
    "stored_words",
    "with_word_times",
    "words_of",
]
