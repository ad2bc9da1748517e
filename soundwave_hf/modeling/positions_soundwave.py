"""The number of LLM positions of a clip at inference: fewer are faster, more keep more of the sound."""

import heapq
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import nn

from .inputs_soundwave import has_clips


@dataclass(frozen=True)
class PositionLimits:
    """How many positions a clip gets. A value of None, or a limit of 0, changes nothing.

    By default a clip has one position for each run of equal CTC labels. With too few, more frames of the longest runs
    become positions. With too many, runs of blanks are left out, the shortest first. If that is not enough, positions
    are left out that are most like the one before them (similar to A-ToMe, arXiv 2306.16009, which averages them). A
    clip keeps at least one position.

    Args:
        keep_blanks (`bool`, *optional*): whether runs of blanks become positions; by default as in the config.
        min_positions_per_second (`float`, *optional*): lowest number per second of a clip, on average.
        max_positions_per_second (`float`, *optional*): highest number per second of a clip, on average.

    Raises: `ValueError` for a limit that is no number of 0 or more, and for a lowest number above the highest.
    """

    keep_blanks: bool | None = None
    min_positions_per_second: float | None = None
    max_positions_per_second: float | None = None

    def __post_init__(self):
        if self.keep_blanks is not None and not isinstance(self.keep_blanks, bool):
            raise ValueError(f"`keep_blanks` is {self.keep_blanks!r}; expected True, False or None.")
        for name in POSITION_OPTIONS[1:]:
            value = getattr(self, name)
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if value is not None and not (is_number and 0 <= value < math.inf):
                raise ValueError(f"`{name}` is {value!r}; expected a number above 0, or 0 for no limit.")
        if self.max_positions_per_second and (self.min_positions_per_second or 0) > self.max_positions_per_second:
            raise ValueError(
                f"`min_positions_per_second` is {self.min_positions_per_second} and `max_positions_per_second` is "
                f"{self.max_positions_per_second}: the lowest number must not exceed the highest."
            )

    def check_rate(self, frame_seconds: float):
        """Raises: `ValueError` if a second has fewer frames than the lowest number of positions."""
        if (self.min_positions_per_second or 0) * frame_seconds > 1 + 1e-6:
            raise ValueError(
                f"`min_positions_per_second` is {self.min_positions_per_second}, but a second has only "
                f"{1 / frame_seconds:g} frames: give at most that."
            )

    def bounds(self, num_frames: int, frame_seconds: float) -> tuple[int, int]:
        """Lowest and highest number of positions of a clip.

        If rounding makes the lowest larger than the highest, the highest is used.
        """
        seconds, small = num_frames * frame_seconds, 1e-6
        highest, lowest = self.max_positions_per_second, self.min_positions_per_second
        most = max(1, math.floor(highest * seconds + small)) if highest else num_frames
        least = math.ceil(lowest * seconds - small) if lowest else 1
        return min(least, most, num_frames), most

    def choose(
        self, keep: torch.Tensor, is_blank: torch.Tensor, num_frames: torch.Tensor, frame_seconds: float
    ) -> torch.Tensor:
        """Frames that become positions, before `leave_out`.

        Args:
            keep (`torch.BoolTensor` of shape `(clips, frames)`): one frame of each run.
            is_blank (`torch.BoolTensor` of shape `(clips, frames)`).
            num_frames (`torch.LongTensor` of shape `(clips,)`).

        Returns: `torch.BoolTensor` of shape `(clips, frames)`.
        """
        self.check_rate(frame_seconds)
        keep = keep.clone()
        for clip, (kept, frames) in enumerate(torch.stack([keep.sum(dim=1), num_frames], dim=1).tolist()):
            least, most = self.bounds(frames, frame_seconds)
            if least <= kept <= most:
                continue
            places = keep[clip].nonzero()[:, 0].tolist()
            if kept < least:
                keep[clip, added_frames(places, frames, least - kept)] = True
            else:
                blanks = is_blank[clip].tolist()
                keep[clip, shortest_blanks(places, blanks, frames, kept - most)] = False
        return keep

    def leave_out(
        self, positions: torch.Tensor, num_positions: torch.Tensor, num_frames: torch.Tensor, frame_seconds: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Leave out positions that are most like the one before them, where a clip has too many.

        Args:
            positions (`torch.FloatTensor` of shape `(sum of num_positions, width)`).
            num_positions, num_frames (`torch.LongTensor` of shape `(clips,)`).

        Returns: the remaining positions, and their number in each clip.
        """
        limits = [self.bounds(frames, frame_seconds)[1] for frames in num_frames.tolist()]
        numbers = num_positions.tolist()
        if all(number <= most for number, most in zip(numbers, limits, strict=True)):
            return positions, num_positions
        likeness = nn.functional.cosine_similarity(positions[:-1].float(), positions[1:].float(), dim=-1)
        kept = torch.ones(len(positions), dtype=torch.bool, device=positions.device)
        begin = 0
        for number, most in zip(numbers, limits, strict=True):
            if number > most:
                alike = likeness[begin : begin + number - 1].topk(number - most).indices
                kept[begin + 1 + alike] = False
            begin += number
        return positions[kept], torch.minimum(num_positions, num_positions.new_tensor(limits))

    def digest(self) -> int:
        """A number that tells limits apart, for kept caches."""
        return zlib.crc32(repr(self).encode())


POSITION_OPTIONS = tuple(field.name for field in fields(PositionLimits))  # of `generate`


def added_frames(kept: list[int], num_frames: int, count: int) -> list[int]:
    """`count` more frames of a clip: each halves the longest gap between kept frames."""
    edges = [-1, *kept, num_frames]
    gaps = [(begin - end, begin, end) for begin, end in zip(edges, edges[1:], strict=False)]
    heapq.heapify(gaps)
    added = []
    for _ in range(count):
        _, begin, end = heapq.heappop(gaps)
        middle = (begin + end) // 2
        added.append(middle)
        heapq.heappush(gaps, (begin - middle, begin, middle))
        heapq.heappush(gaps, (middle - end, middle, end))
    return added


def shortest_blanks(kept: list[int], is_blank: list[bool], num_frames: int, count: int) -> list[int]:
    """Up to `count` kept frames of blanks, those of the shortest runs first."""
    lengths = {place: end - place for place, end in zip(kept, [*kept[1:], num_frames], strict=True)}
    return sorted((place for place in kept if is_blank[place]), key=lengths.get)[:count]


def find_position_limits(model, options: Mapping, generation_config=None) -> PositionLimits | None:
    """The limits of a call of `generate`: its options come first, then its generation config, then the model's.

    Returns: None if nothing is set.

    Raises: `ValueError` for a wrong value.
    """
    values = {}
    for config in (model.generation_config, generation_config):
        values |= {name: getattr(config, name, None) for name in POSITION_OPTIONS if hasattr(config, name)}
    values |= {name: options[name] for name in POSITION_OPTIONS if options.get(name) is not None}
    limits = PositionLimits(**values)
    limits.check_rate(model.config.frame_seconds)
    is_set = limits.keep_blanks is not None or limits.min_positions_per_second or limits.max_positions_per_second
    return limits if is_set else None


def take_position_limits(model, generation_config, options: dict) -> PositionLimits | None:
    """As `find_position_limits`, and remove the options from those of `generate`. None for a call without clips.

    Raises: `ValueError` for a wrong value, and for options of the call that would have no effect.
    """
    limits = find_position_limits(model, options, generation_config)
    asked = {name: value for name in POSITION_OPTIONS if (value := options.pop(name, None)) is not None}
    given = " and ".join(f"`{name}` is {value!r}" for name, value in asked.items())
    if asked and not has_clips(options):
        raise ValueError(f"{given}, but no clips were given: pass the clips again, or leave the option out.")
    if asked and options.get("ctc_draft") == "ctc":
        raise ValueError(f'{given}, but `ctc_draft="ctc"` runs without the LLM: leave one of the two out.')
    return limits if has_clips(options) else None


__all__ = ["POSITION_OPTIONS", "PositionLimits", "find_position_limits", "take_position_limits"]
