"""Audio files by name, folder and pattern, and audio on standard input."""

import glob
import io
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .data.readers import AUDIO_SUFFIXES, is_clip
from .processing.containers_soundwave import decode, filetype, import_soundfile
from .processing.sources_soundwave import describe


STANDARD_INPUT = "-"
# File types whose first bytes raw samples may have too.
LIKE_SAMPLES = ("mp2", "mp3", "aac", "ac3", "ts")
HEAD_BYTES = 512  # that tell the type of a file


@dataclass(frozen=True)
class AudioFile:
    """A file to transcribe, or standard input."""

    path: str  # `-` for standard input
    below: str = ""  # the input folder that holds it; its path in an output folder is relative to this one

    @property
    def stem(self) -> Path:
        """Path of its transcripts in an output folder, without the file name's ending."""
        if self.path == STANDARD_INPUT:
            return Path("stdin")
        return Path(os.path.relpath(self.path, self.below) if self.below else Path(self.path).name).with_suffix("")


def find_audio(inputs: Sequence[str]) -> list[AudioFile]:
    """List the audio files that names, folders (with subfolders) and patterns such as `calls/*.wav` give, each once.

    A file given by name may have any ending. Folders and patterns give only files with an audio ending.

    Raises: `FileNotFoundError` if nothing matches, `ValueError` if no match is an audio file.
    """
    if not inputs:
        raise ValueError("There is nothing to transcribe: give audio files, folders, patterns, or `-`.")
    found: dict[str, AudioFile] = {}
    for written in inputs:
        for file in find_one(os.fspath(written)):
            found.setdefault(file.path if file.path == STANDARD_INPUT else os.path.abspath(file.path), file)
    return list(found.values())


def find_one(written: str) -> list[AudioFile]:
    if written == STANDARD_INPUT or os.path.isfile(written):
        return [AudioFile(written)]
    if os.path.isdir(written):
        files = audio_below(written)
        if not files:
            raise ValueError(
                f"The folder `{written}` and its subfolders hold no audio file ({' '.join(AUDIO_SUFFIXES)}). Name "
                "files with other endings one by one."
            )
        return files
    if os.path.exists(written):
        raise ValueError(
            f"`{written}` is neither a file nor a folder. Pipe it in: `soundwave-hf transcribe - < FILE`."
        )
    if "://" in written:
        raise ValueError(
            f"`{describe(written)}` is a URL; expected files. Pipe it in: `curl URL | soundwave-hf ... -`."
        )
    return find_pattern(written)


def find_pattern(pattern: str) -> list[AudioFile]:
    matches = sorted(glob.glob(pattern, recursive=True)) if glob.has_magic(pattern) else []
    if not matches:
        what = "No file matches the pattern" if glob.has_magic(pattern) else "There is no file or folder"
        raise FileNotFoundError(f"{what} `{pattern}` (current folder: {os.getcwd()}).")
    files = [AudioFile(path) for path in matches if os.path.isfile(path) and is_clip(path)]
    files += [file for path in matches if os.path.isdir(path) and "**" not in pattern for file in audio_below(path)]
    if not files:
        raise ValueError(
            f"The pattern `{pattern}` matches `{matches[0]}` ({len(matches)} in all) and no audio file "
            f"({' '.join(AUDIO_SUFFIXES)}). Name files with other endings one by one."
        )
    return files


def audio_below(folder: str) -> list[AudioFile]:
    """Audio files in a folder and its subfolders, sorted by name, without hidden files and linked folders."""

    def refuse(error: OSError):
        raise OSError(f"The folder `{error.filename}` could not be read: {error.strerror}.") from error

    found = []
    for place, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [os.path.join(place, name) for name in names if is_clip(name) and not name.startswith(".")]
    return [AudioFile(path, below=folder) for path in sorted(found)]


# ---- standard input ----


def read_standard_input(rate: int | None = None) -> dict:
    """Read an audio file, or, with a rate in Hz, raw audio: 16 bits, little-endian, one channel.

    Raises: `ValueError` if it holds something else.
    """
    refuse_terminal()
    content = sys.stdin.buffer.read()
    refuse_empty(content, "an audio file")
    if rate is not None:
        return raw_samples(content, rate)
    if filetype(content[:HEAD_BYTES]) is None and not opens(content):
        raise ValueError(unknown_bytes(content))
    samples, rate = decode(io.BytesIO(content), "Standard input", max_seconds=float("inf"))
    return {"array": samples, "sampling_rate": rate}


def refuse_terminal():
    if sys.stdin.isatty():
        raise ValueError("`-` reads standard input, which is a terminal: pipe audio in.")


def refuse_empty(content: bytes, expected: str):
    if not content:
        raise ValueError(f"Standard input held 0 bytes; expected {expected}. Check the program before the pipe.")


def refuse_header(content: bytes, advice: str):
    """Raises: `ValueError` if bytes are the beginning of a file, and no raw samples."""
    kind = filetype(content[:HEAD_BYTES])
    if kind is not None and (kind not in LIKE_SAMPLES or content.startswith(b"ID3")):
        raise ValueError(f"Standard input holds a file ({kind}), which says its own sampling rate: {advice}.")


def raw_samples(content: bytes, rate: int) -> dict:
    refuse_header(content, "leave `--rate` out")
    if len(content) % 2:
        raise ValueError(
            f"Standard input held {len(content)} bytes, an odd number, but a raw sample has two. The input was cut "
            "off, or it is not 16-bit audio. Write that with `ffmpeg -i INPUT -f s16le -ac 1 -ar RATE -`."
        )
    return {"array": np.frombuffer(content, "<i2"), "sampling_rate": rate}


def opens(content: bytes) -> bool:
    soundfile = import_soundfile()
    try:
        soundfile.SoundFile(io.BytesIO(content)).close()
    except (soundfile.SoundFileError, TypeError):
        return False
    return True


def unknown_bytes(content: bytes) -> str:
    first_line = content[:4096].split(b"\n")[0].decode("utf-8", "replace").strip()
    if first_line.isprintable() and os.path.isfile(first_line):
        return (
            f"Standard input holds a list of files, the first of them `{first_line}`; expected the bytes of one audio "
            "file. Give the files as arguments: `xargs -d '\\n' soundwave-hf transcribe < LIST`."
        )
    return (
        "Standard input is not a known type of audio file. For raw samples (16 bits, little-endian, one channel) give "
        "their rate in Hz, such as `--rate 16000`; or pipe a file with a header: "
        "`ffmpeg -i INPUT -f wav - | soundwave-hf transcribe -`."
    )


__all__ = ["STANDARD_INPUT", "AudioFile", "find_audio", "read_standard_input", "refuse_terminal"]
