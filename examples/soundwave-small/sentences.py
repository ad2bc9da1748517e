"""Texts to speak: sentences of the `fortunes` collections, random words for the vocabulary, telephone prompts.

Everything here is a function of its inputs and a seed. Texts are written as they are spoken: numbers and symbols in
words, with case and punctuation where the source has them.
"""

import json
import random
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from num2words import num2words


# Left out: program text, drawings, chat logs, other languages, and collections with many coarse or dated jokes.
SKIPPED_COLLECTIONS = {
    "ascii-art", "perl", "knghtbrd", "translate-me", "ethnic", "men-women", "drugs", "zippy", "debian", "pratchett",
}  # fmt: skip
VERSE_COLLECTIONS = {"songs-poems", "tao"}  # a line is a sentence
LEAK_WORDS = 4  # a text of so many words that stands in a validation text is a leak; single common words are none


@cache
def text_normalizer():
    """Whisper's English normaliser (lower case, numbers in digits, no punctuation), without its spelling table."""
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    return EnglishTextNormalizer({})


def normalized(text: str) -> str:
    """The form in which two texts count as the same."""
    return text_normalizer()(text).strip()


# ---- nothing of the validation sets ----


spoken_key = cache(normalized)  # the same text is looked at several times, and the normaliser is slow


class HeldOut:
    """Texts that nothing spoken may repeat: equal, or a run of `LEAK_WORDS` or more words that is one whole text."""

    def __init__(self, texts: Iterable[str]):
        """Args: texts: in normalised form (`normalized`)."""
        self.texts = {text for text in texts if text}
        self.long = sorted(text for text in self.texts if len(text.split()) >= LEAK_WORDS)
        self.by_start: dict[str, list[str]] = {}
        for text in self.long:
            self.by_start.setdefault(" ".join(text.split()[:LEAK_WORDS]), []).append(text)
        self.joined = "\n".join(f" {text} " for text in self.long)

    def repeats(self, text: str) -> bool:
        """Whether a text is a held-out one, holds a whole one of four words or more, or stands in one."""
        key = spoken_key(text)
        if key in self.texts:
            return True
        words = key.split()
        if len(words) >= LEAK_WORDS and f" {key} " in self.joined:
            return True
        starts = (" ".join(words[i : i + LEAK_WORDS]) for i in range(len(words) - LEAK_WORDS + 1))
        return any(f" {whole} " in f" {key} " for start in starts for whole in self.by_start.get(start, ()))


# ---- numbers in words ----


def number_words(number: int) -> str:
    """A whole number in American English: 117 -> one hundred seventeen."""
    return num2words(number).replace(" and ", " ").replace(",", "")


def ordinal_words(number: int) -> str:
    """21 -> twenty-first."""
    return num2words(number, to="ordinal").replace(" and ", " ").replace(",", "")


def year_words(year: int) -> str:
    """1984 -> nineteen eighty-four; 1905 -> nineteen oh five; 2007 -> two thousand seven."""
    return num2words(year, to="year").replace(" and ", " ").replace("oh-", "oh ")


UNITS = [number_words(number) for number in range(20)]
TENS = [number_words(number) for number in range(0, 100, 10)]


def spell_numbers(text: str) -> str:
    """Numbers, money, percentages and ordinals in words."""
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text)
    text = re.sub(r"\$(\d{1,9})(?![\d.])(?!\s*(?:million|billion))", r"\1 dollars", text)
    text = re.sub(r"\$(\d{1,3}) (million|billion)", r"\1 \2 dollars", text)
    text = re.sub(r"(\d)\s?%", r"\1 percent", text)
    text = re.sub(r"\b(\d{1,2})(?:st|nd|rd|th)\b", lambda found: ordinal_words(int(found[1])), text)
    text = re.sub(r"\b(\d+)\.(\d{1,3})\b", lambda found: decimal_words(found[1], found[2]), text)
    text = re.sub(r"\b(1[1-9]\d\d)\b", lambda found: year_words(int(found[1])), text)
    return re.sub(r"\b(\d{1,9})\b", lambda found: number_words(int(found[1])), text)


