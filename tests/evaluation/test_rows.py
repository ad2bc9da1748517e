from pathlib import Path

import numpy as np
import pytest
import soundfile

from soundwave_hf.evaluation import rows as rows_module
from soundwave_hf.evaluation.rows import decoded_groups, read_request


RATE = 16_000


@pytest.fixture
def clip(tmp_path) -> str:
    """Half a second of noise."""
    path = tmp_path / "clip.wav"
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(RATE // 2), RATE)
    return str(path)


def test_a_row_with_text_asks_for_the_transcript(clip):
    request = read_request({"audio": clip, "text": "hello", "question": None, "answer": None, "messages": None}, 3)
    assert (request.row, request.audio_name, request.reference, request.spoken) == (3, "clip.wav", "hello", "hello")
    assert request.conversation is None and not request.is_answer
    assert request.seconds == 0.5 and request.clips[0]["array"].shape == (8_000,)


@pytest.mark.parametrize("stored", ["path", "bytes", "array"])
def test_audio_may_be_a_path_bytes_or_samples(clip, stored):
    audio = {
        "path": {"path": clip, "bytes": None},
        "bytes": {"path": "clip.wav", "bytes": Path(clip).read_bytes()},
        "array": {"path": "clip.wav", "array": soundfile.read(clip, dtype="float32")[0], "sampling_rate": RATE},
    }[stored]
    request = read_request({"audio": audio, "text": "hello"}, 0)
    assert (request.audio_name, request.seconds, request.failure) == ("clip.wav", 0.5, None)


def test_a_row_with_a_question_asks_it_and_expects_the_answer(clip):
    request = read_request(
        {"audio": clip, "text": "good morning", "question": "Which greeting?", "answer": "Morning"}, 0
    )
    (turn,) = request.conversation
    assert [part["type"] for part in turn["content"]] == ["audio", "text"]
    assert turn["content"][1]["text"] == request.question == "Which greeting?"
    assert (request.is_answer, request.reference, request.spoken) == (True, "Morning", "good morning")


def test_an_empty_question_leaves_the_clip_alone(clip):
    request = read_request({"audio": clip, "question": "", "answer": "Paris"}, 0)
    assert [part["type"] for part in request.conversation[0]["content"]] == ["audio"]


def test_an_answer_without_a_question_is_a_transcript(clip):
    request = read_request({"audio": clip, "text": "good morning", "question": None, "answer": "Good morning!"}, 0)
    assert (request.reference, request.is_answer, request.conversation) == ("Good morning!", False, None)


def test_silence_has_an_empty_text(clip):
    request = read_request({"audio": clip, "text": "", "question": "", "answer": None}, 0)
    assert (request.reference, request.failure, request.is_answer) == ("", None, False)


def test_a_question_may_be_about_two_clips_or_none(clip):
    two = read_request({"audio": [clip, clip], "text": ["a", "b"], "question": "Who?", "answer": "Both"}, 0)
    none = read_request({"audio": None, "question": "One and one?", "answer": "Two"}, 0)
    assert [part["type"] for part in two.conversation[0]["content"]] == ["audio", "audio", "text"]
    assert (len(two.clips), two.seconds, two.spoken) == (2, 1.0, None)
    assert (none.clips, none.reference, none.failure) == ((), "Two", None)


def test_a_list_of_one_clip_is_that_clip(clip):
    request = read_request({"audio": [clip], "text": ["hello"]}, 0)
    assert (request.reference, request.seconds, request.failure) == ("hello", 0.5, None)


def test_messages_are_asked_up_to_the_last_turn(clip):
    messages = [
        {
            "role": "user",
            "content": [{"type": "audio", "path": clip, "text": None}, {"type": "text", "text": "What?"}],
        },
        {"role": "assistant", "content": "A bell."},
        {"role": "user", "content": [{"type": "audio", "path": clip}, {"type": "text", "text": "And now?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A horn."}]},
    ]
    request = read_request({"messages": messages}, 0)
    assert (request.reference, request.question, request.is_answer) == ("A horn.", "What? And now?", True)
    assert [message["role"] for message in request.conversation] == ["user", "assistant", "user"]
    assert len(request.clips) == 2 and request.seconds == 1.0
    assert request.conversation[0]["content"][0]["audio"]["array"].shape == (8_000,)


def test_messages_may_be_text_alone():
    messages = [{"role": "user", "content": "One and one?"}, {"role": "assistant", "content": "Two"}]
    request = read_request({"messages": messages}, 0)
    assert (request.clips, request.seconds, request.failure) == ((), 0.0, None)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"audio": "nowhere.wav", "text": "hello"}, "nowhere.wav"),
        ({"audio": b"no audio", "text": "hello"}, "could not be decoded"),
        ({"audio": None, "text": "hello"}, "`audio` holds 0 clips; expected one"),
        ({"audio": ["clip", "clip"], "text": "hello"}, "`audio` holds 2 clips; expected one"),
        ({"audio": "clip", "text": None}, "`text` is None; expected a string"),
        ({"audio": "clip", "sentence": "hello"}, "`text` is None.*`--columns`"),
        ({"audio": "clip", "text": 7}, "`text` is 7; expected a string"),
        ({"audio": "clip", "question": "What?", "answer": None}, "has a `question` .* and no `answer`"),
        ({"audio": "clip", "question": "What?", "answer": 7}, "`answer` 7; expected text"),
        ({"messages": []}, "without a turn of the `assistant`"),
        (
            {"messages": [{"role": "assistant", "content": "hello"}]},
            "the roles \\['assistant'\\]; expected a question",
        ),
        (
            {"messages": [{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}]},
            "the roles \\['assistant', 'user'\\]",
        ),
        ({"messages": "hello"}, "`messages` 'hello'; expected a list"),
        ({"messages": [{"role": 7, "content": "a"}, {"role": "assistant", "content": "a"}]}, "the `role` 7"),
    ],
)
def test_a_row_that_cannot_be_used_says_why(clip, row, message):
    if row.get("audio") == "clip":
        row = {**row, "audio": clip}
    request = read_request(row, 5)
    assert request.row == 5 and request.clips == ()
    with pytest.raises(ValueError, match=message):
        raise ValueError(request.failure)


