"""Every form of audio becomes the same mono samples at 16 kHz, or an error that says what to do."""

import base64
import io
import pathlib

import numpy as np
import pandas
import pytest
import soundfile
import torch
from datasets import Audio, Dataset
from transformers.audio_utils import load_audio

from soundwave_hf.modeling import pipeline_soundwave
from soundwave_hf.processing.audio_soundwave import AUDIO_OPTIONS, flatten_clips, load_clip
from soundwave_hf.processing.processing_soundwave import SoundwaveAudioKwargs
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
    text = base64.b64encode(stored).decode()
    uri = f"data:audio/wav;base64,{text}"
    with_own_rate = {
        "row": {"array": samples, "sampling_rate": 16000},
        "row of a list": {"array": samples.tolist(), "sampling_rate": 16000},
        "raw": {"raw": samples, "sampling_rate": 16000},
        "stored row": {"path": str(wav), "bytes": None},
        "stored bytes": {"path": "gone.wav", "bytes": stored},
        "bytes alone": {"bytes": stored},
        "Common Voice": {"path": "gone.wav", "audio": {"path": "gone.wav", "bytes": stored}, "sentence": "hi"},
        "Gradio file": {"path": str(wav), "url": "http://localhost:1/gone.wav", "meta": {"_type": "gradio.FileData"}},
        "path": str(wav),
        "PathLike": wav,
        "file URL": wav.as_uri(),
        "bytes": stored,
        "bytearray": bytearray(stored),
        "memoryview": memoryview(stored),
        "BytesIO": io.BytesIO(stored),
        "base64": text,
        "data URI": uri,
        "samples, rate": (samples, 16000),
        "rate, samples": (16000, samples),
        "pair as JSON has it": [16000, samples.tolist()],
        "rate of numpy": (np.int64(16000), torch.from_numpy(samples)),
        "decoder": FakeDecoder(torch.from_numpy(samples)[None], 16000),
        "OpenAI": {"type": "input_audio", "input_audio": {"data": text, "format": "wav"}},
    }
    with_own_rate |= {
        f"part, {key}": {"type": "audio", key: value}
        for key, value in {
            "audio": str(wav),
            "path": wav,
            "url": wav.as_uri(),
            "audio_url": {"url": uri},
            "base64": text,
        }.items()
    }
    for form, clip in with_own_rate.items():
        np.testing.assert_array_equal(load(clip), samples, err_msg=form)
        inputs = tiny_processor().apply_transcription_request([clip, clip])  # a pair is one clip, a list is several
        assert inputs["input_features_mask"].sum(1).tolist() == [50, 50], form
    plain = [samples, samples.astype(np.float64), torch.from_numpy(samples), samples.tolist(), samples[None]]
    for clip in plain:
        np.testing.assert_array_equal(load(clip, 16000), samples)


INTEGERS = {"int8": (-64, -0.5), "uint8": (64, -0.5), "int16": (-16384, -0.5), "int32": (-(2**30), -0.5)}


@pytest.mark.parametrize(("kind", "value", "level"), [(kind, *pair) for kind, pair in INTEGERS.items()])
def test_integers_are_pcm_and_scaled_by_the_full_scale_of_their_type(kind, value, level):
    array = np.full(8000, value, kind)
    for clip, rate in (
        (array, 16000),
        (torch.from_numpy(array), 16000),
        ((16000, array), None),
        ({"array": array, "sampling_rate": 16000}, None),
    ):
        np.testing.assert_array_equal(load(clip, rate), np.full(8000, level, np.float32))


@pytest.mark.parametrize("kind", [np.float16, np.float64, np.longdouble, torch.bfloat16, torch.float16, torch.float64])
def test_every_type_of_float_is_read(kind):
    clip = torch.full((8000,), 0.25, dtype=kind) if isinstance(kind, torch.dtype) else np.full(8000, 0.25, kind)
    np.testing.assert_array_equal(load(clip, 16000), np.full(8000, 0.25, np.float32))


def stereo() -> np.ndarray:
    """0.5 left, -0.25 right: 0.125 in mono."""
    return np.stack([np.full(8000, 0.5), np.full(8000, -0.25)], axis=1).astype(np.float32)