def decimal_words(whole: str, decimals: str) -> str:
    return f"{number_words(int(whole))} point {' '.join(UNITS[int(digit)] for digit in decimals)}"


# ---- sentences of the fortunes collections ----

ABBREVIATIONS = r"\b(?:Mr|Mrs|Ms|Dr|St|Jr|Sr|Prof|Gen|Col|Lt|Capt|Rev|vs|etc|No|Vol|[A-Z])\."
SPOKEN_TITLES = {"Mr.": "Mister", "Mrs.": "Missus", "Dr.": "Doctor", "St.": "Saint", "Prof.": "Professor"}


def fortune_texts(folder: Path) -> Iterator[tuple[bool, str]]:
    """Entries of the collections in `folder` (`usr/share/games/fortunes`), without their attribution.

    Yields: (the entry is verse, text with its line breaks).
    """
    for path in sorted(folder.iterdir()):
        if path.suffix or path.name in SKIPPED_COLLECTIONS or not path.is_file():
            continue
        for entry in re.split(r"\n%\n", path.read_text(encoding="utf-8", errors="replace")):
            yield path.name in VERSE_COLLECTIONS, re.split(r"\n?\s*--\s?[A-Z\"(]", entry)[0]


def split_sentences(text: str) -> list[str]:
    """Sentences of running text; a full stop after an abbreviation or an initial ends none."""
    text = re.sub(r"-\n\s*(?=[a-z])", "-", text)
    text = re.sub(r"^\s*(?:[QA]:|\(\d+\)|\d+[.)]|\*)\s*", "", text, flags=re.MULTILINE)
    text = re.sub(r"\s+", " ", text).strip()
    text = re.sub(ABBREVIATIONS, lambda found: found[0][:-1] + "\0", text)
    pieces = re.split(r"(?<=[.!?])[\"')]*\s+(?=[\"'(]*[A-Z0-9])", text)
    return [piece.replace("\0", ".").strip() for piece in pieces]


def clean_sentence(text: str) -> str | None:
    """The sentence as it is spoken, or None where it cannot be read aloud (code, symbols, no ending)."""
    for title, spoken in SPOKEN_TITLES.items():
        text = text.replace(title, spoken)
    text = re.sub(r"\b([A-Z])\.(?=[A-Z ])", r"\1", text)  # initials: J. R. -> J R
    text = re.sub(r"[\"()\[\]_*]|(?<!\w)'|'(?!\w)", "", text)
    text = re.sub(r"\s*(?:--+|\.\.\.+|…)\s*", ", ", text).replace("&", " and ")
    text = re.sub(r"\s*,(?:\s*,)*(?=[.?!]|$)|(?<=[.?!]),", "", text)
    text = spell_numbers(re.sub(r"\s+", " ", text)).strip(" ,;:-")
    text = re.sub(r"([.?!])[.?!]+$", r"\1", text)
    text = " ".join(word.lower() if len(word) > 3 and word.isupper() else word for word in text.split())
    # "noun, n: meaning" is a dictionary entry, read aloud by nobody.
    if not re.fullmatch(r"[A-Za-z][A-Za-z',;: -]*[.?!]", text) or re.search(r", [a-z]{1,4}:", text):
        return None
    return text[0].upper() + text[1:]


def fortune_sentences(folder: Path, words: frozenset[str], shortest: int = 4, longest: int = 22) -> list[str]:
    """Sentences of `shortest` to `longest` words, each once, in the order of the collections.

    Args: words: known words in lower case; a sentence in which more than one word in eight is unknown is left out.
    """
    found, seen = [], set()
    for is_verse, entry in fortune_texts(folder):
        pieces = [f"{line.strip(' ,;:-')}." for line in entry.split("\n")] if is_verse else split_sentences(entry)
        for piece in pieces:
            sentence = clean_sentence(piece)
            if sentence is None or not shortest <= len(sentence.split()) <= longest:
                continue
            spoken = re.findall(r"[a-z']+", sentence.lower())
            unknown = sum(word not in words and word.removesuffix("'s") not in words for word in spoken)
            if 8 * unknown <= len(spoken) and normalized(sentence) not in seen:
                seen.add(normalized(sentence))
                found.append(sentence)
    return found


