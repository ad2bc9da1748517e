"""Make the Spanish clips of this folder again: texts/*.csv -> clips/*.opus, train.csv, test.csv.

Run it in a checkout, with espeak-ng on the path: `python examples/spanish/make_clips.py`.
"""

import csv
import json
import os
import tempfile
from pathlib import Path

import soundfile

from soundwave_hf.data.build.run import build


HERE = Path(__file__).resolve().parent


def make(out: Path) -> None:
    """Read the texts of the current folder aloud: clips, and a CSV of `audio`, `text`, `voice` for each set."""
    (out / "clips").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as built:
        build("build.yaml", built)
        for name in ("train", "test"):
            lines = Path(built, f"{name}-00000.jsonl").read_text(encoding="utf-8").splitlines()
            rows = [json.loads(line) for line in lines]
            write_set(out, name, [row | {"audio": Path(built, row["audio"])} for row in rows])


def write_set(out: Path, name: str, rows: list[dict]) -> None:
    """One CSV with its clips. Paths in it are relative to it."""
    with open(out / f"{name}.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["audio", "text", "voice"])
        for number, row in enumerate(rows):
            clip = f"clips/{name}-{number:03}.opus"
            samples, rate = soundfile.read(row["audio"])
            soundfile.write(out / clip, samples, rate, format="OGG", subtype="OPUS", compression_level=0.95)
            table.writerow([clip, row["text"], row["voice"]])


if __name__ == "__main__":
    os.chdir(HERE)
    make(HERE)
