"""Keys of recipes that a user writes."""

import difflib
from collections.abc import Iterable, Mapping


def refuse_unknown(given: Mapping, known: Iterable[str], name: str, otherwise: str):
    """Refuse a key that is not known.

    Args: name: what the error calls the mapping; otherwise: a sentence for a key that is close to none.

    Raises: `ValueError` with the closest known key.
    """
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"Did you mean `{near[0]}`?" if near else otherwise
            raise ValueError(f"{name} has the key `{key}`, which does not exist. {hint}")


__all__ = ["refuse_unknown"]
