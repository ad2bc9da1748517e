"""Small clips, rows and sources for the tests of builders."""

import json
from pathlib import Path

import numpy as np
import soundfile


RATE = 16_000


def tone(seconds: float, level: float = 0.1, rate: int = RATE, hertz: float = 200.0) -> np.ndarray:
    """A sine of that root mean square."""
    time = np.arange(round(seconds * rate)) / rate
    return (level * np.sqrt(2) * np.sin(2 * np.pi * hertz * time)).astype(np.float32)


def clip(seconds: float, level: float = 0.1, rate: int = RATE) -> dict:
    return {"array": tone(seconds, level, rate), "sampling_rate": rate}


def write_source(folder: Path, name: str, rows: list[dict]) -> str:
    """A manifest; clips that are samples become WAV files. Returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, row in enumerate(rows):
        if isinstance(row.get("audio"), dict):
            path = f"{name}-{number}.wav"
            soundfile.write(folder / path, row["audio"]["array"], row["audio"]["sampling_rate"], subtype="FLOAT")
            row = {**row, "audio": path}
        lines.append(json.dumps(row) + "\n")
    path = folder / f"{name}.jsonl"
    path.write_text("".join(lines), encoding="utf-8")
    return str(path)
