"""Near duplicates and leaks: recordings that were changed are found again, and others are not."""

import io

import numpy as np
import pytest
import soundfile

from soundwave_hf.data.clean.duplicates import (
    AudioIndex,
    Comparisons,
    HeldOutTexts,
    LeakedAudio,
    NearDuplicateText,
    TextIndex,
    count_words,
    jaccard,
    plain_text,
    shingles,
    text_keys,
)
from soundwave_hf.data.clean.fingerprint import PEAK, index_keys, landmarks, peaks_of, shared_landmarks
from soundwave_hf.processing.audio_soundwave import load_clip


RATE = 16_000


def voice(seed: int, seconds: float = 3.0) -> np.ndarray:
    """Three tones that change twenty times a second."""
    rng, length = np.random.default_rng(seed), int(seconds * RATE)
    pitches = np.repeat(rng.uniform(200, 3500, (3, length // 800 + 1)), 800, axis=1)[:, :length]
    samples = np.sin(2 * np.pi * np.cumsum(pitches, axis=1) / RATE).sum(axis=0)
    return (0.4 * samples / np.abs(samples).max()).astype(np.float32)


def encoded(samples: np.ndarray, kind: str, subtype: str) -> np.ndarray:
    file = io.BytesIO()
    soundfile.write(file, samples, RATE, format=kind, subtype=subtype)
    return load_clip(file.getvalue(), "The copy", None, RATE, 0.0)


def noisy(samples: np.ndarray) -> np.ndarray:
    """White noise at 20 dB below the mean power."""
    noise = np.random.default_rng(1).normal(0, np.sqrt(np.mean(samples**2)) / 10, len(samples))
    return samples + noise.astype(np.float32)


CHANGES = {
    "flac": lambda samples: encoded(samples, "FLAC", "PCM_16"),
    "opus": lambda samples: encoded(samples, "OGG", "OPUS"),
    "mp3": lambda samples: encoded(samples, "MP3", "MPEG_LAYER_III"),
    "0.3 s cut off": lambda samples: samples[4800:],
    "6 dB louder": lambda samples: 2 * samples,
    "noise": noisy,
    "inside a longer recording": lambda samples: np.concatenate([voice(50, 2.0), samples, voice(51, 2.0)]),
}


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """Twenty recordings."""
    index = AudioIndex(tmp_path_factory.mktemp("index") / "audio.sqlite")
    for seed in range(20):
        index.put(f"clip {seed}", peaks_of(voice(seed)).tobytes())
    yield index
    index.close()


# ---- recordings ----


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_recording_is_found_among_others(index, change):
    for seed in (0, 7):
        name, share = index.find(peaks_of(CHANGES[change](voice(seed))).tobytes(), LeakedAudio().shared)
        assert name == f"clip {seed}" and share >= 2 * LeakedAudio().shared


def test_another_recording_is_not_found(index):
    for seed in range(100, 110):
        assert index.find(peaks_of(voice(seed)).tobytes(), LeakedAudio().shared)[0] is None


@pytest.mark.parametrize("shared_seconds", [1.0, 2.0])
def test_two_sentences_with_the_same_beginning_are_two_recordings(index, shared_seconds):
    """Of three equal parts of the clip the last is another one, as in synthetic speech with a fixed first phrase."""
    begin = voice(3)[: int(shared_seconds * RATE)]
    other = np.concatenate([begin, voice(99, 3.0 - shared_seconds)])
    assert index.find(peaks_of(other).tobytes(), LeakedAudio().shared)[0] is None


@pytest.mark.parametrize(
    "samples",
    [np.zeros(RATE), np.zeros(10), np.sin(np.arange(RATE) / 5), np.eye(1, RATE)[0]],
    ids=["0", "short", "tone", "click"],
)
def test_a_clip_without_enough_landmarks_is_like_no_other(tmp_path, samples):
    index = AudioIndex(tmp_path / "audio.sqlite")
    peaks = peaks_of(samples.astype(np.float32)).tobytes()
    index.put("itself", peaks)
    assert index.find(peaks, 0.1) == (None, 0.0)
    index.close()


def test_landmarks_are_pairs_of_peaks_with_rounded_places():
    peaks = np.array([(0, 10), (16, 21), (200, 4)], PEAK)
    times, codes = landmarks(peaks)  # the third peak is more than 127 frames after the others
    assert times.tolist() == [0] and codes.tolist() == [(5 * 128 + 10) * 64 + 2]
    assert index_keys(peaks).size == 0  # a key needs three peaks that are close


def test_peaks_of_a_long_recording_are_those_of_its_parts():
    """The spectrogram is made a minute at a time, and peaks near the seam are found all the same."""
    long = np.concatenate([voice(1, 59.0), voice(2, 3.0), voice(3, 2.0)])
    assert shared_landmarks(peaks_of(voice(2, 3.0)), peaks_of(long)) > 0.5


def test_a_recording_shares_all_its_landmarks_with_itself():
    peaks = peaks_of(voice(4))
    assert shared_landmarks(peaks, peaks) == 1.0


# ---- texts ----


def test_words_are_compared_without_case_and_marks():
    assert plain_text("Don’t STOP: 5 cafés!") == "don't stop 5 cafés"
    assert plain_text("你好, world") == "你 好 world"
    assert plain_text("...") == ""
    assert count_words(["你", "好", "world"]) == 2.0


def test_similarity_is_that_of_runs_of_five_characters():
    assert len(shingles(["abcdefg"])) == 3  # abcde, bcdef, cdefg
    assert jaccard(["abcdefg"], ["abcdefg"]) == 1.0
    assert jaccard(["abcdefg"], ["abcdefh"]) == 2 / 4
    assert jaccard(["ab"], ["ab"]) == 1.0  # shorter than a run


def test_equal_texts_share_every_band_and_others_none():
    words = ["the", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog"]
    assert (text_keys(words, 0) == text_keys(list(words), 0)).all() and len(set(text_keys(words, 0))) == 25
    assert not set(text_keys(words, 0)) & set(text_keys(["an", "entirely", "different", "sentence", "of", "words"], 0))
    assert not set(text_keys(words, 0)) & set(text_keys(words, 1))  # the seed changes the hash functions


def test_near_duplicate_texts_are_found_above_the_threshold(tmp_path):
    index = TextIndex(tmp_path / "texts.sqlite", seed=0)
    long = "please transfer five hundred dollars from my savings account to my checking account today"
    index.put("first", long)
    near = long.replace("five", "nine")
    similarity = jaccard(long.split(), near.split())
    assert 0.8 < similarity < 0.9
    assert index.find(near, 0.8) == ("first", similarity)
    assert index.find(near, 0.9)[0] is None
    assert index.find("please close my savings account", 0.8)[0] is None
    index.close()


HELD = HeldOutTexts(
    [
        ("row 1", "the cat sat on the mat"),
        ("row 2", "yes"),
        ("row 3", "one two three four"),
        ("row 4", "你 好 世 界 再 见 朋 友"),
    ],
    4,
)


@pytest.mark.parametrize(
    "text, found",
    [
        ("The cat sat on the mat.", "row 1"),
        ("He said: the cat sat on the mat, again", "row 1"),  # holds it
        ("cat sat on the", "row 1"),  # stands in it
        ("The cat sat on a mat.", None),
        ("sat on the", None),  # three words
        ("yes", None),  # a common word is no leak
        ("yes yes yes yes", None),
        ("count one two three four five", "row 3"),
        ("one two three fourteen", None),
        ("the caterpillar sat on the mat", None),
        ("他说你好世界再见朋友吧", "row 4"),
        ("你好世界", None),  # four characters count as two words
    ],
)
def test_a_text_leaks_if_it_is_or_holds_or_stands_in_a_whole_one_of_four_words(text, found):
    assert HELD.find(plain_text(text)) == found


# ---- settings ----


@pytest.mark.parametrize("share", [0, 1.5, -0.1])
def test_a_share_outside_of_its_range_is_refused(share):
    with pytest.raises(ValueError, match="`leaked_audio` has `shared: .*from 0.01 to 1"):
        LeakedAudio(share)


@pytest.mark.parametrize("words", [2.5, True, "4"])
def test_a_number_of_words_that_is_no_whole_number_is_refused(words):
    with pytest.raises(TypeError, match="`near_duplicate_text` has `words: .*whole number"):
        NearDuplicateText(0.8, words=words)


def test_a_comparison_that_is_given_twice_is_refused():
    with pytest.raises(ValueError, match="`leaked_audio` is given twice"):
        Comparisons.of([LeakedAudio(), LeakedAudio(0.2)])
