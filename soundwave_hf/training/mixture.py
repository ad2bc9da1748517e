"""Which clips are drawn and which share a batch: the paper's dynamic mixture of tasks, batches of like length."""

import itertools
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from datasets import IterableDataset as Stream
from datasets.distributed import split_dataset_by_node
from torch.utils.data import Dataset, IterableDataset, Sampler, get_worker_info

from ..data.mixture import Mixture


# What the classes below add to a row, for the collator. No column of a user has such a name.
TASK, PASS = "_task", "_pass"


@dataclass(frozen=True)
class LengthGroups:
    """How clips become batches of similar length.

    Args:
        batch_size (`int`): clips of a batch; with `max_batch_seconds`, the maximum.
        group (`int`): batches that stay together: those of one step, accumulated and of all processes.
        pool (`int`): groups over which clips are sorted by length.
        max_batch_seconds (`float`, *optional*): most audio of a batch, padding counted: clips times the longest.
        drop_last (`bool`): leave out the last batch if it has fewer than `batch_size` clips, or if there is none for
            some of the processes.
    """

    batch_size: int
    group: int = 1
    pool: int = 50
    max_batch_seconds: float | None = None
    drop_last: bool = False

    def check(self, seconds: Sequence[float]):
        """Raise `ValueError` if a single clip is over the limit."""
        if self.max_batch_seconds is not None and (longest := max(seconds)) > self.max_batch_seconds:
            count = sum(length > self.max_batch_seconds for length in seconds)
            raise ValueError(
                f"`max_batch_seconds` is {self.max_batch_seconds}, and {count} of the clips are longer, up to "
                f"{longest:.1f} s: give at least that, or leave these clips out of the data."
            )

    def batches(self, seconds: torch.Tensor, generator: torch.Generator) -> list[torch.Tensor]:
        """Lengths of clips in the order of their draws -> batches of their indices, shuffled by groups."""
        size = self.batch_size * self.group
        batches = []
        for positions in torch.arange(len(seconds)).split(size * self.pool):
            by_length = positions[seconds[positions].argsort(stable=True)]
            batches += by_length.split(self._batch_sizes(seconds[by_length].tolist()))
        # An incomplete group comes last: elsewhere it would shift later batches out of their groups.
        whole = len(seconds) // size if self.max_batch_seconds is None else len(batches) // self.group
        order = torch.randperm(whole, generator=generator).tolist()
        shuffled = [batch for index in order for batch in batches[index * self.group : (index + 1) * self.group]]
        rest = batches[whole * self.group :]
        if self.drop_last and self.max_batch_seconds is None:
            rest = [batch for batch in rest if len(batch) == self.batch_size]
        return shuffled + rest

    def _batch_sizes(self, ascending: list[float]) -> list[int]:
        limit = float("inf") if self.max_batch_seconds is None else self.max_batch_seconds
        sizes, size = [], 0
        for seconds in ascending:  # each is the longest so far
            if size == self.batch_size or (size and (size + 1) * seconds > limit):
                sizes.append(size)
                size = 0
            size += 1
        return [*sizes, size]


def number_tasks(rows: Sequence[dict]) -> tuple[list[str], list[int]]:
    """Rows of a data set -> the names of their tasks in order, and the number of each row's task.

    A row's task is its `task`, or else its `source`. Raises: `ValueError` if it has neither.
    """
    keys = ("task", "source")
    if hasattr(rows, "column_names"):
        columns = [rows[key] for key in keys if key in rows.column_names]
    else:  # a list, or a data set of PyTorch
        columns = list(zip(*([rows[index].get(key) for key in keys] for index in range(len(rows))), strict=True))
    names = [next((name for name in row if name is not None), None) for row in zip(*columns, strict=True)]
    if not columns or None in names:
        which = f"row {names.index(None)} has" if columns else "the rows have"
        raise ValueError(
            f"A mixture weighs tasks, and {which} neither `task` nor `source`: give each row one of them."
        )
    tasks = sorted(set(names))
    numbers = {task: number for number, task in enumerate(tasks)}
    return tasks, [numbers[name] for name in names]


