"""Texts to speak for training: sentences under free licences, written as spoken, so that common words are even.

Sources (Debian packages): WordNet's usage examples (`wordnet-base`, WordNet licence), the World English Bible
(`sword-text-web`, public domain), GNOME's user help (`gnome-user-docs`, CC-BY-SA-3.0), the fortunes collections
(`fortunes`), two grammars of our own (telephone prompts, sentences with names), and sentences by hand with common
words that the others have seldom (`rare_words.txt`). The text LLM writes more of these.
"""

import heapq
import html
import json
import random
import re
import struct
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from build_data import validation_sentences
from debian_packages import debian_root
from human_speech import all_prompt_names, held_out_texts, unused_prompt_words
from name_sentences import name_sentences
from sentences import (
    HeldOut,
    clean_sentence,
    dictionary_words,
    fortune_sentences,
    normalized,
    phone_prompts,
    split_sentences,
    spoken_key,
    year_words,
)
from spoken_questions import DEMO_QUESTION

from soundwave_hf.atomic import atomic_file


PACKAGES = ("wordnet-base", "sword-text-web", "gnome-user-docs")
SHORTEST_WORDS, LONGEST_WORDS = 4, 22
RARE_WORDS = Path(__file__).parent / "rare_words.txt"  # one sentence a line
LONGEST_TEXT_WORDS = 50  # of telephone menus and paragraphs: 20 s of speech at most
COMMON_WORDS = 8_000  # most frequent words of general English that the texts are to cover
SELDOM = 2  # the text LLM writes sentences with words that fewer texts have
LINES = 7  # each common word stands in so many lines; `data.yaml` speaks each line three times
QUESTION_SHARE = 0.08  # of the texts: questions of the sources
GRAMMAR_SHARES = {"prompts": 0.06, "names": 0.05}  # numbers, dates, times, amounts, spelled letters; names
TEXT_COST_WORDS = 3  # what a sentence costs beside its words (pauses), when its gain is weighed


@dataclass(frozen=True)
class Text:
    """One text to be spoken."""

    text: str
    source: str  # wordnet, bible, help, fortunes, prompts, names or written


# ---- the sources ----


def text_packages() -> Path:
    """`debian_root()` with the packages of this file unpacked as well."""
    return debian_root(*PACKAGES)


def wordnet_examples(folder: Path) -> Iterator[str]:
    """Usage examples in `folder` (`usr/share/wordnet`): what stands in quotes in a gloss (after `|`)."""
    for path in sorted(folder.glob("data.*")):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            for example in re.findall(r'"([^"]+)"', line.partition(" | ")[2]):
                # A part of speech or a slip in the file: "; " alone stands between two quotes.
                if re.match(r"[A-Za-z\d$]", example):
                    yield example.strip(" ;,:-")


def bible_sentences(folder: Path) -> Iterator[str]:
    """Sentences of the Bible in `folder` (a SWORD zText module): verses joined, markup and notes removed.

    Block index (.bzs): offset, size, unpacked size, uint32 each; blocks (.bzz): zlib.
    """
    for part in ("ot", "nt"):
        index, packed = (folder / f"{part}.bzs").read_bytes(), (folder / f"{part}.bzz").read_bytes()
        for offset, size, _ in struct.iter_unpack("<III", index):
            text = zlib.decompress(packed[offset : offset + size]).decode("utf-8", errors="replace")
            text = re.sub(r"<(note|title)\b.*?</\1>", " ", text, flags=re.DOTALL)
            yield from split_sentences(plain(re.sub(r"<[^>]+>", " ", text)))


