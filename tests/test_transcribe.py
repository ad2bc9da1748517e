"""`soundwave-hf transcribe` and its functions, on a tiny model with a window of 2 s."""

import io
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from transformers import AutoModelForMultimodalLM, AutoProcessor

from soundwave_hf import SoundwaveForCTC, StreamingTranscriber, cli, transcribe, transcribe_clips, transcribe_files
from soundwave_hf.audio_files import find_audio
from soundwave_hf.evaluation import shipped
from soundwave_hf.modeling import hotwords_soundwave
from soundwave_hf.modeling.timed_generation_soundwave import ctc_clips
from soundwave_hf.transcribe import outcomes
from soundwave_hf.transcripts import Word
from tests.tiny_models import save_tiny_soundwave


RATE = 16_000
TOKENS = 3  # of a text: the tiny model does not stop by itself


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    """Noise of a loudness that changes, so that there are quiet places."""
    samples = 0.1 * np.random.default_rng(seed).standard_normal(round(seconds * RATE))
    return (samples * (1 + np.sin(np.arange(len(samples)) / 2000))).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_soundwave(tmp_path_factory.mktemp("saved"))


@pytest.fixture(scope="module")
def loaded(folder):
    return AutoModelForMultimodalLM.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current folder, with three recordings in two folders."""
    monkeypatch.chdir(tmp_path)
    for number, path in enumerate(["calls/a.wav", "calls/monday/b.flac", "c.wav"]):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, noise(0.5 + 0.3 * number, seed=number), RATE)
    return tmp_path


@pytest.fixture
def run(loaded, folder, monkeypatch, capsys):
    """Runs the command with the tiny model; gives the exit code, standard output and standard error."""
    monkeypatch.setattr(shipped, "load_checkpoint", lambda name, **placing: loaded)

    def run(*words: str):
        code = cli.main(["transcribe", "--model", str(folder), "--max-new-tokens", str(TOKENS), *words])
        printed = capsys.readouterr()
        return code, printed.out, "\n".join(line for line in printed.err.splitlines() if "did not end" not in line)

    return run


def pipe_in(monkeypatch, content: bytes, is_terminal: bool = False):
    monkeypatch.setattr(
        sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content), isatty=lambda: is_terminal), raising=False
    )


def wav_bytes(seconds: float = 0.5) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, noise(seconds), RATE, format="WAV")
    return file.getvalue()


def files_below(folder) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# ---- clips ----


@pytest.mark.parametrize("options", [{"max_new_tokens": TOKENS}, {"ctc_only": True}], ids=["llm", "ctc"])
def test_pieces_of_several_recordings_share_batches_and_texts_are_those_of_each_alone(loaded, options):
    clips = [{"array": noise(seconds, seed), "sampling_rate": RATE} for seed, seconds in enumerate([0.7, 5.3, 1.9])]
    together = list(transcribe_clips(*loaded, clips, batch_size=4, **options))
    alone = [one for clip in clips for one in transcribe_clips(*loaded, [clip], batch_size=1, **options)]
    assert together == alone
    assert any(transcript.text for transcript in together)
    assert [len(transcript.segments) for transcript in together] == [1, 4, 1]


def test_a_long_piece_gives_the_others_of_its_batch_no_more_tokens(loaded):
    clips = [{"array": noise(seconds), "sampling_rate": RATE} for seconds in (3.0, 6.0)]  # two windows, and three
    options = {"chunk_length_s": 6, "max_new_tokens": 4}
    alone = [next(transcribe_clips(*loaded, [clip], **options)) for clip in clips]
    assert list(transcribe_clips(*loaded, clips, **options)) == alone


def test_segments_are_the_pieces_of_a_recording_one_after_the_other(loaded):
    clip = {"array": noise(7.3), "sampling_rate": RATE}
    (found,) = transcribe_clips(*loaded, [clip], chunk_length_s=1.5, ctc_only=True)
    starts, ends = ([getattr(segment, name) for segment in found.segments] for name in ("start", "end"))
    assert starts == [0.0, *ends[:-1]] and ends[-1] == found.seconds == 7.3
    assert all(0.9 <= end - start <= 1.5 for start, end in list(zip(starts, ends, strict=True))[:-1])


def test_recordings_are_read_as_they_are_needed(loaded):
    read = []

    def clips():
        for number in range(40):
            read.append(number)
            yield {"array": noise(0.3), "sampling_rate": RATE}

    next(transcribe_clips(*loaded, clips(), batch_size=2, ctc_only=True))
    assert len(read) == transcribe.READ_AHEAD * 2


def test_python_is_told_of_a_bad_recording(loaded):
    clips = [{"array": noise(seconds), "sampling_rate": RATE} for seconds in (0.3, 0.4, 0.02)]
    with pytest.raises(ValueError, match=r"^audio\[2\] lasts 20.00 ms"):
        list(transcribe_clips(*loaded, clips, ctc_only=True))


def test_advice_on_a_recording_names_what_takes_the_option(loaded, here, run):
    with pytest.raises(ValueError, match=r"`samples.mean\(axis=0\)`. The processor and the pipeline also take `mono"):
        list(transcribe_clips(*loaded, [np.zeros((2, RATE))]))
    content = (here / "c.wav").read_bytes()
    (here / "cut.wav").write_bytes(content[: len(content) // 2])
    code, _, shown = run("cut.wav")
    assert code == 2 and "make a file of this part: `ffmpeg -i INPUT OUTPUT.wav`" in shown


def test_a_piece_that_the_model_refuses_fails_its_recording_alone(loaded, monkeypatch):
    texts_of = transcribe.texts_of

    def refuse_the_longest(model, processor, clips, options):
        if max(len(clip["array"]) for clip in clips) > 1.5 * RATE:
            raise torch.OutOfMemoryError("out of memory")
        return texts_of(model, processor, clips, options)

    monkeypatch.setattr(transcribe, "texts_of", refuse_the_longest)
    clips = [{"array": noise(seconds), "sampling_rate": RATE} for seconds in (0.5, 1.8, 0.6)]
    found = list(outcomes(*loaded, clips, transcribe.TranscribeOptions(ctc_only=True)))
    assert [str(one) if isinstance(one, Exception) else one.seconds for one in found] == [0.5, "out of memory", 0.6]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "The batch size is 0"),
        ({"batchsize": 4}, "`batchsize=4` is no option of a transcription. Did you mean `batch_size`"),
        ({"mono": True}, r"`mono=True` is no option of a transcription. Expected some of \['language', "),
        ({"batch_size": 2.5}, "The batch size is 2.5; expected 1 clip or more, as a whole number"),
        ({"batch_size": "8"}, "The batch size is '8'"),
        ({"chunk_length_s": "8"}, "The longest piece is '8' s"),
        ({"max_new_tokens": "8"}, "`max_new_tokens` is '8'; expected 1 or more, as a whole number"),
        ({"language": "frensh"}, "Did you mean 'french'"),
        ({"chunk_length_s": 0.5}, "The longest piece is 0.5 s; expected 1 s or more"),
        ({"chunk_length_s": float("nan")}, "The longest piece is nan s"),
        ({"max_new_tokens": 0}, "`max_new_tokens` is 0"),
        ({"ctc_only": True, "language": "de"}, "`language` is 'de', but only the LLM uses it"),
        ({"ctc_only": True, "max_new_tokens": 9}, "`max_new_tokens` is 9, but only the LLM uses it"),
        ({"ctc_only": True, "hotwords": ["Ann"]}, r"`hotwords` is \['Ann'\], but only the LLM uses it"),
        ({"hotwords": "Ann"}, "`hotwords` is 'Ann'; expected a list"),
        ({"hotwords": ["..."]}, "`hotwords` holds '...'; expected a text with a letter"),
        ({"hotwords": [["Ann"]]}, "`hotwords` holds lists; expected phrases, which are for all recordings"),
        ({"hotwords": ["Ann"], "generate": {"hotwords": ["Bob"]}}, "`hotwords` was given twice"),
        ({"generate": {"ctc_draft": "foo"}}, "`ctc_draft` is 'foo'; expected one of"),
        ({"generate": {"ctc_draft": "lossless", "num_beams": 4}}, "`ctc_draft` is 'lossless' and `num_beams` is 4"),
        ({"generate": {"ctc_draft": "lossless", "use_cache": False}}, "and `use_cache` is False"),
        ({"generate": {"ctc_draft": "fast"}, "hotwords": ["Ann"]}, "where hotwords have no effect"),
        ({"generate": {"ctc_draft": "ctc", "max_positions_per_second": 4}}, '`ctc_draft="ctc"` runs without the LLM'),
        ({"generate": {"ctc_draft": "fast", "prompt_lookup_num_tokens": 3}}, "cannot be combined"),
        ({"generate": {"draft_probability": 0.5}}, 'the limits of drafts need `ctc_draft="fast"`'),
        ({"generate": {"do_sample": True, "ctc_weight": 0.3}}, "and `do_sample` is True, but the CTC head needs"),
        ({"generate": {"language": "fr"}}, "which is not taken here. The language has an option of its own"),
        ({"generate": {"num_beams": "two"}}, "`num_beams` is 'two'; expected a whole number"),
        ({"generate": {"num_beams": True}}, "`num_beams` is True; expected a whole number"),
        ({"generate": {"eos_token_id": "abc"}}, "`eos_token_id` is 'abc'; expected a token's id, or a list of ids"),
        ({"generate": {"temperature": "hot"}}, "`temperature` is 'hot'; expected a number"),
        ({"generate": {"drop_unsupported": "never"}}, "`drop_unsupported` is 'never'; expected true or false"),
        ({"generate": {"stop_strings": 5}}, "`stop_strings` is 5; expected a text, or a list of texts"),
        ({"generate": {"cache_implementation": "foo"}}, "Invalid `cache_implementation`"),
        ({"generate": {"watermarking_config": "x"}}, "the library's `generate` fails with it"),
        (
            {"generate": {"drop_unsupported": True}, "streamer": object(), "batch_size": 1},
            "`drop_unsupported` and a `streamer` were given",
        ),
        (
            {"generate": {"drop_unsupported": True, "output_scores": True}},
            "`drop_unsupported` and `output_scores` were given",
        ),
        (
            {"generate": {"ctc_draft": "fast"}, "streamer": object(), "batch_size": 1},
            "and `streamer` is",
        ),
    ],
)
def test_options_that_do_not_fit_are_refused_before_anything_is_read(options, message):
    with pytest.raises(ValueError, match=message):
        transcribe_clips(None, None, ["absent.wav"], **options)


def test_the_language_is_named_in_the_question(loaded, monkeypatch):
    model, processor = loaded
    asked = []
    request = processor.apply_transcription_request
    monkeypatch.setattr(
        processor,
        "apply_transcription_request",
        lambda clips, language: asked.append(language) or request(clips, language=language),
    )
    clip = {"array": noise(0.5), "sampling_rate": RATE}
    list(transcribe_clips(model, processor, [clip], language="de", max_new_tokens=1))
    assert asked == ["de"]


# ---- word times and confidence ----


@pytest.mark.parametrize("options", [{"max_new_tokens": 12}, {"ctc_only": True}], ids=["llm", "ctc"])
def test_words_have_times_of_the_recording_in_order(loaded, options):
    clips = [{"array": noise(seconds, seed), "sampling_rate": RATE} for seed, seconds in enumerate([0.7, 5.3])]
    plain = list(transcribe_clips(*loaded, clips, **options))
    timed = list(transcribe_clips(*loaded, clips, word_times=True, **options))
    assert [one.text for one in timed] == [one.text for one in plain]
    for transcript in timed:
        for segment in transcript.segments:
            assert "".join("".join(word.text for word in segment.words).split()) == "".join(segment.text.split())
            times = [time for word in segment.words if word.start is not None for time in (word.start, word.end)]
            assert times == sorted(times) and all(segment.start <= time <= segment.end + 0.01 for time in times)
            assert all(word.confidence is None for word in segment.words) and segment.confidence is None
    later = [word for segment in timed[1].segments[1:] for word in segment.words if word.start is not None]
    if "ctc_only" not in options:  # the random head writes no letter
        assert min(word.start for word in later) > 1.0  # a piece of the window of 2 s begins after 1 s


@pytest.mark.parametrize("options", [{"max_new_tokens": 12}, {"ctc_only": True}], ids=["llm", "ctc"])
def test_confidence_is_that_of_generate_and_of_the_ctc_head(loaded, options):
    model, processor = loaded
    clip = {"array": noise(0.9, 1), "sampling_rate": RATE}
    (alone,) = transcribe_clips(*loaded, [clip], confidence=True, **options)
    (both,) = transcribe_clips(*loaded, [clip], confidence=True, word_times=True, **options)
    assert alone.segments[0].words is None and both.segments[0].words
    inputs = processor.apply_transcription_request([clip])
    if "ctc_only" in options:
        found = processor.align_word_timestamps(alone.text, model.get_ctc_clips(**inputs))
        chunks, expected = found["chunks"], found["probability"]
    else:
        found = model.generate(**inputs, return_timestamps="word", max_new_tokens=12, do_sample=False)
        chunks, expected = found.chunks[0], float(found.probabilities[0])
    assert alone.segments[0].confidence == both.segments[0].confidence == pytest.approx(expected)
    confidences = [word.confidence for word in both.segments[0].words]
    assert confidences == pytest.approx([chunk["probability"] for chunk in chunks])


def test_options_that_work_together_are_taken():
    for options in (
        {"generate": {"ctc_draft": "lossless", "do_sample": False, "num_beams": 1, "use_cache": None}},
        {"generate": {"ctc_draft": "lossless", "return_dict_in_generate": True}, "word_times": True},
        {"generate": {"ctc_draft": "lossless", "hotword_weight": 2}, "hotwords": ["Ann"]},
        {"generate": {"do_sample": True, "temperature": 0.5, "ctc_weight": 0}},
        {"generate": {"drop_unsupported": True, "num_beams": 2, "eos_token_id": [1, 2]}, "word_times": True},
    ):
        assert transcribe.TranscribeOptions(**options).generate == options["generate"]


@pytest.mark.parametrize("word_times", [False, True])
def test_words_that_the_sound_does_not_support_are_left_out(loaded, monkeypatch, word_times):
    clip = {"array": noise(0.9, 1), "sampling_rate": RATE}
    options = {"max_new_tokens": 12, "word_times": word_times}
    (whole,) = transcribe_clips(*loaded, [clip], **{**options, "word_times": True})
    kept = [word.text for word in whole.segments[0].words if word.supported]
    assert len(kept) < len(whole.segments[0].words)  # the random LLM writes what nobody said
    (found,) = transcribe_clips(*loaded, [clip], generate={"drop_unsupported": True}, **options)
    assert found.text.split() == kept
    assert not found.segments[0].finished  # the tiny model does not stop by itself


def test_a_text_that_the_clock_cuts_is_not_finished(loaded):
    clip = {"array": noise(0.9), "sampling_rate": RATE}
    (found,) = transcribe_clips(*loaded, [clip], generate={"max_time": 1e-6}, max_new_tokens=200)
    assert not found.segments[0].finished


# ---- options that fail with any recording ----


@pytest.mark.parametrize(
    ("generate", "message"),
    [
        ("{min_positions_per_second: 90}", "but a second has only 25 frames"),  # the model decides
        ("{bad_words_ids: 5}", "`bad_words_ids` has to be a non-empty list"),
        ("{sequence_bias: {a: 1}}", "`sequence_bias`"),
        ("{exponential_decay_length_penalty: 5}", "the library's `generate` fails with it (TypeError"),
    ],
)
def test_an_error_of_the_options_stops_the_run_once(here, run, generate, message):
    code, out, err = run("calls", "c.wav", "--generate", generate)
    assert (code, out) == (2, "") and err.count("soundwave-hf transcribe:") == 1 and message in err
    assert "Traceback" not in err and "failed" not in err


def test_an_error_of_the_package_keeps_its_kind(loaded, monkeypatch):
    def fail(*given):
        raise KeyError("a fault")

    monkeypatch.setattr(transcribe, "texts_of", fail)
    with pytest.raises(KeyError, match="a fault"):
        list(transcribe_clips(*loaded, [{"array": noise(0.5), "sampling_rate": RATE}]))


def test_a_trial_of_the_options_does_not_change_what_is_sampled(loaded):
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    transcribe.try_options(*loaded, transcribe.TranscribeOptions(generate={"do_sample": True}))
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize("draft", ["lossless", "fast", "ctc"])
def test_words_of_drafts_have_times_and_confidence(loaded, draft):
    clip = {"array": noise(0.9, 1), "sampling_rate": RATE}
    options = {"generate": {"ctc_draft": draft}, "max_new_tokens": 8}
    (plain,) = transcribe_clips(*loaded, [clip], **options)
    (timed,) = transcribe_clips(*loaded, [clip], word_times=True, confidence=True, **options)
    assert timed.text == plain.text and timed.segments[0].words and timed.segments[0].confidence is not None


def test_a_head_of_stage_one_times_its_words(loaded):
    model, processor = loaded
    head = SoundwaveForCTC(model.config).eval()
    head.load_state_dict(model.model.state_dict(), strict=False)
    head.token_embeddings.load_state_dict(model.get_input_embeddings().state_dict())
    clip = {"array": noise(0.9, 1), "sampling_rate": RATE}
    options = {"ctc_only": True, "word_times": True}
    (whole,), (alone,) = (list(transcribe_clips(one, processor, [clip], **options)) for one in (model, head))
    assert [word.text for segment in alone.segments for word in segment.words]
    expected = processor.align_word_timestamps(alone.text, ctc_clips_of(head, processor, clip))["chunks"]
    times = [(word.start, word.end) for word in alone.segments[0].words]
    assert times == [chunk["timestamp"] for chunk in expected]
    assert len(whole.segments) == len(alone.segments) == 1


def ctc_clips_of(head, processor, clip):
    features = transcribe.features_of(head, processor, [clip])
    _, aligned, mask = head.align(**features)
    return ctc_clips(head, head.label(aligned, mask, head.token_table()), **features)


def test_a_word_that_could_not_be_aligned_has_no_times_and_none_is_without_length():
    chunk = {"text": "a", "timestamp": (None, None), "probability": 0.0, "supported": False}
    assert transcribe.word_of(chunk, 2.0, has_confidence=True) == Word("a", None, None, 0.0, supported=False)
    chunk = {"text": "a", "timestamp": (0.0141, 0.0143), "probability": 0.5, "supported": True}
    assert transcribe.word_of(chunk, 2.0, has_confidence=False) == Word("a", 2.014, 2.015, supported=True)


def test_the_command_writes_word_times_and_confidence(here, run):
    code, text, err = run("c.wav", "--format", "json", "--word-times", "--confidence")
    assert (code, err) == (0, "")
    (segment,) = json.loads(text)["segments"]
    assert segment.keys() >= {"confidence", "words"}
    assert segment["words"][0].keys() == {"word", "start", "end", "supported", "confidence"}
    assert "words" not in run("c.wav", "--format", "json", "--confidence")[1]
    assert run("calls", "--output", "out", "--format", "json")[0] == 0
    assert "A transcript would overwrite" in run("calls", "--output", "out", "--format", "json", "--word-times")[2]


@pytest.mark.parametrize("ctc_only", [False, True], ids=["llm", "ctc"])
def test_a_silent_segment_has_a_list_of_words_without_any(loaded, monkeypatch, ctc_only):
    silence = lambda model, processor, clips, options: ([""], [True], [[]], [1.0])  # noqa: E731
    monkeypatch.setattr(transcribe, "ctc_aligned" if ctc_only else "llm_aligned", silence)
    clip = {"array": noise(0.5), "sampling_rate": RATE}
    for asked, words in (({"word_times": True}, ()), ({"confidence": True}, None)):
        (found,) = transcribe_clips(*loaded, [clip], ctc_only=ctc_only, **asked)
        assert found.segments[0].words == words


def test_records_without_the_new_options_still_count(loaded):
    settings = transcribe_files.text_settings(transcribe.TranscribeOptions())
    assert list(settings) == ["language", "chunk_length_s", "max_new_tokens", "ctc_only", "generate"]


# ---- hotwords ----


@pytest.fixture
def all_heard(monkeypatch):
    """A filter that leaves no phrase out: the random head hears none."""
    heard = lambda texts, phrases, bridge: [hotwords_soundwave.Heard(phrase, b" ", 0.0) for phrase in phrases]  # noqa: E731
    monkeypatch.setattr(hotwords_soundwave, "heard_phrases", heard)


WEIGHTS = ("--generate", "{hotword_weight: 60, ctc_weight: 0}", "--max-new-tokens", "12")


def test_hotwords_are_written_where_they_are_heard(here, run, all_heard):
    (here / "names.txt").write_text("\ufeffPort Zy\n\nzyph\n", encoding="utf-8")
    assert "zyph" in run("c.wav", "--hotwords", "zyph", *WEIGHTS)[1].lower()
    assert "kestrel" in run("c.wav", "--hotwords", "zyph, kestrel", *WEIGHTS)[1].lower()  # more bytes
    assert "zy" in run("c.wav", "--hotwords", "@names.txt", *WEIGHTS)[1].lower()
    assert cli.read_hotwords("@names.txt") == ["Port Zy", "zyph"] and cli.read_hotwords("a, b c") == ["a", "b c"]
    assert run("c.wav", "--output", "out", "--hotwords", "zyph", *WEIGHTS)[0] == 0
    assert "zyph" in (here / "out" / "c.txt").read_text().lower()
    assert "A transcript would overwrite" in run("c.wav", "--output", "out")[2]


def test_hotwords_that_are_not_heard_change_nothing(here, run):
    assert run("c.wav", "--hotwords", "Kestrelmoor") == run("c.wav")


def test_a_control_token_among_hotwords_stops_the_run(here, run):
    code, out, err = run("calls", "--hotwords", "a<|im_end|>")
    assert (code, out) == (2, "") and err.count("\n") == 0 and "with the control token '<|im_end|>'" in err


def test_a_control_token_is_refused_before_live_audio_arrives(loaded):
    for options in ({"hotwords": ["a<|im_end|>"]}, {"generate": {"hotwords": ["a<|im_end|>"]}}):
        with pytest.raises(ValueError, match=r"with the control token '<\|im_end\|>'"):
            StreamingTranscriber(*loaded, RATE, **options)
    with pytest.raises(ValueError, match="but a second has only 25 frames"):
        StreamingTranscriber(*loaded, RATE, generate={"min_positions_per_second": 90})


def test_a_file_without_hotwords_is_refused(here, run):
    (here / "names.txt").write_text("\n \n")
    assert "the file has no line with a phrase" in run("c.wav", "--hotwords", "@names.txt")[2]


def test_live_text_has_hotwords_too(loaded, all_heard):
    options = {"hotwords": ["zyph"], "generate": {"hotword_weight": 60.0, "ctc_weight": 0}, "max_new_tokens": 12}
    transcriber = StreamingTranscriber(*loaded, RATE, **options)
    events = [*transcriber.feed(noise(1.0)), *transcriber.finish()]
    assert "zyph" in events[-1].text.lower()


# ---- which files ----


def paths(*inputs: str) -> list[str]:
    return [file.path for file in find_audio(inputs)]


def test_files_folders_and_patterns_are_found_once_each(here):
    (here / "calls" / ".hidden.wav").touch()
    (here / "calls" / "notes.txt").touch()
    (here / "calls" / "LOUD.WAV").touch()
    assert paths("calls") == ["calls/LOUD.WAV", "calls/a.wav", "calls/monday/b.flac"]
    assert paths("c.wav", ".") == ["c.wav", "./calls/LOUD.WAV", "./calls/a.wav", "./calls/monday/b.flac"]
    assert paths("c*") == ["c.wav", "calls/LOUD.WAV", "calls/a.wav", "calls/monday/b.flac"]
    assert paths("**/*.flac", "calls/notes.txt") == ["calls/monday/b.flac", "calls/notes.txt"]


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(here):
    (here / "a[1].wav").touch()
    assert paths("a[1].wav") == ["a[1].wav"]


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("absent.wav", "There is no file or folder `absent.wav` \\(current folder: /"),
        ("absent/*.wav", r"No file matches the pattern `absent/\*.wav`"),
        ("empty", "The folder `empty` and its subfolders hold no audio file"),
        ("*.txt", r"The pattern `\*.txt` matches `notes.txt` \(1 in all\) and no audio file"),
        ("https://u:secret@host/a.wav?token=secret", r"`https://host/a.wav\?...` is a URL; expected files"),
    ],
)
def test_inputs_that_are_no_audio_are_one_sentence(here, run, written, message):
    (here / "empty").mkdir()
    (here / "notes.txt").touch()
    with pytest.raises((ValueError, OSError), match=message):
        find_audio([written])
    with pytest.raises((ValueError, OSError), match=message):  # one input needs no list
        transcribe_files.transcribe_files(written)
    code, out, err = run(written)
    assert (code, out, err.count("\n")) == (2, "", 0) and "secret" not in err


# ---- standard output and input ----


def test_one_file_is_printed_and_nothing_else(here, run):
    code, text, err = run("c.wav")
    assert (code, err) == (0, "") and text.endswith("\n") and "c.wav" not in text
    _, subtitles, _ = run("c.wav", "--format", "vtt")
    assert subtitles.startswith("WEBVTT\n\n00:00:00.000 --> 00:00:01.100\n")
    assert json.loads(run("c.wav", "--format", "json")[1])["seconds"] == 1.1
    assert files_below(here) == ["c.wav", "calls/a.wav", "calls/monday/b.flac"]


def test_lines_of_several_files_have_their_names(here, run):
    code, lines, _ = run("calls")
    assert code == 0 and lines.startswith("calls/a.wav: ") and "\ncalls/monday/b.flac: " in lines
    found = [json.loads(line) for line in run("calls", "c.wav", "--format", "json")[1].splitlines()]
    assert [one["audio"] for one in found] == ["calls/a.wav", "calls/monday/b.flac", "c.wav"]


def test_a_folder_or_pattern_with_one_file_prints_subtitles(here, run):
    expected = run("calls/monday/b.flac", "--format", "srt")
    assert expected[0] == 0
    for written in ("calls/monday", "calls/monday/*.flac"):
        assert run(written, "--format", "srt") == expected
    assert run("calls/monday")[1].startswith("calls/monday/b.flac: ")  # a line, as of several files


def test_a_name_with_a_dollar_sign_is_a_file(here, run):
    os.rename("calls/a.wav", "calls/ke$ha.wav")
    code, out, err = run("calls/ke$ha.wav", "c.wav")
    assert (code, err) == (0, "") and out.startswith("calls/ke$ha.wav: ")
    assert "`audio` names `$ha`, and that variable is not set" in run("ke$ha.wav")[2]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["c.wav", "--format", "txt,srt"], "The formats txt, srt cannot be printed together"),
        (["calls", "--format", "srt"], "Several files cannot be printed together as srt"),
        (["c.wav", "--format", "str"], "There is no format `str`. Did you mean `srt`?"),
        (["c.wav", "--hotwords", "Ann,,Bob"], "`hotwords` holds ''; expected a text with a letter or a digit"),
        (["c.wav", "--hotwords", "@absent.txt"], "absent.txt"),
        (["c.wav", "--generate", "{ctc_weight: 3}"], "`ctc_weight` is 3; expected a number from 0"),
        (["c.wav", "--generate", "{hotword_weight: 2}"], "`hotword_weight` is 2, but `hotwords` was not given"),
        (["c.wav", "--generate", "{ctc_draft: lossless, num_beams: 4}"], "and `num_beams` is 4, but drafts work only"),
        (["c.wav", "--generate", "{max_positions_per_second: -1}"], "`max_positions_per_second` is -1"),
        (["c.wav", "--generate", "{return_timestamps: true}"], "an option of their own: `word_times`"),
        (["c.wav", "--word-times"], "`--word-times` was given, but the format is txt, which does not show it"),
        (["c.wav", "--confidence", "--format", "srt"], "`--confidence` was given, but the format is srt"),
        (["-", "--live", "--rate", "16000", "--word-times"], "leave `--word-times` out, or transcribe a file"),
        (["-", "--live", "--rate", "16000", "--confidence"], "leave `--confidence` out, or transcribe a file"),
        (["c.wav", "--rate", "16000"], "`--rate` is for raw samples on standard input"),
        (["-", "--rate", "16"], "`--rate` is 16; expected 1000 Hz or more"),
        (["-", "--beside"], "standard input has no folder"),
        (["c.wav", "--beside", "--output", "out"], "`--output` and `--beside` were both given"),
        (["c.wav", "--output", "t.srt"], "`t.srt` is named like a file: write `--format srt --output FOLDER`, or `--"),
        (["c.wav", "--output", "calls/a.wav"], "`calls/a.wav` is a file, and `--output` expects a folder"),
        (["c.wav", "--output", "calls/a.wav/b"], "`calls/a.wav` is a file, and `--output` expects a folder"),
        (["c.wav", "--llm", "mine"], "`--llm` says what adapters belong to, and `--model` has its own"),
        (["c.wav", "--batch-size", "0"], "The batch size is 0"),
        (["c.wav", "--language", "klingon"], "Unsupported language: 'klingon'"),
        (["c.wav", "--device", "gpu"], "The device is 'gpu'"),
    ],
)
def test_requests_that_do_not_fit_are_one_sentence_before_a_model_is_loaded(here, run, monkeypatch, words, message):
    monkeypatch.setattr(shipped, "load_checkpoint", None)
    code, out, err = run(*words)
    assert (code, out) == (2, "") and message in err and err.count("\n") == 0


def test_standard_input_holds_an_audio_file(here, run, monkeypatch):
    expected = run("calls/a.wav")[1]
    pipe_in(monkeypatch, (here / "calls" / "a.wav").read_bytes())
    assert run("-") == (0, expected, "")


def test_raw_samples_on_standard_input_need_their_rate(here, run, monkeypatch):
    raw = (32767 * noise(0.5)).astype("<i2").tobytes()
    pipe_in(monkeypatch, raw)
    code, out, err = run("-")
    assert (code, out) == (2, "") and "give their rate in Hz, such as `--rate 16000`" in err
    assert err.endswith("0 transcribed, 1 failed.")
    pipe_in(monkeypatch, raw)
    code, out, err = run("-", "--rate", "8000", "--format", "json")
    assert (code, err) == (0, "") and json.loads(out)["seconds"] == 1.0


@pytest.mark.parametrize(
    ("content", "words", "message"),
    [
        (b"", [], "Standard input held 0 bytes"),
        (b"c.wav\ncalls/a.wav\n", [], "a list of files, the first of them `c.wav`"),
        (b"\x01\x02\x03", ["--rate", "8000"], "held 3 bytes, an odd number"),
        (wav_bytes(), ["--rate", "8000"], "holds a file (wav), which says its own sampling rate: leave `--rate` out"),
        (b".snd" + bytes(600), ["--rate", "8000"], "holds a file (au), which says its own sampling rate"),
        (wav_bytes()[:900], [], "was cut off"),
    ],
)
def test_standard_input_that_is_no_audio_is_told(here, run, monkeypatch, content, words, message):
    pipe_in(monkeypatch, content)
    code, out, err = run("-", *words)
    assert (code, out) == (2, "") and message in err


def test_a_terminal_is_no_standard_input(here, run, monkeypatch):
    pipe_in(monkeypatch, b"", is_terminal=True)
    assert "which is a terminal: pipe audio in" in run("-")[2]


# ---- files of transcripts ----


def test_files_of_a_folder_keep_their_place_in_the_output_folder(here, run):
    code, out, err = run("calls", "c.wav", "--output", "out/texts", "--format", "txt,srt")
    assert (code, out, err) == (0, "", "3 transcribed.")
    names = ["a.srt", "a.txt", "c.srt", "c.txt", "monday/b.srt", "monday/b.txt"]
    found = [name for name in files_below(here / "out" / "texts") if ".soundwave" not in name]
    assert found == names
    assert (here / "out" / "texts" / "a.txt").read_text() == run("calls/a.wav")[1]


def test_transcripts_lie_beside_their_recordings(here, run):
    run("calls", "--beside")
    assert {"calls/a.txt", "calls/monday/b.txt"} < set(files_below(here))


def test_standard_input_is_written_under_its_own_name(here, run, monkeypatch):
    pipe_in(monkeypatch, wav_bytes())
    assert run("-", "--output", "out", "--format", "json")[0] == 0
    assert (here / "out" / "stdin.json").is_file()
    pipe_in(monkeypatch, wav_bytes())
    assert "A transcript would overwrite `out/stdin.json`" in run("-", "--output", "out", "--format", "json")[2]


def test_two_recordings_of_one_transcript_are_refused_before_any_work(here, run, monkeypatch):
    monkeypatch.setattr(shipped, "load_checkpoint", None)
    soundfile.write("calls/a.flac", noise(0.5), RATE)
    code, _, err = run("calls", "--beside")
    assert code == 2 and "`calls/a.flac` and `calls/a.wav` would both be written to `calls/a.txt`" in err


def test_a_recording_is_never_overwritten(here, run):
    os.rename("c.wav", "c.txt")
    code, _, err = run("c.txt", "--beside", "--force")
    assert code == 2 and "`c.txt` would overwrite a recording" in err
    assert soundfile.info("c.txt").frames == 1.1 * RATE


def test_transcripts_that_are_there_are_skipped_without_loading_a_model(here, run, monkeypatch):
    run("calls", "--output", "out")
    monkeypatch.setattr(shipped, "load_checkpoint", None)
    before = {name: os.stat(here / "out" / name).st_mtime_ns for name in files_below(here / "out")}
    code, _, err = run("calls", "--output", "out", "--batch-size", "3")
    assert (code, err) == (0, "0 transcribed, 2 skipped (transcripts of the same recording and options exist).")
    assert {name: os.stat(here / "out" / name).st_mtime_ns for name in files_below(here / "out")} == before


def test_what_is_new_is_added_to_what_is_there(here, run):
    run("calls", "--output", "out")
    assert run("calls", "c.wav", "--output", "out")[2].startswith("1 transcribed, 2 skipped")
    os.remove("out/a.txt")
    assert run("calls", "--output", "out")[2].startswith("1 transcribed, 1 skipped")
    assert run("calls", "--output", "out", "--format", "txt,vtt")[2] == "2 transcribed."
    assert run("calls", "--output", "out", "--format", "all")[2] == "2 transcribed."


def change_the_audio():
    soundfile.write("calls/a.wav", noise(0.9, seed=7), RATE)


def change_the_text():
    with open("out/a.txt", "w") as file:
        file.write("By hand.\n")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (change_the_audio, []),
        (change_the_text, []),
        (None, ["--chunk-seconds", "1"]),
        (None, ["--language", "de"]),
        (None, ["--dtype", "bfloat16"]),
        (None, ["--max-new-tokens", "4"]),
    ],
)
def test_a_transcript_of_something_else_is_overwritten_by_force_alone(here, run, change, words):
    run("calls/a.wav", "--output", "out")
    if change:
        change()
    before = (here / "out" / "a.txt").read_text()
    code, _, err = run("calls/a.wav", "--output", "out", *words)
    assert code == 2 and "A transcript would overwrite `out/a.txt`, which has another recording" in err
    assert (here / "out" / "a.txt").read_text() == before
    assert run("calls/a.wav", "--output", "out", "--force", *words)[2] == "1 transcribed."
    assert run("calls/a.wav", "--output", "out", *words)[2].startswith("0 transcribed, 1 skipped")


def test_other_weights_make_other_transcripts(here, run, folder, tmp_path_factory):
    other = save_tiny_soundwave(tmp_path_factory.mktemp("other"))
    settings = [transcribe_files.weights_settings(str(name), None, None, None) for name in (folder, other)]
    assert settings[0] == settings[1]  # the same weights in another place
    model_file = other / "model.safetensors"
    content = bytearray(model_file.read_bytes())
    content[-1] ^= 1
    model_file.write_bytes(content)
    assert transcribe_files.weights_settings(str(other), None, None, None) != settings[0]


def test_a_bad_file_is_named_and_the_rest_goes_on(here, run):
    (here / "calls" / "broken.wav").write_bytes(b"RIFF no sound")
    soundfile.write("calls/short.wav", noise(0.02), RATE)
    code, _, err = run("calls", "--output", "out")
    assert code == 2 and err.endswith("2 transcribed, 2 failed.")
    assert "soundwave-hf transcribe: `calls/broken.wav` could not be decoded" in err
    assert "soundwave-hf transcribe: `calls/short.wav` lasts 20.00 ms" in err
    assert {"a.txt", "monday/b.txt"} < set(files_below(here / "out"))
    code, _, err = run("calls", "--output", "out")
    assert code == 2 and err.endswith("exist), 2 failed.") and "0 transcribed, 2 skipped" in err


def test_an_interruption_leaves_whole_files_and_the_next_run_goes_on(here, run, monkeypatch):
    several = transcribe_files.outcomes

    def interrupted(*given):
        yield next(several(*given))
        raise KeyboardInterrupt

    monkeypatch.setattr(transcribe_files, "outcomes", interrupted)
    assert run("calls", "--output", "out", "--format", "all")[0] == 130
    names = [f"a.{name}" for name in ("json", "srt", "tsv", "txt", "vtt")]
    assert files_below(here / "out") == [transcribe_files.RECORD, *names]
    monkeypatch.setattr(transcribe_files, "outcomes", several)
    assert run("calls", "--output", "out", "--format", "all")[2].startswith("1 transcribed, 1 skipped")


def test_a_write_that_fails_leaves_nothing(here, run, monkeypatch):
    def fail(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr(transcribe_files, "add_record", fail)
    assert run("calls", "--output", "out")[0] == 130
    assert files_below(here) == ["c.wav", "calls/a.wav", "calls/monday/b.flac"]


def test_a_record_that_broke_off_is_no_hindrance(here, run):
    run("calls", "--output", "out")
    with open(here / "out" / transcribe_files.RECORD, "a") as file:
        file.write('{"file": "a.txt", "requ')
    assert run("calls", "--output", "out")[2].startswith("0 transcribed, 2 skipped")


def test_a_text_that_does_not_end_is_told(here, folder, loaded, monkeypatch, capsys):
    monkeypatch.setattr(shipped, "load_checkpoint", lambda name, **placing: loaded)
    monkeypatch.setattr(loaded[0].generation_config, "eos_token_id", None)
    assert cli.main(["transcribe", "c.wav", "--model", str(folder), "--max-new-tokens", "2"]) == 0
    message = "`c.wav`: the text from 0.0 to 1.1 s did not end within 2 tokens, and its rest is missing."
    assert message in capsys.readouterr().err
    assert cli.main(["transcribe", "c.wav", "--model", str(folder), "--generate", "{max_time: 0.001}"]) == 0
    err = capsys.readouterr().err
    assert "did not end within 256 tokens and 0.001 s, and its rest is missing" in err and "a longer `max_time`" in err


def test_the_ctc_head_alone_transcribes_from_the_command(here, run, folder, capsys):
    assert cli.main(["transcribe", "--model", str(folder), "--ctc-only", "c.wav"]) == 0
    model, processor = AutoModelForMultimodalLM.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    (expected,) = transcribe_clips(model, processor, ["c.wav"], ctc_only=True)
    assert capsys.readouterr().out == f"{' '.join(expected.text.split())}\n"


def test_a_streamer_takes_one_text_at_a_time_from_the_llm_alone():
    streamer = object()
    assert transcribe.TranscribeOptions(batch_size=1, streamer=streamer).streamer is streamer
    with pytest.raises(ValueError, match="takes one text at a time, and `batch_size` is 8: give 1"):
        transcribe.TranscribeOptions(streamer=streamer)
    with pytest.raises(ValueError, match="`ctc_only` runs without the LLM"):
        transcribe.TranscribeOptions(batch_size=1, streamer=streamer, ctc_only=True)


@pytest.mark.parametrize(
    "clip",
    [
        "a.wav",
        Path("a.wav"),
        b"RIFF",
        memoryview(b"RIFF"),
        io.BytesIO(b"RIFF"),
        {"path": "a.wav"},
        np.zeros(9),
        torch.zeros(9),
        [0.0, 0.1],
        (np.zeros(9), 8_000),
    ],
)
def test_one_clip_that_is_not_in_a_list_is_refused(clip):
    with pytest.raises(ValueError, match="`clips` is one clip .*: give a list of clips"):
        transcribe_clips(None, None, clip)


@pytest.mark.parametrize(
    "clips", [[], ["a.wav"], np.zeros((2, 9)), torch.zeros(2, 9), np.array(["a.wav"]), iter(["a.wav"])]
)
def test_lists_and_tables_of_clips_are_taken(clips):
    transcribe_clips(None, None, clips)  # read when they are asked for
