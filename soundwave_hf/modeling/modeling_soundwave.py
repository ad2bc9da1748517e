"""Soundwave (arXiv 2502.12900): a frozen Whisper encoder, an alignment and a shrinking adapter, any causal LM."""

import copy

import torch
from torch import nn
from transformers import AutoModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer
from transformers.utils import can_return_tuple, logging

from .adapters_soundwave import (  # noqa: F401 (0.1.0 exported these names here)
    SoundwaveAlignmentAdapter,
    SoundwaveAlignmentLayer,
    SoundwaveAttention,
    SoundwaveCTCHead,
    SoundwaveEncoder,
    SoundwaveFrameAttention,
    SoundwaveShrinkingAdapter,
    eager_attention_forward,
    first_of_run,
    in_training_step,
    may_look,
)
from .audio_model_soundwave import (
    SoundwaveAudioModel,
    SoundwaveForCTC,
    SoundwavePreTrainedModel,
    num_processes,
)
from .backbones_soundwave import (
    AUDIO_TOKEN,
    add_audio_token,
    as_dtype,
    audio_token_place,
    load_adapter,
    quantize_llm_alone,
    read_language_model,
    refuse_other_heads,
    refuse_unsettable,
    take_quantizer,
)
from .configuration_soundwave import AUTO_MAP, SoundwaveConfig
from .generation_soundwave import CachedPrompt, SoundwaveGenerationMixin, digest_clips, place_clip_values
from .inputs_soundwave import check_ids, check_tensors, has_clips, refuse_misspelt, unseen_by_trainer
from .merging_soundwave import MergedPrompt, place_tokens, positions_of
from .no_speech_soundwave import may_be_words
from .outputs_soundwave import (
    CACHE,
    SoundwaveAudioOutput,
    SoundwaveCausalLMOutputWithPast,
    SoundwaveModelOutputWithPast,
    num_read,
    one_cache,
)
from .positions_soundwave import PositionLimits
from .support_soundwave import CTCClip
from .timed_generation_soundwave import ctc_clips


logger = logging.get_logger(__name__)

TEXT_INPUTS = ("input_ids", "attention_mask", "is_transcription", "hotwords")  # of the processor, beside the clips


LIKELY_TOKENS = 16  # of `label_embeddings: expected`; they hold 97 % of what the shipped CTC head gives to tokens


