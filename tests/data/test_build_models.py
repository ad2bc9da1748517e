"""What needs a model: word times from the CTC head, and tokens for the labels of sounds."""

import json

import numpy as np
import pytest
import soundfile
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from soundwave_hf import SoundwaveForConditionalGeneration, SoundwaveProcessor
from soundwave_hf.data.build.draws import NotBuilt
from soundwave_hf.data.build.grounding import with_word_times, words_of
from soundwave_hf.data.build.run import build
from soundwave_hf.data.build.vocabulary import add_sound_tokens
from soundwave_hf.data.tiny import write_tiny_llm, write_tiny_whisper
from soundwave_hf.processing.text_soundwave import as_written
from tests.data.build_rows import clip, write_source
from tests.tiny_models import save_tiny_soundwave


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> str:
    return str(save_tiny_soundwave(tmp_path_factory.mktemp("tiny") / "model"))


@pytest.fixture(scope="module")
def noise(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("noise") / "noise.wav"
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(24_000), 16_000)
    return str(path)


def test_the_ctc_head_gives_word_times(saved, noise):
    model = SoundwaveForConditionalGeneration.from_pretrained(saved).eval()
    processor = SoundwaveProcessor.from_pretrained(saved)
    row = with_word_times({"audio": noise, "text": "Hi you.", "source": "s"}, model, processor)
    assert row["seconds"] == 1.5 and row["source"] == "s"
    words = words_of(row, "row 0")
    assert [word.text for word in words] == ["Hi", "you."]
    aligned = [word for word in words if word.start is not None]
    assert aligned and all(0 <= word.start < word.end <= 1.5 for word in aligned)
    with pytest.raises(NotBuilt, match="expected a transcript"):
        with_word_times({"audio": noise, "text": ""}, model, processor)


def test_a_recipe_makes_word_times_and_asks_for_phrases(saved, noise, tmp_path):
    rows = [{"audio": noise, "text": f"It is {word}.", "emotion": "calm"} for word in ("a", "my", "so")]
    source = write_source(tmp_path, "speech", rows)
    steps = [
        {"build": "word_times", "name": "timed", "data": source, "model": saved},
        {"build": "tasks", "name": "asked", "from": "timed", "tasks": ["grounding", "emotion"], "forms": ["bare"]},
    ]
    build({"steps": steps}, tmp_path / "out")
    (manifest,) = (tmp_path / "out").glob("timed-*.jsonl")
    timed = [json.loads(line) for line in manifest.open()]
    assert timed[1]["text"] == "It is my." and timed[1]["audio"] == noise and timed[1]["emotion"] == "calm"
    assert [word["text"] for word in timed[1]["words"]] == ["It", "is", "my."]
    (manifest,) = (tmp_path / "out").glob("asked-*.jsonl")
    asked = [json.loads(line) for line in manifest.open()]
    assert {row["task"] for row in asked} == {"grounding", "emotion"}


# ---- tokens for labels ----


@pytest.fixture(scope="module")
def llm(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("llm") / "tiny"
    write_tiny_llm(folder)
    return str(folder)


def test_a_label_becomes_one_token_of_the_llm(llm, tmp_path):
    labels = ["Throat clearing", "throat_clearing", "cough"]
    assert add_sound_tokens(llm, labels, tmp_path / "llm") == ["<throat_clearing>", "<cough>"]
    before, after = AutoTokenizer.from_pretrained(llm), AutoTokenizer.from_pretrained(tmp_path / "llm")
    text = as_written("Hello <throat_clearing> there <cough> you")
    ids = after.encode(text)
    assert len(after) == len(before) + 2 and after.decode(ids) == text
    assert len(before.encode(text)) - len(ids) == len(" <throat_clearing>") + len(" <cough>") - 2
    assert after.encode("no label") == before.encode("no label")
    assert "<cough>" not in after.all_special_tokens


def test_the_new_rows_are_near_the_mean_of_their_words(llm, tmp_path):
    add_sound_tokens(llm, ["cough", "throat clearing"], tmp_path / "llm")
    before, after = AutoModelForCausalLM.from_pretrained(llm), AutoModelForCausalLM.from_pretrained(tmp_path / "llm")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "llm")
    old, new = before.get_input_embeddings().weight, after.get_input_embeddings().weight
    assert torch.equal(new[: len(old)], old) and len(new) == len(old) + 2
    mean = old[tokenizer.encode(" cough")].mean(dim=0)
    place = tokenizer.convert_tokens_to_ids(" <cough>")
    assert 0 < (new[place] - mean).norm() < 0.05 * mean.norm()
    assert after.get_output_embeddings().weight is new  # still tied
    assert after.config.vocab_size == len(new)


def test_a_separate_head_gets_rows_of_its_own(llm, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(llm, tie_word_embeddings=False)
    with torch.no_grad():
        model.lm_head.weight.normal_()
    model.save_pretrained(tmp_path / "untied")
    AutoTokenizer.from_pretrained(llm).save_pretrained(tmp_path / "untied")
    add_sound_tokens(str(tmp_path / "untied"), ["cough"], tmp_path / "llm")
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "llm")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "llm")
    place, ids = tokenizer.convert_tokens_to_ids(" <cough>"), tokenizer.encode(" cough")
    head, mean = after.lm_head.weight, model.lm_head.weight[ids].mean(dim=0)
    assert (head[place] - mean).norm() < 0.05 * mean.norm()
    assert not torch.equal(head[place], after.get_input_embeddings().weight[place])


def test_the_ctc_head_of_stage_one_has_the_new_label(llm, tmp_path):
    from soundwave_hf import SoundwaveForCTC

    write_tiny_whisper(tmp_path / "whisper")
    add_sound_tokens(llm, ["cough"], tmp_path / "llm")
    model = SoundwaveForCTC.from_backbones(str(tmp_path / "whisper"), str(tmp_path / "llm"))
    processor = SoundwaveProcessor.from_backbones(str(tmp_path / "whisper"), str(tmp_path / "llm"))
    place = processor.tokenizer.convert_tokens_to_ids(" <cough>")
    assert place < model.config.text_config.vocab_size and place != processor.audio_token_id


def test_labels_that_are_there_stay(llm, tmp_path):
    add_sound_tokens(llm, ["cough"], tmp_path / "one")
    assert add_sound_tokens(str(tmp_path / "one"), ["cough", "sneeze"], tmp_path / "two") == ["<sneeze>"]


def test_a_used_folder_and_missing_labels_are_refused(llm, tmp_path):
    with pytest.raises(FileExistsError, match="exists and is not an empty folder"):
        add_sound_tokens(llm, ["cough"], llm)
    with pytest.raises(ValueError, match="There are no labels"):
        add_sound_tokens(llm, [], tmp_path / "llm")
    assert not (tmp_path / "llm").exists()


def test_a_recipe_writes_the_llm_too(llm, tmp_path):
    speech = write_source(tmp_path, "speech", [{"audio": clip(0.3), "text": text} for text in "ab"])
    sounds = write_source(tmp_path, "sounds", [{"audio": clip(0.3), "label": "cough"}])
    step = {"build": "sounds", "data": speech, "sounds": sounds, "add_tokens_to": llm}
    build({"steps": [step]}, tmp_path / "out")
    assert " <cough>" in AutoTokenizer.from_pretrained(tmp_path / "out" / "sounds_llm").get_vocab()
