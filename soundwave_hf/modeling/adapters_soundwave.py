"""Parts of the model: the encoder for padded clips, both adapters and the CTC head (paper section 3)."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.whisper.modeling_whisper import WhisperEncoder
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_soundwave import SoundwaveConfig
from .ctc_scores_soundwave import CTCFrames, score_frames
from .ctc_soundwave import large_vocabulary_ctc, likeliest_tokens, true_places
from .trained_fields_soundwave import keep_trained_fields


def in_training_step(module: nn.Module) -> bool:
    """Whether this is a training step, with gradients. (`generate` may run in training mode without gradients.)"""
    return module.training and torch.is_grad_enabled()


def may_look(module: nn.Module, values: torch.Tensor) -> bool:
    """Whether to check tensor values: always on the CPU, but on an accelerator only outside of training steps.

    In a training step each check would wait for the accelerator. Collator and processor have checked the inputs. While
    a graph is compiled or exported there are no values, and a check would break the graph.
    """
    if torch.compiler.is_compiling():  # also true while exporting
        return False
    return values.device.type == "cpu" or not in_training_step(module)


def readable_weights(module: nn.Module) -> AbstractContextManager:
    """A context in which a module's own weights can be read outside of `forward`.

    accelerate loads offloaded weights for `forward` alone.
    """
    if not any(weight.is_meta for weight in module.parameters(recurse=False)):
        return nullcontext()
    try:
        from accelerate.utils import align_module_device
    except ImportError as error:
        raise ImportError(
            f"The weights of {type(module).__name__} are offloaded, which needs `accelerate`: install it."
        ) from error
    return align_module_device(module)


def padding_mask(config, states: torch.Tensor, mask: torch.Tensor | None, is_training: bool, **keys):
    """The mask that hides padding from attention, by `create_bidirectional_mask`.

    That function reads the mask and returns None if nothing is padding. On an accelerator in training, the mask is
    always made, because reading values would wait for the accelerator.
    """
    skip = states.device.type == "cpu" or not is_training
    return create_bidirectional_mask(config, states, mask, allow_is_bidirectional_skip=skip, **keys)


def first_of_run(labels: torch.Tensor) -> torch.Tensor:
    """Mark the first frame of each run of equal CTC labels (paper section 3.2).

    Args: labels (`torch.LongTensor` of shape `(clips, frames)`): likeliest CTC label of each aligned frame.
    Returns: `torch.BoolTensor` of shape `(clips, frames)`, true where a run begins.
    """
    starts = torch.ones_like(labels, dtype=torch.bool)
    starts[:, 1:] = labels[:, 1:] != labels[:, :-1]
    return starts


class SoundwaveEncoder(WhisperEncoder):
    """Whisper's encoder for batches of clips of any length up to its window.

    Padding does not change the states of a clip: it is set to zero before each convolution and hidden from attention.
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
                f"`input_features` has shape {tuple(input_features.shape)} and the encoder has "
                f"{self.config.num_mel_bins} mel bins: (clips, {self.config.num_mel_bins}, mel_frames) was expected. "
                "Use the processor that was saved with the model."
            )
        window = 2 * self.max_source_positions
        if input_features.shape[-1] > window:
            raise ValueError(
                f"`input_features` has {input_features.shape[-1]} mel frames and the encoder's window is {window} "
                f"({window / 100:g} s). Cut the clip."
            )
        hidden = input_features.to(self.conv1.weight.dtype)
        if input_features_mask is None:
            hidden = nn.functional.gelu(self.conv1(hidden))
            frame_mask = None
        else:
            true_mel = input_features_mask[:, None].to(hidden.dtype)
            # The second convolution reads one frame after a clip of odd length.
            hidden = nn.functional.gelu(self.conv1(hidden * true_mel)) * true_mel
            frame_mask = input_features_mask[:, ::2].contiguous()  # flex attention on CPU needs it contiguous
        hidden = nn.functional.gelu(self.conv2(hidden)).transpose(1, 2)  # [clips, mel_frames / 2, width]
        hidden = hidden + self.embed_positions(torch.arange(hidden.shape[1], device=hidden.device))
        # Not `in_training_step`: a frozen encoder is in eval mode in training too.
        attention_mask = padding_mask(self.config, hidden, frame_mask, torch.is_grad_enabled())
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
            states (`torch.FloatTensor` of shape `(clips, queries, width)`): states that give the queries.
            keys (`torch.FloatTensor` of shape `(clips, frames, width)`): states that give keys and values.
            attention_mask: from `create_bidirectional_mask`.

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
        attended, _ = attend(self, query, key, value, attention_mask, scaling=self.scaling, dropout=dropout)
        return self.out_proj(attended.flatten(2))


