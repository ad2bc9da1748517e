"""Random changes to a clip that keep its words: speed, noise, band, room, level, masks. All follow from a seed."""

from dataclasses import dataclass

import numpy as np
import soxr


@dataclass
class Augmentation:
    """How often and how much clips are changed; with all values zero they stay as they are.

    Args:
        speed (`float`): speed and pitch change together by up to this share, up or down.
        noise (`float`): share of clips with noise added, 5 to 35 dB below the speech.
        narrow (`float`): share of clips sent through a narrow band (3 to 7 kHz).
        room (`float`): share of clips with the reverberation of a small room.
        gain (`float`): share of clips made quieter or louder, by -12 to +2 dB.
        spec_augment (`float`): share of clips with masked mel bins and frames (SpecAugment, arXiv 1904.08779).
    """

    speed: float = 0.0
    noise: float = 0.0
    narrow: float = 0.0
    room: float = 0.0
    gain: float = 0.0
    spec_augment: float = 0.0

    def __post_init__(self):
        for name, value in vars(self).items():
            if not 0 <= value <= 1:
                raise ValueError(f"augmentation `{name}` is {value}; give a share of 0 to 1.")

    @property
    def changes_samples(self) -> bool:
        """Whether clips change in another way than their level."""
        return any((self.speed, self.noise, self.narrow, self.room))

    def change_samples(self, samples: np.ndarray, sampling_rate: int, rng: np.random.Generator) -> np.ndarray:
        """Samples `(length,)` -> changed samples, of another length where the speed changed."""
        if not (self.changes_samples or self.gain):
            return samples
        if self.speed:
            pace = float(np.exp(rng.uniform(-1, 1) * np.log1p(self.speed)))
            samples = soxr.resample(samples, sampling_rate * pace, sampling_rate, quality="MQ")
        if rng.random() < self.room:
            samples = _reverberate(samples, sampling_rate, rng)
        if rng.random() < self.noise:
            samples = samples + _noise_for(samples, rng)
        if rng.random() < self.narrow:
            band = int(2 * rng.uniform(3000, 7000))
            samples = soxr.resample(soxr.resample(samples, sampling_rate, band), band, sampling_rate)
        if self.gain == 1 or rng.random() < self.gain:
            samples = samples * 10 ** rng.uniform(-0.6, 0.1)
        return np.clip(samples, -1, 1).astype(np.float32)

    def mask_features(self, features: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Log-mel `(mel_bins, mel_frames)` with up to two bands and short spans set to their mean."""
        if rng.random() >= self.spec_augment:
            return features
        features = features.copy()
        bins, frames = features.shape
        for _ in range(2):
            width = int(rng.integers(0, bins // 5))
            start = int(rng.integers(0, bins - width))
            features[start : start + width] = features.mean()
        for _ in range(1 + frames // 200):
            # 150 ms at most: a longer mask can hide a word that the transcript still has.
            width = int(rng.integers(0, min(15, 1 + frames // 10)))
            start = int(rng.integers(0, frames - width))
            features[:, start : start + width] = features.mean()
        return features


def _noise_for(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Coloured noise between white and brown, 5 to 35 dB below the speech."""
    spectrum = np.fft.rfft(rng.standard_normal(len(samples)))
    spectrum /= np.maximum(np.arange(len(spectrum)), 1) ** rng.uniform(0, 1)
    noise = np.fft.irfft(spectrum, len(samples))
    level = np.sqrt(np.mean(samples**2)) * 10 ** (-rng.uniform(5, 35) / 20)
    return noise * level / (np.sqrt(np.mean(noise**2)) + 1e-9)


def _reverberate(samples: np.ndarray, sampling_rate: int, rng: np.random.Generator) -> np.ndarray:
    """A direct path and an exponentially decaying tail of 50 to 300 ms."""
    tail = int(sampling_rate * rng.uniform(0.05, 0.3))
    impulse = rng.standard_normal(tail) * np.exp(-6.9 * np.arange(tail) / tail) * rng.uniform(0.02, 0.15)
    impulse[0] = 1.0
    size = 1 << int(np.ceil(np.log2(len(samples) + tail)))
    wet = np.fft.irfft(np.fft.rfft(samples, size) * np.fft.rfft(impulse, size), size)[: len(samples)]
    return wet * np.sqrt(np.mean(samples**2) / (np.mean(wet**2) + 1e-9))


__all__ = ["Augmentation"]
