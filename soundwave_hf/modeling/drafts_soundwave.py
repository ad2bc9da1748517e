"""Drafts: the LLM checks many tokens of the CTC head's transcript in one pass.

`lossless`: the answer equals greedy decoding; each pass accepts the draft up to the first token that the LLM would not
choose. `fast` (arXiv 2603.11243): a transcript with low entropy at all frames is used without the LLM; otherwise each
token with enough probability by the LLM is accepted. `ctc`: the transcript of the CTC head, without the LLM.
"""

from copy import copy
from dataclasses import dataclass

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer
from transformers.generation import (
    EosTokenCriteria,
    ExponentialDecayLengthPenalty,
    ForcedBOSTokenLogitsProcessor,
    ForcedEOSTokenLogitsProcessor,
    GenerateDecoderOnlyOutput,
    GenerationConfig,
    InfNanRemoveLogitsProcessor,
    LogitNormalization,
    LogitsProcessor,
    LogitsProcessorList,
    MaxLengthCriteria,
    MaxTimeCriteria,
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    StoppingCriteriaList,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
)

from .answers_soundwave import end_ids, pad_answers
from .ctc_text_soundwave import CTCText
from .merging_soundwave import positions_of
from .outputs_soundwave import CACHE


DRAFTS = ("lossless", "fast", "ctc")
MOST_ENTROPY = 0.7  # nats; `tau` of arXiv 2603.11243
LEAST_PROBABILITY = 0.2  # `gamma` there
OUTPUTS = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")  # of each token
COMPARED_WORDS = 8  # last words of the answer, compared with the draft around the current place
SHORTEST_DRAFT = 4  # tokens
# What these do to a row does not depend on its place in the batch.
ROW_BY_ROW = (
    ExponentialDecayLengthPenalty,
    ForcedBOSTokenLogitsProcessor,
    ForcedEOSTokenLogitsProcessor,
    InfNanRemoveLogitsProcessor,
    LogitNormalization,
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
)


@dataclass
class Draft:
    """The CTC transcript of one clip, in the words of an answer.

    Args:
        words: with case and punctuation.
        entropy: highest entropy of the clip's frames, in nats.
    """

    words: list[str]
    entropy: float
    place: int = 0  # words before the last draft
    most_tokens: int | None = None  # limit of the next draft; None after a draft without refused tokens

    def tokens(self, bridge: CTCText, answer: list[int]) -> list[int]:
        """Tokens of the transcript after an answer, from the place that fits the answer's last words."""
        written = bridge.text_of(answer)
        self.place = self._next_place(bridge, written)
        begun = self._rest_of_word(written)
        rest = " ".join([*([] if begun is None else [begun]), *self.words[self.place :]])
        is_apart = begun is None and written and not written[-1].isspace()
        whole = f"{written} {rest}" if rest and is_apart else written + rest
        tokens = bridge.tokenizer(whole, add_special_tokens=False).input_ids
        if tokens[: len(answer)] != answer:
            tokens = [*answer, *bridge.tokenizer(whole[len(written) :], add_special_tokens=False).input_ids]
        return tokens[len(answer) :][: self.most_tokens]

    def _rest_of_word(self, written: str) -> str | None:
        """The missing rest of the answer's last word by the draft; None if it is another word."""
        last = written.split(" ")[-1]
        if not last or not self.place or written[-1].isspace():
            return None
        word = self.words[self.place - 1]
        is_begun = len(last) < len(word) and word.lower().startswith(last.lower())
        return word[len(last) :] if is_begun else None

    def _next_place(self, bridge: CTCText, written: str) -> int:
        """Number of draft words that the answer covers: the prefix with the fewest edits to the answer's words."""
        words = bridge.plain_words(written)
        if not words:
            return self.place
        compared, first = words[-COMPARED_WORDS:], max(0, self.place - COMPARED_WORDS)
        draft = [bridge.plain_word(word) for word in self.words[first : self.place + 2 * COMPARED_WORDS]]
        is_whole = first == 0 and len(compared) == len(words)  # otherwise the compared words may begin at any place
        distances = [place if is_whole else 0 for place in range(len(draft) + 1)]
        for number, word in enumerate(compared, 1):
            before, distances = distances, [distances[0] + 1]
            for place, other in enumerate(draft):
                is_same = other == word or (number == len(compared) and other.startswith(word))  # it may be incomplete
                cheapest = min(before[place] + (not is_same), before[place + 1] + 1, distances[place] + 1)
                distances.append(cheapest)
        nearest = [place for place, distance in enumerate(distances) if distance == min(distances)]
        # Of several nearest places, one whose word equals the answer's last word is preferred.
        alike = [place for place in nearest if place and draft[place - 1] == compared[-1]]
        return first + max(alike or nearest)


