"""Compute scores of each clip, of a set, and of two systems on the same clips."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from .metrics import (
    Difference,
    Edit,
    ErrorCounts,
    bootstrap_interval,
    contained_answers,
    edits_by_clip,
    exact_matches,
    paired_bootstrap,
    positions_per_second,
)
from .transcribe import Result


UNIT_OF = {"wer": "words", "cer": "characters"}
Interval = tuple[float, float]  # 95 % bootstrap interval over clips


@dataclass
class ClipScore:
    """Errors of one clip."""

    words: ErrorCounts  # of normalised text
    edits: list[Edit]  # of words
    characters: ErrorCounts
    written_words: ErrorCounts  # text as written: case and marks count
    written_characters: ErrorCounts
    exact: bool  # whether the normalised texts are equal
    contained: bool  # whether the text contains the reference


def score_clips(references: Sequence[str], texts: Sequence[str], language: str | None = None) -> list[ClipScore]:
    """Scores of each clip."""
    words = edits_by_clip(references, texts, "words", language)
    characters, written_words, written_characters = (
        [counts for counts, _ in edits_by_clip(references, texts, unit, language, normalize)]
        for unit, normalize in (("characters", True), ("words", False), ("characters", False))
    )
    return [
        ClipScore(counts, edits, *rest)
        for (counts, edits), *rest in zip(
            words,
            characters,
            written_words,
            written_characters,
            exact_matches(references, texts, language),
            contained_answers(references, texts, language),
            strict=True,
        )
    ]


@dataclass
class Scores:
    """Scores of one set; `None` if the set has no row of that kind."""

    clips: int  # rows that were scored
    audio_seconds: float
    wer: float | None = None  # share of words, after Whisper's normaliser
    ctc_wer: float | None = None  # of the CTC head's greedy transcript
    positions_per_second: float | None = None  # LLM positions for each second of speech
    seconds_taken: float = 0.0
    whisper_wer: float | None = None  # of the encoder's own Whisper
    wer_interval: Interval | None = None
    written_wer: float | None = None  # of the text as written, case and marks counted
    cer: float | None = None  # like `wer`, for characters
    cer_interval: Interval | None = None
    written_cer: float | None = None
    ctc_cer: float | None = None
    whisper_cer: float | None = None
    word_errors: dict[str, int] | None = None  # substitutions, deletions, insertions, words of the references
    character_errors: dict[str, int] | None = None
    answers: int = 0  # rows with `question` and `answer`, or `messages`
    exact_match: float | None = None  # share of answers that equal the reference
    exact_match_interval: Interval | None = None
    contained_answer: float | None = None  # share of answers that contain the reference
    unfinished: int = 0  # texts that were cut off, at `max_new_tokens` or `max_time`
    failures: list[dict] = field(default_factory=list)  # rows that could not be scored: row, audio, reason
    comparison: dict | None = None  # with another system on the same clips
    positions_per_second_interval: Interval | None = None
    whisper_failures: list[dict] = field(default_factory=list)  # rows that Whisper itself could not transcribe


def score_results(
    results: Sequence[Result], seconds_taken: float, language: str | None = None
) -> tuple[Scores, dict[int, ClipScore]]:
    """Scores of a set, and those of each row that has a text, by row number."""
    usable = [result for result in results if result.failure is None]
    failures = failures_of(results)
    by_clip = score_clips([r.request.reference for r in usable], [r.text for r in usable], language)
    by_row = {result.request.row: clip for result, clip in zip(usable, by_clip, strict=True)}
    scores = Scores(
        clips=len(usable),
        audio_seconds=sum(result.request.seconds for result in usable),
        seconds_taken=seconds_taken,
        unfinished=sum(not result.finished for result in usable),
        failures=failures,
    )
    add_transcript_scores(scores, [by_row[r.request.row] for r in usable if not r.request.is_answer])
    add_answer_scores(scores, [by_row[r.request.row] for r in usable if r.request.is_answer])
    add_audio_scores(scores, usable, language)
    return scores, by_row


def failures_of(results: Sequence[Result]) -> list[dict]:
    """Row, audio and reason of each result without a text."""
    return [
        {"row": result.request.row, "audio": result.request.audio_name, "reason": result.failure}
        for result in results
        if result.failure is not None
    ]


def add_transcript_scores(scores: Scores, clips: Sequence[ClipScore]):
    """Add error rates of transcripts, unless there are none."""
    if not clips:
        return
    words, characters = [clip.words for clip in clips], [clip.characters for clip in clips]
    scores.word_errors, scores.character_errors = counts_of(words, "words"), counts_of(characters, "characters")
    scores.wer, scores.cer = rate_of(words), rate_of(characters)
    scores.written_wer = rate_of([clip.written_words for clip in clips])
    scores.written_cer = rate_of([clip.written_characters for clip in clips])
    scores.wer_interval, scores.cer_interval = interval_of(words), interval_of(characters)


def add_answer_scores(scores: Scores, clips: Sequence[ClipScore]):
    """Add the shares of right answers."""
    scores.answers = len(clips)
    if not clips:
        return
    scores.exact_match = sum(clip.exact for clip in clips) / len(clips)
    scores.contained_answer = sum(clip.contained for clip in clips) / len(clips)
    if len(clips) > 1:
        scores.exact_match_interval = bootstrap_interval([clip.exact for clip in clips], [1] * len(clips))


def add_audio_scores(scores: Scores, results: Sequence[Result], language: str | None):
    """Add the scores of the CTC head and the positions a second, if the system has them."""
    scores.ctc_wer, scores.ctc_cer = rates_of([(r.request.spoken, r.ctc_text) for r in results], language)
    shrunk = [r for r in results if r.num_positions is not None and r.request.seconds > 0]
    if shrunk:
        seconds = [result.request.seconds for result in shrunk]
        positions = [result.num_positions for result in shrunk]
        scores.positions_per_second = positions_per_second(positions, seconds)
        if len(shrunk) > 1:
            scores.positions_per_second_interval = bootstrap_interval(positions, seconds)


def add_whisper_scores(
    scores: Scores, by_row: Mapping[int, ClipScore], whisper: Sequence[Result], language: str | None = None
):
    """Add the rates of Whisper itself on the rows that the model could transcribe."""
    scores.whisper_failures = [row for row in failures_of(whisper) if row["row"] in by_row]
    if not scores.whisper_failures:  # otherwise its rates would be of other clips
        pairs = [(r.request.spoken, r.text) for r in whisper if r.request.row in by_row]
        scores.whisper_wer, scores.whisper_cer = rates_of(pairs, language)


def rates_of(
    pairs: Sequence[tuple[str | None, str | None]], language: str | None
) -> tuple[float | None, float | None]:
    """WER and CER over the pairs in which neither reference nor text is None."""
    known = [(said, found) for said, found in pairs if said is not None and found is not None]
    if not known:
        return None, None
    said, found = zip(*known, strict=True)
    return tuple(
        rate_of([counts for counts, _ in edits_by_clip(said, found, unit, language)]) for unit in UNIT_OF.values()
    )


def rate_of(clips: Sequence[ErrorCounts]) -> float | None:
    """Errors divided by the length of all references; `None` if all are silence."""
    total = sum(clips, ErrorCounts())
    return total.rate if total.reference_length else None


def interval_of(clips: Sequence[ErrorCounts]) -> Interval | None:
    """The 95 % interval of a rate; `None` for fewer than two clips or only silence."""
    lengths = [clip.reference_length for clip in clips]
    if len(clips) < 2 or not sum(lengths):
        return None
    return bootstrap_interval([clip.errors for clip in clips], lengths)


def counts_of(clips: Sequence[ErrorCounts], unit: str) -> dict[str, int]:
    total = asdict(sum(clips, ErrorCounts()))
    return total | {unit: total.pop("reference_length")}


# ---- two systems ----


def compare_clips(
    clips: Sequence[ClipScore], others: Sequence[ClipScore], is_answer: bool, metric: str
) -> dict | None:
    """Compare two systems on the same clips of one kind by `paired_bootstrap`.

    Args: metric: `wer` or `cer` for transcripts; answers are compared by exact match.
    Returns: both figures, their difference with interval and p-value, and on how many clips each is better; `None`
        for fewer than two clips or only silence.
    """
    if is_answer:
        name, lengths = "exact_match", [1] * len(clips)
        mine, theirs = ([int(clip.exact) for clip in side] for side in (clips, others))
    else:
        name = metric
        counts, other_counts = ([getattr(clip, UNIT_OF[metric]) for clip in side] for side in (clips, others))
        lengths = [clip.reference_length for clip in counts]
        mine, theirs = ([clip.errors for clip in side] for side in (counts, other_counts))
    if len(clips) < 2 or not sum(lengths):
        return None
    difference = paired_bootstrap(mine, theirs, lengths)
    lower = sum(a < b for a, b in zip(mine, theirs, strict=True))
    higher = sum(a > b for a, b in zip(mine, theirs, strict=True))
    better, worse = (higher, lower) if is_answer else (lower, higher)
    return comparison_record(name, sum(mine) / sum(lengths), sum(theirs) / sum(lengths), difference, len(clips)) | {
        "clips_better": better,
        "clips_worse": worse,
    }


def comparison_record(metric: str, value: float, other: float, difference: Difference, clips: int) -> dict:
    return {
        "metric": metric,
        "clips": clips,
        "value": value,
        "other_value": other,
        "difference": difference.value,
        "difference_interval": (difference.low, difference.high),
        "p_value": difference.p_value,
    }