def test_what_carries_its_own_rate_is_averaged_to_mono(tmp_path):
    path = tmp_path / "stereo.wav"
    path.write_bytes(wav_bytes(stereo()))
    mono = np.full(8000, 0.125, np.float32)
    for clip in (
        path,
        path.read_bytes(),
        path.open("rb"),
        {"path": str(path), "bytes": None},
        {"array": stereo(), "sampling_rate": 16000},
        {"type": "audio", "audio": stereo().T, "sampling_rate": 16000},
        (stereo(), 16000),
        (16000, stereo().T),
        (16000, (stereo() * 32768).astype(np.int16)),
        FakeDecoder(torch.from_numpy(stereo().T.copy()), 16000),
    ):
        np.testing.assert_array_equal(load(clip), mono)
    np.testing.assert_array_equal(load(path), load_audio(str(path), sampling_rate=16000, backend="soundfile"))


def test_mono_averages_the_channels_of_a_bare_array():
    processor = tiny_processor()
    expected = processor(text="<|audio|>", audio=np.full(8000, 0.125, np.float32), sampling_rate=16000)
    for options in ({"mono": True}, {"audio_kwargs": {"mono": True}}):
        inputs = processor(text="<|audio|>", audio=stereo(), sampling_rate=16000, **options)
        assert torch.equal(inputs["input_features"], expected["input_features"])
    (samples,) = processor.load_clips([stereo().T], 16000, mono=True)
    np.testing.assert_array_equal(samples, np.full(8000, 0.125, np.float32))
    asked = processor.apply_transcription_request(stereo(), sampling_rate=16000, mono=True)
    assert torch.equal(asked["input_features"], expected["input_features"])
    part = {"type": "audio", "audio": torch.from_numpy(stereo())}
    chat = [{"role": "user", "content": [part]}]
    for options in ({"mono": True}, {"processor_kwargs": {"mono": True}}):
        inputs = processor.apply_chat_template(chat, tokenize=True, return_dict=True, sampling_rate=16000, **options)
        assert torch.equal(inputs["input_features"], expected["input_features"])
    with pytest.raises(ValueError, match="arrived with 2 channels"):
        processor.apply_transcription_request(stereo(), sampling_rate=16000, mono=False)


def test_processor_and_pipeline_take_the_same_options_of_audio():
    assert pipeline_soundwave.AUDIO_OPTIONS == AUDIO_OPTIONS
    assert set(AUDIO_OPTIONS) <= SoundwaveAudioKwargs.__annotations__.keys()


def test_a_chat_takes_every_part_of_audio(wav):
    processor, text = tiny_processor(), base64.b64encode(wav.read_bytes()).decode()
    parts = [
        {"type": "audio", "audio": str(wav)},
        {"type": "audio", "url": wav.as_uri()},
        {"type": "audio", "base64": text},
        {"type": "audio", "audio": (16000, tone())},
        {"type": "audio", "audio": io.BytesIO(wav.read_bytes())},
        {"type": "audio_url", "audio_url": {"url": f"data:audio/wav;base64,{text}"}},
        {"type": "input_audio", "input_audio": {"data": text, "format": "wav"}},
    ]
    chat = [{"role": "user", "content": [*parts, {"type": "text", "text": "Same?"}]}]
    options = {"tokenize": True, "return_dict": True, "processor_kwargs": {"sanitize_control_tokens": True}}
    inputs = processor.apply_chat_template(chat, **options)
    assert (inputs["input_ids"] == processor.audio_token_id).sum() == 7
    assert all(torch.equal(features, inputs["input_features"][0]) for features in inputs["input_features"])


def test_a_column_of_datasets_is_read_row_by_row(wav):
    column = Dataset.from_dict({"audio": [str(wav), str(wav)]}).cast_column("audio", Audio(decode=False))["audio"]
    inputs = tiny_processor()(text=["<|audio|>", "<|audio|>"], audio=column)
    assert inputs["input_features_mask"].tolist() == [[1] * 50] * 2
    frame = pandas.DataFrame({"audio": [str(wav), str(wav)]})
    for paths in (frame["audio"], frame["audio"].to_numpy()):
        again = tiny_processor().apply_transcription_request(paths)
        assert torch.equal(again["input_features"], inputs["input_features"])
    row = {"path": "gone.wav", "bytes": wav.read_bytes()}
    parts = [{"type": "audio", "audio": column[0]}, {"type": "audio", "audio": row}, {"type": "audio", **row}]
    chat = [{"role": "user", "content": [*parts, "Same?"]}]
    asked = tiny_processor().apply_chat_template(chat, tokenize=True, return_dict=True)
    assert all(torch.equal(features, inputs["input_features"][0]) for features in asked["input_features"])


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


