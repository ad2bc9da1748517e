"""Clean a data set: rows of any source -> kept rows, dropped rows with reasons, and a report.

The rows are judged in blocks, each by itself, in any number of processes and on any number of machines. Then one
process goes through the verdicts in the order of the rows, finds leaks and near duplicates, and writes the result.
"""

import errno
import json
import multiprocessing
import os
import platform
import shutil
import signal
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from multiprocessing import connection
from pathlib import Path

import pyarrow.parquet as pq
from tqdm.auto import tqdm

from ...atomic import atomic_file, refuse_file_name, refuse_used
from ...json_files import read_json_object
from ...paths import one_or_more
from ..locate import digest_source, list_sources
from ..prepared import REPORT, read_report
from ..readers import KINDS
from .decide import decide
from .duplicates import Comparisons
from .filter import Filter
from .judge import Judge
from .parts import Columns, Part, open_parts, scan
from .report import Totals, write_report
from .settings import read_filters, settings_of
from .shards import WORK, Block, block_key, judge_block, judge_held_out, judged_files


BLOCK_ROWS = 256
RUN, COMPLETE = "run.json", "complete.json"
HELD_OUT = "held_out.parquet"  # in `work`
LIBRARIES = ("datasets", "numpy", "pyarrow", "soundfile", "soxr", "torch", "transformers")
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
# What must be equal for a run to go on, or for shards to be merged, and what errors call it.
SAME = {
    "data": "other data",
    "columns": "other `columns`",
    "settings": "other filters or thresholds",
    "against": "other evaluation sets",
    "block_rows": "other `block_rows`",
    "soundwave_hf": "another version of soundwave_hf",
    "shard": "another shard",
}


def clean(
    source,
    out: str | os.PathLike,
    filters=None,
    columns: Mapping | None = None,
    against: str | os.PathLike | Mapping | Sequence = (),
    processes: int = 1,
    shard: tuple[int, int] | None = None,
    block_rows: int = BLOCK_ROWS,
) -> dict:
    """Write the rows of a source that filters keep to a folder. A run that was stopped goes on after its last block.

    Args:
        source: what `data` of a recipe takes. Its rows are read while they are used.
        out: the folder: `kept/*.parquet`, `dropped/*.jsonl`, `report.json`, `report.md`, `report.png`.
        filters: YAML file or mapping of thresholds; or a list of `Filter` and `Comparison`.
        columns: `their_name: our_name`.
        against: an evaluation set or several, each as `source`: rows that repeat its recordings or texts are dropped.
        processes: on this machine.
        shard: `(2, 8)` judges the second of eight shares of the rows; `merge` joins the folders.
        block_rows: rows of a block, and of a file of the result.

    Returns: the report; of a shard, its number of rows.

    Raises: `FileNotFoundError`, `ValueError` for a source, column or setting that cannot be used; `FileExistsError` if
        the folder holds another run; `OSError` if the disk is full: the blocks that are whole stay.
    """
    against = [against] if isinstance(against, Mapping) else one_or_more(against)
    refuse_file_name(out, "OUT", KINDS, "leave its ending out")
    out, plan = Path(out), _Plan.read(source, filters, columns, against, shard, block_rows)
    for name, value in (("processes", processes), ("block_rows", block_rows)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"`{name}` is {value!r}; expected a whole number from 1.")
    if (report := _finished(out, plan.identity)) is not None:
        return report
    parts = open_parts(source, columns)
    layout, count = scan(parts)
    held_out = [part for each in against for part in open_parts(each)]
    if held_out:
        scan(held_out)  # refuses wrong columns
    with disk_full_explained(out):
        _write_json(out / RUN, plan.identity)
        if held_out and not (out / WORK / HELD_OUT).exists():
            judge_held_out((row for part in held_out for row in part.read()), out / WORK / HELD_OUT)
        work = _Work(plan.filters, plan.limits, layout, out)
        _judge_all(plan.blocks(parts, out), work, processes, count if shard is None else None)
        if shard is not None:
            return _finish_shard(out, shard)
        return _finish([out], out, plan.filters, plan.limits, plan.identity)


def merge(
    parts: str | os.PathLike | Sequence[str | os.PathLike],
    out: str | os.PathLike,
    filters: Sequence[Filter] | None = None,
) -> dict:
    """Join the folders of all shards of a run: near duplicates are found, and the result is that of one run.

    Args: filters: needed only for filters that no YAML file can name.

    Returns: the report.

    Raises: `FileNotFoundError` for a shard that is missing; `ValueError` if one is not complete or of another run.
    """
    refuse_file_name(out, "OUT", KINDS, "leave its ending out")
    folders, out = [Path(part) for part in one_or_more(parts)], Path(out)
    identities = [_read_shard(folder) for folder in folders]
    _check_shards(folders, identities)
    identity = {**identities[0], "shard": None}
    if (report := _finished(out, identity)) is not None:
        return report
    rows, limits = read_filters(identity["settings"] if filters is None else filters)
    if settings_of(rows, limits) != identity["settings"]:
        raise ValueError(f"`{folders[0]}` was judged with {identity['settings']}: give the same `filters`.")
    with disk_full_explained(out):
        _write_json(out / RUN, identity)
        return _finish(folders, out, rows, limits, identity)


