"""What version 0.1.0 wrote and imported goes on working. `fixtures/0.1` was written by it, on transformers 5.23.

Where something has to go, its row here goes with it, and the error that takes its place says in one sentence what
replaced it.
"""

import importlib
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForMultimodalLM, AutoProcessor

import soundwave_hf
from soundwave_hf import SoundwaveForConditionalGeneration, SoundwaveProcessor
from soundwave_hf.data.tiny import make_speech, write_tiny_llm, write_tiny_whisper
from soundwave_hf.training.run import read_recipes


WRITTEN = Path(__file__).parent / "fixtures" / "0.1"
EXPECTED = json.loads((WRITTEN / "expected.json").read_text(encoding="utf-8"))
PUBLIC = [
    "STAGES",
    "SoundwaveCollator",
    "SoundwaveConfig",
    "SoundwaveForCTC",
    "SoundwaveForConditionalGeneration",
    "SoundwaveModel",
    "SoundwaveProcessor",
    "SoundwaveSFTTrainer",
    "SoundwaveTrainer",
    "SoundwaveTrainingArguments",
    "run_stage",
]
# What README, docs, model card and docstrings of 0.1.0 name.
IMPORTS = [
    ("evaluation.shipped", "load_adapter"),
    ("modeling.backbones_soundwave", "adapter_fields"),
    ("modeling.backbones_soundwave", "load_lora"),
    ("modeling.configuration_soundwave", "SoundwaveConfig"),
    ("convert", "convert_published"),
    ("modeling.ctc_soundwave", "large_vocabulary_ctc"),
    ("modeling.generation_soundwave", "SoundwaveGenerationMixin"),
    ("modeling.modeling_soundwave", "SoundwaveForConditionalGeneration"),
    ("modeling.pipeline_soundwave", "SoundwaveSpeechRecognitionPipeline"),
    ("modeling.warm_start_soundwave", None),
    ("processing.processing_soundwave", "SoundwaveProcessor"),
    ("evaluation.evaluate", None),
    ("evaluation.metrics", None),
    ("hub", "merge_adapter"),
    ("demo.run", None),
    ("data.backbones", None),
    ("training.mixture", "MixtureStream"),
    ("training.plan", None),
    ("training.run", "read_rows"),
    ("training.run", "run_recipe"),
    ("training.stages", "STAGES"),
    ("training.stages", "check_trainable"),
    ("training.stages", "freeze_all_but"),
]


@pytest.fixture(scope="module")
def backbones(tmp_path_factory) -> tuple[str, str]:
    """The backbones that the folders were trained with, made again."""
    folder = tmp_path_factory.mktemp("backbones")
    write_tiny_whisper(folder / "tiny-random-whisper")
    write_tiny_llm(folder / "tiny-random-llama")
    return str(folder / "tiny-random-whisper"), str(folder / "tiny-random-llama")


def assert_as_before(model, processor):
    """The same prompt, positions and answer as 0.1.0 had for a second of tiny speech."""
    expected = EXPECTED["instruct"]
    inputs = processor.apply_transcription_request(make_speech(1.0, seed=0), sampling_rate=16000)
    assert inputs["input_ids"][0].tolist() == expected["input_ids"]
    with torch.no_grad():
        assert model(**inputs).num_positions.tolist() == expected["num_positions"]
    ids = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    assert ids[0, inputs["input_ids"].shape[1] :].tolist() == expected["ids"]


def test_public_names():
    assert set(PUBLIC) <= set(soundwave_hf.__all__)
    for name in PUBLIC:
        assert getattr(soundwave_hf, name) is not None


@pytest.mark.parametrize(("module", "name"), IMPORTS)
def test_documented_imports(module, name):
    found = importlib.import_module(f"soundwave_hf.{module}")
    assert name is None or hasattr(found, name)


def test_adapters_with_lora(backbones):
    adapter = str(WRITTEN / "instruct")
    model = SoundwaveForConditionalGeneration.from_backbones(*backbones, adapter=adapter)
    assert_as_before(model, SoundwaveProcessor.from_backbones(*backbones, adapter=adapter))


def test_the_adapter_of_stage_one(backbones):
    adapter = str(WRITTEN / "align")
    model = SoundwaveForConditionalGeneration.from_backbones(*backbones, adapter=adapter)
    processor = SoundwaveProcessor.from_backbones(*backbones, adapter=adapter)
    inputs = processor.apply_transcription_request(make_speech(1.0, seed=0), sampling_rate=16000)
    features = {name: inputs[name] for name in ("input_features", "input_features_mask")}
    with torch.no_grad():
        loss = model.get_audio_features(**features, ctc_labels=torch.tensor([[40, 41, 42]])).ctc_loss
    assert loss.item() == pytest.approx(EXPECTED["align"]["ctc_loss"], rel=1e-4)


def test_a_merged_checkpoint_and_its_processor():
    folder = WRITTEN / "merged"
    assert_as_before(AutoModelForMultimodalLM.from_pretrained(folder), AutoProcessor.from_pretrained(folder))


@pytest.mark.parametrize("path", sorted(WRITTEN.glob("*/*.yaml")), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_recipes(path, tmp_path, monkeypatch):
    monkeypatch.setenv("SOUNDWAVE_HOME", str(tmp_path))
    for recipe, arguments in read_recipes(path):
        assert recipe.stage in soundwave_hf.STAGES
        assert arguments.activation_checkpointing is False  # `gradient_checkpointing: false` in some