def test_flatten_clips_takes_one_clip_a_list_and_a_list_per_text():
    samples = tone()
    assert flatten_clips(samples)[0] is samples
    assert flatten_clips([0.1, 0.2]) == [[0.1, 0.2]]
    assert flatten_clips([[0.1], [0.2]]) == [[0.1], [0.2]]
    assert flatten_clips([["a.wav", "b.wav"], [], ["c.wav"]]) == ["a.wav", "b.wav", "c.wav"]
    assert flatten_clips("a.wav") == ["a.wav"]
    assert flatten_clips((16000, samples)) == [(16000, samples)]
    assert len(flatten_clips([(16000, samples), (samples, 16000)])) == 2
    assert flatten_clips(np.array(["a.wav", "b.wav"])) == ["a.wav", "b.wav"]


def with_nan() -> np.ndarray:
    clip = tone()
    clip[[3, 5]] = np.nan, np.inf
    return clip


# audio, sampling_rate -> what the message says
REFUSED = {
    "array without its rate": (tone(), None, r"audio\[0\] arrived as an array without its sampling rate.*Pass the cl"),
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
        r"2 channels \(shape \(2, 8000\)\); expected mono.*: `samples.mean\(axis=0\)`. The processor and the pipeline",
    ),
    "stereo, channels last": (
        torch.zeros(8000, 2),
        16000,
        r"2 channels \(shape \(8000, 2\)\); expected mono.*`samples.mean\(axis=1\)`",
    ),
    "a batch in one array": (
        (16000, np.zeros((9, 8000), np.float32)),
        None,
        r"9 channels .* also take `mono=True`. For a batch of clips pass a list",
    ),
    "rate in kHz": (tone(), 16, "sampling rate 16; expected 1000 or more. Pass the rate in Hz: 16000, not 16"),
    "three axes": (np.zeros((1, 1, 8000), np.float32), 16000, r"shape \(1, 1, 8000\); expected one clip, mono"),
    "64-bit integers": (np.ones(8000, np.int64), 16000, r"arrived as int64 samples .* expected floats.*/ 32768"),
    "unsigned integers": (
        (16000, np.ones(8000, np.uint16)),
        None,
        "arrived as uint16 samples with unknown full scale",
    ),
    "truth values": (np.ones(8000, bool), 16000, "arrived as bool samples with unknown full scale"),
    "complex numbers": (np.ones(8000, np.complex64), 16000, "arrived as complex64 samples with unknown full scale"),
    "16 bits in 32": (
        np.full(8000, -30_000, np.int32),
        16000,
        "arrived as int32 samples of up to 30000 with unknown full scale; expected",
    ),
    "a file as numbers": (
        np.frombuffer(wav_bytes(tone()), np.uint8),
        16000,
        r"uint8 numbers that are the bytes of a file; expected samples. Pass `audio.tobytes\(\)`",
    ),
    "integers as floats": (
        np.full(8000, -20_000, np.float32),
        16000,
        r"up to 20000; expected floats in \[-1, 1\]. Divide .*/ 32768",
    ),
    "not valid base64": (
        "data:audio/wav;base64,@@@x",
        None,
        r"\(data:audio/wav;base64,@@@x\) is not valid base64: .* encode the b",
    ),
    "integer tensor": (torch.ones(8000, dtype=torch.int64), 16000, "arrived as int64 samples with unknown full scale"),
    "raw PCM of OpenAI": (
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "pcm16"}},
        None,
        r"in the format 'pcm16', which has no header; expected .* numpy.frombuffer\(data, 'int16'\)",
    ),
    "ragged": ({"array": [[0.1] * 9, [0.1]], "sampling_rate": 16000}, None, "lists of unequal lengths"),
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
    with pytest.raises(FileNotFoundError, match=r"audio\[0\] \(gone.wav\) is not a file \(current folder: .* URL"):
        load("gone.wav")
    broken = tmp_path / "broken.wav"
    broken.write_text("text")
    with pytest.raises(ValueError, match=r"broken.wav\) could not be decoded: .*Convert it"):
        load(broken)


def test_options_that_are_no_truth_value_are_refused():
    for name in ("mono", "allow_truncated"):
        with pytest.raises(ValueError, match=f"`{name}` is 'false'; expected `True` or `False`"):
            tiny_processor().load_clips([tone()], 16000, **{name: "false"})


def test_an_object_that_is_no_audio_is_named_by_type():
    with pytest.raises(TypeError, match=r"audio\[0\] arrived as a list that holds more than numbers"):
        load([16000, "a.wav"], 16000)
    with pytest.raises(TypeError, match=r"audio\[0\] arrived as int; expected an array"):
        load(5)


def test_the_message_names_the_clip_in_the_batch():
    clips = [tone(), np.zeros(0, np.float32)]
    with pytest.raises(ValueError, match=r"audio\[1\] is empty"):
        tiny_processor()(text=["<|audio|>", "<|audio|>"], audio=clips, sampling_rate=16000)
