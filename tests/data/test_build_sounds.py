"""Sounds and speakers are spliced; numbers worked out by hand."""

import numpy as np
import pytest
import soundfile

from soundwave_hf.data.build.clips import RATE, active_level, at_level, join
from soundwave_hf.data.build.conversations import conversation_answer, splice_speakers
from soundwave_hf.data.build.draws import NotBuilt
from soundwave_hf.data.build.sounds import loudest_window, sound_token, splice_sound
from tests.data.build_rows import clip, tone


def test_the_loudest_window_is_the_one_with_most_energy():
    # At 1 Hz: windows of 3 samples have the energies 0+0+1, 0+1+4, 1+4+1, 4+1+0.
    samples = np.array([0, 0, 1, 2, 1, 0], np.float32)
    assert loudest_window(samples, 1, 3).tolist() == [1, 2, 1]


def test_of_equal_windows_the_first_is_taken():
    assert loudest_window(np.array([1, 1, 0, 1, 1], np.float32), 1, 2).tolist() == [1, 1]
    assert loudest_window(np.array([5, 0, 0, 5], np.float32), 1, 1).tolist() == [5]


@pytest.mark.parametrize("seconds", [0.5, 3.0])
def test_a_clip_of_up_to_three_seconds_is_kept_whole(seconds):
    samples = tone(seconds)
    assert loudest_window(samples, RATE) is samples


def test_a_longer_clip_is_cut_to_three_seconds_at_its_loud_part():
    samples = np.concatenate([tone(4, 0.01), tone(3, 0.2), tone(2, 0.01)])
    cut = loudest_window(samples, RATE)
    assert len(cut) == 3 * RATE and np.array_equal(cut, samples[4 * RATE : 7 * RATE])


@pytest.mark.parametrize(
    ("label", "token"),
    [
        ("Throat clearing", "<throat_clearing>"),
        ("throat_clearing", "<throat_clearing>"),
        ("<cough>", "<cough>"),
        (" Dog-bark ", "<dog_bark>"),
        ("笑い", "<笑い>"),
    ],
)
def test_a_label_becomes_a_token(label, token):
    assert sound_token(label) == token


@pytest.mark.parametrize("label", ["", "  ", "<>", "12", None, 5])
def test_a_label_without_words_is_refused(label):
    with pytest.raises(NotBuilt, match="expected words"):
        sound_token(label)


def test_a_sound_stands_between_two_utterances():
    first = {"audio": clip(1.0), "text": "Hello there.", "source": "web"}
    sound = {"audio": clip(5.0, 0.01), "label": "throat clearing"}
    made = splice_sound(first, sound, {"audio": clip(2.0, 0.3), "text": "Good day."})
    assert made["text"] == "Hello there. <throat_clearing> Good day." and made["seconds"] == 6.0
    assert made["source"] == "web" and made["label"] == "throat clearing"
    samples = made["audio"]["array"]
    for start, end in ((0, 1), (1, 4), (4, 6)):  # all at the level of the first utterance
        assert active_level(samples[start * RATE : end * RATE]) == pytest.approx(0.1, rel=0.02)


def test_other_sampling_rates_are_resampled():
    first = {"audio": clip(1.0, rate=8_000), "text": "a"}
    sound, second = {"audio": clip(0.5, rate=44_100), "label": "cough"}, {"audio": clip(1.0, rate=48_000), "text": "b"}
    made = splice_sound(first, sound, second)
    assert made["audio"]["sampling_rate"] == RATE and len(made["audio"]["array"]) == 2.5 * RATE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"audio": {"array": np.zeros(RATE, np.float32), "sampling_rate": RATE}}, "is silent"),
        ({"audio": {"array": np.zeros(0, np.float32), "sampling_rate": RATE}}, "empty"),
        ({"audio": None}, r"has 0 clips; expected one in `audio`. Its columns are \['audio', 'label'\]"),
        ({"audio": "no-such-file.wav"}, "no-such-file.wav"),
        ({"label": None}, "has `label` None"),
    ],
)
def test_a_sound_that_cannot_be_used_is_named(change, message):
    speech = {"audio": clip(1.0), "text": "a"}
    with pytest.raises(NotBuilt, match=message):
        splice_sound(speech, {"audio": clip(1.0), "label": "cough"} | change, speech)


def test_an_utterance_without_a_text_is_named():
    speech = {"audio": clip(1.0), "text": "a"}
    with pytest.raises(
        NotBuilt,
        match=r"the second utterance of A row has `text` None; expected a transcript. Its columns are \['audio'\]",
    ):
        splice_sound(speech, {"audio": clip(1.0), "label": "cough"}, {"audio": clip(1.0)})


