"""Options that several verbs of `soundwave-hf` have, and how their values are read."""

import argparse
from collections.abc import Callable


def add_verb(verbs, run: Callable, summary: str, usage: str | None = None) -> argparse.ArgumentParser:
    """A verb that `run` carries out, with the options that all verbs have. Args: summary: its line in `--help`."""
    verb = verbs.add_parser(run.__name__, help=summary, description=summary, usage=usage, allow_abbrev=False)
    # No default: that of `data check` would replace the value given before `check`.
    verb.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error")
    verb.set_defaults(run=run, parser=verb, verb=verb.prog.partition(" ")[2])  # `data check` for a verb of a verb
    return verb


def add_backbones(verb: argparse.ArgumentParser):
    """`--encoder`, `--llm` and `--allow-other-backbones`: what adapters belong to."""
    for name in ("--encoder", "--llm"):
        verb.add_argument(name, metavar="NAME", help="what the adapters belong to; default: what they name")
    verb.add_argument(
        "--allow-other-backbones",
        action="store_true",
        help="take backbones of the same widths that the adapters were not trained on",
    )


def refuse_backbones_of_model(arguments: argparse.Namespace):
    """Raises: ValueError if `--model` came with `--encoder` or `--llm`."""
    for name in ("encoder", "llm"):
        if arguments.model and getattr(arguments, name):
            raise ValueError(
                f"`--{name}` says what adapters belong to, and `--model` has its own: leave one of them out."
            )


def add_weights(verb: argparse.ArgumentParser):
    """`--model` or `--adapter`, the backbones of adapters, `--device` and `--dtype`."""
    which = verb.add_mutually_exclusive_group()
    which.add_argument("--model", metavar="FOLDER", help="a whole checkpoint, or its name on the hub")
    which.add_argument("--adapter", metavar="FOLDER", help="adapters for the backbones; default: the shipped ones")
    add_backbones(verb)
    add_placing(verb, "float32 for adapters, a checkpoint's own")


def given_weights(arguments: argparse.Namespace) -> dict[str, str | bool | None]:
    """The options of `add_weights`, checked: fields of `transcribe_files.Weights`."""
    refuse_backbones_of_model(arguments)
    which = {"checkpoint": arguments.model, "adapter": arguments.adapter}
    return which | given_backbones(arguments) | given_placing(arguments)


def given_backbones(arguments: argparse.Namespace) -> dict[str, str | bool]:
    """Those of `--encoder` and `--llm` that were given; the adapters name the others."""
    given = {name: value for name in ("encoder", "llm") if (value := getattr(arguments, name)) is not None}
    return given | ({"allow_other_backbones": True} if arguments.allow_other_backbones else {})


def add_placing(verb: argparse.ArgumentParser, dtype: str):
    """`--device` and `--dtype` of the model that a verb runs. Args: dtype: its default, in words."""
    verb.add_argument("--device", help="where the model runs, such as cuda or cuda:1; default: cpu")
    verb.add_argument("--dtype", help=f"of its weights, such as bfloat16; default: {dtype}")


def given_placing(arguments: argparse.Namespace) -> dict[str, str]:
    """Those of `--device` and `--dtype` that were given, checked.

    Raises: ValueError where this machine has no such device, or there is no such dtype.
    """
    given = {name: value for name in ("device", "dtype") if (value := getattr(arguments, name)) is not None}
    if given:
        from .modeling.backbones_soundwave import as_dtype
        from .modeling.loading_soundwave import as_device

        as_device(given.get("device", "cpu"))
        as_dtype(given.get("dtype"))
    return given


def read_mapping(text: str | None, option: str, example: str) -> dict:
    """The value of an option that is a YAML mapping; an empty one where the option is not given."""
    from .keys import read_yaml
    from .secret_values import hide_secrets

    mapping = read_yaml(text or "{}", f"`{option}`")
    if not isinstance(mapping, dict):
        raise ValueError(f"`{option}` is `{hide_secrets(text)}`; expected a mapping, such as '{example}'.")
    return mapping


def read_columns(text: str | None) -> dict[str, str]:
    """`"{sentence: text}"` -> `{"sentence": "text"}`: names of the user's columns and ours."""
    return read_mapping(text, "--columns", "{sentence: text}")
