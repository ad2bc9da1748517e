"""Audio as a user has it (array, file, URL, row of a data set) to mono samples at the encoder's rate."""

import base64
import io
import os
import urllib.request
from collections.abc import Mapping, Sequence
from numbers import Real

import numpy as np
import torch


URL_TIMEOUT_SECONDS = 30
LARGEST_SAMPLE = 100.0  # 40 dB above full scale: no gain gets there, and integers as floats do


def is_sample_list(audio) -> bool:
    """True for a plain list of numbers, which is one clip."""
    return _is_list(audio) and len(audio) > 0 and isinstance(audio[0], Real)


def is_clip_list(audio) -> bool:
    """True for every other list: it holds clips, or none."""
    return _is_list(audio) and not is_sample_list(audio)


def flatten_clips(audio) -> list:
    """One clip, a list of clips, or one list per text -> the clips in order."""
    if not is_clip_list(audio):
        return [audio]
    return [clip for item in audio for clip in flatten_clips(item)]


def lacks_rate(audio) -> bool:
    """True for samples that do not say at which rate they were taken."""
    if isinstance(audio, Mapping):
        return audio.get("array") is not None and audio.get("sampling_rate") is None and lacks_rate(audio["array"])
    return isinstance(audio, (np.ndarray, torch.Tensor)) or is_sample_list(audio)


def load_clip(audio, name: str, sampling_rate: int | None, target_rate: int, min_seconds: float) -> np.ndarray:
    """Read one clip, check it, and resample it.

    Args:
        audio: array, tensor or list of floats; path, URL, `data:` URI or bytes of a file; row of a data set
            (`{"array", "sampling_rate"}` or `{"path", "bytes"}`); decoder with `get_all_samples()`.
        name: what error messages call the clip, for example `audio[0]`.
        sampling_rate: Hz of an array that does not carry its own rate.
        target_rate: Hz of the result.
        min_seconds: shortest clip that is accepted.
    Returns: float32 array of shape `(samples,)` at `target_rate`.
    Raises: `ValueError`, `TypeError` for audio that cannot be used as it is, `OSError` for a source that cannot be
        opened; nothing is assumed, cut or mixed down.
    """
    if isinstance(audio, (str, os.PathLike)):
        name = f"{name} ({_shorten(os.fspath(audio))})"
    samples, rate = read_audio(audio, name, sampling_rate)
    check_rate(rate, name)
    samples = as_mono(samples, name)
    check_samples(samples, name)
    check_length(samples.size / rate, name, min_seconds)
    return resample(samples, rate, target_rate)


def read_audio(audio, name: str, sampling_rate: int | None) -> tuple[np.ndarray, float]:
    """Samples as they are stored, `(samples,)` or with a channel axis, and their rate in Hz."""
    if isinstance(audio, Mapping):
        return read_row(audio, name, sampling_rate)
    if isinstance(audio, (bytes, bytearray)):
        return decode(io.BytesIO(audio), name)
    if isinstance(audio, (str, os.PathLike)):
        return decode(open_source(os.fspath(audio), name), name)
    if hasattr(audio, "get_all_samples"):  # torchcodec's decoder: a decoded row of `datasets`
        decoded = audio.get_all_samples()
        return as_array(decoded.data, name), decoded.sample_rate
    if isinstance(audio, (np.ndarray, torch.Tensor)) or is_sample_list(audio):
        if sampling_rate is None:
            raise ValueError(
                f"{name} arrived as an array without its sampling rate, which is never assumed. "
                "Pass `sampling_rate=` in Hz, or the clip as {'array': samples, 'sampling_rate': rate}."
            )
        return as_array(audio, name), sampling_rate
    raise TypeError(
        f"{name} arrived as {type(audio).__name__}; expected an array, a tensor, a list of floats, a path, a URL, the "
        "bytes of an audio file, or a row of a data set ({'array', 'sampling_rate'} or {'path', 'bytes'})."
    )


def read_row(row: Mapping, name: str, sampling_rate: int | None) -> tuple[np.ndarray, float]:
    """A row of a `datasets` audio column: decoded (`array`) or as stored (`decode=False`: `bytes` or `path`)."""
    if row.get("array") is not None:
        rate = row.get("sampling_rate")
        return read_audio(row["array"], name, sampling_rate if rate is None else rate)
    for key in ("bytes", "path"):
        if row.get(key) is not None:
            return read_audio(row[key], name, sampling_rate)
    raise ValueError(
        f"{name} arrived as a row with the keys {sorted(row)} and no audio in it; "
        "expected {'array', 'sampling_rate'} or {'path', 'bytes'}. Pass the row's audio column."
    )


def open_source(source: str, name: str) -> str | io.BytesIO:
    """A path as it is; what a URL or a `data:` URI holds as a buffer."""
    if source.startswith(("http://", "https://")):
        # Some hosts refuse the default agent of Python.
        request = urllib.request.Request(source, headers={"User-Agent": "soundwave-hf"})
        try:
            with urllib.request.urlopen(request, timeout=URL_TIMEOUT_SECONDS) as response:
                return io.BytesIO(response.read())
        except OSError as error:
            hint = "Check the URL, or download the file and pass its path."
            raise OSError(f"{name} could not be fetched: {error}. {hint}") from error
    if source.startswith("data:"):
        try:
            return io.BytesIO(base64.b64decode(source.partition(",")[2]))
        except ValueError as error:
            hint = "Expected `data:audio/wav;base64,...`: encode the bytes of an audio file with `base64.b64encode`."
            raise ValueError(f"{name} is no base64: {error}. {hint}") from error
    if not os.path.isfile(source):
        raise FileNotFoundError(
            f"{name} is not a file, seen from the folder {os.getcwd()}. "
            "Check the path; a URL begins with http:// or https://."
        )
    return source


