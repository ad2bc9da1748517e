"""Costs of one batch by part: floating-point operations, and bytes that are kept for the backward pass.

The formulas follow each part's forward, for an LLM built like Llama; tests compare them with real steps. They count
matrix products and attention, with two operations for each product and sum; the rest is small beside these.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from ..modeling.configuration_soundwave import SoundwaveConfig
from ..modeling.ctc_soundwave import tokens_at_once


FLOAT32 = 4
SAME_INPUT = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}  # modules with the same input
FUSED_HEAD_TILE = (4096, 32_768)  # tokens and vocabulary scored at a time by TRL's head


@dataclass(frozen=True)
class Batch:
    """Sizes of the batch of one GPU, padding included.

    Args:
        clips (`int`): of the batch, one a row.
        mel_frames (`int`): of the longest clip, 10 ms each.
        targets (`int`): CTC labels of the longest transcript.
        positions (`int`): of the longest clip, in the LLM.
        tokens (`int`): of the longest row, the audio token among them.
        prefix (`int`): the tokens at the start that all rows share, which are read once.
        scored (`int`): tokens of all rows together whose next token is scored.
    """

    clips: int
    mel_frames: int
    targets: int = 0
    positions: int = 0
    tokens: int = 0
    prefix: int = 0
    scored: int = 0

    def frames(self, stack_factor: int) -> int:
        """Aligned frames of the longest clip."""
        return -(-self.mel_frames // (2 * stack_factor))

    @property
    def merged(self) -> int:
        """Positions of the longest row in the LLM, without the prefix."""
        return self.tokens - self.prefix - 1 + self.positions


@dataclass(frozen=True)
class Numerics:
    """How a run computes: bytes per number, the kind of attention, and checkpointing.

    Args:
        size (`int`): 2 under mixed precision, else 4.
        eager (`frozenset[str]`): parts ("encoder", "adapters", "llm") whose attention keeps all its weights.
        lora_dropout (`float`).
        checkpointing (`bool`): whether the backward pass computes the LLM's layers again.
    """

    size: int = FLOAT32
    eager: frozenset[str] = field(default_factory=frozenset)
    lora_dropout: float = 0.0
    checkpointing: bool = False

    @property
    def mixed(self) -> bool:
        return self.size < FLOAT32

    def attention_backward(self, part: str) -> float:
        """Operations of attention's backward pass per one of its forward: without kept weights it recomputes them."""
        return 2.0 if part in self.eager else 2.5

    def attention_weights(self, part: str, heads: int, keys: int, masked: bool = True) -> int:
        """Bytes per query that attention keeps beside queries, keys, values and output."""
        if part not in self.eager:
            # A normaliser for each head, and one mask for all heads.
            return heads * FLOAT32 + masked * keys * self.size
        return heads * keys * (FLOAT32 + (self.size if self.mixed else 0))


@dataclass(frozen=True)
class Part:
    """Costs of a part: FLOPs of its two passes, bytes kept between them, and bytes needed for a moment."""

    name: str
    forward: float = 0.0
    backward: float = 0.0
    kept: float = 0.0
    passing: float = 0.0


@dataclass(frozen=True)
class LoraSizes:
    """The LoRA of one layer of the LLM or the encoder: its rank, and the input width of each module by name."""

    rank: int
    inputs: dict[str, int]

    def kept(self, numerics: Numerics) -> int:
        """Bytes that the modules keep for a position."""
        size, widths = numerics.size, self.inputs
        if numerics.mixed or numerics.lora_dropout:
            own = sum(widths.values()) * size  # each module casts or drops its own input
        else:
            # A shared input is kept once, and the output of attention is kept already.
            attended = ("o_proj", "out_proj")
            shared = {SAME_INPUT.get(name, name): width for name, width in widths.items() if name not in attended}
            own = sum(shared.values()) * size
        masks = sum(widths.values()) if numerics.lora_dropout else 0
        return own + masks + self.rank * len(widths) * size


