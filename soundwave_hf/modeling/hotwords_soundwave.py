"""Hotwords: names and terms that an answer should spell as given, if they are said.

First, phrases that the CTC head does not hear anywhere in the clip are left out (the filter of arXiv 2411.06437).
Then, decoding favours the others. Where the head hears a phrase, it scores it like its own best labels (as in arXiv
2406.07096, which replaces them). A prefix tree gives each byte of a phrase a bonus, against the LLM's low probability
of a rare word, and takes it back if the text goes on in another way. A phrase gets it as often as it is heard. Phrases
are compared without punctuation, in whole words, with the case that the caller gives; words may also begin with a
capital.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from .ctc_scores_soundwave import CTCTexts, SaidTexts
from .ctc_text_soundwave import CTCText, control_tokens, ctc_form, word_prefixes, words_of
from .spacing_soundwave import BEGINS, ENDS


MOST_PHRASES = 2_000
MOST_CHARACTERS = 100
HOTWORD_WEIGHT = 1.0  # nats for each byte; chosen by benchmarks/hotwords.py, as `LEAST_HEARD`
CTC_WEIGHT = 0.5  # of the CTC head in rows where a phrase is heard, if neither the call nor the config gives one
LEAST_APART = 5  # frames between two places of a phrase: the frames beside a place hold a rest of it
LEAST_HEARD = -3.0  # nats for each byte, by which a phrase that is heard may be less likely than the best labels


# ---- what the caller gives ----


def has_lists(hotwords) -> bool:
    """Whether hotwords are one list for each row, and not one for all."""
    return any(not isinstance(phrase, str) for phrase in hotwords)


def check_hotwords(hotwords) -> list[str] | list[list[str]]:
    """One list of phrases, or one for each row, without repeats.

    Raises: `ValueError` for a phrase that is no text, is too long or has no letter, and for too many phrases.
    """
    # An iterator would be empty for whoever reads it next.
    if isinstance(hotwords, (str, bytes, dict, Iterator)) or not hasattr(hotwords, "__iter__"):
        raise ValueError(
            f"`hotwords` is {hotwords!r}; expected a list of phrases, such as ['Kestrelmoor'], or a list for each row."
        )
    hotwords = list(hotwords)
    if not has_lists(hotwords):
        return _check_phrases(hotwords)
    for phrases in hotwords:
        if isinstance(phrases, str) or not (phrases is None or hasattr(phrases, "__iter__")):
            raise ValueError(
                f"`hotwords` holds {phrases!r} beside other things; expected phrases alone, or one list of phrases "
                "for each row."
            )
    return [[] if phrases is None else _check_phrases(list(phrases)) for phrases in hotwords]


def _check_phrases(phrases: list[str]) -> list[str]:
    for phrase in phrases:
        if not isinstance(phrase, str) or not any(map(str.isalnum, phrase)):
            raise ValueError(f"`hotwords` holds {phrase!r}; expected a text with a letter or a digit.")
        if len(phrase) > MOST_CHARACTERS:
            raise ValueError(
                f"`hotwords` holds a phrase of {len(phrase)} characters that begins with {phrase[:20]!r}; expected at "
                f"most {MOST_CHARACTERS}. Give single names and terms."
            )
    phrases = list(dict.fromkeys(" ".join(phrase.split()) for phrase in phrases))
    if len(phrases) > MOST_PHRASES:
        raise ValueError(f"`hotwords` holds {len(phrases)} phrases; expected at most {MOST_PHRASES}.")
    return phrases


def refuse_control_tokens(phrases: Sequence[str], tokenizer):
    """Raises: `ValueError` for a phrase with the text of a control token, which must not get into an answer."""
    control = [text for text in control_tokens(tokenizer).values() if text.strip()]
    for phrase in phrases:
        for text in control:
            if text in phrase:
                raise ValueError(f"`hotwords` holds {phrase!r}, with the control token {text!r}: leave it out.")


def check_hotword_weight(weight) -> float:
    """Raises: `ValueError` unless the weight is a finite number of 0 or more."""
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < float("inf"):
        raise ValueError(
            f"`hotword_weight` is {weight!r}; expected a number of 0 (no hotwords) or more, such as {HOTWORD_WEIGHT}."
        )
    return float(weight)


@dataclass
class Hotwords:
    """The hotwords of one call of `generate`.

    Args:
        phrases: one list for all rows, or one for each row.
        weight: bonus in nats for each byte.
        ctc_weight: weight of the CTC head in rows where a phrase is heard.
    """

    phrases: list[str] | list[list[str]]
    weight: float
    ctc_weight: float

    def apply(self, texts: Sequence[CTCTexts | None], bridge: CTCText) -> tuple[list, list["PhraseTree | None"]]:
        """For each row, its CTC scores and the tree of the phrases that are heard in its clip; None if there are none.

        In the CTC scores, in the frames where a phrase is heard, it gets the score of the best labels there.

        Args: texts: CTC scores of each row's clip; None for a row without one.

        Raises: `ValueError` if there is another number of lists than of rows, or a phrase with a control token.
        """
        rows = self.phrases if has_lists(self.phrases) else [self.phrases] * len(texts)
        if len(rows) != len(texts):
            raise ValueError(
                f"`hotwords` holds {len(rows)} lists for {len(texts)} rows: give one list for each row, or one list "
                "of phrases for all."
            )
        for phrases in rows if has_lists(self.phrases) else rows[:1]:
            refuse_control_tokens(phrases, bridge.tokenizer)
        scores, trees = [], []
        for own, phrases in zip(texts, rows, strict=True):
            heard = heard_phrases(own, phrases, bridge) if own is not None else []
            spans = [(one.text, one.first, one.end) for one in heard]
            scores.append(own.with_spans(spans) if spans else own)
            times = Counter(one.phrase for one in heard)
            trees.append(PhraseTree(list(times), self.weight, list(times.values())) if heard else None)
        return scores, trees


# ---- which phrases are heard ----


@dataclass
class Heard:
    """A phrase that the CTC head hears in a clip.

    Args:
        phrase: as the caller wrote it.
        text: as the CTC head writes it.
        score: see `phrase_scores`.
        first, end: its first frame, and the frame after its last.
    """

    phrase: str
    text: bytes
    score: float
    first: int = 0
    end: int = 0


def heard_phrases(texts: CTCTexts, phrases: Sequence[str], bridge: CTCText) -> list[Heard]:
    """The phrases that the CTC head hears in a clip, with a score of `LEAST_HEARD` or more.

    A phrase comes once for each place. Of phrases in the same frames, the one with the best score is kept, with those
    inside of it.
    """
    scores = phrase_scores(texts, phrases, bridge, LEAST_HEARD)
    likely = [one for one in scores if one.score >= LEAST_HEARD]
    least = 2 * LEAST_HEARD * max((len(one.text) for one in likely), default=0)
    directions = [SaidTexts(texts, least, is_reversed) for is_reversed in (False, True)]
    heard = [place for one in likely for place in _places(one, *directions)]
    kept: list[Heard] = []
    for one in sorted(heard, key=lambda one: -one.score):
        if all(_go_together(one, other) for other in kept):
            kept.append(one)
    return kept


def _places(one: Heard, forward: SaidTexts, backward: SaidTexts) -> list[Heard]:
    """A phrase at each of its places in the clip."""
    lasts, firsts = forward.last_frames(one.text), backward.last_frames(one.text[::-1])[::-1]  # [frames]
    found = []
    while not found or lasts.max() >= LEAST_HEARD * len(one.text):
        last = int(lasts.argmax())
        fitting = np.flatnonzero(firsts[: last + 1] >= lasts[last] - 1)  # both sum over the paths of this place
        first = int(fitting[-1]) if len(fitting) else int(firsts[: last + 1].argmax())
        if all(first >= other.end or last < other.first for other in found):
            found.append(Heard(one.phrase, one.text, lasts[last] / len(one.text), first, last + 1))
        apart = max(LEAST_APART, (last - first) // 2)
        lasts[max(first - apart, 0) : last + 1 + apart] = -np.inf
    return found


def _go_together(one: Heard, other: Heard) -> bool:
    is_inside = one.text in other.text or other.text in one.text
    return is_inside or one.first >= other.end or other.first >= one.end


def phrase_scores(texts: CTCTexts, phrases: Sequence[str], bridge: CTCText, least: float) -> list[Heard]:
    """How well the CTC head hears each phrase at its best place in a clip, in nats for each byte; 0 is best.

    A score is the log-probability of all label sequences that write the phrase, minus that of the likeliest labels in
    the same frames.

    Args: least: scores below it may be -inf, which saves time.

    Returns: the phrases without their frames.
    """
    spellings = [_spellings(phrase, bridge.form) for phrase in phrases]
    longest = max((len(text) for written in spellings for text in written), default=0)
    said = SaidTexts(texts, least * longest)
    found = []
    for phrase, written in zip(phrases, spellings, strict=True):
        score, text = max((said.score(text) / len(text), text) for text in written)
        found.append(Heard(phrase, text, score))
    return found


def _cases(phrase: str) -> set[str]:
    """A phrase as written, at the beginning of a sentence, and with a capital for each word."""
    words = phrase.split()
    return {phrase, phrase[:1].upper() + phrase[1:], " ".join(word[:1].upper() + word[1:] for word in words)}


def _spellings(phrase: str, form: str) -> set[bytes]:
    """The texts by which the CTC head may write a phrase."""
    return {_begun(ctc_form(case, form)) for case in (*_cases(phrase), phrase.lower())}


def _begun(text: str) -> bytes:
    """A phrase as it stands in a label text: words begin with a space, except in scripts without spaces."""
    return (text.lstrip() if BEGINS.match(text.lstrip()) else text).encode()


# ---- the bonus ----


@dataclass
class _Node:
    """A beginning of phrases.

    Args:
        depth: number of its bytes, without the space before it.
        children: by the next byte.
        rests: remaining bytes of each phrase that begins so.
        phrases: those that begin so, by their number.
        ends: those that it writes whole.
        ends_anywhere: whether a whole phrase may end inside of a text without spaces.
    """

    depth: int = 0
    children: dict[int, "_Node"] = field(default_factory=dict)
    rests: list[bytes] = field(default_factory=list)
    phrases: set[int] = field(default_factory=set)
    ends: set[int] = field(default_factory=set)
    ends_anywhere: bool = False


@dataclass(frozen=True)
class _Paid:
    """Whole phrases in a text: their bytes, and how often each is there (empty without limits)."""

    size: int
    times: tuple[int, ...]


@dataclass
class _Matches:
    """How far phrases are matched at the end of a text.

    Args:
        settled: the whole phrases before it; those with the most bytes, if phrases overlap.
        begun: phrases that may go on: nodes, and the phrases settled where each began.
    """

    settled: _Paid
    begun: list[tuple[_Node, _Paid]]


class PhraseTree:
    """A bonus for texts that contain phrases, in nats.

    Each byte of a phrase counts, from its first on. If the text goes on in another way than a phrase, the bonus of the
    begun phrase is taken back. Phrases count in whole words.

    Args:
        phrases: what to favour.
        weight: nats for each byte.
        times (*optional*): how often each phrase counts at most, by itself or inside of a longer one; by default
            without limit.

    Example:

    ```python
    >>> tree = PhraseTree(["Port Kestrelmoor"], weight=1.0)
    >>> [tree.bonus(answer) for answer in ("To Port", "To Port Ke", "To Port Kent")]  # bytes of "port kestrelmoor"
    [4.0, 7.0, 0.0]
    >>> tree.bonus("To Port Kestrelmoor.", is_whole=True)
    16.0
    ```
    """

    def __init__(self, phrases: Sequence[str], weight: float, times: Sequence[int] | None = None):
        self.weight, self.root = weight, _Node()
        # How often a phrase holds each other one; without limits nothing is counted.
        self.holds = [[_times_inside(one, outer) for one in phrases] if times else [] for outer in phrases]
        counted = [[count * times[number] for count in held] for number, held in enumerate(self.holds) if times]
        self.limits = tuple(map(max, zip(*counted, strict=True)))
        for number, phrase in enumerate(phrases):
            for text in dict.fromkeys(words_of(case) for case in sorted(_cases(phrase))):
                self._add(text, number)
        self.matches = {b"": _Matches(_Paid(0, (0,) * len(self.limits)), [])}

    def _add(self, text: str, number: int):
        node, begun = self.root, _begun(text)
        for place, byte in enumerate(begun):
            node.rests.append(begun[place:])
            node = node.children.setdefault(byte, _Node(place + 1 - (begun[:1] == b" ")))
            node.phrases.add(number)
        node.ends.add(number)
        node.ends_anywhere = ENDS.search(text) is not None

    def bonus(self, answer: str, is_whole: bool = False) -> float:
        """Bonus of an answer. Args: is_whole: whether the answer has ended."""
        if is_whole:
            return self.weight * self._whole(self._match(words_of(answer).encode())).size
        begun, finished = word_prefixes(answer)
        counts = [self._best(self._match(text)) for text in begun]
        counts += [self._whole(self._match(text)).size for text in finished]
        return self.weight * max(counts)

    def continuations(self, answer: str) -> set[bytes]:
        """Texts that begin a phrase, or continue one that has begun."""
        nodes = {id(node): node for text in word_prefixes(answer)[0] for node, _ in self._match(text).begun}
        return {rest for node in (self.root, *nodes.values()) for rest in node.rests}

    def _match(self, text: bytes) -> _Matches:
        known = len(text)
        while text[:known] not in self.matches:
            known -= 1
        for end in range(known + 1, len(text) + 1):
            self.matches[text[:end]] = self._next(self.matches[text[: end - 1]], text[end - 1])
        return self.matches[text]

    def _next(self, matches: _Matches, byte: int) -> _Matches:
        settled = self._whole(matches) if byte == ord(" ") else matches.settled
        begun = []
        for node, before in [*matches.begun, (self.root, settled)]:
            if byte in node.children:
                begun.append((node.children[byte], before))
        anywhere = [self._pay(before, node) for node, before in begun if node.ends_anywhere]
        return _Matches(max([settled, *anywhere], key=lambda paid: paid.size), begun)

    def _best(self, matches: _Matches) -> int:
        """Bytes of whole phrases and of one that has begun."""
        begun = (
            before.size + node.depth for node, before in matches.begun if self._open(before, node.phrases) is not None
        )
        return max([matches.settled.size, *begun])

    def _whole(self, matches: _Matches) -> _Paid:
        """Whole phrases, if the text ends here."""
        ended = [self._pay(before, node) for node, before in matches.begun if node.ends]
        return max([matches.settled, *ended], key=lambda paid: paid.size)

    def _pay(self, before: _Paid, node: _Node) -> _Paid:
        """The phrases before and the one that ends here, if its limit is not reached."""
        number = self._open(before, node.ends)
        if number is None:
            return before
        return _Paid(before.size + node.depth, self._times(before, number))

    def _open(self, before: _Paid, numbers: set[int]) -> int | None:
        """The first of these phrases that may be paid once more."""
        for number in sorted(numbers):
            if all(count <= most for count, most in zip(self._times(before, number), self.limits, strict=True)):
                return number
        return None

    def _times(self, before: _Paid, number: int) -> tuple[int, ...]:
        return tuple(count + more for count, more in zip(before.times, self.holds[number], strict=True))


def _times_inside(phrase: str, outer: str) -> int:
    """How often a phrase is in another one, in whole words, whatever the case."""
    text, end = _begun(words_of(phrase.lower())).decode(), "" if ENDS.search(phrase) else " "
    return f"{words_of(outer.lower())} ".count(text + end)


__all__ = ["Hotwords", "PhraseTree", "check_hotword_weight", "check_hotwords", "has_lists", "heard_phrases"]