def _read_shard(folder: Path) -> dict:
    """What a shard's folder says about its run.

    Raises: `FileNotFoundError` if there is none, `ValueError` if it is not complete.
    """
    if not (folder / RUN).exists():
        raise FileNotFoundError(f"`{folder}` holds no shard: give folders that `data clean --shard i/n` wrote.")
    identity = read_json_object(folder / RUN, "clean this shard again in a new folder", needed=("shard", "settings"))
    if identity["shard"] is None:
        raise ValueError(f"`{folder}` holds a whole run, not a shard: there is nothing to merge.")
    if not (folder / WORK / COMPLETE).exists():
        index, count = identity["shard"]
        raise ValueError(f"Shard {index}/{count} in `{folder}` is not complete: run its `data clean` again.")
    return identity


def _check_shards(folders: Sequence[Path], identities: Sequence[Mapping]):
    """Raises: `ValueError` if these are not all shards of one run, each once."""
    if not folders:
        raise ValueError("There is nothing to merge: give the folders of all shards.")
    first = {**identities[0], "shard": None}
    for folder, identity in zip(folders, identities, strict=True):
        if (what := _difference(first, {**identity, "shard": None})) is not None:
            raise ValueError(f"`{folder}` is of a run with {what} than `{folders[0]}`: clean them the same way.")
    counts = {identity["shard"][1] for identity in identities}
    if len(counts) > 1:
        raise ValueError(f"The shards are parts of {sorted(counts)}: give those of one division.")
    found = sorted(identity["shard"][0] for identity in identities)
    if double := [index for index in found if found.count(index) > 1]:
        raise ValueError(f"Shard {double[0]}/{counts.pop()} is given twice: give each once.")
    if missing := sorted(set(range(1, max(counts) + 1)) - set(found)):
        names = ", ".join(f"{index}/{max(counts)}" for index in missing)
        raise ValueError(f"These shards are missing: {names}. Give the folders of all.")


# ---- a run as it was asked for ----


@dataclass(frozen=True)
class _Plan:
    """What to do, and what identifies the run."""

    filters: list[Filter]
    limits: Comparisons
    shard: tuple[int, int] | None
    block_rows: int
    identity: dict

    @classmethod
    def read(cls, source, filters, columns, against, shard, block_rows) -> "_Plan":
        rows, limits = read_filters(filters)
        if shard is not None:
            _check_shard(*shard)
        identity = {
            "source": [each.path for each in list_sources(source, columns)],
            "data": [digest_source(each) for each in list_sources(source, columns)],
            "columns": dict(columns or {}),
            "settings": settings_of(rows, limits),
            "against": [digest_source(each) for sources in against for each in list_sources(sources)],
            "block_rows": block_rows,
            "shard": None if shard is None else list(shard),
            "seed": limits.seed,
            "soundwave_hf": _version("soundwave-hf"),
            "versions": {"python": platform.python_version(), **{name: _version(name) for name in LIBRARIES}},
        }
        return cls(rows, limits, shard, block_rows, json.loads(json.dumps(identity)))

    def blocks(self, parts: Sequence[Part], out: Path) -> Iterator[Block]:
        """The blocks of this shard that are not yet judged."""
        done = {file.stem for file in judged_files([out])}
        for number, part in enumerate(parts):
            if self.takes_part(number, len(parts)):
                yield from _blocks_of(part, number, self.block_rows, self.wanted(number, len(parts), done))

    def takes_part(self, part: int, parts: int) -> bool:
        """Whether any block of a part is in this shard. Shards are whole files where there are enough of them."""
        return self.shard is None or parts < self.shard[1] or part % self.shard[1] == self.shard[0] - 1

    def wanted(self, part: int, parts: int, done: set[str]) -> Callable[[int], bool]:
        def is_wanted(block: int) -> bool:
            whole = self.shard is None or parts >= self.shard[1]
            mine = whole or (part + block) % self.shard[1] == self.shard[0] - 1
            return mine and block_key(part, block) not in done

        return is_wanted


def _blocks_of(part: Part, number: int, block_rows: int, wanted: Callable[[int], bool]) -> Iterator[Block]:
    rows, block = part.read(), 0
    while batch := tuple(islice(rows, block_rows)):
        if wanted(block):
            yield Block(number, block, batch)
        block += 1


