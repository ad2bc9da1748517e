"""Time and memory of `soundwave-hf data clean` as the data grow: rows of seeded synthetic sound, 1, 4 and 16 times.

python benchmarks/cleaning.py                  # 250, 1,000 and 4,000 rows
python benchmarks/cleaning.py --rows 2000      # more of them
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile


RATE, SYLLABLE_SECONDS, SCALES = 16_000, 0.05, (1, 4, 16)
FILTERS = {"near_duplicate_text": {"similarity": 0.9}}
WORDS = 2000  # different ones


def sound(rng: np.random.Generator, seconds: float) -> np.ndarray:
    """Three tones that change twenty times a second, and noise: as many spectral peaks as speech has."""
    length, step = int(seconds * RATE), int(SYLLABLE_SECONDS * RATE)
    pitches = np.repeat(rng.uniform(200, 3500, (3, length // step + 1)), step, axis=1)[:, :length]
    samples = np.sin(2 * np.pi * np.cumsum(pitches, axis=1) / RATE).sum(axis=0) + rng.normal(0, 0.05, length)
    return (0.3 * samples / np.abs(samples).max()).astype(np.float32)


def write_rows(folder: Path, count: int, seed: int) -> float:
    """A manifest of clips of 3 to 8 s, one in twenty a copy of an earlier one. Returns: their hours."""
    rng, lines, hours = np.random.default_rng(seed), [], 0.0
    (folder / "clips").mkdir(parents=True)
    for number in range(count):
        seconds = float(rng.uniform(3, 8))
        text = " ".join(f"word{word}" for word in rng.integers(0, WORDS, int(2.5 * seconds)))
        if number % 20 == 19:
            lines.append(lines[int(rng.integers(0, number))])
        else:
            soundfile.write(folder / f"clips/{number}.flac", sound(rng, seconds), RATE)
            lines.append({"audio": f"clips/{number}.flac", "text": text, "seconds": seconds})
        hours += lines[-1]["seconds"] / 3600
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return hours


def clean_and_measure(folder: Path):
    """Clean, and print what it took as JSON."""
    import torch

    from soundwave_hf.data.clean.run import clean

    torch.set_num_threads(1)
    megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    cpu, begin = time.process_time(), time.perf_counter()
    report = clean(str(folder / "rows.jsonl"), folder / "out", FILTERS)
    found = {"seconds": time.perf_counter() - begin, "cpu_seconds": time.process_time() - cpu}
    found |= {"before": megabytes, "most": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
    print(json.dumps(found | {"kept": report["kept"]}))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=250, help="of the smallest set; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clean", metavar="FOLDER", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.clean:
        clean_and_measure(Path(arguments.clean))
        return
    print("| rows | kept | hours | seconds | CPU seconds | CPU seconds an hour of audio | most MB | at the start |")
    print("|---|---|---|---|---|---|---|---|")
    for scale in SCALES:
        with tempfile.TemporaryDirectory() as temporary:
            rows, folder = scale * arguments.rows, Path(temporary)
            hours = write_rows(folder, rows, arguments.seed)
            command = [sys.executable, __file__, "--clean", temporary]
            child = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found = json.loads(child.stdout.strip().splitlines()[-1])
        print(
            f"| {rows:,} | {found['kept']:,} | {hours:.2f} | {found['seconds']:.0f} | {found['cpu_seconds']:.0f} "
            f"| {found['cpu_seconds'] / hours:.1f} | {found['most']:.0f} | {found['before']:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
