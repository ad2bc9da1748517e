"""CTC log-probabilities of one clip for decoding: of single labels, and of texts.

`CTCFrames` holds the CTC scores of a clip's frames and computes those of single labels when they are needed.
`CTCTexts` gives the probability that the transcript begins with a text, or equals it. It sums over all ways to write
the text with labels that are likely at some frame, and with single bytes. This file does not depend on Soundwave.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .ctc_soundwave import _scores, tokens_at_once


LIKELY_LABELS = 32  # at each frame
LEAST_PROBABILITY = 1e-5  # of a likely label, at its best frame
CACHED_VALUES = 2_000_000  # texts times frames, for each clip: about 50 MB
NEGLIGIBLE = 25.0  # nats: smaller terms of a sum are dropped


@dataclass
class CTCFrames:
    """CTC log-probabilities of the frames of one clip. Those of single labels are computed by `columns`.

    Args:
        states (`torch.Tensor` of shape `(frames, width)`): aligned states.
        token_weight (`torch.Tensor` of shape `(vocabulary, width)`): one row for each token.
        normalizer (`torch.FloatTensor` of shape `(frames,)`): log-sum-exp of the scores of blank and tokens.
        blank_log_probs (`torch.FloatTensor` of shape `(frames,)`).
        top_ids, top_log_probs (`(frames, labels)`): the likeliest tokens of each frame, best first.
        entropy (`torch.FloatTensor` of shape `(frames,)`): of the blank and all tokens, in nats.
    """

    states: torch.Tensor
    token_weight: torch.Tensor
    normalizer: torch.Tensor
    blank_log_probs: torch.Tensor
    top_ids: torch.Tensor
    top_log_probs: torch.Tensor
    entropy: torch.Tensor

    def __len__(self) -> int:
        return len(self.states)

    def columns(self, ids: torch.Tensor | Sequence[int]) -> torch.Tensor:
        """Log-probabilities of tokens `(ids,)` without the blank: `(frames, ids)`, float32."""
        ids = torch.as_tensor(ids, device=self.token_weight.device, dtype=torch.long)
        return _scores(self.states, self.token_weight[ids]) - self.normalizer[:, None]


@torch.no_grad()
def score_frames(
    aligned: torch.Tensor,
    num_frames: torch.Tensor,
    token_weight: torch.Tensor,
    blank_id: int,
    blank_weight: torch.Tensor | None = None,
    blank_bias: torch.Tensor | None = None,
    top: int = LIKELY_LABELS,
) -> list[CTCFrames]:
    """`CTCFrames` of each clip; arguments as in `large_vocabulary_ctc`. All tokens are scored once, in chunks.

    Args:
        aligned (`torch.Tensor` of shape `(clips, frames, width)`): padded on the right.
        num_frames (`torch.LongTensor` of shape `(clips,)`).
        top (`int`): number of likeliest tokens to keep for each frame.
    """
    valid = torch.arange(aligned.shape[1], device=aligned.device)[None] < num_frames[:, None]
    states = aligned[valid]  # [all frames, width]
    row = token_weight[blank_id] if blank_weight is None else blank_weight
    blank = _scores(states, row[None])[:, 0] + (0 if blank_bias is None else blank_bias)
    normalizer, mean, best, best_ids = blank, blank, None, None  # `mean`: expected score so far
    chunk = tokens_at_once(len(states))
    for start in range(0, len(token_weight), chunk):
        scores = _scores(states, token_weight[start : start + chunk])  # [all frames, chunk]
        if start <= blank_id < start + chunk:
            scores[:, blank_id - start] = torch.finfo(scores.dtype).min
        total = scores.logsumexp(dim=1)
        share = torch.sigmoid(total - normalizer)  # of this chunk
        mean = mean * (1 - share) + (scores * (scores - total[:, None]).exp()).sum(dim=1) * share
        normalizer = torch.logaddexp(normalizer, total)
        values, ids = scores.topk(min(top, scores.shape[1]), dim=1)
        if best is not None:
            values, ids = torch.cat([best, values], dim=1), torch.cat([best_ids, ids + start], dim=1)
            values, order = values.topk(min(top, values.shape[1]), dim=1)
            ids = ids.gather(1, order)
        best, best_ids = values, ids
    parts = (states, normalizer, blank - normalizer, best_ids, best - normalizer[:, None], normalizer - mean)
    clips = zip(*(part.split(num_frames.tolist()) for part in parts), strict=True)
    return [CTCFrames(own, token_weight, *rest) for own, *rest in clips]


class _Spelt:
    """All label sequences that write one text and end there.

    Args:
        ends: for each last label, log-probability `(frames + 1,)` that a sequence is complete after so many frames and
            that the last frame has this label.
        blank: the same, if the last frame is blank.
        earlier: log-probability that the transcript is the likeliest of the shorter beginnings of the text.
    """

    def __init__(self, ends: dict[int, np.ndarray], blank: np.ndarray, earlier: float = -np.inf):
        self.ends, self.blank = ends, blank
        self.total = np.logaddexp.reduce([blank, *ends.values()]) if ends else blank
        self.peak = self.total.max()
        self.ended = max(float(self.total[-1]), earlier)

    def before(self, label: int) -> np.ndarray:
        """Log-probability `(frames,)` that a label may begin at a frame. A repeated label needs a blank."""
        if label not in self.ends:
            return self.total[:-1]
        others = [values for last, values in self.ends.items() if last != label]
        return np.logaddexp.reduce([self.blank, *others])[:-1]


def _held(log_probs: np.ndarray, entering: np.ndarray) -> np.ndarray:
    """Log-probability `(frames + 1,)` of being at a label after so many frames, for any time spent there.

    `held[t + 1] = log_probs[t] + logaddexp(held[t], entering[t])`, as a running sum.

    Args: log_probs, entering: `(frames,)`.
    """
    so_far = np.concatenate([[0.0], np.cumsum(log_probs)])
    running = np.logaddexp.accumulate(entering - so_far[:-1])
    return np.concatenate([[-np.inf], running + so_far[1:]])


class CTCTexts:
    """CTC scores of texts over the frames of one clip (prefix scores as in P17-1048, over texts instead of labels).

    A text can be written by any sequence of labels whose joined bytes are its bytes. Scores depend only on the text
    and are cached, so beams, drafts and candidates with the same beginning share work. The cache is bounded.

    Args:
        frames: CTC scores of the clip.
        bytes_of: bytes of each token, b"" for control tokens.
        byte_labels: tokens of a single byte, so that every text can be written.
    """

    def __init__(self, frames: CTCFrames, bytes_of: Sequence[bytes], byte_labels: Sequence[int]):
        best = frames.top_ids[frames.top_log_probs >= np.log(LEAST_PROBABILITY)].unique().tolist()
        # An embedding table may have more rows than the tokenizer has tokens. Such a label has no text.
        labels = {label for label in (*best, *byte_labels) if label < len(bytes_of) and bytes_of[label]}
        labels = sorted(labels, key=lambda label: bytes_of[label])
        log_probs = frames.columns(labels).T.cpu().double().numpy()
        blank = frames.blank_log_probs.cpu().double().numpy()
        texts = [bytes_of[label] for label in labels]
        self._set(texts, np.maximum(log_probs, -700.0), np.maximum(blank, -700.0))

    @classmethod
    def _of(cls, texts: list[bytes], log_probs: np.ndarray, blank: np.ndarray) -> "CTCTexts":
        found = cls.__new__(cls)
        found._set(texts, log_probs, blank)
        return found

    def _set(self, texts: list[bytes], log_probs: np.ndarray, blank: np.ndarray):
        """Args: texts: of each label, sorted; log_probs `(labels, frames)`, blank `(frames,)`: finite."""
        self.texts = texts  # sorted, so that equal beginnings are adjacent
        self.most_bytes = max(map(len, self.texts))
        self.log_probs, self.probs, self.blank = log_probs, np.exp(log_probs), blank
        self.places = {}  # text -> indices of its labels
        for place, text in enumerate(self.texts):
            self.places.setdefault(text, []).append(place)
        self.spans = {}  # label -> first frame, frame after the last, and log-probability of all: see `with_spans`
        self.most_cached = CACHED_VALUES // len(self.blank)
        self.spelt = {b"": _Spelt({}, np.concatenate([[0.0], np.cumsum(self.blank)]))}
        self.least = -np.inf  # texts with a lower peak are not continued
        self.begun, self.columns = {b"": 0.0}, {}

    def likeliest(self) -> np.ndarray:
        """Log-probability of the likeliest label or the blank at each frame, `(frames,)`."""
        return np.maximum(self.log_probs.max(axis=0), self.blank)

    def with_spans(self, spans: Sequence[tuple[bytes, int, int]]) -> "CTCTexts":
        """The same scores with additional labels, each as likely as the likeliest labels in one span of frames.

        Such a label takes all frames of its span.

        Args: spans: text of a label, its first frame and the frame after its last.
        """
        likeliest = self.likeliest()
        rows = np.full((len(spans), len(self.blank)), -700.0)
        for row, (_, first, _) in zip(rows, spans, strict=True):
            row[first] = likeliest[first]
        texts = [*self.texts, *(text for text, _, _ in spans)]
        order = sorted(range(len(texts)), key=texts.__getitem__)
        log_probs = np.concatenate([self.log_probs, rows])[order]
        found = CTCTexts._of([texts[place] for place in order], log_probs, self.blank)
        for number, (_, first, end) in enumerate(spans, start=len(self.texts)):
            found.spans[order.index(number)] = first, end, likeliest[first:end].sum()
        return found

    def whole(self, text: bytes) -> float:
        """Log-probability that the transcript is this text."""
        return float(self._spell(text).total[-1])

    def ended(self, text: bytes) -> float:
        """Highest log-probability that the transcript is this text or one of its prefixes."""
        return self._spell(text).ended

    def prefix(self, text: bytes) -> float:
        """Log-probability that the transcript begins with this text."""
        if text not in self.begun:
            self.begun[text] = self._prefix(text)
        return self.begun[text]

    def continuations(self, text: bytes, count: int) -> list[bytes]:
        """Most likely texts after a text: the rest of a label that contains its end, or the next label.

        Returns: at most `count` texts, best first.
        """
        found = {}
        for start in range(max(0, len(text) - self.most_bytes + 1), len(text) + 1):
            first, end = self._beginning_with(text[start:])
            spelt = self._spell(text[:start])
            if first == end or spelt.peak == -np.inf:
                continue
            scores = self.probs[first:end] @ np.exp(spelt.total[:-1] - spelt.peak)
            for place in np.argsort(-scores)[:count]:
                rest = self.texts[first + place][len(text) - start :]
                if rest and scores[place] > 0:
                    score = np.log(scores[place]) + spelt.peak
                    found[rest] = np.logaddexp(found.get(rest, -np.inf), score)
        return sorted(found, key=found.get, reverse=True)[:count]

    def _beginning_with(self, text: bytes) -> tuple[int, int]:
        """Range of the labels that begin with a text: first and end."""
        return bisect_left(self.texts, text), bisect_left(self.texts, text + b"\xff" * (self.most_bytes + 1))

    def _column(self, text: bytes) -> tuple[int, int, np.ndarray, float]:
        """Labels that begin with a text: first, end, their total log-probability `(frames,)`, and its maximum."""
        if text not in self.columns:
            if len(self.columns) >= self.most_cached:
                self.columns = {}
            first, end = self._beginning_with(text)
            column = self.probs[first:end].sum(axis=0)
            column = np.log(np.maximum(column, 1e-300))
            self.columns[text] = first, end, column, column.max(initial=-np.inf)
        return self.columns[text]

    def _prefix(self, text: bytes) -> float:
        # The last label begins at any byte of the text, and reaches its end or goes beyond it.
        ways = []
        for start in range(max(0, len(text) - self.most_bytes), len(text)):
            first, end, column, most = self._column(text[start:])
            if first < end:
                spelt = self._spell(text[:start])
                ways.append((spelt.peak + most, spelt, first, end, column))
        best = -np.inf
        for bound, spelt, first, end, column in sorted(ways, key=lambda way: -way[0]):
            if bound + np.log(len(column)) < best - NEGLIGIBLE:
                break
            score = np.logaddexp.reduce(spelt.total[:-1] + column)
            if score == -np.inf:  # more labels than frames
                continue
            for label, ends in spelt.ends.items():  # a label needs a blank before it is repeated
                if first <= label < end:
                    repeated = np.logaddexp.reduce(ends[:-1] + self.log_probs[label])
                    score += np.log1p(-min(np.exp(repeated - score), 1 - 1e-12))
            best = np.logaddexp(best, score)
        return float(best)

    def _spell(self, text: bytes) -> _Spelt:
        known = len(text)
        while text[:known] not in self.spelt:
            known -= 1
        if known < len(text) and len(self.spelt) >= max(self.most_cached, 2 * len(text)):
            # Other texts may be computed again.
            self.spelt = {text[:end]: self.spelt[text[:end]] for end in range(known + 1)}
        for end in range(known + 1, len(text) + 1):
            self.spelt[text[:end]] = self._spell_last(text[:end])
        return self.spelt[text]

    def _ends_of(self, label: int, before: _Spelt) -> np.ndarray:
        """Log-probability `(frames + 1,)` that a text and then a label are complete after so many frames."""
        if label not in self.spans:
            return _held(self.log_probs[label], before.before(label))
        first, end, log_prob = self.spans[label]
        ends = np.full(len(self.blank) + 1, -np.inf)
        ends[end] = before.total[first] + log_prob
        return ends

    def _spell_last(self, text: bytes) -> _Spelt:
        ends = {}
        for length in range(1, min(self.most_bytes, len(text)) + 1):
            for label in self.places.get(text[len(text) - length :], ()):
                before = self.spelt[text[: len(text) - length]]
                if before.peak > self.least:
                    ends[label] = self._ends_of(label, before)
        peaks = {label: values.max() for label, values in ends.items()}
        best = max(peaks.values(), default=-np.inf)
        ends = {label: values for label, values in ends.items() if peaks[label] >= best - NEGLIGIBLE}
        earlier = self.spelt[text[:-1]].ended
        if best == -np.inf:
            return _Spelt({}, np.full(len(self.blank) + 1, -np.inf), earlier)
        reached = np.logaddexp.reduce(list(ends.values()))
        return _Spelt(ends, _held(self.blank, reached[:-1]), earlier)


class SaidTexts(CTCTexts):
    """Scores of texts that may be said anywhere in a clip, minus those of the likeliest labels in the same frames.

    Args:
        texts: scores of the clip.
        least: nats; texts with a lower score at every place are not continued.
        is_reversed: whether frames and texts run backwards.
    """

    def __init__(self, texts: CTCTexts, least: float, is_reversed: bool = False):
        order = slice(None, None, -1 if is_reversed else 1)
        likeliest = texts.likeliest()
        self.places, self.most_bytes = texts.places, texts.most_bytes
        if is_reversed:
            self.places = {text[::-1]: places for text, places in texts.places.items()}
        self.log_probs = (texts.log_probs - likeliest)[:, order]
        self.blank = (texts.blank - likeliest)[order]
        self.least, self.spans, self.most_cached = least, {}, texts.most_cached
        self.spelt = {b"": _Spelt({}, np.zeros(len(self.blank) + 1))}  # a text may begin at any frame

    def score(self, text: bytes) -> float:
        """Score of a text at its best place, in nats; -inf if it is below `least`."""
        peak = float(self._spell(text).peak)
        return peak if peak >= self.least else -np.inf

    def last_frames(self, text: bytes) -> np.ndarray:
        """Scores `(frames,)` of a text whose last label ends with a frame."""
        return np.max(list(self._spell(text).ends.values()), axis=0)[1:]


__all__ = ["CTCFrames", "CTCTexts", "SaidTexts", "score_frames"]
