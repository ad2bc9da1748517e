"""Conversations: utterances of different speakers in one clip (paper, data of Stage I).

The paper's target is "The first speaker says ... The second speaker says ...". Here it is the LLM's answer to a
question. The CTC head learns only the words that are spoken, which are in `text`.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from ...modeling.spacing_soundwave import join_texts
from .clips import RATE, active_level, as_clip, at_level, join, samples_of
from .draws import NotBuilt
from .sounds import kept, text_of


ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")
QUESTIONS = (
    "What does each speaker say?",
    "Who says what in this conversation?",
    "Write down what each person says, in turn.",
    "Transcribe the conversation speaker by speaker.",
    "Tell me what every speaker says.",
    "Give me a transcript that keeps the speakers apart.",
    "Several people talk here. What does each of them say?",
    "List the words of each speaker in the order in which they talk.",
)
LONGEST_OVERLAP = 0.5  # of the shorter one of two neighbouring utterances


def conversation_answer(texts: Sequence[str]) -> str:
    """`["Hello.", "Good day."]` -> `"The first speaker says: Hello. The second speaker says: Good day."`

    A text that does not end in a mark gets a full stop, so that the turns stay apart.
    """
    turns = [text if not text[-1].isalnum() else f"{text}." for text in texts]
    return " ".join(f"The {ORDINALS[place]} speaker says: {turn}" for place, turn in enumerate(turns))


def splice_speakers(
    rows: Sequence[Mapping], pauses: Sequence[float], question: str = QUESTIONS[0], name: str = "A row"
) -> dict:
    """Utterances of different speakers as one clip, all at the level of the first.

    Args:
        rows: with `audio`, `text` and `speaker`.
        pauses: seconds before the second utterance, the third ... A negative one is an overlap, in which both are
            heard. An overlap is at most half of the shorter utterance: a longer one is refused.
        name: what an error calls the row.
    Returns: a row with `audio` (samples at 16 kHz), `text`, `question`, `answer`, `seconds`, `speakers` (how many) and
        `turns` (`text`, `speaker`, `start` and `end` in seconds of each utterance).
    Raises: `NotBuilt` if a clip, text or speaker is missing, or two utterances have the same speaker.
    """
    if not 2 <= len(rows) <= len(ORDINALS) or len(pauses) != len(rows) - 1:
        raise ValueError(
            f"{len(rows)} utterances and {len(pauses)} pauses arrived; expected 2 to {len(ORDINALS)} utterances and a "
            "pause between each two."
        )
    names = [name, *(f"the {ordinal} utterance of {name}" for ordinal in ORDINALS[1 : len(rows)])]
    speakers = [speaker_of(row, each) for row, each in zip(rows, names, strict=True)]
    if len(set(speakers)) < len(speakers):
        raise NotBuilt(f"{name} would have the speakers {speakers}; expected a different one for each utterance.")
    texts = [text_of(row, each) for row, each in zip(rows, names, strict=True)]
    parts = [samples_of(row, each) for row, each in zip(rows, names, strict=True)]
    parts = [parts[0], *(at_level(part, active_level(parts[0])) for part in parts[1:])]
    refuse_overlaps(parts, pauses, name)
    samples, spans = join(parts, pauses)
    turns = [
        {"text": text, "speaker": speaker, "start": start, "end": end}
        for text, speaker, (start, end) in zip(texts, speakers, spans, strict=True)
    ]
    row = {"audio": as_clip(samples), "text": join_texts(texts), "question": question}
    row |= {"answer": conversation_answer(texts), "seconds": len(samples) / RATE, "speakers": len(rows)}
    return row | {"turns": turns} | kept(rows[0], "source")


def speaker_of(row: Mapping, name: str) -> str:
    if (speaker := row.get("speaker")) is None or not str(speaker).strip():
        raise NotBuilt(f"{name} has `speaker` {speaker!r}; expected a name. Its columns are {sorted(row)}.")
    return str(speaker)


def refuse_overlaps(parts: Sequence[np.ndarray], pauses: Sequence[float], name: str):
    for before, after, pause in zip(parts, parts[1:], pauses, strict=False):
        longest = longest_overlap(before, after)
        if -pause > longest + 1 / RATE:
            raise NotBuilt(
                f"{name} would have an overlap of {-pause:.2f} s, more than half of an utterance of "
                f"{2 * longest:.2f} s: use shorter overlaps, or longer utterances."
            )


def longest_overlap(before: np.ndarray, after: np.ndarray) -> float:
    """Seconds that two neighbouring utterances may overlap."""
    return LONGEST_OVERLAP * min(len(before), len(after)) / RATE


__all__ = ["ORDINALS", "QUESTIONS", "conversation_answer", "speaker_of", "splice_speakers"]
