"""CTC over a large vocabulary, against PyTorch's own over all scores, in float64."""

import math

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from soundwave_hf.modeling.ctc_soundwave import large_vocabulary_ctc, true_places


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


@pytest.mark.parametrize("free_head", [True, False], ids=["free", "tied"])
def test_frozen_rows_get_no_gradient_and_change_no_other(free_head):
    leaves, frozen = problem(free_head), problem(free_head)
    frozen["token_weight"].requires_grad_(False)
    found = large_vocabulary_ctc(**frozen, frame_lengths=LENGTHS, blank_id=BLANK, targets=TARGETS, chunk_size=4)
    expected = gradients(plain_ctc(leaves), leaves)
    del expected["token_weight"]
    assert_equal_gradients(gradients(found.losses, frozen), expected)


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


# ---- PyTorch's fused cross-entropy, which takes its normaliser in chunks too

needs_linear_cross_entropy = pytest.mark.skipif(
    not hasattr(nn.functional, "linear_cross_entropy"), reason="this PyTorch has no linear_cross_entropy"
)


def fused_cross_entropy(frames, token_weight, targets, blank_weight=None, blank_bias=None) -> torch.Tensor:
    """Negative log-probability of one label a frame: `(frames, width)` and `(frames,)` -> `(frames,)`."""
    bias = None
    if blank_weight is not None:
        is_blank = torch.arange(len(token_weight)) == BLANK
        token_weight = torch.where(is_blank[:, None], blank_weight, token_weight)
        bias = torch.where(is_blank, blank_bias, 0.0)
    return nn.functional.linear_cross_entropy(
        frames,
        token_weight,
        targets,
        linear_bias=bias,
        reduction="none",
        options=nn.LinearCrossEntropyOptions(batch_chunk_size=4),
    )


def ctc_by_recursion(leaves: dict, clip: int) -> torch.Tensor:
    """One clip's loss: the forward recursion over its targets with a blank around each."""
    frames, heads = leaves["frames"][clip, : LENGTHS[clip]], {k: v for k, v in leaves.items() if k != "frames"}
    labels = [BLANK]
    for target in TARGETS[clip][TARGETS[clip].ne(-100)].tolist():
        labels += [target, BLANK]
    entropies = [fused_cross_entropy(frames, targets=torch.full((len(frames),), v), **heads) for v in labels]
    log_probs = -torch.stack(entropies, dim=1)  # [frames, labels]
    never = log_probs.new_tensor(-torch.inf)
    reached = [log_probs[0, 0], *log_probs[0, 1:2], *[never] * (len(labels) - 2)]
    for log_prob in log_probs[1:]:
        before = [never, never, *reached]
        for place in range(len(labels)):
            skips = place > 1 and labels[place] != labels[place - 2]  # over a blank, between unequal tokens
            ways = [way for way in before[place + (0 if skips else 1) : place + 3] if way > never]
            reached[place] = torch.stack(ways).logsumexp(0) + log_prob[place] if ways else never
    return -torch.stack([way for way in reached[-2:] if way > never]).logsumexp(0)


@needs_linear_cross_entropy
@pytest.mark.parametrize("free_head", [True, False], ids=["free", "tied"])
@pytest.mark.parametrize("clip", [0, 1, 3])
def test_the_loss_is_the_recursion_over_fused_cross_entropies(free_head, clip):
    leaves = problem(free_head)
    expected = ctc_by_recursion(leaves, clip)
    found = large_vocabulary_ctc(**leaves, frame_lengths=LENGTHS, blank_id=BLANK, targets=TARGETS, chunk_size=3)
    torch.testing.assert_close(found.losses[clip], expected, rtol=1e-9, atol=0)
    found_gradients, expected_gradients = (
        dict(zip(leaves, torch.autograd.grad(loss, leaves.values()), strict=True))
        for loss in (found.losses[clip], expected)
    )
    assert_equal_gradients(found_gradients, expected_gradients)


