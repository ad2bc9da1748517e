"""Tiny random backbones and a dozen synthesised clips, made when a recipe names them. `recipes/tiny.yaml` needs no
download, and every stage runs in seconds. A model trained on them is useless for real speech."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile

from .manifest import write_rows


MEL_BINS = 16
RATE = 16_000
TEXTS = ["Yes.", "It's 5!", "No, no.", "Go on", "Well, hi", "A b c", "Stop it!", "Done", "We'll see", "Oh", "Up", "10"]
# All different. CTC needs a frame of 40 ms for each byte.
SECONDS = [1.0, 1.4, 0.8, 1.2, 1.3, 0.6, 1.1, 0.5, 1.5, 0.7, 0.4, 0.9]
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def byte_tokenizer(special_tokens: tuple[str, ...] = (), **options):
    """A tokenizer of bytes, about 260 tokens, that encodes any text. Options as in `PreTrainedTokenizerFast`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({byte: index for index, byte in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=["<|im_start|>", *special_tokens],
        model_input_names=["input_ids", "attention_mask"],
        **{"padding_side": "left", **options},
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def write_tiny_whisper(folder: Path):
    """A Whisper of width 32 with two layers, and its feature extractor."""
    import torch
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

    config = WhisperConfig(
        vocab_size=20,
        num_mel_bins=MEL_BINS,
        d_model=32,
        encoder_layers=2,
        encoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_layers=1,
        decoder_attention_heads=2,
        decoder_ffn_dim=64,
        init_std=0.2,  # about `width ** -0.5`: with the 0.02 of large models all frames would be equal
        max_target_positions=16,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=3,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        WhisperForConditionalGeneration(config).save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=MEL_BINS).save_pretrained(folder)


def write_tiny_llm(folder: Path):
    """A Llama of width 32 with two layers and a tied head, and its tokenizer, of bytes."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = byte_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.5,  # so large that an untrained model labels some frames blank and some not
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_speech(seconds: float, seed: int) -> np.ndarray:
    """A tone that rises and falls, plus noise: `(samples,)`, float32, at 16 kHz."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(seconds * RATE)) / RATE
    tone = np.sin(2 * np.pi * (200 + 40 * seed) * time) * np.sin(2 * np.pi * 3 * time) ** 2
    return (0.3 * tone + 0.02 * rng.standard_normal(len(time))).astype(np.float32)


def write_tiny_data(folder: Path):
    """Twelve clips of 0.4 to 1.5 seconds, `train.jsonl` with their transcripts, and `instruct.jsonl` with questions
    about them, spoken questions and transcripts."""
    rows = [
        {"audio": f"clips/{index}.wav", "text": text, "seconds": seconds, "voice": "tiny", "source": f"s{index % 2}"}
        | {"task": "asr" if index % 4 else "sound"}
        for index, (text, seconds) in enumerate(zip(TEXTS, SECONDS, strict=True))
    ]
    (folder / "clips").mkdir(parents=True)
    for index, row in enumerate(rows):
        soundfile.write(folder / row["audio"], make_speech(row["seconds"], seed=index), RATE, subtype="FLOAT")
    write_rows(folder / "train.jsonl", rows)
    asked = [row | {"question": "Who?", "answer": f"Number {index}."} for index, row in enumerate(rows[:4])]
    spoken = [row | {"question": "", "answer": f"I am {index}."} for index, row in enumerate(rows[4:8])]
    write_rows(folder / "instruct.jsonl", asked + spoken + rows[8:])


# Name in a recipe -> function that writes the backbone.
TINY_BACKBONES: dict[str, Callable[[Path], None]] = {
    "tiny-random-whisper": write_tiny_whisper,
    "tiny-random-llama": write_tiny_llm,
}
TINY_DATA = "data/tiny"
