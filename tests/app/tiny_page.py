"""A tiny random model whose text is words, served as a page."""

import threading
import time
from contextlib import contextmanager

import numpy as np
import soundfile
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast, WhisperFeatureExtractor

from soundwave_hf import SoundwaveForConditionalGeneration, SoundwaveProcessor
from soundwave_hf.app import serve
from soundwave_hf.app.speech import SpeechModel
from soundwave_hf.processing.processing_soundwave import AUDIO_TOKEN
from tests.tiny import tiny_tokenizer
from tests.tiny_models import save_tiny_soundwave


RATE = 16_000
MAX_SECONDS = 8


def save_tiny(folder) -> str:
    """Save a model of a 2 s window that answers with `w0` ... `w99`. It never ends a text by itself."""
    processor = SoundwaveProcessor(WhisperFeatureExtractor(chunk_length=2), word_tokenizer())
    return str(save_tiny_soundwave(folder, processor, blank_bias=7.0))


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Words `w0` ... `w99`, each a token that marks the space before it, as SentencePiece does."""
    words = ["<unk>", *(f"▁w{number}" for number in range(100))]
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<unk>")
    fast.add_tokens([AUDIO_TOKEN], special_tokens=True)
    fast.chat_template = tiny_tokenizer().chat_template
    return fast


def load_tiny(folder: str) -> SpeechModel:
    model = SoundwaveForConditionalGeneration.from_pretrained(folder).eval()
    return SpeechModel(model, SoundwaveProcessor.from_pretrained(folder), MAX_SECONDS)


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return 0.1 * np.random.default_rng(seed).standard_normal(round(RATE * seconds)).astype(np.float32)


def write_noise(path, seconds: float, seed: int = 0) -> str:
    soundfile.write(path, noise(seconds, seed), RATE, subtype="PCM_16")
    return str(path)


@contextmanager
def served(speech: SpeechModel, temporary: str):
    """The address of a page, served by a thread of this process."""
    with serve.listen(serve.LOOPBACK, None) as listener:
        port = serve.port_of(listener)
        serve.quiet_gradio(temporary)
        server = serve.make_server(speech, "tiny", serve.LOOPBACK, port)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.05)
        try:
            yield f"http://{serve.LOOPBACK}:{port}"
        finally:
            server.should_exit = True
            thread.join(timeout=20)
