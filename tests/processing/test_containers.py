"""Files of every container become mono samples; files that were cut off, too long or no sound are refused."""

import io
import logging
import sys

import numpy as np
import pytest
import soundfile
import torch

from soundwave_hf.processing.audio_soundwave import AudioOptions, load_clip
from soundwave_hf.processing.containers_soundwave import decode
from tests.tiny import tiny_processor


av = pytest.importorskip("av")
RATE = 48_000


def load(audio, **options) -> np.ndarray:
    return load_clip(audio, "audio[0]", None, 16000, 0.04, AudioOptions(**options))


def tone(seconds: float = 2.0) -> np.ndarray:
    """440 Hz at half scale, 48 kHz."""
    return (0.5 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


def written(container: str, codec: str, rate: int = RATE, layout: str = "stereo", **options) -> bytes:
    """The tone in a container that soundfile cannot write."""
    buffer = io.BytesIO()
    channels = len(av.AudioLayout(layout).channels)
    with av.open(buffer, "w", format=container, options=options) as output:
        stream = output.add_stream(codec, rate=rate, layout=layout)
        samples = tone()
        for place in range(0, len(samples), 1024):
            block = np.stack([samples[place : place + 1024]] * channels)
            frame = av.AudioFrame.from_ndarray(block, format="fltp", layout=layout)
            frame.sample_rate, frame.pts = RATE, place
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return buffer.getvalue()


def sound(kind: str) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, tone(), RATE, format=kind)
    return buffer.getvalue()


