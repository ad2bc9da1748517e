"""What a checkpoint says of its run: the recipe as it was read, the data, and the versions that trained it."""

import hashlib
import json
import platform
from importlib.metadata import version
from pathlib import Path

import yaml
from datasets import Dataset

from ..data.card import count_rows


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
        "data_card.md": describe_data(manifest, rows),
        "versions.json": json.dumps(versions, indent=2) + "\n",
    }


def describe_data(manifest: Path, rows: Dataset) -> str:
    """Markdown: rows and hours by source, the manifest's digest, and the card that stands beside it."""
    digest = hashlib.sha256(manifest.read_bytes()).hexdigest()
    sources = rows["source"] if "source" in rows.column_names else [None] * len(rows)
    pairs = zip(sources, rows["seconds"], strict=True)
    counts = count_rows(({"source": source or "-", "seconds": length} for source, length in pairs), ("source",))
    lines = [f"| {source} | {clips} | {seconds / 3600:.2f} |" for (source,), (clips, seconds) in counts.items()]
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


__all__ = ["describe_data", "describe_run"]
