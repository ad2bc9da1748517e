"""Outputs of the models, and the names of the cache in them."""

from dataclasses import dataclass

import torch
from transformers.cache_utils import Cache
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    BaseModelOutputWithPooling,
    CausalLMOutputWithPast,
)


CACHE_NAMES = ("past_key_values", "cache")  # in transformers 5.23, and in 5.24
# The name in the installed version.
CACHE = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"


def one_cache(past_key_values: Cache | None, cache: Cache | None) -> Cache | None:
    """The cache that was given by either of its two names.

    Raises: `ValueError` if two caches were given.
    """
    if past_key_values is not None and cache is not None and past_key_values is not cache:
        raise ValueError("`past_key_values` and `cache` are two names of one argument, and both were given: pass one.")
    return cache if past_key_values is None else past_key_values


def num_read(cache: Cache | None) -> int:
    """Number of positions in a cache."""
    return 0 if cache is None else int(cache.get_seq_length())


@dataclass
class SoundwaveAudioOutput(BaseModelOutputWithPooling):
    """Output of the audio side for a batch of clips.

    Args:
        last_hidden_state (`torch.FloatTensor` of shape `(clips, encoder_frames, encoder_width)`): encoder states.
        pooler_output (`torch.FloatTensor` of shape `(sum of num_positions, width)`): the positions of all clips, in
            order: inputs of the LLM. None in `SoundwaveForCTC`.
        aligned_states (`torch.FloatTensor` of shape `(clips, frames, width)`): output of the alignment adapter.
        num_frames (`torch.LongTensor` of shape `(clips,)`): true aligned frames of each clip.
        num_positions (`torch.LongTensor` of shape `(clips,)`): positions of each clip.
        ctc_best (`torch.LongTensor` of shape `(clips, frames)`): CTC label of each aligned frame: its likeliest token,
            or the blank if it is likelier by `blank_margin`.
        ctc_loss (`torch.FloatTensor` of shape `()`, *optional*): sum of each clip's loss per target, divided by the
            number of clips, or by `num_ctc_clips` if it was given.
        num_ctc_skipped (`torch.LongTensor` of shape `()`, *optional*): clips whose targets do not fit their frames.
        ctc_logits (`torch.FloatTensor` of shape `(clips, frames, vocabulary)`, *optional*): returned on request.
        no_speech_probs (`torch.FloatTensor` of shape `(clips,)`, *optional*): lowest probability of the CTC blank at
            any frame of the clip: near 1 where the CTC head finds no token. None in a training step (in training mode,
            with gradients). See `SoundwaveModel.judge_silence`.
    """

    aligned_states: torch.FloatTensor | None = None
    num_frames: torch.LongTensor | None = None
    num_positions: torch.LongTensor | None = None
    ctc_best: torch.LongTensor | None = None
    ctc_loss: torch.FloatTensor | None = None
    num_ctc_skipped: torch.LongTensor | None = None
    ctc_logits: torch.FloatTensor | None = None
    no_speech_probs: torch.FloatTensor | None = None


class EitherCacheName:
    """An output whose cache has two names, `past_key_values` and `cache`.

    From 5.24 on, the library's outputs have both too, with a warning for the old name.
    """

    def __getattr__(self, name):
        if name == "cache":  # only reached if no field has that name
            return self.past_key_values
        raise AttributeError(f"`{type(self).__name__}` has no attribute `{name}`.")

    def __getitem__(self, key):
        return super().__getitem__(CACHE if key in CACHE_NAMES else key)

    def __contains__(self, key):
        return super().__contains__(CACHE if key in CACHE_NAMES else key)

    def get(self, key, default=None):
        return super().get(CACHE if key in CACHE_NAMES else key, default)


@dataclass
class SoundwaveModelOutputWithPast(EitherCacheName, BaseModelOutputWithPast):
    """Output of [`SoundwaveModel`]: one state per input token, and the audio side's output.

    Args:
        last_hidden_state (`torch.FloatTensor` of shape `(batch, tokens, width)`): for the audio token, the state at
            the last of its positions.
        audio_output (`SoundwaveAudioOutput`, *optional*): present if clips were given.
    """

    audio_output: SoundwaveAudioOutput | None = None


@dataclass
class SoundwaveCausalLMOutputWithPast(EitherCacheName, CausalLMOutputWithPast):
    """Output of [`SoundwaveForConditionalGeneration`].

    Args:
        loss (`torch.FloatTensor` of shape `()`, *optional*): `ce_loss + ctc_loss_weight * ctc_loss`, of those present.
        ce_loss (`torch.FloatTensor` of shape `()`, *optional*): next-token loss, returned with `labels`.
        ctc_loss (`torch.FloatTensor` of shape `()`, *optional*): returned with `ctc_labels`.
        logits (`torch.FloatTensor` of shape `(batch, tokens, vocabulary)`): next-token scores of each input token.
        num_positions, num_frames, ctc_logits, num_ctc_skipped: see `SoundwaveAudioOutput`.
        last_hidden_state (`torch.FloatTensor` of shape `(batch, tokens, width)`): of the LLM, for users of
            `AutoModel`.
    """

    ce_loss: torch.FloatTensor | None = None
    ctc_loss: torch.FloatTensor | None = None
    num_positions: torch.LongTensor | None = None
    num_frames: torch.LongTensor | None = None
    num_ctc_skipped: torch.LongTensor | None = None
    ctc_best: torch.LongTensor | None = None
    ctc_logits: torch.FloatTensor | None = None
    last_hidden_state: torch.FloatTensor | None = None


__all__ = [
    "CACHE",
    "CACHE_NAMES",
    "EitherCacheName",
    "SoundwaveAudioOutput",
    "SoundwaveCausalLMOutputWithPast",
    "SoundwaveModelOutputWithPast",
    "num_read",
    "one_cache",
]
