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


def build(arguments: argparse.Namespace):
    from .data.build.run import build as run_build

    run_build(arguments.recipe, arguments.output, arguments.processes)


def add_build(verbs):
    verb = add_verb(verbs, build, "make rows from other rows: splice sounds and speakers, ask questions, speak texts")
    verb.add_argument("recipe", metavar="RECIPE", help="YAML file with the steps, see docs/data.md")
    verb.add_argument("output", metavar="OUT", help="folder to write; the same command continues a stopped run")
    verb.add_argument("--processes", type=int, default=1, help="the result does not depend on them; default: 1")


ADD_DATA_VERBS = (add_check, add_build)
