"""What a filter is. `soundwave-hf data clean` runs a table of them over every row."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np


@dataclass
class Clip:
    """A row to judge.

    Args:
        row (`dict`): the row with our column names (`audio`, `text`, `language` ...), `audio` not decoded.
        text (`str`, *optional*): its transcript; None only where a row has none and the filter has no `reads_text`.
        samples (`np.ndarray` of shape `(length,)`, float32, *optional*): mono, 16 kHz; None where no filter that runs
            reads samples.
        seconds (`float`): of the recording.
    """

    row: dict
    text: str | None
    seconds: float
    samples: np.ndarray | None = None


class Filter(ABC):
    """A measure of rows with a threshold. Subclasses are dataclasses: their fields are the keys of the YAML file.

    `measure` is a pure function of the clips, so that a restarted run and a run in several processes give the same
    values. Filters that compare rows with each other (near duplicates) are no subclasses.
    """

    name: ClassVar[str]  # key of the YAML file, column of the report, reason of a dropped row
    unit: ClassVar[str]  # of its values, for the report
    reads_samples: ClassVar[bool] = False
    reads_text: ClassVar[bool] = True  # false: it also judges clips without a transcript, such as spoken questions

    @abstractmethod
    def measure(self, clips: Sequence[Clip]) -> list[float | str | None]:
        """One value a clip; None where the filter does not apply, and the row is kept."""

    @abstractmethod
    def keeps(self, value: float | str) -> bool:
        """Whether a row with this value is kept."""

    def load(self):  # noqa: B027 - most filters have nothing to load
        """Load a model, once in each process, before the first `measure`."""


__all__ = ["Clip", "Filter"]
