"""python benchmarks/word_times.py [--adapter weights/soundwave-small] [--sentences 40] [--label-peaks 0.45 ...]

How far the starts and ends of words are from the true ones. Two kinds of speech have known times:

- flite: it prints the end of each phone that it speaks (`-psdur`), and speaks the sentences of the validation set
  `synthetic` anew, each in one of its voices (`awb` was never trained on). A word is as many phones as the word alone
  has; sentences in which the counts do not add up are left out, and counted.
- joined: telephone prompts of a human voice, a dozen to a clip of half a minute and more, with 0.6 s of silence
  between them. Known are the first start and the last end of each prompt: where it is first and last louder than 40 dB
  below its loudest 10 ms.

It prints one Markdown table: median and 90th percentile of the absolute errors in milliseconds, and the median error
with its sign, for each `label_peak`. "first frame" is the start of the frame of a word's first label and the end of
that of its last label, as forced alignment gives them; "less a constant" takes the median error of these away.
`label_peak` 0.45 was chosen on other sentences (of `examples/soundwave-small/natural_texts.py`) in the voices slt, rms
and kal16.
"""

import argparse
import os
import random
import re
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import soundfile
import torch

from soundwave_hf import SoundwaveForConditionalGeneration, SoundwaveProcessor
from soundwave_hf.data.backbones import soundwave_home
from soundwave_hf.evaluation.evaluate import read_set
from soundwave_hf.evaluation.shipped import ADAPTER
from soundwave_hf.modeling.ctc_text_soundwave import bridge_of
from soundwave_hf.modeling.word_times_soundwave import align_words, written_words


RATE = 16_000
VOICES = ("slt", "rms", "kal16", "awb")
SILENCE_SECONDS = 0.6
PROMPTS_OF_A_CLIP = 12


# ---- speech with known times ----


def flite(text: str, voice: str, stretch: float, wav: str) -> list[tuple[str, float]]:
    """Speak a text into a file: its phones, each with the second at which it ends ("pau" is silence)."""
    program, environment = shutil.which("flite"), None
    if program is None:  # unpacked by examples/soundwave-small
        root = soundwave_home() / "data" / "debian" / "usr"
        program = str(root / "bin" / "flite")
        libraries = ":".join(str(path) for path in sorted((root / "lib").glob("*-linux-gnu*")))
        environment = {**os.environ, "LD_LIBRARY_PATH": libraries}
    command = [program, "-voice", voice, "-psdur", "--setf", f"duration_stretch={stretch:.3f}", "-o", wav, "-t", text]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    return [(phone, float(end)) for phone, end in (pair.split(":") for pair in printed.split())]


@cache
def count_phones(word: str) -> int:
    with tempfile.NamedTemporaryFile(suffix=".wav") as wav:
        return sum(phone != "pau" for phone, _ in flite(re.sub(r"[^\w']", "", word), "kal16", 1.0, wav.name))


def true_times(text: str, phones: list[tuple[str, float]]) -> list[tuple[float, float]] | None:
    """Start and end of each word; None where the phones of the words alone do not add up, or a word holds silence."""
    counts = [count_phones(word) for word in text.split()]
    spoken = [place for place, (phone, _) in enumerate(phones) if phone != "pau"]
    if sum(counts) != len(spoken) or min(counts) == 0:
        return None
    times, done = [], 0
    for count in counts:
        places = spoken[done : done + count]
        done += count
        if places[-1] - places[0] + 1 != count:
            return None
        times.append((phones[places[0] - 1][1] if places[0] else 0.0, phones[places[-1]][1]))
    return times


def flite_clips(sentences: int, seed: int):
    """Kind, samples, text, and the number, start and end of each word whose time is known."""
    rng, left_out = random.Random(seed), 0
    texts = [row["text"] for row in read_set("synthetic") if re.fullmatch(r"[A-Za-z' ,.?!;]+", row["text"])]
    for number, text in enumerate(texts[:sentences]):
        voice = VOICES[number % len(VOICES)]
        with tempfile.NamedTemporaryFile(suffix=".wav") as wav:
            times = true_times(text, flite(text, voice, rng.uniform(0.85, 1.15), wav.name))
            samples, _ = soundfile.read(wav.name, dtype="float32")
        if times is None:
            left_out += 1
            continue
        yield f"flite {voice}", samples, text, [(word, *time) for word, time in enumerate(times)]
    print(f"(left out, because phones do not add up: {left_out} of {sentences} sentences)\n")


