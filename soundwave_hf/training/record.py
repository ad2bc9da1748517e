"""What a checkpoint says of its run: the recipe as it was read, the data, and the versions that trained it."""

import hashlib
import json
import platform
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import yaml
from datasets import Dataset


PACKAGES = ("soundwave-hf", "torch", "transformers", "peft", "trl", "accelerate", "datasets", "safetensors")


def describe_run(values: dict, manifest: Path, rows: Dataset) -> dict[str, str]:
    """Files, by name, that stand beside what a run trained.

    Args:
        values (`dict`): the recipe's keys with what replaced them on the command line.
        manifest (`Path`): of the data; a `README.md` beside it is the data's own card.
        rows (`Dataset`): as they are trained on, repeats included.

    Returns: `recipe.yaml`, which trains the same again, `data_card.md` and `versions.json`.
    """
    recipe = f"# soundwave-hf train recipe.yaml\n{yaml.safe_dump(values, sort_keys=False)}"
    versions = {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
    return {
        "recipe.yaml": recipe,
        "data_card.md": data_card(manifest, rows),
        "versions.json": json.dumps(versions, indent=2) + "\n",
    }


def data_card(manifest: Path, rows: Dataset) -> str:
    """Markdown: rows and hours by source, the manifest's digest, and the card that stands beside it."""
    digest = hashlib.sha256(manifest.read_bytes()).hexdigest()
    clips, seconds = Counter(), Counter()
    sources = rows["source"] if "source" in rows.column_names else [None] * len(rows)
    for source, length in zip(sources, rows["seconds"], strict=True):
        clips[source or "-"] += 1
        seconds[source or "-"] += length
    lines = [f"| {source} | {clips[source]} | {seconds[source] / 3600:.2f} |" for source in sorted(clips)]
    own = manifest.parent / "README.md"
    return "\n".join(
        [
            "# Data of this run",
            "",
            f"`{manifest.name}`, sha256 `{digest}`. Rows as often as the recipe repeats them:",
            "",
            "| source | clips | hours |",
            "|---|---|---|",
            *lines,
            "",
            *(["---", "", own.read_text(encoding="utf-8")] if own.is_file() else []),
        ]
    )


__all__ = ["data_card", "describe_run"]
