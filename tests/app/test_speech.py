"""What the page asks of a model, without the page."""

import threading
import time

import numpy as np
import pytest
import soundfile

from soundwave_hf.app import speech as speech_module
from soundwave_hf.app.html import facts_html, live_html, picture_html, transcript_html
from soundwave_hf.app.page import Page, Panel, build_page, messages
from soundwave_hf.app.speech import (
    Answer,
    LiveTalk,
    QueueStreamer,
    Saved,
    conversation_of,
    read_phrases,
    start_talk,
    stream,
)
from soundwave_hf.transcripts import Segment, Transcript, Word
from tests.app.tiny_page import RATE, load_tiny, noise, save_tiny, write_noise


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    return load_tiny(save_tiny(tmp_path_factory.mktemp("saved")))


@pytest.fixture(autouse=True)
def few_tokens(monkeypatch):
    monkeypatch.setattr(speech_module, "MOST_TOKENS", 6)  # a random model does not stop by itself


@pytest.fixture
def clip(tmp_path) -> str:
    return write_noise(tmp_path / "clip.wav", 1.5)


# ---- transcripts and answers ----


def test_a_transcript_comes_in_parts_and_then_whole_with_word_times(speech, clip):
    *parts, transcript = speech.transcribe(speech.read(clip))
    assert len(parts) > 1 and all(later.startswith(earlier) for earlier, later in zip(parts, parts[1:], strict=False))
    assert isinstance(transcript, Transcript) and transcript.seconds == 1.5
    words = [word for segment in transcript.segments for word in segment.words]
    assert " ".join(word.text for word in words) == transcript.text and any(word.start is not None for word in words)


def test_a_streamed_answer_ends_as_the_whole_one_and_knows_that_it_was_cut_off(speech, clip):
    *parts, answer = speech.ask(speech.read(clip), [("w1 w2", "w3")], "w4")
    assert isinstance(answer, Answer) and answer.text.startswith(parts[0]) and not answer.finished
    assert len(answer.text.split()) == 6


def test_an_earlier_turn_changes_the_answer(speech, clip):
    read = speech.read(clip)
    answers = {list(speech.ask(read, turns, "w4"))[-1].text for turns in ([], [("w1", "w2 w3 w5 w7 w11 w13")])}
    assert len(answers) == 2


def test_the_clip_is_in_the_first_message_alone():
    talk = conversation_of({"array": "clip"}, [("", "w1"), ("what?", "w2")], " why? ")
    assert [message["role"] for message in talk] == ["user", "assistant", "user", "assistant", "user"]
    assert [part["type"] for part in talk[0]["content"]] == ["audio"]  # the clip itself asks
    assert [part["text"] for message in talk[1:] for part in message["content"]] == ["w1", "what?", "w2", "why?"]


def test_only_the_first_question_may_be_empty():
    assert len(conversation_of({}, [], "")) == 1
    with pytest.raises(ValueError, match="The question is empty"):
        conversation_of({}, [("what?", "w1")], "  ")


def test_a_reader_that_leaves_ends_the_model_at_the_next_token(speech):
    count, ended = 0, threading.Event()

    def work(streamer: QueueStreamer):
        nonlocal count
        try:
            streamer.put(np.array([[0]]))  # the prompt
            for count in range(1, 10_000):  # noqa: B007
                streamer.on_finalized_text("w1 ")
                streamer.put(np.array([1]))
                time.sleep(0.001)
        finally:
            ended.set()

    parts = stream(speech.processor.tokenizer, work)
    assert next(parts) == "w1"
    parts.close()
    assert ended.is_set() and count < 9_999


def test_an_error_of_the_model_reaches_the_reader(speech):
    def work(streamer):
        streamer.on_finalized_text("w1 ")
        raise RuntimeError("broken")

    parts = stream(speech.processor.tokenizer, work)
    assert next(parts) == "w1"
    with pytest.raises(RuntimeError, match="broken"):
        next(parts)


@pytest.mark.parametrize(
    ("text", "phrases"), [("", None), (" ", None), ("Ann, New York", ["Ann", "New York"]), ("@names", ["@names"])]
)
def test_phrases_are_read_between_commas_and_never_from_a_file(text, phrases):
    assert read_phrases(text) == phrases


# ---- positions ----


@pytest.mark.parametrize(
    ("seconds", "whisper", "unpadded"), [(4.8, 1500, 240), (30.0, 1500, 1500), (30.5, 3000, 1525), (0.1, 1500, 5)]
)
def test_whisper_reads_whole_windows(seconds, whisper, unpadded):
    saved = Saved(14, seconds, window_frames=1500, window_seconds=30)
    assert (saved.whisper_frames, saved.unpadded_frames) == (whisper, unpadded)


def test_positions_are_those_of_the_picture_and_the_window_the_encoders(speech, clip):
    picture = speech.look(speech.read(clip))
    saved = speech.saved(picture)
    assert saved == Saved(len(picture.kept_seconds), 1.5, window_frames=100, window_seconds=2)
    assert 0 < saved.positions < saved.whisper_frames == 100


