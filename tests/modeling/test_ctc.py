"""CTC over a large vocabulary, against PyTorch's own over all scores, in float64."""

import math

import pytest
import torch
from torch import nn

from soundwave_hf.modeling.ctc_soundwave import large_vocabulary_ctc


VOCABULARY, WIDTH, BLANK = 11, 6, 4
LENGTHS = torch.tensor([9, 5, 2, 1])
TARGETS = torch.tensor(
    [
        [3, 3, 0, 10],  # a repeat, which needs a blank inside
        [7, 7, 7, -100],  # three tokens and two blanks: exactly five frames
        [1, 2, 3, -100],  # three tokens do not fit into two frames
        [-100, -100, -100, -100],  # nothing said
    ]
)


def problem(free_head: bool = True, seed: int = 0) -> dict:
    """Frames, weights and, for a tied head, a blank of its own: leaves in float64."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"frames": (4, 9, WIDTH), "token_weight": (VOCABULARY, WIDTH)}
    if not free_head:
        shapes |= {"blank_weight": (WIDTH,), "blank_bias": (1,)}
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for name, shape in shapes.items()
    }


def plain_scores(frames, token_weight, blank_weight=None, blank_bias=None):
    scores = frames @ token_weight.T
    if blank_weight is None:
        return scores
    is_blank = torch.arange(VOCABULARY) == BLANK
    return torch.where(is_blank, (frames @ blank_weight + blank_bias)[..., None], scores)


def plain_ctc(leaves: dict, targets=TARGETS, lengths=LENGTHS):
    """The same losses from a score for every frame and token."""
    log_probs = plain_scores(**leaves).log_softmax(dim=-1).transpose(0, 1)
    return nn.functional.ctc_loss(
        log_probs,
        targets.clamp(min=0),
        lengths,
        targets.ne(-100).sum(dim=1),
        blank=BLANK,
        reduction="none",
        zero_infinity=True,
    )


def gradients(losses: torch.Tensor, leaves: dict) -> dict:
    """Gradients of the losses, each weighted otherwise."""
    weights = torch.tensor([1.0, -0.5, 2.0, 0.3], dtype=torch.float64)
    trained = {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}
    found = torch.autograd.grad((losses * weights).sum(), trained.values())
    return dict(zip(trained, found, strict=True))


def assert_equal_gradients(found: dict, expected: dict):
    assert found.keys() == expected.keys()
    for name in expected:
        scale = expected[name].abs().max()
        assert (found[name] - expected[name]).abs().max() <= 1e-9 * scale, name


def test_two_frames_and_one_token_by_hand():
    # All scores 0, so each of 3 labels has probability 1/3. "a": the paths aa, a-, -a, 3/9. "ab": one path, 1/9.
    # "aa" needs a blank between: three frames.
    frames, weight = torch.zeros(3, 2, 4), torch.zeros(3, 4)
    targets = torch.tensor([[0, -100], [0, 1], [0, 0]])
    result = large_vocabulary_ctc(frames, torch.tensor([2, 2, 2]), weight, blank_id=2, targets=targets)
    torch.testing.assert_close(result.losses, torch.tensor([math.log(3), math.log(9), 0.0]))
    assert result.feasible.tolist() == [True, True, False]


# 11 tokens: chunks of 4 leave a rest of 3, those of 1 leave the blank alone in one, 5 puts the blank at a chunk's end.
@pytest.mark.parametrize("chunk_size", [1, 4, 5, 11, 8192])
@pytest.mark.parametrize("free_head", [True, False])
def test_losses_and_gradients_are_those_of_all_scores(free_head, chunk_size):
    leaves = problem(free_head)
    expected = plain_ctc(leaves)
    result = large_vocabulary_ctc(
        **leaves, frame_lengths=LENGTHS, blank_id=BLANK, targets=TARGETS, chunk_size=chunk_size
    )
    torch.testing.assert_close(result.losses, expected, rtol=1e-9, atol=0)
    assert_equal_gradients(gradients(result.losses, leaves), gradients(expected, leaves))


def test_targets_that_do_not_fit_are_marked_and_leave_no_gradient():
    leaves = problem()
    result = large_vocabulary_ctc(**leaves, frame_lengths=LENGTHS, blank_id=BLANK, targets=TARGETS)
    assert result.feasible.tolist() == [True, True, False, True]
    assert result.losses[2] == 0
    frames_grad = gradients(result.losses, leaves)["frames"]
    assert torch.isfinite(frames_grad).all()
    assert frames_grad[2].abs().max() == 0


def test_a_frozen_head_gets_no_gradient_and_changes_none_of_the_frames():
    leaves, frozen = problem(), problem()
    frozen["token_weight"].requires_grad_(False)
    found = large_vocabulary_ctc(**frozen, frame_lengths=LENGTHS, blank_id=BLANK, targets=TARGETS, chunk_size=4)
    found_gradients = gradients(found.losses, frozen)
    assert_equal_gradients(found_gradients, {"frames": gradients(plain_ctc(leaves), leaves)["frames"]})


def test_frozen_frames_leave_the_heads_gradient():
    leaves, frozen = problem(), problem()
    frozen["frames"].requires_grad_(False)
    found = large_vocabulary_ctc(**frozen, frame_lengths=LENGTHS, blank_id=BLANK, targets=TARGETS, chunk_size=4)
    expected = {"token_weight": gradients(plain_ctc(leaves), leaves)["token_weight"]}
    assert_equal_gradients(gradients(found.losses, frozen), expected)


def test_the_tied_blank_reads_nothing_of_the_tokens_row_with_its_id():
    leaves = problem(free_head=False)
    result = large_vocabulary_ctc(**leaves, frame_lengths=LENGTHS, blank_id=BLANK, targets=TARGETS)
    assert gradients(result.losses, leaves)["token_weight"][BLANK].abs().max() == 0


def test_padding_frames_count_for_nothing():
    leaves, noisy = problem(), problem()
    padding = torch.arange(9)[None] >= LENGTHS[:, None]
    noisy["frames"] = torch.where(padding[..., None], 1e3, noisy["frames"].detach()).requires_grad_()
    expected = large_vocabulary_ctc(**leaves, frame_lengths=LENGTHS, blank_id=BLANK, targets=TARGETS)
    result = large_vocabulary_ctc(**noisy, frame_lengths=LENGTHS, blank_id=BLANK, targets=TARGETS)
    torch.testing.assert_close(result.losses, expected.losses, rtol=0, atol=0)
    assert gradients(result.losses, noisy)["frames"][padding].abs().max() == 0
    assert (result.best[padding] == BLANK).all()


@pytest.mark.parametrize("chunk_size", [1, 4, 8192])
@pytest.mark.parametrize("free_head", [True, False])
def test_the_best_label_is_the_arg_max_of_all_scores(free_head, chunk_size):
    leaves = {name: leaf.detach() for name, leaf in problem(free_head).items()}
    leaves["frames"][0, 0] = 10 * (leaves["token_weight"][BLANK] if free_head else leaves["blank_weight"])
    result = large_vocabulary_ctc(**leaves, frame_lengths=LENGTHS, blank_id=BLANK, chunk_size=chunk_size)
    true = torch.arange(9)[None] < LENGTHS[:, None]
    best = plain_scores(**leaves).argmax(dim=-1)
    assert best[0, 0] == BLANK
    assert torch.equal(result.best[true], best[true])
    assert result.losses is None


def test_one_frame_and_one_token_is_cross_entropy():
    # PyTorch's fused cross-entropy, which takes its normaliser in chunks too.
    leaves = problem()
    frames, targets = leaves["frames"][0][:, None], torch.tensor([0, 1, 2, 3, 5, 6, 7, 8, 9])
    result = large_vocabulary_ctc(
        frames, torch.ones(9, dtype=torch.long), leaves["token_weight"], BLANK, targets=targets[:, None], chunk_size=3
    )
    expected = nn.functional.linear_cross_entropy(
        frames[:, 0], leaves["token_weight"], targets, reduction="none", options=nn.LinearCrossEntropyOptions()
    )
    torch.testing.assert_close(result.losses, expected, rtol=1e-9, atol=0)


def test_bfloat16_frames_give_float32_losses_near_the_exact_ones():
    leaves = problem()
    rounded = {name: leaf.detach().bfloat16().requires_grad_() for name, leaf in leaves.items()}
    result = large_vocabulary_ctc(**rounded, frame_lengths=LENGTHS, blank_id=BLANK, targets=TARGETS)
    assert result.losses.dtype == torch.float32
    exact = plain_ctc({name: leaf.double() for name, leaf in rounded.items()})
    torch.testing.assert_close(result.losses.double(), exact, rtol=2e-2, atol=0)


def test_no_targets_at_all_is_the_loss_of_blanks_alone():
    leaves = problem()
    result = large_vocabulary_ctc(
        **leaves, frame_lengths=LENGTHS, blank_id=BLANK, targets=torch.empty(4, 0, dtype=torch.long)
    )
    blank_log_probs = plain_scores(**leaves).log_softmax(dim=-1)[..., BLANK]
    expected = torch.stack([-blank_log_probs[clip, :length].sum() for clip, length in enumerate(LENGTHS)])
    torch.testing.assert_close(result.losses, expected, rtol=1e-9, atol=0)


# ---- A part of the vocabulary


@pytest.mark.parametrize("free_head", [True, False], ids=["free", "tied"])
def test_all_tokens_as_candidates_are_the_whole_vocabulary(free_head):
    leaves = problem(free_head)
    whole = large_vocabulary_ctc(**leaves, frame_lengths=LENGTHS, blank_id=BLANK, targets=TARGETS)
    found = large_vocabulary_ctc(
        **leaves, frame_lengths=LENGTHS, blank_id=BLANK, targets=TARGETS, candidates=torch.arange(VOCABULARY)
    )
    assert torch.equal(found.best, whole.best)
    torch.testing.assert_close(found.losses, whole.losses)
    assert_equal_gradients(gradients(found.losses, leaves), gradients(whole.losses, leaves))


@pytest.mark.parametrize("free_head", [True, False], ids=["free", "tied"])
def test_candidates_targets_and_blank_are_what_the_loss_is_normalised_over(free_head):
    leaves = problem(free_head)
    found = large_vocabulary_ctc(
        **leaves, frame_lengths=LENGTHS, blank_id=BLANK, targets=TARGETS, candidates=torch.tensor([5, 6, 6, BLANK])
    )
    kept = torch.tensor([0, 1, 2, 3, BLANK, 5, 6, 7, 10])  # 8 and 9 are neither candidates nor targets
    scores = plain_scores(**leaves)[..., kept]
    expected = nn.functional.ctc_loss(
        scores.log_softmax(dim=-1).transpose(0, 1),
        torch.searchsorted(kept, TARGETS.clamp(min=0)),
        LENGTHS,
        TARGETS.ne(-100).sum(dim=1),
        blank=BLANK,  # at the same place among the kept
        reduction="none",
        zero_infinity=True,
    )
    torch.testing.assert_close(found.losses, expected)
    assert_equal_gradients(gradients(found.losses, leaves), gradients(expected, leaves))
    valid = torch.arange(9)[None] < LENGTHS[:, None]
    assert torch.equal(found.best[valid], kept[scores.argmax(dim=-1)][valid])


def test_without_targets_only_candidates_and_the_blank_are_labels():
    leaves = problem()
    found = large_vocabulary_ctc(**leaves, frame_lengths=LENGTHS, blank_id=BLANK, candidates=torch.tensor([9, 2]))
    assert set(found.best.flatten().tolist()) == {2, 9, BLANK}
