"""Read audio in any form (array, file, URL, row, part of a chat) as mono samples at the encoder's rate."""

import dataclasses
from collections.abc import Mapping, Sequence
from numbers import Real

import numpy as np
import torch

from .containers_soundwave import BadAudio, decode
from .sources_soundwave import MAX_BYTES, describe, is_url, open_source, read_base64


LARGEST_SAMPLE = 100.0  # 40 dB above full scale: only integers converted to floats are so large
LOWEST_RATE = 1000  # Hz; a lower number is probably in kHz
MOST_CHANNELS = 8  # of an array with its rate; an array with more rows is a batch of clips
# Integer types of sound files, and their value for silence.
PCM_ZERO = {"int8": 0, "uint8": 128, "int16": 0, "int32": 0}
LARGEST_24_BIT = 2**23
# First bytes of audio files, to recognize a file that was read as an array of numbers.
FILE_BEGINNINGS = (b"RIFF", b"fLaC", b"OggS", b"ID3", b"\x1aE\xdf\xa3")

# Keys of the audio in a row or a part of a chat, in order of preference: `datasets` has the file's name beside the
# decoded array, Common Voice the path beside the column, Gradio the path beside the URL of its server.
KEYS = ("array", "raw", "audio", "input_audio", "audio_url", "bytes", "path", "url", "base64", "data")
PART_KEYS = ("audio", "path", "url", "audio_url", "base64", "input_audio", "data", "bytes", "array")
PART_TYPES = ("audio", "input_audio", "audio_url")


@dataclasses.dataclass(frozen=True)
class AudioOptions:
    """Options for reading a clip: keywords of `SoundwaveProcessor.load_clips` and of the processor's call."""

    mono: bool = False  # average the channels of an array without a rate; audio with a rate is always averaged
    allow_truncated: bool = False  # read a truncated file, with a warning
    max_seconds: float | None = None  # longest clip; by default 4 hours, and no limit for a path
    max_bytes: int | None = None  # largest file or download; by default 1 GiB, and no limit for a path

    def __post_init__(self):
        for name in ("mono", "allow_truncated"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"`{name}` is {getattr(self, name)!r}; expected `True` or `False`.")
        for name in ("max_seconds", "max_bytes"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, Real) and value > 0):
                raise ValueError(f"`{name}` is {value!r}; expected a number above 0, or `None` for the default.")


AUDIO_OPTIONS = tuple(field.name for field in dataclasses.fields(AudioOptions))


def is_sample_list(audio) -> bool:
    """True for a plain list of numbers, which is one clip."""
    return _is_list(audio) and len(audio) > 0 and isinstance(audio[0], Real) and not is_rated_pair(audio)


def is_rated_pair(audio) -> bool:
    """True for `(samples, rate)`, as soundfile gives it, and `(rate, samples)`, as Gradio does."""
    if not isinstance(audio, (tuple, list)) or len(audio) != 2:
        return False
    return sum(map(_is_number, audio)) == 1 and sum(map(_is_samples, audio)) == 1


def is_clip_list(audio) -> bool:
    """True for any other list, which holds clips or is empty. Columns of numpy and pandas count as lists."""
    if hasattr(audio, "to_numpy"):
        audio = audio.to_numpy()
    if isinstance(audio, np.ndarray):
        return audio.dtype.kind in "OU"  # objects, strings
    return _is_list(audio) and not is_sample_list(audio) and not is_rated_pair(audio)


def flatten_clips(audio) -> list:
    """One clip, a list of clips, or one list per text -> the clips in order."""
    if not is_clip_list(audio):
        return [audio]
    return [clip for item in audio for clip in flatten_clips(item)]


def lacks_rate(audio) -> bool:
    """True for samples without a sampling rate."""
    if isinstance(audio, Mapping):
        key = next((key for key in KEYS if audio.get(key) is not None), None)
        return key in ("array", "raw", "audio") and audio.get("sampling_rate") is None and lacks_rate(audio[key])
    return isinstance(audio, (np.ndarray, torch.Tensor)) or is_sample_list(audio)