def draft_of(bridge: CTCText, labels: list[int], entropy: float) -> Draft:
    """The draft for CTC labels without repeats and blanks. Text without case becomes a sentence."""
    text = bridge.text_of(labels).strip()
    if text and bridge.form != "as_written":
        text = text[:1].upper() + text[1:] + "."
    return Draft(text.split(), entropy)


def drafted(
    decoding, given: dict, needs_times: bool, ctc_draft: str, draft_entropy=None, draft_probability=None
) -> "DraftedDecoding":
    """The decoding with drafts for the options of `generate`.

    Args: given: the other options of `generate`; needs_times: as in `DraftedDecoding`.

    Raises: `ValueError` for an unknown mode, a limit below 0, or options that exclude each other.
    """
    if ctc_draft not in DRAFTS:
        raise ValueError(f"`ctc_draft` is {ctc_draft!r}; expected one of {DRAFTS}.")
    for name in ("assistant_model", "prompt_lookup_num_tokens", "custom_generate", "past_key_values", "cache"):
        if given.get(name) is not None:
            raise ValueError(f"`ctc_draft` and `{name}` were given, but cannot be combined: leave one of them out.")
    limits = {"draft_entropy": draft_entropy, "draft_probability": draft_probability}
    for name, value in limits.items():
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0
        if value is not None and (ctc_draft != "fast" or not is_number):
            raise ValueError(f'`{name}` is {value!r}; expected a number of 0 or more, with `ctc_draft="fast"`.')
    entropy = MOST_ENTROPY if draft_entropy is None else draft_entropy
    probability = LEAST_PROBABILITY if draft_probability is None else draft_probability
    return DraftedDecoding(decoding, ctc_draft, entropy, probability, needs_times)


class DraftedDecoding:
    """A `custom_generate` of `generate`: greedy decoding with drafts.

    Args:
        decoding: `CTCDecoding`, which has a draft or None for each row after `prepare`.
        mode: one of `DRAFTS`.
        most_entropy, least_probability: limits of the mode "fast".
        needs_times: whether word times, or the support of words, are added to the answer: then the output is one of
            the library's, with the ids as `sequences`.
    """

    def __init__(self, decoding, mode: str, most_entropy: float, least_probability: float, needs_times: bool = False):
        self.decoding, self.mode, self.needs_times = decoding, mode, needs_times
        self.most_entropy, self.least_probability = most_entropy, least_probability

    def __call__(
        self,
        model,
        input_ids: torch.LongTensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        synced_gpus: bool = False,
        streamer=None,
        **inputs,
    ) -> torch.LongTensor | GenerateDecoderOnlyOutput:
        self.refuse_options(generation_config, stopping_criteria, synced_gpus, streamer)
        room = generation_config.max_length - input_ids.shape[1]
        # The mode "ctc" does not run the LLM.
        window = None if self.mode == "ctc" else self.window_of(model, inputs["inputs_embeds"].shape[1], room)
        silent = inputs.get("silent_rows")
        drafts = self.decoding.drafts or [None] * len(input_ids)
        ends = end_ids(generation_config.eos_token_id)
        rows = []
        for row, draft in enumerate(drafts):
            processors = [_for_row(each, row, len(drafts)) for each in logits_processor]
            is_silent = silent is not None and bool(silent[row])
            rows.append(_Row(self, draft, input_ids[row], LogitsProcessorList(processors), ends, room, is_silent))
        if any(not row.is_finished for row in rows):
            _Passes(model, rows, inputs, stopping_criteria, input_ids, window).run()
        tokenizer = self.decoding.bridge.tokenizer
        answers = pad_answers([row.answer for row in rows], ends, generation_config.pad_token_id, tokenizer)
        ids = torch.cat([input_ids, torch.tensor(answers, device=input_ids.device, dtype=input_ids.dtype)], dim=1)
        return GenerateDecoderOnlyOutput(sequences=ids) if self.needs_times else ids

    def refuse_options(self, config: GenerationConfig, criteria: StoppingCriteriaList, synced_gpus: bool, streamer):
        """Raises: `ValueError` for options of `generate` that do not go with drafts."""
        known = (EosTokenCriteria, MaxLengthCriteria, MaxTimeCriteria)
        refused = [
            ("num_beams", config.num_beams, (config.num_beams or 1) > 1),
            ("do_sample", True, config.do_sample),
            ("return_dict_in_generate", True, config.return_dict_in_generate and not self.needs_times),
            *((name, True, getattr(config, name)) for name in OUTPUTS),
            ("use_cache", False, not config.use_cache),
            # Refused tokens stay in the cache, which has to grow.
            ("cache_implementation", config.cache_implementation, "static" in (config.cache_implementation or "")),
            ("streamer", streamer, streamer is not None),
            ("synced_gpus", True, synced_gpus),
            *(("stopping_criteria", type(each).__name__, not isinstance(each, known)) for each in criteria),
        ]
        for name, value, is_refused in refused:
            if is_refused:
                raise ValueError(
                    f"`ctc_draft` is {self.mode!r} and `{name}` is {value!r}, but drafts work only with greedy "
                    "decoding that stops by token, length or time and returns only ids. Leave one of the two out."
                )

    def window_of(self, model, prompt: int, room: int) -> int | None:
        """Positions in the shortest sliding window of the LLM; None if all of its layers see every position.

        Args: prompt, room: the most positions of a prompt, and the most tokens of its answer.

        Raises: `ValueError` if a layer keeps a state, which refused tokens would change, or if the prompt and its
            answer may exceed a window.
        """
        llm = model.model.language_model
        layers = DynamicCache(config=llm.config).layers  # a layer keeps its window in every kind of cache
        name = f"`ctc_draft` is {self.mode!r}, and the LLM ({llm.config.model_type})"
        if llm._is_stateful or any(type(each) not in (DynamicLayer, DynamicSlidingWindowLayer) for each in layers):
            raise ValueError(
                f"{name} has layers that do not keep every position, so refused tokens cannot be taken back: leave "
                "`ctc_draft` out."
            )
        window = min((each.sliding_window for each in layers if each.is_sliding), default=None)
        if window is not None and prompt + room > window:
            raise ValueError(
                f"{name} has a sliding window of {window} positions. The prompt has {prompt} and the answer may have "
                f"{room}, together more than the window: give a lower `max_new_tokens`, or leave `ctc_draft` out."
            )
        return window


