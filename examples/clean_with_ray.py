"""Clean a data set with Ray Data: the filters of `soundwave-hf data clean`, on the workers of a Ray cluster.

pip install ray
python examples/clean_with_ray.py rows.jsonl cleaned --workers 2 --filters filters.yaml

Near duplicates and leaks need all rows, so they are not found here: run `soundwave-hf data clean` on the result.
"""

import argparse
import sys
from pathlib import Path

import ray

from soundwave_hf.data.clean.judge import CleanRows
from soundwave_hf.data.sources import open_rows


ROWS_AT_ONCE = 64


def clean_with_ray(source, out: Path, filters=None, workers: int = 2) -> tuple[int, int]:
    """Write the rows that the filters keep as Parquet files.

    Args:
        source: what `data` of a recipe takes.
        filters: as in `soundwave_hf.data.clean.run.clean`.
        workers: processes, each of which loads the models that the filters need once.
    Returns: the numbers of all rows and of kept rows.
    """
    rows = open_rows(source, with_seconds=False)
    judged = ray.data.from_huggingface(rows).map_batches(
        CleanRows,
        fn_constructor_kwargs={"filters": filters},
        batch_size=ROWS_AT_ONCE,
        compute=ray.data.ActorPoolStrategy(size=workers),
    )
    kept = judged.filter(lambda row: not row["dropped_by"]).materialize()
    kept.drop_columns(["dropped_by", "measured"]).write_parquet(str(out.resolve()))
    return len(rows), kept.count()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", help="what `data` of a recipe takes")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--filters", help="YAML file of filters and thresholds")
    parser.add_argument("--workers", type=int, default=2, help="default: %(default)s")
    arguments = parser.parse_args()
    if arguments.out.exists():
        sys.exit(f"`{arguments.out}` exists: name a new folder, or remove it.")
    ray.init(num_cpus=arguments.workers + 1)  # one for reading and writing; on a cluster, `ray.init()`
    rows, kept = clean_with_ray(arguments.source, arguments.out, arguments.filters, arguments.workers)
    print(f"{kept:,} of {rows:,} rows are kept; they are in {arguments.out}.")


if __name__ == "__main__":
    main()
