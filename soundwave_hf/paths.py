"""Paths as users write them, and the folder for everything that is downloaded or built."""

import glob
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


HOME = "SOUNDWAVE_HOME"
SHIPPED_WEIGHTS = "weights/soundwave-small"
VARIABLE = re.compile(r"\$(?:\{([^}]*)\}|([A-Za-z_][A-Za-z0-9_]*))")


def soundwave_home() -> Path:
    """Folder of everything downloaded or built: `$SOUNDWAVE_HOME`, by default `~/.cache/soundwave-hf`."""
    return Path(os.environ.get(HOME) or "~/.cache/soundwave-hf").expanduser()


def shipped(name: str) -> Path:
    """Path of `recipes` or `weights/soundwave-small`: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent
    inside = package / name
    return inside if inside.exists() else package.parent / name


def find_weights(name: str) -> str:
    """Return a folder or hub name unchanged, and the path of the shipped weights for their name."""
    return str(shipped(name)) if name == SHIPPED_WEIGHTS and not os.path.isdir(name) else name


def expand_path(path: str | os.PathLike, name: str) -> str:
    """A path with `~` and `$VARIABLES` replaced; a relative one stays relative to the current folder.

    A path that exists as it is written is not changed, and neither is a pattern that matches a file.

    Args: name: what errors call the path, such as "`output_dir`".
    Raises: `ValueError` for a variable that is not set, a user who does not exist, and a value that is not a path.
    """
    if not isinstance(path, str | os.PathLike) or not os.fspath(path):
        raise ValueError(f"{name} is {path!r}; give a path.")

    path = os.fspath(path)
    if "$" in path and is_there(path):
        return path

    def value_of(match: re.Match) -> str:
        variable = match[1] if match[1] is not None else match[2]
        if value := os.environ.get(variable):
            return value
        if variable == HOME:
            return str(soundwave_home())
        raise ValueError(f"{name} names `${variable}`, and that variable is not set: set it, or write it out.")

    expanded = os.path.expanduser(VARIABLE.sub(value_of, path))
    if expanded.startswith("~") and not os.path.exists(expanded):
        raise ValueError(f"{name} begins with `{expanded.split('/')[0]}`, and there is no such user: write it out.")
    return expanded


def is_there(path: str) -> bool:
    """Whether a path exists, or matches a file as a pattern."""
    return os.path.lexists(path) or bool(glob.glob(path))


def one_or_more(paths: str | os.PathLike | Iterable[str | os.PathLike]) -> list[str | os.PathLike]:
    """Paths or names as a list; a single one, which Python would read letter by letter, becomes a list of one."""
    return [paths] if isinstance(paths, str | os.PathLike) else list(paths)


@contextmanager
def checkpoint_named(name: str | os.PathLike) -> Iterator[None]:
    """Says which checkpoint could not be found. transformers says only that it could not connect.

    Raises: `FileNotFoundError` in place of an `OSError` if there is no folder of this name.
    """
    try:
        yield
    except OSError as error:
        if os.path.isdir(name):
            raise
        raise FileNotFoundError(
            f"There is no folder `{name}` with a checkpoint, and none of that name could be downloaded from the hub: "
            "check the name and the connection."
        ) from error


__all__ = ["checkpoint_named", "expand_path", "find_weights", "is_there", "one_or_more", "shipped", "soundwave_home"]
