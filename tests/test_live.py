"""Live transcripts: segments follow one another without gap or overlap, whatever blocks the samples come in."""

import io
import json
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from transformers import AutoModelForMultimodalLM, AutoProcessor

from soundwave_hf import StreamingTranscriber, cli, live, transcribe_clips
from soundwave_hf.evaluation import shipped
from soundwave_hf.live import Partial
from soundwave_hf.transcripts import Segment
from tests.test_transcribe import noise
from tests.tiny_models import save_tiny_soundwave


RATE = 16_000


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    folder = save_tiny_soundwave(tmp_path_factory.mktemp("saved"))
    return AutoModelForMultimodalLM.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)


@pytest.fixture
def heard(monkeypatch):
    """The samples of each final text, which are not given to the LLM."""
    found = []

    def texts_of(model, processor, clips, options):
        found.append(clips[0]["array"])
        return [f"final {len(found)}"], [True]

    monkeypatch.setattr(live, "texts_of", texts_of)
    return found


def speech_and_silence(*seconds: float) -> np.ndarray:
    """Noise, silence, noise ... of so many seconds each."""
    parts = [noise(length, place) * (place % 2 == 0) for place, length in enumerate(seconds)]
    return np.concatenate(parts).astype(np.float32)


def hear_loudness(transcriber):
    """A CTC head that labels what is loud."""

    def ctc():
        loud = np.flatnonzero(np.abs(transcriber._waiting) > 0.01)
        return ("word", int(loud[-1]) + 1) if len(loud) else ("", 0)

    transcriber._ctc = ctc
    return transcriber


def feed_all(transcriber, samples, block: int) -> list[Partial | Segment]:
    events = [event for at in range(0, len(samples), block) for event in transcriber.feed(samples[at : at + block])]
    return events + transcriber.finish()


@pytest.mark.parametrize("block", [777, 8_000, 10**6])
def test_no_sample_is_heard_twice_or_left_out(loaded, heard, block):
    samples = speech_and_silence(3.1, 1.5, 0.7, 0.9, 4.43)
    segments = [
        one for one in feed_all(StreamingTranscriber(*loaded, RATE), samples, block) if isinstance(one, Segment)
    ]
    assert np.array_equal(np.concatenate(heard), samples)
    assert [segment.start for segment in segments] == [0.0, *(segment.end for segment in segments[:-1])]
    assert segments[-1].end == len(samples) / RATE
    assert max(segment.end - segment.start for segment in segments) <= 2.0  # the tiny encoder's window


def test_a_pause_ends_a_segment_in_its_middle(loaded, heard):
    transcriber = hear_loudness(StreamingTranscriber(*loaded, RATE, pause_seconds=0.5))
    samples = speech_and_silence(0.9, 0.8, 0.6)
    for at in range(0, len(samples), 1600):
        transcriber.feed(samples[at : at + 1600])
    assert 0.9 * RATE <= transcriber._start <= 1.7 * RATE  # before the stream ended
    transcriber.finish()
    assert [len(clip) for clip in heard] == [transcriber._start - len(heard[1]), len(heard[1])]


def test_a_word_that_begins_at_the_end_of_a_pause_is_not_cut(loaded):
    transcriber = StreamingTranscriber(*loaded, RATE)
    transcriber._waiting = speech_and_silence(0.5, 0.6, 0.3)
    assert 0.5 * RATE <= transcriber._quietest(round(0.4 * RATE)) <= 1.1 * RATE


def test_speech_without_a_pause_is_cut_in_the_last_third(loaded, heard):
    events = feed_all(hear_loudness(StreamingTranscriber(*loaded, RATE)), speech_and_silence(6.0), block=4000)
    lengths = [event.end - event.start for event in events if isinstance(event, Segment)]
    assert len(lengths) >= 4 and all(1.2 <= length <= 1.8 for length in lengths[:-1])


def test_partial_text_is_that_of_the_ctc_head_and_final_text_that_of_the_llm(loaded):
    samples = noise(1.5)
    transcriber = StreamingTranscriber(*loaded, RATE, pause_seconds=2.0, max_new_tokens=3)
    *partials, final = feed_all(transcriber, samples, block=8_000)
    for partial in partials:
        clip = {"array": samples[: round(partial.end * RATE)], "sampling_rate": RATE}
        (expected,) = transcribe_clips(*loaded, [clip], ctc_only=True)
        assert isinstance(partial, Partial) and partial.text == expected.segments[0].text
    assert partials and [partial.start for partial in partials] == [0.0] * len(partials)
    (expected,) = transcribe_clips(*loaded, [{"array": samples, "sampling_rate": RATE}], max_new_tokens=3)
    assert final == expected.segments[0]


