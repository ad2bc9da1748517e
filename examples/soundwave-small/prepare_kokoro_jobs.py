"""The texts of `training_sets.py texts` as jobs for `kokoro_gpu.py`: `python prepare_kokoro_jobs.py --turns 2`.

Phonemes are made here, where espeak is. Writes below `$SOUNDWAVE_HOME`/data/small: kokoro_jobs.jsonl.gz (one clip a
line) and kokoro_styles.npz (the style vectors of the training voices, float32 [phonemes, 256] each).
"""

import argparse
import gzip
import hashlib
import json
import random
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from kokoro_voices import (
    ENGLISH_VOICES,
    STYLE_ROWS,
    STYLE_WIDTH,
    TRAINING_VOICES,
    KokoroVoice,
    draw_voice,
    english_phonemes,
    kokoro_folder,
    phoneme_ids,
    read_vocabulary,
    training_voice,
)
from training_sets import small_folder

from soundwave_hf.atomic import atomic_file
from soundwave_hf.data.manifest import read_rows


SPEEDS = (0.85, 1.15)


def job_of(row: dict, voice: KokoroVoice, speed: float, vocabulary: dict[str, int]) -> dict:
    """A clip as a job: its line in the manifest without the seconds, the speed, and the ids of its phonemes.

    Raises: ValueError where the voice is not for training, or the text is too long for the model.
    """
    training_voice(voice.name)
    digest = hashlib.sha1(f"{row['text']}|{voice.name}|{speed}".encode()).hexdigest()[:16]
    tokens = phoneme_ids(english_phonemes(row["text"], voice.accent), vocabulary)
    clip = {"audio": f"clips/{digest[:2]}/{digest}.flac", "text": row["text"], "voice": voice.name}
    return clip | {"source": row["source"], "speed": speed, "tokens": tokens}


def jobs_of(rows: Iterable[dict], seed: int, vocabulary: dict[str, int]) -> Iterator[dict]:
    """A job for each row, its voice and speed drawn from text, place and seed.

    A text that is too long for the model is named on stderr and left out.
    """
    for number, row in enumerate(rows):
        rng = random.Random(f"{seed} {number} {row['text']}")
        try:
            yield job_of(row, draw_voice(rng), round(rng.uniform(*SPEEDS), 3), vocabulary)
        except ValueError as error:
            print(f"Left out: {row['text']!r}: {error}", file=sys.stderr, flush=True)


def write_jobs(path: Path, jobs: list[dict]) -> None:
    """One JSON line a job, compressed, put in place in one step."""
    with atomic_file(path) as part, gzip.open(part, "wt", encoding="utf-8") as lines:
        for job in jobs:
            lines.write(json.dumps(job, ensure_ascii=False, separators=(",", ":")) + "\n")


def write_styles(path: Path, model_folder: Path, phonemes: int) -> None:
    """Style vectors of the training voices for texts of 1 to `phonemes` phonemes."""
    tables = np.fromfile(model_folder / "voices.bin", dtype="<f4").reshape(-1, STYLE_ROWS, STYLE_WIDTH)
    styles = dict(zip(ENGLISH_VOICES, tables, strict=True))
    with atomic_file(path) as part, open(part, "wb") as file:
        np.savez(file, **{name: styles[name][:phonemes] for name in TRAINING_VOICES})


def prepare_jobs(turns: int, seed: int) -> Path:
    """Write jobs and styles; returns the folder. The jobs are in random order."""
    folder = small_folder()
    texts = read_rows(folder / "texts.jsonl")
    model_folder = kokoro_folder()
    jobs = list(jobs_of(turns * texts, seed, read_vocabulary(model_folder)))
    random.Random(seed).shuffle(jobs)
    write_jobs(folder / "kokoro_jobs.jsonl.gz", jobs)
    write_styles(folder / "kokoro_styles.npz", model_folder, max(len(job["tokens"]) for job in jobs))
    print(f"{len(jobs)} clips of {len(texts)} texts, {sum(len(job['tokens']) for job in jobs)} phonemes")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--turns", type=int, default=2, help="how often each text is spoken, each time by another voice"
    )
    parser.add_argument("--seed", type=int, default=0, help="of voices and speeds")
    options = parser.parse_args()
    print(f"Done: {prepare_jobs(options.turns, options.seed)}")


if __name__ == "__main__":
    main()