class SoundwaveFrameAttention(nn.Module):
    """Attention of each frame to itself only, as in the published weights. It needs no queries and keys."""

    def __init__(self, config: SoundwaveConfig):
        super().__init__()
        width = config.text_config.hidden_size
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, states: torch.Tensor, keys: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """`(clips, frames, width)` -> the same shape. `keys` and the mask are not needed."""
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
        """`(clips, frames, width)` -> the same shape."""
        normed = self.self_attn_layer_norm(states)
        states = states + self.dropout(self.self_attn(normed, normed, attention_mask))
        inner = self.dropout(nn.functional.relu(self.fc1(self.final_layer_norm(states))))
        return states + self.dropout(self.fc2(inner))


class SoundwaveAlignmentAdapter(nn.Module):
    """Encoder states -> frames in the LLM's space (paper section 3.1): stack, project, one or more layers, norm."""

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

        Returns: aligned states `(clips, frames, width)` and their mask `(clips, frames)`, true at true frames, where
        `frames = ceil(encoder_frames / stack_factor)`.
        """
        clips, length, _ = encoder_states.shape
        encoder_states = encoder_states.to(self.linear.weight.dtype)
        if encoder_mask is None:
            encoder_mask = encoder_states.new_ones(clips, length, dtype=torch.bool)
        else:
            encoder_states = encoder_states * encoder_mask[..., None]
        # The last frames are stacked with zeros, as in a batch with longer clips.
        missing = -length % self.stack_factor
        stacked = nn.functional.pad(encoder_states, (0, 0, 0, missing))
        stacked = stacked.reshape(clips, -1, self.linear.in_features)  # [clips, frames, stack_factor * encoder_width]
        # Contiguous: PyTorch cannot compile flex attention on CPU for a strided mask.
        mask = encoder_mask[:, :: self.stack_factor].contiguous()
        hidden = self.linear(stacked)
        attention_mask = padding_mask(self.config, hidden, mask, in_training_step(self))
        for layer in self.layers:
            hidden = layer(hidden, attention_mask)
        return self.norm(hidden), mask


class SoundwaveCTCHead(nn.Module):
    """Scores of the LLM's tokens and of the blank for each aligned frame.

    If tied (paper, Figure 2), the tokens' rows are the LLM's input embeddings, and only the blank has parameters.
    """

    def __init__(self, config: SoundwaveConfig):
        super().__init__()
        self.config = config
        self.blank_id = config.audio_token_id
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
            self.config.blank_margin,
            candidates,
            output_blank_log_probs=not in_training_step(self),  # for `SoundwaveModel.judge_silence`
        )
        if ctc_labels is None and self.weight is None and self.training and self.blank_bias.requires_grad:
            # Distributed training needs a gradient of each parameter. Without labels, the blank's gradient is zero.
            ctc.losses = 0 * (self.blank_weight.sum() + self.blank_bias).expand(len(aligned))
        return ctc

    def score_frames(self, aligned, num_frames, token_embeddings) -> list[CTCFrames]:
        """CTC log-probabilities of each clip's aligned frames `(clips, frames, width)`, for decoding."""
        with readable_weights(self):
            token_weight = token_embeddings if self.weight is None else self.weight
            return score_frames(aligned, num_frames, token_weight, self.blank_id, self.blank_weight, self.blank_bias)

    def logits(self, aligned: torch.Tensor, token_embeddings: torch.Tensor) -> torch.Tensor:
        """All scores of aligned frames: `(clips, frames, width)` -> `(clips, frames, vocabulary)`."""
        with readable_weights(self):
            if self.weight is not None:
                return aligned @ self.weight.T.to(aligned.dtype)
            logits = aligned @ token_embeddings.T.to(aligned.dtype)
            logits[..., self.blank_id] = aligned @ self.blank_weight.to(aligned.dtype) + self.blank_bias
            return logits

    def likeliest(self, frames: torch.Tensor, token_embeddings: torch.Tensor, number: int):
        """The likeliest tokens of frames `(frames, width)` and their shares, both `(frames, number)`."""
        with readable_weights(self):
            token_weight = token_embeddings if self.weight is None else self.weight
            return likeliest_tokens(frames, token_weight, self.blank_id, number)

    @torch.no_grad()
    def resize(self, vocabulary: int):
        """Resize the matrix of an untied head. New rows are the mean of the others, which is never the best label."""
        if self.weight is not None and len(self.weight) != vocabulary:
            added = self.weight.mean(dim=0, keepdim=True).expand(max(vocabulary - len(self.weight), 0), -1)
            rows = torch.cat([self.weight[:vocabulary], added])
            self.weight = nn.Parameter(rows, requires_grad=self.weight.requires_grad)

    @torch.no_grad()
    def init_blank(self, token_embeddings: torch.Tensor):
        """Initialize the tied blank to be as likely as all tokens together, for frames of unit variance.

        For such frames the score of token `v` has variance `|e_v|^2`, so the log-normaliser is about
        `log V + mean(|e|^2) / 2`.
        """
        if self.weight is None:
            variance = token_embeddings.float().pow(2).sum(dim=1).mean().item()
            self.blank_bias.fill_(math.log(token_embeddings.shape[0]) + variance / 2)