def watch_encoded(transcriber, monkeypatch) -> list[tuple[int, int]]:
    """Samples that each pass of the CTC head encodes, and the frames among them that had labels before."""
    passes, real = [], transcriber._labels

    def labels(samples, first):
        passes.append((len(samples), first))
        return real(samples, first)

    monkeypatch.setattr(transcriber, "_labels", labels)
    return passes


def test_a_pass_encodes_the_last_seconds_and_keeps_older_labels(loaded, heard, monkeypatch):
    monkeypatch.setattr(live, "SETTLED_SECONDS", 0.4)  # 10 frames
    monkeypatch.setattr(live, "CONTEXT_SECONDS", 0.2)  # 5 frames
    transcriber = StreamingTranscriber(*loaded, RATE, partial_seconds=0.5, pause_seconds=2.0)
    passes = watch_encoded(transcriber, monkeypatch)
    samples = noise(1.9)
    for end in (8_000, 16_000, 24_000):
        transcriber.feed(samples[end - 8_000 : end])
    # 0.5 s are 12 frames, of which 10 may change: 2 are settled, then 15 of 25. The silence behind does not count.
    assert passes == [(8_000, 0), (16_000, 2), (24_000 - 10 * 640, 5)]
    assert len(transcriber._settled) == 24_000 // 640 - 10


def test_labels_of_a_segment_do_not_reach_the_next(loaded, heard, monkeypatch):
    transcriber = StreamingTranscriber(*loaded, RATE, pause_seconds=2.0)
    passes = watch_encoded(transcriber, monkeypatch)
    transcriber.feed(noise(2.0))  # the longest segment
    transcriber.feed(noise(0.5, 1))
    assert passes[-1][1] == 0 and passes[-1][0] == len(transcriber._waiting)


def test_the_same_partial_text_is_given_once(loaded, heard):
    transcriber = hear_loudness(StreamingTranscriber(*loaded, RATE))
    events = feed_all(transcriber, noise(1.6), block=800)
    assert [event.text for event in events] == ["word", "final 1"]


def test_what_is_kept_is_shorter_than_a_segment(loaded, heard):
    transcriber = StreamingTranscriber(*loaded, RATE)
    for _ in range(8):
        transcriber.feed(noise(2.5))
        assert len(transcriber._waiting) < 2 * RATE and len(transcriber._pending) <= live.MOST_PENDING


def test_partial_text_does_not_wait_for_the_llm(loaded, monkeypatch):
    let_go = threading.Event()

    def texts_of(*given):
        assert let_go.wait(60)
        return ["final"], [True]

    monkeypatch.setattr(live, "texts_of", texts_of)
    transcriber = hear_loudness(StreamingTranscriber(*loaded, RATE, pause_seconds=0.3))
    waiting = [transcriber.feed(speech_and_silence(0.5, 0.5)) for _ in range(live.MOST_PENDING)]
    events = waiting[-1] + transcriber.feed(noise(0.6))
    assert [event.text for event in events] == ["word"] and events[0].start > live.MOST_PENDING - 0.5
    let_go.set()
    assert [event.text for event in transcriber.finish()] == ["final"] * (live.MOST_PENDING + 1)


def test_an_error_of_the_llm_is_raised_and_leaves_no_thread(loaded, monkeypatch):
    threads = set(threading.enumerate())

    def fail(*given):
        raise ValueError("The prompt is too long.")

    monkeypatch.setattr(live, "texts_of", fail)
    transcriber = StreamingTranscriber(*loaded, RATE)
    transcriber.feed(noise(0.3))
    with pytest.raises(ValueError, match="too long"):
        transcriber.finish()
    assert set(threading.enumerate()) <= threads


