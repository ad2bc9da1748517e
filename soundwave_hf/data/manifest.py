"""Manifests: one JSON object a line, one line a clip."""

import json
from pathlib import Path

from ..atomic import atomic_file
from .locate import find_files
from .readers import read_json


def write_rows(path: Path, rows: list[dict]) -> None:
    """Write a manifest, one JSON object a line, in one step."""
    with atomic_file(path) as part:
        part.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in rows), encoding="utf-8")


def read_rows(path: Path) -> list[dict]:
    """Rows of a manifest.

    Raises: FileNotFoundError if it does not exist; ValueError for a line that is not JSON.
    """
    return [row for file in find_files(path) for _, row in read_json(str(file))]
