"""Files and folders that are written in one step. Where writing fails, the earlier content stays."""

import errno
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from safetensors import SafetensorError


try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LEFT = re.compile(r"\..+\.[0-9a-f]{8}\.part")  # temporary files of `atomic_file`
LEFT_SECONDS = 24 * 3600  # one that was not written to for so long is of a process that was killed
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)  # errors of file systems without locks


@contextmanager
def atomic_file(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path. The file there is moved to `path` when the block ends, or deleted if the block fails.

    If several processes write the same file, the last one wins. What killed ones left is removed after a day.

    Raises: `OSError` if safetensors cannot write there.
    """
    path = Path(path)
    with _place_beside(path, f".{secrets.token_hex(4)}") as part:
        _remove_left(path.parent.absolute())
        try:
            yield part
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


@cache  # once in a process: to list a folder for each of its files would be slow
def _remove_left(folder: Path):
    """Remove the temporary files that killed processes left in a folder."""
    for part in folder.glob(".*.part"):
        with suppress(OSError):  # another process has removed it
            if LEFT.fullmatch(part.name) and time.time() - part.stat().st_mtime > LEFT_SECONDS:
                part.unlink()


def refuse_output(path: str | os.PathLike, option: str, inputs: Iterable[str | os.PathLike] = ()):
    """Refuse an output file that cannot be written, or that would overwrite an input, before any work is done.

    Args: option: what the caller gave, such as "--output", for the error. inputs: files that are read.

    Raises: `IsADirectoryError`, `NotADirectoryError` or `PermissionError`; `ValueError` if the file is an input.
    """
    place = Path(path).absolute()
    if place.is_dir():
        raise IsADirectoryError(f"`{option}` is `{path}`, which is a folder: give a file.")
    if not (parent := _nearest(place)).is_dir():
        raise NotADirectoryError(f"`{option}` is `{path}`, and `{parent}` is a file, not a folder: give another name.")
    if not os.access(parent, os.W_OK):
        raise PermissionError(f"`{option}` is `{path}`, and you may not write to `{parent}`: give another folder.")
    if os.path.realpath(place) in {os.path.realpath(file) for file in inputs}:
        raise ValueError(f"`{option}` is `{path}`, which is read by this command: give another file.")


def refuse_file_name(folder: str | os.PathLike, option: str, endings: Collection[str], advice: str):
    """Raises: `ValueError` if what becomes a folder has the name of a file. Args: advice: what to write instead."""
    if Path(folder).suffix.lower() in endings and not Path(folder).is_dir():
        raise ValueError(f"{option} is a folder, and `{folder}` is named like a file: {advice}.")


@contextmanager
def atomic_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary folder. It is moved to `path` when the block ends, or deleted if the block fails.

    Raises: `FileExistsError` if `path` holds something; `OSError` if safetensors cannot write there;
        `BlockingIOError` if another process is writing the same folder.
    """
    path = Path(path).resolve()
    with _folder_beside(path) as part:
        refuse_used(path)
        yield part
        if path.exists():
            path.rmdir()  # it is empty
        part.replace(path)


@contextmanager
def kept_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary folder. It is moved to `path` when the block ends.

    If the block fails or the process is killed, the files in it stay, and the next call yields them. An empty folder
    is deleted.

    Raises: `FileExistsError` if `path` holds something; `BlockingIOError` if another process is writing the same
        folder.
    """
    path = Path(path).resolve()
    with _place_beside(path) as part, _locked(part, path):
        refuse_used(path)
        part.mkdir(exist_ok=True)
        try:
            yield part
        except BaseException:
            with suppress(OSError):  # it holds files, or is gone
                part.rmdir()
            raise
        if path.exists():
            path.rmdir()  # it is empty
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
    with _place_beside(path) as part, _locked(part, path):
        shutil.rmtree(part, ignore_errors=True)  # left by a run that was killed
        part.mkdir()
        try:
            yield part
        finally:
            shutil.rmtree(part, ignore_errors=True)


@contextmanager
def _locked(part: Path, path: Path) -> Iterator[None]:
    """Hold a lock for writing a folder. The system frees the lock of a process that was killed.

    Args: part: the temporary folder; the lock is a file beside it. path: the folder, for the error.

    Raises: `BlockingIOError` if another process holds the lock.
    """
    if fcntl is None:
        yield
        return
    lock = part.with_name(f"{part.name}.lock")
    with open(lock, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_held = os.fstat(file.fileno()).st_nlink == 0  # its owner deleted it after `open`
        except OSError as error:
            is_held = error.errno not in NO_LOCKS
        if is_held:
            raise BlockingIOError(f"Another process is writing `{path}`: wait until it ends, or name another folder.")
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)  # before `close`, which frees the lock


@contextmanager
def _place_beside(path: Path, mark: str = "") -> Iterator[Path]:
    """Yield a path in the same folder. The folder is made if it is missing, and removed again if the block fails.

    Args: mark: part of the name. Without one, a run that was killed finds its files again.

    Raises: `NotADirectoryError` if a file stands where a folder is needed.
    """
    if not (parent := _nearest(path)).is_dir():
        raise NotADirectoryError(f"`{parent}` is a file, and a folder was expected: give another name.")
    made = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield path.with_name(f".{path.name}{mark}.part")
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


def _nearest(path: Path) -> Path:
    """The nearest place above a path that exists."""
    return next(folder for folder in path.absolute().parents if folder.exists())


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


__all__ = [
    "atomic_file",
    "atomic_files",
    "atomic_folder",
    "kept_folder",
    "make_folder",
    "refuse_file_name",
    "refuse_output",
    "refuse_used",
]
