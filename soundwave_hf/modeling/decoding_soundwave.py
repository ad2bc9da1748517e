"""Joint decoding: the LLM's next tokens, rescored with the CTC head's scores."""

import reprlib
from collections.abc import Callable, Sequence
from functools import cache, partial
from itertools import groupby
from numbers import Real

import torch
from transformers.generation import GenerationConfig, LogitsProcessor
from transformers.utils import logging

from .ctc_scores_soundwave import CTCTexts
from .ctc_text_soundwave import CTCText, find_bridge, word_pattern
from .drafts_soundwave import Draft, draft_of, drafted
from .hotwords_soundwave import CTC_WEIGHT, HOTWORD_WEIGHT, Hotwords, PhraseTree, check_hotword_weight, check_hotwords


logger = logging.get_logger(__name__)


LLM_CANDIDATES = 16  # likeliest tokens of the LLM to score, beside tokens without a label
# Options of `generate` that use the CTC head.
CTC_OPTIONS = ("ctc_weight", "ctc_draft", "draft_entropy", "draft_probability", "hotwords", "hotword_weight")
CTC_CANDIDATES = 8  # likeliest continuations by the CTC head to score as well
MOST_MARKS = 8  # tokens without letters in a row, such as dashes and line breaks; then a word or the end must come
MOST_BEHIND = 5.0  # nats, `weight` times CTC: by more than this, ending earlier may not be better
FAR_BEHIND = 1e4  # nats that a token costs that is ruled out
DEFAULT_BEAMS = "transcription_num_beams"  # field of a generation config
DEFAULTS = ("ctc_weight", "hotword_weight", DEFAULT_BEAMS)  # what a model's generation config may hold
# Options of `generate` that choose a search, or that beams exclude. With one of them the default has no effect.
SEARCH_OPTIONS = (
    *("num_beams", "do_sample", "penalty_alpha", "dola_layers", "guidance_scale", "custom_generate", "ctc_draft"),
    *("assistant_model", "assistant_early_exit", "use_mtp", "prompt_lookup_num_tokens"),
    *("constraints", "force_words_ids", "num_beam_groups", "streamer", "past_key_values", "cache"),
)


