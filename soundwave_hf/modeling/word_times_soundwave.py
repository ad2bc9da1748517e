"""Start, end and confidence of each word of a transcript, from the CTC scores of its clip.

A CTC head scores each label high at one frame, its peak, which does not show where the label begins. So the time
between two peaks is divided by the letters between them: a share `label_peak` of a label's letters comes before its
peak. `benchmarks/word_times.py` measures this share and the remaining errors.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from .alignment_soundwave import Alignment, align_labels
from .ctc_scores_soundwave import CTCFrames
from .ctc_text_soundwave import CTCText, ctc_form
from .spacing_soundwave import word_spans


LEFT_OUT_LOG_PROB = -15.0  # nats for each label; an unspoken label with a frame has about -10
USUAL_LETTER_SECONDS = 0.065  # for clips with too few labels to measure it
LETTER_SECONDS = (0.03, 0.12)  # lower and upper limit
PAUSE_SECONDS = 0.1  # if the time between peaks is longer than twice the usual by this, there is a pause
LENGTHENED = 1.6  # factor by which the last label before a pause is slower
SHORTEST_SECONDS = 0.02  # of a word: two mel frames


def sound_seconds(input_features: torch.Tensor, num_mel_frames: int) -> float:
    """End in seconds of the sound in a clip `(mel_bins, mel_frames)`, without the zeros that were added after it.

    A frame covers 12.5 ms on both sides of its center, so this is the earliest end that the last frame allows.
    """
    true_frames = input_features[:, :num_mel_frames]
    sounds = (true_frames > true_frames.min()).any(dim=0).nonzero().flatten()
    return max(0.01 * int(sounds[-1]) - 0.0125, 0.01) if len(sounds) else 0.01 * num_mel_frames


def owners(pieces: list[bytes], spans: list[tuple[int, int]]) -> list[int | None]:
    """The word of each piece of a text: the one with the piece's last byte that is not a space; None without one.

    Args:
        pieces: bytes of tokens. Joined, they end like the text (SentencePiece may add a space before it).
        spans: begin and end of each word in the text.
    """
    place = (spans[-1][1] if spans else 0) - len(b"".join(pieces).rstrip())
    found = []
    for piece in pieces:
        place += len(piece)
        last = place - 1 - (len(piece) - len(piece.rstrip()) if piece.strip() else 0)
        found.append(next((word for word, (begin, end) in enumerate(spans) if begin <= last < end), None))
    return found


def to_bytes(text: str) -> bytes:
    """A text as bytes; those of broken characters, which `surrogateescape` keeps, as they were."""
    return text.encode(errors="surrogateescape")


@dataclass
class WrittenWord:
    """A word of a transcript.

    Args:
        text: with case and punctuation.
        span: begin and end in the transcript's bytes.
        labels: its CTC labels.
        is_apart: whether a space comes before it. In scripts without spaces, words follow each other directly.
    """

    text: str
    span: tuple[int, int]
    labels: list[int]
    is_apart: bool = True


def written_words(text: str, bridge: CTCText) -> list[WrittenWord]:
    """The words of a text with their CTC labels; see `word_spans`. Punctuation without a word joins a neighbour."""
    words, spoken = [], []
    for spans in word_spans(text):
        pieces = [to_bytes(text[begin:end]).decode(errors="replace") for begin, end in spans]
        for number, said in enumerate(_said(pieces, bridge.form)):
            begin, end = (len(to_bytes(text[:place])) for place in spans[number])
            if words and not (said and spoken[-1]):
                words[-1] = _joined(words[-1], WrittenWord(pieces[number], (begin, end), [], number == 0))
                spoken[-1] += said
            else:
                words.append(WrittenWord(pieces[number], (begin, end), [], number == 0))
                spoken.append(said)
    labels = bridge.labels("".join(spoken))
    ends = np.cumsum([0, *(len(said.encode()) for said in spoken)]).tolist()
    of_word = owners([bridge.bytes_of[label] for label in labels], list(pairwise(ends)))
    for label, word in zip(labels, of_word, strict=True):
        if word is not None:
            words[word].labels.append(label)
    return _with_labels(words)


def _said(pieces: list[str], form: str) -> list[str]:
    """The CTC text of each piece of a run without spaces; "" for punctuation alone. Joined, they are the run's."""
    if len(pieces) == 1:
        return [ctc_form(pieces[0], form) if any(map(str.isalnum, pieces[0])) else ""]
    whole, said, place = ctc_form("".join(pieces), form), [], 0
    for piece in pieces:
        own = ctc_form(piece, form).strip()
        end = max(whole.find(own, place), place) + len(own)
        said.append(whole[place:end])
        place = end
    return [*said[:-1], said[-1] + whole[place:]]