def load_clip(
    audio,
    name: str,
    sampling_rate: int | None,
    target_rate: int,
    min_seconds: float,
    options: AudioOptions = AudioOptions(),
) -> np.ndarray:
    """Read one clip, check it, and resample it.

    Audio with its own rate (files, pairs, decoders, rows with a `sampling_rate`) is averaged to mono. An array of
    several channels without a rate is an error, unless `options.mono` is set.

    Floats are samples in [-1, 1]. Integers are PCM and are divided by their type's full scale: 128 for int8 and uint8
    (whose zero is 128), 2**15 for int16, 2**31 for int32. Other integers, and int32 that stays within 24 bits, are
    refused, because their full scale is unknown.

    Args:
        audio: array, tensor or list of numbers; `(samples, rate)` or `(rate, samples)`; path, `file://`, http(s) or
            fsspec URL, base64 or `data:` URI; bytes of a file or an open binary file, read from its beginning; row
            of a data set (`{"array", "sampling_rate"}` or `{"path", "bytes"}`); audio part of a chat, OpenAI's
            `input_audio` too; torchcodec's decoder or its samples.
        name: what error messages call the clip, for example `audio[0]`.
        sampling_rate: Hz of an array without a rate.
        target_rate: Hz of the result.
        min_seconds: shortest clip that is accepted.
        options: channels, limits, truncated files.
    Returns: float32 array of shape `(samples,)` at `target_rate`.
    Raises: `ValueError`, `TypeError` for audio that cannot be used, `OSError` for a source that cannot be
        opened, `ImportError` for a format whose decoder is not installed.
    """
    samples, rate = read_audio(audio, name, sampling_rate, options)
    check_samples(samples, name)
    check_length(samples.size / rate, name, min_seconds, options.max_seconds)
    return resample(samples, rate, target_rate)


def read_audio(
    audio,
    name: str,
    sampling_rate: int | None,
    options: AudioOptions = AudioOptions(),
) -> tuple[np.ndarray, float]:
    """Mono samples `(samples,)` from audio in any form, and their rate in Hz."""
    if isinstance(audio, Mapping):
        return read_row(audio, name, sampling_rate, options)
    if is_rated_pair(audio):
        rate, samples = audio if _is_number(audio[0]) else reversed(audio)
        return read_array(samples, rate, name, own_rate=True, options=options)
    if hasattr(audio, "get_all_samples"):  # torchcodec's decoder: a decoded row of `datasets`
        audio = decoded_samples(audio, name)
    if hasattr(audio, "sample_rate") and hasattr(audio, "data"):  # torchcodec's samples
        samples = as_array(audio.data, name)
        check_rate(audio.sample_rate, name)
        return (samples.mean(axis=0) if samples.ndim == 2 else samples), audio.sample_rate
    if _is_samples(audio):
        if sampling_rate is None:
            raise ValueError(
                f"{name} arrived as an array without its sampling rate, which is never assumed. "
                "Pass the clip as {'array': samples, 'sampling_rate': rate}. The processor also takes "
                "`sampling_rate=` in Hz."
            )
        return read_array(audio, sampling_rate, name, own_rate=False, options=options)
    if isinstance(audio, (str, bytes, bytearray, memoryview)) or hasattr(audio, "__fspath__") or _is_file(audio):
        return read_source(audio, name, options)
    raise TypeError(
        f"{name} arrived as {type(audio).__name__}; expected an array, a tensor, a list of floats, a pair of samples "
        "and rate, a path, a URL, base64 text, the bytes of an audio file, an open binary file, or a row of a data "
        "set ({'array', 'sampling_rate'} or {'path', 'bytes'})."
    )


def read_source(source, name: str, options: AudioOptions) -> tuple[np.ndarray, float]:
    if isinstance(source, str) or hasattr(source, "__fspath__"):
        name = f"{name} ({describe(str(source))})"
    opened = open_source(source, name, options.max_bytes)
    samples, rate = decode(opened, name, options.max_seconds, options.allow_truncated)
    check_rate(rate, name)
    return samples, rate