class CTCLogitsProcessor(LogitsProcessor):
    """Scores each next token by the LLM and the CTC head (one-pass joint decoding, P17-1048).

    A token's score is `(1 - weight) * log p_LLM(token) + weight * (F(answer + token) - F(answer))`, where `F` is the
    CTC log-probability of all transcripts that begin with an answer, or, after the end token, that equal it.

    A token without a label, such as a mark or a line break, has `log p_LLM(token)` in place of the first term. It
    changes `F` only where it ends a word. At a share of the LLM's price it would be the cheapest token wherever LLM
    and CTC head disagree on the next word, and some answers would not end. After `MOST_MARKS` of them in a row, the
    next token has a label or ends the answer: a list of dashes is cheap for both, and would go on.

    An answer must not run on after the speech has ended, where a further letter may cost less than the end. If ending
    earlier would score better than the answer with a token by more than `MOST_BEHIND` (`weight` times the CTC
    log-probability), the token is ruled out. Where the answer may not end, as with `min_new_tokens`, or is inside a
    character of several tokens, this does not apply.

    With a `PhraseTree`, the change of its bonus is added. Tokens that cannot be among the best get -inf. Scores depend
    only on a row's clip and text, so beams may be reordered and drafts cut between two calls.

    Args:
        texts: one for each row of the prompt; None for a row that is not changed.
        bridge: converts the answer's tokens to label texts.
        weight: weight of the CTC head, from 0 to less than 1.
        prompt_length: tokens of a row before its answer.
        end_ids: tokens that end an answer.
        trees (*optional*): the favoured phrases of each row; None for a row without some.

    Raises: `ValueError` for a weight out of range.

    Example:

    ```python
    >>> frames = model.model.ctc_frames(audio)  # audio: what `get_audio_features` returned
    >>> bridge = CTCText(processor.tokenizer, "lower")
    >>> texts = [bridge.texts(clip) for clip in frames]
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
        trees: Sequence[PhraseTree | None] | None = None,
    ):
        self.texts, self.bridge = list(texts), bridge
        self.trees = [None] * len(self.texts) if trees is None else list(trees)
        self.weight = check_weight(weight)
        self.prompt_length = prompt_length
        self.end_ids = set(end_ids)

    def for_row(self, row: int) -> "CTCLogitsProcessor":
        """The same for one row of the prompt alone."""
        own = slice(row, row + 1)
        return CTCLogitsProcessor(
            self.texts[own], self.bridge, self.weight, self.prompt_length, self.end_ids, self.trees[own]
        )

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        copies = len(input_ids) // len(self.texts)  # beams or samples of a row
        log_probs = scores.float().log_softmax(dim=-1)
        joint = torch.full_like(log_probs, -torch.inf)
        for row, answer in enumerate(input_ids[:, self.prompt_length :].tolist()):
            own = row // copies
            if self.texts[own] is None:
                joint[row] = scores[row]
                continue
            found = self._score_row(own, answer, log_probs[row], num_kept=2 * copies if copies > 1 else 1)
            if not found:  # only control tokens are allowed here
                joint[row] = log_probs[row]
                continue
            tokens = torch.tensor(list(found), device=joint.device)
            joint[row, tokens] = torch.tensor(list(found.values()), device=joint.device, dtype=joint.dtype)
        return joint.to(scores.dtype)

    def _score_row(self, row: int, answer: list[int], log_probs: torch.Tensor, num_kept: int) -> dict:
        """Joint scores of the tokens that may be among the `num_kept` best."""
        texts = self.texts[row]
        candidates = self._candidates(row, answer, log_probs)
        if (tree := self.trees[row]) is not None:
            before = self._bonus(tree, answer)
            candidates = [(token, own + self._bonus(tree, [*answer, token]) - before) for token, own in candidates]
        candidates.sort(key=lambda pair: -pair[1])
        if not self.weight:
            return dict(candidates[:num_kept])
        before, may_end = self._score(texts, answer), any(token in self.end_ids for token, _ in candidates)
        least = self._least(texts, answer) if may_end else -torch.inf
        found, best = {}, []
        for token, own in candidates:  # the likeliest first; no CTC score is above 0
            if len(best) == num_kept and own <= best[-1]:
                break
            score = self._score(texts, [*answer, token])
            change = score - before if before > -torch.inf else 0.0
            found[token] = own + self.weight * max(min(change, 0.0), -1e4)
            if score < least and token not in self.end_ids:
                found[token] -= FAR_BEHIND
            else:
                best = sorted([*best, found[token]], reverse=True)[:num_kept]
        return found

    def _candidates(self, row: int, answer: list[int], log_probs: torch.Tensor) -> list[tuple[int, float]]:
        """Tokens with the LLM's term of their scores."""
        has_label = cache(partial(self._has_label, answer))
        tokens = likeliest_labelled(log_probs, has_label) | self.end_ids
        written = self.bridge.text_of(answer)
        following = set(self.trees[row].continuations(written)) if self.trees[row] is not None else set()
        for prefix in self.bridge.prefixes(written)[0]:
            following |= set(self.texts[row].continuations(prefix, CTC_CANDIDATES))
        for text in following:
            tokens |= self.bridge.tokens_for(text, at_start=not written)
        tokens = {token for token in tokens if token in self.end_ids or self.bridge.writes(token)}
        if self._ends_in_marks(answer):
            tokens = set(filter(has_label, tokens))
        places = torch.tensor(sorted(tokens), device=log_probs.device)
        pairs = zip(places.tolist(), log_probs[places].tolist(), strict=True)
        pairs = [(token, value) for token, value in pairs if value > -torch.inf]
        return [(token, (1 - self.weight * has_label(token)) * value) for token, value in pairs]

    def _has_label(self, answer: list[int], token: int) -> bool:
        """Whether the CTC head judges a token: one with a label, or one that ends the answer."""
        is_text = self.weight > 0 and token not in self.end_ids and self.bridge.writes(token)
        return not is_text or self.bridge.has_label(answer, token)

    def _ends_in_marks(self, answer: list[int]) -> bool:
        """Whether the last `MOST_MARKS` tokens of an answer write no letter or digit."""
        last = answer[-MOST_MARKS:]
        return len(last) == MOST_MARKS and not word_pattern().search(self.bridge.text_of(last))

    def _least(self, texts: CTCTexts, answer: list[int]) -> float:
        """The least `F` with which an answer may go on: see `MOST_BEHIND`."""
        if self.bridge.ends_inside_character(answer):
            return -torch.inf
        return texts.ended(self.bridge.whole(self.bridge.text_of(answer))) - MOST_BEHIND / self.weight

    def _bonus(self, tree: PhraseTree, answer: list[int]) -> float:
        is_whole = bool(answer) and answer[-1] in self.end_ids
        return tree.bonus(self.bridge.text_of(answer[:-1] if is_whole else answer), is_whole)

    def _score(self, texts: CTCTexts, answer: list[int]) -> float:
        """`F` of an answer."""
        if answer and answer[-1] in self.end_ids:
            return texts.whole(self.bridge.whole(self.bridge.text_of(answer[:-1])))
        begun, finished = self.bridge.prefixes(self.bridge.text_of(answer))
        scores = [*map(texts.prefix, begun), *map(texts.whole, finished)]
        return float(torch.logsumexp(torch.tensor(scores, dtype=torch.float64), dim=0))