class SoundwaveShrinkingAdapter(nn.Module):
    """Kept frames attend to the frames of their clip: `LayerNorm(x' + MHA(x', x, x))` (paper Eq. 1)."""

    def __init__(self, config: SoundwaveConfig):
        super().__init__()
        self.config = config
        self.attention = SoundwaveAttention(config)
        self.norm = nn.LayerNorm(config.text_config.hidden_size)

    @torch.no_grad()
    def init_norm(self, token_embeddings: nn.Module):
        """Initialize positions to the scale of the LLM's embeddings. At a larger scale its layers hardly change them.

        With `label_embeddings` they begin at a quarter of that scale, so that the label embeddings dominate.
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
        total, most = torch.stack([num_kept.sum(), num_kept.max()]).tolist()  # one transfer, as it waits for the GPU
        # A stable sort by "not kept" moves the kept frames to the front, in order.
        order = torch.argsort(~keep, dim=1, stable=True)[:, :most]
        kept = aligned.gather(1, order[..., None].expand(-1, -1, aligned.shape[-1]))  # [clips, most kept, width]
        kept_mask = torch.arange(most, device=kept.device)[None] < num_kept[:, None]
        keys, key_mask = (aligned, mask) if self.config.look_back == "all" else (kept, kept_mask)
        training = in_training_step(self)
        if "flash" in self.config._attn_implementation and self.config.look_back == "all":
            # With fewer queries than keys, flash attention reads their padding from the end of the mask. So all query.
            attended = self.attention(keys, keys, padding_mask(self.config, keys, key_mask, training))
            attended = attended.gather(1, order[..., None].expand(-1, -1, attended.shape[-1]))
        else:
            attention_mask = padding_mask(self.config, kept, key_mask, training, encoder_hidden_states=keys)
            attended = self.attention(kept, keys, attention_mask)
        return self.norm(kept + attended).flatten(0, 1)[true_places(num_kept, most, total)]


__all__ = [
    "SoundwaveAlignmentAdapter",
    "SoundwaveAlignmentLayer",
    "SoundwaveAttention",
    "SoundwaveCTCHead",
    "SoundwaveEncoder",
    "SoundwaveFrameAttention",
    "SoundwaveShrinkingAdapter",
    "eager_attention_forward",
    "first_of_run",
    "in_training_step",
    "may_look",
    "readable_weights",
]
