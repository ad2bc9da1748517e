"""Near duplicates: rows whose text or recording an earlier row has, or an evaluation set."""

import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar

import numpy as np

from ...modeling.spacing_soundwave import BEGINS
from .fingerprint import PEAK, index_keys, mixed, shared_landmarks
from .options import Thresholds, number
from .text_filters import words_of


AUDIO, TEXT = "near_duplicate_audio", "near_duplicate_text"
LEAKED_AUDIO, LEAKED_TEXT = "leaked_audio", "leaked_text"
LEAST_SHARE = 0.01  # a lower threshold would drop rows that share one landmark by chance
SHINGLE = 5  # characters
BANDS, ROWS_PER_BAND = 25, 5  # a pair with Jaccard similarity 0.8 shares a band with probability 0.9999
SHARED_KEYS = 1  # of two recordings that are compared
COMPARED = 16  # rows that one is compared with at most: those that share the most keys
POSTINGS = 64  # rows that are read for one key at most, so that a key of every row costs no more


class Comparison(Thresholds):
    """A filter that compares a row with other rows. Its fields are keys of the YAML file, as those of a `Filter`."""

    name: ClassVar[str]
    unit: ClassVar[str]


@dataclass
class NearDuplicateAudio(Comparison):
    """Drops a row whose recording an earlier kept row has.

    Args: shared (`float`): share of landmarks (`shared_landmarks`) from which two recordings are the same.
    """

    name: ClassVar[str] = AUDIO
    unit: ClassVar[str] = "share of landmarks"
    shared: float = number(0.1, least=LEAST_SHARE, most=1)


@dataclass
class NearDuplicateText(Comparison):
    """Drops a row whose transcript an earlier kept row has. Off until it is named: that several speakers read the same
    sentence is often wanted.

    Args:
        similarity (`float`): Jaccard similarity of character 5-grams from which two transcripts are the same.
        words (`int`): shorter transcripts are kept; a character of a script without spaces counts as half a word.
        seed (`int`): of the hash functions.
    """

    name: ClassVar[str] = TEXT
    unit: ClassVar[str] = "Jaccard similarity"
    similarity: float = number(..., least=LEAST_SHARE, most=1)
    words: int = number(4, least=1)
    seed: int = number(0, least=0)


@dataclass
class LeakedAudio(Comparison):
    """Drops a row whose recording an evaluation set has. Args: shared (`float`): as in `NearDuplicateAudio`."""

    name: ClassVar[str] = LEAKED_AUDIO
    unit: ClassVar[str] = "share of landmarks"
    shared: float = number(0.1, least=LEAST_SHARE, most=1)


@dataclass
class LeakedText(Comparison):
    """Drops a row whose transcript is, holds, or stands in a transcript of an evaluation set.

    Args: words (`int`): shorter transcripts are no leak, as in `NearDuplicateText`.
    """

    name: ClassVar[str] = LEAKED_TEXT
    unit: ClassVar[str] = "whole texts"
    words: int = number(4, least=1)


COMPARISONS = (NearDuplicateAudio, NearDuplicateText, LeakedAudio, LeakedText)


@dataclass(frozen=True)
class Comparisons:
    """The comparisons of a run; None for one that is off."""

    near_duplicate_audio: NearDuplicateAudio | None = None
    near_duplicate_text: NearDuplicateText | None = None
    leaked_audio: LeakedAudio | None = None
    leaked_text: LeakedText | None = None

    @classmethod
    def of(cls, given: Iterable[Comparison]) -> "Comparisons":
        """Raises: `ValueError` if one is given twice."""
        found = {}
        for each in given:
            if each.name in found:
                raise ValueError(f"`{each.name}` is given twice: give it once.")
            found[each.name] = each
        return cls(**found)

    def __iter__(self) -> Iterator[Comparison]:
        return (each for field in fields(self) if (each := getattr(self, field.name)) is not None)

    @property
    def of_recordings(self) -> bool:
        return self.near_duplicate_audio is not None or self.leaked_audio is not None

    @property
    def seed(self) -> int:
        return self.near_duplicate_text.seed if self.near_duplicate_text is not None else 0


# ---- texts ----


def plain_text(text: str) -> str:
    """The form in which texts are compared: `words_of`, joined by spaces."""
    return " ".join(words_of(text))


def count_words(words: Sequence[str]) -> float:
    """Number of words; a character of a script without spaces counts as half a word."""
    return len(words) - sum(BEGINS.match(word) is not None for word in words) / 2


def shingles(words: Sequence[str]) -> np.ndarray:
    """Hashes (uint64, sorted, each once) of the runs of 5 characters of a text."""
    joined = " ".join(words)
    runs = {joined[at : at + SHINGLE] for at in range(max(1, len(joined) - SHINGLE + 1))}
    return np.unique(np.array([zlib.crc32(run.encode()) for run in runs], np.uint64))


def text_keys(words: Sequence[str], seed: int) -> np.ndarray:
    """MinHash (Broder, 1997) in bands: texts that are much alike share one of these `BANDS` numbers (int64)."""
    salts = mixed(np.arange(BANDS * ROWS_PER_BAND, dtype=np.uint64) + np.uint64(1_000_003 * seed))
    smallest = mixed(shingles(words)[None, :] ^ salts[:, None]).min(axis=1)  # [bands * rows]
    band = np.zeros(BANDS, np.uint64)
    for row in smallest.reshape(BANDS, ROWS_PER_BAND).T:
        band = mixed(band ^ row)
    return mixed(band ^ np.arange(BANDS, dtype=np.uint64)).view(np.int64)


