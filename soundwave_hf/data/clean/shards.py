"""The files between reading and the result: for each block of rows, its verdicts and the rows that filters keep.

`work/judged/PART-BLOCK.parquet` has a line for each row; it is written last, so a block that has it is whole.
`work/rows/PART-BLOCK.parquet` has the rows that the filters keep, in the form of the result.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features

from ...atomic import atomic_file
from .judge import Judge, Verdict
from .parts import Columns, Row


WORK, JUDGED, ROWS = "work", "judged", "rows"
LINES_AT_ONCE = 256
VERDICTS = pa.schema(
    [
        ("name", pa.string()),
        ("reasons", pa.list_(pa.string())),
        ("why", pa.string()),
        ("values", pa.string()),  # JSON
        ("seconds", pa.float64()),
        ("texts", pa.list_(pa.string())),
        ("peaks", pa.list_(pa.binary())),
        ("listing", pa.string()),  # JSON: the row without the bytes of its clips
        ("left_out", pa.list_(pa.string())),  # its columns that the result does not have
    ]
)


@dataclass(frozen=True)
class Block:
    """Consecutive rows of a part of the source. Its key names its files, and the order of keys is that of the rows."""

    part: int
    number: int
    rows: tuple[Row, ...]

    @property
    def key(self) -> str:
        return block_key(self.part, self.number)


def block_key(part: int, number: int) -> str:
    return f"{part:06d}-{number:08d}"


def judge_block(block: Block, judge: Judge, columns: Columns, folder: Path):
    """Judge the rows of a block and write its two files."""
    rows = [columns.refuse_unfit(row) for row in block.rows]
    verdicts = judge(rows)
    kept, lines = [], []
    for row, verdict in zip(rows, verdicts, strict=True):
        if not verdict.reasons:
            seconds = row.values.get("seconds")
            kept.append(columns.stored({**row.values, "seconds": verdict.seconds if seconds is None else seconds}))
        lines.append(_line(row, verdict, columns))
    if kept:
        write_table(folder / WORK / ROWS / f"{block.key}.parquet", columns.table(kept))
    write_table(folder / WORK / JUDGED / f"{block.key}.parquet", pa.Table.from_pylist(lines, VERDICTS))


def _line(row: Row, verdict: Verdict, columns: Columns) -> dict:
    listing = json.dumps(without_bytes(columns.with_label_names(row.values)), ensure_ascii=False, default=str)
    line = {**asdict(verdict), "listing": listing, "left_out": columns.left_out(row.values)}
    return line | {"values": json.dumps(verdict.values, ensure_ascii=False)}


def without_bytes(value):
    """A row's value for a list of rows: paths in place of clips, and no samples."""
    if isinstance(value, Mapping):
        if value.keys() & {"bytes", "array"}:
            return value.get("path")
        return {key: without_bytes(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list | tuple):
        return [without_bytes(inner) for inner in value]
    return None if isinstance(value, bytes | bytearray | memoryview) else value


def write_table(path: Path, table: pa.Table):
    """Write a Parquet file in one step."""
    with atomic_file(path) as part:
        pq.write_table(table, part)


# ---- reading them again ----


def judged_files(folders: Sequence[Path]) -> list[Path]:
    """The verdicts of all blocks in the folders, in the order of the rows."""
    files = [file for folder in folders for file in (folder / WORK / JUDGED).glob("*.parquet")]
    return sorted(files, key=lambda file: file.name)


def read_verdicts(file: Path) -> Iterator[dict]:
    """The lines of a block, with `values` and `listing` as objects."""
    with pq.ParquetFile(file) as opened:
        for batch in opened.iter_batches(LINES_AT_ONCE):
            for line in batch.to_pylist():
                yield {**line, "values": json.loads(line["values"]), "listing": json.loads(line["listing"])}


def judge_held_out(rows: Iterator[Row], path: Path):
    """Write the verdicts of the rows of evaluation sets: their texts and fingerprints."""
    judge, none = Judge([], fingerprints=True), Columns((), False, Features({}))
    with atomic_file(path) as part, pq.ParquetWriter(part, VERDICTS) as writer:
        while batch := list(islice(rows, LINES_AT_ONCE)):
            lines = [_line(row, verdict, none) for row, verdict in zip(batch, judge(batch), strict=True)]
            writer.write_table(pa.Table.from_pylist(lines, VERDICTS))


def write_kept(file: Path, places: Sequence[int], target: Path):
    """Write the rows at these places of a block's kept rows as a shard of the result.

    If all are kept, the shard is the same file under another name (a hard link), where the disk allows that.
    """
    rows = file.parent.parent / ROWS / file.name
    if pq.read_metadata(rows).num_rows != len(places):
        write_table(target, pq.read_table(rows).take(pa.array(places, pa.int64())))
        return
    with atomic_file(target) as part:
        part.unlink(missing_ok=True)
        try:
            os.link(rows, part)
        except OSError:  # another disk, or one without hard links
            shutil.copyfile(rows, part)


__all__ = [
    "JUDGED",
    "ROWS",
    "WORK",
    "Block",
    "block_key",
    "judge_block",
    "judge_held_out",
    "judged_files",
    "read_verdicts",
    "write_kept",
    "write_table",
]
