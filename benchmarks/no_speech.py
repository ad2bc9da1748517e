"""python benchmarks/no_speech.py [--adapter weights/soundwave-small] [--clips 10] [--seed 0] [--speech FOLDER ...]

Which clips a model would transcribe as nothing: sounds without speech, which it should, and speech, which it should
not. It prints one Markdown table, a kind of clip a row: how many clips, the share that is taken for silence, and the
no-speech probability of the CTC head over its clips, least, median and greatest. `config.no_speech_threshold` is
compared with that probability; a clip above it is silence unless it may be a single word (`no_speech_soundwave.py`).
`--threshold` tries another one.

Sounds are made here, from a seed. Speech is what the folders of `--speech` hold: as it is, 60 dB softer (rounded to 16
bits), and in white, pink or brown noise, 20 and 10 dB below the speech. Without a folder it is the validation sets of
`soundwave-hf evaluate`, as far as they are there: look at these last, and choose nothing by them.
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from soundwave_hf import SoundwaveForConditionalGeneration, SoundwaveProcessor
from soundwave_hf.evaluation.evaluate import SETS, read_set
from soundwave_hf.evaluation.shipped import ADAPTER


RATE = 16_000
NOISES = {"white": 0, "pink": 1, "brown": 2}  # the power falls with so many powers of the frequency
ENDINGS = {".flac", ".wav", ".ogg", ".mp3"}


# ---- sounds without speech, each of so many samples ----


def noise(rng: np.random.Generator, samples: int, power: float) -> np.ndarray:
    """Noise of unit variance whose power falls with a power of the frequency."""
    spectrum, frequencies = np.fft.rfft(rng.standard_normal(samples)), np.fft.rfftfreq(samples, 1 / RATE)
    coloured = np.fft.irfft(spectrum * np.maximum(frequencies, 20) ** (-power / 2), samples)
    return coloured / coloured.std()


def level(rng: np.random.Generator) -> float:
    """From 60 dB to 14 dB below full scale."""
    return 10 ** rng.uniform(-3, -0.7)


def sine(frequency: float, samples: int, phase: float = 0.0) -> np.ndarray:
    return np.sin(2 * np.pi * frequency * np.arange(samples) / RATE + phase)


def modulated(rng, samples: int) -> np.ndarray:
    """Noise whose loudness changes five times a second, by up to 34 dB."""
    gains = np.repeat(rng.uniform(0.02, 1, samples // 3200 + 1), 3200)[:samples]
    return gains * noise(rng, samples, rng.uniform(0, 2)) * level(rng)


def hum(rng, samples: int) -> np.ndarray:
    mains = rng.choice([50, 60])
    parts = [rng.uniform(0.1, 1) / k * sine(mains * k, samples, rng.uniform(0, 6)) for k in range(1, 12)]
    return sum(parts) * level(rng) + 1e-4 * noise(rng, samples, 0)


def clicks(rng, samples: int) -> np.ndarray:
    """One to twelve clicks of 6 ms, over a floor of noise."""
    sound = noise(rng, samples, 0) * 10 ** rng.uniform(-5, -2.5)
    for start in rng.integers(0, samples - 100, size=rng.integers(1, 13)):
        sound[start : start + 100] += rng.uniform(0.1, 0.9) * np.exp(-np.arange(100) / 20) * noise(rng, 100, 0)
    return sound


def chords(rng, samples: int) -> np.ndarray:
    """Major and minor chords of decaying tones with five harmonics, one every 0.2 to 1 s."""
    sound, step, decay = np.zeros(samples), int(rng.uniform(0.2, 1) * RATE), rng.uniform(0.2, 2)
    for start in range(0, samples, step):
        length, root = min(samples - start, 2 * RATE), 220 * 2 ** (rng.integers(-12, 12) / 12)
        for interval in (0, rng.choice([3, 4]), 7):
            tone = sum(sine(root * 2 ** (interval / 12) * k, length) / k**1.5 for k in range(1, 6))
            sound[start : start + length] += tone * np.exp(-np.arange(length) / RATE / decay)
    return sound / np.abs(sound).max() * level(rng)


def keyed(rng, samples: int, frequencies: tuple[float, ...], seconds: float) -> np.ndarray:
    """Tones together, on and off for so long: keys of a telephone, its ringing."""
    is_on = np.arange(samples) // int(seconds * RATE) % 2 == 0
    return is_on * sum(sine(frequency, samples) for frequency in frequencies) / 2 * level(rng)


SOUNDS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "silence": lambda rng, samples: np.zeros(samples),
    "dither": lambda rng, samples: noise(rng, samples, 0) * 10 ** rng.uniform(-5, -4),
    **{
        f"{name} noise": lambda rng, samples, power=power: noise(rng, samples, power) * level(rng)
        for name, power in NOISES.items()
    },
    "modulated noise": modulated,
    "tone": lambda rng, samples: sine(rng.uniform(60, 4000), samples) * level(rng),
    "hum": hum,
    "clicks": clicks,
    "chords": chords,
    "sweep": lambda rng, samples: (
        np.sin(2 * np.pi * np.cumsum(np.linspace(rng.uniform(100, 1000), rng.uniform(500, 4000), samples)) / RATE)
        * level(rng)
    ),
    "telephone keys": lambda rng, samples: keyed(
        rng, samples, (rng.choice([697, 770, 852, 941]), rng.choice([1209, 1336, 1477])), 0.2
    ),
    "ringing": lambda rng, samples: keyed(rng, samples, (440, 480), 0.5),
}


def sounds(clips: int, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """So many clips of each kind, 0.5 to 12 s long: kind and samples."""
    rng = np.random.default_rng(seed)
    for kind, make in SOUNDS.items():
        for _ in range(clips):
            yield kind, make(rng, int(rng.uniform(0.5, 12) * RATE)).astype(np.float32)


# ---- speech ----


def worse_speech(rng: np.random.Generator, clip: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """A clip as it is, softer, and in noise: kind and samples."""
    yield "speech", clip
    yield "speech, 60 dB softer", (np.round(clip * 1e-3 * 32767) / 32767).astype(np.float32)
    loudness = np.sqrt(np.mean(clip**2))
    for decibels in (20, 10):
        around = noise(rng, len(clip), NOISES[rng.choice(list(NOISES))]) * loudness * 10 ** (-decibels / 20)
        yield f"speech, noise {decibels} dB below", (clip + around).astype(np.float32)


def speech(folders: list[Path], processor, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """Clips of folders, each in several states; without folders, the validation sets as they are."""
    rng = np.random.default_rng(seed)
    for folder in folders:
        for path in sorted(path for path in folder.rglob("*") if path.suffix in ENDINGS):
            yield from worse_speech(rng, processor.load_clips([str(path)])[0])
    for name in () if folders else SETS:
        try:
            rows = read_set(name)
        except FileNotFoundError as error:
            print(f"(no validation set `{name}`: {error})\n")
            continue
        for row in rows:
            yield f"validation: {name}", processor.load_clips([row["audio"]])[0]


# ---- the measurement ----


@torch.inference_mode()
def judge(model, processor, clip: np.ndarray) -> tuple[float, bool]:
    """The no-speech probability of a clip, and whether it is transcribed as nothing."""
    features = {name: torch.from_numpy(values) for name, values in processor.log_mel([clip]).items()}
    audio = model.get_audio_features(**features)
    return float(audio.no_speech_probs), bool(model.model.judge_silence(audio, **features))


def table(found: dict[str, list[tuple[float, bool]]]) -> str:
    """Judgements of each kind of clip as a Markdown table."""
    lines = ["| kind | clips | silence % | least | median | greatest |", "|---|---|---|---|---|---|"]
    for kind, judged in found.items():
        probabilities, silent = zip(*judged, strict=True)
        quantiles = " | ".join(f"{value:.3f}" for value in np.quantile(probabilities, [0, 0.5, 1]))
        lines.append(f"| {kind} | {len(judged)} | {100 * np.mean(silent):.1f} | {quantiles} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--adapter", default=str(ADAPTER))
    parser.add_argument("--clips", type=int, default=10, help="of each kind of sound")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threshold", type=float, help="in place of the config's")
    parser.add_argument("--speech", type=Path, nargs="*", default=[], help="folders of clips")
    options = parser.parse_args(arguments)
    model = SoundwaveForConditionalGeneration.from_pretrained(options.adapter, dtype=torch.float32).eval()
    processor = SoundwaveProcessor.from_pretrained(options.adapter)
    if options.threshold is not None:
        model.config.no_speech_threshold = options.threshold
    found: dict[str, list[tuple[float, bool]]] = {}
    for kind, clip in (*sounds(options.clips, options.seed), *speech(options.speech, processor, options.seed)):
        found.setdefault(kind, []).append(judge(model, processor, clip))
    print(f"`{options.adapter}`, no_speech_threshold {model.config.no_speech_threshold}\n\n{table(found)}")


if __name__ == "__main__":
    main()
