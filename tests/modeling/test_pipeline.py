"""The speech recognition pipeline: long clips in pieces, batches, forms of input, bad input."""

import numpy as np
import pytest
import soundfile
from datasets import Dataset
from transformers import AutoModelForMultimodalLM, AutoProcessor, pipeline

from soundwave_hf.modeling import pipeline_soundwave
from soundwave_hf.modeling.pipeline_soundwave import SoundwaveSpeechRecognitionPipeline, cut_samples
from tests.tiny_models import save_tiny_soundwave


RATE = 16_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return str(save_tiny_soundwave(tmp_path_factory.mktemp("saved")))


@pytest.fixture(scope="module")
def transcribe(folder):
    found = pipeline("soundwave-asr", model=folder, max_new_tokens=4)
    assert type(found) is SoundwaveSpeechRecognitionPipeline
    return found


def speech(seconds: float, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(round(seconds * RATE))).astype(np.float32)


def with_pause(seconds: float, at: float) -> np.ndarray:
    samples = speech(seconds)
    samples[round((at - 0.1) * RATE) : round((at + 0.1) * RATE)] = 0
    return samples


def test_a_clip_is_cut_in_its_pauses_and_nothing_is_lost():
    samples = with_pause(3.0, at=1.7)
    pieces = cut_samples(samples, RATE, 2.0)
    assert np.array_equal(np.concatenate(pieces), samples)
    assert 1.6 * RATE <= len(pieces[0]) <= 1.8 * RATE
    assert [len(piece) for piece in cut_samples(speech(2.0), RATE, 2.0)] == [2 * RATE]
    odd = speech(7.0)[: 7 * RATE - 13]
    assert np.array_equal(np.concatenate(cut_samples(odd, RATE, 2.0)), odd)


def test_a_tail_of_a_few_milliseconds_is_joined_to_the_piece_before_it():
    samples = speech(2.05)
    samples[round(1.98 * RATE) : round(1.99 * RATE)] = 0
    assert [len(piece) for piece in cut_samples(samples, RATE, 2.0)] == [len(samples)]


def test_a_transcript_that_did_not_end_is_warned_of(folder, monkeypatch):
    warnings: list[str] = []
    monkeypatch.setattr(pipeline_soundwave.logger, "warning", warnings.append)
    transcribe = pipeline("soundwave-asr", model=folder)
    transcribe.model.generation_config.eos_token_id = 0
    transcribe(speech(0.5), max_new_tokens=2)
    assert len(warnings) == 1
    assert "The transcript of piece 0 did not end within 2 tokens" in warnings[0]


def test_a_long_piece_has_more_room_by_default(folder, monkeypatch):
    transcribe, given = pipeline("soundwave-asr", model=folder), []
    generate = transcribe.model.generate
    monkeypatch.setattr(
        transcribe.model,
        "generate",
        lambda **options: given.append(options.pop("max_new_tokens")) or generate(**options, max_new_tokens=1),
    )
    transcribe(speech(1.0))
    transcribe(speech(45.0), chunk_length_s=0)
    assert given == [256, 384]


def test_a_long_clip_is_its_pieces_transcribed_and_joined(transcribe):
    samples = with_pause(3.0, at=1.7)
    texts = [transcribe(piece)["text"] for piece in cut_samples(samples, RATE, 2.0)]
    assert len(texts) == 2
    assert transcribe(samples) == {"text": " ".join(texts)}


def test_a_batch_gives_what_each_clip_gives(transcribe):
    clips = [speech(5.0, 1), speech(0.3, 2), speech(2.5, 3)]
    alone = [transcribe(clip) for clip in clips]
    assert transcribe(clips, batch_size=4) == alone
    assert transcribe(iter(clips), batch_size=2) == alone
    assert transcribe([]) == []


def test_a_piece_is_what_generate_makes_of_a_transcription_request(folder, transcribe):
    model, processor = AutoModelForMultimodalLM.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    inputs = processor.apply_transcription_request(speech(1.0), language="fr", sampling_rate=RATE)
    ids = model.generate(**inputs, max_new_tokens=4)[0, inputs["input_ids"].shape[1] :]
    found = transcribe(speech(1.0), language="fr")
    assert found == {"text": processor.decode(ids, skip_special_tokens=True).strip()}
    assert transcribe(speech(1.0), language="fr", generate_kwargs={"max_new_tokens": 4}) == found


def test_a_clip_left_whole_is_one_prompt(transcribe):
    assert transcribe(speech(5.0), chunk_length_s=0)["text"] != transcribe(speech(5.0))["text"]


def test_every_form_of_a_clip_is_taken(transcribe, tmp_path):
    samples = speech(1.0)
    path = tmp_path / "clip.wav"
    soundfile.write(path, samples, RATE, subtype="FLOAT")
    expected = transcribe({"array": samples, "sampling_rate": RATE})
    rows = [samples, {"raw": samples, "sampling_rate": RATE}, str(path), path.read_bytes()]
    assert transcribe(rows) == [expected] * 4
    assert transcribe(Dataset.from_dict({"clip": [samples.tolist()] * 2})["clip"]) == [expected] * 2
    assert transcribe(samples.tolist()) == expected


def test_what_it_cannot_do_is_refused(transcribe):
    with pytest.raises(ValueError, match="`return_timestamps` was set, and this model gives no times"):
        transcribe(speech(1.0), return_timestamps=True)
    with pytest.raises(ValueError, match=r"\['stride_length_s'\] is nothing that this pipeline takes"):
        transcribe(speech(1.0), stride_length_s=2)
    with pytest.raises(ValueError, match="`chunk_length_s` is 0.2; give 1.0 or more, or 0 for whole clips"):
        transcribe(speech(1.0), chunk_length_s=0.2)
    with pytest.raises(FileNotFoundError, match="absent.wav"):
        transcribe("absent.wav")
