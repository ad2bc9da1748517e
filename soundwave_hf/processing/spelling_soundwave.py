"""Numbers as words of a language, by the library num2words."""

import re
from decimal import Decimal
from functools import lru_cache

from .languages_soundwave import language_code


# These two as in modeling/spelled_soundwave.py, which compares answers with targets.
ENGLISH = re.compile(r"(?<!\w)(\d{1,3}(?:,\d{3})+|\d+)(?:(st|nd|rd|th)\b|\.(\d+))?(?!\w)")
MOST_DIGITS = 300  # of a number that has words; a longer one is spelled digit by digit
OTHER_KEYS = {"kk": "kz", "nn": "no"}  # our code -> that of num2words
# Languages that write "1,250.5"; the others write "1.250,5" or "1 250,5".
DECIMAL_POINT = {"am", "bn", "cy", "fa", "he", "ja", "kn", "ko", "te", "th"}
# Scripts where a number is joined to the word before or after it: "3個".
JOINED = {"ja", "ko", "th"}
# What makes a whole number an ordinal. The second group has the forms that end in "a" instead of "o".
ORDINALS = {
    "ca": (r"[rnt]|è", "a"),
    "es": (r"\.?(?:º|er)", r"\.?ª"),
    "fr": (r"er|e|ème|nd", r"re|ère|nde"),
    "it": ("º", "ª"),
    "nl": (r"e|ste|de", None),
    "pt": (r"\.?º", r"\.?ª"),
}
FEMININE = {"premier": "première", "second": "seconde"}
GERMAN_MONTHS = "Januar|Jänner|Februar|März|April|Mai|Juni|Juli|August|September|Oktober|November|Dezember"
# "am 3. Mai", "der 3. Mai": after some words the ordinal ends in "n".
GERMAN_DATE = re.compile(rf"(?<![\w.,])((?i:am|dem|den|vom|zum|beim|im)\s+)?(\d{{1,2}})\.(?=\s+(?:{GERMAN_MONTHS})\b)")
YEARS = {"da", "de", "nl", "no"}  # languages that say 1999 as "nineteen hundred ninety-nine"
WHOLE_DECIMALS = {"id", "it", "ja", "ru"}  # languages where num2words has no such word and is right all the same
CURRENCIES = {"€": "EUR", "$": "USD", "£": "GBP"}
# Languages where num2words says amounts rightly; in the others some are in another currency ("ar") or order ("kn").
AMOUNTS = {
    *("be", "ca", "cs", "de", "es", "fi", "fr", "fr_BE", "fr_CH", "it", "lt", "lv", "nl", "pl", "pt", "ru", "sk"),
    *("sr", "uk"),
}
# "5 Mio. €": such a word is said between the number and the currency.
MILLIONS = r"\s*(?:mio|mill|mil[hj]|mln|mrd|billi|bil[hj]|trill|tausend|duizend|thousand|mila?\b)"


def spell_numbers(text: str, language: str | None = None) -> str:
    """A text with its numbers as words: `"Dial 911."` -> `"Dial nine hundred and eleven."`.

    In all languages that num2words has: whole numbers, decimals, and a number with a leading zero digit by digit.
    English: "21st" too; a year is read as a number and a currency's sign stays, because joint decoding compares
    answers with these words. Other languages: ordinals where they are marked ("1er", "2ª", "2de", "3. Mai"); amounts
    of money ("2,50 €") in those of `AMOUNTS`, while in the others the sign stays; years from 1100 to 1999 where they
    are said in hundreds (German, Dutch, Danish, Norwegian). Words have the form that num2words gives, without
    agreement with the noun.

    Args: language: code, with or without a region ("pt-BR"), or English name; by default English.

    Raises: `ImportError` if the text has a number and the library `num2words` is missing; `ValueError` if it has a
        number and `num2words` has no words for it in this language.
    """
    if not any(map(str.isdecimal, text)):
        return text
    key = _key_of(language)
    if key.partition("_")[0] == "en":
        return ENGLISH.sub(lambda found: _english(found, key), text)
    if key == "de":
        text = GERMAN_DATE.sub(_german_date, text)
    return _pattern(key).sub(lambda found: _other(found, key), text)


def _english(found: re.Match, key: str) -> str:
    """Words of a whole number, an ordinal or a decimal. A number with a leading zero is spelled digit by digit."""
    digits, ordinal, decimals = found[1].replace(",", ""), found[2], found[3]
    if len(digits) > MOST_DIGITS or (digits.startswith("0") and decimals is None and not ordinal):
        whole = _each_digit(digits, key)
    else:
        whole = _words(int(digits), key, "ordinal" if ordinal else "cardinal")
    return whole if decimals is None else " ".join([whole, "point", _each_digit(decimals, key)])


def _each_digit(digits: str, key: str) -> str:
    space = "" if key in ("ja", "th") else " "
    return space.join(_words(int(digit), key) for digit in digits)


def _german_date(found: re.Match) -> str:
    return (found[1] or "") + _words(int(found[2]), "de", "ordinal") + ("n" if found[1] else "")


