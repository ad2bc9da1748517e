"""What a checkpoint says of its run: the recipe as it was read, the data, and the versions that trained it."""

import hashlib
import json
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import yaml

from .earlier_run import RECORD


PACKAGES = ("soundwave-hf", "torch", "transformers", "peft", "trl", "accelerate", "datasets", "safetensors")


def describe_run(
    values: dict, manifests: Sequence[Path], counts: dict[tuple[str], tuple[int, float]], record: dict | None = None
) -> dict[str, str]:
    """Files, by name, that stand beside what a run trained.

    Args:
        values (`dict`): the recipe's keys with what replaced them on the command line.
        manifests (`Sequence[Path]`): of the data, in one folder; a `README.md` beside them is the data's own card.
        counts (`dict`): clips and seconds by source, as they are trained on, repeats included.
        record (`dict`, *optional*): see `record_run`.

    Returns: `recipe.yaml`, which trains the same again, `data_card.md`, `versions.json`, and `run.json` of a record.
    """
    recipe = f"# soundwave-hf train recipe.yaml\n{yaml.safe_dump(values, sort_keys=False)}"
    versions = {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
    return {
        "recipe.yaml": recipe,
        "data_card.md": describe_data(manifests, counts),
        "versions.json": json.dumps(versions, indent=2) + "\n",
        **({RECORD: json.dumps(record, indent=2) + "\n"} if record is not None else {}),
    }


def file_digest(path: Path) -> str:
    """sha256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe_data(manifests: Sequence[Path], counts: dict[tuple[str], tuple[int, float]]) -> str:
    """Markdown: clips and hours by source, the manifests' digests, and the card that stands beside them."""
    digests = [f"`{path.name}`, sha256 `{file_digest(path)}`" for path in manifests]
    lines = [f"| {source} | {clips} | {seconds / 3600:.2f} |" for (source,), (clips, seconds) in counts.items()]
    own = manifests[0].parent / "README.md"
    return "\n".join(
        [
            "# Data of this run",
            "",
            f"{'; '.join(digests)}. Rows as often as the recipe repeats them:",
            "",
            "| source | clips | hours |",
            "|---|---|---|",
            *lines,
            "",
            *(["---", "", own.read_text(encoding="utf-8")] if own.is_file() else []),
        ]
    )


__all__ = ["describe_data", "describe_run", "file_digest"]