def test_facts_name_device_time_and_what_is_compared():
    facts = facts_html(4.8, 2.0, "cpu, float32", Saved(14, 4.8, 1500, 30))
    assert "4.8 s of sound were transcribed in 2.0 s on cpu, float32." in facts
    assert "<strong>14 positions</strong>, 2.9 a second" in facts and "1,486 positions are saved (99.1 %)" in facts
    assert "240 frames" in facts


# ---- HTML ----


def test_words_with_times_are_buttons_and_all_text_is_escaped():
    words = (Word("<b>", 0.5, 0.75), Word("there"))
    shown = transcript_html(Transcript.of_segments([Segment(0, 2, "<b> there", words)], 2.0))
    assert "<button type='button' class='word' data-start='0.5' title='0.50 to 0.75 s'>&lt;b&gt;</button>" in shown
    assert " <span title='not aligned with the sound'>there</span>" in shown and "<b>" not in shown


def test_a_text_that_was_cut_off_and_silence_are_said():
    cut = Transcript.of_segments([Segment(0, 2, "w1", finished=False), Segment(2, 3, "w2")], 3.0)
    assert transcript_html(cut).count("The text from 0.0 to 2.0 s did not end within") == 1
    assert "No speech was found" in transcript_html(Transcript.of_segments([Segment(0, 2, "")], 2.0))


def test_the_picture_comes_with_its_peaks_as_text(speech, clip):
    shown = picture_html(speech.look(speech.read(clip)))
    assert "src='data:image/png;base64,iVBOR" in shown and "CTC peaks: 0." in shown and "positions of the LLM" in shown


# ---- the microphone ----


def blocks(seconds: float) -> list[np.ndarray]:
    return np.array_split(noise(seconds), round(2 * seconds))


def test_a_talk_gives_partial_text_then_final_text_and_keeps_each_sample(speech, tmp_path):
    talk, seen = start_talk(speech, RATE), []
    for block in blocks(3.0):
        talk.hear(block)
        if talk.partial:
            seen.append(talk.partial)
            assert f"<span class='partial'>{talk.partial}</span>" in live_html(talk)
    assert seen
    talk.finish()
    assert talk.text and not talk.partial and talk.seconds == 3.0
    talk.save(str(tmp_path / "talk.wav"))
    assert soundfile.info(tmp_path / "talk.wav").frames == 3 * RATE


def test_a_block_that_comes_after_the_end_is_left_alone(speech):
    talk = start_talk(speech, RATE)
    talk.hear(noise(1.0))
    talk.finish()
    talk.hear(noise(0.5))
    talk.finish()
    assert talk.seconds == 1.0


def test_a_talk_longer_than_the_limit_says_that_it_leaves_sound_out(speech):
    talk = start_talk(speech, RATE)
    talk.max_seconds = 1.2
    for block in blocks(2.0):
        talk.hear(block)
    assert talk.seconds == pytest.approx(1.2, abs=1e-4) and talk.is_full
    assert "The limit of 1.2 s is reached" in live_html(talk)
    talk.finish()


def test_microphone_text_that_was_cut_off_is_said_as_in_a_transcript(speech):
    talk = start_talk(speech, RATE)
    talk.final = [Segment(0, 2, "w1", finished=False), Segment(2, 3, "w2")]
    note = "<p>The text from 0.0 to 2.0 s did not end within"
    assert live_html(talk).count(note) == live_html(talk).count("did not end") == 1
    assert note in transcript_html(Transcript.of_segments(talk.final, 3.0))
    heard = start_talk(speech, RATE)
    heard.hear(noise(2.0))
    heard.finish()
    assert heard.text and "did not end within" in live_html(heard)  # the random model never ends by itself


def test_two_talks_do_not_mix(speech):
    alone = start_talk(speech, RATE)
    for block in blocks(2.0):
        alone.hear(block)
    alone.finish()
    first, second = start_talk(speech, RATE), start_talk(speech, 2 * RATE)
    for block in blocks(2.0):
        first.hear(block)
        second.hear(noise(0.5, seed=3))
    first.finish(), second.finish()
    assert first.final == alone.final and isinstance(second, LiveTalk)
    assert (first.seconds, second.seconds) == (2.0, 1.0)  # 8,000 samples of 32 kHz are 0.25 s


# ---- what the page does with it ----


@pytest.fixture
def page(speech):
    return Page(speech)


def refusal(found) -> str:
    gradio = pytest.importorskip("gradio")
    with pytest.raises(gradio.Error) as caught:
        list(found)
    return caught.value.message


def test_a_request_without_a_clip_is_one_sentence(page):
    assert refusal(page.transcribe(None, "", "")) == (
        "There is no clip yet. Choose a file or an example, or record one."
    )
    assert "There is no clip yet" in refusal(page.ask(None, "w1", []))


def test_a_file_that_is_no_audio_is_named_without_its_folder(page, tmp_path):
    path = tmp_path / "notes.wav"
    path.write_text("not audio")
    message = refusal(page.transcribe(str(path), "", ""))
    assert "notes.wav" in message and str(tmp_path) not in message and "\n" not in message


