"""The pure parts of the benchmarks of word times and of invented words."""

import random

import numpy as np
import pytest

from benchmarks import hallucinations, word_times


def test_a_corruption_says_which_places_are_invented():
    words, pool = list("abcd"), ["x"]
    for seed in range(20):
        rng = random.Random(seed)
        text, [[place]] = hallucinations.corrupt("insert", words, pool, rng)
        assert text[place] == "x" and text[:place] + text[place + 1 :] == words
        text, [[place]] = hallucinations.corrupt("swap", words, pool, rng)
        assert text[place] == "x" and len(text) == 4 and text.count("x") == 1
        text, places = hallucinations.corrupt("loop", words, pool, rng)
        extra = {copy for copies in places for copy in copies[1:]}
        assert [word for place, word in enumerate(text) if place not in extra] == words
        assert all(len({text[copy] for copy in copies}) == 1 and len(copies) > 1 for copies in places)
    assert hallucinations.corrupt("true", words, pool, rng) == (words, [])


def test_auroc_is_the_share_of_pairs_in_the_right_order():
    # Of the four pairs (-9, -1), (-9, -5), (-5, -1), (-5, -5), three are right and one is equal.
    assert hallucinations.auroc(np.array([-9.0, -5.0]), np.array([-1.0, -5.0])) == pytest.approx(3.5 / 4)


def test_phones_are_joined_to_words(monkeypatch):
    monkeypatch.setattr(word_times, "count_phones", {"he": 2, "was.": 3}.__getitem__)
    phones = [("pau", 0.2), ("hh", 0.3), ("iy", 0.4), ("pau", 0.6), ("w", 0.7), ("aa", 0.8), ("z", 0.9), ("pau", 1.0)]
    assert word_times.true_times("he was.", phones) == [(0.2, 0.4), (0.6, 0.9)]
    assert word_times.true_times("he was.", phones[:-2]) is None  # a phone is missing
    moved = [*phones[:5], ("pau", 0.75), *phones[5:]]
    assert word_times.true_times("he was.", moved) is None  # silence within a word


def test_a_clip_is_loud_where_it_is_heard():
    samples = np.concatenate([np.zeros(1600), 0.5 * np.ones(3200), 0.001 * np.ones(1600)])
    assert word_times.loud_seconds(samples) == pytest.approx((0.1, 0.3))