def help_sentences(folder: Path) -> Iterator[str]:
    """Sentences of the paragraphs in `folder` (`usr/share/help/C`, Mallard pages)."""
    for path in sorted(folder.rglob("*.page")):
        page = re.sub(r"<!--.*?-->", " ", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        for paragraph in re.findall(r"<p>(.*?)</p>", page, flags=re.DOTALL):
            if "<key" not in paragraph and "<cmd" not in paragraph:
                yield from split_sentences(plain(re.sub(r"<[^>]+>", "", paragraph)))


def plain(text: str) -> str:
    """Typographic quotes and dashes as typed ones; entities as characters; single spaces."""
    text = html.unescape(text)
    for theirs, ours in (("“", '"'), ("”", '"'), ("‘", "'"), ("’", "'"), ("—", " -- "), ("–", "-"), ("\xa0", " ")):
        text = text.replace(theirs, ours)
    return re.sub(r"\s+(?=[,.;:?!](?:\s|$))", "", re.sub(r"\s+", " ", text)).strip()


# ---- texts as they are spoken ----


def spell_out(text: str) -> str:
    """Clock times, cents, decades, years after 1999, fractions and initials with stops as they are read aloud."""
    from num2words import num2words

    def clock(found: re.Match) -> str:
        hour, minute = num2words(int(found[1])), int(found[2])
        if minute == 0:
            return f"{hour} o'clock"
        return f"{hour} {'oh ' if minute < 10 else ''}{num2words(minute)}"

    def decade(found: re.Match) -> str:
        words = year_words(int(found[1]))
        return words[:-1] + "ies" if words.endswith("y") else words + "s"

    def money(found: re.Match) -> str:
        cents = num2words(int(found[2]))
        return f"{num2words(int(found[1]))} dollars and {cents} cents"

    text = re.sub(r"\b(1?\d):([0-5]\d)\b", clock, text)
    text = re.sub(r"\$(\d{1,4})\.(\d\d)\b", money, text)
    text = re.sub(r"\b(1[1-9]\d0)'?s\b", decade, text)
    text = re.sub(r"\b(20[1-9]\d)\b", lambda found: num2words(int(found[1]), to="year"), text)
    for fraction, words in (("1/2", "a half"), ("1/4", "a quarter"), ("3/4", "three quarters")):
        text = re.sub(rf"(?<![\d/]){fraction}(?![\d/])", words, text)
    # Abbreviations without their stops: U.S. -> U S, p.m. -> P M
    text = re.sub(r"\b([ap])\.m\.", lambda found: f"{found[1].upper()} M", text)
    return re.sub(r"\b(?:[A-Z]\.){2,}", lambda found: " ".join(found[0].replace(".", "")), text)


def spoken_sentence(text: str, words: frozenset[str]) -> str | None:
    """The sentence as it is read aloud, or None: unreadable, too short or long, too many unknown words.

    Args: words: known words in lower case; one word in eight may be unknown.
    """
    text = spell_out(plain(text))
    if text and text[-1] not in ".?!":
        text = re.sub(r"\W+$", "", text) + "."
    sentence = clean_sentence(text)
    if sentence is None or not SHORTEST_WORDS <= len(sentence.split()) <= LONGEST_WORDS:
        return None
    spoken = re.findall(r"[a-z']+", sentence.lower())
    unknown = sum(word not in words and word.removesuffix("'s") not in words for word in spoken)
    return sentence if 8 * unknown <= len(spoken) else None


def source_texts(root: Path, grammars: dict[str, int], seed: int) -> Iterator[Text]:
    """Every usable text, each once.

    Args: root: as `text_packages` gives it; grammars: how many texts to make by each of `GRAMMAR_SHARES`.
    """
    words = frozenset(dictionary_words(root / "usr/share/dict/american-english"))
    share = root / "usr/share"
    rest = {
        "wordnet": wordnet_examples(share / "wordnet"),
        "help": help_sentences(share / "help/C"),
        "bible": bible_sentences(share / "sword/modules/texts/ztext/engWEB2015eb"),
    }
    found = [Text(text, "fortunes") for text in fortune_sentences(share / "games/fortunes", words)]
    for source, texts in rest.items():
        found += [Text(sentence, source) for text in texts if (sentence := spoken_sentence(text, words))]
    made = {
        "prompts": phone_prompts(grammars["prompts"], random.Random(seed)),
        "names": name_sentences(grammars["names"], random.Random(seed)),
    }
    found += [Text(line, "written") for line in RARE_WORDS.read_text(encoding="utf-8").splitlines()]
    for source, texts in made.items():
        found += [Text(text, source) for text in texts if SHORTEST_WORDS <= len(text.split()) <= LONGEST_TEXT_WORDS]
    seen: set[str] = set()
    for text in found:
        key = spoken_key(text.text)
        if key not in seen:
            seen.add(key)
            yield text


# ---- nothing of the validation sets ----


def held_out(folder: Path) -> HeldOut:
    """Validation prompts, LibriVox clips, unused prompts, the demo's question, the synthetic validation sentences."""
    texts = set(held_out_texts()) | set(unused_prompt_words(all_prompt_names())) | {normalized(DEMO_QUESTION)}
    return HeldOut(texts | {normalized(text) for text in synthetic_validation_texts(folder)})


def synthetic_validation_texts(folder: Path) -> list[str]:
    """The sentences of the synthetic validation set; kept in `folder`, because finding them takes half a minute."""
    path = folder / "validation_texts.json"
    if not path.is_file():
        texts = validation_sentences()
        with atomic_file(path) as part:
            part.write_text(json.dumps(texts, indent=1), encoding="utf-8")
    return json.loads(path.read_text(encoding="utf-8"))


# ---- even coverage ----


def common_words(count: int = COMMON_WORDS) -> list[str]:
    """The most frequent alphabetic words of general English, by `wordfreq`, most frequent first."""
    from wordfreq import top_n_list

    words = [word for word in top_n_list("en", 2 * count) if re.fullmatch(r"[a-z]+", word)]
    return words[:count]


def words_of(text: str) -> list[str]:
    return re.findall(r"[a-z]+(?:'[a-z]+)?", text.lower())


def choose_for_coverage(texts: list[Text], targets: Iterable[str], count: int, heard: Counter) -> list[Text]:
    """Up to `count` texts. Each next one has the common words that were used least so far, for its length.

    A word that was heard n times is worth 1 / (n + 1). Args: heard: times by word; brought up to date.
    """
    targets = frozenset(targets)
    spoken = [words_of(text.text) for text in texts]

    def gain(number: int) -> float:
        worth = sum(1 / (1 + heard[word]) for word in set(spoken[number]) if word in targets)
        return worth / (len(spoken[number]) + TEXT_COST_WORDS)

    # Worths only fall, so a text whose worth is still above the next one's old worth is the best.
    queue = [(-gain(number), number) for number in range(len(texts))]
    heapq.heapify(queue)
    chosen: list[Text] = []
    while queue and len(chosen) < count:
        number = queue[0][1]
        now = gain(number)
        if len(queue) > 1 and now < -min(queue[1:3])[0]:
            heapq.heapreplace(queue, (-now, number))
            continue
        heapq.heappop(queue)
        chosen.append(texts[number])
        heard.update(spoken[number])
    return chosen


def choose_texts(texts: list[Text], targets: Iterable[str], count: int, seed: int) -> list[Text]:
    """`count` texts (fewer where there are not so many) in random order: grammars, questions, then by coverage."""
    rng, heard, targets = random.Random(seed), Counter(), frozenset(targets)
    chosen: list[Text] = []
    for source, share in GRAMMAR_SHARES.items():
        made = [text for text in texts if text.source == source]
        chosen += rng.sample(made, min(len(made), round(share * count)))
    for text in chosen:
        heard.update(words_of(text.text))
    found = [text for text in texts if text.source not in GRAMMAR_SHARES]
    questions = [text for text in found if text.text.endswith("?")]
    chosen += choose_for_coverage(questions, targets, round(QUESTION_SHARE * count), heard)
    taken = {text.text for text in chosen}
    rest = [text for text in found if text.text not in taken]
    chosen += choose_for_coverage(rest, targets, count - len(chosen), heard)
    return rng.sample(chosen, len(chosen))


def written_texts(texts: list[Text], write: Callable[[list[str]], list[str]]) -> list[Text]:
    """Texts of the LLM with those common words that fewer than `SELDOM` of `texts` have.

    Args: write: words -> texts with them.
    """
    known = frozenset(dictionary_words(text_packages() / "usr/share/dict/american-english"))
    held = Counter(word for text in texts for word in set(words_of(text.text)))
    # No letters of abbreviations, no parts of words ("ll", "didnt"), nothing coarse: the dictionary has none of these.
    seldom = [word for word in common_words() if held[word] < SELDOM and word in known and len(word) > 2]
    sentences = [spoken_sentence(part, known) for answer in write(seldom) for part in split_sentences(answer)]
    fitting = [sentence for sentence in sentences if sentence and not set(seldom).isdisjoint(words_of(sentence))]
    return [Text(sentence, "written") for sentence in dict.fromkeys(fitting)]


def repeated_lines(chosen: list[Text], texts: list[Text], targets: Iterable[str]) -> list[Text]:
    """More lines, so that each target word stands in `LINES` of them: its texts in turn, again where they are few.

    The rarest words come first, because their texts have other words as well.
    """
    holders: dict[str, list[Text]] = {word: [] for word in targets}
    for text in texts:
        for word in set(words_of(text.text)) & holders.keys():
            holders[word].append(text)
    heard = Counter(word for text in chosen for word in set(words_of(text.text)))
    lines: list[Text] = []
    for word, having in sorted(holders.items(), key=lambda pair: (len(pair[1]), pair[0])):
        for number in range(LINES - heard[word] if having else 0):
            lines.append(having[number % len(having)])
            heard.update(set(words_of(lines[-1].text)))
    return lines


def natural_texts(
    count: int, kept_apart: HeldOut, write: Callable[[list[str]], list[str]], seed: int = 0
) -> list[Text]:
    """`count` texts to speak and the repeated lines, in random order; a function of its arguments and the packages."""
    root = text_packages()
    print("Choosing the texts (a few minutes) ...", file=sys.stderr, flush=True)
    # More than needed: short ones, doubles and held-out ones are left out.
    grammars = {source: round(2 * share * count) + 10 for source, share in GRAMMAR_SHARES.items()}
    texts = list(source_texts(root, grammars, seed))
    usable = [text for text in texts + written_texts(texts, write) if not kept_apart.repeats(text.text)]
    chosen = choose_texts(usable, common_words(), count, seed)
    lines = chosen + repeated_lines(chosen, usable, common_words())
    return random.Random(seed).sample(lines, len(lines))
