"""Where the answers of a batch end."""

from collections.abc import Collection

import torch


def end_ids(eos_token_id) -> list[int]:
    """The ids that end an answer.

    Args: eos_token_id: as `generate` and its config take it: one id, several as list, tuple or tensor, or None.
    """
    return [] if eos_token_id is None else torch.as_tensor(eos_token_id).flatten().tolist()


def have_ended(processor, new_ids: torch.Tensor, eos_token_id, stop_strings=None) -> list[bool]:
    """For each row of new ids `(rows, tokens)`, whether it has an end token, or one of `stop_strings`.

    The number of tokens does not tell: `max_time` cuts a text early, and `drop_unsupported` takes words out of it.
    """
    ends = torch.tensor(end_ids(eos_token_id), device=new_ids.device, dtype=new_ids.dtype)
    ended = torch.isin(new_ids, ends).any(dim=1).tolist()
    stops = [stop_strings] if isinstance(stop_strings, str) else list(stop_strings or ())
    if not stops or all(ended):
        return ended
    texts = processor.batch_decode(new_ids)
    return [end or any(stop in text for stop in stops) for end, text in zip(ended, texts, strict=True)]


def pad_answers(answers: list[list[int]], ends: Collection[int], pad: int | None, tokenizer) -> list[list[int]]:
    """Answers of tokens, padded on the right to one length.

    The padding id of many LLMs is an end token. It would make an answer that was cut off look like one that ended, so
    such an answer gets another control token, which texts leave out too.

    Args: ends: end tokens; pad: the padding id, or None.
    """
    pad = next(iter(ends), 0) if pad is None else pad
    pad_of_cut = next((token for token in [pad, *tokenizer.all_special_ids] if token not in ends), pad)
    longest = max(map(len, answers), default=0)
    fills = [pad if any(token in ends for token in answer) else pad_of_cut for answer in answers]
    return [answer + [fill] * (longest - len(answer)) for answer, fill in zip(answers, fills, strict=True)]


__all__ = ["end_ids", "have_ended", "pad_answers"]
