"""Words of texts with and without spaces. Chinese, Japanese, Thai, Lao, Khmer and Burmese write none between words."""

import re
import unicodedata
from collections.abc import Iterable


# Thai, Lao, Burmese, Khmer, kana and Chinese characters, their punctuation, and full-width forms. Hangul has spaces.
UNSPACED = (
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3001-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\uff01-\uff9f\U00020000-\U0003ffff]"
)
MARKS = "".join(chr(code) for code in range(0xE00, 0x3100) if unicodedata.category(chr(code))[0] == "M")
# A character with its vowel signs and tone marks. U+1039 and U+17D2 put the next consonant below it.
LETTER = rf"{UNSPACED}(?:[\u1039\u17d2]{UNSPACED}|[{MARKS}])*"
BEGINS = re.compile(UNSPACED)
ENDS = re.compile(rf"{LETTER}$")
PARTS = re.compile(rf"[(\[{{（「『【〈《〔［｛“‘]*{LETTER}|(?:(?!{UNSPACED})\S)+")


def join_texts(texts: Iterable[str]) -> str:
    """Join texts with a space between two of them, except between characters of scripts without spaces.

    Example:

    ```python
    >>> join_texts(["Good", "morning."]), join_texts(["早上", "好。"])
    ('Good morning.', '早上好。')
    ```
    """
    joined, before = [], None
    for text in filter(None, texts):
        if before is not None and not (ENDS.search(before[-8:]) and BEGINS.match(text)):
            joined.append(" ")
        joined.append(text)
        before = text
    return "".join(joined)


def word_spans(text: str) -> list[list[tuple[int, int]]]:
    """Begin and end of the words of a text. Each inner list is a part of the text without spaces.

    A part is one word, or several if it has characters of a script without spaces: each of these is a word, as in
    Whisper's word times. Punctuation joins the word before it, or else the one after it.
    """
    return [
        [(run.start() + begin, run.start() + end) for begin, end in _parts(run[0])]
        for run in re.finditer(r"\S+", text)
    ]


def _parts(run: str) -> list[tuple[int, int]]:
    spans = []
    for part in PARTS.finditer(run):
        begin, end = part.span()
        if spans and not (_has_letter(part[0]) and _has_letter(run[slice(*spans[-1])])):
            begin = spans.pop()[0]
        spans.append((begin, end))
    return spans


def _has_letter(text: str) -> bool:
    return any(map(str.isalnum, text))


__all__ = ["join_texts", "word_spans"]