def dictionary_words(path: Path) -> dict[str, str]:
    """Words of a word list (one a line), keyed by their lower case; the lower-case spelling wins over a name."""
    words: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.isascii() and (line.lower() not in words or line.islower()):
            words[line.lower()] = line
    return words


# ---- telephone prompts ----

PROMPT_WORDS: dict[str, list[str]] = json.loads(
    (Path(__file__).parent / "phone_prompts.json").read_text(encoding="utf-8")
)
MONTHS, DAYS, PHONETIC = PROMPT_WORDS["months"], PROMPT_WORDS["days"], PROMPT_WORDS["phonetic"]


def keypad(rng: random.Random) -> str:
    return rng.choice([*UNITS[:10], *UNITS[1:10], "star", "pound", "the pound key", "the star key"])


def digit_string(rng: random.Random, length: int) -> str:
    return " ".join(rng.choice([*UNITS[:10], "oh"]) for _ in range(length))


def time_words(rng: random.Random) -> str:
    hour, minute = rng.randint(1, 12), rng.choice([0, 0, 15, 30, 45, *range(1, 60)])
    if minute == 0:
        middle = rng.choice([" o'clock", ""])
    else:
        middle = " " + ("oh " if minute < 10 else "") + number_words(minute)
    return UNITS[hour] + middle + rng.choice([" A.M.", " P.M.", "", " in the morning"])


def date_words(rng: random.Random) -> str:
    day = rng.choice([*(f"{name}, " for name in DAYS), "", ""])
    year = rng.choice(["", "", f", {year_words(rng.randint(1950, 2035))}"])
    return f"{day}{rng.choice(MONTHS)} {ordinal_words(rng.randint(1, 31))}{year}"