class SoundwaveModel(SoundwaveAudioModel):
    r"""
    The audio side, the shrinking adapter and the LLM without its head.

    Example:

    ```python
    >>> from transformers import AutoModel

    >>> bare = AutoModel.from_pretrained(folder).model
    >>> clip = processor(text=processor.audio_token, audio="speech.wav")
    >>> audio = bare.get_audio_features(clip["input_features"], clip["input_features_mask"])
    >>> audio.pooler_output.shape[0] == audio.num_positions.sum()  # the positions that enter the LLM
    tensor(True)
    ```"""

    def __init__(self, config: SoundwaveConfig):
        super().__init__(config)
        self.shrinking_adapter = SoundwaveShrinkingAdapter(config)
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()

    def get_input_embeddings(self):
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value):
        self.language_model.set_input_embeddings(value)

    @can_return_tuple
    def get_audio_features(
        self,
        input_features: torch.Tensor | None = None,
        input_features_mask: torch.Tensor | None = None,
        encoder_states: torch.Tensor | None = None,
        encoder_mask: torch.Tensor | None = None,
        ctc_labels: torch.Tensor | None = None,
        output_ctc_logits: bool = False,
        num_ctc_clips: int | None = None,
        ctc_candidates: torch.Tensor | None = None,
        ctc_mask: torch.Tensor | None = None,
        position_limits: PositionLimits | None = None,
        **kwargs,
    ) -> SoundwaveAudioOutput:
        """Encode clips, align them and shrink them to positions.

        Args:
            input_features (`torch.FloatTensor` of shape `(clips, mel_bins, mel_frames)`): log-mel, 10 ms a frame.
            input_features_mask (`torch.Tensor` of shape `(clips, mel_frames)`, *optional*): 1 at true frames.
            encoder_states, encoder_mask: outputs of `encode`, in place of the two above.
            ctc_labels, output_ctc_logits, num_ctc_clips, ctc_candidates, ctc_mask: as in `forward`.
            position_limits (`PositionLimits`, *optional*): fewer or more positions than the CTC labels give.
            kwargs: `output_hidden_states` and `output_attentions` of the encoder, for clips within its window. With a
                longer clip these outputs are None.

        Returns: `SoundwaveAudioOutput`; `pooler_output` holds the positions `(sum of num_positions, width)`.

        Raises: `ValueError` if shapes of features and mask differ, a clip is empty, or a CTC label is not a token.

        Example:

        ```python
        >>> clip = processor(text=processor.audio_token, audio="speech.wav")
        >>> audio = model.model.get_audio_features(clip["input_features"], clip["input_features_mask"])
        >>> audio.ctc_best.shape == audio.aligned_states.shape[:2]  # one label for each 40 ms
        True
        ```
        """
        refuse_misspelt(SoundwaveModel.get_audio_features, kwargs)
        encoded, aligned, mask = self.align(
            input_features, input_features_mask, encoder_states, encoder_mask, **kwargs
        )
        embeddings = self.token_table()
        audio = self.label(aligned, mask, embeddings, ctc_labels, num_ctc_clips, ctc_candidates, ctc_mask)
        audio.last_hidden_state = encoded.last_hidden_state
        audio.hidden_states, audio.attentions = encoded.hidden_states, encoded.attentions
        keep = self.keep_mask(audio.ctc_best, mask, position_limits)
        audio.pooler_output = self.shrinking_adapter(audio.aligned_states, mask, keep)
        if self.config.label_embeddings:
            places = torch.argsort(~keep.flatten(), stable=True)[: len(audio.pooler_output)]  # kept frames, in order
            audio.pooler_output = audio.pooler_output + self.embed_labels(audio, places, embeddings)
        audio.num_positions = keep.sum(dim=1)
        if position_limits is not None:
            audio.pooler_output, audio.num_positions = position_limits.leave_out(
                audio.pooler_output, audio.num_positions, audio.num_frames, self.config.frame_seconds
            )
        if output_ctc_logits:
            audio.ctc_logits = self.ctc_head.logits(aligned, embeddings)
        return audio

    def embed_labels(self, audio: SoundwaveAudioOutput, places: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        """What `label_embeddings` adds to the positions: `(positions, width)`.

        Args:
            places (`torch.LongTensor` of shape `(positions,)`): frame of each position, in the flattened batch.
            table: `token_table()`.
        """
        labels = audio.ctc_best.flatten()[places]
        of_labels = self._embed_flat(labels)
        if self.config.label_embeddings != "expected":
            return of_labels
        tokens, shares = self.ctc_head.likeliest(audio.aligned_states.flatten(0, 1)[places], table, LIKELY_TOKENS)
        expected = (shares[..., None] * self._embed_flat(tokens)).sum(dim=1).to(of_labels.dtype)
        is_blank = labels == self.config.audio_token_id  # a kept blank keeps its own embedding
        return torch.where(is_blank[:, None], of_labels, expected)

    def _embed_flat(self, ids: torch.Tensor) -> torch.Tensor:
        """Embeddings of ids of any shape, read as one row: hooks such as NEFTune's expect `(batch, tokens)`."""
        return self.get_input_embeddings()(ids.flatten()[None])[0].view(*ids.shape, -1)

    @torch.no_grad()
    def judge_silence(
        self, audio: SoundwaveAudioOutput, input_features=None, input_features_mask=None
    ) -> torch.Tensor:
        """Mask `(clips,)` of clips without speech; all false if the config has no threshold.

        The CTC head decides, except for clips that may be a single word, which it sometimes misses. Encoder states do
        not show which clips these are, so there all clips of up to 1.5 s count as speech.
        """
        threshold = self.config.no_speech_threshold
        if not threshold:
            return torch.zeros_like(audio.num_frames, dtype=torch.bool)
        is_silent = audio.no_speech_probs >= threshold
        if input_features is None:
            return is_silent & (audio.num_frames * self.config.frame_seconds > 1.5)
        return is_silent & ~may_be_words(input_features, input_features_mask).to(is_silent.device)

    def check_text(self, input_ids: torch.Tensor):
        """Raises: `ValueError` if ids without clips contain audio tokens or ids outside the vocabulary."""
        check_ids("input_ids", input_ids, self.config.text_config.vocab_size)
        if (input_ids == self.config.audio_token_id).any():
            raise ValueError("`input_ids` holds audio tokens and no clip was given: pass `input_features` as well.")

    def ids_of_embeddings(self, inputs_embeds: torch.Tensor) -> torch.Tensor:
        """Ids `(batch, tokens)` for embeddings `(batch, tokens, width)`: the audio token's id at its embedding, else
        another id.

        Prompt tuning puts virtual states before a prompt, so it passes embeddings and no ids.
        """
        audio_token_id = self.config.audio_token_id
        row = self.get_input_embeddings()(torch.tensor([audio_token_id], device=inputs_embeds.device))
        is_audio = (inputs_embeds == row.to(inputs_embeds)).all(dim=-1)
        other = 0 if audio_token_id else 1
        return torch.full_like(is_audio, other, dtype=torch.long).masked_fill(is_audio, audio_token_id)

    def merge_audio(
        self, input_ids, positions, num_positions, attention_mask=None, before=0, inputs_embeds=None
    ) -> MergedPrompt:
        """Replace each audio token by the positions of its clip.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch, tokens)`): one audio token for each clip.
            positions (`torch.FloatTensor` of shape `(sum of num_positions, width)`).
            num_positions (`torch.LongTensor` of shape `(clips,)`): in the order of the tokens, row by row.
            attention_mask (`torch.Tensor` of shape `(batch, tokens)`, *optional*).
            before (`int` or `torch.LongTensor` of shape `(batch,)`): true positions before these tokens (a cache, a
                shared prefix).
            inputs_embeds (`torch.FloatTensor` of shape `(batch, tokens, width)`, *optional*): embeddings of the other
                tokens; by default the LLM's.

        Raises: `ValueError` if clips and audio tokens differ in number, ids are outside the vocabulary, ids and
        mask differ in shape, or a row is longer than the LLM's context.
        """
        if may_look(self, input_ids):
            check_ids("input_ids", input_ids, self.config.text_config.vocab_size)
        context = getattr(self.config.text_config, "max_position_embeddings", None)
        places = place_tokens(
            input_ids, num_positions, self.config.audio_token_id, len(positions), attention_mask, before, context
        )
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)  # of whole rows, for hooks such as NEFTune's
        return places.merge(inputs_embeds.flatten(0, 1)[places.text_at], positions)

    def shares_prefix(self) -> bool:
        """Whether a prefix can be computed once for a batch. For this each layer must cache all keys and values."""
        if self.language_model.is_activation_checkpointing:  # recomputed layers keep no cache
            return False
        # Sharded layers (FSDP2, ZeRO-3) are gathered for gradients of a layer's output, not for those of a cache.
        if any(hasattr(module, "unshard") for module in self.language_model.modules()):
            return False
        if hasattr(next(self.language_model.parameters()), "ds_id"):
            return False
        layers = DynamicCache(config=self.language_model.config).layers
        return all(type(layer) is DynamicLayer for layer in layers)

    def read_prefix(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, length: int) -> Cache:
        """Keys and values of the text at the beginning of all rows, computed once, with gradients.

        Raises: `ValueError` if the rows do not begin with the same `length` true text tokens.
        """
        prefix = input_ids[:, :length]
        if (
            (prefix != prefix[:1]).any()
            or (prefix == self.config.audio_token_id).any()
            or (attention_mask is not None and not attention_mask[:, :length].all())
        ):
            raise ValueError(
                f"`shared_prefix` is {length}, but the rows do not all begin with the same {length} text tokens."
            )
        if not self.shares_prefix():
            raise ValueError(
                "`shared_prefix` was given, but this LLM, gradient checkpointing or sharding keeps no whole cache."
            )
        cache = self.language_model(input_ids=prefix[:1], use_cache=True)[CACHE]
        cache.batch_repeat_interleave(len(input_ids))
        return cache

    def zero_of_audio_side(self) -> torch.Tensor:
        """Zero, computed through the whole audio side, for a batch of only text in distributed training.

        Processes that share gradients or parameters wait for each other at each layer, so all must run all layers.
        """
        config = self.config.audio_config
        silence = torch.zeros(1, config.num_mel_bins, 4 * self.config.stack_factor, device=self.device)
        silence = silence.to(next(self.audio_tower.parameters()).dtype)
        return 0.0 * self.get_audio_features(silence).pooler_output.sum()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        input_features: torch.FloatTensor | None = None,
        input_features_mask: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        encoder_states: torch.Tensor | None = None,
        encoder_mask: torch.Tensor | None = None,
        ctc_labels: torch.LongTensor | None = None,
        output_ctc_logits: bool = False,
        num_ctc_clips: int | None = None,
        ctc_candidates: torch.LongTensor | None = None,
        ctc_mask: torch.BoolTensor | None = None,
        shared_prefix: int = 0,
        cache: Cache | None = None,
        is_transcription: torch.Tensor | None = None,
        position_limits: PositionLimits | None = None,
        **kwargs,
    ) -> SoundwaveModelOutputWithPast:
        """
        Args:
            input_ids (`torch.LongTensor` of shape `(batch, tokens)`): text, with one audio token for each clip.
            input_features (`torch.FloatTensor` of shape `(clips, mel_bins, mel_frames)`, *optional*): log-mel of all
                clips of the batch, 10 ms a frame, in the order of their audio tokens.
            input_features_mask (`torch.Tensor` of shape `(clips, mel_frames)`, *optional*): 1 at true frames.
            attention_mask (`torch.Tensor` of shape `(batch, tokens)`, *optional*): 1 at true tokens.
            position_ids, past_key_values, cache, inputs_embeds, use_cache: as in
                `SoundwaveForConditionalGeneration.forward`.
            encoder_states, encoder_mask, ctc_labels, output_ctc_logits, num_ctc_clips, ctc_candidates: as there.
            ctc_mask, shared_prefix, is_transcription, position_limits: as there.

        Returns: `SoundwaveModelOutputWithPast` with one state for each input token after the `shared_prefix`.

        Raises: `ValueError` as in `SoundwaveForConditionalGeneration.forward`.

        Example:

        ```python
        >>> inputs = processor.apply_transcription_request("speech.wav")
        >>> output = model.model(**inputs)
        >>> output.last_hidden_state.shape[1] == inputs["input_ids"].shape[1]  # one state for an audio token
        True
        ```
        """
        refuse_misspelt(SoundwaveModel.forward, kwargs)
        past_key_values = one_cache(past_key_values, cache)
        text = {"input_ids": input_ids, "inputs_embeds": inputs_embeds}
        check_tensors({**text, "attention_mask": attention_mask, "position_ids": position_ids})
        has_audio = has_clips({"input_features": input_features, "encoder_states": encoder_states})
        self._check_whole_prompt(input_ids, inputs_embeds, past_key_values, has_audio, shared_prefix)
        if shared_prefix:
            past_key_values = self.read_prefix(input_ids, attention_mask, shared_prefix)
            input_ids, attention_mask = (x if x is None else x[:, shared_prefix:] for x in (input_ids, attention_mask))
        audio = merged = None
        if has_audio:
            clips = input_features, input_features_mask, encoder_states, encoder_mask
            audio = self.get_audio_features(
                *clips, ctc_labels, output_ctc_logits, num_ctc_clips, ctc_candidates, ctc_mask, position_limits
            )
            if inputs_embeds is not None and input_ids is None:
                input_ids = self.ids_of_embeddings(inputs_embeds)
            merged = self.merge_audio(
                input_ids,
                audio.pooler_output,
                audio.num_positions,
                attention_mask,
                before=shared_prefix,
                inputs_embeds=inputs_embeds,
            )
            prompt_ids, input_ids, inputs_embeds = input_ids, None, merged.inputs_embeds
            position_ids = merged.position_ids + shared_prefix
            attention_mask = nn.functional.pad(merged.attention_mask, (shared_prefix, 0), value=1)
        elif inputs_embeds is None and past_key_values is None and may_look(self, input_ids):
            self._check_text_alone(input_ids)
        elif position_ids is None and self._follows_clips(past_key_values, attention_mask):
            new = input_ids if inputs_embeds is None else inputs_embeds
            attention_mask, position_ids = self._count_clips(past_key_values, attention_mask, new.shape[:2])
        is_training = in_training_step(self)
        use_cache = False if use_cache is None and is_training and past_key_values is None else use_cache
        outputs = self.language_model(
            input_ids=input_ids,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=use_cache,
            **{CACHE: past_key_values},
            **kwargs,
        )
        hidden, kept = outputs.last_hidden_state, getattr(outputs, CACHE)
        if self.training and not has_audio and past_key_values is None and num_processes() > 1:
            hidden = hidden + self.zero_of_audio_side().to(hidden.dtype)
        if merged is not None and kept is not None and not is_training:
            kept.prompt = self._cached_prompt(prompt_ids, merged, audio, position_limits, *clips)
        if merged is not None:
            hidden = hidden.gather(1, merged.last_position[..., None].expand(-1, -1, hidden.shape[-1]))
        return SoundwaveModelOutputWithPast(
            last_hidden_state=hidden,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            audio_output=audio,
            **{CACHE: kept},
        )

    @staticmethod
    def _follows_clips(cache: Cache | None, attention_mask) -> bool:
        """Whether tokens follow a prompt with clips, with a mask of tokens or none."""
        is_simple = attention_mask is None or getattr(attention_mask, "dim", int)() == 2
        return is_simple and getattr(cache, "prompt", None) is not None and num_read(cache) > 0

    @staticmethod
    def _count_clips(cache: Cache, attention_mask, shape: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Mask `(rows, cached + new)` and position ids `(rows, new)` of tokens behind clips; see `extend_mask`."""
        attention_mask = cache.prompt.extend_mask(cache, attention_mask, shape)
        return attention_mask, positions_of(attention_mask)[:, -shape[1] :]

    def _check_whole_prompt(self, input_ids, inputs_embeds, cache: Cache | None, has_audio: bool, shared_prefix: int):
        if input_ids is None and inputs_embeds is None:
            raise ValueError(
                "`input_ids` was not given: pass the prompt's ids, with one audio token for each clip in "
                "`input_features` (the processor writes both)."
            )
        if shared_prefix and (not has_audio or cache is not None or input_ids is None):
            raise ValueError(
                "`shared_prefix` was given, but it needs `input_ids` of whole prompts with clips, and no cache."
            )
        if has_audio and cache is not None and int(cache.get_seq_length()):
            raise ValueError(
                "`past_key_values` holds a prompt and `input_features` were given, but `forward` needs whole prompts "
                "with clips. Use `generate`, which can merge clips after a cache. (PEFT's prefix tuning passes such a "
                "cache: use a method that changes weights, such as LoRA.)"
            )

    def _check_text_alone(self, input_ids: torch.Tensor):
        check_ids("input_ids", input_ids, self.config.text_config.vocab_size)
        if (input_ids == self.config.audio_token_id).any():
            logger.warning_once(
                "`input_ids` holds audio tokens and no clip was given: the LLM was not trained on the audio token's "
                "embedding. Pass `input_features` as well."
            )

    def _cached_prompt(self, prompt_ids, merged: MergedPrompt, audio, limits, input_features, features_mask, *encoded):
        """The prompt that `generate` needs to continue from this cache."""
        is_audio = prompt_ids == self.config.audio_token_id
        digests = digest_clips(input_features, features_mask, *encoded, limits)
        is_silent = self.judge_silence(audio, input_features, features_mask)
        placed = [place_clip_values(values, is_audio) for values in (digests, is_silent)]
        num_added = merged.inputs_embeds.shape[1] - prompt_ids.shape[1]
        return CachedPrompt(prompt_ids, merged.attention_mask, num_added, *placed)


class SoundwaveForConditionalGeneration(SoundwavePreTrainedModel, SoundwaveGenerationMixin):
    r"""
    Soundwave with its language-model head: speech and text in, text out.

    Example:

    ```python
    >>> from transformers import AutoModelForMultimodalLM, AutoProcessor

    >>> model = AutoModelForMultimodalLM.from_pretrained(folder)
    >>> processor = AutoProcessor.from_pretrained(folder)  # folder: one that `save_pretrained` wrote, or a hub name
    >>> clip = {"type": "audio", "path": "speech.wav"}
    >>> ask = {"type": "text", "text": "What does the person say?"}
    >>> inputs = processor.apply_chat_template(
    ...     [{"role": "user", "content": [clip, ask]}], add_generation_prompt=True, tokenize=True, return_dict=True
    ... )
    >>> ids = model.generate(**inputs, max_new_tokens=100)
    >>> texts = processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    ```"""

    _auto_class = "AutoModel"  # saved with its code
    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}

    def __init__(self, config: SoundwaveConfig):
        super().__init__(config)
        self.model = SoundwaveModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        # The name of the embeddings depends on the LLM: `embed_tokens` in Llama, `wte` in GPT-2.
        table = self.model.get_input_embeddings()
        name = next(name for name, module in self.named_modules() if module is table)
        self._tied_weights_keys = {"lm_head.weight": f"{name}.weight"}
        self.post_init()

    @property
    def _is_stateful(self) -> bool:
        """Whether the LLM keeps a state that cannot be rolled back, so that `generate` refuses assisted decoding."""
        return self.model.language_model._is_stateful

    @classmethod
    def from_backbones(
        cls,
        encoder: str | None = None,
        llm: str | None = None,
        adapter: str | None = None,
        audio_token: str = AUDIO_TOKEN,
        dtype=None,
        warm_start: bool = True,
        quantization_config=None,
        allow_other_backbones: bool = False,
        device=None,
        **fields,
    ):
        """Join any Whisper encoder and any causal LM.

        Args:
            encoder (`str`): hub name or folder of a Whisper model; by default the one in the config of `adapter`.
            llm (`str`): hub name or folder of a causal LM; by default the one in the config of `adapter`. The audio
                token is added to its vocabulary if it is missing.
            adapter (`str`, *optional*): folder of trained adapters (from `soundwave-hf train`). They are loaded, and
                their LoRA is merged into the LLM. Without it the adapters are new.
            audio_token (`str`): the token for a clip.
            dtype (`torch.dtype` or `str`, *optional*): dtype of all weights. By default, and with "auto", backbones
                keep their own and adapters are float32.
            warm_start (`bool`): whether to initialize a new alignment adapter with a tied CTC head from Whisper's
                decoder, if the two vocabularies share enough words. Otherwise its weights are random.
            quantization_config (`dict` or config of a quantizer, *optional*): for the LLM's layers, as in
                `from_pretrained`. Merging the LoRA of an `adapter` into quantized layers rounds it.
            allow_other_backbones (`bool`): whether `adapter` may be loaded on backbones of the same widths that it
                was not trained with.
            device (`torch.device` or `str`, *optional*): device of the model; by default the CPU, or for a quantized
                LLM the quantizer's choice.
            **fields: fields of `SoundwaveConfig`; by default those of `adapter`.

        Raises: `ValueError` for an unknown keyword or dtype; for an adapter that was trained on other backbones or
        with another value of a field that its weights fix; for missing weights or a truncated file; for an LLM that
        changes its scores after its head. `FileNotFoundError` if a file of the adapter or a shard is missing.

        Example:

        ```python
        >>> from soundwave_hf import SoundwaveForConditionalGeneration

        >>> joined = SoundwaveForConditionalGeneration.from_backbones(encoder, llm, keep_blanks=False)
        >>> joined.get_input_embeddings().weight.shape[0] == joined.config.text_config.vocab_size
        True
        ```
        """
        refuse_unsettable(fields)
        dtype = as_dtype(dtype)
        changed = fields.keys()
        encoder, llm, fields = cls._with_adapter(encoder, llm, adapter, allow_other_backbones, fields)
        if quantization_config is not None:
            quantization_config = quantize_llm_alone(quantization_config)
        on_device = device if quantization_config is not None else None  # others are joined on the CPU
        language = read_language_model(llm, dtype, quantization_config, on_device)
        refuse_other_heads(language, llm)
        embeddings = language.get_input_embeddings()
        audio_token_id, vocabulary = audio_token_place(llm, audio_token, embeddings.weight.shape[0])
        embeddings = add_audio_token(language, audio_token_id, vocabulary)
        warm_start = warm_start and adapter is None
        rows = embeddings.weight.detach().cpu()
        model = cls._join(encoder, llm, rows, language.config, audio_token_id, dtype, warm_start, fields)
        model._put_language_model(language, quantization_config is not None)
        model.model.shrinking_adapter.init_norm(embeddings)
        if adapter is not None:
            model = load_adapter(model, adapter, changed)
        return (model if device is None or quantization_config is not None else model.to(device)).eval()

    def _put_language_model(self, language, is_quantized: bool):
        device = language.get_input_embeddings().weight.device  # a quantizer chooses it
        for part in self.model.children():
            if part is not self.model.language_model:
                part.to(device)
        self.model.language_model = language.base_model
        self.lm_head = language.get_output_embeddings()
        self.generation_config = language.generation_config
        if is_quantized:
            take_quantizer(self, language)
        # An answer must not contain audio tokens.
        suppressed = [*(self.generation_config.suppress_tokens or []), self.config.audio_token_id]
        self.generation_config.suppress_tokens = suppressed

    def save_pretrained(self, save_directory, *args, **kwargs):
        """As in transformers; also saves the code, for `trust_remote_code=True` without this package.

        A checkpoint is loaded in one dtype, by default that of the LLM. If other weights have other dtypes, a warning
        says so.
        """
        from .pipeline_soundwave import CUSTOM_PIPELINES  # imported late: pipelines import many modules

        dtypes = {value.dtype for value in self.parameters() if value.is_floating_point()}
        if len(dtypes) > 1 and not getattr(self, "_hf_peft_config_loaded", False):  # then only an adapter is saved
            logger.warning_once(
                f"The weights have several dtypes, {', '.join(sorted(map(str, dtypes)))}. `from_pretrained` will load "
                f"all of them in that of the LLM, {self.dtype}. For another one, give it `dtype`."
            )
        self.config.auto_map = dict(AUTO_MAP)
        self.config.custom_pipelines = copy.deepcopy(CUSTOM_PIPELINES)
        # Otherwise loading would drop our options, such as `ctc_weight`.
        self.generation_config._from_model_config = False
        super().save_pretrained(save_directory, *args, **kwargs)

    def get_audio_features(self, input_features=None, input_features_mask=None, **kwargs):
        """See `SoundwaveModel.get_audio_features`. Text inputs of a prompt with the clips are ignored."""
        for name in TEXT_INPUTS:
            kwargs.pop(name, None)
        return self.model.get_audio_features(input_features, input_features_mask, **kwargs)

    @torch.no_grad()
    def get_ctc_clips(self, input_features=None, input_features_mask=None, **kwargs) -> list[CTCClip]:
        """`CTCClip` of each clip, for `SoundwaveProcessor.align_word_timestamps`.

        Arguments as in `SoundwaveModel.get_audio_features`. The text inputs of a transcription request are ignored.
        """
        audio = self.get_audio_features(input_features, input_features_mask, **kwargs)
        return ctc_clips(self, audio, input_features, input_features_mask)

    @unseen_by_trainer("ctc_labels")
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        input_features: torch.FloatTensor | None = None,
        input_features_mask: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        ctc_labels: torch.LongTensor | None = None,
        ctc_candidates: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        encoder_states: torch.Tensor | None = None,
        encoder_mask: torch.Tensor | None = None,
        output_ctc_logits: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
        shared_prefix: int = 0,
        cache: Cache | None = None,
        is_transcription: torch.Tensor | None = None,
        position_limits: PositionLimits | None = None,
        **kwargs,
    ) -> SoundwaveCausalLMOutputWithPast:
        """
        Args:
            input_ids (`torch.LongTensor` of shape `(batch, tokens)`): text, with one audio token for each clip.
            input_features (`torch.FloatTensor` of shape `(clips, mel_bins, mel_frames)`): log-mel of all clips of the
                batch, in the order of their audio tokens.
            input_features_mask (`torch.Tensor` of shape `(clips, mel_frames)`, *optional*): 1 at true frames. Padding
                does not reach the adapters. By default all frames are true.
            attention_mask (`torch.Tensor` of shape `(batch, tokens)`, *optional*): 1 at true tokens.
            position_ids (`torch.LongTensor` of shape `(batch, tokens)`, *optional*): of text alone; those of a prompt
                with clips are counted over its positions.
            past_key_values, cache (`Cache`, *optional*): keys and values of what the LLM has read before; transformers
                5.23 has the one name and 5.24 the other, and both are taken here.
            inputs_embeds (`torch.FloatTensor` of shape `(batch, tokens, width)`, *optional*): in place of `input_ids`;
                clips stand where the embedding is that of the audio token.
            use_cache (`bool`, *optional*): whether to return `past_key_values`; by default as in the LLM's config, but
                False in a training step.
            labels (`torch.LongTensor` of shape `(batch, tokens)`, *optional*): `input_ids` at tokens to learn, -100
                elsewhere.
            ctc_labels (`torch.LongTensor` of shape `(clips, targets)`, *optional*): transcript ids, padded with -100.
            ctc_candidates (`torch.LongTensor` of shape `(tokens,)`, *optional*): the tokens that compete with
                `ctc_labels` in this step. Only they and the labels can become `ctc_best`. By default the whole
                vocabulary.
            encoder_states, encoder_mask: outputs of `SoundwaveModel.encode`, instead of the features and their mask.
            num_ctc_clips (`int`, *optional*): number of clips to average the CTC loss over (an accumulated batch).
            ctc_mask (`torch.BoolTensor` of shape `(clips,)`, *optional*): clips that have a transcript; the CTC loss
                leaves the others out. By default all have one.
            logits_to_keep (`int`): score only this many last tokens of each row. The loss uses only their `labels`.
            output_ctc_logits (`bool`): whether to return `ctc_logits`.
            num_items_in_batch (`int`, *optional*): number of labels to average `ce_loss` over (an accumulated batch).
                Without `num_ctc_clips`, `ctc_loss` is multiplied by the share of these labels in this part.
            shared_prefix (`int`): in training, number of text tokens that all rows begin with (system prompt,
                question). The LLM computes them once for the batch, without scores and without learning their labels.
                `benchmarks/training.py --stages shrink --variants ours prefix_each_row` measures what this saves.
            is_transcription (`torch.BoolTensor` of shape `(batch,)`, *optional*): transcription requests; only
                `generate` uses it.
            position_limits (`PositionLimits`, *optional*): fewer or more positions than the CTC labels give.

        Raises: `ValueError` if clips and audio tokens differ in number, ids are outside the vocabulary, shapes of
        inputs and of their masks or labels differ, a clip is empty, a prompt is longer than the LLM's context, or a
        CTC label is not a token.

        Example:

        ```python
        >>> inputs = processor.apply_transcription_request("speech.wav")
        >>> output = model(**inputs, labels=inputs["input_ids"])
        >>> output.logits.shape[:2] == inputs["input_ids"].shape
        True
        >>> output.loss.backward()
        ```
        """
        refuse_misspelt(SoundwaveForConditionalGeneration.forward, kwargs)
        outputs = self.model(
            input_ids=input_ids,
            input_features=input_features,
            input_features_mask=input_features_mask,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=one_cache(past_key_values, cache),
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            encoder_states=encoder_states,
            encoder_mask=encoder_mask,
            ctc_labels=ctc_labels,
            ctc_candidates=ctc_candidates,
            output_ctc_logits=output_ctc_logits,
            shared_prefix=shared_prefix,
            position_limits=position_limits,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        # Contiguous, or PyTorch would multiply row by row and copy the head's weights for each.
        logits = self.lm_head(outputs.last_hidden_state[:, kept].contiguous())
        ce_loss = None
        check_tensors({"labels": labels})
        if labels is not None:
            ce_loss = self._next_token_loss(logits, labels, labels[:, shared_prefix:][:, kept], num_items_in_batch)
        audio = outputs.audio_output or SoundwaveAudioOutput()
        ctc_loss = audio.ctc_loss
        counts_labels_alone = num_items_in_batch is not None and kwargs.get("num_ctc_clips") is None
        if ctc_loss is not None and labels is not None and counts_labels_alone:
            # `Trainer` adds up the losses of an accumulated batch, so each part contributes its share of the CTC loss.
            ctc_loss = ctc_loss * labels[:, 1:].ne(-100).sum() / num_items_in_batch
        return SoundwaveCausalLMOutputWithPast(
            loss=self._weigh(ce_loss, ctc_loss),
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            ce_loss=ce_loss,
            ctc_loss=ctc_loss,
            num_positions=audio.num_positions,
            num_frames=audio.num_frames,
            num_ctc_skipped=audio.num_ctc_skipped,
            ctc_best=audio.ctc_best,
            ctc_logits=audio.ctc_logits,
            last_hidden_state=outputs.last_hidden_state,
            **{CACHE: getattr(outputs, CACHE)},
        )

    def _next_token_loss(self, logits, labels, learnt, num_items_in_batch):
        vocabulary = self.config.text_config.vocab_size
        if may_look(self, labels):
            check_ids("labels", labels.masked_fill(labels.eq(-100), 0), vocabulary)
        if learnt.shape != logits.shape[:2]:
            raise ValueError(
                f"`labels` has shape {tuple(labels.shape)}, which differs from that of `input_ids`: give one label "
                "for each token, also for an audio token."
            )
        return self.loss_function(logits, learnt, vocabulary, num_items_in_batch=num_items_in_batch)

    def _weigh(self, ce_loss, ctc_loss):
        if ctc_loss is None:
            return ce_loss
        weighted = self.config.ctc_loss_weight * ctc_loss
        return weighted if ce_loss is None else ce_loss + weighted


__all__ = [
    "SoundwaveForCTC",
    "SoundwaveForConditionalGeneration",
    "SoundwaveModel",
    "SoundwavePreTrainedModel",
    "first_of_run",
]
