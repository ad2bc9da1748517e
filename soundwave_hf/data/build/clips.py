"""Samples of rows: read at 16 kHz, brought to one level, joined, and written as FLAC."""

import io
from collections.abc import Mapping, Sequence

import numpy as np
import soundfile

from ...processing.audio_soundwave import load_clip
from ..rows import clips_of
from .draws import NotBuilt


RATE = 16_000  # Hz, of everything that is built
SILENT_PEAK = 1e-3  # 60 dB below full scale
LOUDEST_PEAK = 0.99  # mixed and amplified samples are scaled to this peak at most
FRAME = 400  # samples of 25 ms, in which levels are measured


def samples_of(row: Mapping, name: str) -> np.ndarray:
    """The samples of a row's single clip: `(samples,)`, float32, mono, 16 kHz.

    Args: name: what an error calls the row.
    Raises: `NotBuilt` if the row has no clip or several, or the clip cannot be read, is empty or is silent.
    """
    clips = clips_of(row)
    if len(clips) != 1:
        raise NotBuilt(f"{name} has {len(clips)} clips; expected one in `audio`. Its columns are {sorted(row)}.")
    try:
        samples = load_clip(clips[0], f"The clip of {name}", None, RATE, 0.0)
    except (OSError, TypeError, ValueError) as error:
        raise NotBuilt(str(error)) from error
    if not len(samples) or np.abs(samples).max() < SILENT_PEAK:
        raise NotBuilt(f"The clip of {name} is {'silent' if len(samples) else 'empty'}: there is nothing to hear.")
    return samples


def active_level(samples: np.ndarray) -> float:
    """Root mean square of the frames of 25 ms within 30 dB of the loudest one: pauses do not count."""
    padded = np.pad(samples, (0, -len(samples) % FRAME))
    powers = np.square(padded.reshape(-1, FRAME), dtype=np.float64).mean(axis=1)  # [frames]
    return float(np.sqrt(powers[powers >= powers.max() / 1000].mean()))


def at_level(samples: np.ndarray, level: float) -> np.ndarray:
    """Samples scaled to an active level, or less where the peak would pass full scale."""
    gain = level / active_level(samples)
    return samples * np.float32(min(gain, LOUDEST_PEAK / np.abs(samples).max()))


def join(parts: Sequence[np.ndarray], pauses: Sequence[float]) -> tuple[np.ndarray, list[tuple[float, float]]]:
    """Put clips one after another. With a negative pause the next one begins early; both are heard.

    Args: pauses: seconds before the second clip, the third ...
    Returns: samples `(samples,)`, and start and end of each clip in seconds.
    Raises: `ValueError` if a clip would begin before the one before it.
    """
    starts = [0]
    for place, pause in enumerate(pauses):
        begin = starts[-1] + len(parts[place]) + round(pause * RATE)
        if begin < starts[-1]:
            raise ValueError(
                f"A pause of {pause:g} s after a clip of {len(parts[place]) / RATE:.2f} s would let the next one "
                "begin first: use a shorter overlap."
            )
        starts.append(begin)
    mixed = np.zeros(max(start + len(part) for start, part in zip(starts, parts, strict=True)), np.float32)
    for start, part in zip(starts, parts, strict=True):
        mixed[start : start + len(part)] += part
    if (peak := np.abs(mixed).max()) > LOUDEST_PEAK:
        mixed *= LOUDEST_PEAK / peak
    spans = [(start / RATE, (start + len(part)) / RATE) for start, part in zip(starts, parts, strict=True)]
    return mixed, spans


def as_clip(samples: np.ndarray) -> dict:
    """Samples as a value of the column `audio`."""
    return {"array": samples, "sampling_rate": RATE}


def flac_bytes(clip: Mapping) -> bytes:
    """A clip of `as_clip` as a FLAC file of 16 bits."""
    buffer = io.BytesIO()
    soundfile.write(buffer, clip["array"], clip["sampling_rate"], format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


__all__ = ["RATE", "active_level", "as_clip", "at_level", "flac_bytes", "join", "samples_of"]
