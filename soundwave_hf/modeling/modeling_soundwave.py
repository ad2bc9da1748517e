"""Soundwave (arXiv 2502.12900): a frozen Whisper encoder, an alignment and a shrinking adapter, any causal LM."""

import copy
import difflib
import inspect
import math
import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutput,
    BaseModelOutputWithPast,
    BaseModelOutputWithPooling,
    CausalLMOutputWithPast,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.whisper.modeling_whisper import WhisperEncoder
from transformers.quantizers.auto import AutoQuantizationConfig
from transformers.utils import CONFIG_NAME, TransformersKwargs, cached_file, can_return_tuple, logging
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .backbones_soundwave import (
    AUDIO_TOKEN,
    adapter_fields,
    as_dtype,
    audio_token_place,
    check_adapter_files,
    load_adapter,
    load_adapter_weights,
    read_encoder,
    read_input_embeddings,
    read_language_model,
    reading_weights,
    refuse_other_fields,
    refuse_other_heads,
    refuse_other_training,
    refuse_unsettable,
)
from .configuration_soundwave import AUTO_MAP, SoundwaveConfig
from .ctc_soundwave import large_vocabulary_ctc
from .folders_soundwave import backbone_name, choose_backbones, weights_digest
from .generation_soundwave import (
    CACHE,
    CACHE_NAMES,
    CachedPrompt,
    SoundwaveGenerationMixin,
    digest_clips,
    one_cache,
    place_clip_values,
)
from .loading_soundwave import from_adapter, take_adapter
from .no_speech_soundwave import may_be_words
from .trained_fields_soundwave import checked_by_caller, keep_trained_fields
from .warm_start_soundwave import start_alignment


logger = logging.get_logger(__name__)

_NOT_LLM = ("audio_tower", "alignment_adapter", "ctc_head", "shrinking_adapter")
# As the quantizers compare names: from their beginning, in a model with a head or in one without.
HIGH_PRECISION_PARTS = (*_NOT_LLM, *(f"model.{name}" for name in _NOT_LLM), "lm_head")
PIECES_AT_ONCE = 8  # of a long clip, which bounds the memory of its encoding


def first_of_run(labels: torch.Tensor) -> torch.Tensor:
    """Mark the first frame of each run of equal CTC labels (paper section 3.2).

    Args: labels (`torch.LongTensor` of shape `(clips, frames)`): likeliest CTC label of each aligned frame.
    Returns: `torch.BoolTensor` of shape `(clips, frames)`, true where a run begins.
    """
    starts = torch.ones_like(labels, dtype=torch.bool)
    starts[:, 1:] = labels[:, 1:] != labels[:, :-1]
    return starts


def cut_at_quiet(energy: torch.Tensor, window: int, unit: int) -> list[tuple[int, int]]:
    """Cut a clip longer than the encoder's window where it is quietest, in the last third of each window.

    Args:
        energy (`torch.Tensor` of shape `(mel_frames,)`): mean log-mel of each frame.
        window (`int`): most mel frames of a piece.
        unit (`int`): mel frames of an aligned frame; pieces begin at multiples of it.

    Returns: first mel frame and end of each piece; together they are the whole clip.
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
    """Pieces `(frames, width)`, in order -> padded clips `(clips, frames, width)` and, true at true frames, a mask."""
    rest = iter(states)
    clips = [torch.cat([next(rest) for _ in range(pieces)]) for pieces in pieces_of_clip]
    joined = nn.utils.rnn.pad_sequence(clips, batch_first=True)
    lengths = torch.tensor([len(clip) for clip in clips], device=joined.device)
    return joined, torch.arange(joined.shape[1], device=joined.device) < lengths[:, None]


def check_ids(name: str, ids: torch.Tensor, vocabulary: int):
    """Raises: `ValueError` where ids are outside an LLM's vocabulary."""
    wrong = (ids < 0) | (ids >= vocabulary)
    if wrong.any():
        raise ValueError(
            f"`{name}` holds id {int(ids[wrong][0])} and the LLM's vocabulary has {vocabulary} ids: use the processor "
            "that was saved with the model."
        )


def quantize_llm_alone(quantization_config):
    """The quantizer's config, or that of its dict; without modules to leave out: encoder, adapters and heads."""
    if isinstance(quantization_config, dict):
        config = AutoQuantizationConfig.from_dict(quantization_config)
    else:
        config = copy.deepcopy(quantization_config)
    for name in ("llm_int8_skip_modules", "modules_to_not_convert"):  # of bitsandbytes, and of the others
        if getattr(config, name, ()) is None:
            setattr(config, name, list(HIGH_PRECISION_PARTS))
    return config


def take_quantizer(model: nn.Module, language: nn.Module):
    """Give a joined model what transformers, PEFT and the trainers read of the quantized LLM inside it."""
    for name in ("hf_quantizer", "is_quantized", "quantization_method", "is_loaded_in_4bit", "is_loaded_in_8bit"):
        if hasattr(language, name):
            setattr(model, name, getattr(language, name))
    model.config.quantization_config = model.config.text_config.quantization_config
    del model.config.text_config.quantization_config


def num_processes() -> int:
    """How many processes train together."""
    distributed = torch.distributed
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def refuse_misspelt(forward: Callable, given: dict):
    """Refuse keywords that nearly are an argument of a `forward`; others are passed on to the LLM.

    Raises: `ValueError` with the near one.
    """
    for name in given.keys() - TransformersKwargs.__annotations__.keys():
        known = inspect.signature(forward).parameters
        if near := difflib.get_close_matches(name, known, n=1, cutoff=0.8):
            raise ValueError(f"`forward` got `{name}`, which it does not take. Did you mean `{near[0]}`?")


@dataclass
class SoundwaveAudioOutput(BaseModelOutputWithPooling):
    """What the audio side of the model makes of a batch of clips.

    Args:
        last_hidden_state (`torch.FloatTensor` of shape `(clips, encoder_frames, encoder_width)`): encoder states.
        pooler_output (`torch.FloatTensor` of shape `(sum of num_positions, width)`): the positions of all clips, in
            order, as they enter the LLM. None in `SoundwaveForCTC`.
        aligned_states (`torch.FloatTensor` of shape `(clips, frames, width)`): output of the alignment adapter.
        num_frames (`torch.LongTensor` of shape `(clips,)`): true aligned frames of each clip.
        num_positions (`torch.LongTensor` of shape `(clips,)`): positions of each clip.
        ctc_best (`torch.LongTensor` of shape `(clips, frames)`): CTC label of each aligned frame: its likeliest token,
            or the blank where that leads by `blank_margin`.
        ctc_loss (`torch.FloatTensor` of shape `()`, *optional*): sum of each clip's loss per target, over the number
            of clips, or over `num_ctc_clips` where that was given.
        num_ctc_skipped (`torch.LongTensor` of shape `()`, *optional*): clips whose targets do not fit their frames.
        ctc_logits (`torch.FloatTensor` of shape `(clips, frames, vocabulary)`, *optional*): returned on request.
        no_speech_probs (`torch.FloatTensor` of shape `(clips,)`): least probability of the CTC blank at a frame of the
            clip: near 1 where the CTC head hears no token anywhere. See `SoundwaveModel.judge_silence`.
    """

    aligned_states: torch.FloatTensor | None = None
    num_frames: torch.LongTensor | None = None
    num_positions: torch.LongTensor | None = None
    ctc_best: torch.LongTensor | None = None
    ctc_loss: torch.FloatTensor | None = None
    num_ctc_skipped: torch.LongTensor | None = None
    ctc_logits: torch.FloatTensor | None = None
    no_speech_probs: torch.FloatTensor | None = None


