"""The picture of a clip."""

import matplotlib
import numpy as np
import pytest
from matplotlib.image import imread

from soundwave_hf import SoundwaveForConditionalGeneration, SoundwaveProcessor
from soundwave_hf.picture import ClipPicture, Peak, draw_clip, look_at_clip, save_picture
from tests.tiny_models import save_tiny_soundwave


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = str(save_tiny_soundwave(tmp_path_factory.mktemp("saved")))
    return SoundwaveForConditionalGeneration.from_pretrained(folder).eval(), SoundwaveProcessor.from_pretrained(folder)


def noise(seconds: float) -> dict:
    samples = 0.1 * np.random.default_rng(0).standard_normal(round(16_000 * seconds)).astype(np.float32)
    return {"array": samples, "sampling_rate": 16_000}


def test_the_peaks_are_first_frames_of_runs_and_the_positions_those_that_the_llm_gets(tiny):
    model, processor = tiny
    picture = look_at_clip(noise(1.0), processor, model)
    features = processor.log_mel([picture.samples])
    audio = model.get_audio_features(**{name: _tensor(values) for name, values in features.items()})
    labels, blank = audio.ctc_best[0].tolist(), model.config.audio_token_id
    firsts = [i for i, label in enumerate(labels) if i == 0 or labels[i - 1] != label]
    expected = [round(0.04 * i + 0.02, 6) for i in firsts if labels[i] != blank]
    assert [round(peak.seconds, 6) for peak in picture.peaks] == expected and expected
    assert len(picture.kept_seconds) == audio.num_positions.item()
    assert picture.seconds == pytest.approx(1.1)  # the processor adds 0.1 s of silence
    assert all(isinstance(peak.token, str) and peak.token for peak in picture.peaks)


def test_positions_that_a_limit_takes_out_are_not_drawn(tiny, monkeypatch):
    model, processor = tiny
    free = look_at_clip(noise(1.0), processor, model)
    monkeypatch.setattr(model.generation_config, "max_positions_per_second", 2.0, raising=False)
    limited = look_at_clip(noise(1.0), processor, model)
    assert len(limited.kept_seconds) == 2 < len(free.kept_seconds)  # 28 frames of 40 ms are 1.12 s
    assert set(limited.kept_seconds) <= set(free.kept_seconds)


def _tensor(values):
    import torch

    return torch.from_numpy(values)


def test_a_minute_is_drawn_in_strips_with_each_peak_once(tiny, tmp_path):
    model, processor = tiny
    picture = look_at_clip(noise(62.0), processor, model)
    figure = draw_clip(picture)
    assert len(figure.axes) == 2 * 5  # strips of 15 s
    tokens = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert len(tokens) == len(picture.peaks)
    lines = [line for axes in figure.axes for line in axes.lines if line.get_label() == "positions"]
    assert sum(len(line.get_xdata()) for line in lines) == len(picture.kept_seconds)


def test_without_a_model_it_is_waveform_and_whispers_log_mel(tmp_path):
    picture = look_at_clip(noise(31.0))
    assert picture.log_mel.shape == (80, 3100) and picture.peaks == () and picture.kept_seconds is None
    before = dict(matplotlib.rcParams), matplotlib.get_backend(auto_select=False)
    save_picture(picture, tmp_path / "clip.png")
    assert (dict(matplotlib.rcParams), matplotlib.get_backend(auto_select=False)) == before
    height, width, _ = imread(tmp_path / "clip.png").shape
    assert width == 1320 and height > 800  # three strips


def test_hours_fit_into_a_picture():
    mel = np.zeros((4, 2 * 3600), dtype=np.float32)
    figure = draw_clip(ClipPicture(np.zeros(2 * 3600 * 10, dtype=np.float32), 10, mel, mel_seconds=1.0))
    assert len(figure.axes) == 80
    assert figure.get_size_inches().max() * 110 < 2**16  # the largest PNG that matplotlib writes


def test_tokens_with_dollar_signs_are_drawn_as_they_are(tmp_path):
    mel = np.zeros((4, 100), dtype=np.float32)
    picture = ClipPicture(np.zeros(16_000, np.float32), 16_000, mel, peaks=[Peak(0.5, "$x_")], title="$5 and $_")
    save_picture(picture, tmp_path / "clip.png")
    assert (tmp_path / "clip.png").stat().st_size > 1000


def test_a_model_needs_its_processor(tiny):
    with pytest.raises(ValueError, match="arrived without its `processor`"):
        look_at_clip(noise(1.0), model=tiny[0])


def test_without_matplotlib_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr("soundwave_hf.picture.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="needs matplotlib: `pip install"):
        draw_clip(ClipPicture(np.zeros(1600, np.float32), 16_000, np.zeros((4, 10), np.float32)))