def read_row(row: Mapping, name: str, sampling_rate: int | None, options: AudioOptions) -> tuple[np.ndarray, float]:
    """A row of a `datasets` audio column (decoded or stored), a part of a chat, or audio from Gradio or OpenAI."""
    key = next((key for key in KEYS if row.get(key) is not None), None)
    if key is None:
        raise ValueError(
            f"{name} arrived as a row with the keys {sorted(map(str, row))} and no audio in it; "
            "expected {'array', 'sampling_rate'} or {'path', 'bytes'}. Pass the row's audio column."
        )
    value, rate = row[key], row.get("sampling_rate")
    if key in ("array", "raw", "audio") and _is_samples(value):
        if rate is None:
            return read_audio(value, name, sampling_rate, options)
        return read_array(value, rate, name, own_rate=True, options=options)
    if key in ("base64", "data") and not _is_url(value):
        refuse_raw_format(row.get("format"), name)
        if not isinstance(value, (str, bytes, bytearray)):
            raise TypeError(f"{name} holds {type(value).__name__} under {key!r}; expected base64 text.")
        limit = MAX_BYTES if options.max_bytes is None else options.max_bytes
        return read_source(read_base64(value, f"{name}[{key!r}]", limit), name, options)
    return read_audio(value, name, sampling_rate, options)


def audio_of_part(part: Mapping) -> dict:
    """The audio in a part of type "audio", "input_audio" or "audio_url", with its rate if the part has one."""
    found = [key for key in PART_KEYS if part.get(key) is not None]
    if set(found) == {"path", "bytes"}:  # a row of `datasets`, whose path is only a name
        found = ["bytes"]
    if len(found) != 1:
        raise ValueError(
            f"An audio part arrived with {found if found else 'no audio'}; expected one of {list(PART_KEYS)}. "
            "Write {'type': 'audio', 'audio': ...}, or use `tokenize=False` to render the text alone."
        )
    return {key: part[key] for key in (found[0], "sampling_rate") if part.get(key) is not None}


def refuse_raw_format(audio_format, name: str):
    if isinstance(audio_format, str) and audio_format.lower().startswith("pcm"):
        raise ValueError(
            f"{name} arrived in the format {audio_format!r}, which has no header; expected a file such as wav. "
            "Pass {'array': numpy.frombuffer(data, 'int16'), 'sampling_rate': rate}."
        )


def decoded_samples(decoder, name: str):
    try:
        return decoder.get_all_samples()
    except RuntimeError as error:  # torchcodec's error for any fault of a file
        raise ValueError(f"{name} could not be decoded by its own decoder: {error}") from error


def read_array(samples, rate, name: str, own_rate: bool, options: AudioOptions) -> tuple[np.ndarray, float]:
    rate = rate.item() if hasattr(rate, "item") else rate
    check_rate(rate, name)
    return as_mono(as_array(samples, name), name, own_rate, options.mono), rate


def as_array(samples, name: str) -> np.ndarray:
    """Samples from any container as float32. Integers are divided by their full scale, see [`load_clip`]."""
    if isinstance(samples, torch.Tensor):
        samples = samples.detach().cpu()
        samples = (samples.float() if samples.is_floating_point() else samples).numpy()
    try:
        samples = np.asarray(samples)
    except ValueError as error:
        raise ValueError(f"{name} is a list of lists of unequal lengths: {error}. Pass one list per clip.") from error
    if samples.dtype.kind not in "fiubc":
        raise TypeError(f"{name} arrived as a list that holds more than numbers; expected samples in [-1, 1].")
    if samples.size > 0 and not np.issubdtype(samples.dtype, np.floating):
        return scale_integers(samples, name)
    return samples.astype(np.float32, copy=False)


def scale_integers(samples: np.ndarray, name: str) -> np.ndarray:
    """PCM integers to floats in [-1, 1)."""
    kind = samples.dtype.name
    peak = int(np.abs(samples.astype(np.int64)).max()) if kind == "int32" else LARGEST_24_BIT + 1
    if kind not in PCM_ZERO or 0 < peak <= LARGEST_24_BIT:
        found = f"{kind} samples of up to {peak}" if kind == "int32" else f"{kind} samples"
        raise ValueError(
            f"{name} arrived as {found} with unknown full scale; expected floats in [-1, 1], or int16. "
            "Divide by the full scale: `audio.astype('float32') / 32768` for 16-bit samples."
        )
    if kind == "uint8" and samples.ravel()[:16].tobytes().startswith(FILE_BEGINNINGS):
        raise ValueError(
            f"{name} arrived as uint8 numbers that are the bytes of a file; expected samples. "
            "Pass `audio.tobytes()`, or the path."
        )
    full_scale = 2.0 ** (8 * samples.dtype.itemsize - 1)
    return (samples.astype(np.float32) - np.float32(PCM_ZERO[kind])) / np.float32(full_scale)


