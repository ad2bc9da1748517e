"""Examples in docstrings run as they stand there."""

import doctest
import inspect
import re

import numpy as np
import pytest
import soundfile
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForMultimodalLM, AutoProcessor

import soundwave_hf
from soundwave_hf.modeling.backbones_soundwave import load_lora
from soundwave_hf.modeling.pipeline_soundwave import SoundwaveSpeechRecognitionPipeline
from soundwave_hf.training.stages import ADAPTERS, lora_targets
from tests.tiny import tiny_tokenizer
from tests.tiny_models import MEL_BINS, save_tiny_llm, save_tiny_soundwave, save_tiny_whisper


FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
MODELS = [soundwave_hf.SoundwaveForConditionalGeneration, soundwave_hf.SoundwaveModel, soundwave_hf.SoundwaveForCTC]
DOCUMENTED = [
    soundwave_hf.SoundwaveConfig,
    soundwave_hf.SoundwaveProcessor,
    soundwave_hf.SoundwaveProcessor.apply_transcription_request,
    SoundwaveSpeechRecognitionPipeline,
    soundwave_hf.SoundwaveTrainer,
    soundwave_hf.SoundwaveSFTConfig,
    soundwave_hf.SoundwaveSFTTrainer,
    soundwave_hf.SoundwaveTrainingArguments,
    soundwave_hf.SoundwaveDataCollator,
    *MODELS,
    *(model.forward for model in MODELS),
    soundwave_hf.SoundwaveModel.get_audio_features,
    soundwave_hf.SoundwaveForConditionalGeneration.from_backbones,
    load_lora,
    soundwave_hf.StreamingTranscriber,
    soundwave_hf.transcribe_clips,
    soundwave_hf.answer_from_transcripts,
]


@pytest.fixture(scope="module")
def names(tmp_path_factory) -> dict:
    """What examples take as given."""
    folder = tmp_path_factory.mktemp("documented")
    soundfile.write(folder / "speech.wav", 0.1 * np.random.default_rng(0).standard_normal(16_000), 16_000)
    encoder = save_tiny_whisper(folder / "encoder")
    saved = str(save_tiny_soundwave(folder / "saved"))
    tokenizer = tiny_tokenizer(audio_token=None)
    llm = save_tiny_llm(folder / "llm", vocab_size=len(tokenizer), tie_word_embeddings=True)
    tokenizer.save_pretrained(llm)
    (folder / "encoder" / "preprocessor_config.json").write_text(
        f'{{"feature_extractor_type": "WhisperFeatureExtractor", "feature_size": {MEL_BINS}}}'
    )
    adapter = str(save_tiny_lora(folder / "adapter", encoder, llm))
    model, processor = AutoModelForMultimodalLM.from_pretrained(saved), AutoProcessor.from_pretrained(saved)
    return {
        "home": folder,
        "folder": saved,
        "encoder": encoder,
        "llm": llm,
        "adapter": adapter,
        "model": model,
        "processor": processor,
    }


def save_tiny_lora(folder, encoder: str, llm: str):
    """What the stages with an LLM leave. Returns the folder."""
    joined = soundwave_hf.SoundwaveForConditionalGeneration.from_backbones(encoder, llm)
    lora = LoraConfig(r=2, target_modules=lora_targets(joined.model.language_model), modules_to_save=list(ADAPTERS))
    get_peft_model(joined, lora).save_pretrained(folder)
    joined.config.save_pretrained(folder)
    soundwave_hf.SoundwaveProcessor.from_backbones(encoder, llm).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("documented", DOCUMENTED, ids=lambda documented: documented.__qualname__)
def test_the_example_runs(documented, names, monkeypatch):
    monkeypatch.chdir(names["home"])
    # The closing fence of a code block is no expected output.
    text = inspect.getdoc(documented).replace("```python", "").replace("```", "")
    example = doctest.DocTestParser().get_doctest(text, dict(names), documented.__qualname__, None, 0)
    assert example.examples
    output: list[str] = []
    failed, tried = doctest.DocTestRunner(optionflags=FLAGS).run(example, out=output.append)
    assert tried == len(example.examples)
    assert failed == 0, "".join(output)


CALLS = [
    *(model.forward for model in MODELS),
    soundwave_hf.SoundwaveModel.get_audio_features,
    soundwave_hf.SoundwaveForConditionalGeneration.from_backbones,
    soundwave_hf.SoundwaveProcessor.__call__,
    soundwave_hf.SoundwaveProcessor.apply_chat_template,
    soundwave_hf.SoundwaveProcessor.apply_transcription_request,
]


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__qualname__)
def test_a_call_says_something_of_each_argument(call):
    text = inspect.getdoc(call)
    names = [name for name in inspect.signature(call).parameters if name not in ("self", "kwargs", "fields")]
    assert [name for name in names if not re.search(rf"^ *(\w+, )*{name}(, \w+)*( \(|:)", text, re.MULTILINE)] == []


@pytest.mark.parametrize("public", soundwave_hf.__all__)
def test_each_public_name_has_a_documented_example_or_is_no_class(public):
    value = getattr(soundwave_hf, public)
    assert value in DOCUMENTED or not inspect.isclass(value)