def _joined(word: WrittenWord, other: WrittenWord) -> WrittenWord:
    text = f"{word.text} {other.text}" if other.is_apart else word.text + other.text
    return WrittenWord(text, (word.span[0], other.span[1]), word.labels + other.labels, word.is_apart)


def _with_labels(words: list[WrittenWord]) -> list[WrittenWord]:
    """Join a word without spaces to the next one if a label covers both."""
    found = []
    for word in words:
        is_covered = found and not found[-1].labels and not word.is_apart
        if is_covered:
            word = _joined(found.pop(), word)
        found.append(word)
    return found


def count_letters(labels: list[int], bridge: CTCText) -> np.ndarray:
    """Number of letters of each label, at least 1: `(labels,)`."""
    texts = [bridge.bytes_of[label].decode(errors="ignore").strip() for label in labels]
    return np.array([max(1, len(text)) for text in texts])


@torch.no_grad()
def align_words(frames: CTCFrames, labels: list[list[int]]) -> Alignment:
    """The likeliest path of words, given by their labels, through the frames of a clip."""
    flat = torch.tensor([label for word in labels for label in word], dtype=torch.long)
    ids, places = flat.unique(return_inverse=True)
    columns = frames.columns(ids).cpu().double().numpy()
    blank = frames.blank_log_probs.cpu().double().numpy()
    return align_labels(columns, blank, places.numpy(), [len(word) for word in labels], LEFT_OUT_LOG_PROB)


def seconds_of_letters(first: np.ndarray, last: np.ndarray, letters: np.ndarray, label_peak: float) -> float:
    """Median seconds of a letter, from the peaks `(labels,)` of a clip."""
    if len(first) < 4:
        return USUAL_LETTER_SECONDS
    between = (1 - label_peak) * letters[:-1] + label_peak * letters[1:]
    return float(np.clip(np.median((first[1:] - last[:-1]) / between), *LETTER_SECONDS))


def time_words(
    first: np.ndarray, last: np.ndarray, letters: np.ndarray, word_lengths: list[int], label_peak: float, end: float
) -> list[tuple[float, float]]:
    """Start and end of consecutive words, in seconds.

    Args:
        first, last (`(labels,)`): the middle of the first and last frame of each label, in seconds.
        letters (`(labels,)`): number of letters of each label, at least 1.
        word_lengths: number of labels of each word.
        label_peak: share of a label's letters that come before its peak.
        end: latest end of a word.
    """
    letter = seconds_of_letters(first, last, letters, label_peak)
    before, after = label_peak * letters * letter, (1 - label_peak) * letters * letter
    begins = np.cumsum([0, *word_lengths])[:-1]
    starts, ends = first[begins] - before[begins], last[begins + word_lengths - 1]
    ends = ends + LENGTHENED * after[begins + word_lengths - 1]
    for word, label in enumerate(begins[1:], start=1):
        gap, usual = first[label] - last[label - 1], after[label - 1] + before[label]
        if gap <= 2 * usual + PAUSE_SECONDS:
            starts[word] = ends[word - 1] = last[label - 1] + gap * after[label - 1] / usual
        ends[word - 1] = min(ends[word - 1], starts[word])
    return _within(starts, ends, end)


def _within(starts: np.ndarray, ends: np.ndarray, end: float) -> list[tuple[float, float]]:
    """Clip times to 0 and `end`, in order. Words with a peak after the end are moved before it."""
    shortest = min(SHORTEST_SECONDS, end / max(len(starts), 1))
    limit, times = end, []
    for start, stop in zip(starts[::-1].tolist(), ends[::-1].tolist(), strict=True):
        stop = min(stop, limit)
        limit = min(start, stop - shortest)
        times.append([limit, stop])
    begin = 0.0
    for time in reversed(times):
        time[0] = max(time[0], begin)
        time[1] = begin = max(time[1], time[0] + shortest)
    return [(start, stop) for start, stop in reversed(times)]


__all__ = [
    "WrittenWord",
    "align_words",
    "count_letters",
    "owners",
    "sound_seconds",
    "time_words",
    "to_bytes",
    "written_words",
]
