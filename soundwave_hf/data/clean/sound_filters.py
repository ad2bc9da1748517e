"""Filters that read the recording: its length, level, silence and clipping. They need no model."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .filter import Clip
from .options import ThresholdFilter, number


FRAME = 320  # samples: 20 ms at 16 kHz
LOWEST_DB = -120.0  # dBFS of digital silence
FULL_SCALE = 0.99  # a sample at least as large counts as clipped


def decibels(power: np.ndarray) -> np.ndarray:
    """Mean squares of samples in [-1, 1] as dBFS, at least -120."""
    return np.maximum(10 * np.log10(np.maximum(power, 1e-30)), LOWEST_DB)


def frame_levels(samples: np.ndarray) -> np.ndarray:
    """dBFS of each frame of 20 ms: `(samples,)` -> `(frames,)`. A last part of a frame counts as a frame.

    The mean of the recording is subtracted, because a constant is no sound.
    """
    if samples.size == 0:
        return np.zeros(0)
    squares = np.square(samples - samples.mean(dtype=np.float64), dtype=np.float64)
    starts = np.arange(0, len(squares), FRAME)
    sizes = np.diff(np.append(starts, len(squares)))
    return decibels(np.add.reduceat(squares, starts) / sizes)


class _OfSamples(ThresholdFilter):
    reads_samples: ClassVar[bool] = True
    reads_text: ClassVar[bool] = False

    def measure(self, clips: Sequence[Clip]) -> list[float]:
        return [float(self.of(clip.samples)) for clip in clips]

    @abstractmethod
    def of(self, samples: np.ndarray) -> float:
        """The number of a recording `(length,)`."""


@dataclass
class Seconds(ThresholdFilter):
    """Length of the recording. The paper keeps 3 to 30 s (appendix A)."""

    name: ClassVar[str] = "seconds"
    unit: ClassVar[str] = "s"
    reads_text: ClassVar[bool] = False
    min_seconds: float = number(3, least=0)
    max_seconds: float = number(30, least=0)

    def measure(self, clips: Sequence[Clip]) -> list[float]:
        return [clip.seconds for clip in clips]

    def keeps(self, value: float) -> bool:
        return self.min_seconds <= value <= self.max_seconds


@dataclass
class Silence(_OfSamples):
    """Share of silent frames of 20 ms.

    Args:
        max_share (`float`).
        below_peak_db (`float`): a frame is silent if it is so many decibels below the loud frames (the level that 5 %
            of the frames exceed), so that the recording's own level does not matter.
        floor_db (`float`): a frame below this level, in dBFS, is silent in any case.
    """

    name: ClassVar[str] = "silence"
    unit: ClassVar[str] = "share of frames"
    max_share: float = number(0.6, least=0, most=1)
    below_peak_db: float = number(35, least=1, most=-LOWEST_DB)
    floor_db: float = number(-70, least=LOWEST_DB, most=0)

    def of(self, samples: np.ndarray) -> float:
        levels = frame_levels(samples)
        if not len(levels):
            return 1.0
        limit = max(np.quantile(levels, 0.95) - self.below_peak_db, self.floor_db)
        return np.mean(levels < limit)

    def keeps(self, value: float) -> bool:
        return value <= self.max_share


@dataclass
class Clipping(_OfSamples):
    """Share of clipped samples: at full scale (0.99 or more), or 3 equal ones in a row near the largest sample.

    The second is a wave that was clipped and then made quieter.
    """

    name: ClassVar[str] = "clipping"
    unit: ClassVar[str] = "share of samples"
    max_share: float = number(0.001, least=0, most=1)

    def of(self, samples: np.ndarray) -> float:
        if samples.size == 0:
            return 0.0
        sizes = np.abs(samples)
        clipped = sizes >= FULL_SCALE
        near = (sizes >= FULL_SCALE * sizes.max()) & (sizes > 0)
        equal = near[1:] & (samples[1:] == samples[:-1])  # a sample and the one before it
        middle = equal[1:] & equal[:-1]  # the middle of 3 equal ones
        for shift in range(3):
            clipped[shift : shift + len(middle)] |= middle
        return np.mean(clipped)

    def keeps(self, value: float) -> bool:
        return value <= self.max_share


@dataclass
class Level(_OfSamples):
    """Level of the loud frames of 20 ms (the level that 5 % of them exceed) in dBFS: is there a signal at all?"""

    name: ClassVar[str] = "level"
    unit: ClassVar[str] = "dBFS"
    min_db: float = number(-50, least=LOWEST_DB, most=0)

    def of(self, samples: np.ndarray) -> float:
        levels = frame_levels(samples)
        return np.quantile(levels, 0.95) if len(levels) else LOWEST_DB

    def keeps(self, value: float) -> bool:
        return value >= self.min_db


SOUND_FILTERS = (Seconds, Silence, Clipping, Level)

__all__ = [*(each.__name__ for each in SOUND_FILTERS), "SOUND_FILTERS", "frame_levels"]
