"""Files about a run beside its weights: the recipe as it was read, the data, and the versions of the packages."""

import json
import math
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import yaml

from ..data.sources import Source, describe_source, looks_local
from ..data.used import data_used
from .earlier_run import RECORD


PACKAGES = ("soundwave-hf", "torch", "transformers", "peft", "trl", "accelerate", "datasets", "safetensors")


def describe_run(
    values: dict,
    sources: Sequence[Source],
    counts: dict[tuple[str], tuple[int, float]],
    record: dict | None = None,
) -> dict[str, str]:
    """Texts of the files beside the weights of a run, by file name.

    Args:
        values (`dict`): the recipe's keys with the overrides.
        sources (`Sequence[Source]`): of the data; a `README.md` beside its files is the data's card.
        counts (`dict`): clips and seconds by source, repeats included; unknown seconds are NaN.
        record (`dict`, *optional*): see `record_run`.

    Returns: `recipe.yaml`, which repeats the run, `data_card.md`, `versions.json`, and `run.json` of a record.
    """
    recipe = f"# soundwave-hf train recipe.yaml\n{yaml.safe_dump(values, sort_keys=False)}"
    versions = {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
    return {
        "recipe.yaml": recipe,
        "data_card.md": describe_data(sources, counts),
        "versions.json": json.dumps(versions, indent=2) + "\n",
        **({RECORD: json.dumps(record, indent=2) + "\n"} if record is not None else {}),
    }


def describe_data(sources: Sequence[Source], counts: dict[tuple[str], tuple[int, float]]) -> str:
    """Markdown: clips and hours by source, digests of the files, and the card beside them.

    A comment in it repeats counts and licences for the model card.
    """
    lines = [
        f"| {source} | {clips or 'unknown'} | {'unknown' if math.isnan(seconds) else f'{seconds / 3600:.2f}'} |"
        for (source,), (clips, seconds) in counts.items()
    ]
    cards = dict.fromkeys(card for source in sources if (card := own_card(source)) is not None)
    return "\n".join(
        [
            "# Data of this run",
            "",
            f"{'; '.join(describe_source(source) for source in sources)}. Rows as often as the recipe repeats them:",
            "",
            "| source | clips | hours |",
            "|---|---|---|",
            *lines,
            "",
            data_used(sources, counts, list(cards)).comment(),
            "",
            *(text for card in cards for text in ("---", "", card.read_text(encoding="utf-8"))),
        ]
    )


def own_card(source: Source) -> Path | None:
    """The `README.md` of a folder, or beside files."""
    path = Path(source.path)
    card = (path if path.is_dir() else path.parent) / "README.md"
    return card if card.is_file() and (path.is_dir() or looks_local(source.path)) else None


__all__ = ["describe_data", "describe_run"]