def encoder_part(
    config: SoundwaveConfig,
    batch: Batch,
    weight_bytes: int,
    numerics: Numerics,
    lora_weights: int = 0,
    lora: LoraSizes | None = None,
) -> Part:
    """The encoder. A frozen one keeps nothing for the backward pass; a LoRA needs one through all layers.

    Args: lora_weights (`int`): numbers in the trained matrices of all layers.
    """
    audio = config.audio_config
    width, inner, length = audio.d_model, audio.encoder_ffn_dim, -(-batch.mel_frames // 2)
    frames = batch.clips * length
    convolutions = 2 * 3 * width * (audio.num_mel_bins * batch.clips * batch.mel_frames + width * frames)
    linear, attended = 2 * frames * (4 * width**2 + 2 * width * inner), 4 * frames * length * width
    forward = convolutions + audio.encoder_layers * (linear + attended) + 2 * frames * lora_weights
    passing = frames * (2 * inner + 4 * width) * weight_bytes
    if lora is None:
        return Part("encoder", forward, passing=passing)
    again = numerics.attention_backward("encoder") * attended
    backward = audio.encoder_layers * (linear + again) + 4 * frames * lora_weights
    layer = 2 * width * FLOAT32 + (4 * width + inner) * numerics.size + lora.kept(numerics)
    layer += numerics.attention_weights("encoder", audio.encoder_attention_heads, length)
    return Part("encoder", forward, backward, frames * (audio.encoder_layers * layer + width * FLOAT32), passing)


def alignment_part(config: SoundwaveConfig, batch: Batch, numerics: Numerics, trains: bool) -> Part:
    """The alignment adapter: projection, layers, norms."""
    width, size = config.text_config.hidden_size, numerics.size
    stacked, length = config.stack_factor * config.audio_config.d_model, batch.frames(config.stack_factor)
    over_sequence = config.alignment_attention == "sequence"
    frames = batch.clips * length
    attended = 4 * length * width if over_sequence else 0
    linear = 2 * width**2 * ((4 if over_sequence else 2) + 4)
    forward = frames * (2 * stacked * width + config.alignment_layers * (linear + attended))
    if not trains:
        return Part("alignment adapter", forward)
    again = numerics.attention_backward("adapters") * attended
    backward = frames * (2 * stacked * width + config.alignment_layers * (2 * linear + again))
    attention = (3 if over_sequence else 1) * width * size  # queries, keys and values; or the values alone
    normed = width * size  # under mixed precision each of three projections casts its own copy
    if over_sequence:
        attention += width * size + numerics.attention_weights("adapters", config.adapter_heads, length)
        normed *= 3 if numerics.mixed else 1
    inner = width * size + 2 * width * size  # what the feed-forward reads, and its hidden layer
    if config.adapter_dropout:
        inner += 2 * width * size + 4 * width  # the hidden layer once more, and masks of a byte
    layer = normed + attention + inner + 2 * width * FLOAT32  # and what both norms read
    kept = stacked * size + config.alignment_layers * layer + 2 * width * FLOAT32  # read and given by the last norm
    return Part("alignment adapter", forward, backward, frames * kept)


def ctc_part(config: SoundwaveConfig, batch: Batch, numerics: Numerics, candidates: int, trains: bool) -> Part:
    """Scores of all aligned frames against the candidates, and the loss."""
    width = config.text_config.hidden_size
    frames = batch.clips * batch.frames(config.stack_factor)
    scores, columns = 2 * frames * candidates * width, 2 * frames * (batch.targets + 1) * width
    chunk = frames * min(candidates, tokens_at_once(frames)) * FLOAT32
    if not trains:
        return Part("CTC", scores, passing=chunk)
    mean = (width + 1) * FLOAT32  # which is the gradient of the normaliser
    posteriors = (batch.targets + 2) * FLOAT32
    cast = width * numerics.size if numerics.mixed else 0
    kept = frames * (mean + posteriors + cast)
    backward = columns if config.tie_ctc_head else 2 * columns + 2 * scores
    in_float64 = 5 * frames * (batch.targets + 2) * 8
    return Part("CTC", 2 * scores + columns, backward, kept, chunk + in_float64)


def shrinking_part(config: SoundwaveConfig, batch: Batch, numerics: Numerics, trains: bool) -> Part:
    """The shrinking adapter: kept frames look back."""
    width, size = config.text_config.hidden_size, numerics.size
    length = batch.frames(config.stack_factor) if config.look_back == "all" else batch.positions
    keys, queries = batch.clips * length, batch.clips * batch.positions
    linear, attended = 4 * width**2 * (keys + queries), 4 * queries * length * width
    if not trains:
        return Part("shrinking adapter", linear + attended)
    read = 2 * width * size if numerics.mixed else 0  # for keys and values; the aligned frames themselves are kept
    weights = numerics.attention_weights("adapters", config.adapter_heads, length)
    kept = keys * (2 * width * size + read + 8) + queries * (3 * width * size + width * FLOAT32 + weights)
    backward = 2 * linear + numerics.attention_backward("adapters") * attended
    return Part("shrinking adapter", linear + attended, backward, kept)


def llm_part(
    config: SoundwaveConfig, batch: Batch, numerics: Numerics, matrices: int, lora_weights: int, lora: LoraSizes
) -> Part:
    """The LLM's layers with their LoRA.

    Args: matrices (`int`), lora_weights (`int`): numbers in the frozen and in the trained matrices of all layers.
    """
    text, size, prefix = config.text_config, numerics.size, batch.prefix
    heads, layers = text.num_attention_heads, text.num_hidden_layers
    width = heads * (getattr(text, "head_dim", None) or text.hidden_size // heads)
    own, keys = batch.clips * batch.merged, prefix + batch.merged  # positions of all rows; keys of each
    attended = layers * 4 * width * (own * keys + prefix**2)
    forward = 2 * (own + prefix) * (matrices + lora_weights) + attended
    # The last layer computes only keys and values of the prefix, and most of it gets no gradient.
    positions = own + prefix * (layers - 1) / layers
    backward = 2 * positions * (matrices + 2 * lora_weights) + numerics.attention_backward("llm") * attended
    norms, feed_forward = 2 * text.hidden_size * FLOAT32, 3 * text.intermediate_size * size
    layer = (own + prefix) * (norms + feed_forward + 2 * width * size + lora.kept(numerics))  # with queries and output
    layer += own * numerics.attention_weights("llm", heads, keys)
    layer += prefix * numerics.attention_weights("llm", heads, prefix, masked=False)
    layer += 2 * (batch.clips * keys + prefix) * width * size  # keys and values, repeated for all heads
    last = own * text.hidden_size * FLOAT32  # read by the last norm
    if numerics.checkpointing:
        return Part("LLM", forward, backward + forward, layers * own * text.hidden_size * size + last, layer)
    return Part("LLM", forward, backward, layers * layer + last)


def head_part(config: SoundwaveConfig, batch: Batch, numerics: Numerics, fused: bool) -> Part:
    """Next-token scores and loss: of all scored tokens at once, or tile by tile (TRL's, in stage `instruct`)."""
    width, vocabulary = config.text_config.hidden_size, config.text_config.vocab_size
    scores = 2 * batch.scored * vocabulary * width
    if fused:
        tile = min(batch.scored, FUSED_HEAD_TILE[0]) * min(vocabulary, FUSED_HEAD_TILE[1])
        states = batch.scored * width
        return Part(
            "next-token head", scores, 2 * scores, states * numerics.size, (tile * numerics.size + states * FLOAT32)
        )
    log_probabilities = batch.scored * vocabulary * FLOAT32
    given = batch.scored * vocabulary * numerics.size  # the output's logits, and again as their gradient
    return Part("next-token head", scores, scores, log_probabilities, log_probabilities + 2 * given)


def batch_parts(
    stage,
    config: SoundwaveConfig,
    batch: Batch,
    numerics: Numerics,
    weight_bytes: int,
    candidates: int,
    llm: dict,
    encoder: dict | None = None,
) -> Iterator[Part]:
    """The parts of a stage, in their order.

    Args:
        stage (`Stage`): row of `STAGES`.
        weight_bytes (`int`): of a weight of the encoder.
        candidates (`int`): tokens among which CTC chooses.
        llm (`dict`): `matrices`, `lora_weights` and `lora` of `llm_part`.
        encoder (`dict`, *optional*): `lora_weights` and `lora` of `encoder_part`, if the encoder has a LoRA.
    """
    adapters_train = "ctc" in stage.losses
    yield encoder_part(config, batch, weight_bytes, numerics, **(encoder or {}))
    yield alignment_part(config, batch, numerics, adapters_train)
    yield ctc_part(config, batch, numerics, candidates, adapters_train)
    if stage.has_llm:
        yield shrinking_part(config, batch, numerics, adapters_train)
        yield llm_part(config, batch, numerics, **llm)
        yield head_part(config, batch, numerics, fused=not adapters_train)


def cache_bytes(config: SoundwaveConfig, tokens: int, size: int) -> int:
    """Bytes of the keys and values that `generate` holds for so many positions, in all layers of the LLM."""
    text = config.text_config
    head_width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    return 2 * text.num_hidden_layers * heads * head_width * size * tokens


__all__ = ["Batch", "LoraSizes", "Numerics", "Part", "batch_parts", "cache_bytes"]