class MixtureBatchSampler(Sampler[list[int]]):
    """Batches of clips of similar length, in the shares of a mixture. Their order depends on seed and epoch only.

    The sampler of transformers depends on the global random state: a resumed run would see other batches.

    An epoch has as many draws as there are clips. A task's clips are drawn without repeats until none is left, across
    epochs, then again. A draw is a number: clip `draw % len(seconds)`, which was drawn
    `draw // len(seconds)` times before; `DrawnRows` reads it. Without a mixture, draws are plain indices.

    All epochs have as many batches as the first. With `max_batch_seconds` the draws of a later epoch may fill fewer or
    more batches; the next epoch's draws then begin earlier or later.

    Args:
        seconds (`Sequence[float]`): length of each clip.
        groups (`LengthGroups`): how batches are made.
        tasks (`Sequence[int]`, *optional*): task of each clip, from 0; needed with a mixture.
        mixture (`Mixture`, *optional*): its epochs are those of this sampler.
    """

    def __init__(
        self,
        seconds: Sequence[float],
        groups: LengthGroups,
        tasks: Sequence[int] | None = None,
        mixture: Mixture | None = None,
        seed: int = 0,
    ):
        if mixture is not None and (tasks is None or len(tasks) != len(seconds)):
            arrived = "none" if tasks is None else len(tasks)
            raise ValueError(f"A mixture of {len(seconds)} clips needs the task of each, and {arrived} arrived.")
        groups.check(seconds)
        self.seconds = torch.as_tensor(seconds, dtype=torch.float64)
        self.groups, self.mixture, self.seed = groups, mixture, seed
        # accelerate expects batches of this size, or of any size if it is None.
        self.batch_size = groups.batch_size if groups.max_batch_seconds is None else None
        self.drop_last = groups.drop_last
        self.epoch = 0
        if mixture is not None:
            self._pools = [np.flatnonzero(np.asarray(tasks) == task) for task in range(max(tasks) + 1)]
        self._counts: dict[int, int] = {}

    def set_epoch(self, epoch: int):
        self.epoch = epoch

    def __len__(self) -> int:
        return self._num_batches(0)

    def __iter__(self) -> Iterator[list[int]]:
        first, begin = self.epoch * len(self), 0
        for epoch in itertools.count():
            if begin + self._num_batches(epoch) > first:
                batches = self._batches(epoch)
                for draws in batches[max(first - begin, 0) : first + len(self) - begin]:
                    yield draws.tolist()
            begin += self._num_batches(epoch)
            if begin >= first + len(self):
                return

    def _num_batches(self, epoch: int) -> int:
        if self.batch_size is not None:
            short = 0 if self.drop_last else self.batch_size - 1
            return (len(self.seconds) + short) // self.batch_size
        if epoch not in self._counts:
            self._counts[epoch] = len(self._batches(epoch))
        return self._counts[epoch]

    def _batches(self, epoch: int) -> list[torch.Tensor]:
        """The draws of one epoch as batches."""
        generator = torch.Generator().manual_seed(self.seed + 1_000_003 * epoch)
        draws = torch.arange(len(self.seconds)) if self.mixture is None else self._draws(epoch)
        draws = draws[torch.randperm(len(draws), generator=generator)]
        return [draws[batch] for batch in self.groups.batches(self.seconds[draws % len(self.seconds)], generator)]

    def _draws(self, epoch: int) -> torch.Tensor:
        sizes, count = [len(pool) for pool in self._pools], len(self.seconds)
        quotas = [self.mixture.quotas(sizes, past, count) for past in range(epoch + 1)]
        draws = []
        for task, pool in enumerate(self._pools):
            start = sum(int(past[task]) for past in quotas[:-1])
            stop = start + int(quotas[-1][task])
            while start < stop:
                repeat, offset = divmod(start, len(pool))
                order = np.random.default_rng((self.seed, task, repeat)).permutation(pool)
                draws.append(order[offset : offset + stop - start] + repeat * count)
                start += len(draws[-1])
        return torch.from_numpy(np.concatenate(draws))


class DrawnRows(Dataset):
    """Rows by the draws of a `MixtureBatchSampler`: `row` is the draw, so that repeats get different augmentation.

    Args:
        rows (`Sequence[dict]`, a `datasets.Dataset` for one).
        tasks (`Sequence[int]`, *optional*): becomes each row's `_task`, for counting shares.
    """

    def __init__(self, rows: Sequence[dict], tasks: Sequence[int] | None = None):
        self.rows, self.tasks = rows, tasks

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, draw: int) -> dict:
        index = draw % len(self.rows)
        task = {} if self.tasks is None else {TASK: self.tasks[index]}
        return {**self.rows[index], "row": draw, **task}


