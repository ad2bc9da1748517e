"""A tokenizer and a processor built in code: bytes as tokens, a ChatML template, Whisper's feature extractor."""

from transformers import PreTrainedTokenizerFast, WhisperFeatureExtractor

from soundwave_hf.data.tiny import CHAT_TEMPLATE as CHATML
from soundwave_hf.data.tiny import byte_tokenizer
from soundwave_hf.processing.processing_soundwave import AUDIO_TOKEN, SoundwaveProcessor


def tiny_tokenizer(
    audio_token: str | None = AUDIO_TOKEN, chat_template: str | None = CHATML, padding_side: str = "left"
) -> PreTrainedTokenizerFast:
    """Byte-level tokenizer of about 260 tokens that encodes any text; `audio_token=None` gives a plain LLM's."""
    tokenizer = byte_tokenizer((audio_token,) if audio_token else (), padding_side=padding_side)
    tokenizer.chat_template = chat_template
    return tokenizer


def tiny_processor(mel_bins: int = 80, **tokenizer_options) -> SoundwaveProcessor:
    """Processor over `tiny_tokenizer(**tokenizer_options)` and Whisper's features."""
    return SoundwaveProcessor(WhisperFeatureExtractor(feature_size=mel_bins), tiny_tokenizer(**tokenizer_options))