def likeliest_labelled(log_probs: torch.Tensor, has_label: Callable[[int], bool]) -> set[int]:
    """The LLM's likeliest tokens with a label, and those without one that are likelier than the last of them."""
    found, num_labelled = set(), 0
    for token in log_probs.topk(min(8 * LLM_CANDIDATES, len(log_probs))).indices.tolist():
        found.add(token)
        num_labelled += has_label(token)
        if num_labelled == LLM_CANDIDATES:
            break
    return found


class CTCDecoding(LogitsProcessor):
    """The use of the CTC head in one call of `generate`: joint decoding and drafts. `prepare` needs the encoded clips.

    Args:
        model: a `SoundwaveForConditionalGeneration`.
        weight: weight of the CTC head in joint decoding; 0 for the LLM alone.
        asked: the options that the caller gave. With some, each row must be a transcription of one clip.
        needs_drafts: whether to make drafts of the CTC transcripts.
        tokenizer (*optional*): the LLM's tokenizer; by default `find_tokenizer` looks for it.
        hotwords (*optional*): phrases to favour where they are heard.
    """

    def __init__(
        self,
        model,
        weight: float,
        asked: dict,
        needs_drafts: bool = False,
        tokenizer=None,
        hotwords: Hotwords | None = None,
    ):
        self.model, self.weight, self.asked, self.hotwords = model, weight, asked, hotwords
        self.needs_drafts, self.tokenizer = needs_drafts, tokenizer
        self.joint = self.drafts = self.bridge = self.frames = None

    def prepare(self, audio, input_ids: torch.Tensor, marked):
        """Score the clips of a prompt and make drafts.

        Args:
            audio: `SoundwaveAudioOutput` of all clips.
            input_ids (`torch.LongTensor` of shape `(rows, tokens)`): one audio token for each clip.
            marked (`torch.BoolTensor` of shape `(rows,)`): rows that request a transcript.

        Raises: `ValueError` if the caller gave an option and a row is not a transcription of one clip.
        """
        if not (self.weight or self.needs_drafts or self.hotwords):
            return
        num_clips = (input_ids == self.model.config.audio_token_id).sum(dim=1)
        is_scored = torch.as_tensor(marked, device=num_clips.device).bool() & (num_clips == 1)
        if num_clips.sum() != len(audio.num_frames):
            return self.refuse_without_clips()  # clips of earlier turns are in the cache
        if self.asked and not is_scored.all():
            row = int((~is_scored).int().argmax())
            raise ValueError(
                f"{in_words(self.asked)}, but row {row} is not a transcription of one clip ({int(num_clips[row])} "
                "audio tokens), and the CTC head can only transcribe. Leave the option out, or generate such rows in "
                "another call."
            )
        if not is_scored.any():
            return
        try:
            self.bridge = find_bridge(self.model, self.tokenizer)
        except ValueError as error:
            if self.asked:
                raise
            return logger.warning_once(f"The LLM transcribes alone, without `ctc_weight` {self.weight}: {error}")
        clip_of = (num_clips.cumsum(dim=0) - num_clips).tolist()
        clips = [clip if own else None for clip, own in zip(clip_of, is_scored.tolist(), strict=True)]
        self.frames = frames = self.model.model.ctc_frames(audio)
        if self.weight or self.hotwords:
            texts = [None if clip is None else self.bridge.texts(frames[clip]) for clip in clips]
            self.joint = self._joint(texts, input_ids.shape[1])
        if self.needs_drafts:
            self.drafts = [None if clip is None else self._draft(audio, frames, clip) for clip in clips]

    def _joint(self, texts: list[CTCTexts | None], prompt_length: int) -> CTCLogitsProcessor:
        trees, weight = [None] * len(texts), self.weight
        if self.hotwords is not None:
            texts, trees = self.hotwords.apply(texts, self.bridge)
            if not weight:  # rows without a phrase that is heard are left to the LLM alone
                weight = self.hotwords.ctc_weight
                texts = [own if tree is not None else None for own, tree in zip(texts, trees, strict=True)]
        return CTCLogitsProcessor(texts, self.bridge, weight, prompt_length, [], trees)

    def _draft(self, audio, frames: list, clip: int) -> Draft:
        best = audio.ctc_best[clip, : len(frames[clip])].tolist()
        labels = [label for label, _ in groupby(best) if label != self.model.config.audio_token_id]
        return draft_of(self.bridge, labels, float(frames[clip].entropy.max()))

    def needs_frames(self, rules) -> bool:
        """Whether the call scores text by the frames of its clips. Args: rules: `AnswerRules`."""
        return bool(self.weight or self.asked or rules.keeps_clips)

    def refuse_without_clips(self):
        """Raises: `ValueError` if the caller gave an option and this call has no clips."""
        if self.asked:
            raise ValueError(
                f"{in_words(self.asked)}, but the clips are missing or already in `past_key_values` or "
                "`inputs_embeds`: pass whole prompts (`input_ids`) with their clips, or leave the option out."
            )

    def end_with(self, ends: list[int]):
        """Set the tokens that end an answer."""
        if self.joint is not None:
            self.joint.end_ids = set(ends)

    def for_row(self, row: int) -> LogitsProcessor:
        """The same for one row of the batch alone."""
        return self if self.joint is None else self.joint.for_row(row)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        return scores if self.joint is None else self.joint(input_ids, scores)