def test_the_ctc_head_is_asked_for_the_transcript_of_any_row(clip):
    row = {"audio": clip, "text": "good morning", "question": "Which greeting?", "answer": "Morning"}
    request = read_request(row, 0, transcripts_only=True)
    assert (request.reference, request.is_answer, request.conversation) == ("good morning", False, None)


def test_memory_holds_a_group_of_rows_at_a_time(clip, monkeypatch):
    """Three clips of 8,000 samples fill a group of at most 20,000; the fourth row begins another."""
    monkeypatch.setattr(rows_module, "GROUP_SAMPLES", 20_000)
    read = []

    def rows():
        for number in range(7):
            read.append(number)
            yield {"audio": clip, "text": "hello"}

    groups = decoded_groups(rows())
    assert len(next(groups)) == 3 and read == [0, 1, 2]
    assert [[request.row for request in group] for group in groups] == [[3, 4, 5], [6]]


def test_a_group_has_a_largest_number_of_rows(monkeypatch):
    monkeypatch.setattr(rows_module, "GROUP_ROWS", 2)
    groups = decoded_groups([{"audio": "nowhere.wav", "text": ""}] * 5)
    assert [len(group) for group in groups] == [2, 2, 1]


def test_the_ctc_head_is_scored_against_the_text_beside_an_answer(clip):
    request = read_request({"audio": clip, "text": "good morning", "answer": "Guten Morgen!"}, 0)
    assert (request.reference, request.spoken) == ("Guten Morgen!", "good morning")
    assert read_request({"audio": clip, "answer": "Guten Morgen!"}, 0).spoken == "Guten Morgen!"


def test_the_name_of_a_clip_holds_no_secret_of_its_url():
    row = {"audio": "http://me:password@localhost:9/a.wav?X-Amz-Signature=abc#token", "text": "x"}
    assert read_request(row, 0).audio_name == "a.wav"
