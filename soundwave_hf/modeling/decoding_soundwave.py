"""Joint decoding: the LLM's next tokens, rescored with what the CTC head hears."""

from collections.abc import Sequence

import torch
from transformers.generation import LogitsProcessor

from .ctc_scores_soundwave import CTCTexts
from .ctc_text_soundwave import CTCText


LLM_CANDIDATES = 16  # likeliest tokens of the LLM that are scored
CTC_CANDIDATES = 8  # labels that the CTC head hears next, whatever the LLM thinks of them


class CTCLogitsProcessor(LogitsProcessor):
    """Weighs each next token by the LLM and by the CTC head (one-pass joint decoding, P17-1048).

    A token's score is `(1 - weight) * log p_LLM(token) + weight * (F(answer + token) - F(answer))`, where `F` is the
    CTC log-probability of all transcripts that begin with an answer, or, behind the end token, that are this answer.
    Tokens that cannot be among the best get -inf. Scores depend on a row's clip and text alone: beams may be reordered
    and drafts cut between two calls.

    Args:
        texts: one a row of the prompt; None for a row that is left alone.
        bridge: from the answer's tokens to label texts.
        weight: of the CTC head, from 0 to less than 1.
        prompt_length: tokens of a row before its answer.
        end_ids: tokens that end an answer.

    Raises: `ValueError` for another weight.

    Example:

    ```python
    >>> frames = model.model.ctc_frames(audio)  # audio: what `get_audio_features` returned
    >>> bridge = CTCText(processor.tokenizer, "lower")
    >>> texts = [CTCTexts(clip, bridge.bytes_of, bridge.byte_labels) for clip in frames]
    >>> joint = CTCLogitsProcessor(texts, bridge, 0.3, prompt_length=ids.shape[1], end_ids=[2])
    ```
    """

    def __init__(
        self,
        texts: Sequence[CTCTexts | None],
        bridge: CTCText,
        weight: float,
        prompt_length: int,
        end_ids: Sequence[int],
    ):
        self.texts, self.bridge = list(texts), bridge
        self.weight = check_weight(weight)
        self.prompt_length = prompt_length
        self.end_ids = set(end_ids)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        copies = len(input_ids) // len(self.texts)  # beams or samples of a row
        log_probs = scores.float().log_softmax(dim=-1)
        joint = torch.full_like(log_probs, -torch.inf)
        for row, answer in enumerate(input_ids[:, self.prompt_length :].tolist()):
            text = self.texts[row // copies]
            if text is None:
                joint[row] = scores[row]
                continue
            found = self._score_row(text, answer, log_probs[row], num_kept=2 * copies if copies > 1 else 1)
            tokens = torch.tensor(list(found), device=joint.device)
            joint[row, tokens] = torch.tensor(list(found.values()), device=joint.device, dtype=joint.dtype)
        return joint.to(scores.dtype)

    def _score_row(self, texts: CTCTexts, answer: list[int], log_probs: torch.Tensor, num_kept: int) -> dict:
        """Joint scores of the tokens that may be among the `num_kept` best."""
        candidates = self._candidates(texts, answer, log_probs)
        before = self._score(texts, answer)
        found, best = {}, []
        for token, log_prob in candidates:  # the LLM's likeliest first: no CTC score is above 0
            own = (1 - self.weight) * log_prob
            if len(best) == num_kept and own <= best[-1]:
                break
            change = self._score(texts, [*answer, token]) - before
            found[token] = own + self.weight * max(min(change, 0.0), -1e4)
            best = sorted([*best, found[token]], reverse=True)[:num_kept]
        return found

    def _candidates(self, texts: CTCTexts, answer: list[int], log_probs: torch.Tensor) -> list[tuple[int, float]]:
        tokens = set(log_probs.topk(min(LLM_CANDIDATES, len(log_probs))).indices.tolist()) | self.end_ids
        written = self.bridge.text_of(answer)
        for prefix in self.bridge.prefixes(written)[0]:
            for heard in texts.continuations(prefix, CTC_CANDIDATES):
                tokens |= self.bridge.tokens_for(heard, at_start=not written)
        tokens = {token for token in tokens if token in self.end_ids or self.bridge.writes(token)}
        places = torch.tensor(sorted(tokens), device=log_probs.device)
        pairs = zip(places.tolist(), log_probs[places].tolist(), strict=True)
        return sorted(((token, value) for token, value in pairs if value > -torch.inf), key=lambda pair: -pair[1])

    def _score(self, texts: CTCTexts, answer: list[int]) -> float:
        """`F` of an answer."""
        if answer and answer[-1] in self.end_ids:
            return texts.whole(self.bridge.whole(self.bridge.text_of(answer[:-1])))
        begun, finished = self.bridge.prefixes(self.bridge.text_of(answer))
        scores = [*map(texts.prefix, begun), *map(texts.whole, finished)]
        return float(torch.logsumexp(torch.tensor(scores, dtype=torch.float64), dim=0))


def check_weight(weight) -> float:
    """The weight of the CTC head as a number.

    Raises: `ValueError` where it is none, or not from 0 to less than 1.
    """
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < 1:
        raise ValueError(
            f"`ctc_weight` is {weight!r}; expected a number from 0 (the LLM alone) to less than 1, such as 0.3."
        )
    return float(weight)


__all__ = ["CTCLogitsProcessor", "check_weight"]
