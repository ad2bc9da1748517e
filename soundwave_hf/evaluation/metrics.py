"""Scores as pure functions of texts and numbers: no model, no file."""

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import astuple, dataclass
from functools import lru_cache, partial
from itertools import groupby

import numpy as np

from ..processing.languages_soundwave import language_code
from ..processing.text_soundwave import SPACELESS_LANGUAGES, check_ctc_text, normalize_text


NEEDS_EXTRA = "Scoring needs `jiwer` and `whisper-normalizer`: `pip install 'soundwave-hf[evaluate]'`."
UNITS = ("words", "characters")
RESAMPLES = 2_000
CONFIDENCE = 0.95


# ---- texts ----


def scoring_language(language: str | None) -> str:
    """`"German"`, `"de"` or `"de-AT"` -> `"de"`; without a language `"en"`, and `"auto"` stays as it is.

    Raises: as `language_name`.
    """
    is_auto = isinstance(language, str) and language.strip().lower() == "auto"
    return "auto" if is_auto else language_code(language) or "en"


def main_metric(language: str | None) -> str:
    """`"cer"` for languages written without spaces between words (Whisper's paper, 4.2), `"wer"` for all others."""
    return "cer" if scoring_language(language) in SPACELESS_LANGUAGES else "wer"


def text_normalizer(language: str | None = None) -> Callable[[str], str]:
    """Whisper's English normaliser for English, its basic one for every other language.

    The basic one keeps combining marks: Whisper's own default drops them, and with them the vowels of Hindi or Thai.
    """
    return _normalizer(scoring_language(language) == "en")


def has_words(references: Iterable[str]) -> bool:
    """Whether a reference has a word that is scored: the normaliser drops "[laughter]", "Hmm." and marks."""
    normalize = text_normalizer()
    return any(normalize(reference).strip() for reference in references)


@lru_cache(maxsize=2)
def _normalizer(is_english: bool) -> Callable[[str], str]:
    # transformers has the same rules, but reads the table of spellings from the folder of a Whisper tokenizer. If that
    # lacks it, the same texts would score differently on two machines.
    try:
        from whisper_normalizer.basic import BasicTextNormalizer
        from whisper_normalizer.english import EnglishTextNormalizer
    except ImportError as error:
        raise ImportError(NEEDS_EXTRA) from error
    return EnglishTextNormalizer() if is_english else BasicTextNormalizer(preserve_marks=True)


def text_form(normalize: bool | str, language: str | None = None) -> Callable[[str], str]:
    """The change of a text before it is compared.

    Args: normalize: `True` for Whisper's normaliser; `False` for the text as written; or a policy of
        `normalize_text`, such as "lower_spelled", the form that a CTC head learned.
    Raises: ValueError for an unknown policy.
    """
    if normalize is True:
        return text_normalizer(language)
    policy = "as_written" if normalize is False else normalize
    check_ctc_text(policy)
    return partial(normalize_text, policy=policy, language=language)


def _ready_texts(texts: Sequence[str], unit: str, language: str | None, normalize: bool | str) -> list[str]:
    """Texts in the form that is compared: single spaces between words; none for characters of spaceless languages."""
    change = text_form(normalize, language)
    space = "" if unit == "characters" and scoring_language(language) in SPACELESS_LANGUAGES else " "
    return [space.join(change(text).split()) for text in texts]


def as_texts(references: Iterable[str], hypotheses: Iterable[str]) -> tuple[list[str], list[str]]:
    """Both as lists: of lists, arrays, columns and generators.

    Raises: ValueError if one of them is not several strings in order, or their numbers differ.
    """
    references, hypotheses = _as_list(references, "references"), _as_list(hypotheses, "hypotheses")
    if len(references) != len(hypotheses):
        raise ValueError(
            f"{len(hypotheses)} hypotheses arrived for {len(references)} references: give one for each, in order."
        )
    return references, hypotheses


