"""Convert languages in any notation ("en-US", "zh_Hans", "French", "auto") to English names."""

import difflib
import re

from transformers.models.whisper.tokenization_whisper import LANGUAGES, TO_LANGUAGE_CODE


LANGUAGE_NAMES = {**LANGUAGES, "fil": "filipino"}  # Whisper's languages, and one of Qwen3-ASR that Whisper lacks
# Other codes of languages in this table: old codes, spoken forms of Norwegian and Chinese in FLEURS and Common Voice,
# and Javanese, for which Whisper uses "jw".
OTHER_CODES = {"iw": "he", "in": "id", "ji": "yi", "jv": "jw", "nb": "no", "cmn": "zh", "mo": "ro", "pes": "fa"}
UNNAMED = ("auto", "none", "und")  # no language is given
# BCP 47: language, script, region, variants; "zh-yue" is an older way to write "yue".
TAG = re.compile(r"([a-z]{2,3})(-yue)?(-[a-z]{4})?(-([a-z]{2}|\d{3}))?(-([a-z0-9]{5,8}|\d[a-z0-9]{3}))*")


def language_name(language: str | None) -> str | None:
    """The English name of a language, in lower case; `None` if no language is given.

    Args: language: code with or without script and region ("en", "pt-BR", "zh_Hans", "en_US.UTF-8"), English name or
        one of Whisper's other names ("Castilian"), in any case; "auto" or `None` for no language.
    Raises: `ValueError` for a language that Whisper does not support; it suggests similar names.
    """
    if language is None:
        return None
    if not isinstance(language, str):
        raise TypeError(f"`language` is {language!r}; expected a code such as 'en', an English name, or `None`.")
    written = re.sub(r"\s*\(.*\)$|[.@].*$", "", language.strip().strip("<|>").lower())  # "Chinese (Mainland)"
    if written in UNNAMED:
        return None
    words = re.sub(r"[-_\s]+", " ", written)
    if words in TO_LANGUAGE_CODE or words in LANGUAGE_NAMES.values():
        return LANGUAGE_NAMES[TO_LANGUAGE_CODE.get(words, "fil")]
    tag = TAG.fullmatch(written.replace("_", "-"))
    code = tag and ("yue" if tag[2] else OTHER_CODES.get(tag[1], tag[1]))
    if code not in LANGUAGE_NAMES:
        raise unknown_language(language, words)
    return LANGUAGE_NAMES[code]


def language_names(language: str | list[str | None] | None) -> str | list[str | None] | None:
    """[`language_name`] of one language or of each in a list."""
    if language is None or isinstance(language, str):
        return language_name(language)
    return [language_name(one) for one in language]


def language_code(language: str | None) -> str | None:
    """Whisper's code of a language ("jw" for Javanese) or "fil" for Filipino; `None` if no language is given.

    Raises: as [`language_name`].
    """
    name = language_name(language)
    return "fil" if name == "filipino" else TO_LANGUAGE_CODE.get(name)


def unknown_language(language: str, words: str) -> ValueError:
    known = [*TO_LANGUAGE_CODE, *LANGUAGE_NAMES.values(), *LANGUAGE_NAMES]
    near = list(dict.fromkeys(difflib.get_close_matches(words, known, n=3)))
    hint = f"Did you mean {' or '.join(map(repr, near))}? " if near else ""
    return ValueError(
        f"Unsupported language: {language!r}. {hint}Use a code ('en', 'pt-BR') or an English name ('French') of a "
        f"language that Whisper supports: {', '.join(sorted(LANGUAGE_NAMES))}."
    )
