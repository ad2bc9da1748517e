"""The verbs of `soundwave-hf` that write to the Hub: one verb a function, as in `cli`."""

import argparse

from .cli_options import add_verb


def push(arguments: argparse.Namespace):
    from .publish.push import push_model

    push_model(
        arguments.folder,
        arguments.repo,
        dry_run=arguments.dry_run,
        private=arguments.private,
        revision=arguments.revision,
        create_pr=arguments.create_pr,
        message=arguments.message,
        scores=arguments.scores,
        runs=arguments.runs,
        data_cards=arguments.data_cards,
        license=arguments.license,
        licenses=read_licenses(arguments.licenses),
        encoder=arguments.encoder,
        llm=arguments.llm,
        max_shard_size=arguments.max_shard_size,
        replace_card=arguments.replace_card,
    )


def read_licenses(text: str | None):
    """`"{librispeech: cc-by-4.0}"` -> a mapping; `"cc-by-4.0"` -> one licence for all data.

    Raises: ValueError where it is not YAML.
    """
    from .keys import read_yaml

    return read_yaml(text, "`--licenses`") if text else None


def add_push(verbs):
    verb = add_verb(verbs, push, "push a model or adapters with their card to the hub, checked before and after")
    verb.add_argument("folder", metavar="FOLDER", help="what `train`, `export`, `merge` or `convert` wrote")
    verb.add_argument("repo", metavar="USER/MODEL", help="repository on the hub; it is created if it is missing")
    verb.add_argument("--dry-run", metavar="OUT", help="write the upload to this folder, without any connection")
    verb.add_argument("--private", action="store_true", help="make a new repository private")
    verb.add_argument("--revision", metavar="BRANCH", help="branch to push to; default: main")
    verb.add_argument("--create-pr", action="store_true", help="open a pull request, or go on with your open one")
    verb.add_argument("--message", help="of the commit, and title of the pull request")
    verb.add_argument(
        "--max-shard-size", default="5GB", metavar="SIZE", help="of each file of a whole model; default: %(default)s"
    )
    for name in ("--encoder", "--llm"):
        verb.add_argument(name, metavar="USER/MODEL", help="its name on the hub, where FOLDER names a local folder")
    add_card_options(verb)


def add_card_options(verb: argparse.ArgumentParser):
    """What the card says beside what FOLDER holds."""
    for name, place, text in (
        (
            "--scores",
            "scores",
            "of `evaluate --output`; default: evaluation.json of FOLDER; may come several times",
        ),
        ("--run", "runs", "output folder of the training; default: FOLDER; may come several times"),
        ("--data-card", "data_cards", "dataset card, or a folder with one; may come several times"),
    ):
        verb.add_argument(name, dest=place, metavar="PATH", action="append", default=[], help=text)
    verb.add_argument(
        "--license", metavar="ID", help="of the weights; default: that of the recipe, README.md or the start"
    )
    verb.add_argument(
        "--licenses", metavar="MAPPING", help="of data and backbones: '{librispeech: cc-by-4.0}', or one for all data"
    )
    verb.add_argument("--replace-card", action="store_true", help="drop the own text of README.md, also on the hub")
