"""CTC scores of texts against every path, written out."""

import itertools
import math

import pytest
import torch

from soundwave_hf.modeling import ctc_scores_soundwave
from soundwave_hf.modeling.ctc_scores_soundwave import CTCFrames, CTCTexts, score_frames
from soundwave_hf.modeling.ctc_soundwave import large_vocabulary_ctc


# Labels by their place; the last is the blank.
BYTES = [b" a", b"a", b" ab", b"b", b" ", b"ba", b""]
BLANK = 6


def frames_of(num_frames: int, seed: int = 0) -> tuple[CTCFrames, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(1, num_frames, 5, generator=generator)
    weight = torch.randn(len(BYTES), 5, generator=generator)
    (frames,) = score_frames(states, torch.tensor([num_frames]), weight, BLANK)
    return frames, (states[0] @ weight.T).log_softmax(dim=-1)


def brute_force(log_probs: torch.Tensor) -> dict[bytes, list[tuple[tuple, float]]]:
    """Text -> its label sequences with their probabilities, from all paths."""
    sequences = {}
    for path in itertools.product(range(len(BYTES)), repeat=len(log_probs)):
        labels = tuple(label for label, _ in itertools.groupby(path) if label != BLANK)
        probability = math.exp(sum(log_probs[frame, label].item() for frame, label in enumerate(path)))
        sequences[labels] = sequences.get(labels, 0.0) + probability
    texts = {}
    for labels, probability in sequences.items():
        texts.setdefault(b"".join(BYTES[label] for label in labels), []).append((labels, probability))
    return texts


@pytest.mark.parametrize("seed", range(3))
def test_texts_have_the_summed_probability_of_all_paths_that_write_them(seed):
    frames, log_probs = frames_of(5, seed)
    texts = brute_force(log_probs.double())
    scores = CTCTexts(frames, BYTES, [1, 3, 4])
    assert math.isclose(sum(p for found in texts.values() for _, p in found), 1.0, abs_tol=1e-6)
    for text in (b"", b" a", b" ab", b" aba", b" ab a", b"aa", b" a a", b"bb"):
        whole = sum(probability for _, probability in texts.get(text, []))
        assert math.exp(scores.whole(text)) == pytest.approx(whole, rel=1e-4), text
        beginnings = (scores.whole(text[:end]) for end in range(len(text) + 1))
        assert scores.ended(text) == max(beginnings), text
        begun = sum(p for written, found in texts.items() if written.startswith(text) for _, p in found)
        assert math.exp(scores.prefix(text)) == pytest.approx(begun, rel=1e-4), text


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("num_frames", [1, 2, 3])
def test_texts_that_need_every_frame_or_more_have_a_number_too(num_frames):
    """A repeated label needs a blank between: "bb" has three frames or none."""
    frames, log_probs = frames_of(num_frames)
    texts = brute_force(log_probs.double())
    scores = CTCTexts(frames, BYTES, [1, 3, 4])
    for text in (b"bb", b"bbb", b" a a", b"aa", b"bab", b" ab ab"):
        begun = sum(p for written, found in texts.items() if written.startswith(text) for _, p in found)
        assert math.exp(scores.prefix(text)) == pytest.approx(begun, rel=1e-4, abs=1e-12), text


def test_continuations_are_ordered_by_how_likely_they_follow():
    frames, log_probs = frames_of(4, seed=1)
    scores = CTCTexts(frames, BYTES, [1, 3, 4])
    found = scores.continuations(b" a", 10)
    # Labels that the text may end in, or that follow it: the rest of " ab" is "b", as the label "b" is.
    assert set(found) == {b"b", b" a", b"a", b" ab", b" ", b"ba"}
    assert scores.prefix(b" a" + found[0]) >= max(scores.prefix(b" a" + rest) for rest in found) - 1.0


def test_a_label_beyond_the_tokenizer_has_no_text():
    frames, _ = frames_of(4, seed=1)
    fewer, without = CTCTexts(frames, BYTES[:4], [1, 3]), CTCTexts(frames, [*BYTES[:4], b"", b"", b""], [1, 3])
    assert fewer.texts == without.texts
    assert fewer.prefix(b" a") == without.prefix(b" a")


def test_columns_blank_and_best_labels_are_those_of_a_softmax_over_all():
    frames, log_probs = frames_of(7)
    torch.testing.assert_close(frames.columns([0, 3, 5]), log_probs[:, [0, 3, 5]])
    torch.testing.assert_close(frames.blank_log_probs, log_probs[:, BLANK])
    torch.testing.assert_close(frames.entropy, -(log_probs.exp() * log_probs).sum(dim=1))
    values, ids = log_probs[:, :BLANK].topk(6)
    torch.testing.assert_close(frames.top_log_probs[:, :6], values)
    assert torch.equal(frames.top_ids[:, :6], ids)


def test_clips_of_a_batch_score_as_each_alone_and_as_the_loss_does():
    generator = torch.Generator().manual_seed(3)
    states, lengths = torch.randn(2, 9, 5, generator=generator), torch.tensor([9, 4])
    weight, row, bias = torch.randn(50, 5, generator=generator), torch.randn(5, generator=generator), torch.ones(1)
    frames = score_frames(states, lengths, weight, 49, row, bias, top=4)
    assert [len(clip) for clip in frames] == [9, 4]
    result = large_vocabulary_ctc(states, lengths, weight, 49, row, bias, output_blank_log_probs=True)
    for clip, length in enumerate(lengths.tolist()):
        torch.testing.assert_close(frames[clip].blank_log_probs, result.blank_log_probs[clip, :length])
        (alone,) = score_frames(
            states[clip : clip + 1, :length], lengths[clip : clip + 1], weight, 49, row, bias, top=4
        )
        torch.testing.assert_close(alone.top_log_probs, frames[clip].top_log_probs)
        torch.testing.assert_close(alone.entropy, frames[clip].entropy)
    texts = [bytes([65 + label]) for label in range(49)] + [b""]
    labels = large_vocabulary_ctc(states, lengths, weight, 49, row, bias, torch.tensor([[3, 3, 7], [5, -100, -100]]))
    for clip, text in enumerate((b"DDH", b"F")):
        scores = CTCTexts(frames[clip], texts, range(49))
        assert scores.whole(text) == pytest.approx(-labels.losses[clip].item(), rel=1e-5)


def test_a_long_clip_and_an_impossible_text_have_finite_and_no_probability():
    frames, _ = frames_of(3)
    scores = CTCTexts(frames, BYTES, [1, 3, 4])
    assert scores.whole(b" a a a a") == -math.inf  # four labels at least, in three frames
    assert scores.prefix(b"c") == -math.inf


@pytest.mark.parametrize("cached", [0, 40, 300])
def test_scores_do_not_depend_on_how_many_are_cached(monkeypatch, cached):
    frames, _ = frames_of(10)
    texts = ["".join(letters).encode() for letters in itertools.product((" a", "b", "a b", "ab"), repeat=4)]

    def scores():
        clip = CTCTexts(frames, BYTES, [1, 3, 4])
        found = [
            (clip.prefix(text), clip.whole(text), clip.ended(text), clip.continuations(text, 3)) for text in texts
        ]
        return clip, found

    whole, expected = scores()
    monkeypatch.setattr(ctc_scores_soundwave, "CACHED_VALUES", cached)
    clip, found = scores()
    assert found == expected
    longest = max(map(len, texts))
    assert len(clip.spelt) <= max(cached // 10, 2 * longest) + longest < len(whole.spelt)
    assert len(clip.columns) <= max(cached // 10, 1)
