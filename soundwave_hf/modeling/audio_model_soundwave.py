"""The audio side of Soundwave, alone (Stage I) and as the base of the whole model."""

import os

import torch
from huggingface_hub import HfApi
from torch import nn
from transformers import AutoConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import CONFIG_NAME, cached_file, can_return_tuple, logging

from .adapters_soundwave import (
    SoundwaveAlignmentAdapter,
    SoundwaveCTCHead,
    SoundwaveEncoder,
    first_of_run,
    may_look,
    readable_weights,
)
from .backbones_soundwave import (
    AUDIO_TOKEN,
    adapter_fields,
    as_dtype,
    audio_token_place,
    check_adapter_files,
    load_adapter_weights,
    quantize_llm_alone,
    read_encoder,
    read_input_embeddings,
    reading_weights,
    refuse_other_fields,
    refuse_other_training,
    refuse_unsettable,
)
from .configuration_soundwave import SoundwaveConfig
from .ctc_scores_soundwave import CTCFrames
from .folders_soundwave import (
    backbone_name,
    choose_backbones,
    local_backbone,
    refuse_other_kind,
    refuse_other_kind_on_hub,
    weights_digest,
)
from .inputs_soundwave import (
    check_ids,
    check_shapes,
    check_tensors,
    check_values,
    refuse_misspelt,
)
from .loading_soundwave import (
    from_adapter,
    from_peft_folder,
    refuse_changed_weights,
    take_adapter,
    take_peft_folder,
)
from .outputs_soundwave import CACHE_NAMES, SoundwaveAudioOutput, SoundwaveCausalLMOutputWithPast
from .positions_soundwave import PositionLimits
from .segments_soundwave import PIECES_AT_ONCE, cut_at_quiet, join_pieces
from .trained_fields_soundwave import checked_by_caller
from .warm_start_soundwave import init_alignment


logger = logging.get_logger(__name__)


def num_processes() -> int:
    """Number of processes in distributed training."""
    distributed = torch.distributed
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def _describe_mismatches(mismatches, folder: str) -> str:
    shapes = [f"{name} has {tuple(found)}, not {tuple(expected)}" for name, found, expected in sorted(mismatches)[:8]]
    return (
        f"{len(mismatches)} weights of `{folder}` do not fit its config: {'; '.join(shapes)}. "
        "Use the config.json that was saved with them, and do not change sizes."
    )


