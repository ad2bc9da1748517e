"""Three rows of each corpus, in the layout that its makers release."""

import gzip
import json
from pathlib import Path

import numpy as np
import soundfile


RATE = 16_000
TEXTS = ("GO ON", "STOP IT", "WELL HELLO")


def ramp(seconds: float) -> np.ndarray:
    """Samples that count up, so that a test can say which ones were cut: sample n is n / 32768."""
    return np.arange(round(seconds * RATE), dtype=np.int16)


def write_clip(path: Path, seconds: float = 0.5, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, ramp(seconds), RATE, **options)
    return path


def write_librispeech(root: Path) -> Path:
    for number, text in enumerate(TEXTS):
        speaker, chapter = ("84", "121123") if number < 2 else ("174", "50561")
        folder = root / "LibriSpeech" / "dev-clean" / speaker / chapter
        write_clip(folder / f"{speaker}-{chapter}-{number:04}.flac")
        with open(folder / f"{speaker}-{chapter}.trans.txt", "a") as file:
            file.write(f"{speaker}-{chapter}-{number:04} {text}\n")
    return root


def write_common_voice(root: Path, language: str = "de") -> Path:
    folder = root / language
    lines = ["client_id\tpath\tsentence\tup_votes\tage\tgender\tlocale\n"]
    for number, text in enumerate(('Er sagte "ja', "Los", "Gut")):
        write_clip(folder / "clips" / f"common_voice_{number}.mp3", format="MP3")
        lines.append(f"s{number % 2}\tcommon_voice_{number}.mp3\t{text}\t2\t\tmale\t{language}\n")
    (folder / "train.tsv").write_text("".join(lines))
    (folder / "test.tsv").write_text("".join(lines[:2]))
    return root


def write_must_c(root: Path) -> Path:
    data = root / "en-de" / "data" / "train"
    write_clip(data / "wav" / "ted_1.wav", 1.0)
    write_clip(data / "wav" / "ted_2.wav", 0.6)
    text = data / "txt"
    text.mkdir()
    segments = [(0.25, 0.5, "ted_1"), (0.75, 0.25, "ted_1"), (0.1, 0.4, "ted_2")]
    (text / "train.yaml").write_text(
        "".join(
            f"- {{duration: {seconds}, offset: {start}, rW: 1, uW: 0, speaker_id: spk.{wav[-1]}, wav: {wav}.wav}}\n"
            for start, seconds, wav in segments
        )
    )
    (text / "train.en").write_text("Go on.\nStop it.\nWell: hello.\n")
    (text / "train.de").write_text("Weiter.\nHalt.\nNun: hallo.\n")
    return root


def write_covost2(root: Path) -> Path:
    lines = ["path\tsentence\ttranslation\tclient_id\n"]
    for number, (text, translated) in enumerate([("Oui", "Yes"), ("Non", "No"), ("Bien", "Well")]):
        write_clip(root / "clips" / f"common_voice_fr_{number}.mp3", format="MP3")
        lines.append(f"common_voice_fr_{number}.mp3\t{text}\t{translated}\tc{number}\n")
    (root / "covost_v2.fr_en.train.tsv").write_text("".join(lines))
    return root


def write_kaldi(root: Path, segments: bool = True) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    write_clip(root / "a.wav", 1.0)
    write_clip(root / "b.flac", 0.5)
    if segments:
        (root / "wav.scp").write_text(f"recA {root / 'a.wav'}\nrecB b.flac\n")
        (root / "segments").write_text("u1 recA 0.25 0.75\nu2 recA 0.75 1.0\nu3 recB 0.1 -1\n")
    else:
        (root / "wav.scp").write_text("u1 a.wav\nu2 b.flac\nu3 b.flac\n")
    (root / "text").write_text("u1 go on\nu2 stop it\nu3\n")
    (root / "utt2spk").write_text("u1 ann\nu2 ann\nu3 ben\n")
    return root


def write_lhotse(root: Path) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    sources = {"recA": write_clip(root / "a.wav", 1.0), "recB": write_clip(root / "b.flac", 0.5)}
    recordings = [lhotse_recording(name, path, 1.0 if name == "recA" else 0.5) for name, path in sources.items()]
    supervisions = [
        {"id": "u1", "recording_id": "recA", "start": 0.25, "duration": 0.5, "channel": 0, "text": "go on"},
        {"id": "u2", "recording_id": "recA", "start": 0.75, "duration": 0.25, "channel": 0, "text": "stop it"},
        {"id": "u3", "recording_id": "recB", "start": 0.0, "duration": 0.5, "channel": 0, "text": "well hello"}
        | {"language": "English", "speaker": "ben", "gender": "male"},
    ]
    write_lines(root / "mine_recordings_train.jsonl.gz", recordings)
    write_lines(root / "mine_supervisions_train.jsonl.gz", supervisions)
    return root


def lhotse_recording(name: str, path: Path, seconds: float) -> dict:
    source = {"type": "file", "channels": [0], "source": str(path)}
    return {"id": name, "sources": [source], "sampling_rate": RATE, "num_samples": round(seconds * RATE)} | {
        "duration": seconds,
        "channel_ids": [0],
    }


def write_lines(path: Path, rows: list[dict]):
    with gzip.open(path, "wt") if path.suffix == ".gz" else open(path, "w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


WRITE = {
    "librispeech": write_librispeech,
    "common_voice": write_common_voice,
    "must_c": write_must_c,
    "covost2": write_covost2,
    "kaldi": write_kaldi,
    "lhotse": write_lhotse,
}
