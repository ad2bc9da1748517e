"""Check a transcript against the sound: times and confidence of each word, and words that were not spoken.

The support of a word is its score minus that of the likeliest labels in its frames, in nats for each label.
`benchmarks/hallucinations.py` measures how well it separates invented words from spoken ones.
"""

import math
import re
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from .alignment_soundwave import Alignment
from .ctc_scores_soundwave import CTCFrames
from .ctc_text_soundwave import CTCText, bridge_of
from .word_times_soundwave import WrittenWord, align_words, count_letters, owners, time_words, written_words


LEAST_SUPPORT = -9.0  # nats for each label; chosen on clips outside the validation sets: benchmarks/hallucinations.py


SENTENCE_END = re.compile(r"[.?!…。？！]['\"”’)\]]*$")
SEGMENT_PAUSE_SECONDS = 1.0  # a longer pause begins a new segment, as the end of a sentence does


@dataclass
class CTCClip:
    """The CTC scores of one clip, and the length of its frames in seconds.

    Args:
        frames (`CTCFrames`).
        frame_seconds (`float`): seconds of a frame.
        end_seconds (`float`): latest end of a word.
        label_peak (`float`), form (`str`): `label_peak` and `ctc_text` of `SoundwaveConfig`.
    """

    frames: CTCFrames
    frame_seconds: float
    end_seconds: float
    label_peak: float
    form: str = "lower"

    def align(self, text: str, tokenizer, return_timestamps="word", least_support: float = LEAST_SUPPORT) -> dict:
        """A transcript with the times of its words or segments.

        Args:
            text (`str`): the transcript, by the LLM, the CTC head or a person.
            tokenizer: the LLM's tokenizer.
            return_timestamps (`str`): "word" or "segment".
            least_support (`float`): nats; words with less support are not `supported`.

        Returns: `{"text", "chunks", "probability"}`; see `SoundwaveProcessor.align_word_timestamps`.

        Raises: `ValueError` for an unknown `return_timestamps`.
        """
        kind = check_kind(return_timestamps)
        words = score_words(self, text, bridge_of(tokenizer, self.form), least_support)
        return {"text": text, "chunks": CHUNKS[kind](words), "probability": clip_probability(words, self)}


def check_kind(return_timestamps) -> str:
    """ "word" or "segment"; True means "segment", as in Whisper's pipeline.

    Raises: `ValueError` for another value.
    """
    kind = "segment" if return_timestamps is True else return_timestamps
    if kind not in ("word", "segment"):
        raise ValueError(
            f'`return_timestamps` is {return_timestamps!r}; expected "word" or "segment" (True means "segment").'
        )
    return kind


@dataclass
class ScoredWord:
    """A word of a transcript and its CTC scores.

    Args:
        text: the written word, with case and punctuation.
        span: begin and end in the transcript's bytes.
        start, end: seconds; None if the word has no frames.
        ctc_log_prob: mean log-probability of its labels at their frames.
        support: its score minus that of the likeliest labels in its frames, in nats for each label, 0 or less; -inf
            without frames.
        supported: whether `support` reaches the threshold and the word is not a repeated copy in a loop.
        llm_log_prob: total log-probability of its tokens by the LLM, if known.
        is_apart: whether a space comes before it.
    """

    text: str
    span: tuple[int, int]
    start: float | None = None
    end: float | None = None
    ctc_log_prob: float = -math.inf
    support: float = -math.inf
    supported: bool = False
    llm_log_prob: float | None = None
    is_apart: bool = True

    @property
    def aligned(self) -> bool:
        return self.start is not None

    @property
    def probability(self) -> float:
        """From 0 to 1: the geometric mean of the CTC head's probability and, if known, the LLM's."""
        known = [self.ctc_log_prob] if self.llm_log_prob is None else [self.ctc_log_prob, self.llm_log_prob]
        return math.exp(sum(known) / len(known))


