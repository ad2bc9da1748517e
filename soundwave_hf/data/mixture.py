"""Shares of tasks in an epoch: the paper's dynamic mixture. Training draws by it, and `data stats` shows it."""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real

import numpy as np


@dataclass(frozen=True)
class Mixture:
    """Shares of the tasks, `p_k ~ (|D_k| / sum_i |D_i|) ** (1 / T)` (paper Eq. 2): sample-uniform, then task-uniform.

    Args:
        temperature (`float`): T of the first epoch; with 1 every clip is drawn once.
        step (`float`): what each further epoch adds to T.
    """

    temperature: float = 1.0
    step: float = 5.0

    def __post_init__(self):
        are_numbers = all(isinstance(value, Real) for value in (self.temperature, self.step))
        if not (are_numbers and self.temperature > 0 and self.step >= 0):
            raise ValueError(
                f"`mixture` has `temperature` {self.temperature!r} and `step` {self.step!r}: the first must be a "
                "number over 0, the second 0 or more; the paper's are 1 and 5."
            )

    def shares(self, sizes: Sequence[int], epoch: int) -> np.ndarray:
        """Number of clips of each task -> share of each task in an epoch; the shares add up to 1."""
        weights = (np.asarray(sizes) / np.sum(sizes)) ** (1 / (self.temperature + self.step * epoch))
        return weights / weights.sum()

    def quotas(self, sizes: Sequence[int], epoch: int, num_draws: int) -> np.ndarray:
        """How many of an epoch's `num_draws` draws go to each task, by largest remainder."""
        exact = self.shares(sizes, epoch) * num_draws
        quotas = np.floor(exact).astype(np.int64)
        quotas[np.argsort(quotas - exact, kind="stable")[: num_draws - quotas.sum()]] += 1
        return quotas


__all__ = ["Mixture"]
