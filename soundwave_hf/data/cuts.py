"""Clips out of longer recordings, cut while rows are read. A clip is FLAC, which loses nothing of 16 and 24 bits."""

import io
import os
from collections.abc import Mapping

import numpy as np
import soundfile


# Segments of a corpus may end a little after their recording; Kaldi's own limit.
OVERSHOOT_SECONDS = 0.5
SUBTYPES = {"PCM_16": ("int16", "FLAC", "PCM_16"), "PCM_24": ("int32", "FLAC", "PCM_24")}
COMPRESSED = ("int16", "FLAC", "PCM_16")  # of mp3, ogg and 8-bit files
WHOLE_RANGE = ("float64", "WAV", "DOUBLE")  # 32 bits and floats, which FLAC does not hold


class Cutter:
    """Cuts clips. The last recording stays open, because the segments of a recording follow each other."""

    def __init__(self):
        self._path: str | None = None
        self._file: soundfile.SoundFile | None = None

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def close(self):
        if self._file is not None:
            self._file.close()
        self._path = self._file = None

    def cut(self, clip: Mapping, clip_id: str, name: str) -> dict:
        """The clip of a segment as a row holds it, `{"bytes", "path"}`.

        Args:
            clip: `path` of the recording, `start` and `end` in seconds (`end` None is the recording's end), `channel`
                (None keeps all of them).
            clip_id: names the clip, because its bytes have no file name.
            name: what errors call the row.

        Raises: `FileNotFoundError`; `ValueError` for a file that cannot be read, an interval outside of the recording,
            and a channel that it does not have.
        """
        file = self._open(clip["path"], name)
        first, count = _frames(clip, file, name)
        kind, container, subtype = _form(file)
        file.seek(first)
        samples = file.read(count, dtype=kind, always_2d=True)
        if len(samples) < count:
            raise ValueError(
                f"{name}: `{clip['path']}` ends after {(first + len(samples)) / file.samplerate:.2f} s, and its "
                f"header states {file.frames / file.samplerate:.2f} s: the file was cut off."
            )
        samples = _channel(samples, clip.get("channel"), clip["path"], name)
        content = io.BytesIO()
        soundfile.write(content, samples, file.samplerate, subtype=subtype, format=container)
        return {"bytes": content.getvalue(), "path": f"{clip_id}.{container.lower()}"}

    def _open(self, path: str, name: str) -> soundfile.SoundFile:
        if path != self._path:
            self.close()
            if not os.path.isfile(path):
                raise FileNotFoundError(f"{name}: the recording `{path}` does not exist.")
            try:
                self._file = soundfile.SoundFile(path)
            except soundfile.SoundFileError as error:
                raise ValueError(
                    f"{name}: the recording `{path}` cannot be read ({error}). Segments are cut from wav, flac, mp3, "
                    "ogg and other files that libsndfile reads: convert it to one of them."
                ) from error
            self._path = path
        return self._file


def _frames(clip: Mapping, file: soundfile.SoundFile, name: str) -> tuple[int, int]:
    """First frame and number of frames of a segment."""
    length = file.frames / file.samplerate
    start, end = clip["start"], length if clip.get("end") is None else clip["end"]
    if not 0 <= start < end <= length + OVERSHOOT_SECONDS or start >= length:
        raise ValueError(
            f"{name} is a segment from {start:g} to {end:g} s, and the recording `{clip['path']}` lasts "
            f"{length:.2f} s."
        )
    first = round(start * file.samplerate)
    return first, max(1, min(round(end * file.samplerate), file.frames) - first)


def _form(file: soundfile.SoundFile) -> tuple[str, str, str]:
    """Sample type, container and subtype that hold the recording's samples unchanged."""
    if file.channels > 8 or file.subtype in ("PCM_32", "FLOAT", "DOUBLE"):
        return WHOLE_RANGE
    return SUBTYPES.get(file.subtype, COMPRESSED)


def _channel(samples: np.ndarray, channel: int | None, path: str, name: str) -> np.ndarray:
    if channel is None:
        return samples
    if not 0 <= channel < samples.shape[1]:
        raise ValueError(
            f"{name} is in channel {channel}, and `{path}` has {samples.shape[1]} (the first is channel 0)."
        )
    return samples[:, channel]


__all__ = ["OVERSHOOT_SECONDS", "Cutter"]