def score_words(clip: CTCClip, text: str, bridge: CTCText, least_support: float) -> list[ScoredWord]:
    """Align and score the words of a transcript with the CTC head.

    Args:
        clip (`CTCClip`).
        text (`str`): the transcript.
        bridge (`CTCText`): converts the text to CTC labels.
        least_support (`float`): nats; see `ScoredWord.support`.
    """
    written = written_words(text, bridge)
    scored = [ScoredWord(word.text, word.span, is_apart=word.is_apart) for word in written]
    said = [number for number, word in enumerate(written) if word.labels]
    _score(clip, written, scored, said, bridge, least_support)
    extra = _copies_without_frames(scored, [tuple(word.labels) for word in written])
    if extra:  # which took frames of the copies that were said
        scored = [ScoredWord(word.text, word.span, is_apart=word.is_apart) for word in written]
        _score(clip, written, scored, [number for number in said if number not in extra], bridge, least_support)
    return scored


def _score(
    clip: CTCClip, written: list[WrittenWord], scored: list[ScoredWord], said: list[int], bridge, least_support: float
):
    """Score the words `said` of a transcript by their frames, as if the others were not there."""
    alignment = align_words(clip.frames, [written[number].labels for number in said])
    places = _places_of_words([written[number] for number in said])
    kept = [word for word in range(len(said)) if not alignment.left_out[word]]
    if not kept:
        return
    times = _time_kept(clip, alignment, [(written[said[word]], places[word]) for word in kept], bridge)
    support = _support_of(clip, alignment, [places[word] for word in kept])
    for word, (start, end), value in zip(kept, times, support, strict=True):
        found, place = scored[said[word]], places[word]
        found.start, found.end, found.support = round(start, 3), round(end, 3), value
        peaks = [
            alignment.frame_log_probs[first : last + 1].max()
            for first, last in zip(alignment.first_frames[place], alignment.last_frames[place], strict=True)
        ]
        found.ctc_log_prob = float(np.mean(peaks))
        found.supported = value >= least_support


def _copies_without_frames(scored: list[ScoredWord], labels: list[tuple[int, ...]]) -> set[int]:
    """Words of the later copies of loops: as many copies stay as are supported, and at least the first."""
    extra = set()
    for loop in find_loops(labels):
        supported = [sum(scored[number].supported for number in numbers) for numbers in zip(*loop, strict=True)]
        kept = max(1, int(np.median(supported)))
        extra |= {number for copy in loop[kept:] for number in copy}
    return extra


def _places_of_words(words: list[WrittenWord]) -> list[slice]:
    ends = np.cumsum([0, *(len(word.labels) for word in words)]).tolist()
    return [slice(begin, end) for begin, end in pairwise(ends)]


def _time_kept(clip: CTCClip, alignment: Alignment, words: list[tuple[WrittenWord, slice]], bridge: CTCText):
    first = np.concatenate([alignment.first_frames[place] for _, place in words])
    last = np.concatenate([alignment.last_frames[place] for _, place in words])
    letters = count_letters([label for word, _ in words for label in word.labels], bridge)
    lengths = np.array([len(word.labels) for word, _ in words])
    seconds = clip.frame_seconds
    return time_words(
        (first + 0.5) * seconds, (last + 0.5) * seconds, letters, lengths, clip.label_peak, clip.end_seconds
    )


def _support_of(clip: CTCClip, alignment: Alignment, places: list[slice]) -> list[float]:
    """Support of each word: score of the path minus that of the likeliest labels, in nats for each label."""
    blank, best = clip.frames.blank_log_probs, clip.frames.top_log_probs[:, 0]
    likeliest = blank.maximum(best).cpu().double().numpy()
    gained = np.concatenate([[0.0], np.cumsum(alignment.frame_log_probs - likeliest)])
    begins = [int(alignment.first_frames[place][0]) for place in places]
    ends = [int(alignment.last_frames[place][-1]) + 1 for place in places]
    spans = zip(begins, ends, places, strict=True)
    return [float(gained[end] - gained[begin]) / (place.stop - place.start) for begin, end, place in spans]