def in_words(options: dict) -> str:
    return " and ".join(f"`{name}` is {reprlib.repr(value)}" for name, value in options.items())


def take_ctc_decoding(model, generation_config, options: dict, needs_times: bool = False) -> CTCDecoding:
    """The `CTCDecoding` of a call of `generate`, by its options and its generation config.

    Args:
        options: keywords of `generate`; those in `CTC_OPTIONS` are removed.
        needs_times: whether word times, or the support of words, are requested too.

    Raises: `ValueError` for an option out of range, or options that exclude each other.
    """
    configs = [generation_config, model.generation_config]
    own = {name: options.pop(name, None) for name in CTC_OPTIONS}
    _take_from_config(own, *configs)
    hotwords = _take_hotwords(own, configs)
    asked = {name: value for name, value in own.items() if value}
    weight = check_weight(given_option("ctc_weight", own, configs) or 0)
    if given_option("do_sample", options, configs):
        if asked:
            raise ValueError(
                f"{in_words(asked)} and `do_sample` is True, but the CTC head needs a search for the best transcript. "
                "Set `do_sample=False`, and `num_beams` for a wider search."
            )
        weight = 0.0
    if asked and options.get("is_transcription") is None:
        raise ValueError(
            f"{in_words(asked)}, but no row is marked as a transcription, and the CTC head can only transcribe. Build "
            "the inputs with `processor.apply_transcription_request`, or leave the option out."
        )
    has_drafts = own["ctc_draft"] is not None
    _check_drafts(own, asked, hotwords)
    decoding = CTCDecoding(model, weight, asked, has_drafts, options.get("tokenizer"), hotwords)
    if has_drafts:
        drafts = {name: own[name] for name in ("ctc_draft", "draft_entropy", "draft_probability")}
        options["custom_generate"] = drafted(decoding, options, needs_times, **drafts)
    return decoding


