"""Rows of manifests, JSON lines with a clip each: all of them in memory, or as streams."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from datasets import Dataset
from datasets import IterableDataset as Stream


EVERY_ROW = "every row"  # name of the one stream where rows are not told apart by task


def find_manifests(path: Path) -> list[Path]:
    """The manifest at a path, or those that its last part fits as a pattern (`train-*.jsonl`), by name.

    Raises: `FileNotFoundError` where there is none.
    """
    found = sorted(path.parent.glob(path.name)) if set("*?[") & set(path.name) else [path]
    if not found or not all(each.is_file() for each in found):
        raise FileNotFoundError(f"There is no data manifest `{path}`: `soundwave-hf data` builds the demo's.")
    return found


def read_lines(path: Path) -> Iterator[dict]:
    """Rows of the manifests at a path one by one.

    Raises: `FileNotFoundError`; `ValueError` for a line that is no row and a manifest that has none.
    """
    for manifest in find_manifests(path):
        yield from _read_manifest(manifest)


def _read_manifest(manifest: Path) -> Iterator[dict]:
    number = 0
    with open(manifest, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            yield _read_row(line, f"line {number} of `{manifest}`")
    if not number:
        raise ValueError(f"`{manifest}` is empty: it needs one JSON object a line, a clip each.")


def _read_row(line: str, name: str) -> dict:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{name} is no JSON: {error}.") from error
    missing = [key for key in ("audio", "text", "seconds") if not isinstance(row, dict) or key not in row]
    if missing:
        raise ValueError(f"{name} lacks {missing}: a row names its clip, the transcript and the length.")
    if row.get("question") and not row.get("answer"):
        raise ValueError(f"{name} has a `question` and no `answer`: give both, or neither for a transcript.")
    return row


def read_rows(path: Path, repeat: dict[str, int]) -> Dataset:
    """Rows of manifests, those of a source named in `repeat` several times; column `row` tells repeats apart.

    Raises: what `read_lines` raises; `ValueError` where `repeat` names a source that no row has.
    """
    rows = list(read_lines(path))
    unknown = set(repeat) - {row.get("source") for row in rows}
    if unknown:
        raise ValueError(f"`repeat` names {sorted(unknown)}, and no row of `{path}` has that source.")
    rows = [row for row in rows for _ in range(repeat.get(row.get("source"), 1))]
    columns = dict.fromkeys(key for row in rows for key in row)
    return Dataset.from_list([{**dict.fromkeys(columns), **row, "row": index} for index, row in enumerate(rows)])


def open_streams(path: Path, by_task: bool) -> tuple[dict[str, Stream], dict[str, int]]:
    """A stream of each task's rows, whose shards are the manifests that have some, and how many it has.

    All manifests are read to their ends, so that a line that is no row is found before the first step.

    Args:
        by_task (`bool`): whether to tell rows apart by their `task`, or else `source`; if not, they are one stream.

    Raises: what `read_lines` raises; `ValueError` where a row has neither task nor source and needs one.
    """
    counts: dict[str, Counter] = {}
    for manifest in find_manifests(path):
        for number, row in enumerate(_read_manifest(manifest), start=1):
            if (task := _task_of(row) if by_task else EVERY_ROW) is None:
                raise ValueError(
                    f"A mixture is of tasks, and line {number} of `{manifest}` has neither `task` nor `source`: give "
                    "it one of them."
                )
            counts.setdefault(task, Counter())[str(manifest)] += 1
    streams = {
        task: Stream.from_generator(
            _rows_of_task, gen_kwargs={"manifests": list(counts[task]), "task": task if by_task else None}
        )
        for task in sorted(counts)
    }
    return streams, {task: counts[task].total() for task in streams}


def _rows_of_task(manifests: list[str], task: str | None) -> Iterator[dict]:
    for manifest in manifests:
        for row in _read_manifest(Path(manifest)):
            if task is None or _task_of(row) == task:
                yield row


def _task_of(row: dict) -> str | None:
    task = row.get("task")
    return row.get("source") if task is None else task


__all__ = ["find_manifests", "open_streams", "read_lines", "read_rows"]
