"""Decides by the sound whether a clip without CTC labels may be a single word.

The CTC head sometimes misses a single word ("two", "comma"), but not longer speech. In log-mel, a word is short, has
many frequencies and changes. Silence, noise and clicks do not change, tones and hum have few frequencies, and music is
long. `benchmarks/no_speech.py` measures all of them.
"""

import torch
from torch import nn


DECIBELS = 40.0  # of Whisper's log-mel, which is scaled to 40 dB a unit: (log10 of the power + 4) / 4
LOUD_DECIBELS = 40.0  # below the loudest frame; softer frames are ignored
SMOOTHED_FRAMES = 5  # of 10 ms: single frames of noise differ from each other
LONGEST_WORD_FRAMES = 150  # loud frames of 10 ms
LEAST_SHARE_OF_BINS = 0.25  # within `LOUD_DECIBELS` of the loudest bin: words have 0.30 and more, hum 0.21
BANDS = 16  # of the whole range
LEAST_CHANGE_DECIBELS = 4.4  # deviation of the bands from their mean: words have 4.7 or more, short noise 4.1 or less


def may_be_word(log_mel: torch.Tensor) -> torch.Tensor:
    """Whether the true frames of one clip `(mel_bins, frames)`, log-mel as Whisper scales it, may be a single word.

    Returns: `torch.BoolTensor` of shape `()`.
    """
    width = min(SMOOTHED_FRAMES, log_mel.shape[1])
    smooth = nn.functional.avg_pool1d(log_mel.float(), width, stride=1)  # [mel_bins, frames]
    energy = smooth.mean(dim=0)
    is_loud = energy > energy.max() - LOUD_DECIBELS / DECIBELS
    loud = smooth[:, is_loud]
    peaks = loud.amax(dim=1)
    share = (peaks > peaks.max() - LOUD_DECIBELS / DECIBELS).float().mean()
    shape = (loud - energy[is_loud]).T[None]  # [1, loud frames, mel_bins]
    change = nn.functional.adaptive_avg_pool1d(shape, BANDS)[0].std(dim=0, correction=0).mean() * DECIBELS
    return (is_loud.sum() <= LONGEST_WORD_FRAMES) & (share >= LEAST_SHARE_OF_BINS) & (change >= LEAST_CHANGE_DECIBELS)


def may_be_words(input_features: torch.Tensor, input_features_mask: torch.Tensor | None = None) -> torch.Tensor:
    """`may_be_word` of padded clips `(clips, mel_bins, frames)`: `torch.BoolTensor` of shape `(clips,)`."""
    if input_features_mask is None:
        return torch.stack([may_be_word(clip) for clip in input_features])
    clips = zip(input_features, input_features_mask.sum(dim=1).tolist(), strict=True)
    return torch.stack([may_be_word(clip[:, :length]) for clip, length in clips])


__all__ = ["may_be_word", "may_be_words"]
