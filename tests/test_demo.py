"""The demo: a user's own files are checked before any model is loaded."""

import numpy as np
import pytest
import soundfile
from transformers import AutoModelForMultimodalLM, AutoProcessor

from soundwave_hf import demo as run
from tests.tiny import tiny_processor
from tests.tiny_models import save_tiny_soundwave


SAMPLING_RATE = 16_000


def sound_file(folder, samples: np.ndarray, rate: int = SAMPLING_RATE) -> str:
    path = folder / "my clip.wav"
    soundfile.write(path, samples, rate)
    return str(path)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(scale=0.1, size=shape)


@pytest.fixture
def processor_alone(monkeypatch):
    """The demo with a tiny processor and without models: loading them is an error."""

    def load_adapter():
        raise AssertionError("the models were loaded")

    monkeypatch.setattr(run, "load_processor", tiny_processor)
    monkeypatch.setattr(run, "load_adapter", load_adapter)


def test_a_file_that_fits_becomes_a_row_with_its_seconds(tmp_path, processor_alone):
    path = sound_file(tmp_path, noise(4000), rate=8000)
    assert run.file_rows([path]) == [{"audio": path, "seconds": pytest.approx(0.5)}]


def test_no_file_needs_no_processor(monkeypatch):
    monkeypatch.setattr(run, "load_processor", None)
    assert run.file_rows([]) == []


def test_a_file_that_the_model_cannot_take_fails_at_once(tmp_path, processor_alone):
    with pytest.raises(ValueError, match="lasts 20.00 ms; expected at least 40 ms"):
        run.run_demo([sound_file(tmp_path, noise(320))])


def test_a_stereo_file_is_taken(tmp_path, processor_alone):
    (row,) = run.file_rows([sound_file(tmp_path, noise(8000, 2))])
    assert row["seconds"] == 0.5


def test_a_file_that_is_no_audio_fails_at_once(tmp_path, processor_alone):
    path = tmp_path / "notes.txt"
    path.write_text("no sound")
    with pytest.raises(ValueError, match="could not be decoded"):
        run.run_demo([str(path)])


def test_a_missing_file_fails_before_anything_is_fetched(monkeypatch, tmp_path):
    monkeypatch.setattr(run, "load_processor", None)
    with pytest.raises(FileNotFoundError, match="no audio file `.*absent.wav`"):
        run.run_demo([str(tmp_path / "absent.wav")])
    with pytest.raises(FileNotFoundError, match="no audio file `.*absent.wav`"):  # one path needs no list
        run.run_demo(tmp_path / "absent.wav")


def test_a_long_file_is_transcribed_piece_by_piece_and_nothing_is_left_out(tmp_path, capsys, monkeypatch):
    folder = save_tiny_soundwave(tmp_path / "saved")
    model, processor = AutoModelForMultimodalLM.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    path = sound_file(tmp_path, noise(5 * SAMPLING_RATE))
    heard = []
    generate = model.generate
    monkeypatch.setattr(model, "generate", lambda **inputs: heard.append(inputs) or generate(**inputs))
    monkeypatch.setattr(run, "PIECE_SECONDS", 1.5)
    run.show_long_transcript(model, processor, {"audio": path, "seconds": 5.0})
    frames = sum(int(inputs["input_features_mask"].sum()) for inputs in heard)
    assert sum(len(inputs["input_ids"]) for inputs in heard) >= 4
    assert frames >= 500
    assert "5.0 s of speech in pieces of up to 1.5 s" in capsys.readouterr().out