def _as_list(texts: Iterable[str], name: str) -> list[str]:
    if isinstance(texts, str):
        raise ValueError(f"`{name}` is one text, `{texts[:40]}`; expected a list with one text for each clip.")
    has_order = isinstance(texts, Iterable) and not isinstance(texts, (Mapping, Set))
    if not has_order or getattr(texts, "ndim", 1) != 1:
        raise ValueError(f"`{name}` is a {type(texts).__name__}; expected a list with one text for each clip.")
    texts = list(texts)
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"{name}[{index}] is {text!r}; expected a string (an empty one for silence).")
    return texts


# ---- errors ----


@dataclass(frozen=True)
class ErrorCounts:
    """Edits that turn references into hypotheses, and the length of the references, for one clip or many."""

    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0
    reference_length: int = 0  # words or characters

    @property
    def errors(self) -> int:
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """Errors divided by the length of the references. It can be above 1, if many words were inserted.

        Raises: ValueError if the references are empty.
        """
        if self.reference_length == 0:
            raise ValueError("The references are empty after normalising: an error rate needs at least one word.")
        return self.errors / self.reference_length

    def __add__(self, other: "ErrorCounts") -> "ErrorCounts":
        return ErrorCounts(*map(sum, zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True)
class Edit:
    """One difference between a reference and a hypothesis."""

    kind: str  # substitute, delete or insert
    reference: str  # the words (or characters) of the reference; empty for an insertion
    hypothesis: str  # those of the hypothesis; empty for a deletion


def edits_by_clip(
    references: Iterable[str],
    hypotheses: Iterable[str],
    unit: str = "words",
    language: str | None = None,
    normalize: bool | str = True,
) -> list[tuple[ErrorCounts, list[Edit]]]:
    """Counts and differences of each clip, by jiwer's alignment (fewest edits).

    Args:
        references, hypotheses: one text for each clip, in the same order; an empty reference means silence. Lists,
            arrays, columns and generators are taken.
        unit: `words`, split at spaces, or `characters`, where a space counts except in languages without spaces.
        language: code or English name; chooses the normaliser, English by default.
        normalize: `False` compares the texts as written, with case and marks; a policy of `normalize_text`, such as
            "lower_spelled", compares them in the form of CTC targets.
    Raises: ValueError for lists of different lengths, an unknown unit and an unknown policy.
    """
    try:
        import jiwer
    except ImportError as error:
        raise ImportError(NEEDS_EXTRA) from error
    if unit not in UNITS:
        raise ValueError(f"The unit is `{unit}`; expected one of {', '.join(UNITS)}.")
    references, hypotheses = as_texts(references, hypotheses)
    if not references:
        return []
    process = jiwer.process_words if unit == "words" else jiwer.process_characters
    said, found = (_ready_texts(texts, unit, language, normalize) for texts in (references, hypotheses))
    aligned = process(said, found)
    glue = " " if unit == "words" else ""
    return [
        _counts_and_edits(*clip, glue)
        for clip in zip(aligned.references, aligned.hypotheses, aligned.alignments, strict=True)
    ]


def _counts_and_edits(said: list[str], found: list[str], chunks: list, glue: str) -> tuple[ErrorCounts, list[Edit]]:
    """Counts and edits of one clip, from the chunks of jiwer's alignment."""
    sizes = {"substitute": 0, "delete": 0, "insert": 0}
    edits = []
    for chunk in chunks:
        if chunk.type == "equal":
            continue
        there = said[chunk.ref_start_idx : chunk.ref_end_idx]
        here = found[chunk.hyp_start_idx : chunk.hyp_end_idx]
        sizes[chunk.type] += max(len(there), len(here))
        edits.append(Edit(chunk.type, glue.join(there), glue.join(here)))
    return ErrorCounts(sizes["substitute"], sizes["delete"], sizes["insert"], len(said)), edits


def error_counts(
    references: Iterable[str],
    hypotheses: Iterable[str],
    unit: str = "words",
    language: str | None = None,
    normalize: bool | str = True,
) -> ErrorCounts:
    """Errors of a whole set; arguments as in `edits_by_clip`."""
    return _sum(edits_by_clip(references, hypotheses, unit, language, normalize))


def _sum(by_clip: list[tuple[ErrorCounts, list[Edit]]]) -> ErrorCounts:
    return sum((counts for counts, _ in by_clip), ErrorCounts())


def word_error_rate(
    references: Iterable[str], hypotheses: Iterable[str], language: str | None = None, normalize: bool | str = True
) -> float:
    """Word edits divided by reference words of a whole set, both sides normalised by Whisper's normaliser.

    Args: as in `edits_by_clip`; with `normalize=False`, case and marks count; with a policy, its form is compared.
    Returns: a share: 0.25 is one error in four words. It can be above 1, if many words were inserted.
    Raises: ValueError if the numbers of texts differ, or the normalised references have no word.
    """
    return _error_rate(references, hypotheses, "words", language, normalize)


def character_error_rate(
    references: Iterable[str], hypotheses: Iterable[str], language: str | None = None, normalize: bool | str = True
) -> float:
    """Like `word_error_rate`, for characters. A space between words counts, except in languages without spaces."""
    return _error_rate(references, hypotheses, "characters", language, normalize)


def _error_rate(references, hypotheses, unit: str, language: str | None, normalize: bool) -> float:
    by_clip = edits_by_clip(references, hypotheses, unit, language, normalize)
    counts = _sum(by_clip)
    if counts.reference_length == 0:
        raise ValueError(
            f"None of the {len(by_clip)} references has a word after normalising: an error rate needs one."
        )
    return counts.rate


# ---- answers ----


def exact_matches(references: Iterable[str], hypotheses: Iterable[str], language: str | None = None) -> list[bool]:
    """For each clip, whether answer and reference are equal after Whisper's normaliser.

    If the normaliser leaves nothing of the reference, such as `(A)` or `+`, the texts are compared as written.
    """
    pairs = zip(*as_texts(references, hypotheses), strict=True)
    return [said == found for said, found in (_ready_answers(*pair, language) for pair in pairs)]


def contained_answers(references: Iterable[str], hypotheses: Iterable[str], language: str | None = None) -> list[bool]:
    """For each clip, whether the answer contains the words of the reference, together and in order.

    Both are normalised by Whisper's normaliser. An empty reference is contained only in an empty answer.
    """
    edge = "" if scoring_language(language) in SPACELESS_LANGUAGES else " "
    pairs = (_ready_answers(*pair, language) for pair in zip(*as_texts(references, hypotheses), strict=True))
    return [f"{edge}{said}{edge}" in f"{edge}{found}{edge}" if said else said == found for said, found in pairs]


def _ready_answers(reference: str, hypothesis: str, language: str | None) -> tuple[str, str]:
    said, found = _ready_texts([reference, hypothesis], "characters", language, normalize=True)
    if said:
        return said, found
    return tuple(_ready_texts([reference.lower(), hypothesis.lower()], "characters", language, normalize=False))


def exact_match(references: Iterable[str], hypotheses: Iterable[str], language: str | None = None) -> float:
    """Share of answers that equal the reference, see `exact_matches`."""
    return _share(exact_matches(references, hypotheses, language))


def contained_answer(references: Iterable[str], hypotheses: Iterable[str], language: str | None = None) -> float:
    """Share of answers that contain the reference, see `contained_answers`."""
    return _share(contained_answers(references, hypotheses, language))


def _share(hits: Sequence[bool]) -> float:
    if not hits:
        raise ValueError("No answer arrived; expected at least one.")
    return sum(hits) / len(hits)


# ---- confidence intervals ----


@dataclass(frozen=True)
class Difference:
    """A rate minus that of another system on the same clips: negative if the other one has more errors."""

    value: float
    low: float  # of the confidence interval
    high: float
    p_value: float  # two-sided: how often chance alone gives a difference this large


def bootstrap_interval(
    errors: Sequence[float],
    lengths: Sequence[float],
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> tuple[float, float]:
    """Confidence interval of a rate: percentiles of the rates of clips that are drawn with replacement.

    (Bisani and Ney, "Bootstrap estimates for confidence intervals in ASR performance evaluation", ICASSP 2004.)

    Args:
        errors: number for each clip. lengths: words, characters or answers of each clip; silent clips have 0.
        resamples, confidence, seed: number of draws, share of the rates between the bounds, random seed.
    Returns: lowest and highest rate.
    Raises: ValueError for fewer than two clips, or if no clip has a word.
    """
    errors, lengths = _check_clips(errors, lengths)
    rates = _resampled_rates(np.stack([errors]), lengths, resamples, seed)[0]
    return _percentiles(rates, confidence)


def paired_bootstrap(
    errors: Sequence[float],
    other_errors: Sequence[float],
    lengths: Sequence[float],
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Difference:
    """Compare two systems on the same clips: the difference of their rates, its interval and a p-value.

    The interval draws clips with replacement, the same ones for both. The p-value is that of a permutation test: on
    each clip, the errors of the two systems are swapped with probability 1/2. The p-value is the share of such random
    swaps whose difference is at least as large as the observed one.

    Args: as in `bootstrap_interval`; other_errors: errors of the other system on each clip.
    """
    errors, lengths = _check_clips(errors, lengths)
    other_errors, _ = _check_clips(other_errors, lengths)
    rates, other_rates = _resampled_rates(np.stack([errors, other_errors]), lengths, resamples, seed)
    low, high = _percentiles(rates - other_rates, confidence)
    gaps = errors - other_errors
    return Difference(float(gaps.sum() / lengths.sum()), low, high, _permutation_p_value(gaps, resamples, seed))


def _check_clips(errors: Sequence[float], lengths: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    errors, lengths = (np.asarray(list(values), dtype=float) for values in (errors, lengths))
    if errors.shape != lengths.shape:
        raise ValueError(
            f"{len(errors)} error counts arrived for {len(lengths)} lengths: give one of each for every clip."
        )
    if len(errors) < 2:
        raise ValueError(f"An interval over clips needs two clips or more, and {len(errors)} arrived.")
    if not lengths.sum() > 0:
        raise ValueError(f"None of the {len(lengths)} references has a word: an error rate needs one.")
    return errors, lengths


def _resampled_rates(errors: np.ndarray, lengths: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Rates `(systems, resamples)` of errors `(systems, clips)`; a draw with only silent clips is left out."""
    generator = np.random.default_rng(seed)
    rates = np.full((len(errors), resamples), np.nan)
    for number in range(resamples):  # one draw at a time, to save memory
        drawn = generator.integers(len(lengths), size=len(lengths))
        if (length := lengths[drawn].sum()) > 0:
            rates[:, number] = errors[:, drawn].sum(axis=1) / length
    return rates[:, ~np.isnan(rates[0])]


def _percentiles(values: np.ndarray, confidence: float) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _permutation_p_value(gaps: np.ndarray, resamples: int, seed: int) -> float:
    """Two-sided; the observed difference counts as one of the swaps, so it is never 0 (Phipson and Smyth, 2010)."""
    gaps = gaps[gaps != 0]
    generator = np.random.default_rng(seed)
    observed = abs(gaps.sum())
    swaps = (abs((gaps * generator.choice((-1, 1), size=len(gaps))).sum()) for _ in range(resamples))
    return (1 + sum(bool(swap >= observed) for swap in swaps)) / (1 + resamples)


# ---- frames and positions ----


def positions_per_second(num_positions: Sequence[int], audio_seconds: Sequence[float]) -> float:
    """LLM positions of all clips divided by the seconds of all clips."""
    seconds = sum(audio_seconds)
    if not seconds > 0:
        raise ValueError(f"The clips are {seconds} s long together; expected more than 0 s.")
    return sum(num_positions) / seconds


def collapse_ctc(labels: Sequence[int], blank_id: int) -> list[int]:
    """Greedy CTC transcript of one clip: one token for each run of equal labels, without blanks."""
    return [label for label, _ in groupby(labels) if label != blank_id]