class SoundwavePreTrainedModel(PreTrainedModel):
    config: SoundwaveConfig
    base_model_prefix = "model"
    input_modalities = ("audio", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["SoundwaveAlignmentLayer", "SoundwaveShrinkingAdapter", "WhisperEncoderLayer"]
    _skip_keys_device_placement = list(CACHE_NAMES)
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    def post_init(self):
        super().post_init()
        # The library collects these names from all parts, even Whisper's absent decoder. Sharding needs all to exist.
        here = {type(module).__name__ for module in self.modules()}
        self._no_split_modules = here & set(self._no_split_modules)

    @property
    def dtype(self) -> torch.dtype:
        """That of the LLM's embeddings. Until a joined model is saved and loaded, encoder and adapters may differ."""
        embeddings = self.get_input_embeddings()
        dtype = None if embeddings is None else embeddings.weight.dtype
        return dtype if dtype is not None and dtype.is_floating_point else super().dtype

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Older name of `is_activation_checkpointing`. PEFT and TRL use it; the library's own would log a warning."""
        return self.is_activation_checkpointing

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, SoundwaveCTCHead):
            if module.weight is not None:
                init.normal_(module.weight, std=module.weight.shape[1] ** -0.5)
            else:
                init.zeros_(module.blank_weight)
                init.zeros_(module.blank_bias)

    def resize_token_embeddings(self, new_num_tokens=None, pad_to_multiple_of=None, mean_resizing=True):
        """As in transformers; the CTC head is resized too.

        Raises: `ValueError` if the audio token, which is also the CTC blank, would be removed.
        """
        if new_num_tokens is not None and new_num_tokens <= self.config.audio_token_id:
            raise ValueError(
                f"`new_num_tokens` is {new_num_tokens} and the audio token has id {self.config.audio_token_id}: give "
                f"{self.config.audio_token_id + 1} or more."
            )
        embeddings = super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        self.base_model.ctc_head.resize(embeddings.weight.shape[0])
        return embeddings

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """As in transformers, with two differences: missing weights raise an error (transformers fills them with
        random values), and the encoder and the token embeddings of Stage I are frozen again.

        A folder or hub name of trained adapters is loaded with the backbones that its config names. For the arguments
        that are only for adapters (`encoder`, `llm`, `allow_other_backbones`, `merge_lora`, `is_trainable`) see
        `from_adapter`.

        With `output_loading_info=True`, missing weights are reported and raise no error. A `quantization_config` of
        bitsandbytes or torchao that lists no modules to skip quantizes only the LLM's layers, because quantized
        adapters would change CTC labels, and so the number of positions.

        Raises: `FileNotFoundError` if a shard is missing; `ValueError` if a file is truncated, weights are missing or
        have other shapes, a config field is set that the weights fix, or the checkpoint is in the published layout.
        """
        if (found := take_peft_folder(pretrained_model_name_or_path, kwargs)) is not None:
            return from_peft_folder(cls, *found, *args, **kwargs)
        adapter = take_adapter(pretrained_model_name_or_path, kwargs)
        if adapter is not None:
            return from_adapter(cls, adapter, pretrained_model_name_or_path, **kwargs)
        refuse_changed_weights(pretrained_model_name_or_path, kwargs)
        folder = os.path.join(pretrained_model_name_or_path or "", kwargs.get("subfolder") or "")
        if kwargs.get("quantization_config") is not None:
            kwargs["quantization_config"] = quantize_llm_alone(kwargs["quantization_config"])
        asked = {name: kwargs.pop(name, False) for name in ("output_loading_info", "ignore_mismatched_sizes")}
        reported = {"output_loading_info": True, "ignore_mismatched_sizes": True}
        with reading_weights(folder):
            model, report = super().from_pretrained(pretrained_model_name_or_path, *args, **reported, **kwargs)
        if report["mismatched_keys"] and not asked["ignore_mismatched_sizes"]:
            raise ValueError(_describe_mismatches(report["mismatched_keys"], pretrained_model_name_or_path))
        if report["missing_keys"] and not asked["output_loading_info"]:
            missing = sorted(report["missing_keys"])
            raise ValueError(
                f"`{pretrained_model_name_or_path}` lacks {len(missing)} weights of {cls.__name__}: {missing[:8]}. "
                "Load it as the class that it was saved from, or download it again."
            )
        for name in ("audio_tower", "token_embeddings"):
            if (frozen := getattr(model.base_model, name, None)) is not None:
                frozen.requires_grad_(False)
        return (model, report) if asked["output_loading_info"] else model

    def save_pretrained(self, save_directory, *args, **kwargs):
        """As in transformers.

        Raises: `FileExistsError` if a whole model would be saved beside adapters, or the other way round, see
        `refuse_other_kind`.
        """
        place = os.fspath(save_directory)
        refuse_other_kind(place, self._saved_bases())
        if kwargs.get("push_to_hub"):
            self._refuse_other_kind_on_hub(kwargs.get("repo_id") or os.path.basename(place), kwargs)
        super().save_pretrained(save_directory, *args, **kwargs)

    def push_to_hub(self, repo_id, **kwargs):
        """As in transformers. Raises: `FileExistsError` as `save_pretrained` does."""
        self._refuse_other_kind_on_hub(repo_id, kwargs)
        return super().push_to_hub(repo_id, **kwargs)

    def _refuse_other_kind_on_hub(self, name: str, options: dict):
        api, revision = HfApi(token=options.get("token")), options.get("revision")
        # transformers does this next; it gives the full name.
        repo = api.create_repo(name, private=options.get("private"), exist_ok=True).repo_id
        refuse_other_kind_on_hub(api, repo, self._saved_bases(), revision)

    def _saved_bases(self) -> set[str | None] | None:
        """The models that an adapter of transformers' `add_adapter` names as its base; None if the model is whole."""
        if not getattr(self, "_hf_peft_config_loaded", False):
            return None
        return {config.base_model_name_or_path for config in self.peft_config.values()}

    def load_adapter(self, peft_model_id=None, *args, **kwargs):
        """As in transformers; loads the LoRA and the adapters of a PEFT folder.

        Raises: `ValueError` if they were trained with other config fields than this model has.
        """
        # Without config.json, PEFT saved the adapters of a whole checkpoint, which has its own config.
        quiet = {"_raise_exceptions_for_missing_entries": False}
        if peft_model_id is not None and cached_file(peft_model_id, CONFIG_NAME, **quiet) is not None:
            refuse_other_training(self.config, peft_model_id)
        with checked_by_caller():
            return super().load_adapter(peft_model_id, *args, **kwargs)

    @classmethod
    def _with_adapter(cls, encoder, llm, adapter: str | None, allow_other_backbones: bool, fields: dict) -> tuple:
        """Backbones and fields for `from_backbones`, completed from the adapter's config."""
        if adapter is None:
            if encoder is None or llm is None:
                raise ValueError(
                    f"`from_backbones` got the encoder {encoder!r} and the LLM {llm!r}: give both by hub name or "
                    "folder, or give `adapter`, a folder of trained adapters whose config names them."
                )
            return local_backbone(encoder), local_backbone(llm), fields
        check_adapter_files(adapter)
        encoder, llm = choose_backbones(adapter, encoder, llm)
        trained = adapter_fields(adapter, encoder, llm, allow_other_backbones)
        refuse_other_fields(fields, trained, adapter)
        return encoder, llm, {**trained, **fields}

    @classmethod
    def _join(cls, encoder: str, llm: str, llm_rows, text_config, audio_token_id: int, dtype, warm_start, fields):
        """A model of this class with the encoder's weights and initialized adapters. Its LLM has no weights yet.

        Args: llm_rows (`torch.Tensor` of shape `(vocabulary, width)`): the LLM's input embeddings.
        """
        tower = read_encoder(encoder, dtype)
        for part, part_config, name in (("encoder", tower.config, encoder), ("llm", text_config, llm)):
            # Saved with trained adapters, to find their backbones again and to refuse others.
            part_config.name_or_path = backbone_name(name)
            part_config.weights_digest = weights_digest(name, part)
        config = SoundwaveConfig(
            audio_config=tower.config, text_config=text_config, audio_token_id=audio_token_id, **fields
        )
        with torch.device("meta"):
            model = cls(config)
        audio_model = model.base_model if isinstance(model.base_model, SoundwaveAudioModel) else model
        audio_model.audio_tower.load_state_dict(tower.state_dict(), assign=True)
        audio_model.audio_tower.requires_grad_(False)
        for name in ("alignment_adapter", "ctc_head", "shrinking_adapter"):
            if (adapter := getattr(audio_model, name, None)) is not None:
                adapter.to_empty(device="cpu").apply(model._init_weights)
                adapter.to(dtype)
        warm_start = warm_start and config.tie_ctc_head
        if warm_start and not init_alignment(audio_model.alignment_adapter, encoder, llm, llm_rows):
            logger.warning(
                "The alignment adapter has random weights: `%s` has no decoder, or shares too few words with `%s`.",
                encoder,
                llm,
            )
        audio_model.ctc_head.init_blank(llm_rows[:audio_token_id])
        return model


