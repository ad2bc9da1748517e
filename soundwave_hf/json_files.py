"""JSON files that hold one object: configs, indexes, records."""

import json
from collections.abc import Sequence
from pathlib import Path


def read_json_object(path: Path, advice: str = "download it again", needed: Sequence[str] = ()) -> dict:
    """Read a JSON object.

    Args: advice: what to do about a broken file, the end of the error; needed: keys that it must have.

    Raises: `ValueError` that names the file if it is broken.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # its message quotes nothing of the file, which may hold a secret
        raise ValueError(f"`{path}` is no JSON file ({error}): {advice}.") from error
    if not isinstance(values, dict):
        raise ValueError(f"`{path}` holds {type(values).__name__} and a JSON object was expected: {advice}.")
    if missing := [key for key in needed if key not in values]:
        raise ValueError(f"`{path}` lacks {missing}: {advice}.")
    return values


__all__ = ["read_json_object"]