@pytest.mark.parametrize("rate", [8_000, 44_100])
def test_another_rate_is_resampled_across_blocks(loaded, heard, rate):
    samples = np.sin(np.arange(3 * rate) * 2 * np.pi * 440 / rate).astype(np.float32)
    events = feed_all(StreamingTranscriber(*loaded, rate), samples, block=rate // 7)
    assert events[-1].end == pytest.approx(3.0, abs=1e-3)
    expected = np.sin(np.arange(3 * RATE) * 2 * np.pi * 440 / RATE)
    inner = slice(1000, -1000)  # the edges ring
    assert np.concatenate(heard)[: 3 * RATE][inner] == pytest.approx(expected[inner], abs=1e-2)


def test_integers_are_samples_of_a_sound_file(loaded, heard):
    transcriber = StreamingTranscriber(*loaded, RATE)
    transcriber.feed((noise(0.3) * 32768).astype(np.int16))
    transcriber.finish()
    assert heard[0] == pytest.approx(noise(0.3), abs=1e-4)


def test_the_end_of_a_stream_may_be_a_single_sample(loaded):
    transcriber = StreamingTranscriber(*loaded, RATE, max_new_tokens=1)
    assert transcriber.feed([0.5]) == [] and transcriber.feed([]) == []
    (segment,) = transcriber.finish()
    assert segment.end == 1 / RATE
    assert StreamingTranscriber(*loaded, RATE).finish() == []


def test_bad_samples_are_refused(loaded):
    transcriber = StreamingTranscriber(*loaded, RATE)
    with pytest.raises(ValueError, match="samples arrived with 2 channels"):
        transcriber.feed(np.zeros((2, 100)))
    with pytest.raises(ValueError, match="samples holds 1 NaN"):
        transcriber.feed([0.0, float("nan")])
    transcriber.finish()
    with pytest.raises(ValueError, match="arrived after `finish`"):
        transcriber.feed([0.0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampling_rate": 16}, "the sampling rate 16; expected 1000 or more"),
        ({"longest_seconds": 3}, "`longest_seconds` is 3; expected 1 to 2, the encoder's window"),
        ({"longest_seconds": 0.5}, "`longest_seconds` is 0.5"),
        ({"longest_seconds": "2"}, "`longest_seconds` is '2'"),
        ({"pause_seconds": "1"}, "`pause_seconds` is '1'"),
        ({"pause_seconds": 0}, "`pause_seconds` is 0; expected 0.1 to 2"),
        ({"partial_seconds": float("nan")}, "`partial_seconds` is nan"),
        ({"language": "klingon"}, "Unsupported language"),
    ],
)
def test_options_that_do_not_fit_are_refused(loaded, options, message):
    with pytest.raises(ValueError, match=message):
        StreamingTranscriber(*loaded, **{"sampling_rate": RATE, **options})


# ---- the command ----


class Pipe(io.BytesIO):
    """Gives an odd number of bytes at a time, as pipes may."""

    def read1(self, size: int) -> bytes:
        return super().read1(4_321)


@pytest.fixture
def run(loaded, monkeypatch, capsys):
    monkeypatch.setattr(shipped, "load_checkpoint", lambda name, **placing: loaded)

    def run(content: bytes, *words: str):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=Pipe(content), isatty=lambda: False))
        code = cli.main(["transcribe", "--model", "m", "--live", *words])
        return code, *capsys.readouterr()

    return run


def pcm(samples: np.ndarray) -> bytes:
    return (32768 * samples).astype("<i2").tobytes()


def test_a_pipe_is_transcribed_as_it_comes(run, heard):
    samples = noise(3.0)
    code, out, err = run(pcm(samples), "-", "--rate", "16000")
    assert (code, err) == (0, "") and out.splitlines() == [f"final {n}" for n in range(1, len(heard) + 1)]
    assert np.concatenate(heard) == pytest.approx(samples, abs=1e-4)


def test_json_lines_tell_partial_from_final_text(run, heard):
    lines = [
        json.loads(line) for line in run(pcm(noise(3.0)), "-", "--rate", "16000", "--format", "json")[1].splitlines()
    ]
    assert {line["final"] for line in lines} == {True, False}
    assert lines[-1]["text"] == f"final {len(heard)}" and lines[-1]["end"] == 3.0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-"], "`--live` reads raw samples and needs their rate"),
        (["a.wav", "--rate", "16000"], "`--live` transcribes standard input: give only `-`"),
        (["-", "--rate", "16"], "`--rate` is 16; expected 1000 Hz or more"),
        (["-", "--rate", "16000", "--format", "srt"], "The format is srt, but `--live` prints only txt or json"),
        (["-", "--rate", "16000", "--output", "out"], "`--live` writes no files and has no batches: leave `--output`"),
        (["-", "--rate", "16000", "--batch-size", "2"], "leave `--batch-size` out"),
        (["-", "--rate", "16000", "--beside"], "leave `--beside` out"),
    ],
)
def test_requests_that_do_not_fit_are_one_sentence(run, words, message):
    code, out, err = run(b"", *words)
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1