class SoundwaveAudioModel(SoundwavePreTrainedModel):
    """The audio side: audio tower, alignment adapter, CTC head."""

    def __init__(self, config: SoundwaveConfig):
        super().__init__(config)
        self.audio_tower = SoundwaveEncoder(config.audio_config)
        self.alignment_adapter = SoundwaveAlignmentAdapter(config)
        self.ctc_head = SoundwaveCTCHead(config)
        self.audio_tower.requires_grad_(False)

    def train(self, mode: bool = True):
        """As in PyTorch, but a frozen encoder stays in eval mode."""
        super().train(mode)
        self.audio_tower.train(mode and self.encoder_trains())
        return self

    def encoder_trains(self) -> bool:
        """Whether the encoder is not frozen."""
        return any(parameter.requires_grad for parameter in self.audio_tower.parameters())

    def encode(self, input_features, input_features_mask=None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Encode clips within the encoder's window: log-mel `(clips, mel_bins, mel_frames)` -> encoder states
        `(clips, encoder_frames, encoder_width)` and their mask."""
        clips = {"input_features": input_features, "input_features_mask": input_features_mask}
        self.check_clips(**clips)
        if input_features_mask is not None and may_look(self, input_features):
            check_values(clips)
        outputs, mask = self._encode(input_features, input_features_mask)
        return outputs.last_hidden_state, mask

    def _encode(self, input_features, input_features_mask=None, **kwargs) -> tuple[BaseModelOutput, torch.Tensor]:
        if self.training and not self.audio_tower.training and self.encoder_trains():  # unfrozen since `train()`
            self.audio_tower.train()
        outputs = self.audio_tower(input_features, input_features_mask, **kwargs)
        return outputs, None if input_features_mask is None else input_features_mask[:, ::2].bool()

    def check_clips(self, input_features=None, input_features_mask=None, encoder_states=None, encoder_mask=None):
        """Raises: `ValueError` if clips are no tensors, or clips and mask have no shapes that fit."""
        width = self.config.audio_config.d_model
        clips = {"input_features": input_features, "input_features_mask": input_features_mask}
        states = {"encoder_states": encoder_states, "encoder_mask": encoder_mask}
        check_tensors({**clips, **states})
        if input_features is not None:
            check_shapes(clips, "(clips, mel_bins, mel_frames)", frames_axis=2)
        if encoder_states is not None:
            check_shapes(states, f"(clips, frames, {width})", frames_axis=1, width=width)

    def align(
        self, input_features=None, input_features_mask=None, encoder_states=None, encoder_mask=None, **kwargs
    ) -> tuple[BaseModelOutput, torch.Tensor, torch.Tensor]:
        """Clips of any length -> encoder output, aligned states and their mask.

        A clip longer than the encoder's window is cut at quiet places. Its pieces are encoded and aligned like clips,
        a few at a time, and joined.
        """
        if input_features is None and encoder_states is None:
            raise ValueError(
                "Neither `input_features` nor `encoder_states` was given: pass what the processor returns."
            )
        self.check_clips(input_features, input_features_mask, encoder_states, encoder_mask)
        clips = {"input_features": input_features, "input_features_mask": input_features_mask}
        if encoder_states is not None:
            clips = {"encoder_states": encoder_states, "encoder_mask": encoder_mask}
        if may_look(self, next(iter(clips.values()))):
            check_values(clips)
        longest = self.config.audio_config.max_source_positions
        if encoder_states is None and input_features.shape[-1] > 2 * longest:
            return self._align_pieces(input_features, input_features_mask, 2 * longest)
        if encoder_states is None:
            outputs, encoder_mask = self._encode(input_features, input_features_mask, **kwargs)
        elif encoder_states.shape[1] <= longest:
            outputs = BaseModelOutput(last_hidden_state=encoder_states)
        else:
            raise ValueError(
                f"`encoder_states` has {encoder_states.shape[1]} frames and the encoder's window gives {longest}: for "
                "longer clips pass `input_features`."
            )
        aligned, mask = self.alignment_adapter(outputs.last_hidden_state, encoder_mask)
        return outputs, aligned, mask

    def _align_pieces(self, input_features, input_features_mask, window: int):
        if input_features_mask is None:
            input_features_mask = torch.ones_like(input_features[:, 0], dtype=torch.long)
        pieces, pieces_of_clip = [], []
        for features, length in zip(input_features, input_features_mask.sum(dim=1).tolist(), strict=True):
            places = cut_at_quiet(features[:, :length].mean(dim=0), window, 2 * self.config.stack_factor)
            pieces += [features[:, begin:end].T for begin, end in places]  # [mel_frames, mel_bins]
            pieces_of_clip.append(len(places))
        states, aligned = [], []
        for start in range(0, len(pieces), PIECES_AT_ONCE):
            some = pieces[start : start + PIECES_AT_ONCE]
            features, mask = join_pieces(some, [1] * len(some))
            encoded, states_mask = self._encode(features.transpose(1, 2), mask)
            some_states = encoded.last_hidden_state
            some_aligned, aligned_mask = self.alignment_adapter(some_states, states_mask)
            states += [row[true] for row, true in zip(some_states, states_mask, strict=True)]
            aligned += [row[true] for row, true in zip(some_aligned, aligned_mask, strict=True)]
        outputs = BaseModelOutput(last_hidden_state=join_pieces(states, pieces_of_clip)[0])
        return outputs, *join_pieces(aligned, pieces_of_clip)

    def label(
        self, aligned, mask, token_embeddings, ctc_labels=None, num_ctc_clips=None, ctc_candidates=None, ctc_mask=None
    ) -> SoundwaveAudioOutput:
        """CTC labels of aligned frames, and the loss if `ctc_labels` are given. The output has no positions.

        Args:
            aligned, mask: as `align` returns them.
            token_embeddings (`torch.Tensor` of shape `(vocabulary, width)`): the LLM's input embeddings.
            num_ctc_clips (`int`, *optional*): number of clips to average the CTC loss over; by default the given ones.
            ctc_candidates (`torch.LongTensor` of shape `(tokens,)`, *optional*): see `forward`.
            ctc_mask (`torch.BoolTensor` of shape `(clips,)`, *optional*): see `forward`.
        """
        check_tensors({"ctc_labels": ctc_labels, "ctc_candidates": ctc_candidates, "ctc_mask": ctc_mask})
        num_frames = mask.sum(dim=1)
        if ctc_labels is not None:
            self._check_ctc_labels(ctc_labels, ctc_mask, len(aligned))
        if ctc_candidates is not None and may_look(self, ctc_candidates):
            check_ids("ctc_candidates", ctc_candidates, self.config.text_config.vocab_size)
        ctc = self.ctc_head(aligned, num_frames, token_embeddings, ctc_labels, ctc_candidates)
        if ctc_labels is None and ctc.losses is not None:
            aligned = aligned + ctc.losses[:, None, None].to(aligned.dtype)
        output = SoundwaveAudioOutput(aligned_states=aligned, num_frames=num_frames, ctc_best=ctc.best)
        if ctc.blank_log_probs is not None:
            output.no_speech_probs = ctc.blank_log_probs.masked_fill(~mask, 0).amin(dim=1).exp()
        if ctc_labels is not None:
            num_targets = ctc_labels.ne(-100).sum(dim=1)
            # A clip without targets has a loss that grows with its frames, so it is divided by their number.
            per_target = ctc.losses / torch.where(num_targets > 0, num_targets, num_frames)
            if ctc_mask is None:
                ctc_mask = torch.ones_like(ctc.feasible)
            clips = ctc_mask.sum().clamp(min=1) if num_ctc_clips is None else num_ctc_clips
            output.ctc_loss = torch.where(ctc_mask, per_target, 0.0).sum() / clips
            output.num_ctc_skipped = (~ctc.feasible & ctc_mask).sum()
        return output

    def _check_ctc_labels(self, ctc_labels: torch.Tensor, ctc_mask: torch.Tensor | None, clips: int):
        for name, values in (("ctc_labels", ctc_labels), ("ctc_mask", ctc_mask)):
            if values is not None and len(values) != clips:
                raise ValueError(f"`{name}` has {len(values)} rows for {clips} clips: give one row for each.")
        if not may_look(self, ctc_labels):
            return
        vocabulary, blank = self.config.text_config.vocab_size, self.config.audio_token_id
        wrong = ctc_labels.ne(-100) & ((ctc_labels < 0) | (ctc_labels >= vocabulary) | (ctc_labels == blank))
        if wrong.any():
            raise ValueError(
                f"`ctc_labels` holds id {int(ctc_labels[wrong][0])}; expected ids 0..{vocabulary - 1} other than the "
                f"blank ({blank}), and -100 as padding."
            )
        gap = (ctc_labels.ne(-100).int().diff(dim=1) > 0).any(dim=1)
        if gap.any():
            raise ValueError(
                f"`ctc_labels` of clip {int(gap.int().argmax())} has a target after -100: put targets first and "
                "pad rows with -100 on the right."
            )

    def token_table(self) -> torch.Tensor | None:
        """The embeddings `(vocabulary, width)` of the tied CTC head, gathered if they are offloaded or sharded; None
        if the head has its own weights."""
        embeddings = self.get_input_embeddings()
        if embeddings is None:
            return None
        if self.ctc_head.weight is None and getattr(embeddings, "lora_embedding_A", None):
            raise ValueError(
                "A LoRA changes the LLM's embeddings. The tied CTC head reads them without it, so labels would change "
                "when it is merged: leave the embeddings out of `target_modules`, or train with `tie_ctc_head=False`."
            )
        if not embeddings.weight.is_meta:
            # With FSDP2 the weight is sharded outside of the embedding's forward.
            gather = getattr(embeddings.weight, "full_tensor", None)
            return embeddings.weight if gather is None else gather()
        with readable_weights(embeddings):
            return embeddings.weight.data

    def ctc_frames(self, audio: SoundwaveAudioOutput) -> list[CTCFrames]:
        """CTC log-probabilities of each clip's frames. Args: audio: the output of the audio side."""
        return self.ctc_head.score_frames(audio.aligned_states, audio.num_frames, self.token_table())

    def keep_mask(
        self, ctc_best: torch.Tensor, mask: torch.Tensor, limits: PositionLimits | None = None
    ) -> torch.Tensor:
        """Frames that become positions, `(clips, frames)`: the first of each run, and at least one in each clip.

        Args: limits: of the number of positions; by default none.
        """
        keep = first_of_run(ctc_best) & mask
        is_blank = ctc_best == self.config.audio_token_id
        own = None if limits is None else limits.keep_blanks
        if not (self.config.keep_blanks if own is None else own):
            keep &= ~is_blank
            keep[:, 0] |= ~keep.any(dim=1)
        return keep if limits is None else limits.choose(keep, is_blank, mask.sum(dim=1), self.config.frame_seconds)


PROMPT = ("input_ids", "attention_mask", "is_transcription")  # what the processor returns beside the clips
# Other arguments of the whole model's `forward` that only its LLM reads.
OF_LLM = (
    *("inputs_embeds", "position_ids", "use_cache", *CACHE_NAMES),
    *("logits_to_keep", "shared_prefix", "position_limits"),
)


class SoundwaveForCTC(SoundwaveAudioModel):
    r"""Stage I: the audio side and the LLM's frozen token embeddings; the LLM itself is absent.

    Parameters have the same names as in `SoundwaveModel`, so that trained weights can be loaded there.

    Example:

    ```python
    >>> from soundwave_hf import SoundwaveForCTC

    >>> ctc_model = SoundwaveForCTC.from_backbones(encoder, llm)  # such as "openai/whisper-base", "Qwen/Qwen3-0.6B"
    >>> sorted({name.split(".")[0] for name, weight in ctc_model.named_parameters() if weight.requires_grad})
    ['alignment_adapter', 'ctc_head']
    ```"""

    main_input_name = "input_features"
    _input_embed_layer = "token_embeddings"
    # The loss is a mean over clips, not labels: `Trainer` averages the parts of an accumulated batch.
    accepts_loss_kwargs = False

    def __init__(self, config: SoundwaveConfig):
        super().__init__(config)
        if config.tie_ctc_head:
            self.token_embeddings = nn.Embedding(config.text_config.vocab_size, config.text_config.hidden_size)
            self.token_embeddings.requires_grad_(False)
        else:
            self.token_embeddings = None
        self.post_init()

    def get_input_embeddings(self):
        return self.token_embeddings

    @classmethod
    def from_backbones(
        cls,
        encoder: str | None = None,
        llm: str | None = None,
        audio_token: str = AUDIO_TOKEN,
        dtype=None,
        warm_start: bool = True,
        adapter: str | None = None,
        allow_other_backbones: bool = False,
        **fields,
    ):
        """Join a Whisper encoder and the token embeddings of an LLM. The LLM itself is not loaded.

        Arguments as in `SoundwaveForConditionalGeneration.from_backbones`. Only the alignment adapter and the CTC head
        of an `adapter` of a later stage are loaded.
        """
        refuse_unsettable(fields)
        dtype = as_dtype(dtype)
        encoder, llm, fields = cls._with_adapter(encoder, llm, adapter, allow_other_backbones, fields)
        warm_start = warm_start and adapter is None
        rows = read_input_embeddings(llm)
        audio_token_id, vocabulary = audio_token_place(llm, audio_token, len(rows))
        text_config = AutoConfig.from_pretrained(llm)
        text_config.vocab_size = vocabulary
        rows = torch.cat([rows, rows.new_zeros(vocabulary - len(rows), rows.shape[1])])
        rows[audio_token_id] = rows[:audio_token_id].float().mean(dim=0)
        model = cls._join(encoder, llm, rows, text_config, audio_token_id, dtype, warm_start, fields)
        if model.token_embeddings is not None:
            model.token_embeddings = nn.Embedding.from_pretrained(rows.to(dtype), freeze=True)
        if adapter is not None:
            load_adapter_weights(model, adapter)
        return model.eval()

    @can_return_tuple
    def forward(
        self,
        input_features: torch.Tensor | None = None,
        input_features_mask: torch.Tensor | None = None,
        encoder_states: torch.Tensor | None = None,
        encoder_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        num_ctc_clips: int | None = None,
        ctc_candidates: torch.Tensor | None = None,
        ctc_mask: torch.Tensor | None = None,
        output_ctc_logits: bool = False,
        **kwargs,
    ) -> SoundwaveCausalLMOutputWithPast:
        """
        Args:
            input_features (`torch.FloatTensor` of shape `(clips, mel_bins, mel_frames)`): log-mel of each clip.
            input_features_mask (`torch.Tensor` of shape `(clips, mel_frames)`, *optional*): 1 at true frames.
            encoder_states, encoder_mask: outputs of `encode`, in place of the two above.
            labels (`torch.LongTensor` of shape `(clips, targets)`, *optional*): token ids, padded with -100. The
                name `ctc_labels` of the whole model is accepted too. (It is not in the signature, because `Trainer`
                expects each argument with "label" in its name in every evaluation batch.)
            num_ctc_clips (`int`, *optional*): number of clips to average the loss over (a whole accumulated batch).
            ctc_candidates (`torch.LongTensor` of shape `(tokens,)`, *optional*): the tokens that compete with the
                targets in this step and can become `ctc_best`; by default the whole vocabulary.
            ctc_mask (`torch.BoolTensor` of shape `(clips,)`, *optional*): clips that have a transcript. The loss
                ignores the others. By default all have one.
            output_ctc_logits (`bool`): whether to return `logits`, the scores of all tokens and the blank, of shape
                `(clips, frames, vocabulary)`. They need much memory: 450 MB for 30 s and 150,000 tokens.
            kwargs: `output_hidden_states` and `output_attentions` of the encoder, for clips within its window. What
                the processor returns beside the clips (`input_ids`, `attention_mask`, `is_transcription`) is not read.

        Returns: `SoundwaveCausalLMOutputWithPast` with `loss`, `ctc_loss`, `num_frames`, `num_positions`, `ctc_best`,
        and on request `logits`, also as `ctc_logits`, and the encoder's `hidden_states` and `attentions`.

        Raises: `ValueError` if shapes of features and mask differ, a clip is empty, a CTC label is not a token,
        `labels` and `ctc_labels` are both given and differ, or another argument is for the LLM.

        Example:

        ```python
        >>> import torch
        >>> from soundwave_hf import SoundwaveForCTC

        >>> ctc_model = SoundwaveForCTC.from_backbones(encoder, llm)
        >>> features = torch.randn(1, ctc_model.config.audio_config.num_mel_bins, 60)
        >>> output = ctc_model(features, labels=torch.tensor([[3, 4]]))
        >>> output.num_frames  # 40 ms each
        tensor([15])
        >>> output.loss.backward()
        ```
        """
        labels = self._one_of(labels, kwargs.pop("ctc_labels", None))
        for name in ("num_items_in_batch", *PROMPT):  # `Trainer` adds the first; the loss is a mean over clips
            kwargs.pop(name, None)
        for name in OF_LLM:
            given = kwargs.pop(name, None)
            if given is not None and not (isinstance(given, int) and not given):  # False and 0 ask for nothing
                raise ValueError(
                    f"`{name}` was given, and `SoundwaveForCTC` has no LLM: leave it out, or load the whole model as "
                    "`SoundwaveForConditionalGeneration`."
                )
        refuse_misspelt(SoundwaveForCTC.forward, kwargs)
        encoded, aligned, mask = self.align(
            input_features, input_features_mask, encoder_states, encoder_mask, **kwargs
        )
        embeddings = self.token_table()
        audio = self.label(aligned, mask, embeddings, labels, num_ctc_clips, ctc_candidates, ctc_mask)
        logits = self.ctc_head.logits(aligned, embeddings) if output_ctc_logits else None
        return SoundwaveCausalLMOutputWithPast(
            loss=audio.ctc_loss,
            ctc_loss=audio.ctc_loss,
            num_frames=audio.num_frames,
            num_positions=self.keep_mask(audio.ctc_best, mask).sum(dim=1),
            num_ctc_skipped=audio.num_ctc_skipped,
            ctc_best=audio.ctc_best,
            logits=logits,
            ctc_logits=logits,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )

    def _one_of(self, labels: torch.Tensor | None, ctc_labels: torch.Tensor | None) -> torch.Tensor | None:
        if labels is None or ctc_labels is None:
            return ctc_labels if labels is None else labels
        for given in (labels, ctc_labels):
            check_tensors({"ctc_labels": given})
        if labels is not ctc_labels and may_look(self, labels) and not torch.equal(labels, ctc_labels.to(labels)):
            raise ValueError(
                f"`labels` of shape {tuple(labels.shape)} and `ctc_labels` of shape {tuple(ctc_labels.shape)} were "
                "given and differ. Both are names of the transcripts' ids: give one of them."
            )
        return labels


__all__ = [
    "SoundwaveAudioModel",
    "SoundwaveForCTC",
    "SoundwavePreTrainedModel",
    "num_processes",
]
