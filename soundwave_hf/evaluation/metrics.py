"""Scores as pure functions of texts and numbers."""

from collections.abc import Sequence
from functools import lru_cache
from itertools import groupby


NEEDS_EXTRA = "Scoring needs `jiwer` and `whisper-normalizer`: `pip install 'soundwave-hf[evaluate]'`."


@lru_cache(maxsize=1)
def english_normalizer():
    """Whisper's English normaliser with its table of British and American spellings.

    transformers has the same rules, but takes the table from the folder of a Whisper tokenizer, which may lack it: the
    same texts would score differently on two machines.
    """
    try:
        from whisper_normalizer.english import EnglishTextNormalizer
    except ImportError as error:
        raise ImportError(NEEDS_EXTRA) from error
    return EnglishTextNormalizer()


def word_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """Word edits over reference words of a whole set, both sides through Whisper's English normaliser.

    Args: references, hypotheses: one text a clip, in the same order.
    Returns: a share: 0.25 is one error in four words; above 1 where more was invented than said.
    Raises: ValueError where the two differ in number or no reference word is left after the normaliser.
    """
    try:
        import jiwer
    except ImportError as error:
        raise ImportError(NEEDS_EXTRA) from error
    if len(references) != len(hypotheses):
        raise ValueError(
            f"{len(hypotheses)} hypotheses arrived for {len(references)} references: give one a clip, in order."
        )
    normalise = english_normalizer()
    said = [normalise(text) for text in references]
    if not any(text.split() for text in said):
        raise ValueError(
            f"None of the {len(said)} references has a word after normalising: a word error rate needs one."
        )
    return jiwer.wer(said, [normalise(text) for text in hypotheses])


def character_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """As `word_error_rate`, of characters; a space between words is one."""
    word_error_rate(references, hypotheses)  # which checks them
    import jiwer

    normalise = english_normalizer()
    pairs = [(said, normalise(found)) for said, found in zip(map(normalise, references), hypotheses, strict=True)]
    return jiwer.cer(*map(list, zip(*pairs, strict=True)))


def exact_match(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """Share of answers that equal their reference after Whisper's English normaliser."""
    normalise = english_normalizer()
    pairs = list(zip(references, hypotheses, strict=True))
    return sum(normalise(said) == normalise(found) for said, found in pairs) / len(pairs)


def positions_per_second(num_positions: Sequence[int], audio_seconds: Sequence[float]) -> float:
    """LLM positions of all clips over the seconds of all clips."""
    if not sum(audio_seconds) > 0:
        raise ValueError(f"The clips are {sum(audio_seconds)} s long together: positions per second need speech.")
    return sum(num_positions) / sum(audio_seconds)


def collapse_ctc(labels: Sequence[int], blank_id: int) -> list[int]:
    """Greedy CTC transcript of one clip: one token for each run of equal labels, blanks left out."""
    return [label for label, _ in groupby(labels) if label != blank_id]
