"""CTC forced alignment against every path that there is."""

import itertools

import numpy as np
import pytest

from soundwave_hf.modeling import alignment_soundwave
from soundwave_hf.modeling.alignment_soundwave import align_labels


BLANK = -1


def random_scores(rng: np.random.Generator, frames: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities of labels `(frames, columns)` and of the blank `(frames,)`."""
    scores = 2 * rng.standard_normal((frames, columns + 1))
    scores -= np.log(np.exp(scores).sum(axis=1, keepdims=True))
    return scores[:, 1:], scores[:, 0]


def collapse(path: tuple[int, ...]) -> tuple[list[int], list[bool]]:
    """The labels of a path, and whether a blank stands before each of them and at the end."""
    labels, gaps, blank, before = [], [], False, BLANK
    for label in path:
        if label == BLANK:
            blank = True
        elif label != before or blank:
            labels.append(label)
            gaps.append(blank)
            blank = False
        before = label
    return labels, [*gaps, blank]


def best_of_all_paths(log_probs, blank_log_probs, words: list[list[int]], cost: float | None) -> float:
    """Every path, and every choice of words that are left out where the path has a blank."""
    frames, columns = log_probs.shape
    best = -np.inf
    for path in itertools.product(range(BLANK, columns), repeat=frames):
        labels, gaps = collapse(path)
        score = sum(blank_log_probs[t] if label == BLANK else log_probs[t, label] for t, label in enumerate(path))
        for kept in itertools.product([True, False], repeat=len(words)) if cost is not None else [[True] * len(words)]:
            said, fits, lost = [], True, 0.0
            for word, keeps in zip(words, kept, strict=True):
                if keeps:
                    said += word
                else:
                    fits = fits and len(said) < len(gaps) and gaps[len(said)]
                    lost += cost * len(word)
            if fits and said == labels:
                best = max(best, score + lost)
    return best


@pytest.mark.parametrize("cost", [None, -0.5, -3.0])
def test_the_path_found_is_the_best_of_all_paths(cost):
    rng = np.random.default_rng(0)
    num_impossible = 0
    for _ in range(60):
        lengths = rng.integers(1, 3, size=rng.integers(0, 4)).tolist()
        words = [rng.integers(0, 2, size=length).tolist() for length in lengths]
        log_probs, blank = random_scores(rng, int(rng.integers(1, 6)), 2)
        places = np.array([label for word in words for label in word], dtype=int)
        best = best_of_all_paths(log_probs, blank, words, cost)
        found = align_labels(log_probs, blank, places, lengths, cost)
        if found is None:
            num_impossible += 1
            assert best == -np.inf
            continue
        lost = sum(cost * length for length, out in zip(lengths, found.left_out, strict=True) if out)
        assert found.frame_log_probs.sum() + lost == pytest.approx(best)
    assert (num_impossible > 0) == (cost is None)


def test_labels_stand_at_their_frames():
    log_probs = np.log(np.array([[0.1, 0.1], [0.8, 0.1], [0.1, 0.1], [0.1, 0.7], [0.1, 0.7]]))
    blank = np.log(np.array([0.8, 0.1, 0.8, 0.2, 0.2]))
    found = align_labels(log_probs, blank, np.array([0, 1]))
    assert found.first_frames.tolist() == [1, 3] and found.last_frames.tolist() == [1, 4]
    assert np.exp(found.frame_log_probs) == pytest.approx([0.8, 0.8, 0.8, 0.7, 0.7])


def test_equal_labels_need_a_blank_between_them():
    log_probs, blank = np.log(np.full((3, 1), 0.9)), np.log(np.full(3, 0.1))
    assert align_labels(log_probs[:2], blank[:2], np.array([0, 0])) is None
    found = align_labels(log_probs, blank, np.array([0, 0]))
    assert found.first_frames.tolist() == [0, 2] and found.last_frames.tolist() == [0, 2]


def test_a_word_without_frames_is_left_out_and_the_others_stay():
    # Three frames: label 0, blank, label 2. The word of label 1 has no frame, though there is one for it.
    log_probs = np.log(np.array([[0.98, 1e-9, 1e-9], [1e-9, 1e-9, 1e-9], [1e-9, 1e-9, 0.98]]))
    blank = np.log(np.array([0.02, 1.0, 0.02]))
    found = align_labels(log_probs, blank, np.array([0, 1, 2]), [1, 1, 1], -15.0)
    assert found.left_out.tolist() == [False, True, False]
    assert found.first_frames.tolist() == [0, -1, 2]
    forced = align_labels(log_probs, blank, np.array([0, 1, 2]), [1, 1, 1])
    assert forced.first_frames.tolist() == [0, 1, 2] and not forced.left_out.any()


def test_more_labels_than_frames_leave_words_out_instead_of_failing():
    log_probs, blank = random_scores(np.random.default_rng(1), 4, 3)
    places = np.tile([0, 1, 2], 20)
    assert align_labels(log_probs, blank, places, [3] * 20) is None
    found = align_labels(log_probs, blank, places, [3] * 20, -15.0)
    assert found.left_out.sum() == 19 and (found.first_frames >= 0).sum() == 3


def test_blocks_of_frames_change_nothing(monkeypatch):
    rng = np.random.default_rng(2)
    log_probs, blank = random_scores(rng, 20, 5)
    places, lengths = rng.integers(0, 5, size=14), [2] * 7
    whole = align_labels(log_probs, blank, places, lengths, -1.0)
    monkeypatch.setattr(alignment_soundwave, "FRAMES_AT_ONCE", 3)
    blocks = align_labels(log_probs, blank, places, lengths, -1.0)
    assert whole.left_out.any() and not whole.left_out.all()
    for name in ("first_frames", "last_frames", "left_out", "frame_log_probs"):
        assert np.array_equal(getattr(whole, name), getattr(blocks, name))


def test_a_text_of_nothing_is_blank_all_along():
    log_probs, blank = random_scores(np.random.default_rng(3), 4, 2)
    found = align_labels(log_probs, blank, np.array([], dtype=int), [])
    assert np.array_equal(found.frame_log_probs, blank) and len(found.first_frames) == 0


@pytest.mark.parametrize("lengths", [[1], [2, 0], [3]])
def test_lengths_that_are_not_those_of_the_labels_are_refused(lengths):
    log_probs, blank = random_scores(np.random.default_rng(4), 4, 2)
    with pytest.raises(ValueError, match="there are 2 labels: give each word the number of its labels"):
        align_labels(log_probs, blank, np.array([0, 1]), lengths)
