"""docs/troubleshooting.md: every message that it quotes is raised here, by a mistake that a user could make."""

import re
import shutil
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from transformers import AutoModelForMultimodalLM, AutoProcessor, WhisperFeatureExtractor, pipeline

from soundwave_hf import SoundwaveForConditionalGeneration, SoundwaveProcessor, resolve_adapter, train
from soundwave_hf.data.tiny import write_tiny_llm, write_tiny_whisper
from soundwave_hf.modeling.loading_soundwave import as_dtype
from soundwave_hf.training.export import export_adapter
from soundwave_hf.training.recipe import check_recipe
from tests.modeling.test_load_adapters import write_adapters
from tests.tiny import tiny_processor
from tests.tiny_models import AUDIO, pad_batch, save_tiny_llm, save_tiny_soundwave, save_tiny_whisper, tiny_model


GUIDE = (Path(__file__).parents[1] / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
RATE = 16_000
MISTAKES: dict[str, Callable] = {}


def mistake(heading: str):
    """Register the function that makes a mistake, under the heading of the page."""

    def keep(make: Callable) -> Callable:
        MISTAKES[heading] = make
        return make

    return keep


class Known:
    """What the mistakes take as given: a folder with a model, and clips."""

    def __init__(self, home: Path):
        self.home = home
        self.folder = str(save_tiny_soundwave(home / "saved"))
        self.model = AutoModelForMultimodalLM.from_pretrained(self.folder).eval()
        self.processor = AutoProcessor.from_pretrained(self.folder)
        self.noise = (0.1 * np.random.default_rng(0).standard_normal(RATE)).astype(np.float32)
        soundfile.write(home / "speech.wav", self.noise, RATE)

    def request(self) -> dict:
        return self.processor.apply_transcription_request(str(self.home / "speech.wav"))

    def question(self) -> dict:
        """The inputs of a request that is no transcription."""
        content = [{"type": "audio", "path": str(self.home / "speech.wav")}, {"type": "text", "text": "Who speaks?"}]
        options = {"tokenize": True, "add_generation_prompt": True, "return_dict": True, "return_tensors": "pt"}
        return self.processor.apply_chat_template([{"role": "user", "content": content}], **options)


@pytest.fixture(scope="module")
def known(tmp_path_factory) -> Known:
    return Known(tmp_path_factory.mktemp("mistakes"))


@mistake("arrived as an array without its sampling rate")
def array_without_rate(known):
    encoder, llm = save_tiny_whisper(known.home / "whisper"), save_tiny_llm(known.home / "llm")
    WhisperFeatureExtractor(feature_size=8).save_pretrained(encoder)
    SoundwaveProcessor.from_backbones(encoder, llm)(text="<|audio|>", audio=known.noise)


@mistake("is not a file (current folder: ...)")
def missing_file(known):
    known.processor.apply_transcription_request("spech.wav")


@mistake("could not be decoded: ... Convert it")
def broken_file(known):
    (known.home / "broken.wav").write_bytes(b"no audio at all, though it is called so")
    known.processor.apply_transcription_request(str(known.home / "broken.wav"))


@mistake("was cut off: its header states ... s and ... s were found")
def cut_file(known):
    whole = (known.home / "speech.wav").read_bytes()
    (known.home / "cut.wav").write_bytes(whole[: len(whole) // 2])
    known.processor.apply_transcription_request(str(known.home / "cut.wav"))


@mistake("arrived with 2 channels")
def two_channels(known):
    known.processor.apply_transcription_request(np.zeros((2, RATE), dtype=np.float32), sampling_rate=RATE)


@mistake("Unsupported language: 'frensh'. Did you mean 'french'")
def unknown_language(known):
    known.processor.apply_transcription_request(known.noise, sampling_rate=RATE, language="frensh")


@mistake("The text holds 2 <|audio|> tokens and 1 clips arrived")
def token_without_clip(known):
    known.processor(text="<|audio|> and <|audio|>", audio=known.noise, sampling_rate=RATE)


@mistake("has no chat template to render a conversation")
def no_chat_template(known):
    tiny_processor(chat_template=None).apply_transcription_request(known.noise, sampling_rate=RATE)


@mistake("There is no folder ... with trained adapters")
def no_such_adapters(known):
    resolve_adapter(known.home / "runs" / "mine")


@mistake("caps, scales or shifts its scores after its head")
def capped_scores(known):
    encoder, llm = save_tiny_whisper(known.home / "w"), save_tiny_llm(known.home / "gemma", family="gemma2")
    SoundwaveForConditionalGeneration.from_backbones(encoder, llm)


@mistake("got an unknown argument ... Did you mean")
def misspelt_argument(known):
    batch = pad_batch([[AUDIO, 3, 4]], [40])
    tiny_model()(**{name.replace("features_mask", "feature_mask"): value for name, value in batch.items()})


@mistake("expected a floating point `torch.dtype`")
def wrong_dtype(known):
    as_dtype("float8")


@mistake("Can't load feature extractor for")
def no_processor(known):
    copy = known.home / "no_processor"
    shutil.copytree(known.folder, copy)
    (copy / "processor_config.json").unlink()
    SoundwaveProcessor.from_pretrained(copy)


@mistake("Couldn't instantiate the backend tokenizer")
def pipeline_of_adapters(known):
    backbones = str(known.home / "its_whisper"), str(known.home / "its_llm")
    write_tiny_whisper(Path(backbones[0]))
    write_tiny_llm(Path(backbones[1]))
    write_adapters(*backbones, known.home / "run")
    shipped = export_adapter(known.home / "run", known.home / "shipped")
    pipeline("automatic-speech-recognition", model=str(shipped), trust_remote_code=True)


@mistake("lacks 1 weights of SoundwaveForConditionalGeneration")
def lost_weights(known):
    from safetensors.torch import load_file, save_file

    copy = known.home / "lost"
    shutil.copytree(known.folder, copy)
    weights = load_file(copy / "model.safetensors")
    weights.pop("model.alignment_adapter.linear.weight")
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    SoundwaveForConditionalGeneration.from_pretrained(copy)


@mistake("no row is marked as a transcription")
def weight_for_a_question(known):
    known.model.generate(**known.question(), ctc_weight=0.3, max_new_tokens=3)


@mistake("`do_sample` is True, but the CTC head needs a search for the best transcript")
def weight_while_sampling(known):
    known.model.generate(**known.request(), ctc_weight=0.3, do_sample=True, max_new_tokens=3)


@mistake("the model's tokenizer was not found")
def no_tokenizer(known):
    config = deepcopy(known.model.config)
    config.name_or_path = ""
    moved = SoundwaveForConditionalGeneration(config).eval()
    moved.generate(**known.request(), ctc_weight=0.3, max_new_tokens=3)


@mistake("A prompt has ... positions with its clips ..., and the LLM's context is ...")
def too_long(known):
    minutes = np.tile(known.noise, 90)
    model = SoundwaveForConditionalGeneration(known.model.config).eval()
    with torch.no_grad():
        model.model.ctc_head.blank_bias.fill_(-100.0)  # every frame is a token, as in a model that was not trained
    inputs = known.processor.apply_transcription_request(minutes, sampling_rate=RATE)
    model.generate(**inputs, max_new_tokens=3, min_positions_per_second=25)


@mistake("has the key ..., which does not exist. Did you mean")
def misspelt_key(known):
    check_recipe({"stage": "align", "data": "a.csv", "learing_rate": 1e-3}, "recipe.yaml")


@mistake("lacks ['audio', 'text']: ... Write `columns: ...`")
def other_columns(known):
    (known.home / "their.csv").write_text(f"path,sentence\n{known.home}/speech.wav,hello\n")
    recipe = {"stage": "align", "encoder": "tiny-random-whisper", "llm": "tiny-random-llama", "max_steps": 1}
    train(recipe, data=str(known.home / "their.csv"), output_dir=str(known.home / "other_columns"))


def quoted() -> list[str]:
    """The messages that are headings of the page."""
    return re.findall(r"^### (`+) ?(.*?) ?\1$", GUIDE, re.MULTILINE)


def test_the_page_quotes_the_messages_that_are_raised_here():
    assert [message for _, message in quoted()] == list(MISTAKES)


@pytest.mark.parametrize("message", MISTAKES)
def test_the_message_is_raised(message, known):
    pattern = ".*".join(re.escape(part) for part in message.split("..."))
    with pytest.raises((ValueError, OSError), match=f"(?s){pattern}"):
        MISTAKES[message](known)
