"""A tokenizer and a processor built in code: bytes as tokens, a ChatML template, Whisper's feature extractor."""

import tokenizers
from transformers import PreTrainedTokenizerFast, WhisperFeatureExtractor

from soundwave_hf.processing.processing_soundwave import AUDIO_TOKEN, SoundwaveProcessor


CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def tiny_tokenizer(
    audio_token: str | None = AUDIO_TOKEN, chat_template: str | None = CHATML, padding_side: str = "left"
) -> PreTrainedTokenizerFast:
    """Byte-level tokenizer of about 260 tokens that encodes any text; `audio_token=None` gives a plain LLM's."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({byte: index for index, byte in enumerate(alphabet)}, []))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=["<|im_start|>"] + ([audio_token] if audio_token else []),
        model_input_names=["input_ids", "attention_mask"],
        padding_side=padding_side,
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def tiny_processor(mel_bins: int = 80, **tokenizer_options) -> SoundwaveProcessor:
    """Processor over `tiny_tokenizer(**tokenizer_options)` and Whisper's features."""
    return SoundwaveProcessor(WhisperFeatureExtractor(feature_size=mel_bins), tiny_tokenizer(**tokenizer_options))