def film() -> bytes:
    """An mp4 of pictures and sound."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        pictures = output.add_stream("mpeg4", rate=5)
        pictures.width = pictures.height = 32
        pictures.pix_fmt = "yuv420p"
        heard = output.add_stream("aac", rate=RATE, layout="mono")
        for _ in range(10):
            output.mux(pictures.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")))
        output.mux(pictures.encode(None))
        for place in range(0, 2 * RATE, 1024):
            frame = av.AudioFrame.from_ndarray(tone()[None, place : place + 1024], format="fltp", layout="mono")
            frame.sample_rate, frame.pts = RATE, place
            output.mux(heard.encode(frame))
        output.mux(heard.encode(None))
    return buffer.getvalue()


CONTAINERS = {
    "m4a": ("ipod", "aac"),
    "mp4": ("mp4", "aac"),
    "mp4 for streaming": ("mp4", "aac"),
    "webm": ("webm", "libopus"),
    "mkv": ("matroska", "aac"),
    "aac": ("adts", "aac"),
    "amr": ("amr", "libopencore_amrnb"),
    "3gp": ("3gp", "aac"),
    "opus": ("ogg", "libopus"),
}


def contained(kind: str) -> bytes:
    narrow = {"rate": 8000, "layout": "mono"} if kind == "amr" else {}
    options = {"movflags": "faststart+frag_keyframe"} if kind == "mp4 for streaming" else {}
    return written(*CONTAINERS[kind], **narrow, **options)


@pytest.mark.parametrize("kind", CONTAINERS)
def test_every_container_is_decoded_to_mono(kind):
    samples = load(contained(kind))
    assert abs(len(samples) - 32_000) < 1_000  # an encoder adds up to 60 ms
    middle = samples[8_000:24_000]
    assert 0.25 < np.abs(middle).mean() < 0.4  # a sine of height 0.5 averages 0.32
    assert np.abs(np.fft.rfft(middle)).argmax() == 440  # one bin is 1 Hz


def test_the_sound_of_a_film_is_decoded_from_a_path_and_pictures_alone_are_refused(tmp_path):
    path = tmp_path / "film.mp4"
    path.write_bytes(film())
    assert abs(len(load(path)) - 32_000) < 1_000
    with av.open(str(tmp_path / "silent.mp4"), "w") as output:
        stream = output.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 32
        output.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")))
        output.mux(stream.encode(None))
    with pytest.raises(ValueError, match=r"silent.mp4\) holds no sound, only \['video'\]"):
        load(tmp_path / "silent.mp4")


def test_without_pyav_the_error_names_the_extra(monkeypatch):
    files = contained("m4a"), contained("webm")
    monkeypatch.setitem(sys.modules, "av", None)
    for file, kind in zip(files, ("m4a", "webm"), strict=True):
        with pytest.raises(ImportError, match=rf"is a {kind} file, .* `pip install 'soundwave-hf\[audio\]'`"):
            load(file)
    with pytest.raises(ValueError, match=r"could not be decoded: .* `pip install 'soundwave-hf\[audio\]'`"):
        load(b"not audio at all")
    assert len(load(sound("FLAC"))) == 32_000


def test_a_playlist_may_not_open_other_files(tmp_path):
    (tmp_path / "other.aac").write_bytes(contained("aac"))
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{tmp_path}/other.aac\n#EXT-X-ENDLIST\n"
    (tmp_path / "list.m3u8").write_text(playlist)
    for clip in (playlist.encode(), tmp_path / "list.m3u8"):
        with pytest.raises((ValueError, PermissionError), match="playlist|could not be decoded"):
            load(clip)


CUT = ("WAV", "FLAC", "MP3", "AIFF", "AU", "W64", "RF64", "CAF")


@pytest.mark.parametrize("kind", CUT)
def test_a_file_that_was_cut_off_is_refused_unless_the_caller_takes_it(kind, caplog, monkeypatch):
    content = sound(kind)
    assert len(load(content)) == 32_000
    half = content[: len(content) // 2]
    with pytest.raises(ValueError, match=r"audio\[0\] was cut off: .* Copy it again, or make a file .* `allow_trunc"):
        load(half)
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    samples = load(half, allow_truncated=True)
    assert 8_000 < len(samples) < 24_000
    assert "was cut off" in caplog.text


def test_the_message_says_how_many_seconds_were_expected_and_found(tmp_path):
    buffer = io.BytesIO()
    soundfile.write(buffer, tone(2.0)[::3], 16_000, format="WAV", subtype="PCM_16")
    path = tmp_path / "cut.wav"
    path.write_bytes(buffer.getvalue()[: 44 + 2 * 12_000])  # 0.75 of 2 seconds
    with pytest.raises(ValueError, match=r"cut.wav\) was cut off: its header states 2.00 s and 0.75 s were found"):
        load(path)
    processor = tiny_processor()
    with pytest.raises(ValueError, match="states 2.00 s"):
        processor.apply_transcription_request(str(path))
    inputs = processor.apply_transcription_request(str(path), allow_truncated=True)
    assert inputs["input_features_mask"].sum() == 75
    assert torch.equal(
        inputs["input_features"],
        processor(text="<|audio|>", audio=str(path), audio_kwargs={"allow_truncated": True})["input_features"],
    )


def test_a_header_without_its_sound_was_cut_off():
    with pytest.raises(ValueError, match=r"states more \(its length is not stated\) and 0.00 s were found"):
        load(sound("WAV")[:44])


def test_an_ogg_file_that_breaks_off_within_a_page_is_read_up_to_that_page():
    for content in (sound("OGG"), contained("opus")):
        with pytest.raises(ValueError, match=r"states more \(its length is not stated\) and \d.\d\d s were found"):
            load(content[: len(content) // 2])
    assert 8_000 < len(load(content[: len(content) // 2], allow_truncated=True)) < 24_000


@pytest.mark.parametrize("kind", ["m4a", "mp4 for streaming", "webm", "mkv", "aac", "amr", "opus"])
def test_a_container_that_was_cut_off_is_refused(kind):
    content = contained(kind)
    with pytest.raises(ValueError, match="was cut off|could not be decoded"):
        load(content[: len(content) * 6 // 10])


@pytest.mark.parametrize("length", [0x7FFFFFFF, 0x7FFFF000, 0x80000000, 0xFFFFFFFF, 0xFFFFFFDB])
def test_a_streamed_wav_does_not_know_its_length_and_is_read_to_its_end(length):
    content = bytearray(sound("WAV"))
    content[4:8] = content[40:44] = length.to_bytes(4, "little")
    assert len(load(bytes(content))) == 32_000


def test_bytes_behind_the_sound_are_no_loss():
    assert len(load(sound("WAV") + b"LIST\xff\xff\xff\x00rest of it")) == 32_000
    assert len(load(sound("OGG") + b"TAG" + bytes(125))) == 32_000
    assert len(load(sound("MP3") + b"TAG" + bytes(125))) == 32_000


def test_a_recording_longer_than_the_limit_is_refused_before_it_is_decoded(monkeypatch):
    content = sound("FLAC")
    monkeypatch.setattr(soundfile.SoundFile, "read", None)  # not asked
    with pytest.raises(ValueError, match=r"lasts 2 s or more; at most 1.5 s are read. .* `max_seconds=`"):
        load(content, max_seconds=1.5)


def test_a_small_file_that_holds_hours_is_refused_by_default(tmp_path):
    path = tmp_path / "bomb.flac"
    with soundfile.SoundFile(path, "w", 1000, 1, format="FLAC") as file:
        for _ in range(5):
            file.write(np.zeros(3_000_000, np.float32))  # 50 minutes
    assert path.stat().st_size < 200_000
    with pytest.raises(ValueError, match="lasts 15000 s or more; at most 14400 s are read"):
        load(path.read_bytes())
    samples, rate = decode(str(path), "audio[0]")  # the user's own file has no limit
    assert len(samples) / rate == 15_000


def test_the_limit_counts_what_is_decoded_where_a_header_tells_nothing():
    with pytest.raises(ValueError, match="lasts [12] s or more; at most 1 s are read"):
        load(contained("aac"), max_seconds=1)
    with pytest.raises(ValueError, match="lasts 2.00 s; expected at most `max_seconds=1.5`"):
        load((RATE, tone()), max_seconds=1.5)


def test_a_decoded_file_is_the_average_of_its_channels():
    buffer = io.BytesIO()
    soundfile.write(buffer, np.stack([np.full(100, 0.5), np.full(100, 0.25)], 1), 8000, format="WAV", subtype="FLOAT")
    samples, rate = decode(buffer, "audio[0]")
    assert samples.tolist() == [0.375] * 100 and samples.dtype == np.float32 and rate == 8000
