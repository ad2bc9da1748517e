"""Manifests: one JSON object a line, one line a clip."""

import json
from pathlib import Path

from ..atomic import atomic_file


def write_rows(path: Path, rows: list[dict]) -> None:
    """A manifest, one JSON object a line, put in place in one step."""
    with atomic_file(path) as part:
        part.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in rows), encoding="utf-8")


def read_rows(path: Path) -> list[dict]:
    """Rows of a manifest.

    Raises: FileNotFoundError where it was not built yet.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is not there. Check the path. `examples/soundwave-small/build_data.py` builds the demo's data."
        )
    # Not `splitlines`, which also cuts at separators that JSON leaves inside its strings.
    with open(path, encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]
