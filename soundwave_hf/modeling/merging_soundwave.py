"""Prompts in which each audio token is replaced by the positions of its clip."""

from dataclasses import dataclass

import torch
from torch import nn


def positions_of(mask: torch.Tensor) -> torch.Tensor:
    """Position ids of rows by their mask, both `(rows, positions)`: padding does not count."""
    return (mask.long().cumsum(dim=1) - 1).clamp(min=0)


@dataclass
class MergedPrompt:
    """A prompt with each audio token replaced by the positions of its clip, padded on the left.

    Args:
        inputs_embeds (`torch.FloatTensor` of shape `(batch, merged, width)`).
        attention_mask (`torch.LongTensor` of shape `(batch, merged)`): 1 at true positions.
        last_position (`torch.LongTensor` of shape `(batch, tokens)`): last position of each input token in the merged
            row.
    """

    inputs_embeds: torch.Tensor
    attention_mask: torch.Tensor
    last_position: torch.Tensor

    @property
    def position_ids(self) -> torch.Tensor:
        """`(batch, merged)`: positions in the merged row, without padding."""
        return positions_of(self.attention_mask)


@dataclass
class TokenPlaces:
    """Where the tokens of a batch, and the positions of its clips, go in the merged rows.

    Places of tokens are indices into the flattened ids; places of positions are indices into the flattened merged
    rows.

    Args:
        attention_mask (`torch.Tensor` of shape `(batch, tokens)`).
        audio_at, text_at (`torch.LongTensor`): places of the audio tokens and of the other tokens.
        audio_index, text_index (`torch.LongTensor`): places of the clips' positions and of the other tokens'.
        num_positions (`torch.LongTensor` of shape `(clips,)`).
        ends (`torch.LongTensor` of shape `(batch, tokens)`): one after each token's last position, in its row.
        merged (`int`): positions of a row, including padding.
    """

    attention_mask: torch.Tensor
    audio_at: torch.Tensor
    text_at: torch.Tensor
    audio_index: torch.Tensor
    text_index: torch.Tensor
    num_positions: torch.Tensor
    ends: torch.Tensor
    merged: int

    def merge(self, text: torch.Tensor, positions: torch.Tensor) -> MergedPrompt:
        """Merge embeddings of the other tokens `(text tokens, width)` and positions `(sum of num_positions,
        width)`."""
        shape = len(self.ends), self.merged
        embeds = text.new_zeros(shape[0] * shape[1], text.shape[-1])
        embeds = embeds.index_copy(0, self.text_index, text).index_copy(0, self.audio_index, positions.to(text))
        true = self.attention_mask.flatten()
        of_clips = true[self.audio_at].repeat_interleave(self.num_positions, output_size=len(positions))
        mask = true.new_zeros(shape[0] * shape[1]).index_copy(0, self.text_index, true[self.text_at])
        mask = mask.index_copy(0, self.audio_index, of_clips)
        return MergedPrompt(embeds.view(*shape, -1), mask.view(shape), self.ends - 1)


def place_tokens(
    input_ids,
    num_positions,
    audio_token_id: int,
    total: int,
    attention_mask=None,
    before=0,
    context: int | None = None,
) -> TokenPlaces:
    """Compute where tokens and positions go in the merged rows, which are padded on the left.

    Args:
        input_ids, num_positions, attention_mask, before: as in `SoundwaveModel.merge_audio`.
        total (`int`): the sum of `num_positions`.
        context (`int`, *optional*): largest number of positions in a row.

    Raises: `ValueError` as in `SoundwaveModel.merge_audio`.
    """
    if attention_mask is None:
        attention_mask = torch.ones_like(input_ids)
    if attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"`attention_mask` has shape {tuple(attention_mask.shape)} and `input_ids` {tuple(input_ids.shape)}: "
            "give one value for each token, also for an audio token."
        )
    num_positions = num_positions.to(input_ids.device, torch.long)
    # A stable sort moves the audio tokens of all rows to the front, in order.
    order = torch.argsort((input_ids != audio_token_id).flatten(), stable=True)
    audio_at, text_at = order[: len(num_positions)], order[len(num_positions) :]
    spans = torch.ones_like(order).index_copy(0, audio_at, num_positions[: len(audio_at)]).view_as(input_ids)
    length = before + (spans * attention_mask.to(spans)).sum(dim=1)
    num_tokens = (input_ids == audio_token_id).sum()
    merged = _checked_length(num_tokens, spans.sum(dim=1), length, num_positions, audio_token_id, context)
    ends = merged - spans.sum(dim=1, keepdim=True) + spans.cumsum(dim=1)
    flat_ends = (ends + merged * torch.arange(len(ends), device=ends.device)[:, None]).flatten()
    # The positions of a clip are adjacent and end where its token ends.
    shift = flat_ends[audio_at] - num_positions.cumsum(0)
    shift = shift.repeat_interleave(num_positions, output_size=total)
    audio_index = torch.arange(total, device=shift.device) + shift
    text_index = flat_ends[text_at] - 1
    return TokenPlaces(attention_mask, audio_at, text_at, audio_index, text_index, num_positions, ends, merged)


def _checked_length(num_tokens, lengths, true_lengths, num_positions, audio_token_id: int, context: int | None) -> int:
    """Positions of the longest merged row. Values are read only once, as this waits for an accelerator."""
    longest_clip = nn.functional.pad(num_positions, (0, 1)).max()  # 0 without clips
    values = torch.stack([num_tokens, lengths.max(), true_lengths.max(), longest_clip])
    num_tokens, merged, true_length, longest_clip = values.tolist()
    if num_tokens != len(num_positions):
        raise ValueError(
            f"`input_ids` holds {num_tokens} audio tokens (id {audio_token_id}) and {len(num_positions)} clips were "
            "given: give one audio token for each clip, in the same order."
        )
    if context is not None and true_length > context:
        raise ValueError(
            f"A prompt has {true_length} positions with its clips (the longest clip alone {longest_clip}), and the "
            f"LLM's context is {context} (`max_position_embeddings`): cut the clip, or give fewer."
        )
    return merged


__all__ = ["MergedPrompt", "TokenPlaces", "place_tokens", "positions_of"]
