"""Tiny random Soundwave models, clips and prompts: CPU, offline, milliseconds."""

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    SmolLM3Config,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from soundwave_hf import SoundwaveConfig, SoundwaveForConditionalGeneration, SoundwaveProcessor
from tests.tiny import tiny_tokenizer as byte_tokenizer


MEL_BINS = 8
WINDOW = 80  # mel frames the tiny encoder hears: 40 encoder frames, 20 aligned ones
VOCABULARY = 32
AUDIO = VOCABULARY - 1  # id of the audio token
FAMILIES = {
    "llama": LlamaConfig,
    "qwen3": Qwen3Config,
    "smollm3": SmolLM3Config,
    "gpt2": GPT2Config,
    "gemma": GemmaConfig,
    "gemma2": Gemma2Config,
    "gemma3": Gemma3TextConfig,
    "mistral": MistralConfig,
}


def tiny_audio_config(**fields) -> WhisperConfig:
    """A Whisper of width 12 that hears 0.8 s of 8 mel bins."""
    defaults = {
        "vocab_size": 20,
        "d_model": 12,
        "encoder_layers": 2,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 24,
        "decoder_layers": 1,
        "decoder_attention_heads": 2,
        "decoder_ffn_dim": 24,
        "num_mel_bins": MEL_BINS,
        "max_source_positions": WINDOW // 2,
        "max_target_positions": 16,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 3,
        "suppress_tokens": None,
        "begin_suppress_tokens": None,
    }
    return WhisperConfig(**{**defaults, **fields})


# Width 16, two layers; the names are the same in every family of causal LMs.
LLM_SIZES = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
}


def tiny_text_config(family: str = "llama", **fields):
    """A causal LM of width 16 with two layers and no end-of-text token, so that `generate` runs to its limit."""
    defaults = {
        **LLM_SIZES,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 256,
        "tie_word_embeddings": False,
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    config_class = FAMILIES[family] if family in FAMILIES else CONFIG_MAPPING[family]
    return config_class(**{**defaults, **fields})


def tiny_config(family: str = "llama", text_fields: dict | None = None, **fields) -> SoundwaveConfig:
    """The audio token is the last id of the vocabulary. `fields` are those of `SoundwaveConfig`."""
    text_config = tiny_text_config(family, **(text_fields or {}))
    return SoundwaveConfig(audio_config=tiny_audio_config(), text_config=text_config, **fields)


@torch.no_grad()
def spread_weights(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Random weights large enough for every part to matter, norms and biases included. Returns the model."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            width = parameter[0].numel()
            parameter.normal_(std=0.6 if width > 64 else width**-0.5, generator=generator)
        else:
            parameter.add_(torch.empty_like(parameter).normal_(std=0.2, generator=generator))
    embeddings = model.get_input_embeddings()
    if embeddings is not None:
        embeddings.weight.normal_(generator=generator)
    return model


def tiny_model(family: str = "llama", text_fields: dict | None = None, seed: int = 0, **fields):
    """A `SoundwaveForConditionalGeneration` in eval mode whose CTC finds runs, blanks and tokens in random clips."""
    model = spread_weights(SoundwaveForConditionalGeneration(tiny_config(family, text_fields, **fields)), seed)
    model.tie_weights()
    if model.config.tie_ctc_head:
        model.model.ctc_head.blank_bias.data.fill_(7.0)  # near the best of the 31 tokens' scores
    return model.eval()


def make_clips(mel_frames: list[int], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Clips of the given lengths, padded together with noise, which no output may depend on.

    Returns: `input_features` `(clips, mel_bins, mel_frames)` and `input_features_mask` `(clips, mel_frames)`.
    """
    generator = torch.Generator().manual_seed(seed)
    longest = max(mel_frames)
    features = torch.randn(len(mel_frames), MEL_BINS, longest, generator=generator)
    mask = (torch.arange(longest)[None] < torch.tensor(mel_frames)[:, None]).long()
    return features, mask


def pad_rows(rows: list[list[int]], side: str = "left") -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts as `input_ids` and `attention_mask`, `(batch, tokens)`, padded with id 0 on one side."""
    longest = max(len(row) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        place = slice(longest - len(row), None) if side == "left" else slice(len(row))
        ids[index, place] = torch.tensor(row)
        mask[index, place] = 1
    return ids, mask


def save_tiny_whisper(folder, **fields) -> str:
    """Save a whole tiny Whisper. Returns the folder."""
    torch.manual_seed(1)
    WhisperForConditionalGeneration(tiny_audio_config(**fields)).save_pretrained(folder)
    return str(folder)


def tiny_tokenizer(extra_tokens: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    """Words `w0` ... `w29`, `<unk>` and `<pad>`: 32 ids, and then the extra ones."""
    words = [f"w{number}" for number in range(30)] + ["<unk>", "<pad>"]
    model = WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>")
    fast.add_tokens(list(extra_tokens), special_tokens=True)
    return fast


def save_tiny_llm(folder, extra_tokens: tuple[str, ...] = (), family: str = "llama", **fields) -> str:
    """Save a tiny causal LM with its tokenizer. Returns the folder."""
    torch.manual_seed(2)
    model = spread_weights(AutoModelForCausalLM.from_config(tiny_text_config(family, **fields)))
    model.tie_weights()
    model.save_pretrained(folder)
    tiny_tokenizer(extra_tokens).save_pretrained(folder)
    return str(folder)


def pad_batch(rows: list[list[int]], mel_frames: list[int], side: str = "left") -> dict[str, torch.Tensor]:
    """Rows of ids and the clips of their audio tokens as one padded batch."""
    ids, attention_mask = pad_rows(rows, side)
    features, features_mask = make_clips(mel_frames)
    return {
        "input_ids": ids,
        "attention_mask": attention_mask,
        "input_features": features,
        "input_features_mask": features_mask,
    }


def save_tiny_soundwave(
    folder, processor: SoundwaveProcessor | None = None, blank_bias: float = 9.0, llm: str = "llama", **text_fields
):
    """Save a tiny model of a 2 s window with its processor, as a user would. Returns the folder."""
    if processor is None:
        processor = SoundwaveProcessor(WhisperFeatureExtractor(chunk_length=2), byte_tokenizer(), trailing_silence=0.1)
    config = SoundwaveConfig(
        audio_config=tiny_audio_config(num_mel_bins=80, max_source_positions=100),
        text_config=tiny_text_config(
            llm, vocab_size=len(processor.tokenizer), max_position_embeddings=1024, **text_fields
        ),
        audio_token_id=processor.audio_token_id,
        label_embeddings=True,
    )
    model = spread_weights(SoundwaveForConditionalGeneration(config))
    model.model.ctc_head.blank_bias.data.fill_(blank_bias)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
