"""Decode audio files to mono samples, by soundfile or else by PyAV. A truncated file is an error."""

import contextlib
import io
import os
import struct

import numpy as np
from transformers.audio_utils import TORCHCODEC_ONLY_FILETYPES, get_audio_filetype
from transformers.utils import logging

from .sources_soundwave import BLOCK_BYTES


logger = logging.get_logger(__name__)

# Limit for sources other than a path, because a few kilobytes of FLAC can hold hours of silence. 4 hours at 48 kHz are
# 2.8 GB of samples.
MAX_SECONDS = 4 * 3600.0
BLOCK_SAMPLES = 2**15
UNKNOWN_FRAMES = 2**62  # libsndfile gives the largest 64-bit number for an unknown length
BROKEN = float("inf")  # length of a truncated file that does not state it
SHORTEST_LOSS = 0.01  # seconds; headers of sound files may be wrong by a few samples


class BadAudio(ValueError):
    """Audio that was read and cannot be used.

    Args: kind: "empty", "not finite", "too long", "too short", "truncated", or "unreadable" for anything else.
    """

    def __init__(self, message: str, kind: str = "unreadable"):
        super().__init__(message)
        self.kind = kind


def decode(
    source: str | io.BytesIO, name: str, max_seconds: float | None = None, allow_truncated: bool = False
) -> tuple[np.ndarray, int]:
    """Decode a file and average its channels.

    Args:
        source: path, or buffer of the file's bytes.
        max_seconds: longest recording; by default 4 hours for a buffer, and no limit for a path.
        allow_truncated: read a truncated file, with a warning.
    Returns: float32 samples `(samples,)` and their rate in Hz.
    Raises: `ValueError` for a file that cannot be decoded; `BadAudio`, which is one, if it is too long or truncated.
    """
    if max_seconds is None:
        max_seconds = float("inf") if isinstance(source, str) else MAX_SECONDS
    source, lost = whole_pages(source)
    with as_file(source) as file:
        size = file.seek(0, os.SEEK_END)
        promised = promised_bytes(file, size)
    samples, rate, seconds = read_samples(source, name, max_seconds)
    found = len(samples) / rate
    if promised > size:
        seconds = max(seconds, found * promised / size) if found else BROKEN
    if lost or seconds - found > SHORTEST_LOSS:
        report_loss(name, found, seconds, allow_truncated)
    return samples, rate


def report_loss(name: str, found: float, expected: float, allow_truncated: bool):
    """Raise an error for a file that is shorter than its header states, or log a warning with `allow_truncated`."""
    length = f"{expected:.2f} s" if found < expected < BROKEN else "more (its length is not stated)"
    message = f"{name} was cut off: its header states {length} and {found:.2f} s were found."
    if not allow_truncated:
        raise BadAudio(
            f"{message} Copy it again, or make a file of this part: `ffmpeg -i INPUT OUTPUT.wav`. The processor and "
            "the pipeline also take `allow_truncated=True`.",
            "truncated",
        )
    logger.warning(message)


