"""The benchmark makes the sounds that it names, and its table says what the model's own rule says."""

import numpy as np
import pytest
import soundfile

from tests.tiny import tiny_processor
from tests.tiny_models import MEL_BINS, tiny_model


def power(samples: np.ndarray, low: float, high: float) -> float:
    """Share of the power between two frequencies."""
    spectrum = np.abs(np.fft.rfft(samples)) ** 2
    frequencies = np.fft.rfftfreq(len(samples), 1 / 16_000)
    return spectrum[(frequencies >= low) & (frequencies < high)].sum() / spectrum.sum()


def test_each_kind_has_its_clips_of_half_a_second_to_twelve_and_no_value_beyond_full_scale(benchmark):
    clips = list(benchmark.sounds(2, seed=0))
    assert [kind for kind, _ in clips] == [kind for kind in benchmark.SOUNDS for _ in range(2)]
    for kind, clip in clips:
        assert 8_000 <= len(clip) <= 192_000 and clip.dtype == np.float32
        assert np.isfinite(clip).all() and bool(clip.any()) == (kind != "silence")


def test_noise_has_the_colour_of_its_name(benchmark):
    rng = np.random.default_rng(0)
    octaves = [(200, 400), (3200, 6400)]
    white, pink, brown = ([power(benchmark.noise(rng, 160_000, p), *octave) for octave in octaves] for p in (0, 1, 2))
    assert white[1] / white[0] == pytest.approx(16, rel=0.3)  # of white noise each hertz has as much
    assert pink[1] / pink[0] == pytest.approx(1, rel=0.3)  # of pink each octave
    assert brown[1] / brown[0] == pytest.approx(1 / 16, rel=0.3)


def test_the_table_counts_what_the_model_judges_silent(benchmark, tmp_path):
    model = tiny_model(no_speech_threshold=0.5)
    processor = tiny_processor(MEL_BINS)
    soundfile.write(tmp_path / "clip.wav", np.random.default_rng(1).uniform(-0.5, 0.5, 8000), 16_000)
    kinds = [kind for kind, _ in benchmark.speech([tmp_path], processor, 0)]
    assert kinds == ["speech", "speech, 60 dB softer", "speech, noise 20 dB below", "speech, noise 10 dB below"]
    model.model.ctc_head.blank_bias.data.fill_(1e4)
    probability, silent = benchmark.judge(model, processor, np.zeros(8000, dtype=np.float32))
    assert (probability, silent) == (1.0, True)
    model.model.ctc_head.blank_bias.data.fill_(-1e4)
    assert benchmark.judge(model, processor, np.zeros(8000, dtype=np.float32)) == (0.0, False)
    lines = benchmark.table({"silence": [(1.0, True), (0.5, False), (0.0, False)]}).splitlines()
    assert lines[2] == "| silence | 3 | 33.3 | 0.000 | 0.500 | 1.000 |"