def jaccard(one: Sequence[str], other: Sequence[str]) -> float:
    """Shared runs of 5 characters over all runs of the two texts."""
    first, second = shingles(one), shingles(other)
    shared = len(np.intersect1d(first, second, assume_unique=True))
    return shared / (len(first) + len(second) - shared)


class HeldOutTexts:
    """Texts of evaluation sets that no training row may repeat."""

    def __init__(self, texts: Iterable[tuple[str, str]], least_words: int):
        """Args: texts: name and `plain_text` of each; shorter ones are left out."""
        self.least_words = least_words
        self.names: dict[str, str] = {}
        self.starting: dict[str, list[str]] = {}  # texts by their first words
        self.holding: dict[str, list[str]] = {}  # texts by every run of so many words
        for name, text in texts:
            words = text.split()
            if count_words(words) < least_words or text in self.names:
                continue
            self.names[text] = name
            runs = list(self._runs(words))
            self.starting.setdefault(runs[0], []).append(text)
            for run in dict.fromkeys(runs):
                self.holding.setdefault(run, []).append(text)

    def _runs(self, words: Sequence[str]) -> Iterator[str]:
        count = min(self.least_words, len(words))
        return (" ".join(words[at : at + count]) for at in range(len(words) - count + 1))

    def find(self, text: str) -> str | None:
        """The name of a held-out text that equals this one, stands in it, or holds it; None if there is none."""
        words = text.split()
        if count_words(words) < self.least_words:
            return None
        runs = list(dict.fromkeys(self._runs(words)))
        inside = (held for run in runs for held in self.starting.get(run, ()) if f" {held} " in f" {text} ")
        around = (held for held in self.holding.get(runs[0], ()) if f" {text} " in f" {held} ")
        found = next(inside, None) or next(around, None)
        return None if found is None else self.names[found]


# ---- the index on disk ----


class Index:
    """Rows by keys, in a SQLite file: those that share keys with a row are found without reading the others.

    Nothing of it is kept when it is opened again: it is made anew from the shards.
    """

    def __init__(self, path: Path):
        path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.count = path, 0
        self.database = sqlite3.connect(path, isolation_level=None)
        for setting in ("journal_mode = OFF", "synchronous = OFF", "cache_size = -65536"):
            self.database.execute(f"PRAGMA {setting}")
        self.database.execute("CREATE TABLE items (id INTEGER PRIMARY KEY, name TEXT, content BLOB)")
        self.database.execute("CREATE TABLE keys (key INTEGER, id INTEGER, PRIMARY KEY (key, id)) WITHOUT ROWID")
        self.database.execute("BEGIN")

    def add(self, name: str, content: bytes, keys: np.ndarray):
        self.count += 1
        self.database.execute("INSERT INTO items VALUES (?, ?, ?)", (self.count, name, content))
        self.database.executemany("INSERT OR IGNORE INTO keys VALUES (?, ?)", ((int(key), self.count) for key in keys))

    def near(self, keys: np.ndarray, least: int) -> Iterator[tuple[str, bytes]]:
        """Name and content of the rows that share at least so many keys: most first, then earliest first."""
        shared: dict[int, int] = {}
        for key in keys:
            found = self.database.execute(
                "SELECT id FROM keys WHERE key = ? ORDER BY id LIMIT ?", (int(key), POSTINGS)
            )
            for (item,) in found:
                shared[item] = shared.get(item, 0) + 1
        order = sorted((item for item, count in shared.items() if count >= least), key=lambda n: (-shared[n], n))
        for item in order[:COMPARED]:
            yield self.database.execute("SELECT name, content FROM items WHERE id = ?", (item,)).fetchone()

    def close(self):
        self.database.close()
        self.path.unlink(missing_ok=True)


class AudioIndex(Index):
    """Recordings by their fingerprints."""

    def put(self, name: str, peaks: bytes):
        """Args: peaks: those of `fingerprint.peaks_of`, as bytes."""
        self.add(name, peaks, index_keys(np.frombuffer(peaks, PEAK)))

    def find(self, peaks: bytes, threshold: float) -> tuple[str | None, float]:
        """The name of the recording that shares the most with this one, and the share; no name below the threshold."""
        mine = np.frombuffer(peaks, PEAK)
        candidates = self.near(index_keys(mine), SHARED_KEYS)
        shares = [(shared_landmarks(mine, np.frombuffer(theirs, PEAK)), name) for name, theirs in candidates]
        share, name = max(shares, key=lambda found: found[0], default=(0.0, None))
        return (name if share >= threshold else None), share


class TextIndex(Index):
    """Texts by their MinHash bands."""

    def __init__(self, path: Path, seed: int):
        super().__init__(path)
        self.seed = seed

    def put(self, name: str, text: str):
        """Args: text: the `plain_text` of a row."""
        self.add(name, text.encode(), text_keys(text.split(), self.seed))

    def find(self, text: str, threshold: float) -> tuple[str | None, float]:
        """The name of the text that is most like this one, and their similarity; no name below the threshold."""
        words = text.split()
        candidates = self.near(text_keys(words, self.seed), 1)
        alike = [(jaccard(words, theirs.decode().split()), name) for name, theirs in candidates]
        similarity, name = max(alike, key=lambda found: found[0], default=(0.0, None))
        return (name if similarity >= threshold else None), similarity


__all__ = [
    "AUDIO",
    "COMPARISONS",
    "LEAKED_AUDIO",
    "LEAKED_TEXT",
    "TEXT",
    "AudioIndex",
    "Comparison",
    "Comparisons",
    "HeldOutTexts",
    "Index",
    "LeakedAudio",
    "LeakedText",
    "NearDuplicateAudio",
    "NearDuplicateText",
    "TextIndex",
    "count_words",
    "jaccard",
    "plain_text",
    "shingles",
    "text_keys",
]