class MixtureStream(IterableDataset):
    """An endless mixture of streaming `datasets`, with clips of similar length together, that restarts exactly.

    `datasets.interleave_datasets` cannot change its shares, repeats an exhausted stream in the same order, and loses
    its shuffle buffer at a restart. Here each epoch draws the quotas of the mixture, and an exhausted stream starts
    again in the order of its next epoch (`set_epoch`). `state_dict` holds the streams' positions before the rows in
    memory were read: a restart reads those again, at most `batch_size * group * pool` rows.

    Rows come in the order of their batches: the loader's batch size must be that of `groups`. With
    `max_batch_seconds` whole batches come, lists of rows: `DataLoader(stream, batch_size=None, collate_fn=collator)`.
    Each row has `_task`, place of its task in `streams`, and `row`, its number among all draws.

    Give streams without shuffling: rows are shuffled here, in memory.

    Args:
        streams (`Mapping[str, datasets.IterableDataset]`): rows of each task, with a column `seconds`.
        sizes (`Mapping[str, int]`): rows of each task; their sum is an epoch.
        groups (`LengthGroups`): how batches are made; `group * pool` of them are held in memory.
        rank (`int`), world_size (`int`): of the processes that share the streams; a process's loader
            workers share its shards.
    """

    def __init__(
        self,
        streams: Mapping[str, Stream],
        sizes: Mapping[str, int],
        groups: LengthGroups,
        mixture: Mixture,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ):
        if not streams or set(streams) != set(sizes) or min(sizes.values()) < 1:
            raise ValueError(
                f"There are streams of {sorted(streams)} and sizes {dict(sizes)}: give each task both, a "
                "stream and its number of rows."
            )
        self.streams, self.groups, self.mixture, self.seed = dict(streams), groups, mixture, seed
        self.tasks, self.sizes = list(streams), [sizes[task] for task in streams]
        self.rank, self.world_size = rank, world_size
        self._start: dict | None = None
        self._state: dict | None = None

    def state_dict(self) -> dict:
        """The position after the last item; `None` before the first. It holds no audio."""
        return deepcopy(self._state)

    def load_state_dict(self, state: dict | None):
        """Start iterations at a state, or at the first row if it is `None`."""
        self._start = self._state = deepcopy(state)

    def __iter__(self) -> Iterator[dict] | Iterator[list[dict]]:
        part, parts = self._part()
        readers = self._open(part, parts)
        state = self._start or {"epoch": 0, "begin": 0, "given": 0}
        start, given = state["begin"], state["given"]
        for epoch in itertools.count(state["epoch"]):
            plan = self._plan(epoch, part, parts)
            for begin in range(start, len(plan), self._held):
                self._state = {"epoch": epoch, "begin": begin, "given": given, "part": [part, parts]}
                self._state["readers"] = [reader.state_dict() for reader in readers]
                first = (epoch * len(plan) + begin) * parts + part
                rows = [
                    {**readers[task].read(), TASK: task, "row": first + parts * offset}
                    for offset, task in enumerate(plan[begin : begin + self._held].tolist())
                ]
                for item in self._items(rows, (self.seed, epoch, begin, part))[given:]:
                    self._state["given"] += 1
                    yield item
                given = 0
            start = 0

    def _open(self, part: int, parts: int) -> list["_Reader"]:
        """A reader of this part of each stream, at the position of the state."""
        # `datasets` divides a stream's shards among loader workers itself.
        mine = {task: split_dataset_by_node(each, self.rank, self.world_size) for task, each in self.streams.items()}
        readers = [_Reader(task, each) for task, each in mine.items()]
        if self._start is not None:
            if self._start["part"] != [part, parts]:
                raise ValueError(
                    f"The state is of part {self._start['part']} and this is part {[part, parts]}: start as many "
                    "processes and loader workers as when it was saved."
                )
            for reader, state in zip(readers, self._start["readers"], strict=True):
                reader.load_state_dict(state)
        return readers

    @property
    def _held(self) -> int:
        return self.groups.batch_size * self.groups.group * self.groups.pool

    def _part(self) -> tuple[int, int]:
        """Index of this part of the draws, and the number of parts."""
        worker = get_worker_info()
        index, count = (0, 1) if worker is None else (worker.id, worker.num_workers)
        return self.rank * count + index, self.world_size * count

    def _plan(self, epoch: int, part: int, parts: int) -> np.ndarray:
        """The task of each draw of an epoch in this part. All parts together have the quotas, in whole groups."""
        size = self.groups.batch_size * self.groups.group * parts
        quotas = self.mixture.quotas(self.sizes, epoch, -(-sum(self.sizes) // size) * size)
        # Divide before shuffling: each part has as many rows of a task, and must draw as many.
        mine = np.repeat(np.arange(len(self.sizes)), quotas)[part::parts]
        return np.random.default_rng((self.seed, epoch, part)).permutation(mine)

    def _items(self, rows: list[dict], seed: tuple[int, ...]) -> list:
        seconds = [row["seconds"] for row in rows]
        self.groups.check(seconds)
        generator = torch.Generator().manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
        batches = [
            [rows[position] for position in batch.tolist()]
            for batch in self.groups.batches(torch.as_tensor(seconds, dtype=torch.float64), generator)
        ]
        return batches if self.groups.max_batch_seconds is not None else list(itertools.chain.from_iterable(batches))


class StreamBatchSampler(Sampler[list[dict]]):
    """Batches of a `MixtureStream`'s rows for a loader over `GivenRows`, and the stream's state after each.

    The loader's own process reads the stream, and its workers collate the rows, so the order does not depend on the
    number of workers. A loader reads ahead: the saved state is that after the batches that training has taken.

    Args:
        stream (`MixtureStream`): of this process.
        num_batches (`int`): of the whole run.
    """

    def __init__(self, stream: MixtureStream, num_batches: int):
        self.stream, self.num_batches = stream, num_batches
        self._num_passed = 0
        self._ahead: deque[dict] = deque()
        self._state: dict | None = None

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[list[dict]]:
        # `Trainer` skips the batches that a resumed run has had; the stream starts after them.
        yield from itertools.repeat([], self._num_passed)
        items, groups = iter(self.stream), self.stream.groups
        for _ in range(self._num_passed, self.num_batches):
            one_by_one = groups.max_batch_seconds is None
            batch = list(itertools.islice(items, groups.batch_size)) if one_by_one else next(items)
            self._ahead.append(self.stream.state_dict())
            yield batch

    def take(self, num_batches: int):
        """Count batches that training has taken."""
        for _ in range(num_batches):
            self._state = self._ahead.popleft()

    def state_dict(self) -> dict | None:
        """The stream's state after the batches that were taken; `None` before the first."""
        return self._state

    def load_state_dict(self, state: dict | None, num_passed: int):
        """Continue from a state; the first `num_passed` batches are empty, for the caller to skip."""
        self.stream.load_state_dict(state)
        self._state, self._num_passed = state, num_passed


class RepeatedStream(IterableDataset):
    """A stream without a length, again and again, in the order of its next epoch each time.

    `Trainer` would take each pass for an epoch, whose length it does not know: a resumed run could not tell where it
    had been, and batches that fill no step at the end of a pass would count in the next step.

    Args: rows: any stream; it ends where a pass has no rows. mark: whether each row says its pass, in `_pass`.
    """

    def __init__(self, rows: IterableDataset, mark: bool):
        self.rows, self.mark = rows, mark

    def __iter__(self) -> Iterator[dict]:
        for number in itertools.count():
            if hasattr(self.rows, "set_epoch"):
                self.rows.set_epoch(number)
            is_empty = True
            for row in self.rows:
                is_empty = False
                yield {**row, PASS: number} if self.mark else row
            if is_empty:
                return


class GivenRows(Dataset):
    """A data set whose "indices" are the rows that a `StreamBatchSampler` gives."""

    def __getitem__(self, row: dict) -> dict:
        return row


class _Reader:
    """A stream of one task. An exhausted one starts again in the order of its next epoch."""

    def __init__(self, task: str, stream: Stream):
        self.task, self.stream = task, stream
        self.epoch = 0
        self._rows: Iterator[dict] | None = None

    def state_dict(self) -> dict:
        return {"epoch": self.epoch, "stream": self.stream.state_dict()}

    def load_state_dict(self, state: dict):
        self.epoch = state["epoch"]
        self.stream.set_epoch(self.epoch)
        self.stream.load_state_dict(state["stream"])

    def read(self) -> dict:
        if self._rows is None:
            self._rows = iter(self.stream)
        if (row := next(self._rows, None)) is None:
            self.epoch += 1
            self.stream.set_epoch(self.epoch)
            self._rows = iter(self.stream)
            if (row := next(self._rows, None)) is None:
                raise ValueError(
                    f"The stream of task `{self.task}` has no row for one of the processes or loader workers that "
                    "share it: start fewer, or give it more shards."
                )
        return row


__all__ = [
    "PASS",
    "TASK",
    "DrawnRows",
    "GivenRows",
    "LengthGroups",
    "Mixture",
    "MixtureBatchSampler",
    "MixtureStream",
    "RepeatedStream",
    "StreamBatchSampler",
    "number_tasks",
]