def decode(source: str | io.BytesIO, name: str) -> tuple[np.ndarray, int]:
    """Decode a file with soundfile: float32 `(samples, channels)` and its rate in Hz."""
    soundfile = import_soundfile()
    try:
        return soundfile.read(source, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, TypeError) as error:  # TypeError: a headerless .raw file
        raise ValueError(
            f"{name} could not be decoded: {error} Expected a file that soundfile reads (wav, flac, ogg, opus, mp3). "
            "Convert it: `ffmpeg -i INPUT -ac 1 -ar 16000 OUTPUT.wav`."
        ) from error


def as_array(samples, name: str) -> np.ndarray:
    """Floating point samples of any container as float32; integers have no known full scale and are refused."""
    if isinstance(samples, torch.Tensor):
        samples = samples.detach().cpu()
        samples = (samples.float() if samples.is_floating_point() else samples).numpy()
    samples = np.asarray(samples)
    if samples.size > 0 and not np.issubdtype(samples.dtype, np.floating):
        raise ValueError(
            f"{name} arrived as {samples.dtype} samples; expected floats in [-1, 1]. "
            "Divide by the full scale: `audio.astype('float32') / 32768` for 16-bit samples."
        )
    return samples.astype(np.float32, copy=False)


def as_mono(samples: np.ndarray, name: str) -> np.ndarray:
    """Drop a channel axis of length 1; several channels are the caller's to mix.

    Args: samples of shape `(samples,)`, `(1, samples)` or `(samples, 1)`.
    Returns: array of shape `(samples,)`.
    """
    if samples.ndim == 1:
        return samples
    if samples.ndim == 2 and (1 in samples.shape or samples.size == 0):
        return samples.reshape(-1)
    if samples.ndim != 2:
        raise ValueError(f"{name} arrived with the shape {samples.shape}; expected one clip, mono: a 1-D array.")
    axis = int(np.argmin(samples.shape))
    raise ValueError(
        f"{name} arrived with {samples.shape[axis]} channels (shape {samples.shape}); expected mono, a 1-D array. "
        f"Average the channels: `samples.mean(axis={axis})`. For a batch of clips pass a list of 1-D arrays."
    )


def check_rate(rate, name: str):
    if not isinstance(rate, Real) or isinstance(rate, bool) or not 0 < rate < float("inf"):
        raise ValueError(
            f"{name} arrived with the sampling rate {rate!r}; expected a positive number. Pass the rate in Hz."
        )


def check_samples(samples: np.ndarray, name: str):
    if samples.size == 0:
        raise ValueError(f"{name} is empty (0 samples); expected speech. Leave the clip and its audio token out.")
    bad = samples.size - int(np.isfinite(samples).sum())
    if bad:
        raise ValueError(
            f"{name} holds {bad} NaN or infinite samples of {samples.size}; expected finite floats in [-1, 1]. "
            "Decode it again, or silence them: `numpy.nan_to_num(audio, posinf=0, neginf=0)`."
        )
    peak = float(np.abs(samples).max())
    if peak > LARGEST_SAMPLE:
        raise ValueError(
            f"{name} holds samples of up to {peak:g}; expected floats in [-1, 1]. Divide by the full scale: "
            "`audio / 32768` for 16-bit samples."
        )


def check_length(seconds: float, name: str, min_seconds: float):
    if seconds < min_seconds:
        raise ValueError(
            f"{name} lasts {seconds * 1000:.2f} ms; expected at least {min_seconds * 1000:g} ms, one position of the "
            "adapter. Leave the clip out, or check that `sampling_rate` is its true rate."
        )


def resample(samples: np.ndarray, rate: float, target_rate: int) -> np.ndarray:
    """Change the rate from `rate` to `target_rate` Hz with soxr."""
    if rate == target_rate:
        return samples
    return import_soxr().resample(samples, rate, target_rate)


# Imported on first use, as arrays at the encoder's rate need neither; and inside `try`, as code loaded from the Hub is
# refused where a package that it imports anywhere else is missing.
def import_soundfile():
    try:
        import soundfile
    except (ImportError, OSError) as error:  # OSError: the package is there, its C library is not
        raise ImportError(f"Decoding audio files needs soundfile: `pip install soundfile` ({error}).") from error
    return soundfile


def import_soxr():
    try:
        import soxr
    except ImportError as error:
        raise ImportError(f"Resampling audio needs soxr: `pip install soxr` ({error}).") from error
    return soxr


def _is_list(audio) -> bool:
    return isinstance(audio, Sequence) and not isinstance(audio, (str, bytes, bytearray))


def _shorten(text: str, limit: int = 120) -> str:
    """A `data:` URI can be megabytes long; its beginning names it."""
    return text if len(text) <= limit else text[: limit - 3] + "..."
