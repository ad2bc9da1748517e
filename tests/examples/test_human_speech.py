"""Human clips: the split rule, what it keeps apart, and the clips that ship with the repository."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from human_speech import (
    TRAINING,
    UNUSED,
    VALIDATION,
    asterisk_transcripts,
    held_out_texts,
    is_plausible,
    prompt_name,
    prompt_rows,
    split_remainder,
    spoken_prompt,
    unused_prompt_words,
)
from librivox import CLIPS
from sentences import HeldOut, normalized
from voices import Utterance, clip_seconds, speak, write_clip


EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def test_the_split_rule_on_a_published_sha1():
    # sha1("abc") = a9993e36 4706816a ba3e2571 7850c26c 9cd0d89d. 16 = 1 (mod 3), so the remainder is that of the
    # sum of the hexadecimal digits: 63 + 42 + 53 + 52 + 77 = 287 = 3 * 95 + 2.
    assert split_remainder("abc") == 2


def test_the_name_is_the_path_below_the_voice_folder():
    assert prompt_name(Path("/voice/digits/h-17.g722"), Path("/voice")) == "digits_h-17"


def test_the_transcripts_hold_no_prompt_that_is_used_for_nothing():
    remainders = [split_remainder(name) for name in asterisk_transcripts()]
    assert (remainders.count(UNUSED), remainders.count(VALIDATION), remainders.count(TRAINING)) == (0, 143, 134)


def test_unused_prompts_are_refused(tmp_path):
    with pytest.raises(ValueError, match="used for nothing"):
        prompt_rows(tmp_path, UNUSED)


def test_only_training_leaves_out_prompts_longer_than_the_encoders_window(monkeypatch, tmp_path):
    monkeypatch.setattr("human_speech.held_out_texts", frozenset)
    seconds = dict.fromkeys(asterisk_transcripts(), 30.0) | {"demo-congrats": 37.0}
    trained_on = next(name for name in seconds if split_remainder(name) == TRAINING)
    seconds[trained_on] = 30.001
    monkeypatch.setattr("human_speech.prompt_clip", lambda name, folder: (folder / name, seconds[name]))
    validation, training = (prompt_rows(tmp_path, remainder) for remainder in (VALIDATION, TRAINING))
    assert len(validation) == 143 and max(row["seconds"] for row in validation) == 37.0
    assert len(training) == 133 and trained_on not in {row["audio"] for row in training}


def test_words_that_unused_names_give_away(monkeypatch):
    remainders = {
        "digits_17": 0,
        "digits_h-3": 0,
        "digits_mon-0": 0,
        "phonetic_b_p": 0,
        "vm-goodbye": 0,
        "digits_5": 2,
    }
    monkeypatch.setattr("human_speech.split_remainder", remainders.get)
    assert unused_prompt_words(list(remainders)) == {"17", "3rd", "january", "b", "bravo", "goodbye"}


def test_training_texts_say_the_keys_and_validation_texts_are_held_out():
    assert spoken_prompt("press * to pause, press # to enter ...") == "press star to pause, press pound to enter"
    assert normalized("He was not an ill disposed young man") in held_out_texts()
    validation = [text for name, text in asterisk_transcripts().items() if split_remainder(name) == VALIDATION]
    assert all(normalized(text) in held_out_texts() for text in validation)
    assert "has left the conference." in validation
    kept_apart = HeldOut(held_out_texts())
    for text in ("has left the conference", "The leader has left the conference.", "not an ill disposed young man"):
        assert kept_apart.repeats(text), text
    assert not kept_apart.repeats("The leader has left the building.")


@pytest.mark.parametrize(
    ("text", "seconds", "plausible"),
    [
        ("Please hold the line.", 1.5, True),
        ("", 2.0, False),
        ("Ah!", 16.0, False),  # one word in 16 seconds
        ("the end of the end of the end of the end of", 4.0, False),  # a loop
        ("please hold the line for the next operator", 1.0, False),  # eight words a second
    ],
)
def test_texts_heard_by_whisper_must_be_plausible(text, seconds, plausible):
    assert is_plausible(text, seconds) is plausible


def test_the_shipped_librivox_clips_are_what_their_list_says():
    entries = json.loads((EXAMPLES / "librivox" / "clips.json").read_text(encoding="utf-8"))
    assert [entry["text"] for entry in entries] == [clip.text for clip in CLIPS]
    for entry in entries:
        info = soundfile.info(EXAMPLES / "librivox" / entry["file"])
        assert (info.samplerate, info.channels, round(info.duration, 3)) == (16_000, 1, entry["seconds"])
    size = sum(path.stat().st_size for path in EXAMPLES.rglob("*.flac"))
    assert size < 1_000_000


def test_a_clip_that_is_there_is_not_spoken_again(tmp_path):
    path = tmp_path / "clips" / "a.flac"
    write_clip(path, np.zeros(8000, dtype=np.int16))
    assert speak(Utterance(path, "never read", voice="no such voice", seed=0)) == 0.5
    assert [file.name for file in path.parent.iterdir()] == ["a.flac"]


def test_a_clip_that_cannot_be_written_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="dtype must be one of"):
        write_clip(tmp_path / "clips" / "a.flac", np.zeros(8, dtype=np.complex64))
    assert list(tmp_path.iterdir()) == []


def test_a_broken_clip_counts_as_missing(tmp_path):
    (tmp_path / "a.flac").write_bytes(b"fLaC")
    assert clip_seconds(tmp_path / "a.flac") is None
    assert clip_seconds(tmp_path / "absent.flac") is None