def as_mono(samples: np.ndarray, name: str, own_rate: bool = False, mono: bool = False) -> np.ndarray:
    """Average the channels (the shorter axis) of an array with its own rate, or with `mono=True`.

    Args: samples of shape `(samples,)`, `(channels, samples)` or `(samples, channels)`.
    Returns: array of shape `(samples,)`.
    """
    if samples.ndim == 1:
        return samples
    if samples.ndim == 2 and (1 in samples.shape or samples.size == 0):
        return samples.reshape(-1)
    if samples.ndim != 2:
        raise ValueError(f"{name} arrived with the shape {samples.shape}; expected one clip, mono: a 1-D array.")
    axis = int(np.argmin(samples.shape))
    channels = samples.shape[axis]
    if channels == samples.shape[1 - axis] or not (mono or (own_rate and channels <= MOST_CHANNELS)):
        raise ValueError(
            f"{name} arrived with {channels} channels (shape {samples.shape}); expected mono, a 1-D array. "
            f"Average the channels: `samples.mean(axis={axis})`. The processor and the pipeline also take "
            "`mono=True`. For a batch of clips pass a list of 1-D arrays."
        )
    return samples.mean(axis=axis)


def check_rate(rate, name: str):
    if not isinstance(rate, Real) or isinstance(rate, bool) or not 0 < rate < float("inf"):
        raise ValueError(
            f"{name} arrived with the sampling rate {rate!r}; expected a positive number. Pass the rate in Hz."
        )
    if rate < LOWEST_RATE:
        raise ValueError(
            f"{name} arrived with the sampling rate {rate!r}; expected {LOWEST_RATE} or more. Pass the rate in Hz: "
            "16000, not 16."
        )


def check_samples(samples: np.ndarray, name: str):
    if samples.size == 0:
        raise BadAudio(
            f"{name} is empty (0 samples); expected speech. Leave the clip and its audio token out.", "empty"
        )
    bad = samples.size - int(np.isfinite(samples).sum())
    if bad:
        raise BadAudio(
            f"{name} holds {bad} NaN or infinite samples of {samples.size}; expected finite floats in [-1, 1]. "
            "Decode it again, or silence them: `numpy.nan_to_num(audio, posinf=0, neginf=0)`.",
            "not finite",
        )
    peak = float(np.abs(samples).max())
    if peak > LARGEST_SAMPLE:
        raise ValueError(
            f"{name} holds samples of up to {peak:g}; expected floats in [-1, 1]. Divide by the full scale: "
            "`audio / 32768` for 16-bit samples."
        )


def check_length(seconds: float, name: str, min_seconds: float, max_seconds: float | None = None):
    if seconds < min_seconds:
        raise BadAudio(
            f"{name} lasts {seconds * 1000:.2f} ms; expected at least {min_seconds * 1000:g} ms, one position of the "
            "adapter. Leave the clip out, or check that `sampling_rate` is its true rate.",
            "too short",
        )
    if max_seconds is not None and seconds > max_seconds:
        raise BadAudio(
            f"{name} lasts {seconds:.2f} s; expected at most `max_seconds={max_seconds:g}`. Cut the recording.",
            "too long",
        )


def resample(samples: np.ndarray, rate: float, target_rate: int) -> np.ndarray:
    """Change the rate from `rate` to `target_rate` Hz with soxr."""
    if rate == target_rate:
        return samples
    return import_soxr().resample(samples, rate, target_rate)


# Imported on first use, because arrays at the encoder's rate do not need it. Imported inside `try`, because
# transformers refuses code from the Hub if a package is missing that it imports outside of `try`.
def import_soxr():
    try:
        import soxr
    except ImportError as error:
        raise ImportError(f"Resampling audio needs soxr: `pip install soxr` ({error}).") from error
    return soxr


def _is_list(audio) -> bool:
    return isinstance(audio, Sequence) and not isinstance(audio, (str, bytes, bytearray, memoryview))


def _is_number(value) -> bool:
    if isinstance(value, (np.ndarray, torch.Tensor)):
        return value.ndim == 0
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_samples(audio) -> bool:
    if isinstance(audio, (np.ndarray, torch.Tensor)):
        return audio.ndim > 0
    return is_sample_list(audio) or (_is_list(audio) and len(audio) > 0 and is_sample_list(audio[0]))


def _is_file(audio) -> bool:
    return callable(getattr(audio, "read", None))


def _is_url(value) -> bool:
    return isinstance(value, str) and (is_url(value) or value[:5].lower() == "data:")
