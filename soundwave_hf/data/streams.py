"""Streams of rows, which are read while they are used: one stream for each task, or one for all rows."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import datasets
from datasets import IterableDataset as Stream
from pyarrow import ArrowInvalid

from .layouts import find_layout
from .lengths import with_seconds
from .locate import HOLD_AUDIO, Found, Source, find, folder_of, list_sources
from .named_rows import checked_rows, library_splits, own_rows, tar_rows, undecoded, under_our_names, with_constants
from .rows import RowCheck, row_at_folder


EVERY_ROW = "every row"  # name of the stream if rows are not separated by task
UNKNOWN_SIZE = 100_000  # rows in an epoch of a stream whose size is unknown


@dataclass
class Streams:
    """Rows that are read while they are used.

    Args:
        streams (`dict`): a `datasets.IterableDataset` for each task.
        sizes (`dict`): number of rows of each; `UNKNOWN_SIZE` if the data set does not state it.
        counts (`dict`): clips and seconds by source; seconds are NaN if they are not known in advance.
        hold_audio (`bool`): whether rows contain clips, and not only their paths.
        seconds (`list`): the lengths that are known in advance.
    """

    streams: dict[str, Stream] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    counts: dict[tuple[str], tuple[int, float]] = field(default_factory=dict)
    hold_audio: bool = False
    seconds: list[float] = field(default_factory=list)

    def add(self, task: str, stream: Stream, size: int):
        if task in self.streams:
            try:
                stream = datasets.concatenate_datasets([self.streams[task], stream])
            except (ValueError, TypeError, ArrowInvalid) as error:  # pyarrow's ArrowTypeError is a TypeError
                raise ValueError(
                    f"A stream cannot join these sources ({error}). Give all of them the same form of clips (paths, "
                    "or clips inside the files; lists or single ones), or leave `streaming` out."
                ) from error
        self.streams[task] = stream
        self.sizes[task] = self.sizes.get(task, 0) + size

    def count(self, source: str | None, clips: int, seconds: float):
        key = (source or "-",)
        known = self.counts.get(key, (0, 0.0))
        self.counts[key] = (known[0] + clips, known[1] + seconds)


def open_streams(
    source,
    by_task: bool = False,
    columns: Mapping | None = None,
    check: RowCheck | None = None,
) -> Streams:
    """One stream for each task. Its shards are the files that have rows of the task.

    JSON, CSV, audio folders and layouts of whole clips are read completely first, so that a bad row is found before
    the first step. Rows of tars, segments of recordings, Parquet and the hub are checked when they are read.

    Args: by_task: whether to separate rows by `task`, or by `source` if they have no `task`; otherwise there is one
        stream. The other arguments are as in `open_rows`.

    Raises: the errors of `open_rows`; `ValueError` if a row has neither task nor source and needs one.
    """
    check, opened = check or RowCheck(), Streams()
    for each in list_sources(source, columns):
        for found in _whole_splits(find(each)):
            if found.kind in ("json", "csv", "audiofolder", "layout"):
                _add_files(opened, found, by_task, check)
            else:
                _add_unseen(opened, found, by_task, check)
    opened.streams = {task: opened.streams[task] for task in sorted(opened.streams)}
    opened.sizes = {task: opened.sizes[task] for task in opened.streams}
    opened.counts = dict(sorted(opened.counts.items()))
    return opened


def _whole_splits(found: Found) -> list[Found]:
    """The source, or once for each split that it joins (`train+validation`).

    Raises: `ValueError` for a part of a split.
    """
    if "[" in found.split:
        raise ValueError(f"`split` is {found.split!r}, but a stream has no parts of splits: name whole splits.")
    names = [name.strip() for name in found.split.split("+")]
    if len(names) == 1:
        return [found]
    return [replace(found, split=name, files=found.splits.get(name, found.files)) for name in names]


def _add_files(opened: Streams, found: Found, by_task: bool, check: RowCheck):
    """Add streams of files whose rows are counted first."""
    counts: dict[str, Counter] = {}
    for shard in shards_of(found):
        for name, row in checked_rows(Found(found.source, found.kind, shard), check):
            counts.setdefault(_task_of(row, by_task, name), Counter())[shard] += 1
            seconds = row.get("seconds")
            opened.count(row.get("source"), 1, float("nan") if seconds is None else seconds)
            if seconds is not None:
                opened.seconds.append(seconds)
    for task, by_shard in counts.items():
        options = {"shards": [*by_shard], "task": task if by_task else None, "found": found}
        opened.add(task, Stream.from_generator(_rows_of_task, gen_kwargs=options), by_shard.total())


def shards_of(found: Found) -> list[tuple[str, ...]]:
    """Groups of files that can be read alone."""
    together = found.kind == "audiofolder" or (
        found.source.layout is not None and not find_layout(found.source.layout).split_files
    )
    return [tuple(found.files)] if together else [(file,) for file in found.files]


def _rows_of_task(shards: list[tuple[str, ...]], task: str | None, found: Found) -> Iterator[dict]:
    for shard in shards:
        for name, row in own_rows(shard, found.kind, found.source):
            if task is None or _task_of(row, True, name) == task:
                yield with_seconds(row, name)


def _task_of(row: Mapping, by_task: bool, name: str) -> str:
    if not by_task:
        return EVERY_ROW
    if (task := row.get("source") if row.get("task") is None else row["task"]) is None:
        raise ValueError(f"A mixture needs tasks, and {name} has neither `task` nor `source`: give it one of them.")
    return task


def _add_unseen(opened: Streams, found: Found, by_task: bool, check: RowCheck):
    """Add the stream of a source whose rows are not read before training. All of them are one task."""
    source, opened.hold_audio = found.source, True
    task = (source.task or source.source or source.path) if by_task else EVERY_ROW
    if found.kind in HOLD_AUDIO:
        options = {"shards": shards_of(found), "found": found, "check": check}
        stream, size = Stream.from_generator(tar_rows, gen_kwargs=options), None
    else:
        stream, size = library_stream(found)
        stream = under_our_names(undecoded(stream), source)
        stream = stream.map(_Finish(source, check, folder_of(found)), with_indices=True)
    opened.add(task, stream, size or UNKNOWN_SIZE)
    opened.count(source.source or source.path, size or 0, float("nan"))


def library_stream(found: Found) -> tuple[Stream, int | None]:
    """The stream of a source that `datasets` reads, and its number of rows if that is known."""
    if found.kind == "saved":
        rows = library_splits(found)[found.split]
        return rows.to_iterable_dataset(num_shards=max(1, min(len(found.files), len(rows)))), len(rows)
    known = (found.builder.info.splits or {}).get(found.split)
    return found.builder.as_streaming_dataset(split=found.split), known.num_examples if known else None


@dataclass
class _Finish:
    """Checks each row of a stream and adds its length."""

    source: Source
    check: RowCheck
    folder: str | None

    def __call__(self, row: dict, index: int) -> dict:
        name = f"row {index} of `{self.source.path}`"
        self.check(row, name)
        return with_seconds(with_constants(row_at_folder(row, self.folder), self.source), name)


__all__ = ["EVERY_ROW", "UNKNOWN_SIZE", "Streams", "library_stream", "open_streams", "shards_of"]
