"""Cut clips longer than the encoder's window at quiet places, and join their pieces."""

import numpy as np
import torch
from torch import nn


PIECES_AT_ONCE = 8  # pieces of a long clip to encode at once, to limit memory
SHORTEST_TAIL = 0.1  # seconds; a shorter last piece is joined to the one before


def cut_at_quiet(energy: torch.Tensor, window: int, unit: int) -> list[tuple[int, int]]:
    """Cut a long clip at the quietest place in the last third of each window.

    Args:
        energy (`torch.Tensor` of shape `(mel_frames,)`): mean log-mel of each frame.
        window (`int`): largest number of mel frames in a piece.
        unit (`int`): mel frames of an aligned frame; pieces begin at multiples of it.

    Returns: first mel frame and end of each piece. Together the pieces are the whole clip.
    """
    smooth = max(1, window // 150)  # 0.2 s of 30 s: shorter than most pauses, longer than most closures within words
    begins = [0]
    while len(energy) - begins[-1] > window:
        earliest = begins[-1] + 2 * window // 3
        searched = energy[earliest : begins[-1] + window].float()
        loudness = nn.functional.avg_pool1d(searched[None, None], smooth, stride=1)[0, 0]
        quietest = earliest + int(loudness.argmin()) + smooth // 2
        begins.append(max(quietest // unit * unit, begins[-1] + unit))
    return list(zip(begins, [*begins[1:], len(energy)], strict=True))


def join_pieces(states: list[torch.Tensor], pieces_of_clip: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Pieces `(frames, width)` in order -> padded clips `(clips, frames, width)` and their mask of true frames."""
    rest = iter(states)
    clips = [torch.cat([next(rest) for _ in range(pieces)]) for pieces in pieces_of_clip]
    joined = nn.utils.rnn.pad_sequence(clips, batch_first=True)
    lengths = torch.tensor([len(clip) for clip in clips], device=joined.device)
    return joined, torch.arange(joined.shape[1], device=joined.device) < lengths[:, None]


def cut_samples(samples: np.ndarray, sampling_rate: int, seconds: float) -> list[np.ndarray]:
    """Cut a clip longer than `seconds` at quiet places: `(samples,)` -> pieces that together are the whole clip."""
    hop = sampling_rate // 100
    if len(samples) <= seconds * sampling_rate:
        return [samples]
    frames = np.pad(samples, (0, -len(samples) % hop)).reshape(-1, hop)
    loudness = np.log10(np.mean(frames**2, axis=1) + 1e-10)  # [frames of 10 ms]
    places = cut_at_quiet(torch.from_numpy(loudness), round(100 * seconds), 1)
    if places[-1][1] - places[-1][0] < 100 * SHORTEST_TAIL:
        places[-2:] = [(places[-2][0], places[-1][1])]
    return [samples[hop * begin : hop * end] for begin, end in places]


__all__ = ["PIECES_AT_ONCE", "cut_at_quiet", "cut_samples", "join_pieces"]
