"""CTC forced alignment: the frames of each word of a known text, and the words without frames.

This file does not depend on Soundwave. torchaudio has `forced_align`, but it requires that every label is said.
"""

from dataclasses import dataclass

import numpy as np


FRAMES_AT_ONCE = 512  # frames whose back pointers are kept at once: a clip of 10 minutes has 15,000 frames


@dataclass
class Alignment:
    """The likeliest path of a text through the frames of a clip.

    Args:
        first_frames, last_frames (`np.ndarray` of shape `(labels,)`): first and last frame of each label, from 0; -1
            for the labels of a word that was left out.
        left_out (`np.ndarray` of shape `(words,)`, bool): words that have no frames.
        frame_log_probs (`np.ndarray` of shape `(frames,)`): log-probability, in nats, of the path's label or blank
            at each frame.
    """

    first_frames: np.ndarray
    last_frames: np.ndarray
    left_out: np.ndarray
    frame_log_probs: np.ndarray


class _Trellis:
    """The states of a CTC path: a blank before each label and one at the end, `2 * labels + 1`."""

    def __init__(self, log_probs, blank_log_probs, places, word_lengths, left_out_log_prob):
        self.log_probs, self.blank_log_probs, self.places = log_probs, blank_log_probs, places
        self.num_states = 2 * len(places) + 1
        # Labels that may directly follow the label before them. Equal labels need a blank between them.
        self.jumps = 2 * np.flatnonzero(places[1:] != places[:-1]) + 3
        self.borders = 2 * np.cumsum([0, *word_lengths])  # states of the blank before each word, and the last state
        self.costs = None if left_out_log_prob is None else left_out_log_prob * (self.borders // 2)

    def emissions(self, begin: int, end: int) -> np.ndarray:
        """Log-probability of each state at some frames `(frames, states)`."""
        values = np.empty((end - begin, self.num_states))
        values[:, ::2] = self.blank_log_probs[begin:end, None]
        values[:, 1::2] = self.log_probs[begin:end][:, self.places]
        return values

    def step(self, scores: np.ndarray, emissions: np.ndarray, pointers: list | None = None) -> np.ndarray:
        """Best scores `(states,)` at a frame, from those at the frame before.

        Args: pointers: list to append to: how many states back each score came from, and the source of each border.
        """
        advance, jump = np.full((2, self.num_states), -np.inf)
        advance[1:] = scores[:-1]
        jump[self.jumps] = scores[self.jumps - 2]
        best = np.maximum(np.maximum(scores, advance), jump)
        sources = None
        if pointers is not None:
            origins = np.where(best == scores, 0, np.where(best == advance, 1, 2)).astype(np.uint8)
        best += emissions
        if self.costs is not None:
            reached = best[self.borders] - self.costs
            nearest = np.maximum.accumulate(reached)
            best[self.borders] = nearest + self.costs
            if pointers is not None:
                sources = np.maximum.accumulate(np.where(reached == nearest, np.arange(len(reached)), 0))
        if pointers is not None:
            pointers.append((origins, sources))
        return best

    def blocks(self, num_frames: int) -> list[tuple[int, int]]:
        """First frame and end of each block."""
        return [(begin, min(begin + FRAMES_AT_ONCE, num_frames)) for begin in range(0, num_frames, FRAMES_AT_ONCE)]


def _best_path(trellis: _Trellis, num_frames: int) -> tuple[np.ndarray, np.ndarray] | None:
    """State of each frame `(frames,)` and which words were left out; None if no path fits."""
    scores = np.full(trellis.num_states, -np.inf)
    scores[0] = 0.0  # the first frame is the blank or the first label
    kept = []  # scores before each block; the second pass computes the pointers from them
    for begin, end in trellis.blocks(num_frames):
        kept.append(scores)
        for emissions in trellis.emissions(begin, end):
            scores = trellis.step(scores, emissions)
    state = trellis.num_states - 1
    if state > 0 and scores[state - 1] > scores[state]:
        state -= 1
    if np.isneginf(scores[state]):
        return None
    path, left_out = np.empty(num_frames, dtype=np.int64), np.zeros(len(trellis.borders) - 1, dtype=bool)
    border_of = {int(border): number for number, border in enumerate(trellis.borders)}
    for (begin, end), scores in reversed(list(zip(trellis.blocks(num_frames), kept, strict=True))):
        pointers = []
        for emissions in trellis.emissions(begin, end):
            scores = trellis.step(scores, emissions, pointers)
        for frame, (origins, sources) in zip(reversed(range(begin, end)), reversed(pointers), strict=True):
            if sources is not None and (border := border_of.get(state)) is not None:
                left_out[sources[border] : border] = True
                state = int(trellis.borders[sources[border]])
            path[frame] = state
            state -= int(origins[state])
    return path, left_out


def align_labels(
    log_probs: np.ndarray,
    blank_log_probs: np.ndarray,
    places: np.ndarray,
    word_lengths: list[int] | None = None,
    left_out_log_prob: float | None = None,
) -> Alignment | None:
    """The likeliest CTC path of a known text (Viterbi).

    Two equal labels in a row have a blank between them. With `left_out_log_prob`, the path may skip a word at a blank
    frame. Then a text with unspoken words, or with more labels than the clip has frames, has an alignment too.

    Args:
        log_probs (`np.ndarray` of shape `(frames, columns)`): log-probabilities, in nats, of the text's labels.
        blank_log_probs (`np.ndarray` of shape `(frames,)`): log-probabilities of the blank.
        places (`np.ndarray` of shape `(labels,)`): the column of each label of the text, in order.
        word_lengths (`list[int]`, *optional*): labels of each word, 1 or more; one word by default.
        left_out_log_prob (`float`, *optional*): nats added to the score of the path for each label of a word
            that is left out.

    Returns: `Alignment`, or None if the text does not fit into the frames.

    Raises: `ValueError` if a word has no label, or `word_lengths` do not add up to the labels.
    """
    places = np.asarray(places, dtype=np.int64)
    word_lengths = [len(places)] if word_lengths is None else list(word_lengths)
    if sum(word_lengths) != len(places) or (len(places) and min(word_lengths) < 1):
        raise ValueError(
            f"`word_lengths` is {word_lengths} and there are {len(places)} labels: give each word the number of its "
            "labels, 1 or more."
        )
    word_lengths = word_lengths if len(places) else []
    trellis = _Trellis(log_probs, blank_log_probs, places, word_lengths, left_out_log_prob)
    if (found := _best_path(trellis, len(blank_log_probs))) is None:
        return None
    path, left_out = found
    frames = np.arange(len(path))
    first, last = np.full(len(places), -1), np.full(len(places), -1)
    is_label = path % 2 == 1
    last[path[is_label] // 2] = frames[is_label]  # of several frames of a label, the last one is kept
    first[path[is_label][::-1] // 2] = frames[is_label][::-1]
    says = np.array(blank_log_probs, dtype=np.float64)
    says[is_label] = np.asarray(log_probs)[frames[is_label], places[path[is_label] // 2]]
    return Alignment(first, last, left_out, says)


__all__ = ["Alignment", "align_labels"]
