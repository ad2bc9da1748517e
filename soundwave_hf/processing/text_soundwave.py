"""Forms of a transcript, for CTC targets in training, for data cleaning and for scoring: `normalize_text`."""

import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache

from .languages_soundwave import TO_LANGUAGE_CODE, language_name
from .spelling_soundwave import spell_numbers


# Thai, Lao, Burmese, Khmer, kana and Chinese characters, their punctuation, and full-width forms. Hangul has spaces.
UNSPACED = (
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3001-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\uff01-\uff9f\U00020000-\U0003ffff]"
)
SPACE_INSIDE = re.compile(rf"(?<={UNSPACED})\s+(?={UNSPACED})")
SPACELESS_LANGUAGES = frozenset({"bo", "ja", "km", "lo", "my", "th", "yue", "zh"})
DOTTED_I = {"az", "tr"}  # languages where "I" is the capital of "ı" and "İ" that of "i"
# These two, and `word_pattern`, as in modeling/ctc_text_soundwave.py, which compares answers with targets.
JOINERS = "\u200c\u200d"  # inside words of Persian and of Indian languages
UNSEEN = dict.fromkeys(map(ord, "\u00ad\u2060\ufeff"))  # soft hyphen, word joiner, byte order mark


def as_written(text: str, language: str | None = None) -> str:
    """The text with case and punctuation, a single space before each word: `"Hi,  you."` -> `" Hi, you."`.

    In Unicode normal form C, as in the other forms: "é" is one character. `language` changes nothing.
    """
    return "".join(f" {word}" for word in unicodedata.normalize("NFC", text).split())


def lower(text: str, language: str | None = None) -> str:
    """Lower case, no punctuation except apostrophes, a space before each word: `"Don't! e-mail"` -> `" don't e mail"`.

    So each word has a single spelling. The LLM adds case and punctuation. Combining marks, such as the vowels of Hindi
    and Thai, are parts of words. In a language without spaces between words, spaces between its characters are
    dropped: `"你好 世界"` -> `" 你好世界"` with the language "zh".
    """
    code = known_code(language)
    text = unicodedata.normalize("NFC", text).translate(UNSEEN).replace("’", "'")
    if code in DOTTED_I:
        text = text.replace("I", "ı").replace("İ", "i")
    words = word_pattern().findall(text.lower())
    if code in SPACELESS_LANGUAGES:
        words = SPACE_INSIDE.sub("", " ".join(words)).split()
    return "".join(f" {word}" for word in words)


def lower_spelled(text: str, language: str | None = None) -> str:
    """Like `lower`, with numbers as words of the language, by default English: `"Dial 911."` -> `" dial nine hundred
    and eleven"`. See `spell_numbers`.

    Raises: `ImportError` if the text has a number and the library `num2words` is missing; `ValueError` if it has a
        number and `num2words` has no words for it in this language.
    """
    return lower(spell_numbers(text, language), language)


@lru_cache(maxsize=1)
def word_pattern() -> re.Pattern:
    """Letters, digits and their combining marks, with apostrophes inside."""
    # Python's `\w` leaves combining marks out. None is below U+0300 or, except variation selectors, above U+1FFFF.
    marks = "".join(chr(code) for code in range(0x300, 0x20000) if unicodedata.category(chr(code))[0] == "M")
    letter = rf"[^\W_][{marks}{JOINERS}]*"
    return re.compile(rf"(?:{letter})+(?:'(?:{letter})+)*")


def known_code(language: str | None) -> str | None:
    """`"German"`, `"de"` or `"de-AT"` -> `"de"`; None without a language and for one that Whisper does not know."""
    try:
        name = language_name(language)
    except (TypeError, ValueError):
        return None
    return TO_LANGUAGE_CODE.get(name)


CTC_TEXTS: dict[str, Callable[..., str]] = {"as_written": as_written, "lower": lower, "lower_spelled": lower_spelled}


def check_ctc_text(policy: str):
    """Raises: `ValueError` if `policy` is not one of `CTC_TEXTS`."""
    if policy not in CTC_TEXTS:
        raise ValueError(f"`ctc_text` is {policy!r}; expected one of {', '.join(map(repr, CTC_TEXTS))}.")


def normalize_text(text: str, policy: str, language: str | None = None) -> str:
    """A transcript in one of the forms in `CTC_TEXTS`. Training targets, cleaning and scoring all use it.

    Args:
        policy: `"as_written"`, `"lower"` or `"lower_spelled"`.
        language: code or English name of the transcript's language, such as "de", "pt-BR" or "German". It decides the
            words of numbers, spaces in languages without spaces, and the lower case of a Turkish "I".

    Returns: the words with a space before each; "" for no words.

    Raises: `ValueError` for an unknown policy; `ImportError` and `ValueError` as `lower_spelled`.

    Example:

    ```python
    >>> normalize_text("Am 3. Mai: 2,5 Liter!", "lower_spelled", "de")
    ' am dritten mai zwei komma fünf liter'
    ```
    """
    check_ctc_text(policy)
    return CTC_TEXTS[policy](text, language)


ctc_target = normalize_text  # older name


__all__ = [
    "CTC_TEXTS",
    "SPACELESS_LANGUAGES",
    "as_written",
    "check_ctc_text",
    "ctc_target",
    "known_code",
    "lower",
    "lower_spelled",
    "normalize_text",
]