@pytest.mark.parametrize("options", [{"format": "FLAC"}, {"format": "WAV"}, {"format": "AIFF"}, {"format": "CAF"}])
def test_a_file_with_a_header_is_not_taken_for_samples(run, heard, options):
    file = io.BytesIO()
    soundfile.write(file, noise(0.5), RATE, **options)
    code, out, err = run(file.getvalue(), "-", "--rate", "16000")
    assert (code, out) == (2, "") and f"Standard input holds a file ({options['format'].lower()})" in err
    assert "leave `--live` and `--rate` out, or decode it first" in err and err.count("\n") == 1 and heard == []


def test_the_type_of_a_file_is_told_by_tags_and_not_by_samples_that_look_like_it(run, heard):
    assert "holds a file (mp3)" in run(b"ID3\x04" + bytes(3_000), "-", "--rate", "16000")[2]
    assert run(b"\xff\xfb" + bytes(16_000), "-", "--rate", "16000")[0] == 0  # the samples -1025, 0, 0 ...


class SlowPipe(io.BytesIO):
    def read1(self, size: int) -> bytes:
        return super().read1(3)


def test_a_head_that_comes_in_small_parts_is_looked_at_as_a_whole(loaded):
    file = io.BytesIO()
    soundfile.write(file, noise(0.1), RATE, format="WAV")
    with pytest.raises(ValueError, match=r"holds a file \(wav\)"):
        live.transcribe_pipe(StreamingTranscriber(*loaded, RATE), SlowPipe(file.getvalue()), print)


def test_a_pipe_without_samples_is_told(run, heard):
    code, out, err = run(b"", "-", "--rate", "16000")
    assert (code, out) == (2, "") and "Standard input held 0 bytes; expected raw samples. Check the program" in err


def test_a_segment_beyond_the_encoders_window_is_refused_by_the_name_of_the_option(run, monkeypatch):
    message = "`--chunk-seconds` is 3; expected 1 to 2 with `--live`"  # the tiny encoder's window
    assert message in run(b"", "-", "--rate", "16000", "--chunk-seconds", "3")[2]
    monkeypatch.setattr(shipped, "load_checkpoint", None)
    for seconds in ("60", "0.5", "nan"):
        code, _, err = run(b"", "-", "--rate", "16000", "--chunk-seconds", seconds)
        assert code == 2 and f"`--chunk-seconds` is {seconds}; expected 1 to 30 with `--live`" in err


def test_a_pipe_that_ends_within_a_sample_is_told(run, heard):
    code, out, err = run(pcm(noise(0.5)) + b"\x01", "-", "--rate", "16000")
    assert (code, out) == (2, "final 1\n") and "ended in the middle of a two-byte sample" in err


def test_what_was_heard_before_an_interruption_is_shown(loaded, heard):
    class Interrupted(Pipe):
        def read1(self, size: int) -> bytes:
            block = super().read1(size)
            if not block:
                raise KeyboardInterrupt
            return block

    shown = []
    with pytest.raises(KeyboardInterrupt):
        live.transcribe_pipe(StreamingTranscriber(*loaded, RATE), Interrupted(pcm(noise(0.4))), shown.append)
    assert shown[-1] == Segment(0.0, 0.4, "final 1")


def test_a_terminal_shows_partial_text_until_the_final_one(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    screen = live.LiveScreen()
    for event in (Partial(0.0, 0.5, "he was"), Segment(0.0, 1.0, "He was.\n"), Segment(1.0, 2.0, "")):
        screen(event)
    printed = capsys.readouterr()
    assert printed.out == "He was.\n"
    assert printed.err == "\r\033[Khe was" + "\r\033[K" * 2


def test_integers_of_unknown_full_scale_are_refused_from_the_first_block_on(loaded):
    transcriber = StreamingTranscriber(*loaded, 16_000, ctc_only=True)
    for peak in (2**30, 2**20):  # loud and quiet
        for block in (np.full(800, peak, np.int32), torch.full((800,), peak, dtype=torch.int32)):
            with pytest.raises(ValueError, match="arrived as int32, and one block does not tell their full scale"):
                transcriber.feed(block)
    transcriber.feed(np.full(800, 2**10, np.int16))
