"""Counts for data cards."""

from collections import defaultdict
from collections.abc import Iterable


def count_rows(
    rows: Iterable[dict], columns: tuple[str, ...] = ("source", "voice")
) -> dict[tuple[str, ...], tuple[int, float]]:
    """Clips and seconds by the values of these columns."""
    counts: dict[tuple[str, ...], list[float]] = defaultdict(lambda: [0, 0.0])
    for line in rows:
        entry = counts[tuple(line[column] for column in columns)]
        entry[0] += 1
        entry[1] += line["seconds"]
    return {key: (int(clips), seconds) for key, (clips, seconds) in sorted(counts.items())}
