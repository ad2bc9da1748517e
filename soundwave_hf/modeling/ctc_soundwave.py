"""CTC over a large vocabulary, without ever holding a score for every frame and token.

The loss needs two things of the `[frames, vocabulary]` scores: their log-normaliser, taken here in chunks of the
vocabulary, and the columns of the blank and of the targets. The likeliest label of each frame comes from the same
pass. Nothing here knows of Soundwave.
"""

from dataclasses import dataclass

import torch
from torch import nn


@dataclass
class CTCResult:
    """What `large_vocabulary_ctc` found.

    Args:
        best (`torch.LongTensor` of shape `(clips, frames)`): likeliest label of each frame.
        losses (`torch.FloatTensor` of shape `(clips,)`, *optional*): negative log-likelihood of each clip's targets;
            0 for a clip whose targets do not fit into its frames.
        feasible (`torch.BoolTensor` of shape `(clips,)`, *optional*): whether the targets fit.
    """

    best: torch.Tensor
    losses: torch.Tensor | None = None
    feasible: torch.Tensor | None = None


def _at_least_float32(values: torch.Tensor) -> torch.Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


class _TokenNormalizer(torch.autograd.Function):
    """Log-sum-exp and arg-max of `frames @ token_weight.T` over the vocabulary, the column `skip` left out."""

    @staticmethod
    def _chunks(frames, token_weight, skip, chunk_size):
        for start in range(0, token_weight.shape[0], chunk_size):
            rows = token_weight[start : start + chunk_size].to(frames.dtype)
            scores = _at_least_float32(frames @ rows.T)  # [frames, chunk]
            if start <= skip < start + chunk_size:
                scores[:, skip - start] = -torch.inf
            yield start, rows, scores

    @staticmethod
    def forward(ctx, frames, token_weight, skip, chunk_size):
        best_score = _at_least_float32(frames.new_full(frames.shape[:1], -torch.inf))
        best = torch.zeros_like(best_score, dtype=torch.long)
        normalizer = best_score.clone()
        for start, _, scores in _TokenNormalizer._chunks(frames, token_weight, skip, chunk_size):
            chunk_score, chunk_best = scores.max(dim=1)
            best = torch.where(chunk_score > best_score, chunk_best + start, best)
            best_score = torch.maximum(best_score, chunk_score)
            normalizer = torch.logaddexp(normalizer, scores.logsumexp(dim=1))
        ctx.save_for_backward(frames, token_weight, normalizer)
        ctx.skip, ctx.chunk_size = skip, chunk_size
        ctx.mark_non_differentiable(best, best_score)
        return normalizer, best_score, best

    @staticmethod
    def backward(ctx, grad_normalizer, *_):
        frames, token_weight, normalizer = ctx.saved_tensors
        grad_frames = torch.zeros_like(_at_least_float32(frames)) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(token_weight) if ctx.needs_input_grad[1] else None
        for start, rows, scores in _TokenNormalizer._chunks(frames, token_weight, ctx.skip, ctx.chunk_size):
            share = (scores - normalizer[:, None]).exp_().mul_(grad_normalizer[:, None]).to(frames.dtype)
            if grad_frames is not None:
                grad_frames += share @ rows
            if grad_weight is not None:
                grad_weight[start : start + rows.shape[0]] = (share.T @ frames).to(grad_weight.dtype)
        return None if grad_frames is None else grad_frames.to(frames.dtype), grad_weight, None, None