class EitherCacheName:
    """Lets an output be asked for its cache by both names, `past_key_values` and `cache`.

    From 5.24 on the library's outputs do so themselves, with a warning for the old name.
    """

    def __getattr__(self, name):
        if name == "cache":  # where no field has that name
            return self.past_key_values
        raise AttributeError(f"`{type(self).__name__}` has no attribute `{name}`.")

    def __getitem__(self, key):
        return super().__getitem__(CACHE if key in CACHE_NAMES else key)

    def __contains__(self, key):
        return super().__contains__(CACHE if key in CACHE_NAMES else key)

    def get(self, key, default=None):
        return super().get(CACHE if key in CACHE_NAMES else key, default)


@dataclass
class SoundwaveModelOutputWithPast(EitherCacheName, BaseModelOutputWithPast):
    """Output of [`SoundwaveModel`]: one state per input token, and the audio side's output.

    Args:
        last_hidden_state (`torch.FloatTensor` of shape `(batch, tokens, width)`): for the audio token, the state at
            the last of its positions.
        audio_output (`SoundwaveAudioOutput`, *optional*): present where clips were given.
    """

    audio_output: SoundwaveAudioOutput | None = None


@dataclass
class SoundwaveCausalLMOutputWithPast(EitherCacheName, CausalLMOutputWithPast):
    """Output of [`SoundwaveForConditionalGeneration`].

    Args:
        loss (`torch.FloatTensor` of shape `()`, *optional*): `ce_loss + ctc_loss_weight * ctc_loss`, of those present.
        ce_loss (`torch.FloatTensor` of shape `()`, *optional*): next-token loss, returned with `labels`.
        ctc_loss (`torch.FloatTensor` of shape `()`, *optional*): returned with `ctc_labels`.
        logits (`torch.FloatTensor` of shape `(batch, tokens, vocabulary)`): next-token scores of each input token.
        num_positions, num_frames, ctc_logits, num_ctc_skipped: see `SoundwaveAudioOutput`.
        last_hidden_state (`torch.FloatTensor` of shape `(batch, tokens, width)`): of the LLM, for those who loaded
            the model as `AutoModel`.
    """

    ce_loss: torch.FloatTensor | None = None
    ctc_loss: torch.FloatTensor | None = None
    num_positions: torch.LongTensor | None = None
    num_frames: torch.LongTensor | None = None
    num_ctc_skipped: torch.LongTensor | None = None
    ctc_best: torch.LongTensor | None = None
    ctc_logits: torch.FloatTensor | None = None
    last_hidden_state: torch.FloatTensor | None = None


