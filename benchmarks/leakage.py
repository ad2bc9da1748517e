"""Leakage of evaluation clips by content: how many hidden copies are found, and how many other clips are reported.

python benchmarks/leakage.py clips.jsonl                    # 50 clips hidden among 1,000 others
python benchmarks/leakage.py clips.jsonl --others 5000      # among more of them
"""

import argparse
import io
import json
import random
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile

from soundwave_hf.data.clean.duplicates import AudioIndex, HeldOutTexts, LeakedAudio, LeakedText, plain_text
from soundwave_hf.data.clean.fingerprint import RATE, peaks_of
from soundwave_hf.processing.audio_soundwave import load_clip


CUT_SECONDS, LOUDER_DB, SNR_DB = 0.3, 6.0, 20.0


def encoded(samples: np.ndarray, kind: str, subtype: str) -> np.ndarray:
    """The samples after another encoding."""
    file = io.BytesIO()
    soundfile.write(file, samples, RATE, format=kind, subtype=subtype)
    return load_clip(file.getvalue(), "The copy", None, RATE, 0.0)


def noisy(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """White noise added, so many decibels below the mean power of the clip."""
    power = float(np.mean(samples**2)) * 10 ** (-SNR_DB / 10)
    return samples + rng.normal(0, power**0.5, len(samples)).astype(np.float32)


def changes(rng: np.random.Generator) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    cut, gain = int(CUT_SECONDS * RATE), 10 ** (LOUDER_DB / 20)

    def louder(samples):
        return np.clip(gain * samples, -1, 1)

    return {
        "unchanged": lambda samples: samples,
        "FLAC, 16 bits": lambda samples: encoded(samples, "FLAC", "PCM_16"),
        "Opus": lambda samples: encoded(samples, "OGG", "OPUS"),
        "MP3": lambda samples: encoded(samples, "MP3", "MPEG_LAYER_III"),
        "0.3 s cut at the start": lambda samples: samples[cut:],
        "0.3 s cut at the end": lambda samples: samples[:-cut],
        "6 dB louder": louder,
        "white noise, 20 dB SNR": lambda samples: noisy(samples, rng),
        "cut, louder, noise, MP3": lambda samples: encoded(louder(noisy(samples[cut:], rng)), "MP3", "MPEG_LAYER_III"),
    }


def read_rows(manifest: Path, count: int, least_seconds: float, seed: int) -> list[dict]:
    """Rows in random order, each text once: two recordings of a corpus may be the same clip under two names."""
    rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    by_text = {plain_text(row["text"]): row for row in rows if row["seconds"] >= least_seconds}
    chosen = [by_text[text] for text in sorted(by_text)]
    random.Random(seed).shuffle(chosen)
    if len(chosen) < count:
        raise ValueError(
            f"`{manifest}` has {len(chosen)} different clips of {least_seconds} s or more; {count} are needed."
        )
    return chosen[:count]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("manifest", type=Path, help="JSON lines with `audio`, `text` and `seconds`")
    parser.add_argument("--hidden", type=int, default=50, help="clips of the evaluation set; default: %(default)s")
    parser.add_argument("--others", type=int, default=1000, help="other training clips; default: %(default)s")
    parser.add_argument("--least-seconds", type=float, default=1.0, help="shortest clip; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng, threshold = np.random.default_rng(arguments.seed), LeakedAudio().shared
    rows = read_rows(arguments.manifest, arguments.hidden + arguments.others, arguments.least_seconds, arguments.seed)
    hidden, others = rows[: arguments.hidden], rows[arguments.hidden :]

    def samples_of(row: dict) -> np.ndarray:
        return load_clip(str(arguments.manifest.parent / row["audio"]), row["audio"], None, RATE, 0.0)

    with tempfile.TemporaryDirectory() as folder:
        evaluation = AudioIndex(Path(folder) / "evaluation.sqlite")
        training = AudioIndex(Path(folder) / "training.sqlite")
        clips = [samples_of(row) for row in hidden]
        for row, samples in zip(hidden, clips, strict=True):
            evaluation.put(row["audio"], peaks_of(samples).tobytes())
        print(f"{arguments.hidden} hidden clips, {len(others)} others, threshold {threshold}\n")
        print("| change | found | lowest score |\n|---|---|---|")
        for name, change in changes(rng).items():
            found = [evaluation.find(peaks_of(change(samples)).tobytes(), threshold) for samples in clips]
            right = sum(match == row["audio"] for (match, _), row in zip(found, hidden, strict=True))
            print(f"| {name} | {right} of {len(clips)} | {min(score for _, score in found):.2f} |", flush=True)
        alarms, doubles, highest = [], [], 0.0
        for row in others:
            peaks = peaks_of(samples_of(row)).tobytes()
            match, score = evaluation.find(peaks, threshold)
            alarms += [(row["audio"], match, score)] if match else []
            highest = max(highest, score)
            match, score = training.find(peaks, threshold)
            doubles += [(row["audio"], match, score)] if match else []
            training.put(row["audio"], peaks)
        texts = HeldOutTexts(((row["audio"], plain_text(row["text"])) for row in hidden), LeakedText().words)
        shared = [row for row in others if texts.find(plain_text(row["text"]))]
    print(f"\nfalse alarms: {len(alarms)} of {len(others)} other clips (highest score {highest:.2f})")
    print(f"other clips reported as near duplicates of each other: {len(doubles)}")
    print(f"other clips whose text repeats a hidden one: {len(shared)}")
    for one, other, score in alarms + doubles:
        print(f"  {one} and {other}: {score:.2f}")


if __name__ == "__main__":
    main()
