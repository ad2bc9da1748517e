"""Verbs of `soundwave-hf` that show what a model does with a recording: `inspect` and `app`."""

import argparse

from . import __version__
from .cli_options import add_placing, add_verb, add_weights, given_placing, given_weights


FAILED = 2  # exit code where some files could not be drawn


def inspect(arguments: argparse.Namespace) -> int | None:
    from .inspect_files import inspect_files

    names = ("output", "force", "start", "end")
    given = {name: getattr(arguments, name) for name in names}
    return FAILED if inspect_files(arguments.audio, **given, **given_weights(arguments)) else None


def add_inspect(verbs):
    verb = add_verb(verbs, inspect, "draw what a model finds in a recording: sound, CTC peaks, positions of the LLM")
    verb.add_argument("audio", metavar="AUDIO", nargs="+", help="files, folders, patterns, or - for standard input")
    verb.add_argument(
        "--output", metavar="PNG", help="a name that ends in .png for one file, a folder for several; default: here"
    )
    verb.add_argument("--force", action="store_true", help="overwrite files")
    verb.add_argument("--start", type=float, metavar="SECONDS", help="where the part to draw begins; default: 0")
    verb.add_argument("--end", type=float, metavar="SECONDS", help="where it ends; default: the end of the file")
    add_weights(verb)


def app(arguments: argparse.Namespace):
    names = ("folder", "host", "port", "max_seconds")
    given = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    given |= given_placing(arguments)
    if arguments.write_space is not None:
        return write_space(arguments.write_space, given)
    from .app.serve import run_app

    run_app(**given)


def write_space(output: str, given: dict):
    from .app.space import write_space as write

    for name in ("host", "port", "device"):
        if name in given:
            raise ValueError(f"`--{name}` is chosen by the Space: leave it out with `--write-space`.")
    written = write(output, given.pop("folder", None), given)
    print(
        f"The Space is in {written}: `hf upload USER/SPACE {written} --repo-type space` puts it on the hub.\n"
        f"It installs soundwave-hf {__version__} from PyPI (requirements.txt). A private model needs a secret "
        "`HF_TOKEN` in the Space's settings."
    )


def add_app(verbs):
    verb = add_verb(verbs, app, "a page in the browser: microphone or file, transcripts, questions, pictures")
    verb.add_argument(
        "folder", metavar="FOLDER", nargs="?", help="adapters or a checkpoint, or a hub name; default: shipped weights"
    )
    verb.add_argument("--host", metavar="ADDRESS", help="where to listen, such as 0.0.0.0; default: 127.0.0.1")
    verb.add_argument("--port", type=int, help="default: the first free one from 7860")
    verb.add_argument("--max-seconds", type=float, help="longest recording; default: 300")
    verb.add_argument(
        "--write-space", metavar="OUT", help="write the page into this folder as a Space of the hub; nothing is served"
    )
    add_placing(verb, "float32 for adapters, a checkpoint's own")


ADD_APP_VERBS = (add_inspect, add_app)