class SoundwaveEncoder(WhisperEncoder):
    """Whisper's encoder for clips of any length up to its window, padded together.

    A clip gives the states that it gives alone: padding is silenced before each convolution and hidden from attention.
    """

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self, input_features: torch.Tensor, input_features_mask: torch.Tensor | None = None, **kwargs
    ) -> BaseModelOutput:
        """
        Args:
            input_features (`torch.FloatTensor` of shape `(clips, mel_bins, mel_frames)`): log-mel, 10 ms a frame.
            input_features_mask (`torch.Tensor` of shape `(clips, mel_frames)`, *optional*): 1 at true frames.

        Returns: `BaseModelOutput` with states of shape `(clips, ceil(mel_frames / 2), encoder_width)`, 20 ms a frame.
        """
        if input_features.shape[1] != self.config.num_mel_bins:
            raise ValueError(
                f"`input_features` has shape {tuple(input_features.shape)} and the encoder hears "
                f"{self.config.num_mel_bins} mel bins: (clips, {self.config.num_mel_bins}, mel_frames) was expected. "
                "Use the processor that was saved with the model."
            )
        window = 2 * self.max_source_positions
        if input_features.shape[-1] > window:
            raise ValueError(
                f"`input_features` has {input_features.shape[-1]} mel frames and the encoder hears at most {window} "
                f"({window / 100:g} s) at once. Cut the clip."
            )
        hidden = input_features.to(self.conv1.weight.dtype)
        if input_features_mask is None:
            hidden = nn.functional.gelu(self.conv1(hidden))
            frame_mask = None
        else:
            true_mel = input_features_mask[:, None].to(hidden.dtype)
            # The second convolution reads one frame past a clip of odd length.
            hidden = nn.functional.gelu(self.conv1(hidden * true_mel)) * true_mel
            frame_mask = input_features_mask[:, ::2].contiguous()  # as flex attention on CPU needs it
        hidden = nn.functional.gelu(self.conv2(hidden)).transpose(1, 2)  # [clips, mel_frames / 2, width]
        hidden = hidden + self.embed_positions(torch.arange(hidden.shape[1], device=hidden.device))
        attention_mask = create_bidirectional_mask(self.config, hidden, frame_mask)
        for layer in self.layers:
            hidden = layer(hidden, attention_mask, **kwargs)
        return BaseModelOutput(last_hidden_state=self.layer_norm(hidden))


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention in plain PyTorch. Queries `(batch, heads, queries, head_width)` -> `(batch, queries, heads, ...)`."""
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2), weights


class SoundwaveAttention(nn.Module):
    """Multi-head attention of the adapters: queries and keys may be different sequences."""

    is_causal = False

    def __init__(self, config: SoundwaveConfig, dropout: float = 0.0):
        super().__init__()
        self.config = config
        width = config.text_config.hidden_size
        self.head_dim = width // config.adapter_heads
        self.scaling = self.head_dim**-0.5
        self.dropout = dropout
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, states: torch.Tensor, keys: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """
        Args:
            states (`torch.FloatTensor` of shape `(clips, queries, width)`): what asks.
            keys (`torch.FloatTensor` of shape `(clips, frames, width)`): what is read.
            attention_mask: as `create_bidirectional_mask` makes it.

        Returns: `torch.FloatTensor` of shape `(clips, queries, width)`.
        """
        query, key, value = (
            projected.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # [clips, heads, length, head_dim]
            for projected in (self.q_proj(states), self.k_proj(keys), self.v_proj(keys))
        )
        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        dropout = self.dropout if self.training else 0.0
        heard, _ = attend(self, query, key, value, attention_mask, scaling=self.scaling, dropout=dropout)
        return self.out_proj(heard.flatten(2))


class SoundwaveFrameAttention(nn.Module):
    """Attention of a frame to itself alone, which needs no queries or keys: what the published weights are for."""

    def __init__(self, config: SoundwaveConfig):
        super().__init__()
        width = config.text_config.hidden_size
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, states: torch.Tensor, keys: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """`(clips, frames, width)` -> the same; `keys` are `states` here, and no mask matters."""
        return self.out_proj(self.v_proj(states))


class SoundwaveAlignmentLayer(GradientCheckpointingLayer):
    """One pre-norm Transformer layer over aligned frames (paper section 3.1), feed-forward of twice the width."""

    def __init__(self, config: SoundwaveConfig):
        super().__init__()
        width = config.text_config.hidden_size
        over_sequence = config.alignment_attention == "sequence"
        self.self_attn = (
            SoundwaveAttention(config, config.adapter_dropout) if over_sequence else SoundwaveFrameAttention(config)
        )
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 2 * width)
        self.fc2 = nn.Linear(2 * width, width)
        self.final_layer_norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(config.adapter_dropout)

    def forward(self, states: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """`(clips, frames, width)` -> the same."""
        normed = self.self_attn_layer_norm(states)
        states = states + self.dropout(self.self_attn(normed, normed, attention_mask))
        inner = self.dropout(nn.functional.relu(self.fc1(self.final_layer_norm(states))))
        return states + self.dropout(self.fc2(inner))


class SoundwaveAlignmentAdapter(nn.Module):
    """Encoder states -> frames in the LLM's space (paper section 3.1): stack, project, layers (one there), norm."""

    def __init__(self, config: SoundwaveConfig):
        super().__init__()
        self.config = config
        self.stack_factor = config.stack_factor
        width = config.text_config.hidden_size
        self.linear = nn.Linear(config.stack_factor * config.audio_config.d_model, width)
        self.layers = nn.ModuleList(SoundwaveAlignmentLayer(config) for _ in range(config.alignment_layers))
        self.norm = nn.LayerNorm(width)
        keep_trained_fields(self)

    def forward(
        self, encoder_states: torch.Tensor, encoder_mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            encoder_states (`torch.FloatTensor` of shape `(clips, encoder_frames, encoder_width)`).
            encoder_mask (`torch.BoolTensor` of shape `(clips, encoder_frames)`, *optional*): true at true frames.

        Returns: aligned states `(clips, frames, width)` and, true at true ones, a mask `(clips, frames)`, where
        `frames = ceil(encoder_frames / stack_factor)`.
        """
        clips, length, _ = encoder_states.shape
        encoder_states = encoder_states.to(self.linear.weight.dtype)
        if encoder_mask is None:
            encoder_mask = encoder_states.new_ones(clips, length, dtype=torch.bool)
        else:
            encoder_states = encoder_states * encoder_mask[..., None]
        # A last frame that stands alone is joined with zeros, as in a batch with longer clips.
        missing = -length % self.stack_factor
        stacked = nn.functional.pad(encoder_states, (0, 0, 0, missing))
        stacked = stacked.reshape(clips, -1, self.linear.in_features)  # [clips, frames, stack_factor * encoder_width]
        # Whole in memory: over a mask of strides, PyTorch compiles no flex attention on CPU.
        mask = encoder_mask[:, :: self.stack_factor].contiguous()
        hidden = self.linear(stacked)
        attention_mask = create_bidirectional_mask(self.config, hidden, mask)
        for layer in self.layers:
            hidden = layer(hidden, attention_mask)
        return self.norm(hidden), mask


class SoundwaveCTCHead(nn.Module):
    """Scores of the LLM's tokens and of the blank for each aligned frame.

    Tied (paper, Figure 2), the tokens' rows are the LLM's input embeddings and only the blank has parameters here.
    """

    def __init__(self, config: SoundwaveConfig):
        super().__init__()
        self.blank_id = config.audio_token_id
        self.blank_margin = config.blank_margin
        width = config.text_config.hidden_size
        if config.tie_ctc_head:
            self.weight = None
            self.blank_weight = nn.Parameter(torch.zeros(width))
            self.blank_bias = nn.Parameter(torch.zeros(1))
        else:
            self.weight = nn.Parameter(torch.zeros(config.text_config.vocab_size, width))
            self.blank_weight = self.blank_bias = None

    def forward(self, aligned, num_frames, token_embeddings, ctc_labels=None, candidates=None):
        """Labels and losses of aligned frames `(clips, frames, width)`; see `large_vocabulary_ctc`."""
        token_weight = token_embeddings if self.weight is None else self.weight
        ctc = large_vocabulary_ctc(
            aligned,
            num_frames,
            token_weight,
            self.blank_id,
            self.blank_weight,
            self.blank_bias,
            ctc_labels,
            self.blank_margin,
            candidates,
        )
        if ctc_labels is None and self.weight is None and self.training and self.blank_bias.requires_grad:
            # Distributed training waits for a gradient of each parameter: without labels, the blank's are zero.
            ctc.losses = 0 * (self.blank_weight.sum() + self.blank_bias).expand(len(aligned))
        return ctc

    def logits(self, aligned: torch.Tensor, token_embeddings: torch.Tensor) -> torch.Tensor:
        """All scores of aligned frames: `(clips, frames, width)` -> `(clips, frames, vocabulary)`."""
        if self.weight is not None:
            return aligned @ self.weight.T.to(aligned.dtype)
        logits = aligned @ token_embeddings.T.to(aligned.dtype)
        logits[..., self.blank_id] = aligned @ self.blank_weight.to(aligned.dtype) + self.blank_bias
        return logits

    @torch.no_grad()
    def resize(self, vocabulary: int):
        """Cut the matrix of a free head to so many rows, or add rows: the mean of the others, which wins no frame."""
        if self.weight is not None and len(self.weight) != vocabulary:
            added = self.weight.mean(dim=0, keepdim=True).expand(max(vocabulary - len(self.weight), 0), -1)
            rows = torch.cat([self.weight[:vocabulary], added])
            self.weight = nn.Parameter(rows, requires_grad=self.weight.requires_grad)

    @torch.no_grad()
    def start_blank(self, token_embeddings: torch.Tensor):
        """Let the tied blank begin as likely as all tokens together, for frames of unit variance.

        Over such frames the score of token `v` has variance `|e_v|^2`, so the log-normaliser is near
        `log V + mean(|e|^2) / 2`.
        """
        if self.weight is None:
            variance = token_embeddings.float().pow(2).sum(dim=1).mean().item()
            self.blank_bias.fill_(math.log(token_embeddings.shape[0]) + variance / 2)


class SoundwaveShrinkingAdapter(nn.Module):
    """Kept frames look back at the frames of their clip: `LayerNorm(x' + MHA(x', x, x))` (paper Eq. 1)."""

    def __init__(self, config: SoundwaveConfig):
        super().__init__()
        self.config = config
        self.attention = SoundwaveAttention(config)
        self.norm = nn.LayerNorm(config.text_config.hidden_size)

    @torch.no_grad()
    def start_norm(self, token_embeddings: nn.Module):
        """Let positions begin at the scale of the LLM's own embeddings: at another, its layers hardly move them.

        Beside the embeddings of their labels they begin at a quarter of it, and the text can be read through them.
        """
        ids = torch.arange(token_embeddings.weight.shape[0])
        scale = token_embeddings(ids[:: max(1, len(ids) // 1024)]).float().pow(2).mean().sqrt().item()
        self.norm.weight.fill_(scale / 4 if self.config.label_embeddings else scale)

    def forward(self, aligned: torch.Tensor, mask: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        """
        Args:
            aligned (`torch.FloatTensor` of shape `(clips, frames, width)`).
            mask (`torch.BoolTensor` of shape `(clips, frames)`): true at true frames.
            keep (`torch.BoolTensor` of shape `(clips, frames)`): true at kept frames.

        Returns: `torch.FloatTensor` of shape `(sum of kept frames, width)`: the positions, clip after clip.
        """
        num_kept = keep.sum(dim=1)
        # A stable sort of "not kept" moves the kept frames to the front, in order.
        order = torch.argsort(~keep, dim=1, stable=True)[:, : int(num_kept.max())]
        kept = aligned.gather(1, order[..., None].expand(-1, -1, aligned.shape[-1]))  # [clips, most kept, width]
        kept_mask = torch.arange(kept.shape[1], device=kept.device)[None] < num_kept[:, None]
        keys, key_mask = (aligned, mask) if self.config.look_back == "all" else (kept, kept_mask)
        if "flash" in self.config._attn_implementation and self.config.look_back == "all":
            # Flash attention takes the last queries of a row for true where there are fewer of them than keys.
            attention_mask = create_bidirectional_mask(self.config, keys, key_mask)
            heard = self.attention(keys, keys, attention_mask)
            heard = heard.gather(1, order[..., None].expand(-1, -1, heard.shape[-1]))
        else:
            attention_mask = create_bidirectional_mask(self.config, kept, key_mask, encoder_hidden_states=keys)
            heard = self.attention(kept, keys, attention_mask)
        return self.norm(kept + heard)[kept_mask]


def _describe_mismatches(mismatches, folder: str) -> str:
    shapes = [f"{name} has {tuple(found)}, not {tuple(expected)}" for name, found, expected in sorted(mismatches)[:8]]
    return (
        f"{len(mismatches)} weights of `{folder}` do not fit its config: {'; '.join(shapes)}. "
        "Use the config.json that was saved with them, without other sizes or fields."
    )


def unseen_by_trainer(name: str):
    """Leave an argument out of a function's signature.

    `Trainer` takes every argument with "label" in its name for one that each batch has, and gives no `eval_loss` for a
    batch without it.
    """

    def hide(function):
        signature = inspect.signature(function)
        kept = [parameter for parameter in signature.parameters.values() if parameter.name != name]
        function.__signature__ = signature.replace(parameters=kept)
        return function

    return hide


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
        # The library gathers these names of all parts, and Whisper's are its decoder's too: sharding looks for each.
        here = {type(module).__name__ for module in self.modules()}
        self._no_split_modules = here & set(self._no_split_modules)

    @property
    def is_gradient_checkpointing(self) -> bool:
        """The older name of `is_activation_checkpointing`, by which PEFT and TRL ask; the library warns of it."""
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
        """As in transformers, and the CTC head with it.

        Raises: `ValueError` where the audio token, which is the CTC blank, would be cut off.
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
        """As in transformers, which makes up weights that a checkpoint lacks, and leaves every parameter trainable:
        here a checkpoint has them all, and the frozen parts are frozen again.

        A folder or hub name of trained adapters is loaded with the backbones that its config names. What only those
        take (`encoder`, `llm`, `allow_other_backbones`, `merge_lora`, `is_trainable`): see `from_adapter`.

        A caller that asks for the report (`output_loading_info=True`) sees there what is missing. A
        `quantization_config` of bitsandbytes or torchao that names no modules to leave out quantizes the LLM's layers
        alone: another CTC label here and there would be another number of positions.

        Raises: `FileNotFoundError` where a shard is missing; `ValueError` where a file is broken off, weights are
        missing or have other shapes, or the checkpoint is in the published layout.
        """
        adapter = take_adapter(pretrained_model_name_or_path, kwargs)
        if adapter is not None:
            return from_adapter(cls, adapter, pretrained_model_name_or_path, **kwargs)
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

    def load_adapter(self, peft_model_id=None, *args, **kwargs):
        """As in transformers, with the LoRA and the adapters of a PEFT folder.

        Raises: `ValueError` where they were trained with other config fields than this model has.
        """
        # PEFT alone writes no config: what it was trained on is a checkpoint, with a config of its own.
        if cached_file(peft_model_id or "", CONFIG_NAME, _raise_exceptions_for_missing_entries=False) is not None:
            refuse_other_training(self.config, peft_model_id)
        with checked_by_caller():
            return super().load_adapter(peft_model_id, *args, **kwargs)

    @classmethod
    def _with_adapter(cls, encoder, llm, adapter: str | None, allow_other_backbones: bool, fields: dict) -> tuple:
        """Backbones and fields of `from_backbones`, as its adapter needs them."""
        if adapter is None:
            if encoder is None or llm is None:
                raise ValueError(
                    f"`from_backbones` got the encoder {encoder!r} and the LLM {llm!r}: give both by hub name or "
                    "folder. They may be left out where `adapter` is a folder of trained adapters, which names them."
                )
            return encoder, llm, fields
        check_adapter_files(adapter)
        encoder, llm = choose_backbones(adapter, encoder, llm)
        trained = adapter_fields(adapter, encoder, llm, allow_other_backbones)
        refuse_other_fields(fields, trained, adapter)
        return encoder, llm, {**trained, **fields}

    @classmethod
    def _join(cls, encoder: str, llm: str, llm_rows, text_config, audio_token_id: int, dtype, warm_start, fields):
        """A model of this class: the encoder's weights, adapters that begin sensibly, and an LLM yet to be put in.

        Args: llm_rows (`torch.Tensor` of shape `(vocabulary, width)`): the LLM's input embeddings.
        """
        tower = read_encoder(encoder, dtype)
        for part, part_config, name in (("encoder", tower.config, encoder), ("llm", text_config, llm)):
            # What trained adapters are saved with, so that they find their backbones, and refuse others.
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
        if warm_start and not start_alignment(audio_model.alignment_adapter, encoder, llm, llm_rows):
            logger.warning(
                "The alignment adapter begins at random: `%s` has no decoder, or shares too few words with `%s`.",
                *(encoder, llm),
            )
        audio_model.ctc_head.start_blank(llm_rows[:audio_token_id])
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
        """As in PyTorch; an encoder that is frozen stays in eval mode."""
        super().train(mode)
        self.audio_tower.train(mode and self.encoder_trains())
        return self

    def encoder_trains(self) -> bool:
        """Whether the encoder was unfrozen."""
        return any(parameter.requires_grad for parameter in self.audio_tower.parameters())

    def encode(self, input_features, input_features_mask=None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Clips of at most the encoder's window: log-mel `(clips, mel_bins, mel_frames)` -> encoder states
        `(clips, encoder_frames, encoder_width)` and their mask."""
        outputs, mask = self._encode(input_features, input_features_mask)
        return outputs.last_hidden_state, mask

    def _encode(self, input_features, input_features_mask=None, **kwargs) -> tuple[BaseModelOutput, torch.Tensor]:
        if input_features_mask is not None:
            self._check_mask(input_features, input_features_mask)
        if self.training and not self.audio_tower.training and self.encoder_trains():  # unfrozen since `train()`
            self.audio_tower.train()
        outputs = self.audio_tower(input_features, input_features_mask, **kwargs)
        return outputs, None if input_features_mask is None else input_features_mask[:, ::2].bool()

    def _check_mask(self, input_features: torch.Tensor, input_features_mask: torch.Tensor):
        if input_features_mask.shape != input_features.shape[::2]:
            raise ValueError(
                f"`input_features_mask` has shape {tuple(input_features_mask.shape)} and `input_features` "
                f"{tuple(input_features.shape)}: the mask must be (clips, mel_frames), "
                f"here {tuple(input_features.shape[::2])}."
            )
        starts, rises = input_features_mask[:, 0].bool(), input_features_mask.int().diff(dim=1) > 0
        wrong = ~starts | rises.any(dim=1)
        if wrong.any():
            raise ValueError(
                f"`input_features_mask` of clip {int(wrong.int().argmax())} is not ones and then zeros: a clip needs "
                "at least one true frame and is padded on the right."
            )

    def _check_finite(self, input_features: torch.Tensor | None, encoder_states: torch.Tensor | None):
        name = "input_features" if encoder_states is None else "encoder_states"
        values = input_features if encoder_states is None else encoder_states
        # In training it would hold up an accelerator at each step, and the loss tells.
        if values is None or (self.training and values.device.type != "cpu"):
            return
        wrong = ~torch.isfinite(values)
        if wrong.any():
            clip = int(wrong.flatten(1).any(dim=1).int().argmax())
            raise ValueError(
                f"`{name}` of clip {clip} holds {values[wrong][0].item()}, and finite values were expected: see what "
                "made it so (silence divided by its loudness, a half-precision overflow); the processor gives none."
            )

    def align(
        self, input_features=None, input_features_mask=None, encoder_states=None, encoder_mask=None, **kwargs
    ) -> tuple[BaseModelOutput, torch.Tensor, torch.Tensor]:
        """Clips of any length -> the encoder's output, aligned states and the mask of these.

        A clip longer than the encoder's window is cut at quiet places; its pieces are encoded and aligned like clips,
        a few at once, and joined.
        """
        self._check_finite(input_features, encoder_states)
        longest = self.config.audio_config.max_source_positions
        if encoder_states is None and input_features.shape[-1] > 2 * longest:
            return self._align_pieces(input_features, input_features_mask, 2 * longest)
        if encoder_states is None:
            outputs, encoder_mask = self._encode(input_features, input_features_mask, **kwargs)
        elif encoder_states.shape[1] <= longest:
            outputs = BaseModelOutput(last_hidden_state=encoder_states)
        else:
            raise ValueError(
                f"`encoder_states` has {encoder_states.shape[1]} frames and the encoder gives at most {longest} at "
                "once, which are aligned together: pass the `input_features` of longer clips."
            )
        aligned, mask = self.alignment_adapter(outputs.last_hidden_state, encoder_mask)
        return outputs, aligned, mask

    def _align_pieces(self, input_features, input_features_mask, window: int):
        if input_features_mask is None:
            input_features_mask = torch.ones_like(input_features[:, 0], dtype=torch.long)
        self._check_mask(input_features, input_features_mask)
        pieces, pieces_of_clip = [], []
        for features, length in zip(input_features, input_features_mask.sum(dim=1).tolist(), strict=True):
            places = cut_at_quiet(features[:, :length].mean(dim=0), window, 2 * self.config.stack_factor)
            pieces += [features[:, begin:end].T for begin, end in places]  # [mel_frames, mel_bins]
            pieces_of_clip.append(len(places))
        states, aligned = [], []
        for start in range(0, len(pieces), PIECES_AT_ONCE):
            some = pieces[start : start + PIECES_AT_ONCE]
            features, mask = join_pieces(some, [1] * len(some))
            some_states, states_mask = self.encode(features.transpose(1, 2), mask)
            some_aligned, aligned_mask = self.alignment_adapter(some_states, states_mask)
            states += [row[true] for row, true in zip(some_states, states_mask, strict=True)]
            aligned += [row[true] for row, true in zip(some_aligned, aligned_mask, strict=True)]
        outputs = BaseModelOutput(last_hidden_state=join_pieces(states, pieces_of_clip)[0])
        return outputs, *join_pieces(aligned, pieces_of_clip)

    def label(
        self, aligned, mask, token_embeddings, ctc_labels=None, num_ctc_clips=None, ctc_candidates=None, ctc_mask=None
    ) -> SoundwaveAudioOutput:
        """CTC labels, and with `ctc_labels` the loss, of aligned frames: an output without positions.

        Args:
            aligned, mask: as `align` returns them.
            token_embeddings (`torch.Tensor` of shape `(vocabulary, width)`): the LLM's input embeddings.
            num_ctc_clips (`int`, *optional*): clips that the CTC loss is a mean over; those given here by default.
            ctc_candidates (`torch.LongTensor` of shape `(tokens,)`, *optional*): see `forward`.
            ctc_mask (`torch.BoolTensor` of shape `(clips,)`, *optional*): see `forward`.
        """
        num_frames = mask.sum(dim=1)
        if ctc_labels is not None:
            self._check_ctc_labels(ctc_labels, len(aligned))
        if ctc_candidates is not None:
            check_ids("ctc_candidates", ctc_candidates, self.config.text_config.vocab_size)
        ctc = self.ctc_head(aligned, num_frames, token_embeddings, ctc_labels, ctc_candidates)
        if ctc_labels is None and ctc.losses is not None:
            aligned = aligned + ctc.losses[:, None, None].to(aligned.dtype)
        no_speech_probs = ctc.blank_log_probs.masked_fill(~mask, 0).amin(dim=1).exp()
        output = SoundwaveAudioOutput(
            aligned_states=aligned, num_frames=num_frames, ctc_best=ctc.best, no_speech_probs=no_speech_probs
        )
        if ctc_labels is not None:
            per_target = ctc.losses / ctc_labels.ne(-100).sum(dim=1).clamp(min=1)
            if ctc_mask is None:
                ctc_mask = torch.ones_like(ctc.feasible)
            clips = ctc_mask.sum().clamp(min=1) if num_ctc_clips is None else num_ctc_clips
            output.ctc_loss = torch.where(ctc_mask, per_target, 0.0).sum() / clips
            output.num_ctc_skipped = (~ctc.feasible & ctc_mask).sum()
        return output

    def _check_ctc_labels(self, ctc_labels: torch.Tensor, clips: int):
        if len(ctc_labels) != clips:
            raise ValueError(f"`ctc_labels` has {len(ctc_labels)} rows for {clips} clips: give one row a clip.")
        vocabulary, blank = self.config.text_config.vocab_size, self.config.audio_token_id
        wrong = ctc_labels.ne(-100) & ((ctc_labels < 0) | (ctc_labels >= vocabulary) | (ctc_labels == blank))
        if wrong.any():
            raise ValueError(
                f"`ctc_labels` holds id {int(ctc_labels[wrong][0])}; ids of 0..{vocabulary - 1} other than the blank "
                f"({blank}) were expected, -100 where there is no target."
            )
        gap = (ctc_labels.ne(-100).int().diff(dim=1) > 0).any(dim=1)
        if gap.any():
            raise ValueError(
                f"`ctc_labels` of clip {int(gap.int().argmax())} has a target behind -100: targets come first, and "
                "rows are padded with -100 on the right."
            )

    def token_table(self) -> torch.Tensor | None:
        """The embeddings `(vocabulary, width)` that the tied CTC head scores with: whole and here, where they are
        offloaded or sharded too. None where the model holds none, because its head has weights of its own."""
        embeddings = self.get_input_embeddings()
        if embeddings is None:
            return None
        if not embeddings.weight.is_meta:
            # Sharded (FSDP2), it is whole only while the embedding itself runs.
            gather = getattr(embeddings.weight, "full_tensor", None)
            return embeddings.weight if gather is None else gather()
        try:
            from accelerate.utils import align_module_device
        except ImportError as error:
            raise ImportError("The LLM's embeddings are offloaded: install `accelerate`.") from error
        with align_module_device(embeddings):
            return embeddings.weight.data

    def keep_mask(self, ctc_best: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Frames which become positions, `(clips, frames)`: the first of each run, at least one of each clip."""
        keep = first_of_run(ctc_best) & mask
        if not self.config.keep_blanks:
            keep &= ctc_best != self.config.audio_token_id
            keep[:, 0] |= ~keep.any(dim=1)
        return keep


class SoundwaveForCTC(SoundwaveAudioModel):
    r"""Stage I: the audio side and the LLM's frozen token embeddings; the LLM itself is absent.

    Parameter names are those of `SoundwaveModel`, so that what Stage I trains loads into it.

    Example:

    ```python
    >>> from soundwave_hf import SoundwaveForCTC

    >>> ctc_model = SoundwaveForCTC.from_backbones(encoder, llm)  # such as "openai/whisper-base", "Qwen/Qwen3-0.6B"
    >>> sorted({name.split(".")[0] for name, weight in ctc_model.named_parameters() if weight.requires_grad})
    ['alignment_adapter', 'ctc_head']
    ```"""

    main_input_name = "input_features"
    _input_embed_layer = "token_embeddings"
    # `Trainer` counts labels, and the loss is a mean over clips: parts of an accumulated batch weigh the same.
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
        """Join a Whisper encoder and the token embeddings of an LLM, which is not loaded.

        Arguments as in `SoundwaveForConditionalGeneration.from_backbones`; of an `adapter` of a later stage, the
        alignment adapter and the CTC head are loaded.
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
            labels (`torch.LongTensor` of shape `(clips, targets)`, *optional*): token ids, padded with -100. By the
                name `ctc_labels` too, as the whole model has it. (That is no argument of its own: `Trainer` takes
                every argument with "label" in its name for one that each batch of an evaluation has.)
            num_ctc_clips (`int`, *optional*): clips that the loss is a mean over (of a whole accumulated batch).
            ctc_candidates (`torch.LongTensor` of shape `(tokens,)`, *optional*): the tokens that compete with the
                targets in this step, and may be `ctc_best`; by default the whole vocabulary.
            ctc_mask (`torch.BoolTensor` of shape `(clips,)`, *optional*): clips that have a transcript; the loss
                leaves the others out. By default all have one.
            output_ctc_logits (`bool`): whether to return `logits`, the scores of all tokens and the blank, of shape
                `(clips, frames, vocabulary)`. They are much memory: 30 s of a vocabulary of 150,000 are 450 MB.

        Returns: `SoundwaveCausalLMOutputWithPast` with `loss`, `ctc_loss`, `num_frames`, `num_positions`, `ctc_best`,
        and on request `logits`, which are `ctc_logits` too.

        Raises: `ValueError` where shapes of features and mask differ, a clip is empty, a CTC label is no token, or
        `labels` and `ctc_labels` are given and differ.

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
        refuse_misspelt(SoundwaveForCTC.forward, kwargs)
        _, aligned, mask = self.align(input_features, input_features_mask, encoder_states, encoder_mask)
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
        )

    @staticmethod
    def _one_of(labels: torch.Tensor | None, ctc_labels: torch.Tensor | None) -> torch.Tensor | None:
        if labels is None or ctc_labels is None:
            return ctc_labels if labels is None else labels
        if labels is not ctc_labels and not torch.equal(labels, ctc_labels.to(labels)):
            raise ValueError(
                f"`labels` of shape {tuple(labels.shape)} and `ctc_labels` of shape {tuple(ctc_labels.shape)} were "
                "given and differ; they are two names of the transcripts' ids: give one of them."
            )
        return labels


@dataclass
class MergedPrompt:
    """A prompt with each audio token replaced by the positions of its clip, padded on the left.

    Args:
        inputs_embeds (`torch.FloatTensor` of shape `(batch, merged, width)`).
        attention_mask (`torch.LongTensor` of shape `(batch, merged)`): 1 at true positions.
        last_position (`torch.LongTensor` of shape `(batch, tokens)`): where each input token ends in the merged row.
    """

    inputs_embeds: torch.Tensor
    attention_mask: torch.Tensor
    last_position: torch.Tensor

    @property
    def position_ids(self) -> torch.Tensor:
        """`(batch, merged)`: positions counted over the merged row, padding left out."""
        return (self.attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)


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
        **kwargs,
    ) -> SoundwaveAudioOutput:
        """Clips -> positions: encode, align, shrink.

        Args:
            input_features (`torch.FloatTensor` of shape `(clips, mel_bins, mel_frames)`): log-mel, 10 ms a frame.
            input_features_mask (`torch.Tensor` of shape `(clips, mel_frames)`, *optional*): 1 at true frames.
            encoder_states, encoder_mask: outputs of `encode`, in place of the two above.
            ctc_labels, output_ctc_logits, num_ctc_clips, ctc_candidates, ctc_mask: as in `forward`.
            kwargs: `output_hidden_states` and `output_attentions`, those of the encoder, for clips within its window;
                None where a clip is longer.

        Returns: `SoundwaveAudioOutput`, its `pooler_output` the positions `(sum of num_positions, width)`.

        Raises: `ValueError` where shapes of features and mask differ, a clip is empty, or a CTC label is no token.

        Example:

        ```python
        >>> clip = processor(text=processor.audio_token, audio="speech.wav")
        >>> audio = model.model.get_audio_features(clip["input_features"], clip["input_features_mask"])
        >>> audio.ctc_best.shape == audio.aligned_states.shape[:2]  # a label each 40 ms
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
        keep = self.keep_mask(audio.ctc_best, mask)
        audio.pooler_output = self.shrinking_adapter(audio.aligned_states, mask, keep)
        if self.config.label_embeddings:
            audio.pooler_output = audio.pooler_output + self.get_input_embeddings()(audio.ctc_best[keep])
        audio.num_positions = keep.sum(dim=1)
        if output_ctc_logits:
            audio.ctc_logits = self.ctc_head.logits(aligned, embeddings)
        return audio

    @torch.no_grad()
    def judge_silence(
        self, audio: SoundwaveAudioOutput, input_features=None, input_features_mask=None
    ) -> torch.Tensor:
        """Clips in which there is no speech to transcribe, `(clips,)`; none where the config has no threshold.

        The CTC head decides, but on clips that may be a single word, which it misses now and then. Encoder states do
        not tell these: there, clips of up to 1.5 s count as speech.
        """
        threshold = self.config.no_speech_threshold
        if not threshold:
            return torch.zeros_like(audio.num_frames, dtype=torch.bool)
        is_silent = audio.no_speech_probs >= threshold
        if input_features is None:
            frame_seconds = 0.02 * self.config.stack_factor
            return is_silent & (audio.num_frames * frame_seconds > 1.5)
        return is_silent & ~may_be_words(input_features, input_features_mask).to(is_silent.device)

    def check_text(self, input_ids: torch.Tensor):
        """Raises: `ValueError` where ids given without clips hold audio tokens, or ids outside the vocabulary."""
        check_ids("input_ids", input_ids, self.config.text_config.vocab_size)
        if (input_ids == self.config.audio_token_id).any():
            raise ValueError("`input_ids` holds audio tokens and no clip was given: pass `input_features` as well.")

    def ids_of_embeddings(self, inputs_embeds: torch.Tensor) -> torch.Tensor:
        """The audio token's id where embeddings `(batch, tokens, width)` are its own, else another: `(batch, tokens)`.

        Libraries that put states of their own before a prompt (prompt tuning) pass its embeddings, and no ids.
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
            input_ids (`torch.LongTensor` of shape `(batch, tokens)`): one audio token a clip.
            positions (`torch.FloatTensor` of shape `(sum of num_positions, width)`).
            num_positions (`torch.LongTensor` of shape `(clips,)`): in the order of the tokens, row by row.
            attention_mask (`torch.Tensor` of shape `(batch, tokens)`, *optional*).
            before (`int` or `torch.LongTensor` of shape `(batch,)`): true positions that the LLM has read before.
            inputs_embeds (`torch.FloatTensor` of shape `(batch, tokens, width)`, *optional*): those of the other
                tokens; the LLM's by default.

        Raises: `ValueError` where clips and audio tokens differ in number, ids are outside the vocabulary, ids and
        mask differ in shape, or a row is longer than the LLM's context.
        """
        check_ids("input_ids", input_ids, self.config.text_config.vocab_size)
        is_audio = input_ids == self.config.audio_token_id
        if int(is_audio.sum()) != len(num_positions):
            raise ValueError(
                f"`input_ids` holds {int(is_audio.sum())} audio tokens (id {self.config.audio_token_id}) and "
                f"{len(num_positions)} clips were given: give one audio token a clip, in the clips' order."
            )
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if attention_mask.shape != input_ids.shape:
            raise ValueError(
                f"`attention_mask` has shape {tuple(attention_mask.shape)} and `input_ids` {tuple(input_ids.shape)}: "
                "give one value a token, whatever positions its clip has."
            )
        batch = len(input_ids)
        spans = torch.ones_like(input_ids).masked_scatter(is_audio, num_positions.to(input_ids))
        lengths = spans.sum(dim=1)
        merged = int(lengths.max())
        context = getattr(self.config.text_config, "max_position_embeddings", None)
        most_before = before if isinstance(before, int) else int(before.max())
        if context is not None and most_before + merged > context:  # padding may be what is too much
            whole = before + (spans * attention_mask).sum(dim=1)
            self._check_context(int(whole.max()), context, num_positions)
        ends = merged - lengths[:, None] + spans.cumsum(dim=1)  # [batch, tokens], one past each token's last position
        flat_ends = ends + merged * torch.arange(batch, device=input_ids.device)[:, None]

        # A clip's positions end where its token ends; `step` counts back from there.
        first = torch.cumsum(num_positions, 0) - num_positions
        step = torch.arange(len(positions), device=positions.device) - first.repeat_interleave(num_positions)
        starts = (flat_ends - spans)[is_audio]
        audio_index = starts.repeat_interleave(num_positions) + step
        text_index = (flat_ends - 1)[~is_audio]

        is_text = ~is_audio
        text = self.get_input_embeddings()(input_ids[is_text]) if inputs_embeds is None else inputs_embeds[is_text]
        embeds = text.new_zeros(batch * merged, text.shape[-1])
        embeds = embeds.index_copy(0, text_index, text).index_copy(0, audio_index, positions.to(text))
        mask = attention_mask.new_zeros(batch * merged)
        mask[text_index] = attention_mask[~is_audio]
        mask[audio_index] = attention_mask[is_audio].repeat_interleave(num_positions)
        return MergedPrompt(embeds.view(batch, merged, -1), mask.view(batch, merged), ends - 1)

    @staticmethod
    def _check_context(length: int, context: int, num_positions: torch.Tensor):
        if length > context:
            raise ValueError(
                f"A prompt has {length} positions with its clips (the longest clip alone {int(num_positions.max())}), "
                f"and the LLM's context is {context} (`max_position_embeddings`): cut the clip, or give fewer."
            )

    def shares_prefix(self) -> bool:
        """Whether a prefix can be read once for a batch: every layer has to keep all of its keys and values."""
        if self.language_model.is_activation_checkpointing:  # recomputed in the backward pass, a layer keeps none
            return False
        # Sharded layers (FSDP2, ZeRO-3) are gathered where a gradient enters by what a layer returned, not by a cache.
        if any(hasattr(module, "unshard") for module in self.language_model.modules()):
            return False
        if hasattr(next(self.language_model.parameters()), "ds_id"):
            return False
        layers = DynamicCache(config=self.language_model.config).layers
        return all(type(layer) is DynamicLayer for layer in layers)

    def read_prefix(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, length: int) -> Cache:
        """Keys and values of the text that all rows begin with, computed once; gradients pass through.

        Raises: `ValueError` where the rows do not begin with the same `length` true text tokens.
        """
        prefix = input_ids[:, :length]
        if (
            (prefix != prefix[:1]).any()
            or (prefix == self.config.audio_token_id).any()
            or (attention_mask is not None and not attention_mask[:, :length].all())
        ):
            raise ValueError(
                f"`shared_prefix` is {length}, and the rows do not all begin with the same {length} tokens of text."
            )
        if not self.shares_prefix():
            raise ValueError(
                "`shared_prefix` was given, and this LLM, gradient checkpointing or sharding keeps no whole cache."
            )
        cache = self.language_model(input_ids=prefix[:1], use_cache=True)[CACHE]
        cache.batch_repeat_interleave(len(input_ids))
        return cache

    def hear_nothing(self) -> torch.Tensor:
        """Zero, by way of the whole audio side: for a batch of text alone where several processes train.

        Those that share gradients or parameters wait for each other at every layer that has some.
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
        **kwargs,
    ) -> SoundwaveModelOutputWithPast:
        """
        Args:
            input_ids (`torch.LongTensor` of shape `(batch, tokens)`): text, one audio token a clip.
            input_features (`torch.FloatTensor` of shape `(clips, mel_bins, mel_frames)`, *optional*): log-mel of all
                clips of the batch, 10 ms a frame, in the order of their audio tokens.
            input_features_mask (`torch.Tensor` of shape `(clips, mel_frames)`, *optional*): 1 at true frames.
            attention_mask (`torch.Tensor` of shape `(batch, tokens)`, *optional*): 1 at true tokens.
            position_ids (`torch.LongTensor` of shape `(batch, tokens)`, *optional*): of text alone; those of a prompt
                with clips are counted over its positions.
            past_key_values, cache (`Cache`, *optional*): keys and values of what the LLM has read before; transformers
                5.23 has the one name and 5.24 the other, and both are taken here.
            inputs_embeds (`torch.FloatTensor` of shape `(batch, tokens, width)`, *optional*): in place of `input_ids`;
                clips stand where the embedding is that of the audio token.
            use_cache (`bool`, *optional*): whether to return `past_key_values`.
            encoder_states, encoder_mask: outputs of `encode`, in place of the features and their mask.
            ctc_labels (`torch.LongTensor` of shape `(clips, targets)`, *optional*): transcript ids, padded with -100.
            output_ctc_logits (`bool`): whether `audio_output` has `ctc_logits`.
            num_ctc_clips (`int`, *optional*): clips that the CTC loss is a mean over (of an accumulated batch).
            ctc_candidates (`torch.LongTensor` of shape `(tokens,)`, *optional*): the tokens that compete with
                `ctc_labels` in this step; by default the whole vocabulary.
            ctc_mask (`torch.BoolTensor` of shape `(clips,)`, *optional*): clips that have a transcript; the CTC loss
                leaves the others out. By default all have one.
            shared_prefix (`int`): in training, tokens of text that all rows begin with, read once for the batch.
            is_transcription (`torch.BoolTensor` of shape `(batch,)`, *optional*): the processor's mark of rows that
                ask for a transcript, which `generate` alone reads.

        Returns: `SoundwaveModelOutputWithPast` with one state per input token, none for those of a `shared_prefix`.

        Raises: `ValueError` as in `SoundwaveForConditionalGeneration.forward`.

        Example:

        ```python
        >>> inputs = processor.apply_transcription_request("speech.wav")
        >>> output = model.model(**inputs)
        >>> output.last_hidden_state.shape[1] == inputs["input_ids"].shape[1]  # however many positions the clip has
        True
        ```
        """
        refuse_misspelt(SoundwaveModel.forward, kwargs)
        past_key_values = one_cache(past_key_values, cache)
        if input_ids is None and inputs_embeds is None:
            raise ValueError(
                "`input_ids` was not given: pass the prompt's ids, with one audio token for each clip of "
                "`input_features` (the processor writes both)."
            )
        has_audio = input_features is not None or encoder_states is not None
        if has_audio and not shared_prefix and past_key_values is not None and int(past_key_values.get_seq_length()):
            raise ValueError(
                "`past_key_values` holds a prompt and `input_features` were given: `forward` takes clips with whole "
                "prompts. `generate` merges the clips of a next turn behind a kept cache. PEFT's prefix tuning passes "
                "such a cache: use a method that changes weights, such as LoRA."
            )
        if shared_prefix:
            if not has_audio or past_key_values is not None or input_ids is None:
                raise ValueError("`shared_prefix` is for the ids of whole prompts with clips, without a cache.")
            past_key_values = self.read_prefix(input_ids, attention_mask, shared_prefix)
            input_ids = input_ids[:, shared_prefix:]
            attention_mask = None if attention_mask is None else attention_mask[:, shared_prefix:]
        audio = merged = None
        if has_audio:
            audio = self.get_audio_features(
                input_features,
                input_features_mask,
                encoder_states,
                encoder_mask,
                ctc_labels=ctc_labels,
                output_ctc_logits=output_ctc_logits,
                num_ctc_clips=num_ctc_clips,
                ctc_candidates=ctc_candidates,
                ctc_mask=ctc_mask,
            )
            if inputs_embeds is not None and input_ids is None:
                input_ids = self.ids_of_embeddings(inputs_embeds)
            merged = self.merge_audio(
                *(input_ids, audio.pooler_output, audio.num_positions, attention_mask, shared_prefix, inputs_embeds)
            )
            prompt_ids, input_ids, inputs_embeds = input_ids, None, merged.inputs_embeds
            attention_mask, position_ids = merged.attention_mask, merged.position_ids + shared_prefix
            attention_mask = nn.functional.pad(attention_mask, (shared_prefix, 0), value=1)
        elif inputs_embeds is None and past_key_values is None:
            check_ids("input_ids", input_ids, self.config.text_config.vocab_size)
            if (input_ids == self.config.audio_token_id).any():
                logger.warning_once(
                    "`input_ids` holds audio tokens and no clip was given: they are read as a word that no LLM was "
                    "trained on. Pass `input_features` as well."
                )
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
            hidden = hidden + self.hear_nothing().to(hidden.dtype)
        if merged is not None and kept is not None and not shared_prefix:
            # `generate` may go on from it.
            added = merged.inputs_embeds.shape[1] - prompt_ids.shape[1]
            is_audio = prompt_ids == self.config.audio_token_id
            clips = digest_clips(input_features, input_features_mask, encoder_states, encoder_mask)
            is_silent = self.judge_silence(audio, input_features, input_features_mask)
            known = [place_clip_values(values, is_audio) for values in (clips, is_silent)]
            kept.prompt = CachedPrompt(prompt_ids, merged.attention_mask, added, *known)
        if merged is not None:
            hidden = hidden.gather(1, merged.last_position[..., None].expand(-1, -1, hidden.shape[-1]))
        return SoundwaveModelOutputWithPast(
            last_hidden_state=hidden,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            audio_output=audio,
            **{CACHE: kept},
        )


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
        # The LLM's family names its embeddings: `embed_tokens` in Llama, `wte` in GPT-2.
        table = self.model.get_input_embeddings()
        name = next(name for name, module in self.named_modules() if module is table)
        self._tied_weights_keys = {"lm_head.weight": f"{name}.weight"}
        self.post_init()

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
            encoder (`str`): hub name or folder of a Whisper model; by default what the config of `adapter` names.
            llm (`str`): hub name or folder of a causal LM; by default what the config of `adapter` names. Its
                vocabulary gets the audio token if it lacks one.
            adapter (`str`, *optional*): folder of trained adapters (what `soundwave-hf train` writes): they are
                loaded, their LoRA merged into the LLM. Without it the adapters are fresh.
            audio_token (`str`): the token which stands for a clip.
            dtype (`torch.dtype` or `str`, *optional*): of all weights, or its name; by default, and where it is
                "auto", the backbones' own and float32 adapters.
            warm_start (`bool`): let a fresh alignment adapter with a tied CTC head begin at what Whisper's decoder
                reads off a frame, where the two vocabularies share words enough; otherwise, and where not, at random.
            quantization_config (`dict` or config of a quantizer, *optional*): of the LLM's layers, as in
                `from_pretrained`; the LoRA of an `adapter` is rounded where it is merged into them.
            allow_other_backbones (`bool`): whether `adapter` may be put on backbones of the same widths that are not
                those of its training.
            device (`torch.device` or `str`, *optional*): where the model is put; the CPU by default, and a quantized
                LLM where its quantizer puts it.
            **fields: fields of `SoundwaveConfig`; those of `adapter` by default.

        Raises: `ValueError` for a keyword that is no such field, or no dtype, where the adapter was trained for
        other backbones or with another value of a field that its weights fix, or a checkpoint lacks
        weights or has a file broken off, or the LLM does more to its scores than its head does; `FileNotFoundError`
        where the adapter's folder lacks a file, or a checkpoint a shard.

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
        if vocabulary > embeddings.weight.shape[0]:
            language.resize_token_embeddings(vocabulary, mean_resizing=False)
            embeddings = language.get_input_embeddings()
        for table in (embeddings, language.get_output_embeddings()):
            with torch.no_grad():
                table.weight[audio_token_id] = table.weight[:audio_token_id].float().mean(dim=0)
        warm_start = warm_start and adapter is None
        rows = embeddings.weight.detach().cpu()
        model = cls._join(encoder, llm, rows, language.config, audio_token_id, dtype, warm_start, fields)
        for part in model.model.children():
            if part is not model.model.language_model:
                part.to(embeddings.weight.device)  # where a quantizer puts an LLM by itself
        model.model.language_model = language.base_model
        model.lm_head = language.get_output_embeddings()
        model.generation_config = language.generation_config
        if quantization_config is not None:
            take_quantizer(model, language)
        # An audio token in an answer would stand for a clip that nobody gave.
        suppressed = [*(model.generation_config.suppress_tokens or []), audio_token_id]
        model.generation_config.suppress_tokens = suppressed
        model.model.shrinking_adapter.start_norm(embeddings)
        if adapter is not None:
            model = load_adapter(model, adapter, changed)
        return (model if device is None or quantization_config is not None else model.to(device)).eval()

    def save_pretrained(self, save_directory, *args, **kwargs):
        """As in transformers; with the weights goes the code, for `trust_remote_code=True` without this package."""
        from .pipeline_soundwave import CUSTOM_PIPELINES  # pipelines import much that a model alone has no use for

        self.config.auto_map = dict(AUTO_MAP)
        self.config.custom_pipelines = copy.deepcopy(CUSTOM_PIPELINES)
        super().save_pretrained(save_directory, *args, **kwargs)

    def get_audio_features(self, input_features=None, input_features_mask=None, **kwargs):
        """See `SoundwaveModel.get_audio_features`."""
        return self.model.get_audio_features(input_features, input_features_mask, **kwargs)

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
        **kwargs,
    ) -> SoundwaveCausalLMOutputWithPast:
        """
        Args:
            input_ids (`torch.LongTensor` of shape `(batch, tokens)`): text, one audio token a clip.
            input_features (`torch.FloatTensor` of shape `(clips, mel_bins, mel_frames)`): log-mel of all clips of the
                batch, in the order of their audio tokens.
            input_features_mask (`torch.Tensor` of shape `(clips, mel_frames)`, *optional*): 1 at true frames; only
                those reach the adapters. Without it all frames are true.
            attention_mask (`torch.Tensor` of shape `(batch, tokens)`, *optional*): 1 at true tokens.
            position_ids (`torch.LongTensor` of shape `(batch, tokens)`, *optional*): of text alone; those of a prompt
                with clips are counted over its positions.
            past_key_values, cache (`Cache`, *optional*): keys and values of what the LLM has read before; transformers
                5.23 has the one name and 5.24 the other, and both are taken here.
            inputs_embeds (`torch.FloatTensor` of shape `(batch, tokens, width)`, *optional*): in place of `input_ids`;
                clips stand where the embedding is that of the audio token.
            use_cache (`bool`, *optional*): whether to return `past_key_values`.
            labels (`torch.LongTensor` of shape `(batch, tokens)`, *optional*): `input_ids` where a token is to be
                learnt, -100 elsewhere.
            ctc_labels (`torch.LongTensor` of shape `(clips, targets)`, *optional*): transcript ids, padded with -100.
            ctc_candidates (`torch.LongTensor` of shape `(tokens,)`, *optional*): the tokens that compete with them
                in this step; no others, but for the labels' own, become `ctc_best`. By default the whole vocabulary.
            encoder_states, encoder_mask: outputs of `SoundwaveModel.encode`, in place of the features and their mask.
            num_ctc_clips (`int`, *optional*): clips that the CTC loss is a mean over (of an accumulated batch).
            ctc_mask (`torch.BoolTensor` of shape `(clips,)`, *optional*): clips that have a transcript; the CTC loss
                leaves the others out. By default all have one.
            logits_to_keep (`int`): score only the last tokens of each row, this many; `labels` count only there.
            output_ctc_logits (`bool`): whether to return `ctc_logits`.
            num_items_in_batch (`int`, *optional*): labels that `ce_loss` is a mean over (of an accumulated batch);
                without `num_ctc_clips`, `ctc_loss` counts by the share of them that are in this part.
            shared_prefix (`int`): in training, tokens of text that all rows begin with: the LLM reads them once for
                the batch, and neither scores them nor learns their labels.
            is_transcription (`torch.BoolTensor` of shape `(batch,)`, *optional*): the processor's mark of rows that
                ask for a transcript, which `generate` alone reads.

        Raises: `ValueError` where clips and audio tokens differ in number, ids are outside the vocabulary, shapes of
        inputs and of their masks or labels differ, a clip is empty, a prompt is longer than the LLM's context, or a
        CTC label is no token.

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
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        # Of a slice that is not contiguous, PyTorch would multiply row by row, a copy of the head's weights for each.
        logits = self.lm_head(outputs.last_hidden_state[:, kept].contiguous())
        ce_loss = None
        if labels is not None:
            vocabulary = self.config.text_config.vocab_size
            check_ids("labels", labels[labels.ne(-100)], vocabulary)
            learnt = labels[:, shared_prefix:][:, kept]
            if learnt.shape != logits.shape[:2]:
                raise ValueError(
                    f"`labels` has shape {tuple(labels.shape)}, which is not that of `input_ids`: give one label a "
                    "token, one for an audio token too, however many positions its clip has."
                )
            ce_loss = self.loss_function(logits, learnt, vocabulary, num_items_in_batch=num_items_in_batch)
        audio = outputs.audio_output or SoundwaveAudioOutput()
        ctc_loss = audio.ctc_loss
        counts_labels_alone = num_items_in_batch is not None and kwargs.get("num_ctc_clips") is None
        if ctc_loss is not None and labels is not None and counts_labels_alone:
            # As `Trainer` does, which adds the losses of an accumulated batch up: each part has its share of the CTC.
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
