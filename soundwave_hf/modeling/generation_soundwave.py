"""`generate` for prompts in which each audio token is replaced by many positions.

Clips are encoded and merged once, before beams or samples are made. After that, the caller's ids (one token for each
clip) and the merged row (embeddings, mask, cache) differ by a constant number of positions.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from transformers import GenerationConfig
from transformers.cache_utils import Cache, DynamicLayer
from transformers.generation import AssistedCandidateGenerator, GenerationMixin, LogitsProcessor, LogitsProcessorList
from transformers.pytorch_utils import move_to_device
from transformers.utils import logging

from .answers_soundwave import end_ids
from .decoding_soundwave import CTCDecoding, given_option, take_ctc_decoding, take_default_beams
from .inputs_soundwave import check_tensors, has_clips
from .outputs_soundwave import CACHE, CACHE_NAMES, num_read, one_cache
from .positions_soundwave import take_position_limits
from .timed_generation_soundwave import TimesRequest, ctc_clips


logger = logging.get_logger(__name__)

# Inputs that the hooks below pass on during `generate` with clips.
OWN_INPUTS = (
    *("prompt_ids", "num_added", "caller_inputs", "caller_mask", "is_draft"),
    *("prompt_digests", "prompt_is_silent", "answer_rules", "silent_rows", "ctc_decoding"),
)
CLIP_INPUTS = ("input_features", "input_features_mask", "encoder_states", "encoder_mask")
PROMPT_INPUTS = (
    *("inputs_embeds", "attention_mask", "position_ids"),
    *("negative_prompt_ids", "negative_prompt_attention_mask"),
)
CTC_TARGETS = ("ctc_labels", "ctc_mask", "ctc_candidates", "num_ctc_clips")  # of `forward`


def by_name(function: Callable, args: tuple, kwargs: dict, after: int) -> dict:
    """Positional arguments of a call by their names.

    Args: after: how many parameters of the function come before them.

    Raises: `TypeError` if there are too many, or one is among `kwargs` too.
    """
    if not args:
        return {}
    bound = inspect.signature(function).bind(*[None] * after, *args, **kwargs)
    names = list(bound.arguments)[after : after + len(args)]
    if len(names) < len(args):
        raise TypeError(f"{function} does not name the arguments that were given by position: give them by name.")
    return dict(zip(names, args, strict=True))


def rows_of(cache: Cache) -> int | None:
    """Number of rows of a cache; None if its layers do not show it."""
    keys = [getattr(layer, "keys", None) for layer in cache.layers]
    rows = {each.shape[0] for each in keys if each is not None and each.ndim == 4}
    return rows.pop() if len(rows) == 1 else None


def check_marks(marked, rows: int):
    """Raises: `ValueError` unless `is_transcription` has one value for each row."""
    shape = tuple(torch.as_tensor(marked).shape)
    if shape != (rows,):
        raise ValueError(f"`is_transcription` has shape {shape}; expected one value a row, ({rows},).")


def mask_of(input_ids: torch.Tensor, pad: int | None) -> torch.Tensor:
    """The mask of rows without one: only padding ids at the beginning are padding, as in the library."""
    if pad is None:
        return torch.ones_like(input_ids)
    return (input_ids != pad).long().cumsum(dim=1).clamp(max=1)


def _mixed(values: torch.Tensor) -> torch.Tensor:
    """Hash of int64 values (the finaliser of splitmix64)."""
    values = (values ^ (values >> 30)) * -4658895280553007687
    values = (values ^ (values >> 27)) * -7723592293110705685
    return values ^ (values >> 31)


def digest_clips(
    input_features=None, input_features_mask=None, encoder_states=None, encoder_mask=None, position_limits=None
) -> torch.LongTensor:
    """A 64-bit digest of each clip's true frames, `(clips,)`. Padding and other clips of the batch do not change it.

    It is computed on the clips' device. Features and encoder states of one recording have different digests, and so
    has a clip with other `PositionLimits`.
    """
    if encoder_states is None:
        values, mask = input_features, input_features_mask  # [clips, mel_bins, frames]
    else:
        values, mask = encoder_states.transpose(1, 2), encoder_mask  # [clips, encoder_width, frames]
    bits = values.detach().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[values.element_size()])
    channels = torch.arange(values.shape[1], device=values.device)
    frames = torch.arange(values.shape[2], device=values.device)
    places = _mixed((channels[:, None] << 32) + frames + 1) | 1  # odd factors keep all bits of a value
    if mask is None:
        mask = torch.ones_like(values[:, 0], dtype=torch.bool)
    digests, limits = [], 0 if position_limits is None else position_limits.digest()
    for own, true in zip(bits, mask.to(values.device).bool(), strict=True):  # one by one, to limit memory
        digests.append(_mixed((own * places * true).sum() + true.sum() + limits))
    return torch.stack(digests)


def place_clip_values(
    values: torch.Tensor, is_audio: torch.Tensor, before: torch.Tensor | None = None, begin: int = 0
) -> torch.Tensor:
    """Values of clips `(clips,)` at their audio tokens `(rows, tokens)`, zeros at other tokens.

    Args:
        values: values of all clips, or of the clips from `begin` on.
        is_audio (`torch.BoolTensor` of shape `(rows, tokens)`): true at audio tokens.
        before (`torch.Tensor` of shape `(rows, at least begin)`, *optional*): placed values before `begin`.
    """
    values = values.to(is_audio.device)
    placed, is_given = values.new_zeros(is_audio.shape), is_audio
    if before is not None and len(values) != int(is_audio.sum()):
        known = min(begin, before.shape[1])
        placed[:, :known] = before[:, :known].to(placed)
        is_given = is_audio.clone()
        is_given[:, :begin] = False
    return placed.masked_scatter(is_given, values)


@dataclass
class CachedPrompt:
    """The prompt with clips in a cache. It is stored on the cache, so that a next turn need not pass the clips again.

    Args:
        input_ids (`torch.LongTensor` of shape `(rows, tokens)`): the caller's ids, one audio token for each clip.
        attention_mask (`torch.LongTensor` of shape `(rows, merged)`): 1 at true positions of the merged prompt.
        num_added (`int`): `merged - tokens`.
        read_ids (`torch.LongTensor` of shape `(rows, read)`): the known ids of prompt and generated tokens; by
            default those of the prompt.
        digests (`torch.LongTensor` of shape `(rows, tokens)`): digests of the clips at audio tokens.
        is_silent (`torch.BoolTensor` of shape `(rows, tokens)`): true at audio tokens of clips without speech.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    num_added: int
    digests: torch.Tensor
    is_silent: torch.Tensor
    read_ids: torch.Tensor | None = None

    def __post_init__(self):
        if self.read_ids is None:
            self.read_ids = self.input_ids

    def repeat_for(self, cache: Cache) -> "CachedPrompt":
        """The same prompt for a cache whose only row was repeated (`batch_repeat_interleave`)."""
        rows = rows_of(cache)
        if rows is None or rows == len(self.input_ids) or len(self.input_ids) != 1:
            return self  # which of several rows were repeated is not known
        values = {name: value for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        return replace(self, **{name: value.repeat_interleave(rows, dim=0) for name, value in values.items()})

    def extend_mask(self, cache: Cache, mask: torch.Tensor | None, shape: tuple[int, int]) -> torch.Tensor:
        """Mask `(rows, cached + new)` of a pass over new tokens, in which each clip has its positions.

        Args:
            mask: 1 at true tokens of the prompt, with one token for each clip, of the tokens after it, and of the new
                ones; or the whole mask that is returned; or None, if all tokens after the prompt are true.
            shape: rows and new tokens of the pass.

        Raises: `ValueError` if the mask has another shape, or the cache has other rows.
        """
        cached = int(cache.get_seq_length())
        held, total = self.repeat_for(cache).attention_mask[:, :cached], cached + shape[1]
        if len(held) != shape[0]:
            raise ValueError(
                f"`past_key_values` holds {len(held)} rows with clips, and {shape[0]} were given: pass the same rows, "
                "or `attention_mask` and `position_ids` of the whole rows."
            )
        if mask is None:
            later = held.new_ones(shape[0], total - held.shape[1])
        elif mask.shape == (shape[0], total - self.num_added):
            later = mask[:, self.input_ids.shape[1] :].to(held)
        elif mask.shape == (shape[0], total):
            return mask
        else:
            raise ValueError(
                f"`attention_mask` has shape {tuple(mask.shape)}; expected {(shape[0], total - self.num_added)}, with "
                f"one token for each clip in `past_key_values`, or {(shape[0], total)}, with all of its positions."
            )
        return torch.cat([held.to(later.device), later], dim=1)

    def count_held(self, cache: Cache, input_ids: torch.Tensor, audio_token_id: int) -> int:
        """Number of ids at the beginning of a next turn `(rows, tokens)` that are the same in the cache.

        At least one id is left for the next pass. The caller must crop a cache that holds more.

        Raises: `ValueError` if the rows differ, a clip is not among these ids, or the cache would have to be cropped
            and cannot be.
        """
        in_cache = int(cache.get_seq_length()) - self.num_added
        rows = rows_of(cache) or len(self.input_ids)
        if not len(self.input_ids) == len(input_ids) == rows:
            raise ValueError(
                f"`past_key_values` holds {rows} rows ({len(self.input_ids)} in its prompt with clips) and "
                f"`input_ids` has {len(input_ids)}: pass the same rows, or leave the cache out and pass all clips. "
                "Only a cache of one row may be repeated. A cache of beam search has a row for each beam: with "
                "`num_beams=1`, its call returns one that can be continued."
            )
        read = self.read_ids[:, : max(in_cache, 0)].to(input_ids.device)
        length = min(read.shape[1], input_ids.shape[1] - 1)
        held = 0
        if len(read) == len(input_ids):
            same = (read[:, :length] == input_ids[:, :length]).all(dim=0)
            held = int(same.int().cumprod(dim=0).sum())
            if held == read.shape[1]:  # all known ids match
                held = min(max(in_cache, 0), input_ids.shape[1] - 1)
        can_crop = holds_every_position(cache)
        if (self.input_ids[:, held:] == audio_token_id).any() or (held < in_cache and not can_crop):
            raise ValueError(
                f"`past_key_values` holds a prompt of {self.input_ids.shape[1]} ids with clips and its answer, but "
                f"`input_ids` of shape {tuple(input_ids.shape)} does not continue them: pass all ids of the "
                "conversation, or leave the cache out and pass all clips."
            )
        return held

    def holds_other_clips(self, input_ids: torch.Tensor, digests: torch.Tensor, audio_token_id: int) -> bool:
        """Whether the cache has other clips than a next turn, which gives the digests `(clips,)` of all its clips.
        Only places with an audio token in both are compared."""
        is_audio = input_ids == audio_token_id
        if len(input_ids) != len(self.input_ids) or len(digests) != int(is_audio.sum()):
            return False  # only the new clips were given: nothing to compare
        length = min(input_ids.shape[1], self.input_ids.shape[1])
        was_audio = self.input_ids[:, :length].to(input_ids.device) == audio_token_id
        differs = place_clip_values(digests, is_audio)[:, :length] != self.digests[:, :length].to(input_ids.device)
        return bool((differs & is_audio[:, :length] & was_audio).any())

    def next_mask(self, held: int, input_ids, attention_mask) -> torch.Tensor:
        """The mask of a next turn whose first `held` ids are in the cache: `(rows, tokens + num_added)`."""
        known = min(held, self.input_ids.shape[1])
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        read = self.attention_mask[:, : known + self.num_added].to(attention_mask)
        return torch.cat([read, attention_mask[:, known:]], dim=1)

    def mask_of_row(self, attention_mask: torch.Tensor | None, length: int) -> torch.Tensor | None:
        """The mask of a merged row of this length. (Assisted decoding cuts the library's mask to the caller's ids.)"""
        if attention_mask is None or attention_mask.ndim != 2 or attention_mask.shape[1] == length:
            return attention_mask
        missing = length - self.attention_mask.shape[1]
        return torch.nn.functional.pad(self.attention_mask, (0, missing), value=1)


def holds_every_position(cache: Cache) -> bool:
    """Whether every layer of a cache keeps all of its positions and can be cropped."""
    return all(type(layer) is DynamicLayer for layer in cache.layers)


class AnswerRules(LogitsProcessor):
    """Keeps the audio token out of answers, and gives rows without speech an empty answer.

    Args: audio_token_id (`int`): never generated, because an answer has no clips.
    """

    def __init__(self, audio_token_id: int):
        self.audio_token_id = audio_token_id
        self.silent = self.end = None
        self.end_ids: set[int] = set()
        self.keeps_clips, self.clips = False, None  # `CTCClip`s, kept if word times were requested

    def end_at_once(self, silent: torch.Tensor | None, ends: list[int]):
        """Make the answers of some rows, with all their beams or samples, end at once.

        Args: silent (`torch.BoolTensor` of shape `(rows,)`, *optional*): true for these rows.

        Raises: `ValueError` if there are such rows and no end token.
        """
        self.end_ids = set(ends)
        if silent is None or not silent.any():
            return
        if not ends:
            raise ValueError(
                "A row requests the transcript of a clip without speech, and there is no end token for its empty "
                "answer: set `generation_config.eos_token_id`, or `config.no_speech_threshold=None`."
            )
        self.silent, self.end = silent, ends[0]

    def for_row(self, row: int) -> "AnswerRules":
        """The same for one row of the batch alone."""
        rules = AnswerRules(self.audio_token_id)
        rules.silent, rules.end = None if self.silent is None else self.silent[row : row + 1], self.end
        return rules

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        tokens = torch.arange(scores.shape[1], device=scores.device)  # the LLM of a draft may have fewer tokens
        scores = scores.masked_fill(tokens == self.audio_token_id, -torch.inf)
        if self.silent is None:
            return scores
        silent = self.silent.to(scores.device).repeat_interleave(len(scores) // len(self.silent))
        only_end = torch.zeros_like(scores).masked_fill(tokens != self.end, -torch.inf)
        return torch.where(silent[:, None], only_end, scores)


def read_again(cache: Cache):
    """Empty a cache that holds other clips than the conversation.

    Raises: `ValueError` if the cache cannot be cropped. Then the user has to reset it.
    """
    if not holds_every_position(cache):
        raise ValueError(
            f"`past_key_values` ({type(cache).__name__}) holds a prompt with other clips than those given, and cannot "
            "be cropped: call its `reset()`, or leave it out."
        )
    cache.reset()
    cache.prompt = None


def new_clips(clips: dict, is_audio: torch.Tensor, begin: int) -> dict:
    """Select the clips of new audio tokens from the clips of a conversation. Given only the new clips, return them.

    Args:
        clips (`dict`): features or encoder states, and their mask; one row for each clip, in the order of the tokens.
        is_audio (`torch.BoolTensor` of shape `(rows, tokens)`): true at audio tokens.
        begin (`int`): first new token.

    Raises: `ValueError` if the number of clips is neither that of all audio tokens nor that of the new ones.
    """
    is_new = is_audio.clone()
    is_new[:, :begin] = False
    given = len(next(value for value in clips.values() if value is not None))
    if given == int(is_audio.sum()):
        chosen = is_new[is_audio]
        return {name: None if value is None else value[chosen] for name, value in clips.items()}
    if given != int(is_new.sum()):
        raise ValueError(
            f"`input_ids` holds {int(is_audio.sum())} audio tokens, {int(is_new.sum())} of them not in "
            f"`past_key_values`, but {given} clips were given: pass the clips of the new tokens, or of all."
        )
    return clips


@dataclass
class TranscriptionRequest:
    """What a call of `generate` with transcription requests hands to the hook that encodes its clips.

    Args: marked (`torch.BoolTensor` of shape `(rows,)`): rows that ask for a transcript.
    """

    marked: torch.Tensor
    rules: AnswerRules
    decoding: CTCDecoding


class SoundwaveCandidateGenerator(AssistedCandidateGenerator):
    """Assisted decoding by another Soundwave, which encodes the clips itself and has its own positions for them."""

    def _update_past_and_masks(self, input_ids, remove_from_pkv: int = 0, num_added_tokens: int = 1) -> bool:
        # The library counts the assistant's cache in the caller's ids. It crops one id more than was refused, and that
        # may be the clip.
        prompt = getattr(self.assistant_kwargs.get(CACHE), "prompt", None)
        added = 0 if prompt is None else prompt.num_added
        return super()._update_past_and_masks(input_ids, remove_from_pkv - added, num_added_tokens=0)


class SoundwaveGenerationMixin(GenerationMixin):
    """Hooks of `generate` for merged rows, which are longer than the caller's ids."""

    def generate(
        self,
        inputs: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        logits_processor: LogitsProcessorList | None = None,
        *args,
        past_key_values: Cache | None = None,
        cache: Cache | None = None,
        **kwargs,
    ):
        """As in transformers. A cache may be passed as `past_key_values` or `cache` in any version.

        Transcription requests (rows with `is_transcription`, `(rows,)`, from
        `SoundwaveProcessor.apply_transcription_request`) get an empty answer, only the end token, if their clips have
        no speech: see `SoundwaveConfig.no_speech_threshold`.

        With such rows, `return_timestamps="word"` or `"segment"` returns a `SoundwaveGenerateOutput`, whose `chunks`
        have the times (seconds of the clip) and probabilities of the words. `drop_unsupported=True` removes words that
        the sound does not support: invented words and repeated loops. Both need the answer's text: pass
        `tokenizer=processor.tokenizer` if the model's folder has no tokenizer.

        `keep_blanks`, `min_positions_per_second` and `max_positions_per_second` set how many positions a clip gets:
        see `PositionLimits`. The generation config may hold defaults. Clips in a kept cache keep their positions.

        `transcription_num_beams` of the generation config is the number of beams of joint decoding (`ctc_weight`) in
        calls whose rows are all transcription requests. It has no effect on calls that choose another search, such as
        `num_beams=1`, sampling, a draft, a streamer or a kept cache.

        Raises: `ValueError` if two caches are given, if clips, ids and cache do not fit together, for an option that
        is not possible with clips, and for word times of a row that is not a transcription request.
        """
        kwargs |= by_name(super().generate, args, kwargs, after=3)
        for name in CTC_TARGETS:  # of a training batch, as `labels`, which transformers does not refuse either
            kwargs.pop(name, None)
        if (kept := one_cache(past_key_values, cache)) is not None:
            kwargs[CACHE] = kept
        input_ids = kwargs.get("input_ids") if inputs is None else inputs
        check_tensors({"input_ids": input_ids} | {name: kwargs.get(name) for name in PROMPT_INPUTS})
        self.model.check_clips(*map(kwargs.get, CLIP_INPUTS))
        if input_ids is not None and kwargs.get("is_transcription") is not None:
            check_marks(kwargs["is_transcription"], len(input_ids))
        take_default_beams(self, generation_config, kwargs)
        times = TimesRequest.take(self, input_ids, generation_config, kwargs)
        if input_ids is not None and kwargs.get("inputs_embeds") is None:
            self._check_guidance(input_ids, generation_config, kwargs)
            if kwargs.get("attention_mask") is None and (
                has_clips(kwargs) or getattr(kept, "prompt", None) is not None
            ):
                pad = given_option("pad_token_id", kwargs, [generation_config, self.generation_config])
                kwargs["attention_mask"] = mask_of(input_ids, pad)
        rules = AnswerRules(self.config.audio_token_id)
        if (limits := take_position_limits(self, generation_config, kwargs)) is not None:
            kwargs["position_limits"] = limits
        decoding = take_ctc_decoding(self, generation_config, kwargs, needs_times=times is not None)
        if kwargs.get("is_transcription") is not None:  # the hook that encodes the clips sets the rules
            kwargs["is_transcription"] = TranscriptionRequest(kwargs["is_transcription"], rules, decoding)
        if times is None:
            logits_processor = LogitsProcessorList([*(logits_processor or []), decoding, rules])
            return super().generate(inputs, generation_config, logits_processor, **kwargs)
        rules.keeps_clips = True
        logits_processor = LogitsProcessorList([times.log_probs, *(logits_processor or []), decoding, rules])
        outputs = super().generate(inputs, generation_config, logits_processor, **kwargs)
        return times.finish(outputs, input_ids, rules.end_ids, rules.clips)

    def _check_guidance(self, input_ids: torch.Tensor, generation_config: GenerationConfig | None, kwargs: dict):
        """Raise `ValueError` if the unconditional pass, which gets no clips, would read an audio token."""
        configs = (generation_config, self.generation_config)
        scales = (kwargs.get("guidance_scale"), *(getattr(config, "guidance_scale", None) for config in configs))
        if next((scale for scale in scales if scale is not None), 1) == 1:
            return
        negative = kwargs.get("negative_prompt_ids")
        if ((input_ids[:, -1:] if negative is None else negative) == self.config.audio_token_id).any():
            raise ValueError(
                "`guidance_scale` was given, but its unconditional pass gets no clips and would read an audio token: "
                "pass `negative_prompt_ids` without audio tokens."
            )

    def _prepare_model_inputs(self, inputs, bos_token_id, model_kwargs):
        inputs, input_name, model_kwargs = super()._prepare_model_inputs(inputs, bos_token_id, model_kwargs)
        clips = {name: model_kwargs.pop(name) for name in CLIP_INPUTS if name in model_kwargs}
        limits = model_kwargs.pop("position_limits", None)
        request: TranscriptionRequest | None = model_kwargs.pop("is_transcription", None)
        cache = model_kwargs.get(CACHE)
        prompt = getattr(cache, "prompt", None) if num_read(cache) else None  # a cache that was reset has no prompt
        if request is not None and not has_clips(clips):
            request.decoding.refuse_without_clips()
        if input_name != "input_ids":
            if has_clips(clips):
                raise ValueError(
                    "`generate` got `inputs_embeds` and clips, but can merge clips only into `input_ids`: leave the "
                    "embeddings out, or merge the clips into them first (`model.model.merge_audio`)."
                )
            return inputs, input_name, model_kwargs
        if prompt is None and not has_clips(clips):
            self.model.check_text(inputs)
            return inputs, input_name, model_kwargs
        self._refuse_virtual_tokens()
        mask = model_kwargs.get("attention_mask")
        return (
            inputs,
            input_name,
            {**model_kwargs, **self._merge_prompt(inputs, mask, clips, cache, request, limits)},
        )

    def _merge_prompt(self, inputs, mask, clips: dict, cache, request, limits) -> dict:
        """Inputs of the model that change if a prompt or a kept cache has clips.

        Args:
            request: `TranscriptionRequest`, or None.
            limits: `PositionLimits` of the clips that are read now, or None.
        """
        is_audio, is_given = inputs == self.config.audio_token_id, has_clips(clips)
        digests = digest_clips(**clips, position_limits=limits) if is_given else inputs.new_zeros(0)
        caller_inputs = {**clips, "attention_mask": mask}
        caller_mask = torch.ones_like(inputs) if mask is None else mask  # as a tensor it gets a row for each beam
        prompt, cached, num_added, mask = self._continue_cache(cache, inputs, mask, digests if is_given else None)
        # The input name stays "input_ids", so that lengths, streamers and the answer count the caller's ids.
        # `position_ids` are computed again from the merged mask.
        merged = {"attention_mask": mask, "position_ids": None, "prompt_ids": inputs, "num_added": num_added}
        merged["caller_inputs"] = caller_inputs
        merged["caller_mask"] = caller_mask
        begin = cached - num_added  # of the ids that are not in the cache
        if is_given and cached:
            clips = new_clips(clips, is_audio, begin)
        is_silent = torch.zeros(0, dtype=torch.bool)
        if prompt is None or is_audio[:, begin:].any():
            tail, is_silent, audio = self._merge_tail(inputs, begin, cached, mask, clips if is_given else {}, limits)
            merged |= tail
            self._prepare_decoding(audio, inputs, clips, request)
        elif is_given and request is not None and request.decoding.needs_frames(request.rules):
            # The cache holds the positions alone, not the frames.
            clips = {name: value for name, value in caller_inputs.items() if name != "attention_mask"}
            audio = self.get_audio_features(**move_to_device(clips, self._device_for(inputs)), position_limits=limits)
            self._prepare_decoding(audio, inputs, clips, request)
        elif request is not None:
            request.decoding.refuse_without_clips()
        for name, new in {"digests": digests, "is_silent": is_silent}.items():
            merged[f"prompt_{name}"] = place_clip_values(new, is_audio, getattr(prompt, name, None), begin)
        if request is not None:
            merged |= {"answer_rules": request.rules, "ctc_decoding": request.decoding}
            merged["silent_rows"] = self._find_silent(request.marked, is_audio, merged["prompt_is_silent"])
        return merged

    def _prepare_decoding(self, audio, inputs: torch.Tensor, clips: dict, request):
        """Give the audio side's output to what scores text by it: joint decoding, drafts, word times."""
        if request is None:
            return
        request.decoding.prepare(audio, inputs, request.marked)
        if request.rules.keeps_clips:
            features = clips.get("input_features"), clips.get("input_features_mask")
            request.rules.clips = ctc_clips(self, audio, *features, frames=request.decoding.frames)

    def _continue_cache(self, cache, inputs: torch.Tensor, mask, digests: torch.Tensor | None) -> tuple:
        """Continue from a kept cache. It is cropped to the shared ids, or emptied if it has other clips.

        Args: digests: digests of the given clips, or None.

        Returns: the cache's prompt or None, positions in the cache, positions added by its clips, and the mask.
        """
        cached = num_read(cache)
        prompt = getattr(cache, "prompt", None) if cached else None
        prompt = None if prompt is None else prompt.repeat_for(cache)
        has_both = prompt is not None and digests is not None
        if has_both and prompt.holds_other_clips(inputs, digests, self.config.audio_token_id):
            read_again(cache)
            prompt, cached = None, 0
        if prompt is None:
            if cached >= inputs.shape[1]:
                raise ValueError(
                    f"`past_key_values` holds {cached} positions and `input_ids` has shape {tuple(inputs.shape)}: "
                    "pass all ids of the conversation, also those in the cache."
                )
            return None, cached, 0, mask
        held = prompt.count_held(cache, inputs, self.config.audio_token_id)
        if held + prompt.num_added < cached:
            cache.crop(held + prompt.num_added - cached)
            cached = held + prompt.num_added
        return prompt, cached, prompt.num_added, prompt.next_mask(held, inputs, mask)

    def _find_silent(self, marked, is_audio: torch.Tensor, is_silent: torch.Tensor) -> torch.Tensor | None:
        """Rows `(rows,)` that request a transcript of clips without speech."""
        if not self.config.no_speech_threshold:
            return None
        marked = torch.as_tensor(marked, device=is_audio.device).bool()
        return marked & is_audio.any(dim=1) & ~(is_audio & ~is_silent).any(dim=1)

    def _refuse_virtual_tokens(self):
        """Raises: `ValueError` for PEFT's prompt-learning methods, which add virtual tokens before a prompt."""
        outer = getattr(self.prepare_inputs_for_generation, "__self__", self)  # PEFT replaces this method
        config = getattr(outer, "active_peft_config", None) if outer is not self else None
        if getattr(config, "is_prompt_learning", False):
            raise ValueError(
                f"PEFT's {config.peft_type.value} rebuilds the prompt with virtual tokens in `generate` and would "
                "lose the clips: use a method that changes weights, such as LoRA."
            )

    def _device_for(self, input_ids: torch.Tensor) -> torch.device:
        """Device for these ids: the model's, or the ids' own if the model is offloaded and its hooks move them."""
        return input_ids.device if self.device.type == "meta" else self.device

    def _merge_tail(self, input_ids, begin: int, cached: int, mask: torch.Tensor, clips: dict, limits) -> tuple:
        """Merge clips into the ids from `begin` on, behind `cached` positions in the cache.

        Returns: the changed inputs of the model, which clips have no speech, and the output of the audio side.
        """
        if not clips:
            raise ValueError(
                "`input_ids` holds audio tokens that are not in `past_key_values`, and no clip was given: pass "
                "`input_features` of the new clips, or of all."
            )
        # As in the library, inputs may be on another device than the model. The merged row stays on theirs.
        device = self._device_for(input_ids)
        audio = self.get_audio_features(**move_to_device(clips, device), position_limits=limits)
        tail = self.model.merge_audio(
            input_ids[:, begin:].to(device),
            audio.pooler_output,
            audio.num_positions,
            attention_mask=mask[:, cached:].to(device),
            before=mask[:, :cached].long().sum(dim=1).to(device),
        )
        embeds = tail.inputs_embeds.to(input_ids.device)
        # `generate` takes a whole row and cuts off what its cache holds.
        read = embeds.new_zeros(len(input_ids), cached, embeds.shape[-1])
        merged = {
            "inputs_embeds": torch.cat([read, embeds], dim=1),
            "attention_mask": torch.cat([mask[:, :cached], tail.attention_mask.to(mask)], dim=1),
            "num_added": cached + embeds.shape[1] - input_ids.shape[1],
        }
        is_silent = self.model.judge_silence(audio, clips.get("input_features"), clips.get("input_features_mask"))
        return merged, is_silent, audio

    def _prepare_cache_for_generation(
        self, generation_config, model_kwargs, generation_mode, batch_size, max_cache_length
    ):
        num_added = model_kwargs.get("num_added")
        if num_added is not None and generation_config.prefill_chunk_size is not None:
            raise ValueError(
                f"`prefill_chunk_size` is {generation_config.prefill_chunk_size}, but it cuts ids, and a prompt with "
                "clips has more positions than ids: leave it out."
            )
        cache = model_kwargs.get(CACHE)
        if num_added is not None and num_read(cache) and not generation_config.use_cache:
            raise ValueError("`past_key_values` holds the clips, and `use_cache` is False: leave one of them out.")
        super()._prepare_cache_for_generation(
            generation_config, model_kwargs, generation_mode, batch_size, max_cache_length + (num_added or 0)
        )
        if (cache := model_kwargs.get(CACHE)) is not None:
            cache.prompt = None if num_added is None else self._cached_prompt(**model_kwargs)
        if (rules := model_kwargs.get("answer_rules")) is not None:
            ends = end_ids(generation_config.eos_token_id)
            rules.end_at_once(model_kwargs["silent_rows"], ends)
            model_kwargs["ctc_decoding"].end_with(ends)
        if num_added is not None and generation_config.is_assistant:
            model_kwargs["is_draft"] = True

    def _get_logits_processor(self, *args, model_kwargs: dict | None = None, **kwargs) -> LogitsProcessorList:
        """As in transformers, whose repetition penalty leaves out the padding of each row by `attention_mask`: it gets
        the mask of the caller's ids, because processors see these ids, and not the merged mask."""
        if (mask := (model_kwargs or {}).get("caller_mask")) is not None:
            model_kwargs = {**model_kwargs, "attention_mask": mask}
        if model_kwargs is not None:
            kwargs["model_kwargs"] = model_kwargs
        return super()._get_logits_processor(*args, **kwargs)

    def _warn_of_context(self, length: int, attention_mask: torch.Tensor | None):
        """Warn once if an answer exceeds the LLM's context, as the library does for an LLM.

        Args: length (`int`): positions of a row so far, including padding and clips.
        """
        context = getattr(self.config.text_config, "max_position_embeddings", None)
        if context is None or length <= context:
            return
        num_padding = 0 if attention_mask is None else int((attention_mask == 0).sum(dim=1).min())
        if length - num_padding > context:
            logger.warning_once(
                f"The answer exceeds the LLM's context: `max_position_embeddings` is {context}, and the positions of "
                "the clips count. The rest may be worse, or fail. Give a lower `max_new_tokens`, or shorter clips."
            )

    def _cached_prompt(
        self, prompt_ids, num_added: int, prompt_digests, prompt_is_silent, attention_mask=None, **kwargs
    ) -> CachedPrompt:
        if attention_mask is None:  # `generate` drops a mask of ones
            attention_mask = prompt_ids.new_ones(len(prompt_ids), prompt_ids.shape[1] + num_added)
        return CachedPrompt(prompt_ids, attention_mask, num_added, prompt_digests, prompt_is_silent)

    def _get_candidate_generator(
        self,
        generation_config,
        input_ids,
        inputs_tensor,
        logits_processor,
        model_kwargs,
        assistant_model=None,
        **kwargs,
    ):
        if assistant_model is not None and "num_added" in model_kwargs:
            # The merged row has this model's embeddings. An assistant needs the caller's ids.
            merged = {"inputs_embeds", "attention_mask", "position_ids", *OWN_INPUTS}
            caller_inputs = model_kwargs["caller_inputs"]
            model_kwargs = {k: v for k, v in model_kwargs.items() if k not in merged}
            if assistant_model.config.model_type == self.config.model_type:
                model_kwargs |= caller_inputs
                self._check_clips_of_draft(input_ids, caller_inputs)
                return SoundwaveCandidateGenerator(
                    input_ids, assistant_model, generation_config, model_kwargs, input_ids, logits_processor
                )
            inputs_tensor = input_ids
        return super()._get_candidate_generator(
            generation_config, input_ids, inputs_tensor, logits_processor, model_kwargs, assistant_model, **kwargs
        )

    def _check_clips_of_draft(self, input_ids: torch.Tensor, caller_inputs: dict):
        clips = caller_inputs.get("input_features", caller_inputs.get("encoder_states"))
        wanted, given = int((input_ids == self.config.audio_token_id).sum()), 0 if clips is None else len(clips)
        if wanted != given:
            raise ValueError(
                f"`assistant_model` is a Soundwave, which cannot use the cache: `input_ids` holds {wanted} audio "
                f"tokens and {given} clips were given. Pass all clips of the conversation."
            )

    def _append_generated(self, inputs_embeds: torch.Tensor, new_ids: torch.Tensor) -> torch.Tensor:
        """The merged prompt `(rows, merged, width)` followed by the embeddings of generated ids."""
        if not new_ids.shape[1]:
            return inputs_embeds
        new_embeds = self.get_input_embeddings()(new_ids.to(self._device_for(new_ids)))
        return torch.cat([inputs_embeds, new_embeds.to(inputs_embeds)], dim=1)

    def prepare_inputs_for_generation(
        self,
        input_ids,
        next_sequence_length=None,
        past_key_values=None,
        attention_mask=None,
        inputs_embeds=None,
        is_first_iteration=False,
        prompt_ids=None,
        num_added=None,
        is_draft=False,
        cache=None,
        **kwargs,
    ):
        kwargs = {name: value for name, value in kwargs.items() if name not in OWN_INPUTS}
        past_key_values = one_cache(past_key_values, cache)
        length = input_ids.shape[1] + (num_added or 0)  # merged positions so far
        self._warn_of_context(length, attention_mask)
        if num_added is None and inputs_embeds is None and is_first_iteration and next_sequence_length is None:
            # Otherwise assisted decoding would read the ids in a kept cache of text again.
            next_sequence_length = input_ids.shape[1] - num_read(past_key_values)
        if num_added is not None and past_key_values is not None:
            past_key_values.prompt.read_ids = input_ids
            if is_draft and not is_first_iteration:  # the library does not set it for drafts
                is_first_iteration = past_key_values.get_seq_length() < prompt_ids.shape[1] + num_added
            if is_first_iteration:
                next_sequence_length = length - past_key_values.get_seq_length()
            attention_mask = past_key_values.prompt.mask_of_row(attention_mask, length)
        # Without a cache each step needs the whole row: the merged prompt and all generated ids.
        whole_row = is_first_iteration or not kwargs.get("use_cache", True)
        if num_added is not None and inputs_embeds is not None and (is_first_iteration := whole_row):
            inputs_embeds = self._append_generated(inputs_embeds, input_ids[:, prompt_ids.shape[1] :])
        return super().prepare_inputs_for_generation(
            input_ids,
            next_sequence_length=next_sequence_length,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            is_first_iteration=is_first_iteration,
            **{CACHE: past_key_values},
            **kwargs,
        )


__all__ = ["CACHE", "CACHE_NAMES", "CachedPrompt", "SoundwaveGenerationMixin", "one_cache"]