def _take_from_config(own: dict, of_call: GenerationConfig | None, of_model: GenerationConfig):
    """Take the options without a default from the generation config of the call.

    Raises: `ValueError` if the model's own generation config holds one: it would change answers that nobody asked for.
    """
    for name in (name for name in CTC_OPTIONS if name not in DEFAULTS):
        if of_call is not None and own[name] is None:
            own[name] = getattr(of_call, name, None)
        if (value := getattr(of_model, name, None)) is not None:
            raise ValueError(
                f"The model's generation config holds `{name}` ({value!r}), which has no default: remove it there, "
                f"and give `{name}` to each call of `generate`."
            )


def _check_drafts(own: dict, asked: dict, hotwords: Hotwords | None):
    """Raises: `ValueError` for options that exclude drafts, or need them."""
    draft = own["ctc_draft"]
    if draft is None and asked.keys() & {"draft_entropy", "draft_probability"}:
        raise ValueError(f'{in_words(asked)}: the limits of drafts need `ctc_draft="fast"`.')
    if draft in ("fast", "ctc") and hotwords is not None:
        raise ValueError(
            f"{in_words(asked)}, but this draft may be the answer without the LLM, where hotwords have no effect: use "
            '`ctc_draft="lossless"`, or leave one of them out.'
        )


def take_default_beams(model, generation_config: GenerationConfig | None, options: dict):
    """Set `num_beams` to the default of joint decoding, `transcription_num_beams` of a generation config.

    The default is for calls whose rows are all transcription requests, and that choose no search themselves. The LLM
    alone (`ctc_weight` 0) stays greedy: with more beams it leaves out more.

    Args: options: keywords of `generate`.

    Raises: `ValueError` if the default is not a whole number of 1 or more, or was given to the call.
    """
    if options.get(DEFAULT_BEAMS) is not None:
        raise ValueError(
            f"`{DEFAULT_BEAMS}` is {options[DEFAULT_BEAMS]!r}, but it is a default of generation configs: give "
            "`num_beams` to a call."
        )
    configs = [generation_config, model.generation_config]
    beams = given_option(DEFAULT_BEAMS, {}, configs)
    marked = options.get("is_transcription")
    if beams is None or marked is None or not torch.as_tensor(marked).all():
        return
    if not given_option("ctc_weight", options, configs):
        return
    if isinstance(beams, bool) or not isinstance(beams, int) or beams < 1:
        raise ValueError(
            f"`{DEFAULT_BEAMS}` of the generation config is {beams!r}; expected a whole number such as 4."
        )
    chosen = (given_option(name, options, configs) for name in SEARCH_OPTIONS)
    if not any(value is not None and value is not False for value in chosen):
        options["num_beams"] = beams


def given_option(name: str, options: dict, configs: list):
    """The value of an option: from the call, or else from the first generation config that has one."""
    values = [options.get(name), *(getattr(config, name, None) for config in configs)]
    return next((value for value in values if value is not None), None)


def _take_hotwords(own: dict, configs: list) -> Hotwords | None:
    """The hotwords of a call; None without some, or with weight 0. Then `own` does not hold them any more."""
    phrases, weight = own["hotwords"], own["hotword_weight"]
    phrases = [] if phrases is None else check_hotwords(phrases)
    if weight is not None and own["hotwords"] is None:
        raise ValueError(f"`hotword_weight` is {weight!r}, but `hotwords` was not given: give both, or neither.")
    weight = given_option("hotword_weight", own, configs)
    weight = check_hotword_weight(HOTWORD_WEIGHT if weight is None else weight)
    if not weight or not any(phrases):
        own["hotwords"] = own["hotword_weight"] = None
        return None
    own["hotwords"] = phrases
    default = given_option("ctc_weight", own, configs)
    return Hotwords(phrases, weight, CTC_WEIGHT if default is None else default)


def check_weight(weight) -> float:
    """The weight of the CTC head as a float.

    Raises: `ValueError` unless it is a number from 0 to less than 1.
    """
    if isinstance(weight, bool) or not isinstance(weight, Real) or not 0 <= weight < 1:
        raise ValueError(
            f"`ctc_weight` is {weight!r}; expected a number from 0 (the LLM alone) to less than 1, such as 0.3."
        )
    return float(weight)


__all__ = [
    "CTC_OPTIONS",
    "CTCDecoding",
    "CTCLogitsProcessor",
    "check_weight",
    "given_option",
    "take_ctc_decoding",
    "take_default_beams",
]
