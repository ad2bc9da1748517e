"""Filters that read the transcript and the length of the recording. They need no model.

Words are those of [`normalize_text`] in lower case without marks. In scripts without spaces between words, each
character is a word. An empty transcript has no words: `empty_text` judges it, and the others do not apply.
"""

from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ...modeling.spacing_soundwave import word_spans
from ...processing.text_soundwave import normalize_text
from .filter import Clip
from .options import ThresholdFilter, number


FRAMES_A_SECOND = 100  # log-mel frames of 10 ms


def words_of(text: str) -> list[str]:
    """Words in lower case without marks; each character of a script without spaces is a word."""
    text = normalize_text(text, "lower")
    return [text[begin:end] for part in word_spans(text) for begin, end in part]


def num_characters(text: str) -> int:
    """Characters of a transcript with its marks; spaces at its ends and repeated spaces do not count."""
    return len(normalize_text(text, "as_written").strip())


@dataclass
class EmptyText(ThresholdFilter):
    """Drops transcripts without a letter or digit.

    Args: allow_empty (`bool`): keep rows whose transcript is empty on purpose (`""`, a clip without speech). One that
        has only marks, such as "...", is dropped in any case.
    """

    name: ClassVar[str] = "empty_text"
    unit: ClassVar[str] = "letters and digits"
    allow_empty: bool = False

    def measure(self, clips: Sequence[Clip]) -> list[int | None]:
        return [None if self.allow_empty and not clip.text.strip() else _letters(clip.text) for clip in clips]

    def keeps(self, value: float) -> bool:
        return value > 0


def _letters(text: str) -> int:
    return sum(map(str.isalnum, text))


class _OfText(ThresholdFilter):
    """A filter with one number for each transcript that has letters."""

    def measure(self, clips: Sequence[Clip]) -> list[float | None]:
        return [self.of(clip) if _letters(clip.text) else None for clip in clips]

    @abstractmethod
    def of(self, clip: Clip) -> float | None:
        """The number of a clip; None if the filter does not apply."""


@dataclass
class Words(_OfText):
    """Number of words. The paper keeps transcripts of up to 200 (appendix A, which names no unit)."""

    name: ClassVar[str] = "words"
    unit: ClassVar[str] = "words"
    min_words: int = number(1, least=0)
    max_words: int = number(200, least=1)

    def of(self, clip: Clip) -> int:
        return len(words_of(clip.text))

    def keeps(self, value: float) -> bool:
        return self.min_words <= value <= self.max_words


@dataclass
class Characters(_OfText):
    """Number of characters, spaces and marks included. 1,200 is 40 a second over 30 s."""

    name: ClassVar[str] = "characters"
    unit: ClassVar[str] = "characters"
    min_characters: int = number(1, least=0)
    max_characters: int = number(1200, least=1)

    def of(self, clip: Clip) -> int:
        return num_characters(clip.text)

    def keeps(self, value: float) -> bool:
        return self.min_characters <= value <= self.max_characters


@dataclass
class FramesPerCharacter(_OfText):
    """Log-mel frames of 10 ms for each character: a transcript much shorter than its recording lacks words.

    The paper keeps up to 100 frames for each unit of the text (appendix A): 1 s a character.
    """

    name: ClassVar[str] = "frames_per_character"
    unit: ClassVar[str] = "frames of 10 ms a character"
    max_frames: float = number(100, least=1)

    def of(self, clip: Clip) -> float:
        return FRAMES_A_SECOND * clip.seconds / num_characters(clip.text)

    def keeps(self, value: float) -> bool:
        return value <= self.max_frames


@dataclass
class CharactersPerSecond(_OfText):
    """Characters for each second: a rate that nobody speaks shows a transcript of another recording.

    By default 1 to 30. English at a usual pace has about 15; scripts whose characters are syllables or words about 5.
    """

    name: ClassVar[str] = "characters_per_second"
    unit: ClassVar[str] = "characters a second"
    min_rate: float = number(1, least=0)
    max_rate: float = number(30, least=0)

    def of(self, clip: Clip) -> float | None:
        return num_characters(clip.text) / clip.seconds if clip.seconds > 0 else None

    def keeps(self, value: float) -> bool:
        return self.min_rate <= value <= self.max_rate


@dataclass
class RepeatedNgrams(_OfText):
    """Share of the n-grams of words that occurred before in the transcript, as in the loops of a recogniser.

    Args:
        words (`int`): words of an n-gram. Shorter transcripts have the value 0.
        max_share (`float`): "thank you" ten times has 0.88.
    """

    name: ClassVar[str] = "repeated_ngrams"
    unit: ClassVar[str] = "share of n-grams"
    words: int = number(4, least=1)
    max_share: float = number(0.3, least=0, most=1)

    def of(self, clip: Clip) -> float:
        words = words_of(clip.text)
        ngrams = list(zip(*(words[start:] for start in range(self.words)), strict=False))
        return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0

    def keeps(self, value: float) -> bool:
        return value <= self.max_share


@dataclass
class LongWords(_OfText):
    """Characters of the longest word: a web address, words without spaces between them, or noise."""

    name: ClassVar[str] = "long_words"
    unit: ClassVar[str] = "characters"
    max_characters: int = number(40, least=1)

    def of(self, clip: Clip) -> int:
        return max(map(len, words_of(clip.text)), default=0)

    def keeps(self, value: float) -> bool:
        return value <= self.max_characters


@dataclass
class FrequentWord(_OfText):
    """Share of the words that are the most frequent one.

    Args: min_words (`int`): the filter does not apply to shorter transcripts ("no, no, no" is speech).
    """

    name: ClassVar[str] = "frequent_word"
    unit: ClassVar[str] = "share of words"
    max_share: float = number(0.4, least=0, most=1)
    min_words: int = number(8, least=1)

    def of(self, clip: Clip) -> float | None:
        words = words_of(clip.text)
        return max(Counter(words).values()) / len(words) if len(words) >= max(self.min_words, 1) else None

    def keeps(self, value: float) -> bool:
        return value <= self.max_share


TEXT_FILTERS = (
    EmptyText,
    Words,
    Characters,
    FramesPerCharacter,
    CharactersPerSecond,
    RepeatedNgrams,
    LongWords,
    FrequentWord,
)

__all__ = [*(each.__name__ for each in TEXT_FILTERS), "TEXT_FILTERS", "num_characters", "words_of"]
