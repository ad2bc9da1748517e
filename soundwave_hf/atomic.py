"""Files and folders that are written in one step. Where writing fails, the earlier content stays."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError


@contextmanager
def atomic_file(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path. The file there is moved to `path` when the block ends, or deleted if the block fails.

    Raises: `OSError` if safetensors cannot write there.
    """
    path = Path(path)
    with _place_beside(path) as part:
        try:
            yield part
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary folder. It is moved to `path` when the block ends, or deleted if the block fails.

    Raises: `OSError` if safetensors cannot write there.
    """
    path = Path(path).resolve()
    with _folder_beside(path) as part:
        yield part
        if path.exists():
            path.rmdir()  # `refuse_used` has checked that it is empty
        part.replace(path)


@contextmanager
def kept_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary folder. It is moved to `path` when the block ends.

    If the block fails or the process is killed, the files in it stay, and the next call yields them. An empty folder
    is deleted.
    """
    path = Path(path).resolve()
    with _place_beside(path) as part:
        part.mkdir(exist_ok=True)
        try:
            yield part
        except BaseException:
            with suppress(OSError):  # it holds files, or is gone
                part.rmdir()
            raise
        if path.exists():
            path.rmdir()  # `refuse_used` has checked that it is empty
        part.replace(path)


@contextmanager
def atomic_files(folder: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary folder. Its files are moved to `folder` when the block ends; if the block fails, none is.

    Raises: `OSError` if safetensors cannot write there.
    """
    folder = Path(folder)
    with _folder_beside(folder / "files") as part:
        yield part
        for path in part.iterdir():
            path.replace(folder / path.name)


@contextmanager
def _folder_beside(path: Path) -> Iterator[Path]:
    """Yield an empty folder at `_place_beside`. It is deleted at the end."""
    with _place_beside(path) as part:
        shutil.rmtree(part, ignore_errors=True)  # left by a run that was killed
        part.mkdir()
        try:
            yield part
        finally:
            shutil.rmtree(part, ignore_errors=True)


@contextmanager
def _place_beside(path: Path) -> Iterator[Path]:
    """Yield a path in the same folder. The folder is made if it is missing, and removed again if the block fails."""
    made = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield path.with_name(f".{path.name}.part")
    except BaseException as error:
        for folder in made:
            with suppress(OSError):  # another process has put something there
                folder.rmdir()
        if isinstance(error, SafetensorError):
            raise OSError(
                f"`{path}` could not be written ({error}). Nothing there was changed. Free disk space, or name "
                "another place."
            ) from error
        raise


def make_folder(write: Callable[[Path], None], folder: Path):
    """Call `write` on a temporary folder and move it to `folder`. If several processes do so, the first one wins."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
        part = Path(temporary) / folder.name
        write(part)
        try:
            os.replace(part, folder)
        except OSError:
            if not folder.is_dir():
                raise


def refuse_used(folder: str | os.PathLike):
    """Raises: `FileExistsError` if the path exists and is not an empty folder."""
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"`{folder}` exists and is not an empty folder: name a new one, or remove it.")


__all__ = ["atomic_file", "atomic_files", "atomic_folder", "kept_folder", "make_folder", "refuse_used"]