def find_loops(words: list, most_words: int = 20) -> list[list[list[int]]]:
    """Find repeated words. A loop is a list of copies, and a copy is a list of word numbers.

    Args:
        words: values to compare.
        most_words: longest repeated part.
    """
    loops = []
    for length in range(1, most_words + 1):
        start = 0
        while start + 2 * length <= len(words):
            copies = 1
            first = words[start : start + length]
            while words[start + copies * length : start + (copies + 1) * length] == first:
                copies += 1
            if copies > 1:
                loops.append([[start + copy * length + n for n in range(length)] for copy in range(copies)])
            start += 1 if copies == 1 else (copies - 1) * length + 1
    return loops


def add_llm_log_probs(words: list[ScoredWord], pieces: list[bytes], log_probs: list[float]):
    """Set the total log-probability of each word's tokens.

    Args:
        words: words of the answer.
        pieces: bytes of each token of the answer.
        log_probs: log-probability of each token, in nats.
    """
    totals = {}
    for word, log_prob in zip(owners(pieces, [word.span for word in words]), log_probs, strict=True):
        if word is not None:
            totals[word] = totals.get(word, 0.0) + log_prob
    for word, total in totals.items():
        words[word].llm_log_prob = total


def clip_probability(words: list[ScoredWord], clip: CTCClip) -> float:
    """One score of a transcript, from 0 to 1: the geometric mean of its words' probabilities. For an empty transcript,
    the lowest probability of the blank at any frame."""
    if not words:
        return float(clip.frames.blank_log_probs.min().exp())
    logs = [math.log(max(word.probability, 1e-30)) for word in words]
    return math.exp(sum(logs) / len(logs))


def word_chunk(word: ScoredWord) -> dict:
    """A word in the form of the library's speech recognition pipelines, with additional fields."""
    return {
        "text": word.text,
        "timestamp": (word.start, word.end),
        "aligned": word.aligned,
        "supported": word.supported,
        "probability": word.probability,
        "ctc_probability": math.exp(word.ctc_log_prob),
        "llm_probability": None if word.llm_log_prob is None else math.exp(word.llm_log_prob),
    }


def segment_chunks(words: list[ScoredWord]) -> list[dict]:
    """Sentences, in the form of `word_chunk`. A long pause ends a sentence too."""
    segments: list[list[ScoredWord]] = []
    for word in words:
        before = segments[-1][-1] if segments else None
        is_new = before is None or SENTENCE_END.search(before.text)
        if before is not None and before.aligned and word.aligned:
            is_new = is_new or word.start - before.end >= SEGMENT_PAUSE_SECONDS
        if is_new:
            segments.append([])
        segments[-1].append(word)
    return [_segment_chunk(segment) for segment in segments]


def text_of(words: list[ScoredWord]) -> str:
    """The text of words, with a space before those that are apart."""
    return "".join(f" {word.text}" if word.is_apart else word.text for word in words).strip()


def _segment_chunk(words: list[ScoredWord]) -> dict:
    times = [(word.start, word.end) for word in words if word.aligned]
    return {
        "text": text_of(words),
        "timestamp": (times[0][0], times[-1][1]) if times else (None, None),
        "aligned": len(times) == len(words),
        "supported": any(word.supported for word in words),
        "probability": float(np.exp(np.mean([math.log(max(word.probability, 1e-30)) for word in words]))),
    }


CHUNKS = {"word": lambda words: [word_chunk(word) for word in words], "segment": segment_chunks}


__all__ = [
    "CHUNKS",
    "CTCClip",
    "ScoredWord",
    "add_llm_log_probs",
    "check_kind",
    "clip_probability",
    "find_loops",
    "score_words",
    "text_of",
]
