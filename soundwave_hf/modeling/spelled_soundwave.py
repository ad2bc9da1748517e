"""Numbers as English words, for a CTC head that learned `lower_spelled`: the LLM writes "42", the head "forty two".

An unfinished answer may end inside a number: "4" may become "4", "42", "4th" or "4,000". So it stands for all texts
that these numbers begin with.
"""

import re
from functools import lru_cache


# As in processing/spelling_soundwave.py, which makes the targets.
NUMBER = re.compile(r"(?<!\w)(\d{1,3}(?:,\d{3})+|\d+)(?:(st|nd|rd|th)\b|\.(\d+))?(?!\w)")
# A number at the end of an answer that more characters may change. Decimals may only grow, so they are left out.
UNFINISHED = re.compile(r"(?<!\w)(?<!\d\.)(\d{1,3}(?:,\d{3})*|\d+)(,\d{0,2}|[snrt])?$")
MOST_DIGITS = 300  # of a number that has words; a longer one is spelled digit by digit
LIKELY_DIGITS = 9  # an unfinished number may grow to so many


def spell_numbers(text: str) -> str:
    """A text with its numbers as English words: `"Dial 911."` -> `"Dial nine hundred and eleven."`.

    Raises: `ImportError` if the library `num2words` is missing.
    """
    return NUMBER.sub(_spell_number, text)


def _spell_number(found: re.Match) -> str:
    """Words of a whole number, an ordinal or a decimal. A number with a leading zero is spelled digit by digit."""
    digits, ordinal, decimals = found[1].replace(",", ""), found[2], found[3]
    if len(digits) > MOST_DIGITS or (digits.startswith("0") and decimals is None and not ordinal):
        whole = " ".join(in_words(int(digit)) for digit in digits)
    else:
        whole = in_words(int(digits), is_ordinal=bool(ordinal))
    return whole if decimals is None else " ".join([whole, "point", *(in_words(int(digit)) for digit in decimals)])


def in_words(number: int, is_ordinal: bool = False) -> str:
    """Raises: `ImportError` if the library `num2words` is missing."""
    try:
        from num2words import num2words
    except ImportError as error:
        raise ImportError(
            "`ctc_text` is 'lower_spelled', which needs the library num2words: `pip install num2words`, or leave out "
            "the options that use the CTC head (`ctc_weight=0`)."
        ) from error
    return num2words(number, to="ordinal" if is_ordinal else "cardinal")


def unfinished_number(answer: str) -> tuple[str, set[str], set[str]] | None:
    """What an answer stands for that ends inside a number; None if it does not.

    Args: answer: lower case.

    Returns: the text before the number; texts that may continue; texts that are complete, followed by a comma.
    """
    found = UNFINISHED.search(answer)
    if found is None:
        return None
    before, digits, rest = answer[: found.start()], found[1].replace(",", ""), found[2] or ""
    if rest == ",":
        return before, {_digits_in_words(digits) + " ", *_grown(digits, (3, 6, 9))}, {_digits_in_words(digits)}
    if rest.startswith(","):  # a group of three, or another number
        joined, missing = digits + rest[1:], 4 - len(rest)
        other = {f"{_digits_in_words(digits)} {text}" for text in _grown(rest[1:])}
        return before, other | _grown(joined, (missing, missing + 3, missing + 6)), set()
    if rest:
        return before, {_digits_in_words(digits, is_ordinal=True), digits + rest}, set()
    if "," in found[1]:
        return before, _grown(digits, (0, 3, 6)), set()
    return before, _grown(digits) | {digits}, set()  # the digits themselves: "1990s" is no number


def _digits_in_words(digits: str, is_ordinal: bool = False) -> str:
    return spell_numbers(digits + ("th" if is_ordinal else ""))


@lru_cache(maxsize=1024)
def _grown(digits: str, lengths: tuple[int, ...] | None = None) -> frozenset[str]:
    """Beginnings of the words of all numbers that begin with some digits.

    Args: lengths: how many digits may follow; by default 0 to 2, and more up to `LIKELY_DIGITS` in all.
    """
    own = _digits_in_words(digits)
    if digits.startswith("0"):  # such a number is spelled digit by digit
        return frozenset({own})
    if len(digits) > MOST_DIGITS - 3:
        return frozenset({own} if lengths is None else ())
    if lengths is None:
        lengths = range(max(3, LIKELY_DIGITS - len(digits) + 1))
    return frozenset(text for length in lengths for text in _beginnings(digits, length))


def _beginnings(digits: str, length: int) -> set[str]:
    """Beginnings of the words of all numbers of some digits and `length` more."""
    thousands, missing = divmod(length, 3)
    head = int(digits) * 10**missing
    # One more digit decides between "twenty", "thirteen" and so on. Two more digits come after "hundred".
    numbers = range(head, head + 10) if missing == 1 else [head]
    if not thousands:
        return {in_words(number, is_ordinal) for number in numbers for is_ordinal in (False, True)}
    words = [in_words(number * 1000**thousands) for number in numbers]
    # Behind the last word, the name of the thousands, others may come first: "forty [five] thousand".
    return {text.rsplit(" ", 1)[0] for text in words}


__all__ = ["spell_numbers", "unfinished_number"]
