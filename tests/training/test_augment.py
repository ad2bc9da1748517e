import numpy as np
import pytest

from soundwave_hf.data.tiny import make_speech
from soundwave_hf.training.augment import Augmentation


RATE = 16_000
FIELDS = ["speed", "noise", "narrow", "room", "gain", "spec_augment"]


def changed(samples: np.ndarray, seed: int = 0, **shares) -> np.ndarray:
    return Augmentation(**shares).change_samples(samples, RATE, np.random.default_rng(seed))


def band_energy(samples: np.ndarray, low: float, high: float) -> float:
    spectrum = np.abs(np.fft.rfft(samples)) ** 2
    frequency = np.fft.rfftfreq(len(samples), 1 / RATE)
    return float(spectrum[(frequency >= low) & (frequency < high)].sum())


def test_zero_shares_leave_a_clip_bit_equal():
    clip = 3 * make_speech(1.0, seed=1)  # a floating point file may go beyond 1
    assert np.abs(clip).max() > 1
    assert np.array_equal(changed(clip), clip)
    assert np.array_equal(changed(clip, spec_augment=1.0), clip)


def test_zero_shares_leave_features_bit_equal():
    features = np.random.default_rng(0).standard_normal((16, 100)).astype(np.float32)
    augmentation = Augmentation(speed=1, noise=1, narrow=1, room=1)
    assert np.array_equal(augmentation.mask_features(features, np.random.default_rng(0)), features)


@pytest.mark.parametrize("name", ["speed", "noise", "narrow", "room", "gain"])
def test_each_share_changes_the_samples(name):
    clip = make_speech(1.0, seed=1)
    result = changed(clip, **{name: 1.0})
    assert result.shape != clip.shape or np.abs(result - clip).max() > 0.01


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), float("inf")])
def test_a_share_outside_0_to_1_is_refused(name, value):
    with pytest.raises(ValueError, match=rf"augmentation `{name}` is {value}; give a share of 0 to 1"):
        Augmentation(**{name: value})


@pytest.mark.parametrize("seconds", [0.04, 0.5, 2.0])
@pytest.mark.parametrize("seed", range(5))
def test_every_change_at_once_stays_finite_and_within_full_scale(seconds, seed):
    clip = make_speech(seconds, seed)
    result = changed(clip, seed, speed=1.0, noise=1.0, narrow=1.0, room=1.0)
    assert result.dtype == np.float32 and result.ndim == 1
    assert np.isfinite(result).all() and np.abs(result).max() <= 1
    assert np.abs(result).max() > 0
    # Twice as fast at most, twice as slow at most.
    assert 0.5 * len(clip) - 1 <= len(result) <= 2 * len(clip) + 1


@pytest.mark.parametrize(
    "clip", [np.zeros(8000), np.full(8000, 0.5), np.eye(1, 8000)[0]], ids=["silence", "dc", "click"]
)
def test_clips_without_speech_stay_finite(clip):
    result = changed(clip.astype(np.float32), speed=0.2, noise=1.0, narrow=1.0, room=1.0)
    assert np.isfinite(result).all()


def test_speed_changes_the_length_by_its_share_at_most():
    clip = make_speech(1.0, seed=1)
    lengths = [len(changed(clip, seed, speed=0.1)) for seed in range(40)]
    assert RATE / 1.1 - 1 <= min(lengths) < 0.95 * RATE
    assert 1.05 * RATE < max(lengths) <= RATE * 1.1 + 1


def test_noise_is_5_to_35_decibels_below_the_speech():
    clip = make_speech(2.0, seed=1)
    for seed in range(20):
        noise = changed(clip, seed, noise=1.0) - clip
        decibels = 10 * np.log10(np.mean(clip**2) / np.mean(noise**2))
        assert 4.5 < decibels < 35.5


def test_a_narrow_band_has_nothing_above_7_kilohertz():
    clip = np.random.default_rng(0).uniform(-0.1, 0.1, 2 * RATE).astype(np.float32)
    for seed in range(10):
        result = changed(clip, seed, narrow=1.0)
        assert band_energy(result, 7100, 8000) < 1e-3 * band_energy(result, 100, 2800)
        assert band_energy(result, 2000, 2800) > 0.5 * band_energy(result, 1000, 1800)


def test_a_share_is_the_share_of_clips():
    clip = make_speech(0.2, seed=1)
    for name in ("noise", "gain"):
        assert 30 <= sum(np.abs(changed(clip, s, **{name: 0.25}) - clip).max() > 1e-4 for s in range(200)) <= 70


def test_no_other_change_scales_a_clip():
    clip = make_speech(0.2, seed=1)
    for seed in range(20):
        assert np.array_equal(changed(clip, seed, noise=1e-12, room=1e-12, narrow=1e-12), clip)
        noisy = changed(clip, seed, noise=1.0)
        assert noisy @ clip / (clip @ clip) == pytest.approx(1, abs=0.1)


def test_a_gain_is_between_minus_12_and_plus_2_decibels():
    clip = make_speech(0.2, seed=1) / 4
    decibels = [20 * np.log10(np.abs(changed(clip, s, gain=1.0)).max() / np.abs(clip).max()) for s in range(100)]
    assert -12.01 < min(decibels) < -10 and 0 < max(decibels) < 2.01


def test_the_gain_of_every_clip_is_drawn_as_it_was_before_it_had_a_name():
    clip = make_speech(0.2, seed=1)
    rng = np.random.default_rng(7)
    rng.random(), rng.random(), rng.random()  # room, noise and narrow band, of which none is wanted here
    expected = np.clip(clip * 10 ** rng.uniform(-0.6, 0.1), -1, 1).astype(np.float32)
    assert np.array_equal(changed(clip, 7, gain=1.0), expected)


def test_masks_are_two_bands_and_short_spans_of_the_mean():
    features = np.random.default_rng(0).standard_normal((80, 400)).astype(np.float32)
    mean = features.mean()
    for seed in range(20):
        masked = Augmentation(spec_augment=1.0).mask_features(features.copy(), np.random.default_rng(seed))
        hidden = masked != features
        bins, frames = hidden.all(axis=1).sum(), hidden.all(axis=0).sum()
        assert bins <= 2 * 15 and frames <= 3 * 14
        rest = hidden[~hidden.all(axis=1)][:, ~hidden.all(axis=0)]
        assert not rest.any()
        np.testing.assert_allclose(masked[hidden], mean, atol=0.02)


def test_masking_leaves_its_argument_alone():
    features = np.random.default_rng(0).standard_normal((80, 400)).astype(np.float32)
    kept = features.copy()
    masked = [Augmentation(spec_augment=1.0).mask_features(features, np.random.default_rng(s)) for s in range(3)]
    assert any(not np.array_equal(each, kept) for each in masked)
    assert np.array_equal(features, kept)


@pytest.mark.parametrize("shape", [(80, 1), (80, 4), (16, 10), (5, 5)])
def test_features_of_any_size_can_be_masked(shape):
    features = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    for seed in range(10):
        assert Augmentation(spec_augment=1.0).mask_features(features, np.random.default_rng(seed)).shape == shape