@needs_linear_cross_entropy
def test_one_frame_and_one_token_is_cross_entropy():
    leaves = problem()
    states, targets = leaves["frames"][0], torch.tensor([0, 1, 2, 3, 5, 6, 7, 8, 9])
    result = large_vocabulary_ctc(
        states[:, None],
        torch.ones(9, dtype=torch.long),
        leaves["token_weight"],
        BLANK,
        targets=targets[:, None],
        chunk_size=3,
    )
    expected = fused_cross_entropy(states, leaves["token_weight"], targets)
    torch.testing.assert_close(result.losses, expected, rtol=1e-9, atol=0)
    weights = torch.linspace(-1, 2, 9, dtype=torch.float64)
    found_gradients, expected_gradients = (
        dict(zip(leaves, torch.autograd.grad((losses * weights).sum(), leaves.values()), strict=True))
        for losses in (result.losses, expected)
    )
    assert_equal_gradients(found_gradients, expected_gradients)


# ---- Precisions


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("autocast", [False, True], ids=["inputs", "autocast"])
@pytest.mark.parametrize("free_head", [True, False], ids=["free", "tied"])
def test_half_precision_gives_float32_losses_and_gradients_near_the_exact_ones(free_head, autocast, dtype):
    exact = problem(free_head)
    leaves = {name: leaf.detach().float().requires_grad_() for name, leaf in exact.items()}
    if not autocast:
        leaves = {name: leaf.detach().to(dtype).requires_grad_() for name, leaf in leaves.items()}
    with torch.autocast("cpu", dtype=dtype, enabled=autocast):
        found = large_vocabulary_ctc(**leaves, frame_lengths=LENGTHS, blank_id=BLANK, targets=TARGETS, chunk_size=4)
    assert found.losses.dtype == torch.float32
    precision = 4 * torch.finfo(dtype).eps
    expected = plain_ctc(exact)
    torch.testing.assert_close(found.losses.double(), expected, rtol=precision, atol=0)
    expected = gradients(expected, exact)
    for name, gradient in gradients(found.losses, leaves).items():
        assert gradient.dtype == leaves[name].dtype
        assert (gradient - expected[name]).abs().max() <= precision * expected[name].abs().max(), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("autocast", [False, True], ids=["inputs", "autocast"])
@pytest.mark.parametrize("free_head", [True, False], ids=["free", "tied"])
def test_scores_beyond_float16_overflow_nothing(free_head, autocast, dtype):
    # Of small whole numbers times 256 every score is a small multiple of 65,536, which no step here rounds.
    exact = {name: (leaf.detach().round() * 256).requires_grad_() for name, leaf in problem(free_head).items()}
    leaves = {name: leaf.detach().to(torch.float32 if autocast else dtype) for name, leaf in exact.items()}
    leaves = {name: leaf.requires_grad_() for name, leaf in leaves.items()}
    assert plain_scores(**exact).abs().max() > 4 * torch.finfo(torch.float16).max
    with torch.autocast("cpu", dtype=dtype, enabled=autocast):
        found = large_vocabulary_ctc(**leaves, frame_lengths=LENGTHS, blank_id=BLANK, targets=TARGETS, chunk_size=4)
    expected = plain_ctc(exact)
    torch.testing.assert_close(found.losses.double(), expected, rtol=1e-6, atol=0)
    expected = gradients(expected, exact)
    for name, gradient in gradients(found.losses, leaves).items():
        assert (gradient - expected[name]).abs().max() <= 1e-2 * expected[name].abs().max(), name


def test_float16_scores_without_targets_are_labels_of_the_exact_ones():
    leaves = {name: (leaf.detach().round() * 256).half() for name, leaf in problem(free_head=False).items()}
    found = large_vocabulary_ctc(**leaves, frame_lengths=LENGTHS, blank_id=BLANK)
    exact = large_vocabulary_ctc(
        **{name: leaf.double() for name, leaf in leaves.items()}, frame_lengths=LENGTHS, blank_id=BLANK
    )
    assert torch.equal(found.best, exact.best)


