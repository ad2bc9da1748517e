"""Batches of clips of like length, in an order that follows from seed and epoch alone."""

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler


class LengthGroupedSampler(Sampler[int]):
    """Shuffles, sorts by length within pools of many batches, then shuffles the batches; a short one comes last.

    The library's own takes its order from the global random state, so that a resumed run sees other batches.

    Args:
        seconds (`Sequence[float]`): length of each clip.
        batch_size (`int`): clips of a batch; batches in one pool: `pool`.
    """

    def __init__(self, seconds: Sequence[float], batch_size: int, seed: int = 0, pool: int = 50):
        self.seconds = torch.as_tensor(seconds)
        self.batch_size, self.seed, self.pool = batch_size, seed, pool
        self.epoch = 0

    def set_epoch(self, epoch: int):
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.seconds)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + 1_000_003 * self.epoch)
        order = torch.randperm(len(self.seconds), generator=generator)
        pools = order.split(self.batch_size * self.pool)
        grouped = torch.cat([pool[self.seconds[pool].argsort(stable=True)] for pool in pools])
        batches = grouped.split(self.batch_size)
        whole = len(self.seconds) // self.batch_size
        for index in torch.randperm(whole, generator=generator).tolist():
            yield from batches[index].tolist()
        # Anywhere else it would shift those after it, and each would mix two lengths.
        for batch in batches[whole:]:
            yield from batch.tolist()


__all__ = ["LengthGroupedSampler"]