@lru_cache(maxsize=32)
def _pattern(key: str) -> re.Pattern:
    """Numbers of a language with decimals, a mark of an ordinal, and a sign of a currency before or after."""
    code = key.partition("_")[0]
    group, mark = (",", r"\.") if code in DECIMAL_POINT else (r"[.'’ \u00a0\u202f]", ",")
    before, after = (r"(?<![A-Za-z0-9_])", r"(?![A-Za-z0-9_])") if code in JOINED else (r"(?<!\w)", r"(?!\w)")
    masculine, feminine = ORDINALS.get(code, (None, None))
    endings = "".join(
        f"|(?P<{name}>{ending})" for name, ending in (("ordinal", masculine), ("feminine", feminine)) if ending
    )
    signs = "[" + "".join(CURRENCIES) + "]"
    return re.compile(
        rf"{before}(?:(?<![A-Za-z])(?P<sign>{signs})\s?)?(?P<whole>[1-9]\d{{0,2}}(?:{group}\d{{3}})+(?!\d)|\d+)"
        rf"(?:{mark}(?P<decimals>\d+){endings})?{after}(?:\s?(?P<unit>{signs}))?(?P<more>{MILLIONS})?",
        re.IGNORECASE,
    )


def _other(found: re.Match, key: str) -> str:
    """Words of what `_pattern` found. The sign of a currency stays where a word such as "Millionen" follows."""
    parts = found.groupdict()
    digits, decimals, more = re.sub(r"\D", "", parts["whole"]), parts["decimals"], parts["more"] or ""
    signs = parts["sign"], parts["unit"]
    currency = CURRENCIES.get(signs[0] or signs[1])
    if key in AMOUNTS and currency in _converters()[key].CURRENCY_FORMS and not all(signs) and not more:
        return _amount(digits, decimals, currency, key)
    words = _number(digits, decimals, parts.get("ordinal"), parts.get("feminine"), key, parts["whole"] == digits)
    return f"{signs[0] or ''}{words}{signs[1] or ''}{more}"


def _number(digits: str, decimals: str | None, ordinal, feminine, key: str, is_plain: bool) -> str:
    if decimals is not None:
        return _decimal(digits, decimals, key)
    if ordinal or feminine:
        words = _words(int(digits), key, "ordinal")
        return " ".join(FEMININE.get(word, re.sub("o$", "a", word)) for word in words.split()) if feminine else words
    if len(digits) > MOST_DIGITS or (int(digits[0]) == 0 and len(digits) > 1):
        return _each_digit(digits, key)
    is_year = is_plain and key.partition("_")[0] in YEARS and 1100 <= int(digits) <= 1999
    return _words(int(digits), key, "year" if is_year else "cardinal")


def _decimal(digits: str, decimals: str, key: str) -> str:
    """Words of a decimal: the digits one by one where num2words has one word for the mark."""
    mark = getattr(_converters()[key], "pointword", None)
    if isinstance(mark, str) and any(map(str.isalpha, mark)):
        return " ".join([_words(int(digits), key), mark.strip(), _each_digit(decimals, key)])
    if key not in WHOLE_DECIMALS:  # some of the others read 3.05 as 3.5
        raise _no_words(f"{digits}.{decimals}", key)
    return _words(float(f"{int(digits)}.{decimals}"), key)


def _amount(digits: str, decimals: str | None, currency: str, key: str) -> str:
    """Words of an amount of money. The part of a whole amount that says "and no cents" is left out."""
    cents = (decimals or "").rstrip("0")
    if len(cents) > 2:
        raise _no_words(f"{digits}.{decimals} {currency}", key)
    value = Decimal(f"{int(digits)}.{cents or 0}")
    if cents:
        return _words(value, key, "currency", currency=currency)
    return _words(value, key, "currency", currency=currency, separator=" | ").partition(" | ")[0]


def _words(number, key: str, to: str = "cardinal", **options) -> str:
    """Raises: `ValueError` if num2words has no words for the number. Its languages fail in many ways."""
    try:
        words = _library().num2words(number, lang=key, to=to, **options)
    except (ArithmeticError, AttributeError, LookupError, NotImplementedError, TypeError, ValueError) as error:
        raise _no_words(number, key, to) from error
    if not words or not words.strip():
        raise _no_words(number, key, to)
    return words


def _no_words(number, key: str, to: str = "number") -> ValueError:
    return ValueError(
        f"`ctc_text` is 'lower_spelled', and num2words has no words for {number} ({to}) in the language {key!r}: "
        "write it out in the transcript, or give 'lower'."
    )


def _key_of(language: str | None) -> str:
    """The key of num2words for a language. Raises: `ValueError` if it lacks the language, naming those it has."""
    if language is None:
        return "en"
    known = _converters()
    written = language.strip().replace("-", "_") if isinstance(language, str) else language
    main, _, region = written.partition("_") if isinstance(written, str) else ("", "", "")
    for key in (f"{main.lower()}_{region.upper()}", main.lower()):
        if key in known:
            return key
    code = language_code(language) or "en"
    key = OTHER_KEYS.get(code, code)
    if key not in known:
        raise ValueError(
            f"`ctc_text` is 'lower_spelled', and num2words has no number words for {language!r}; it has "
            f"{', '.join(sorted(known))}. Give 'lower', or write numbers as words."
        )
    return key


def _converters() -> dict:
    return _library().CONVERTER_CLASSES


def _library():
    # Inside `try`, because transformers refuses code from the Hub if a package is missing that it imports elsewhere.
    try:
        import num2words
    except ImportError as error:
        raise ImportError(
            "`ctc_text` is 'lower_spelled', which needs the library num2words: `pip install num2words`, or give "
            "'lower'."
        ) from error
    return num2words


__all__ = ["spell_numbers"]