def test_float32_gradients_of_a_long_clip_keep_six_digits():
    # 1,500 frames at some 8 nats: a sum of which float32 keeps a thousandth, and the posteriors no more than that.
    generator = torch.Generator().manual_seed(0)
    exact = {
        "frames": torch.randn(1, 1500, WIDTH, generator=generator, dtype=torch.float64).requires_grad_(),
        "token_weight": 3 * torch.randn(VOCABULARY, WIDTH, generator=generator, dtype=torch.float64),
    }
    options = {"frame_lengths": torch.tensor([1500]), "blank_id": BLANK, "targets": torch.tensor([[3, 3, 0, 10] * 20])}
    leaves = {name: leaf.detach().float() for name, leaf in exact.items()}
    leaves["frames"].requires_grad_()
    (expected,) = torch.autograd.grad(large_vocabulary_ctc(**exact, **options).losses, exact["frames"])
    (found,) = torch.autograd.grad(large_vocabulary_ctc(**leaves, **options).losses, leaves["frames"])
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


# ---- Memory


class Sizes(TorchDispatchMode):
    """Numbers of elements of the tensors that operations make, views left out."""

    def __init__(self):
        super().__init__()
        self.made: dict[int, int] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        given = {a.untyped_storage().data_ptr() for a in args if isinstance(a, torch.Tensor)}
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in given:
                self.made[tensor.numel()] = self.made.get(tensor.numel(), 0) + 1
        return result


@pytest.mark.parametrize("with_candidates", [False, True], ids=["whole", "candidates"])
@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "trained"])
def test_no_step_makes_all_scores_and_the_head_has_one_gradient(frozen, with_candidates):
    generator = torch.Generator().manual_seed(0)
    frames = torch.randn(4, 9, WIDTH, generator=generator).requires_grad_()
    weight = torch.randn(1000, WIDTH, generator=generator).requires_grad_(not frozen)
    leaves = {"frames": frames} if frozen else {"frames": frames, "token_weight": weight}
    options = {"candidates": torch.arange(0, 1000, 2)} if with_candidates else {}
    with Sizes() as sizes:
        found = large_vocabulary_ctc(frames, LENGTHS, weight, BLANK, targets=TARGETS, chunk_size=64, **options)
        gradients(found.losses, leaves)
    scores_of_chunk = int(LENGTHS.sum()) * 64
    assert sizes.made.pop(weight.numel(), 0) == (0 if frozen else 1)
    assert max(sizes.made) == scores_of_chunk


@pytest.mark.parametrize(("num_frames", "tokens"), [(100, 2048), (800, 1310), (2000, 1024)])
def test_as_many_tokens_are_scored_at_once_as_make_a_million_scores(num_frames, tokens):
    frames, weight = torch.randn(2, num_frames // 2, WIDTH), torch.randn(9000, WIDTH)
    with Sizes() as sizes:
        large_vocabulary_ctc(frames, torch.full((2,), num_frames // 2), weight, BLANK)
    assert max(sizes.made) == num_frames * tokens


def test_a_second_derivative_is_refused():
    leaves = problem()
    losses = large_vocabulary_ctc(**leaves, frame_lengths=LENGTHS, blank_id=BLANK, targets=TARGETS).losses
    (gradient,) = torch.autograd.grad(losses.sum(), leaves["frames"], create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        gradient.sum().backward()


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


def test_places_of_true_frames_count_through_padded_rows_laid_end_to_end():
    assert true_places(torch.tensor([2, 0, 3]), longest=4, total=5).tolist() == [0, 1, 8, 9, 10]
    assert true_places(torch.tensor([0, 0]), longest=4, total=0).tolist() == []


def test_log_probabilities_of_the_blank_are_computed_on_request_alone():
    leaves = problem(free_head=False)
    options = {"frame_lengths": LENGTHS, "blank_id": BLANK}
    assert large_vocabulary_ctc(**leaves, **options).blank_log_probs is None
    found = large_vocabulary_ctc(**leaves, **options, output_blank_log_probs=True).blank_log_probs
    assert not found.requires_grad
    expected = plain_scores(**leaves).log_softmax(dim=-1)[..., BLANK]
    for clip, length in enumerate(LENGTHS.tolist()):
        torch.testing.assert_close(found[clip, :length], expected[clip, :length].detach())
        assert found[clip, length:].tolist() == [0.0] * (9 - length)