def spelled_word(rng: random.Random) -> str:
    if rng.random() < 0.5:
        return " ".join(rng.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZ") for _ in range(rng.randint(2, 6)))
    return " ".join(rng.choice(PHONETIC) for _ in range(rng.randint(2, 4)))


def money_words(rng: random.Random) -> str:
    cents = f" and {number_words(rng.randint(1, 99))} cents" if rng.random() < 0.5 else ""
    return f"{number_words(rng.randint(2, rng.choice([20, 100, 5000])))} dollars{cents}"


def press_prompt(rng: random.Random) -> str:
    """One to three options of a telephone menu, in either order of key and action."""
    style = rng.random() < 0.5
    options = []
    for action in rng.sample(PROMPT_WORDS["actions"], rng.choice([1, 1, 1, 2, 2, 3])):
        key = keypad(rng)
        options.append(f"press {key} to {action}" if style else f"to {action}, press {key}")
    return rng.choice(["", "", "please "] if style else [""]) + ", ".join(options) + "."


def menu_prompt(rng: random.Random) -> str:
    """A whole menu, in which "press" is said once: press one to ..., two or three to ..., or nine to ..."""
    keys = [number_words(key) for key in sorted(rng.sample(range(1, 10), rng.randint(3, 9)))]
    options = []
    for action in rng.sample(PROMPT_WORDS["actions"], len(keys)):
        if keys:
            second = f" or {keys.pop(1)}" if len(keys) > 1 and rng.random() < 0.15 else ""
            options.append(f"{keys.pop(0)}{second} to {action}")
    opening = rng.choice(["press", "please press", "you may press", "at any time, press"])
    return f"{opening} {', '.join(options[:-1])}{rng.choice([', or ', ', ', ', and '])}{options[-1]}."


def enter_prompt(rng: random.Random) -> str:
    endings = [", followed by the pound key", " using your keypad", ", then press pound", " and then press star"]
    ending = rng.choice(["", "", *endings])
    verb, thing = (
        rng.choice(["please enter", "enter", "please say", "please dial"]),
        rng.choice(PROMPT_WORDS["things"]),
    )
    return f"{verb} {thing}{ending}."


def message_prompt(rng: random.Random) -> str:
    number = rng.choice(["no", "one", *(number_words(count) for count in range(2, 60))])
    noun = "message" if number == "one" else "messages"
    return f"you have {number} {rng.choice(['new', 'old', 'urgent', 'saved', 'unread'])} {noun}."


def state_prompt(rng: random.Random) -> str:
    opening = rng.choice(["", "", "I'm sorry, ", "sorry, ", "we are sorry, "])
    verb = rng.choice(["is", "is now", "is currently", "is still"])
    subject, state = rng.choice(PROMPT_WORDS["subjects"]), rng.choice(PROMPT_WORDS["states"])
    return f"{opening}{subject} {verb} {state}. {rng.choice(['', *PROMPT_WORDS['closings']])}".strip()


def clock_prompt(rng: random.Random) -> str:
    frames = ["the time is {0}.", "it is {0}.", "message received {1} at {0}.", "today is {1}.", "{1}.", "{0}."]
    frame = rng.choice([*frames, "your appointment is on {1} at {0}."])
    return frame.format(time_words(rng), date_words(rng))


def number_prompt(rng: random.Random) -> str:
    frames = [
        f"you entered {digit_string(rng, rng.randint(3, 8))}.",
        f"{digit_string(rng, rng.randint(2, 10))}.",
        f"extension {digit_string(rng, rng.randint(3, 5))}.",
        f"the number is {digit_string(rng, rng.randint(5, 10))}.",
        f"{number_words(rng.randint(10, rng.choice([100, 1000, 100_000])))}.",
        f"{ordinal_words(rng.randint(1, 100))} {rng.choice(['caller', 'message', 'floor', 'call', 'entry'])}.",
        f"there are {number_words(rng.randint(2, 99))} callers in the queue.",
        f"the estimated waiting time is {number_words(rng.randint(2, 59))} minutes.",
        f"your balance is {money_words(rng)}.",
        f"{money_words(rng)}.",
        f"{spelled_word(rng)}.",
    ]
    return rng.choice(frames)


def short_prompt(rng: random.Random) -> str:
    """A single word or a short phrase, without punctuation."""
    kind = rng.random()
    if kind < 0.55:
        return rng.choice(PROMPT_WORDS["short"])
    if kind < 0.75:
        return rng.choice([*MONTHS, *DAYS, *PHONETIC])
    number = rng.choice([rng.randint(0, 20), rng.choice(range(30, 100, 10)), rng.randint(21, 99)])
    return number_words(number) if rng.random() < 0.5 else ordinal_words(max(number, 1))


PROMPTS = (
    (press_prompt, 7),
    (menu_prompt, 2),
    (enter_prompt, 3),
    (message_prompt, 1),
    (state_prompt, 4),
    (clock_prompt, 4),
    (number_prompt, 6),
    (short_prompt, 6),
)


def phone_prompts(count: int, rng: random.Random) -> list[str]:
    """`count` different telephone prompts; sentences begin with a capital, single words stay as they are."""
    kinds, weights = zip(*PROMPTS, strict=True)
    found: dict[str, str] = {}
    for _ in range(20 * count):  # the grammar makes far more than `count`; a bound keeps a bad count from looping
        text = rng.choices(kinds, weights)[0](rng)
        text = text.replace("M..", "M.")  # a sentence that ends in A.M. or P.M.
        if text.endswith((".", "?")):
            text = re.sub(r"(^|\. )([a-z])", lambda start: start[1] + start[2].upper(), text)
        found.setdefault(normalized(text), text)
        if len(found) == count:
            return list(found.values())
    raise ValueError(
        f"The prompt grammar made {len(found)} different prompts and {count} were asked for. Ask for fewer."
    )


def without(texts: Iterable[str], held_out: frozenset[str]) -> list[str]:
    """Texts that repeat none of `held_out` (normalised texts of the validation sets), see `HeldOut`."""
    kept_apart = HeldOut(held_out)
    return [text for text in texts if spoken_key(text) and not kept_apart.repeats(text)]