def _for_row(processor: LogitsProcessor, row: int, rows: int) -> LogitsProcessor:
    """A logits processor for one row of a batch, which it gets alone.

    Raises: `ValueError` for a processor whose effect may depend on the place in the batch.
    """
    if hasattr(processor, "for_row"):
        return processor.for_row(row)
    if rows > 1 and type(processor) not in ROW_BY_ROW:
        raise ValueError(
            f"`ctc_draft` decodes each of the {rows} rows by itself, and {type(processor).__name__} may need the "
            "whole batch: decode one clip at a time, leave `ctc_draft` out, or give your own processor a method "
            "`for_row(row)` that returns the processor of that row."
        )
    if isinstance(getattr(processor, "prompt_ignore_length", None), torch.Tensor):  # one for each row
        processor = copy(processor)
        processor.prompt_ignore_length = processor.prompt_ignore_length[row : row + 1]
    return processor


class _Row:
    """One row of a batch: its answer so far, and the tokens that the next pass checks."""

    def __init__(self, search: DraftedDecoding, draft, prompt, processors, ends: list[int], room: int, silent: bool):
        self.search, self.draft, self.prompt, self.processors = search, draft, prompt, processors
        self.ends, self.room = ends, room
        self.llm_processors = LogitsProcessorList(p for p in processors if not hasattr(p, "for_row"))
        self.answer, self.is_finished = [], room < 1
        drafted = self._drafted() if not silent else []
        self.checked = drafted[: max(room - 1, 0)]
        is_sure = search.mode == "fast" and draft is not None and draft.entropy <= search.most_entropy
        if search.mode == "ctc" or is_sure or (silent and draft is not None):
            for token in [*drafted, *self.ends[:1]]:  # without the end token, if the limit cuts the transcript
                self._take(token)
            self.is_finished = True

    def _drafted(self) -> list[int]:
        """Tokens of the draft after the answer so far."""
        return [] if self.draft is None else self.draft.tokens(self.search.decoding.bridge, self.answer)

    def _take(self, token: int):
        if not self.is_finished:
            self.answer.append(token)
            self.is_finished = token in self.ends or len(self.answer) >= self.room

    def check(self, logits: torch.Tensor) -> int:
        """Accept checked tokens that the LLM agrees with, then add the LLM's own next token.

        Args: logits (`torch.FloatTensor` of shape `(checked + 1, vocabulary)`): after each known token.

        Returns: number of accepted tokens.
        """
        for place, scores in enumerate(logits.float()):
            ids = torch.cat([self.prompt, torch.tensor(self.answer, device=self.prompt.device, dtype=torch.long)])
            of_llm, scores = scores, self.processors(ids[None], scores[None])[0]
            token = int(scores.argmax())
            wanted = self.checked[place] if place < len(self.checked) else None
            if wanted is not None and self.search.mode == "fast" and token != wanted:
                probabilities = self.llm_processors(ids[None], of_llm[None])[0].softmax(dim=-1)  # not the joint score
                token = wanted if probabilities[wanted] >= self.search.least_probability else token
            self._take(token)
            if self.is_finished or token != wanted:
                break
        if self.draft is not None and not self.is_finished:
            num_checked = len(self.checked)
            if num_checked:
                self.draft.most_tokens = 2 * max(place, SHORTEST_DRAFT // 2) if place < num_checked else None
            self.checked = self._drafted()[: self.room - len(self.answer) - 1]
        return place


class _Passes:
    """Passes of the LLM over the rows. Refused tokens stay in the cache and are masked."""

    def __init__(self, model, rows: list[_Row], inputs: dict, criteria: StoppingCriteriaList, input_ids, window):
        self.model, self.rows, self.criteria, self.input_ids = model, rows, criteria, input_ids
        self.window = window
        self.cache = inputs[CACHE]
        self.embeds = inputs["inputs_embeds"]
        self.mask = inputs.get("attention_mask")
        if self.mask is None:
            self.mask = self.embeds.new_ones(self.embeds.shape[:2], dtype=torch.long)

    @torch.no_grad()
    def run(self):
        self._shorten_drafts()
        fed = [row.checked for row in self.rows]
        first = True
        while not all(row.is_finished for row in self.rows):
            logits, width = self._pass(fed, self.embeds if first else None)
            kept = self.mask.shape[1] - width
            for number, (row, tokens) in enumerate(zip(self.rows, fed, strict=True)):
                if row.is_finished:
                    continue
                own = logits[number, : len(tokens) + first]
                taken = row.check(own) + (0 if first else 1)
                self.mask[number, kept + taken :] = 0
            first = False
            self._shorten_drafts()
            fed = [[] if row.is_finished else [row.answer[-1], *row.checked] for row in self.rows]
            if any(each(self.input_ids, None).all() for each in self.criteria if isinstance(each, MaxTimeCriteria)):
                break

    def _shorten_drafts(self):
        """Leave room in the sliding window, where refused tokens stay too, for the rest of every answer."""
        left = [row.room - len(row.answer) for row in self.rows if not row.is_finished]
        if self.window is None or not left:
            return
        spare = self.window - self.mask.shape[1] - max(left)
        for row in self.rows:
            row.checked = row.checked[:spare]

    def _pass(self, fed: list[list[int]], prompt_embeds) -> tuple[torch.Tensor, int]:
        """Run the LLM on new tokens, in the first pass after the prompt. Returns: logits after each new token, in the
        first pass also after the prompt, `(rows, width or width + 1, vocabulary)`; width: the most new tokens."""
        width = max(map(len, fed))
        device = self.embeds.device
        ids = torch.zeros(len(fed), width, dtype=torch.long, device=device)
        true = torch.zeros(len(fed), width, dtype=self.mask.dtype, device=device)
        for row, tokens in enumerate(fed):
            ids[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.long, device=device)
            true[row, : len(tokens)] = 1
        embeds = self.model.get_input_embeddings()(ids).to(self.embeds)
        self.mask = torch.cat([self.mask, true], dim=1)
        positions = positions_of(self.mask)
        if prompt_embeds is not None:
            embeds = torch.cat([prompt_embeds, embeds], dim=1)
        outputs = self.model.model.language_model(
            inputs_embeds=embeds,
            attention_mask=self.mask,
            position_ids=positions[:, -embeds.shape[1] :],
            use_cache=True,
            **{CACHE: self.cache},
        )
        scored = width + (prompt_embeds is not None)
        return self.model.lm_head(outputs.last_hidden_state[:, -scored:].contiguous()), width


__all__ = ["DRAFTS", "OUTPUTS", "Draft", "DraftedDecoding", "draft_of", "drafted"]