def _check_shard(index, count):
    if not all(isinstance(number, int) and not isinstance(number, bool) for number in (index, count)) or not (
        1 <= index <= count
    ):
        raise ValueError(f"`shard` is {index}/{count}; expected i/n with i from 1 to n, such as 1/8 to 8/8.")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


# ---- judging, in one or several processes ----


@dataclass(frozen=True)
class _Work:
    """What a process needs to judge blocks."""

    filters: list[Filter]
    limits: Comparisons
    layout: Columns
    out: Path

    def judge(self) -> Judge:
        return Judge(self.filters, self.limits.of_recordings)


def _judge_all(blocks: Iterator[Block], work: _Work, processes: int, count: int | None):
    with tqdm(total=count, desc="judging", unit="row", disable=count is not None and count < BLOCK_ROWS) as bar:
        if processes == 1:
            judge = work.judge()
            for block in blocks:
                judge_block(block, judge, work.layout, work.out)
                bar.update(len(block.rows))
            return
        # Not by `fork`: threads of the libraries may hold locks at that moment.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        with ProcessPoolExecutor(processes, context, _begin_worker, (work, processes)) as pool:
            waiting = {}
            for block in blocks:
                waiting[pool.submit(_judge_in_worker, block)] = len(block.rows)
                if len(waiting) >= 2 * processes:  # so that not all rows are read at once
                    _collect(waiting, bar)
            while waiting:
                _collect(waiting, bar)


def _collect(waiting: dict, bar):
    for future in wait(waiting, return_when=FIRST_COMPLETED).done:
        bar.update(waiting.pop(future))
        try:
            future.result()
        except BrokenProcessPool as error:
            raise RuntimeError(
                "A process ended before its block was judged, as when the memory is full. Run the same command with "
                "fewer `--processes`: it goes on after the whole blocks."
            ) from error


_worker: list = []  # of a worker process: its work and its judge


def _begin_worker(work: _Work, processes: int):
    import torch

    torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker[:] = [work, work.judge()]


def _end_with_parent():
    connection.wait([multiprocessing.parent_process().sentinel])
    signal.raise_signal(signal.SIGTERM)


def _judge_in_worker(block: Block):
    work, judge = _worker
    judge_block(block, judge, work.layout, work.out)


# ---- the folder of a run ----


def _finished(out: Path, identity: Mapping) -> dict | None:
    """The report of a folder whose run is complete; None for a new folder, or a run to go on with.

    Raises: `FileExistsError` if the folder holds something else.
    """
    if not (out / RUN).exists():
        refuse_used(out)
        return None
    before = read_json_object(out / RUN, "name a new folder")
    if (what := _difference(before, identity)) is not None:
        raise FileExistsError(f"`{out}` holds a run with {what}: name a new folder, or remove it.")
    if not (out / REPORT).exists():
        return None
    shutil.rmtree(out / WORK, ignore_errors=True)
    return read_report(out)


def _difference(one: Mapping, other: Mapping) -> str | None:
    """What distinguishes two runs, in words."""
    return next((words for key, words in SAME.items() if one.get(key) != other.get(key)), None)


def _finish_shard(out: Path, shard: tuple[int, int]) -> dict:
    rows = sum(pq.read_metadata(file).num_rows for file in judged_files([out]))
    _write_json(out / WORK / COMPLETE, {"shard": list(shard), "rows": rows})
    return {"shard": list(shard), "rows": rows}


def _finish(folders: Sequence[Path], out: Path, filters, limits: Comparisons, identity: Mapping) -> dict:
    held_out, totals = folders[0] / WORK / HELD_OUT, Totals()
    decide(folders, held_out if held_out.exists() else None, limits, out, totals)
    about = {
        key: identity[key] for key in ("source", "data", "columns", "settings", "seed", "soundwave_hf", "versions")
    }
    report = write_report(out, filters, limits, totals, about | {"against_data": identity["against"]})
    shutil.rmtree(out / WORK, ignore_errors=True)
    return report


def _write_json(path: Path, value):
    with atomic_file(path) as part:
        part.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


@contextmanager
def disk_full_explained(out: Path) -> Iterator[None]:
    """Say what to do when the disk is full."""
    try:
        yield
    except (OSError, sqlite3.OperationalError) as error:
        if getattr(error, "errno", None) not in DISK_FULL and "disk is full" not in str(error):
            raise
        raise OSError(
            f"The disk of `{out}` is full ({error}). {len(judged_files([out]))} whole blocks of rows stay there. Free "
            "some space and run the same command again: it goes on after them."
        ) from error


__all__ = ["BLOCK_ROWS", "clean", "merge"]
