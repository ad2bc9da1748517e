"""The forms of CTC targets, for training, data cleaning and scoring."""

import re
from collections.abc import Callable


NUMBER = re.compile(r"(?<!\w)(\d{1,3}(?:,\d{3})+|\d+)(?:(st|nd|rd|th)\b|\.(\d+))?(?!\w)")
MOST_DIGITS = 300  # of a number that has words; a longer one is spelled digit by digit


def as_written(text: str) -> str:
    """The text with case and punctuation, a single space before each word: `"Hi,  you."` -> `" Hi, you."`."""
    return "".join(f" {word}" for word in text.split())


def lower(text: str) -> str:
    """Lower case, no punctuation except apostrophes, a space before each word: `"Don't! e-mail"` -> `" don't e mail"`.

    So each word has a single spelling. The LLM adds case and punctuation.
    """
    words = re.findall(r"[^\W_]+(?:'[^\W_]+)*", text.lower().replace("’", "'"))
    return "".join(f" {word}" for word in words)


def lower_spelled(text: str) -> str:
    """Like `lower`, with numbers as English words: `"Dial 911."` -> `" dial nine hundred and eleven"`.

    Raises: `ImportError` if the library `num2words` is missing.
    """
    return lower(NUMBER.sub(_spell_number, text))


def _spell_number(found: re.Match) -> str:
    """Words of a whole number, an ordinal or a decimal. A number with a leading zero is spelled digit by digit."""
    try:
        from num2words import num2words
    except ImportError as error:
        raise ImportError(
            "`ctc_text` is 'lower_spelled', which needs the library num2words: `pip install num2words`, or give "
            "'lower'."
        ) from error
    digits, ordinal, decimals = found[1].replace(",", ""), found[2], found[3]
    if len(digits) > MOST_DIGITS or (digits.startswith("0") and decimals is None and not ordinal):
        whole = " ".join(num2words(int(digit)) for digit in digits)
    else:
        whole = num2words(int(digits), to="ordinal" if ordinal else "cardinal")
    return whole if decimals is None else " ".join([whole, "point", *(num2words(int(digit)) for digit in decimals)])


CTC_TEXTS: dict[str, Callable[[str], str]] = {"as_written": as_written, "lower": lower, "lower_spelled": lower_spelled}


def check_ctc_text(policy: str):
    """Raises: `ValueError` if `policy` is not one of `CTC_TEXTS`."""
    if policy not in CTC_TEXTS:
        raise ValueError(f"`ctc_text` is {policy!r}; expected one of {', '.join(map(repr, CTC_TEXTS))}.")


def ctc_target(text: str, policy: str) -> str:
    """A transcript in one of the forms in `CTC_TEXTS`.

    Raises: `ValueError` for an unknown policy.
    """
    check_ctc_text(policy)
    return CTC_TEXTS[policy](text)


__all__ = ["CTC_TEXTS", "as_written", "check_ctc_text", "ctc_target", "lower", "lower_spelled"]