class _CTCOfColumns(torch.autograd.Function):
    """CTC of a subset of the columns of normalised scores, with the gradient of that subset.

    `torch.nn.functional.ctc_loss` returns `p - posterior` for the gradient, which is right only for a full
    log-softmax. The derivative with respect to a log-probability is `-posterior`.
    """

    @staticmethod
    def forward(ctx, log_probs, targets, frame_lengths, target_lengths):
        with torch.enable_grad():
            leaf = log_probs.detach().requires_grad_()
            losses = nn.functional.ctc_loss(leaf, targets, frame_lengths, target_lengths, reduction="none")
            (grad,) = torch.autograd.grad(losses.sum(), leaf)
        losses = losses.detach()
        feasible = torch.isfinite(losses)
        frame = torch.arange(leaf.shape[0], device=leaf.device)
        counts = (frame[:, None] < frame_lengths[None]) & feasible[None]  # [frames, clips]
        posterior = torch.where(counts[..., None], leaf.detach().exp() - grad, 0.0)
        ctx.save_for_backward(posterior)
        ctx.mark_non_differentiable(feasible)
        return torch.where(feasible, losses, 0.0), feasible

    @staticmethod
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
    chunk_size: int = 8192,
) -> CTCResult:
    """CTC labels and, given targets, CTC losses of frames scored against a large vocabulary.

    The score of token `v` is `frames @ token_weight[v]`; the score of the blank is
    `frames @ blank_weight + blank_bias`, where `blank_weight` defaults to `token_weight[blank_id]` (that row is read
    in no other way).

    Args:
        frames (`torch.Tensor` of shape `(clips, frames, width)`): states to score, padded on the right.
        frame_lengths (`torch.LongTensor` of shape `(clips,)`): true frames of each clip.
        token_weight (`torch.Tensor` of shape `(vocabulary, width)`): one row a token.
        blank_id (`int`): label of the blank.
        blank_weight (`torch.Tensor` of shape `(width,)`, *optional*): the blank's row.
        blank_bias (`torch.Tensor` of shape `(1,)`, *optional*): added to the blank's score.
        targets (`torch.LongTensor` of shape `(clips, targets)`, *optional*): labels, padded on the right with -100.
        blank_margin (`float`): nats by which the blank has to lead a frame's likeliest token to be its label; the loss
            does not know of it.
        candidates (`torch.LongTensor` of shape `(tokens,)`, *optional*): the tokens that compete, beside the targets
            and the blank, in the normaliser and for `best`; by default all. The tokens of all training transcripts
            and a sample of the others take their share of the time of the whole, and leave out a normaliser's tail:
            losses over different candidates are not to be compared.
        chunk_size (`int`): tokens scored at a time.

    Returns: `CTCResult`. The losses are sums over each clip, in nats, float32.
    """
    if torch.is_autocast_enabled(frames.device.type):
        # Autocast acts on the forward alone: cast here, and the backward of the chunks has the same precision.
        frames = frames.to(torch.get_autocast_dtype(frames.device.type))
    clips, num_frames, _ = frames.shape
    valid = torch.arange(num_frames, device=frames.device)[None] < frame_lengths[:, None]
    blank_scores = frames @ (token_weight[blank_id] if blank_weight is None else blank_weight).to(frames.dtype)
    if blank_bias is not None:
        blank_scores = blank_scores + blank_bias
    competing, skip = token_weight, blank_id
    if candidates is not None:
        if targets is not None:
            candidates = torch.cat([candidates, targets[targets.ne(-100)]])
        candidates = candidates.unique()
        candidates = candidates[candidates != blank_id]
        competing, skip = token_weight[candidates], -1
    normalizer, best_score, valid_best = _TokenNormalizer.apply(frames[valid], competing, skip, chunk_size)
    if candidates is not None:
        valid_best = candidates[valid_best]
    valid_blank_scores = blank_scores[valid]
    valid_best = torch.where(valid_blank_scores - blank_margin >= best_score, blank_id, valid_best)
    normalizer = torch.logaddexp(normalizer, _at_least_float32(valid_blank_scores))
    best = torch.full_like(valid, blank_id, dtype=torch.long).masked_scatter(valid, valid_best)
    if targets is None:
        return CTCResult(best)
    normalizer = normalizer.new_zeros(valid.shape).masked_scatter(valid, normalizer)

    targets = nn.functional.pad(targets, (0, 1), value=-100)  # a column even where no clip has a target
    target_lengths = targets.ne(-100).sum(dim=1)
    ids = targets.clamp(min=0)
    token_scores = torch.einsum("cfw,ctw->cft", frames, token_weight[ids].to(frames.dtype))
    scores = _at_least_float32(torch.cat([blank_scores[..., None], token_scores], dim=-1))
    log_probs = torch.where(valid[..., None], scores - normalizer[..., None], 0.0).transpose(0, 1)
    # Equal targets must share one class, or CTC would not ask for a blank between two of them.
    classes = (ids[:, :, None] == ids[:, None, :]).float().argmax(dim=-1) + 1
    losses, feasible = _CTCOfColumns.apply(log_probs, classes, frame_lengths, target_lengths)
    return CTCResult(best, losses, feasible)


__all__ = ["CTCResult", "large_vocabulary_ctc"]
