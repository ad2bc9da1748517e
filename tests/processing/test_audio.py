"""Every form of audio becomes the same mono samples at 16 kHz, or an error that says what to do."""

import base64
import http.server
import io
import pathlib
import threading

import numpy as np
import pytest
import soundfile
import torch
from datasets import Audio, Dataset
from transformers.audio_utils import load_audio

from soundwave_hf.processing.audio_soundwave import decode, flatten_clips, load_clip
from tests.tiny import tiny_processor


def tone(seconds: float = 0.5, rate: int = 16000) -> np.ndarray:
    """440 Hz at half scale, float32."""
    return (0.5 * np.sin(2 * np.pi * 440 * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def load(audio, sampling_rate=None) -> np.ndarray:
    return load_clip(audio, "audio[0]", sampling_rate, target_rate=16000, min_seconds=0.04)


def wav_bytes(samples: np.ndarray, rate: int = 16000) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format="WAV", subtype="FLOAT")
    return buffer.getvalue()


@pytest.fixture
def wav(tmp_path) -> pathlib.Path:
    path = tmp_path / "speech.wav"
    path.write_bytes(wav_bytes(tone()))
    return path


class FakeDecoder:
    """What torchcodec's AudioDecoder offers, as `datasets` returns it for a decoded row."""

    def __init__(self, data: torch.Tensor, sample_rate: int):
        self.data, self.sample_rate = data, sample_rate

    def get_all_samples(self):
        return self


def test_every_form_of_the_same_clip_gives_the_same_samples(wav):
    samples = tone()
    stored = wav.read_bytes()
    with_own_rate = [
        {"array": samples, "sampling_rate": 16000},
        {"array": samples.tolist(), "sampling_rate": 16000},
        {"path": str(wav), "bytes": None},
        {"path": "gone.wav", "bytes": stored},
        {"bytes": stored},
        str(wav),
        wav,
        stored,
        "data:audio/wav;base64," + base64.b64encode(stored).decode(),
        FakeDecoder(torch.from_numpy(samples)[None], 16000),
    ]
    plain = [samples, samples.astype(np.float64), torch.from_numpy(samples), samples.tolist(), samples[None]]
    for clip in with_own_rate:
        np.testing.assert_array_equal(load(clip), samples)
    for clip in plain:
        np.testing.assert_array_equal(load(clip, 16000), samples)


def test_a_column_of_datasets_is_read_row_by_row(wav):
    column = Dataset.from_dict({"audio": [str(wav), str(wav)]}).cast_column("audio", Audio(decode=False))["audio"]
    inputs = tiny_processor()(text=["<|audio|>", "<|audio|>"], audio=column)
    assert inputs["input_features_mask"].tolist() == [[1] * 50] * 2


def test_a_bfloat16_tensor_with_gradient_is_read():
    clip = torch.full((1000,), 0.5, dtype=torch.bfloat16, requires_grad=True)
    np.testing.assert_array_equal(load(clip, 16000), np.full(1000, 0.5, dtype=np.float32))


def test_a_row_keeps_its_own_rate():
    row = {"array": tone(rate=8000), "sampling_rate": 8000}
    np.testing.assert_array_equal(load(row, sampling_rate=16000), load(row["array"], 8000))


def test_flac_and_ogg_and_mp3_are_decoded(tmp_path):
    for ending in ("flac", "ogg", "mp3"):
        path = tmp_path / f"speech.{ending}"
        soundfile.write(path, tone(), 16000)
        decoded = load(path)
        assert decoded.size >= 8000 and 0.2 < np.abs(decoded).mean() < 0.4  # a sine of height 0.5 averages 0.32


@pytest.mark.parametrize("rate", [8000, 44100, 48000])
def test_resampling_keeps_the_tone_and_agrees_with_the_library(tmp_path, rate):
    path = tmp_path / "speech.wav"
    path.write_bytes(wav_bytes(tone(rate=rate), rate))
    clip = load(path)
    assert clip.dtype == np.float32 and clip.size == 8000
    assert np.abs(clip[800:-800] - tone()[800:-800]).max() < 1e-3
    np.testing.assert_array_equal(clip, load_audio(str(path), sampling_rate=16000, backend="soundfile"))
    np.testing.assert_array_equal(clip, load(tone(rate=rate), rate))


def test_a_url_is_fetched(wav, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(wav.parent))

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        np.testing.assert_array_equal(load(f"{address}/speech.wav"), tone())
        with pytest.raises(OSError, match=r"gone.wav\) could not be fetched: HTTP Error 404.* pass its path"):
            load(f"{address}/gone.wav")
        server.shutdown()


def test_flatten_clips_takes_one_clip_a_list_and_a_list_per_text():
    samples = tone()
    assert flatten_clips(samples)[0] is samples
    assert flatten_clips([0.1, 0.2]) == [[0.1, 0.2]]
    assert flatten_clips([[0.1], [0.2]]) == [[0.1], [0.2]]
    assert flatten_clips([["a.wav", "b.wav"], [], ["c.wav"]]) == ["a.wav", "b.wav", "c.wav"]
    assert flatten_clips("a.wav") == ["a.wav"]


def test_a_decoded_file_keeps_its_channel_axis():
    samples, rate = decode(io.BytesIO(wav_bytes(np.zeros((100, 2)), 8000)), "audio[0]")
    assert samples.shape == (100, 2) and rate == 8000


def with_nan() -> np.ndarray:
    clip = tone()
    clip[[3, 5]] = np.nan, np.inf
    return clip


# audio, sampling_rate -> what the message says
REFUSED = {
    "array without its rate": (tone(), None, r"audio\[0\] arrived as an array without its sampling rate.*Pass `samp"),
    "list without its rate": ([0.0] * 800, None, "arrived as an array without its sampling rate"),
    "row without its rate": ({"array": tone()}, None, "arrived as an array without its sampling rate"),
    "rate of zero": (tone(), 0, "arrived with the sampling rate 0; expected a positive number. Pass the rate in Hz"),
    "negative rate": (tone(), -16000, "arrived with the sampling rate -16000; expected a positive number"),
    "rate that is text": (tone(), "16k", "arrived with the sampling rate '16k'; expected a positive number"),
    "empty": (np.zeros(0, np.float32), 16000, r"audio\[0\] is empty \(0 samples\); expected speech. Leave"),
    "no finite samples": (
        with_nan(),
        16000,
        "holds 2 NaN or infinite samples of 8000; expected finite.*Decode it",
    ),
    "10 ms": (tone(0.01), 16000, "lasts 10.00 ms; expected at least 40 ms, .*Leave the clip out, or check"),
    "one sample short": (np.zeros(639, np.float32), 16000, "lasts 39.94 ms; expected at least 40 ms"),
    "stereo, channels first": (
        np.zeros((2, 8000), np.float32),
        16000,
        r"2 channels \(shape \(2, 8000\)\); expected mono.*`samples.mean\(axis=0\)`",
    ),
    "stereo, channels last": (
        torch.zeros(8000, 2),
        16000,
        r"2 channels \(shape \(8000, 2\)\); expected mono.*`samples.mean\(axis=1\)`",
    ),
    "stereo file": (wav_bytes(np.zeros((8000, 2))), None, r"2 channels.*`samples.mean\(axis=1\)`"),
    "stereo decoder": (FakeDecoder(torch.zeros(2, 8000), 16000), None, r"2 channels.*`samples.mean\(axis=0\)`"),
    "three axes": (np.zeros((1, 1, 8000), np.float32), 16000, r"shape \(1, 1, 8000\); expected one clip, mono"),
    "16-bit integers": (np.ones(8000, np.int16), 16000, r"arrived as int16 samples; expected floats.*/ 32768"),
    "integers as floats": (
        np.full(8000, -20_000, np.float32),
        16000,
        r"up to 20000; expected floats in \[-1, 1\]. Divide .*/ 32768",
    ),
    "no base64": ("data:audio/wav;base64,@@@x", None, r"\(data:audio/wav;base64,@@@x\) is no base64: .* encode the b"),
    "integer tensor": (torch.ones(8000, dtype=torch.int32), 16000, "arrived as int32 samples; expected floats"),
    "not audio": (b"not audio at all", None, "could not be decoded: .* Expected a file .*Convert it: `ffmpeg"),
    "row without audio": (
        {"path": None, "bytes": None},
        None,
        r"keys \['bytes', 'path'\] and no audio.* Pass the row",
    ),
}


@pytest.mark.parametrize(("audio", "rate", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_bad_audio_is_refused_with_a_message(audio, rate, message):
    processor = tiny_processor()
    processor.require_sampling_rate = True
    with pytest.raises(ValueError, match=message):
        processor(text="<|audio|>", audio=audio, sampling_rate=rate)


def test_a_file_that_is_missing_or_broken_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"audio\[0\] \(gone.wav\) is not a file, seen from the folder .* URL"):
        load("gone.wav")
    broken = tmp_path / "broken.wav"
    broken.write_text("text")
    with pytest.raises(ValueError, match=r"broken.wav\) could not be decoded: .*Convert it"):
        load(broken)


def test_an_object_that_is_no_audio_is_named_by_type():
    with pytest.raises(TypeError, match=r"audio\[0\] arrived as int; expected an array"):
        load(5)


def test_the_message_names_the_clip_in_the_batch():
    clips = [tone(), np.zeros(0, np.float32)]
    with pytest.raises(ValueError, match=r"audio\[1\] is empty"):
        tiny_processor()(text=["<|audio|>", "<|audio|>"], audio=clips, sampling_rate=16000)
