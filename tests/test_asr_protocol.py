"""Evaluation scripts written for Voxtral, Qwen3-ASR and GLM-ASR, with this model's folder in the place of theirs."""

import numpy as np
import pytest
import soundfile
import torch
from transformers import AutoModelForMultimodalLM, AutoProcessor
from transformers.models.qwen3_asr.processing_qwen3_asr import LANGUAGE_CODE_TO_NAME

from soundwave_hf.processing import ASR_QUESTION
from tests.tiny_models import save_tiny_soundwave


RATE = 16_000
PROMPT = f"<|audio|>{ASR_QUESTION}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return str(save_tiny_soundwave(tmp_path_factory.mktemp("saved")))


@pytest.fixture(scope="module")
def processor(folder):
    return AutoProcessor.from_pretrained(folder)


@pytest.fixture(scope="module")
def model(folder):
    loaded = AutoModelForMultimodalLM.from_pretrained(folder, dtype=torch.float32, device_map="cpu").eval()
    with torch.no_grad():  # a random LLM answers to its last token: let it attend to the clip
        for layer in loaded.model.language_model.layers:
            layer.self_attn.q_proj.weight.mul_(6)
            layer.self_attn.o_proj.weight.mul_(4)
    return loaded


@pytest.fixture(scope="module")
def clips() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [0.1 * generator.standard_normal(samples) for samples in (16_000, 9_600)]  # float64, as `datasets` has them


@pytest.fixture(scope="module")
def paths(clips, tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("clips")
    for index, samples in enumerate(clips):
        soundfile.write(folder / f"{index}.wav", samples, RATE, subtype="DOUBLE")
    return [str(folder / f"{index}.wav") for index in range(len(clips))]


@pytest.fixture(scope="module")
def expected(processor, model, clips) -> list[str]:
    """The transcripts, from the template and `generate` alone."""
    asked = [
        [{"role": "user", "content": [{"type": "audio", "audio": clip, "sampling_rate": RATE}, ASR_QUESTION]}]
        for clip in clips
    ]
    inputs = processor.apply_chat_template(asked, tokenize=True, return_dict=True, add_generation_prompt=True)
    ids = model.generate(**inputs, max_new_tokens=8, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    texts = processor.tokenizer.batch_decode(ids, skip_special_tokens=True)
    assert len(set(texts)) == len(clips)
    return texts


def test_the_leaderboards_script_for_voxtral(processor, model, paths, folder, expected):
    inputs = processor.apply_transcription_request(audio=paths, language="en", model_id=folder)
    inputs = inputs.to("cpu", dtype=torch.float32)
    outputs = model.generate(**inputs, max_new_tokens=8)
    assert processor.batch_decode(outputs[:, inputs.input_ids.shape[1] :], skip_special_tokens=True) == expected


def test_a_script_for_voxtral_that_gives_arrays(processor, model, clips, folder, expected):
    inputs = processor.apply_transcription_request(
        language=["en", None],
        audio=clips,
        model_id=folder,
        sampling_rate=RATE,
        format=["wav"] * len(clips),
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        padding=True,
    )
    outputs = model.generate(**inputs.to(model.device, dtype=model.dtype), max_new_tokens=8)
    assert processor.batch_decode(outputs[:, inputs.input_ids.shape[1] :], skip_special_tokens=True) == expected


def test_a_script_for_qwen3_asr(processor, model, paths, expected):
    inputs = processor.apply_transcription_request(audio=paths[0], language="English")
    inputs = inputs.to(model.device, model.dtype)
    generated = model.generate(**inputs, max_new_tokens=8)[:, inputs["input_ids"].shape[1] :]
    transcript = expected[0].strip()
    assert processor.decode(generated, return_format="transcription_only") == [transcript]
    assert processor.decode(generated[0], return_format="transcription_only") == transcript
    assert processor.decode(generated, return_format="parsed")[0] == {"language": None, "transcription": transcript}
    assert processor.decode(generated) == processor.tokenizer.batch_decode(generated)
    with pytest.raises(ValueError, match="`return_format` is 'json'; expected one of"):
        processor.decode(generated, return_format="json")


def test_the_leaderboards_script_for_glm_asr(processor, model, clips, expected):
    inputs = processor.apply_transcription_request(clips).to(model.device, dtype=model.dtype)
    outputs = model.generate(**inputs, do_sample=False, max_new_tokens=8)
    assert processor.batch_decode(outputs[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True) == expected


def test_half_precision_inputs_of_a_script_are_taken_by_a_model_in_it(folder, processor, paths):
    model = AutoModelForMultimodalLM.from_pretrained(folder, dtype=torch.bfloat16)
    inputs = processor.apply_transcription_request(audio=paths, model_id=folder).to("cpu", dtype=torch.bfloat16)
    assert inputs["input_features"].dtype == torch.bfloat16
    assert model.generate(**inputs, max_new_tokens=3).shape == (2, inputs["input_ids"].shape[1] + 3)


def test_prompts_alone_are_strings_that_the_call_takes_with_the_audio(processor, paths):
    prompts = processor.apply_transcription_request(paths, language="French", tokenize=False)
    assert [PROMPT + " The speech is in French." in prompt for prompt in prompts] == [True, True]
    inputs, whole = processor(text=prompts, audio=paths), processor.apply_transcription_request(paths, language="fr")
    assert {*inputs, "is_transcription"} == {*whole}  # a plain call may be a question
    assert all(torch.equal(value, whole[name]) for name, value in inputs.items())


def test_options_of_the_call_may_stand_where_a_script_puts_them(processor, clips):
    expected = processor.apply_transcription_request(clips, sampling_rate=8_000)["input_features"]
    for options in (
        {"audio_kwargs": {"sampling_rate": 8_000}},
        {"processor_kwargs": {"sampling_rate": 8_000}},
        {"processor_kwargs": {"audio_kwargs": {"sampling_rate": 8_000}}},
    ):
        assert torch.equal(processor.apply_transcription_request(clips, **options)["input_features"], expected)
    arrays = processor.apply_transcription_request(clips, sampling_rate=RATE, return_tensors="np")
    assert isinstance(arrays["input_ids"], np.ndarray)
    ids = processor.apply_transcription_request(clips, sampling_rate=RATE, return_dict=False)
    assert torch.equal(ids, torch.from_numpy(arrays["input_ids"]))


def test_every_language_of_qwen3_asr_is_known_by_code_and_name(processor):
    for code, name in LANGUAGE_CODE_TO_NAME.items():
        by_code, by_name = (
            processor.apply_transcription_request("a.wav", language=language, tokenize=False)
            for language in (code, name)
        )
        assert by_code == by_name
        assert (f"The speech is in {name}." in by_code[0]) is (code != "en")


def test_what_a_request_cannot_mean_is_refused(processor, clips):
    with pytest.raises(ValueError, match=r"Got 1 language\(s\) for 2 sample\(s\)"):
        processor.apply_transcription_request(clips, language=["en"])
    with pytest.raises(ValueError, match="Unsupported language: 'someone/voxtral'"):
        processor.apply_transcription_request(clips, "someone/voxtral")
    with pytest.raises(ValueError, match=r"Audio options \['pad_to_multiple_of'\] arrived"):
        processor.apply_transcription_request(clips, audio_kwargs={"pad_to_multiple_of": 480_000})
