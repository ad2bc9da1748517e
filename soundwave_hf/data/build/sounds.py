"""Sounds between two utterances: `... <throat_clearing> ...` in the transcript (paper, data of Stages I and II)."""

import re
from collections.abc import Mapping

import numpy as np

from .clips import RATE, active_level, as_clip, at_level, join, samples_of
from .draws import NotBuilt


SOUND_SECONDS = 3.0  # paper: sounds are cut to 3 s by energy


def loudest_window(samples: np.ndarray, rate: int, seconds: float = SOUND_SECONDS) -> np.ndarray:
    """The window of most energy. A clip that is not longer is returned whole; of equal windows the first is taken.

    Args: samples: `(samples,)`.
    """
    length = round(seconds * rate)
    if len(samples) <= length:
        return samples
    energy = np.concatenate([[0.0], np.cumsum(np.square(samples, dtype=np.float64))])  # [samples + 1]
    start = int(np.argmax(energy[length:] - energy[:-length]))
    return samples[start : start + length]


def sound_token(label: str) -> str:
    """A label as it stands in a transcript: `"Throat clearing"` -> `"<throat_clearing>"`.

    Raises: `NotBuilt` for a label without letters.
    """
    words = re.findall(r"[^\W_]+", label.lower()) if isinstance(label, str) else []
    if not any(character.isalpha() for word in words for character in word):
        raise NotBuilt(f"The label of a sound is {label!r}; expected words, such as 'throat clearing'.")
    return f"<{'_'.join(words)}>"


def splice_sound(first: Mapping, sound: Mapping, second: Mapping, name: str = "A row") -> dict:
    """An utterance, at most 3 s of a sound, and another utterance as one row.

    The sound and the second utterance get the level of the first.

    Args:
        first, second: rows with `audio` and `text`.
        sound: a row with `audio` and `label`.
        name: what an error calls the row.
    Returns: a row with `audio` (samples at 16 kHz), `text`, `seconds`, `source` of the first, and `label`.
    Raises: `NotBuilt` if a clip, a text or the label is missing, or a clip is empty or silent.
    """
    last = f"the second utterance of {name}"
    texts = [text_of(first, name), text_of(second, last)]
    token = sound_token(label_of(sound, f"the sound of {name}"))
    opening = samples_of(first, name)
    level = active_level(opening)
    cut = loudest_window(samples_of(sound, f"the sound of {name}"), RATE)
    parts = [opening, at_level(cut, level), at_level(samples_of(second, last), level)]
    samples, _ = join(parts, [0.0, 0.0])
    row = {"audio": as_clip(samples), "text": f"{texts[0]} {token} {texts[1]}", "seconds": len(samples) / RATE}
    return row | {"label": sound["label"]} | kept(first, "source")


def text_of(row: Mapping, name: str) -> str:
    """The transcript of a row. Raises: `NotBuilt` if it is missing or blank."""
    text = row.get("text")
    if not isinstance(text, str) or not text.strip():
        raise NotBuilt(f"{name} has `text` {text!r}; expected a transcript. Its columns are {sorted(row)}.")
    return text.strip()


def label_of(row: Mapping, name: str) -> str:
    if not isinstance(label := row.get("label"), str) or not label.strip():
        raise NotBuilt(f"{name} has `label` {label!r}; expected its name. Its columns are {sorted(row)}.")
    return label


def kept(row: Mapping, *names: str) -> dict:
    """Those columns of a row that have a value."""
    return {name: row[name] for name in names if row.get(name) is not None}


__all__ = ["SOUND_SECONDS", "kept", "loudest_window", "sound_token", "splice_sound", "text_of"]
