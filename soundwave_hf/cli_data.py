"""`soundwave-hf data`: one verb a function, as in `cli`."""

import argparse

from .cli_options import (
    add_backbones,
    add_placing,
    add_verb,
    given_backbones,
    given_placing,
    read_columns,
    read_mapping,
    refuse_backbones_of_model,
)


BAD_CLIPS = 1  # exit code of a check that found some


def read_source(text: str):
    """SOURCE as a recipe's `data` would read it: a name, a mapping or a list.

    Raises: ValueError where it is not YAML.
    """
    from .keys import read_yaml

    return read_yaml(text, "SOURCE")


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
    verb = add_verb(verbs, check, "read every clip of SOURCE, count the bad ones and name the first 20")
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


def build(arguments: argparse.Namespace):
    from .data.build.run import build as run_build

    run_build(arguments.recipe, arguments.output, arguments.processes)


def add_build(verbs):
    verb = add_verb(verbs, build, "make rows from other rows: splice sounds and speakers, ask questions, speak texts")
    verb.add_argument("recipe", metavar="RECIPE", help="YAML file with the steps, see docs/data.md")
    verb.add_argument("output", metavar="OUT", help="folder to write; the same command continues a stopped run")
    verb.add_argument("--processes", type=int, default=1, help="the result does not depend on them; default: 1")


def stats(arguments: argparse.Namespace):
    from .atomic import refuse_output
    from .data.locate import files_of
    from .data.mixture import Mixture
    from .data.stats import check_output, collect_stats, describe_stats, write_stats

    for path in arguments.output:
        check_output(path)
    if arguments.epochs < 1:
        raise ValueError(f"`--epochs` is {arguments.epochs}; give 1 or more.")
    source, columns, options, llm = read_source(arguments.source), read_columns(arguments.columns), {}, arguments.llm
    mixture = read_mapping(arguments.mixture, "--mixture", "{temperature: 1, step: 5}")
    if unknown := mixture.keys() - {"temperature", "step"}:
        raise ValueError(f"`--mixture` has {sorted(unknown)}; its keys are temperature and step.")
    mixture = Mixture(**mixture) if arguments.mixture else None
    if isinstance(source, str) and source.endswith((".yaml", ".yml")):
        from .training.recipe import read_recipe

        if columns:
            raise ValueError("`--columns` was given, and the recipe has its own `columns`: leave one of them out.")
        recipe, _ = read_recipe(source)
        source, options, llm = recipe.sources, {"repeat": recipe.repeat}, llm or recipe.llm
        mixture = mixture or recipe.mixture
    files = files_of(source) if arguments.output else ()
    for path in arguments.output:
        refuse_output(path, "--output", files)
    found = collect_stats(source, columns, llm and read_tokenizer(llm), **options)
    report = found.report(mixture, arguments.epochs)
    print(describe_stats(report), flush=True)
    for path in arguments.output:
        write_stats(report, path)


def read_tokenizer(llm: str):
    """The tokenizer of an LLM by folder or hub name."""
    from transformers import AutoTokenizer

    from .data.backbones import resolve_backbone

    return AutoTokenizer.from_pretrained(resolve_backbone(llm, weights=False))


def add_stats(verbs):
    verb = add_verb(verbs, stats, "hours, lengths, speakers, languages, tasks and target tokens of SOURCE or a recipe")
    add_source(verb)
    verb.add_argument("--llm", metavar="NAME", help="count targets in the tokens of this LLM; default: in characters")
    verb.add_argument("--mixture", metavar="MAPPING", help="show its shares: '{temperature: 1, step: 5}'")
    verb.add_argument("--epochs", type=int, default=5, help="of the mixture that are shown; default: %(default)s")
    verb.add_argument(
        "--output", metavar="FILE", action="append", default=[], help="also write .json or .png; may come twice"
    )


def show(arguments: argparse.Namespace) -> int | None:
    from .data.show import llm_processor, show_row

    has_weights = arguments.model is not None or arguments.adapter is not None
    placing = given_placing(arguments)
    refuse_backbones_of_model(arguments)
    if not has_weights and (arguments.encoder or arguments.allow_other_backbones or placing):
        raise ValueError(
            "`--encoder`, `--allow-other-backbones`, `--device` and `--dtype` need weights: give `--adapter` or "
            "`--model`."
        )
    model = processor = None
    if has_weights:
        from .evaluation.shipped import load_weights

        backbones = given_backbones(arguments) if arguments.adapter else {}
        folder = arguments.adapter or arguments.model
        model, processor = load_weights(folder, arguments.adapter is not None, ctc_only=True, **placing, **backbones)
    elif arguments.llm is not None:
        processor = llm_processor(arguments.llm)
    source, columns = read_source(arguments.source), read_columns(arguments.columns)
    usable = show_row(source, arguments.row, columns, processor, model, arguments.output)
    return None if usable else BAD_CLIPS


def add_show(verbs):
    verb = add_verb(verbs, show, "one row as the model will see it, with a picture of its clip")
    add_source(verb)
    verb.add_argument("row", metavar="ROW", help="its number from 0, its `id`, or the path of its clip")
    which = verb.add_mutually_exclusive_group()
    which.add_argument("--model", metavar="FOLDER", help="a whole checkpoint, or its name on the hub")
    which.add_argument("--adapter", metavar="FOLDER", help="adapters for the backbones")
    add_backbones(verb)
    add_placing(verb, "float32 for adapters, a checkpoint's own")
    verb.add_argument("--output", metavar="FILE", help="PNG of the clip: with weights, also CTC peaks and positions")


def card(arguments: argparse.Namespace):
    import dataclasses

    from .data.card import read_facts, write_card

    facts = read_facts(arguments.folder).with_licenses(read_source(arguments.licenses) if arguments.licenses else None)
    if arguments.title is not None:
        facts = dataclasses.replace(facts, title=arguments.title)
    print(f"The card is in {write_card(arguments.folder, facts)}.", flush=True)


def add_card(verbs):
    verb = add_verb(verbs, card, "write the dataset card of a folder of rows: counts, sources, licences")
    verb.add_argument("folder", metavar="FOLDER", help="what `data clean` or `data build` wrote, or files of rows")
    verb.add_argument(
        "--licenses", metavar="MAPPING", help="of the sources: '{librispeech: cc-by-4.0}', or one for all: cc-by-4.0"
    )
    verb.add_argument("--title", help="of the card; default: the folder's name")


def push(arguments: argparse.Namespace):
    from .data.publish import push_folder

    address = push_folder(arguments.folder, arguments.repo, arguments.private or None, arguments.revision)
    print(f"Pushed to {address}.", flush=True)


def add_push(verbs):
    verb = add_verb(verbs, push, "push a folder with its card to the hub, clips inside")
    verb.add_argument("folder", metavar="FOLDER", help="folder with a card")
    verb.add_argument("repo", metavar="USER/REPO", help="data set on the hub; it is created if it is missing")
    verb.add_argument("--private", action="store_true", help="make a new repository private")
    verb.add_argument("--revision", metavar="BRANCH", help="branch to push to; default: main")


ADD_DATA_VERBS = (add_check, add_clean, add_merge, add_build, add_stats, add_show, add_card, add_push)