def read_samples(source, name: str, max_seconds: float) -> tuple[np.ndarray, int, float]:
    """Mono samples, their rate, and the seconds in the header (0 if unknown)."""
    soundfile = import_soundfile()
    try:
        file = soundfile.SoundFile(source)
    except (soundfile.SoundFileError, TypeError) as error:  # TypeError: a headerless .raw file
        return read_with_av(source, name, max_seconds, getattr(error, "error_string", str(error)))
    with file:
        stated = 0 if file.frames >= UNKNOWN_FRAMES else file.frames
        refuse_length(stated / file.samplerate, max_seconds, name)
        blocks, count, broken = [], 0, False
        try:
            while len(block := file.read(BLOCK_SAMPLES // file.channels + 1, dtype="float32", always_2d=True)):
                count += len(block)
                refuse_length(count / file.samplerate, max_seconds, name)
                blocks.append(block.mean(axis=1))  # [samples]
        except soundfile.SoundFileError:
            broken = True
        seconds = BROKEN if broken and stated <= count else stated / file.samplerate
        return join(blocks), file.samplerate, seconds


def read_with_av(source, name: str, max_seconds: float, why: str) -> tuple[np.ndarray, int, float]:
    """[`read_samples`] for files that soundfile cannot open: m4a, mp4, webm, aac, amr, wma, sound of videos."""
    av = import_av(source, name, why)
    with as_file(source) as file:
        try:
            with av.open(file, metadata_errors="ignore", io_open=refuse_other_files) as container:
                return decode_stream(av, container, name, max_seconds)
        except av.FFmpegError as error:
            raise undecodable(name, f"{why} {error.strerror}.") from error


def decode_stream(av, container, name: str, max_seconds: float) -> tuple[np.ndarray, int, float]:
    stream = container.streams.best("audio")
    if stream is None:
        kinds = sorted({other.type for other in container.streams})
        raise ValueError(f"{name} holds no sound, only {kinds}. Pass a file with an audio stream.")
    blocks, count, rate, seconds = [], 0, 0, 0.0
    setup = resampler = None
    try:
        for frame in container.decode(stream):
            rate = rate or frame.sample_rate
            if setup != (
                frame.format.name,
                frame.layout.name,
                frame.sample_rate,
            ):  # may change in a stream
                setup = frame.format.name, frame.layout.name, frame.sample_rate
                resampler = av.AudioResampler(format="fltp", rate=rate)
            for part in resampler.resample(frame):
                count += part.samples
                refuse_length(count / rate, max_seconds, name)
                blocks.append(part.to_ndarray().mean(axis=0))  # [channels, samples] -> [samples]
    except av.FFmpegError as error:
        if not count:
            raise undecodable(name, f"{error.strerror}.") from error
        seconds = BROKEN
    if not count:
        raise BadAudio(f"{name} holds an audio stream without samples. Pass a file with sound.", "empty")
    return join(blocks), rate, seconds


def join(blocks: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(blocks).astype(np.float32, copy=False) if blocks else np.zeros(0, np.float32)


def refuse_other_files(url, flags, options):
    """Refuse the files and URLs of a playlist, for security."""
    raise PermissionError("a playlist is not an audio file: pass the file that it names")


def refuse_length(seconds: float, max_seconds: float, name: str):
    if seconds > max_seconds:
        raise BadAudio(
            f"{name} lasts {seconds:.0f} s or more; at most {max_seconds:g} s are read. "
            "Cut the recording. The processor and the pipeline also take a larger `max_seconds=`.",
            "too long",
        )


def undecodable(name: str, why: str) -> ValueError:
    return ValueError(
        f"{name} could not be decoded: {why} Expected a file that soundfile or PyAV reads (wav, flac, ogg, opus, mp3, "
        "m4a, mp4, webm, aac). Convert it: `ffmpeg -i INPUT -ac 1 -ar 16000 OUTPUT.wav`."
    )


@contextlib.contextmanager
def as_file(source: str | io.BytesIO):
    if isinstance(source, str):
        with open(source, "rb") as file:
            yield file
    else:
        source.seek(0)
        yield source
        source.seek(0)


def whole_pages(source: str | io.BytesIO) -> tuple[str | io.BytesIO, bool]:
    """An Ogg file without an incomplete last page, and whether there was one. (Ogg headers have no length.)"""
    with as_file(source) as file:
        if file.read(4) != b"OggS":
            return source, False
        size = file.seek(0, os.SEEK_END)
        begin = file.seek(max(0, size - 2**17))  # a page has at most 65,307 bytes
        tail = file.read()
        place = tail.rfind(b"OggS")
        segments = tail[place + 26 : place + 27]
        table = tail[place + 27 : place + 27 + (segments[0] if segments else 0)]
        whole = bool(segments) and len(table) == segments[0] and place + 27 + len(table) + sum(table) <= len(tail)
        if whole:
            return source, False
        file.seek(0)
        return io.BytesIO(file.read(begin + place)), True


# For each container: offset of the first chunk, layout of a chunk's tag and length, whether the length includes these
# two, alignment of chunks in bytes, and the tags of chunks with sound.
CHUNKS = {
    "wav": (12, "<4sI", False, 2, (b"data",)),
    "rf64": (12, "<4sI", False, 2, (b"data",)),
    "aiff": (12, ">4sI", False, 2, (b"SSND",)),
    "caf": (8, ">4sq", False, 1, (b"data",)),
    "w64": (40, "<4s12xQ", True, 8, (b"data",)),
    "mp4": (0, ">I4s", True, 1, (b"mdat",)),
}
LIKE_MP4 = ("m4a", "mov", "3gp")


def promised_bytes(file, size: int) -> int:
    """End of the sound in a file by its headers, in bytes; 0 if unknown."""
    file.seek(0)
    head = file.read(256)
    kind = filetype(head)
    kind = "mp4" if kind in LIKE_MP4 else kind
    if kind in ("webm", "mkv"):
        return end_of_segment(head)
    if head.startswith(b".snd"):
        offset, length = struct.unpack_from(">II", head.ljust(12, b"\0"), 4)
        return 0 if is_open_length(length) else offset + length
    return end_of_chunks(file, size, *CHUNKS[kind]) if kind in CHUNKS else 0


def end_of_chunks(file, size: int, place: int, layout: str, counts_header: bool, align: int, sound: tuple) -> int:
    header, end, long_length = struct.Struct(layout), 0, 0
    while place + header.size <= size:
        file.seek(place)
        tag, length = header.unpack(file.read(header.size))
        if isinstance(tag, int):  # mp4 writes the length first, and 1 where it takes 64 bits
            tag, length = length, tag
            length = int.from_bytes(file.read(8), "big") if length == 1 else length
        if tag == b"ds64":  # RF64 keeps the length of its data here
            long_length = struct.unpack("<8xQ", file.read(16).ljust(16, b"\0"))[0]
        if tag in sound:
            length = long_length or length
            if not is_open_length(length):
                end = max(end, place + length + (0 if counts_header else header.size))
        step = length + (0 if counts_header else header.size)
        if step < header.size:  # an unknown or invalid length
            break
        place += step + -step % align
    return end


def is_open_length(length: int) -> bool:
    """True for the lengths that streaming programs write if they do not know it: -1, 2**31, about 2**32 - 1."""
    return (
        length <= 0 or length >= 2**62 or (length < 2**32 and (length | 0x8000FFFF) == 0xFFFFFFFF) or length == 2**31
    )


def end_of_segment(head: bytes) -> int:
    """The end of the segment in a Matroska or WebM file: its id, a length of 1 to 8 bytes, and its content."""
    place = head.find(b"\x18\x53\x80\x67") + 4
    if place < 4 or place + 8 > len(head) or not head[place]:
        return 0
    width = 9 - head[place].bit_length()
    length = int.from_bytes(head[place : place + width], "big") & (2 ** (7 * width) - 1)
    return 0 if length == 2 ** (7 * width) - 1 else place + width + length  # all ones: recorded live


def filetype(head: bytes) -> str | None:
    try:
        return get_audio_filetype(head)
    except ValueError:
        return None


# Imported on first use, because arrays need neither. Imported inside `try`, because transformers refuses code from the
# Hub if a package is missing that it imports outside of `try`.
def import_soundfile():
    try:
        import soundfile
    except (ImportError, OSError) as error:  # OSError: the package is there, its C library is not
        raise ImportError(f"Decoding audio files needs soundfile: `pip install soundfile` ({error}).") from error
    return soundfile


def import_av(source, name: str, why: str):
    """Import PyAV, or raise an error that names the extra to install."""
    try:
        import av
    except ImportError as error:
        with as_file(source) as file:
            kind = filetype(file.read(BLOCK_BYTES))
        need = "m4a, mp4, webm, aac, amr, wma and videos need PyAV: `pip install 'soundwave-hf[audio]'`."
        if kind in TORCHCODEC_ONLY_FILETYPES:
            raise ImportError(f"{name} is a {kind} file, which soundfile cannot decode; {need}") from error
        raise undecodable(name, f"{why} Note: {need}") from error
    return av
