"""Rows of manifests by their path. `soundwave_hf.data.sources` opens these and every other source of data."""

import os
from pathlib import Path

from datasets import Dataset
from datasets import IterableDataset as Stream

from ..data import sources
from ..data.sources import find_files as find_manifests


def read_rows(path: str | os.PathLike, repeat: dict[str, int]) -> Dataset:
    """`open_rows` of a path: rows of a source named in `repeat` come several times."""
    return sources.open_rows(str(path), repeat=repeat)


def open_streams(path: Path, by_task: bool) -> tuple[dict[str, Stream], dict[str, int]]:
    """A stream of each task's rows, and how many it has; see `sources.open_streams`."""
    opened = sources.open_streams(str(path), by_task)
    return opened.streams, opened.sizes


__all__ = ["find_manifests", "open_streams", "read_rows"]
