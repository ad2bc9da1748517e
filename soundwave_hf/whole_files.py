"""Files and folders that are put in place whole: where writing fails, what stood there before stands there still."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[Path]:
    """A place to write a file, which is put at `path` once the block ends, and removed where it fails."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: str | os.PathLike) -> Iterator[Path]:
    """A folder to write into, which becomes `path` once the block ends, and is removed where it fails."""
    path = Path(path).resolve()
    part = path.with_name(f".{path.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # of an earlier run that was killed
    part.mkdir(parents=True)
    try:
        yield part
        if path.exists():
            path.rmdir()  # empty, as `refuse_used` asks
        part.replace(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def refuse_used(folder: str | os.PathLike):
    """Raises: `FileExistsError` where a new folder would be put in the place of something."""
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"`{folder}` exists and is not an empty folder: name a new one, or remove it.")


__all__ = ["refuse_used", "whole_file", "whole_folder"]