def loud_seconds(samples: np.ndarray) -> tuple[float, float]:
    """Where a clip is first and last louder than 40 dB below its loudest 10 ms."""
    hop = RATE // 100
    frames = np.pad(samples, (0, -len(samples) % hop)).reshape(-1, hop)
    loudness = 10 * np.log10(np.mean(frames**2, axis=1) + 1e-12)
    loud = np.flatnonzero(loudness > loudness.max() - 40)
    return 0.01 * loud[0], 0.01 * (loud[-1] + 1)


def joined_clips(processor, clips: int):
    """As `flite_clips`, of prompts joined; only the first start and the last end of each are known."""
    # Marks that stand alone ("...") are no words of their own.
    rows = [row for row in read_set("human") if all(any(map(str.isalnum, word)) for word in row["text"].split())]
    begins = range(0, len(rows) - PROMPTS_OF_A_CLIP, PROMPTS_OF_A_CLIP)
    for begin in begins[:clips]:
        parts, text, known, seconds = [], [], [], 0.0
        for row in rows[begin : begin + PROMPTS_OF_A_CLIP]:
            samples = processor.load_clips([row["audio"]])[0]
            words = row["text"].split()
            start, end = loud_seconds(samples)
            known.append((len(text), seconds + start, None))
            known.append((len(text) + len(words) - 1, None, seconds + end))
            text += words
            parts += [samples, np.zeros(round(SILENCE_SECONDS * RATE), dtype=np.float32)]
            seconds += len(samples) / RATE + SILENCE_SECONDS
        yield "joined human prompts", np.concatenate(parts), " ".join(text), known


# ---- the measurement ----


@torch.inference_mode()
def measure(model, processor, label_peaks: list[float], samples: np.ndarray, text: str) -> dict[str, list]:
    """By each way of placing words: start and end of each word of a text, None where it has no frames."""
    features = {name: torch.from_numpy(values) for name, values in processor.log_mel([samples]).items()}
    (clip,) = model.get_ctc_clips(**features)
    words = written_words(text, bridge_of(processor.tokenizer, clip.form))
    alignment = align_words(clip.frames, [word.labels for word in words if word.labels])
    plain, place = [], 0
    for word in words:
        labels = slice(place, place + len(word.labels))
        place = labels.stop
        first, last = alignment.first_frames[labels], alignment.last_frames[labels]
        found = len(first) and first[0] >= 0
        plain.append((clip.frame_seconds * first[0], clip.frame_seconds * (last[-1] + 1)) if found else (None, None))
    found = {"first frame": plain}
    for peak in label_peaks:
        clip.label_peak = peak
        aligned = processor.align_word_timestamps(text, [clip])
        found[f"label_peak {peak:g}"] = [chunk["timestamp"] for chunk in aligned["chunks"]]
    return found


def summary(errors: list[float]) -> str:
    values = 1000 * np.array(errors)
    size = np.abs(values)
    return f"{np.median(size):.0f} / {np.quantile(size, 0.9):.0f} ({np.median(values):+.0f})"


def table(errors: dict[tuple[str, str], tuple[list[float], list[float]]]) -> str:
    lines = ["| speech | way | starts | start ms: median / 90 % (signed) | end ms |", "|---|---|---|---|---|"]
    for (kind, way), (starts, ends) in sorted(errors.items()):
        lines.append(f"| {kind} | {way} | {len(starts)} | {summary(starts)} | {summary(ends)} |")
        if way == "first frame":
            moved = [[error - np.median(errors_) for error in errors_] for errors_ in (starts, ends)]
            lines.append(f"| {kind} | less a constant | {len(starts)} | {summary(moved[0])} | {summary(moved[1])} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--adapter", type=Path, default=ADAPTER)
    parser.add_argument("--sentences", type=int, default=40)
    parser.add_argument("--joined", type=int, default=6, help="clips of joined prompts")
    parser.add_argument("--label-peaks", type=float, nargs="+", help="by default the config's")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    model = SoundwaveForConditionalGeneration.from_pretrained(str(options.adapter), dtype=torch.float32).eval()
    processor = SoundwaveProcessor.from_pretrained(str(options.adapter))
    peaks = options.label_peaks or [model.config.label_peak]
    errors, missing = {}, 0
    for kind, samples, text, known in (
        *flite_clips(options.sentences, options.seed),
        *joined_clips(processor, options.joined),
    ):
        for way, times in measure(model, processor, peaks, samples, text).items():
            starts, ends = errors.setdefault((kind, way), ([], []))
            for word, start, end in known:
                found = times[word]
                missing += found[0] is None and way == "first frame"
                if found[0] is not None:
                    starts += [found[0] - start] if start is not None else []
                    ends += [found[1] - end] if end is not None else []
    print(f"`{options.adapter}`; words without frames: {missing}\n\n{table(errors)}")


if __name__ == "__main__":
    main()
