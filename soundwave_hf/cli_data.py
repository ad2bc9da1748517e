"""`soundwave-hf data`: one verb a function, as in `cli`."""

import argparse

from .cli_options import add_verb, read_columns


BAD_CLIPS = 1  # exit code of a check that found some


def read_source(text: str):
    """SOURCE as a recipe's `data` would read it: a name, a mapping or a list.

    Raises: ValueError where it is not YAML.
    """
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"SOURCE cannot be read as YAML: {error}") from error


def add_source(verb: argparse.ArgumentParser):
    """SOURCE and `--columns`: the rows that a verb reads."""
    verb.add_argument("source", metavar="SOURCE", help="what `data` of a recipe takes")
    verb.add_argument("--columns", metavar="MAPPING", help="their names and ours: '{sentence: text}'")


def check(arguments: argparse.Namespace) -> int | None:
    from .data.check import check_source

    source, columns = read_source(arguments.source), read_columns(arguments.columns)
    bad = check_source(source, columns, arguments.skip, arguments.max_seconds)
    return BAD_CLIPS if bad and arguments.skip is None else None


def add_check(verbs):
    verb = add_verb(verbs, check, "read every clip of SOURCE and list the bad ones")
    add_source(verb)
    verb.add_argument("--skip", metavar="OUT", help="write the rows without bad clips there (.jsonl or .parquet)")
    verb.add_argument("--max-seconds", type=float, help="longest clip that is accepted")


def clean(arguments: argparse.Namespace):
    from .data.clean.run import clean as clean_source

    report = clean_source(
        read_source(arguments.source),
        arguments.output,
        arguments.filters,
        columns=read_columns(arguments.columns),
        against=[read_source(text) for text in arguments.against],
        processes=arguments.processes,
        shard=read_shard(arguments.shard),
        block_rows=arguments.block_rows,
    )
    print_cleaned(report, arguments.output)


def read_shard(text: str | None) -> tuple[int, int] | None:
    """`"2/8"` -> `(2, 8)`. Raises: ValueError for another form."""
    if text is None:
        return None
    index, slash, count = text.partition("/")
    if not slash or not (index.isdecimal() and count.isdecimal()):
        raise ValueError(f"`--shard` is `{text}`; expected i/n with i from 1 to n, such as 1/8 to 8/8.")
    return int(index), int(count)


def print_cleaned(report: dict, folder: str):
    """The table of a report, or what to do with a shard."""
    if "filters" in report:
        from .data.clean.report import table

        end = f"The kept rows are in {folder}." if report["kept"] else f"No row is kept: {folder}/dropped says why."
        print(f"{table(report)}\n{end}", flush=True)
        return
    index, count = report["shard"]
    print(
        f"Shard {index}/{count} is complete: {report['rows']:,} rows. When all shards are, join them with "
        "`soundwave-hf data merge PART ... OUT`.",
        flush=True,
    )


def add_clean(verbs):
    verb = add_verb(verbs, clean, "write the rows of SOURCE that filters keep, and a report, to a folder")
    add_source(verb)
    verb.add_argument("output", metavar="OUT", help="folder to write; a run that was stopped goes on there")
    verb.add_argument("--filters", metavar="FILE", help="YAML file of filters and thresholds; default: the package's")
    verb.add_argument(
        "--against",
        metavar="SOURCE",
        nargs="+",
        default=[],
        help="evaluation sets: rows that repeat their recordings or texts are dropped",
    )
    verb.add_argument("--processes", type=int, default=1, metavar="N", help="on this machine; default: %(default)s")
    verb.add_argument("--shard", metavar="I/N", help="judge the I-th of N shares of the rows; `data merge` joins them")
    verb.add_argument(
        "--block-rows", type=int, default=256, help="rows of each file of the result; default: %(default)s"
    )


def merge(arguments: argparse.Namespace):
    from .data.clean.run import merge as merge_shards

    print_cleaned(merge_shards(arguments.parts, arguments.output), arguments.output)


def add_merge(verbs):
    verb = add_verb(verbs, merge, "join the folders of all shards of `data clean`")
    verb.add_argument("parts", metavar="PART", nargs="+", help="the folders that `data clean --shard` wrote")
    verb.add_argument("output", metavar="OUT", help="folder to write")


ADD_DATA_VERBS = (add_check, add_clean, add_merge)
