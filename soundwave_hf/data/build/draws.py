"""Random draws for a row. They depend on the seed and on the row's number, and not on the rows that came before."""

import random
from collections.abc import Mapping, Sequence
from functools import lru_cache


BLOCK = 1000  # draws in which every choice comes as often as its share says
LARGE = 10_000  # orders of more rows are not all kept in memory


class NotBuilt(ValueError):
    """A row from which a builder cannot make anything, and why. A run counts and lists these rows."""


def row_random(*identity) -> random.Random:
    """Random numbers for what `identity` names, such as `(seed, "sounds", 17)`: the same in each process."""
    return random.Random("/".join(map(str, identity)))


def cycled(size: int, number: int, *identity) -> int:
    """An index below `size`. Each comes once in `size` consecutive numbers, in an order that is drawn again each time.

    Args: number: counts from 0.
    """
    turn, place = divmod(number, size)
    order = _order if size <= LARGE else _large_order
    return order(size, "/".join(map(str, (*identity, "turn", turn))))[place]


@lru_cache(maxsize=1024)
def _order(size: int, identity: str) -> tuple[int, ...]:
    return tuple(random.Random(identity).sample(range(size), size))


_large_order = lru_cache(maxsize=2)(_order.__wrapped__)


class Shares:
    """Deals choices by their weights. In each 1,000 draws every choice comes as often as its weight says.

    Args:
        weights (`Mapping`): a weight over 0 for each choice.
        identity: seed and name of what is dealt.

    Raises: `ValueError` for a weight that is not a number over 0, or below a thousandth of all.
    """

    def __init__(self, weights: Mapping, *identity):
        bad = {choice: weight for choice, weight in weights.items() if not is_weight(weight)}
        if bad or not weights:
            raise ValueError(f"The weights are {dict(weights)}; give at least one choice, each with a number over 0.")
        total = sum(weights.values())
        for choice, weight in weights.items():
            if weight < total / BLOCK:
                raise ValueError(
                    f"The weight of `{choice}` is {weight} of {total}, less than a thousandth: raise it, or leave it "
                    "out."
                )
        self.choices, self.identity = list(weights), "/".join(map(str, identity))
        self.quotas = _quotas([weight / total * BLOCK for weight in weights.values()])

    def deal(self, number: int) -> tuple[object, int]:
        """The choice of a draw, and how often it came before."""
        block, place = divmod(number, BLOCK)
        choice, rank = _dealt(tuple(self.quotas), f"{self.identity}/block/{block}")[place]
        return self.choices[choice], block * self.quotas[choice] + rank


def is_weight(weight) -> bool:
    return isinstance(weight, int | float) and not isinstance(weight, bool) and 0 < weight < float("inf")


def _quotas(shares: Sequence[float]) -> list[int]:
    """Whole numbers that add up to `BLOCK`, by largest remainder; none is 0."""
    quotas = [max(1, int(share)) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda index: int(shares[index]) - shares[index])
    for index in by_remainder[: max(0, BLOCK - sum(quotas))]:
        quotas[index] += 1
    quotas[quotas.index(max(quotas))] += BLOCK - sum(quotas)
    return quotas


@lru_cache(maxsize=1024)
def _dealt(quotas: tuple[int, ...], identity: str) -> list[tuple[int, int]]:
    """Choice and rank of each draw of a block. The draws of one choice are spread over the block, without a period:
    data often have one."""
    rng = random.Random(identity)
    places = [
        ((rank + rng.random()) / quota, choice, rank) for choice, quota in enumerate(quotas) for rank in range(quota)
    ]
    return [(choice, rank) for _, choice, rank in sorted(places)]


__all__ = ["BLOCK", "NotBuilt", "Shares", "cycled", "is_weight", "row_random"]
