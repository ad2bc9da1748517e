"""CTC over a large vocabulary, without storing a score for each frame and token.

The loss needs only two parts of the `[frames, vocabulary]` scores: their log-normaliser, computed in chunks of the
vocabulary, and the columns of the blank and the targets. The same pass finds the likeliest label of each frame. This
file does not depend on Soundwave.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.autograd.function import once_differentiable


CHUNK_SCORES = 1 << 20  # scores in memory at once; a larger number needs more memory and is not faster
FRAME_SCORES = 1 << 24  # the same for whole frames, which are scored against all tokens


def tokens_at_once(num_frames: int) -> int:
    """Tokens that `large_vocabulary_ctc` scores at a time, by the total number of frames: 1,024 to 2,048."""
    return min(max(CHUNK_SCORES // max(num_frames, 1), 1024), 2048)


def true_places(lengths: torch.Tensor, longest: int, total: int) -> torch.Tensor:
    """Indices `(total,)` of true frames in all rows concatenated with their padding.

    It reads no values, which would wait for an accelerator, as indexing by a mask does.

    Args:
        lengths (`torch.LongTensor` of shape `(rows,)`): true frames of each row, before its padding.
        longest (`int`): frames of a row including padding.
        total (`int`): the sum of `lengths`.
    """
    first = torch.arange(len(lengths), device=lengths.device) * longest  # of each row, in the concatenation
    shift = first - (lengths.cumsum(0) - lengths)
    return torch.arange(total, device=lengths.device) + shift.repeat_interleave(lengths, output_size=total)


@dataclass
class CTCResult:
    """Output of `large_vocabulary_ctc`.

    Args:
        best (`torch.LongTensor` of shape `(clips, frames)`): likeliest label of each frame.
        losses (`torch.FloatTensor` of shape `(clips,)`, *optional*): negative log-likelihood of each clip's targets;
            0 if the targets do not fit into the frames.
        feasible (`torch.BoolTensor` of shape `(clips,)`, *optional*): whether the targets fit.
        blank_log_probs (`torch.FloatTensor` of shape `(clips, frames)`, *optional*): log-probability of the blank, in
            nats, among the blank and all tokens (or the candidates); 0 at padding. Without a gradient, and only on
            request.
    """

    best: torch.Tensor
    losses: torch.Tensor | None = None
    feasible: torch.Tensor | None = None
    blank_log_probs: torch.Tensor | None = None


def _at_least_float32(values: torch.Tensor) -> torch.Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _scores(frames: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """`frames @ rows.mT` `(..., frames, rows)`, in float32 or better."""
    rows = rows.to(frames.dtype)
    if frames.dtype != torch.float16:
        return _at_least_float32(frames @ rows.mT)
    # The largest float16 is 65,504. No product exceeds its two norms, and dividing by a power of two is exact.
    norms = [torch.linalg.vector_norm(values.detach(), dim=-1, dtype=torch.float32) for values in (frames, rows)]
    longest = nn.functional.pad(norms[1].flatten(), (0, 1)).max()  # 0 where there are no rows
    scale = (norms[0] * longest / 65_504).log2().ceil().clamp(min=0).exp2()[..., None]
    return ((frames / scale).half() @ rows.mT).float() * scale


class _TokenScores(torch.autograd.Function):
    """Log-sum-exp, best token, and columns `ids` of the scores `frames @ token_weight.T` of all true frames.

    The log-sum-exp is over `candidates`, by default over all tokens, without the token `skip`. Its gradient is the
    mean of the tokens' rows, weighted by their probabilities. If it is needed (`with_mean`), the forward pass computes
    it too. Only the gradient of the head's weight computes the scores again; it is the sum of the gradients by the
    normaliser and by the columns.
    """

    @staticmethod
    def _chunks(states, token_weight, candidates, skip, chunk_size):
        for start in range(0, len(token_weight if candidates is None else candidates), chunk_size):
            tokens = slice(start, start + chunk_size)
            rows = token_weight[tokens if candidates is None else candidates[tokens]].to(states.dtype)
            scores = _scores(states, rows)  # [true frames, chunk]
            smallest = torch.finfo(scores.dtype).min  # not -inf, which might be the only score of a chunk
            if candidates is not None:
                scores.masked_fill_(candidates[tokens] == skip, smallest)
            elif start <= skip < start + chunk_size:
                scores[:, skip - start] = smallest
            yield start, rows, scores

    @staticmethod
    def forward(ctx, frames, token_weight, places, ids, candidates, skip, chunk_size, with_mean):
        states = frames.flatten(0, 1)[places]  # [true frames, width]
        best_score = _at_least_float32(states.new_full(states.shape[:1], -torch.inf))
        best = torch.zeros_like(best_score, dtype=torch.long)
        normalizer = best_score.clone()
        mean = _at_least_float32(torch.zeros_like(states)) if with_mean else None
        chunks = _TokenScores._chunks(states, token_weight, candidates, skip, chunk_size)
        for start, rows, scores in chunks:
            chunk_score, chunk_best = scores.max(dim=1)
            best = torch.where(chunk_score > best_score, chunk_best + start, best)
            best_score = torch.maximum(best_score, chunk_score)
            total = scores.sub_(chunk_score[:, None]).exp_().sum(dim=1)
            chunk_normalizer = chunk_score + total.log()
            before, normalizer = normalizer, torch.logaddexp(normalizer, chunk_normalizer)
            if with_mean:
                chunk_mean = scores.div_(total[:, None]).to(states.dtype) @ rows
                mean.mul_((before - normalizer).exp_()[:, None])
                mean.addcmul_(chunk_mean, (chunk_normalizer - normalizer).exp_()[:, None])
        ctx.save_for_backward(frames, token_weight, places, ids, candidates, normalizer, mean)
        ctx.skip, ctx.chunk_size = skip, chunk_size
        ctx.mark_non_differentiable(best, best_score)
        return normalizer, _scores(frames, token_weight[ids]), best_score, best

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_normalizer, grad_columns, *_):
        frames, token_weight, places, ids, _, _, mean = ctx.saved_tensors
        grad_frames = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_frames = grad_columns @ token_weight[ids].to(grad_columns.dtype)
            # The compiler traces this without `mean` too, where nothing reads the normaliser.
            added = torch.zeros_like(frames.flatten(0, 1)[places]) if mean is None else mean * grad_normalizer[:, None]
            added = added.to(grad_frames.dtype)
            grad_frames = grad_frames.flatten(0, 1).index_add(0, places, added).view_as(frames).to(frames.dtype)
        if ctx.needs_input_grad[1]:
            grad_weight = _TokenScores._normalizer_grad(ctx, grad_normalizer)
            grad_rows = (grad_columns.mT @ frames.to(grad_columns.dtype)).flatten(0, 1).to(grad_weight.dtype)
            grad_weight.index_put_((ids.flatten(),), grad_rows, accumulate=True)
        return grad_frames, grad_weight, *[None] * 6

    @staticmethod
    def _normalizer_grad(ctx, grad_normalizer):
        frames, token_weight, places, _, candidates, normalizer, _ = ctx.saved_tensors
        states = frames.flatten(0, 1)[places]
        grad = torch.zeros_like(token_weight)
        for start, rows, scores in _TokenScores._chunks(states, token_weight, candidates, ctx.skip, ctx.chunk_size):
            tokens = slice(start, start + len(rows))
            share = scores.sub_(normalizer[:, None]).exp_().mul_(grad_normalizer[:, None]).to(states.dtype)
            grad[tokens if candidates is None else candidates[tokens]] = (share.T @ states).to(grad.dtype)
        return grad


class _CTCOfColumns(torch.autograd.Function):
    """CTC loss of some columns of normalised scores, with the gradient of these columns.

    `torch.nn.functional.ctc_loss` returns the gradient `p - posterior`, which is correct only for a full log-softmax.
    The derivative with respect to a log-probability is `-posterior`.
    """

    @staticmethod
    def forward(ctx, log_probs, targets, valid, lengths):
        # For long clips float32 is too inexact for the posteriors. Apple's GPUs have no float64.
        exact = torch.float32 if log_probs.device.type == "mps" else torch.float64
        needs_grad = ctx.needs_input_grad[0]
        with torch.set_grad_enabled(needs_grad):
            leaf = log_probs.detach().to(exact).requires_grad_(needs_grad)
            losses = nn.functional.ctc_loss(leaf, targets, *lengths, reduction="none")
            grad = torch.autograd.grad(losses.sum(), leaf)[0] if needs_grad else None
        losses = losses.detach().to(log_probs.dtype)
        feasible = torch.isfinite(losses)
        if not needs_grad:
            return torch.where(feasible, losses, 0.0), feasible
        counts = valid.T & feasible  # [frames, clips]
        posterior = torch.where(counts[..., None], leaf.detach().exp() - grad, 0.0).to(log_probs.dtype)
        ctx.save_for_backward(posterior)
        ctx.mark_non_differentiable(feasible)
        return torch.where(feasible, losses, 0.0), feasible

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_losses, _):
        (posterior,) = ctx.saved_tensors
        return -posterior * grad_losses[None, :, None], None, None, None


def large_vocabulary_ctc(
    frames: torch.Tensor,
    frame_lengths: torch.Tensor,
    token_weight: torch.Tensor,
    blank_id: int,
    blank_weight: torch.Tensor | None = None,
    blank_bias: torch.Tensor | None = None,
    targets: torch.Tensor | None = None,
    blank_margin: float = 0.0,
    candidates: torch.Tensor | None = None,
    chunk_size: int | None = None,
    output_blank_log_probs: bool = False,
) -> CTCResult:
    """CTC labels and, given targets, CTC losses of frames scored against a large vocabulary.

    The score of token `v` is `frames @ token_weight[v]`; the score of the blank is
    `frames @ blank_weight + blank_bias`, where `blank_weight` defaults to `token_weight[blank_id]` (the row has no
    other use).

    Args:
        frames (`torch.Tensor` of shape `(clips, frames, width)`): states to score, padded on the right.
        frame_lengths (`torch.LongTensor` of shape `(clips,)`): true frames of each clip.
        token_weight (`torch.Tensor` of shape `(vocabulary, width)`): one row for each token.
        blank_id (`int`): label of the blank.
        blank_weight (`torch.Tensor` of shape `(width,)`, *optional*): the blank's row.
        blank_bias (`torch.Tensor` of shape `(1,)`, *optional*): added to the blank's score.
        targets (`torch.LongTensor` of shape `(clips, targets)`, *optional*): labels, padded on the right with -100.
        blank_margin (`float`): nats by which the blank must exceed a frame's likeliest token to be its label. It does
            not change the loss.
        candidates (`torch.LongTensor` of shape `(tokens,)`, *optional*): the tokens of the normaliser and of `best`,
            beside the targets and the blank; by default all. Fewer tokens need proportionally less time, for example
            those of the training transcripts and a sample of the others. Losses with different candidates are not
            comparable.
        chunk_size (`int`, *optional*): tokens scored at a time; by default `tokens_at_once`.
        output_blank_log_probs (`bool`): whether to return `blank_log_probs`.

    Returns: `CTCResult`. The losses are sums over each clip, in nats, float32.
    """
    frames = _as_autocast(frames)
    clips, num_frames, _ = frames.shape
    ids, lengths = frame_lengths.new_empty(clips, 0), frame_lengths[None]
    if targets is not None:
        targets = nn.functional.pad(targets, (0, 1), value=-100)  # at least one column, even if no clip has a target
        ids, lengths = targets.clamp(min=0), torch.stack([frame_lengths, targets.ne(-100).sum(dim=1)])
    lengths = lengths.tolist()  # the only transfer of values, as it waits for an accelerator
    places = true_places(frame_lengths, num_frames, sum(lengths[0]))
    candidates = None if candidates is None else _competing(candidates, targets, blank_id)
    columns = ids if blank_weight is not None else nn.functional.pad(ids, (1, 0), value=blank_id)
    options = (
        chunk_size or tokens_at_once(clips * num_frames),
        targets is not None and frames.requires_grad and torch.is_grad_enabled(),
    )
    normalizer, scores, best_score, best = _TokenScores.apply(
        frames, token_weight, places, columns, candidates, blank_id, *options
    )
    scores = _with_blank(scores, frames, blank_weight, blank_bias)
    blank_scores = scores[..., 0].flatten()[places]
    best_token = best if candidates is None else candidates[best]
    best = torch.where(blank_scores - blank_margin >= best_score, blank_id, best_token)
    result = CTCResult(_spread(best, places, scores, fill=blank_id))
    if output_blank_log_probs:
        result.blank_log_probs = _spread(nn.functional.logsigmoid(blank_scores - normalizer).detach(), places, scores)
    if targets is not None:
        normalizer = _spread(torch.logaddexp(normalizer, blank_scores), places, scores)
        result.losses, result.feasible = _losses(scores - normalizer[..., None], ids, frame_lengths, lengths)
    return result


@torch.no_grad()
def likeliest_tokens(
    frames: torch.Tensor, token_weight: torch.Tensor, blank_id: int, number: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The likeliest tokens of frames, without the blank, and their shares of each other's probability.

    Args:
        frames (`torch.Tensor` of shape `(frames, width)`): states to score.
        token_weight (`torch.Tensor` of shape `(vocabulary, width)`): one row for each token.
        blank_id (`int`): the label of the blank.
        number (`int`): of tokens at each frame; less if the vocabulary is smaller.

    Returns: ids and shares, both `(frames, number)`; the shares of a frame sum to 1. Without a gradient.
    """
    number = min(number, len(token_weight) - 1)
    scores, ids = [], []
    for some in frames.split(max(FRAME_SCORES // len(token_weight), 1)):
        all_scores = _scores(some, token_weight)
        all_scores[:, blank_id] = -torch.inf
        best = all_scores.topk(number, dim=1)
        scores.append(best.values)
        ids.append(best.indices)
    return torch.cat(ids), torch.cat(scores).softmax(dim=1)


def _as_autocast(frames: torch.Tensor) -> torch.Tensor:
    """Frames in autocast's dtype. Autocast casts in the forward pass only; the backward pass needs the same dtype."""
    device = frames.device.type
    return frames.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else frames


def _losses(log_probs: torch.Tensor, ids: torch.Tensor, frame_lengths: torch.Tensor, lengths: list[list[int]]):
    """Losses of clips and whether the targets fit. `lengths`: frames of each clip, and its targets."""
    valid = torch.arange(log_probs.shape[1], device=log_probs.device) < frame_lengths[:, None]
    log_probs = torch.where(valid[..., None], log_probs, 0.0).transpose(0, 1)
    # Equal targets must have the same class, so that CTC requires a blank between them.
    classes = (ids[:, :, None] == ids[:, None, :]).float().argmax(dim=-1) + 1
    return _CTCOfColumns.apply(log_probs, classes, valid, lengths)


def _with_blank(scores, frames, blank_weight, blank_bias) -> torch.Tensor:
    """Scores of the blank and the targets `(clips, frames, 1 + targets)`."""
    if blank_weight is not None:
        scores = torch.cat([_scores(frames, blank_weight[None]), scores], dim=-1)
    if blank_bias is not None:
        scores = torch.cat([scores[..., :1] + blank_bias, scores[..., 1:]], dim=-1)
    return scores


def _competing(candidates: torch.Tensor, targets: torch.Tensor | None, blank_id: int) -> torch.Tensor:
    """The candidates and the tokens of the targets, each once, in order; the blank may be among them."""
    if targets is not None:
        candidates = torch.cat([candidates, torch.where(targets == -100, blank_id, targets).flatten()])
    return candidates.unique()


def _spread(values: torch.Tensor, places: torch.Tensor, scores: torch.Tensor, fill: float = 0.0) -> torch.Tensor:
    """Values of true frames `(true frames,)` at their places in `(clips, frames)`, `fill` at padding."""
    return (
        values.new_full((scores.shape[0] * scores.shape[1],), fill)
        .index_copy(0, places, values)
        .view(scores.shape[:2])
    )


__all__ = ["CTCResult", "large_vocabulary_ctc", "likeliest_tokens", "tokens_at_once", "true_places"]