def test_a_recording_that_is_too_long_is_refused_from_its_header(page, tmp_path):
    message = refusal(page.ask(write_noise(tmp_path / "long.wav", 8.5), "w1", []))
    assert (
        message == "`long.wav`: The recording lasts 8.5 s, and this page takes at most 8 s. Cut it into shorter files."
    )


@pytest.mark.parametrize(
    ("hotwords", "language", "message"),
    [("Ann,,Bob", "", "hotwords"), ("", "klingon", "Unsupported language: &#x27;klingon&#x27;")],
)
def test_options_that_do_not_fit_are_refused(page, clip, hotwords, language, message):
    assert message in refusal(page.transcribe(clip, hotwords, language))


def test_after_a_fault_of_the_model_the_next_request_works(page, clip, monkeypatch, caplog):
    generate, calls = type(page.speech.model).generate, []

    def breaks_once(self, *args, **options):
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("CUDA error: secret details")
        return generate(self, *args, **options)

    monkeypatch.setattr(type(page.speech.model), "generate", breaks_once)
    message = refusal(page.transcribe(clip, "", ""))
    assert message.startswith("The model failed (RuntimeError)") and "secret" not in message
    assert "secret details" in caplog.text  # the log has the traceback
    assert "class='word'" in list(page.transcribe(clip, "", ""))[-1][0]


def test_the_transcript_is_there_before_the_picture(page, clip):
    steps = list(page.transcribe(clip, "", ""))
    assert "<button" in steps[-2][0] and steps[-2][2] == "" and steps[-1][2].startswith("<h2>What the model finds")
    assert "positions" not in steps[-2][1] and "positions" in steps[-1][1]


def test_each_turn_is_kept_by_its_own_session(page, clip):
    first, *_, (shown, turns, box, facts) = page.ask(clip, "w4", [])
    assert (
        len(turns) == 1 and turns[0][0] == "w4" and first[2] == "" != box and "The answer did not end within" in facts
    )
    *_, (shown, turns, _, _) = page.ask(clip, "w5", turns)
    assert [message["content"] for message in shown if message["role"] == "user"] == ["w4", "w5"]
    *_, (_, other, _, _) = page.ask(clip, "w5", [])
    assert len(other) == 1


def test_a_request_ends_when_another_clip_is_chosen_and_shows_nothing_more():
    panel, closed = Panel(), []

    def steps():
        try:
            yield ("w1",)
            yield ("w1 w2",)
        finally:
            closed.append(True)

    shown = panel.show("a.wav", steps(), 1)
    assert next(shown) == ("w1",)
    assert panel.choose("b.wav", ("",)) == ("",)
    (last,) = list(shown)
    assert last[0] != "w1 w2" and "w1" not in str(last[0]) and closed == [True]


def test_a_clip_whose_request_began_before_the_panel_was_emptied_keeps_its_text():
    panel = Panel()
    shown = panel.show("a.wav", iter_of(("w1",), ("w1 w2",)), 1)
    assert next(shown) == ("w1",)
    assert panel.choose("a.wav", ("",)) != ("",)  # left as it is
    assert next(shown) == ("w1 w2",)


def iter_of(*steps):
    yield from steps


def test_a_clip_that_asks_itself_is_shown_as_such():
    assert [message["content"] for message in messages([("", "w1")])] == ["(The clip itself asks.)", "w1"]
    assert [message["content"] for message in messages([("<b>", "")])] == ["&lt;b&gt;", "(no answer)"]


def test_blocks_from_the_browser_are_read_and_deleted(page, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    talk = None
    for number in range(4):
        path = write_noise(tmp_path / f"{number}.wav", 0.5, seed=number)
        talk, _ = page.hear(path, talk, 1, "", "")
    shown, recording = page.finish(talk)
    assert list(tmp_path.glob("*.wav")) == [] and soundfile.info(recording).frames == 2 * RATE
    assert shown.startswith("<p class='words'>w")
    with pytest.raises(Exception, match="The microphone gave no sound"):
        page.finish(None)


def test_a_second_recording_keeps_its_first_block_although_the_first_ones_talk_comes_back(page, tmp_path):
    paths = [write_noise(tmp_path / f"{number}.wav", 0.5, seed=number) for number in range(3)]
    first, _ = page.hear(paths[0], None, 1, "", "")
    page.finish(first)
    # The server was behind: its last answer put the finished talk back.
    second, _ = page.hear(paths[1], first, 2, "", "")
    assert second is not first and second.seconds == 0.5
    assert page.hear(paths[2], second, 2, "", "")[0] is second
    assert soundfile.info(page.finish(second)[1]).frames == RATE and first.seconds == 0.5


def test_a_recording_without_sound_does_not_give_the_one_before_again(page, tmp_path):
    first, _ = page.hear(write_noise(tmp_path / "1.wav", 0.5), None, 1, "", "")
    page.finish(first)
    with pytest.raises(Exception, match="The microphone gave no sound"):
        page.finish(first)


def test_the_page_sends_nothing_and_offers_no_other_doors(speech):
    config = build_page(speech, "tiny").config
    assert config["analytics_enabled"] is False
    assert {fn["api_visibility"] for fn in config["dependencies"]} <= {"private", "undocumented"}