def test_pauses_do_not_count_for_the_level():
    speech = np.concatenate([tone(1, 0.2), np.zeros(RATE * 3, np.float32), tone(1, 0.2)])
    assert active_level(speech) == pytest.approx(0.2, rel=0.02)
    assert active_level(at_level(speech, 0.05)) == pytest.approx(0.05, rel=0.02)


def test_a_quiet_clip_is_not_amplified_beyond_full_scale():
    assert np.abs(at_level(tone(1, 0.01), 5.0)).max() == pytest.approx(0.99)


def test_a_negative_pause_mixes_two_clips():
    ones = np.full(RATE, 0.1, np.float32)
    mixed, spans = join([ones, ones], [-0.25])
    assert len(mixed) == 1.75 * RATE and spans == [(0.0, 1.0), (0.75, 1.75)]
    assert mixed[RATE // 2] == pytest.approx(0.1) and mixed[round(0.9 * RATE)] == pytest.approx(0.2)


def test_a_pause_is_silence():
    mixed, spans = join([tone(1), tone(1)], [0.5])
    assert spans == [(0.0, 1.0), (1.5, 2.5)] and not mixed[RATE : round(1.5 * RATE)].any()


def test_a_clip_cannot_begin_before_the_one_before_it():
    with pytest.raises(ValueError, match="pause of -1.5 s after a clip of 1.00 s"):
        join([tone(1), tone(1)], [-1.5])


def test_a_conversation_says_who_says_what():
    rows = [
        {"audio": clip(1.0, 0.1), "text": "Hello.", "speaker": "ann"},
        {"audio": clip(2.0, 0.3), "text": "How are you", "speaker": "bob"},
        {"audio": clip(1.0, 0.02), "text": "Fine!", "speaker": 3},
    ]
    made = splice_speakers(rows, [0.5, -0.25], "Who says what?")
    assert made["answer"] == (
        "The first speaker says: Hello. The second speaker says: How are you. The third speaker says: Fine!"
    )
    assert made["text"] == "Hello. How are you Fine!" and made["question"] == "Who says what?"
    assert made["speakers"] == 3 and made["seconds"] == 1 + 0.5 + 2 - 0.25 + 1
    assert [(turn["start"], turn["end"]) for turn in made["turns"]] == [(0, 1), (1.5, 3.5), (3.25, 4.25)]
    samples = made["audio"]["array"]
    assert active_level(samples[:RATE]) == pytest.approx(active_level(samples[2 * RATE : 3 * RATE]), rel=0.02)


def test_texts_of_scripts_without_spaces_are_joined_without_one():
    rows = [{"audio": clip(1.0), "text": text, "speaker": text} for text in ("早上好", "你好")]
    assert splice_speakers(rows, [0.0])["text"] == "早上好你好"


@pytest.mark.parametrize(
    ("second", "pause", "message"),
    [
        ({"speaker": "ann"}, 0.0, r"would have the speakers \['ann', 'ann'\]"),
        ({"speaker": None}, 0.0, "has `speaker` None"),
        ({"speaker": "bob"}, -0.6, "an overlap of 0.60 s, more than half of an utterance of 1.00 s"),
    ],
)
def test_a_conversation_that_cannot_be_made_says_why(second, pause, message):
    row = {"audio": clip(1.0), "text": "a", "speaker": "ann"}
    with pytest.raises(NotBuilt, match=message):
        splice_speakers([row, row | second], [pause])


def test_a_conversation_has_at_least_two_speakers():
    with pytest.raises(ValueError, match="1 utterances and 0 pauses arrived; expected 2 to 8"):
        splice_speakers([{"audio": clip(1.0), "text": "a", "speaker": "ann"}], [])


def test_an_unfinished_text_gets_a_full_stop():
    assert conversation_answer(["no mark", "is it?"]) == (
        "The first speaker says: no mark. The second speaker says: is it?"
    )


def test_a_file_of_two_channels_becomes_one(tmp_path):
    soundfile.write(tmp_path / "stereo.wav", np.stack([tone(1, 0.2), tone(1, 0.2)], axis=1), RATE)
    speech = {"audio": str(tmp_path / "stereo.wav"), "text": "a"}
    made = splice_sound(speech, {"audio": clip(1.0), "label": "cough"}, speech)
    assert made["audio"]["array"].ndim == 1 and made["seconds"] == 3.0
