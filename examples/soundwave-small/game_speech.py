"""Speech of actors and volunteers in games, most of it with subtitles: `python game_speech.py`.

Writes 16 kHz FLAC clips and manifest.jsonl below `$SOUNDWAVE_HOME`/data/human, from these Debian packages:

- `flight-of-the-amazon-queen`: (C) 1995 John Passfield and Steven Stamatiadis, Flight-of-the-Amazon-Queen-License.
- `beneath-a-steel-sky`: (C) Revolution Software Ltd, Beneath-a-Steel-Sky-License.
- `drascula`: (C) 1996-2008 Alcachofa Soft S.L., Drascula-License.
- `scummvm` (GPL-3+): nothing of it is kept; its program holds the code tables for the second game's subtitles.
- `warzone2100-data`: (C) 1999-2004 Eidos Interactive, 2005-2013 Warzone 2100 Project, GPL-2+; without texts.
- `tuxpaint-stamps-default`: (C) 2002-2022 Bill Kendrick, GPL-2; names of animals, letters and digits.

The licences of the first three allow free distribution of the game and of marked changes, with readme and notices, and
no fee for the game itself. All are in `usr/share/doc/*/copyright` of the packages.

`--listen 500` lets Whisper base transcribe that many more clips, in random order. A clip is left out where Whisper
heard something else and finds the subtitle unlikely. Speech without a subtitle gets Whisper's text. The run may be
stopped at any time; the same command goes on.
"""

import argparse
import fcntl
import hashlib
import io
import json
import random
import re
import signal
import sys
import time
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr
from debian_packages import debian_root
from game_archives import (
    SKY_SPEECH,
    SkyDisk,
    code_tables,
    drascula_subtitles,
    queen_subtitles,
    read_queen,
    sky_sound,
    sky_subtitles,
)
from human_speech import is_plausible
from natural_texts import held_out
from pypi_packages import check_contents
from sentences import HeldOut, dictionary_words, spoken_key
from voices import SAMPLING_RATE, clip_seconds, write_clip

from soundwave_hf.data.backbones import resolve_backbone
from soundwave_hf.data.manifest import read_rows, write_rows
from soundwave_hf.paths import soundwave_home


PACKAGES = (
    "flight-of-the-amazon-queen",
    "beneath-a-steel-sky",
    "drascula",
    "scummvm",
    "warzone2100-data",
    "tuxpaint-stamps-default",
)
QUEEN_FILE = "usr/share/scummvm/flight-of-the-amazon-queen/queen.1c"
SKY_FOLDER = "usr/share/scummvm/beneath-a-steel-sky"
DRASCULA_FOLDER = "usr/share/scummvm/drascula/en"
SCUMMVM = "usr/games/scummvm"
WARZONE_FILE = "usr/share/games/warzone2100/base.wz"
STAMPS_FOLDER = "usr/share/tuxpaint/stamps"
DIGESTS = {
    QUEEN_FILE: "cc91960d133fcd4173eda4bac304e80d2bbdbaa085640287ab9e0507bd603f67",
    f"{SKY_FOLDER}/sky.dsk": "9ef6ca3dcb6f9ceb31e950bc3a05d5105bbbb38a5e9fc9a9f6508363c87849e2",
    f"{SKY_FOLDER}/sky.dnr": "1aa426bc9b04d962c98f2c6108f770b23a45a32cb85bd4e053a6eb1779173164",
    f"{DRASCULA_FOLDER}/drascula.dat": "4ad7c24b2e642e1406fddee729159c6dfc6b1563a33bd7e421f85c4a1bd567b8",
}
EIGHT_BIT = {"game-sky": sky_sound, "game-drascula": bytes}  # games with 8-bit samples, and what finds them
EIGHT_BIT_RATE = 11_025

SECONDS = (0.5, 20.0)
CHARACTERS_A_SECOND = (3.0, 28.0)  # of subtitles; outside of it something else was said
# The actors read the subtitles; other texts may be longer than what is said.
SCRIPTED = ("game-queen", "game-sky", "game-drascula")
# A clip is left out below both: what Whisper heard is not the subtitle, and the subtitle is unlikely to Whisper.
LEAST_AGREEMENT = 0.5  # 1 - word error rate
LOWEST_SUBTITLE_LOGPROB = -3.0  # a token
LOWEST_LOGPROB = -0.2  # a token, of Whisper's text where there is no subtitle
WINDOW_MARGIN_SECONDS = 1.0
ABBREVIATIONS = frozenset(("ID", "TV", "HQ", "LINC", "VHS", "ASCII"))
NAMES = {"drascula": "Drascula", "braun": "Braun"}  # of a game whose subtitles are all in capitals


@dataclass(frozen=True)
class Line:
    """One recording of a game."""

    name: str  # of the clip, such as `queen_020006J1`
    source: str
    voice: str  # the character, or `unknown`
    subtitle: str | None  # as the game has it
    member: bytes  # of the game's data: MP3, Ogg Vorbis, 8-bit samples, or what `sky_sound` reads

    def samples(self) -> np.ndarray:
        """float32 samples at 16 kHz."""
        if self.source in EIGHT_BIT:
            sound = EIGHT_BIT[self.source](self.member)
            samples, rate = (np.frombuffer(sound, np.uint8).astype(np.float32) - 128) / 128, EIGHT_BIT_RATE
        else:
            samples, rate = soundfile.read(io.BytesIO(self.member), dtype="float32", always_2d=True)
            samples = samples.mean(axis=1)
        return np.clip(soxr.resample(samples, rate, SAMPLING_RATE), -1, 1)


# ---- the games ----


def game_packages() -> Path:
    """`debian_root()` with the packages of this file unpacked as well; the games' data compared with known hashes."""
    root = debian_root(*PACKAGES)
    check_contents(root, DIGESTS, "Debian packages")
    return root


def queen_recordings(path: Path) -> Iterator[Line]:
    """Speech of `Flight of the Amazon Queen`; sounds without a subtitle are no speech."""
    members = read_queen(path)
    for name, (text, voice) in queen_subtitles(members).items():
        yield Line(f"queen_{name}", "game-queen", voice, text, members[f"{name}.SB"])


def sky_recordings(folder: Path, program: Path, words: dict[str, str]) -> Iterator[Line]:
    """Speech of `Beneath a Steel Sky`; the introduction has no subtitles."""
    disk = SkyDisk(folder)
    subtitles = max(
        (sky_subtitles(disk, codes) for codes in code_tables(program.read_bytes())),
        key=lambda lines: share_known(" ".join(lines.values()), words),
        default={},
    )
    if share_known(" ".join(subtitles.values()), words) < 0.9:
        raise RuntimeError(f"{program} holds no code table that makes English of the subtitles in {folder}.")
    for number in sorted(set(SKY_SPEECH) & set(disk.entries)):
        yield Line(f"sky_{number}", "game-sky", "unknown", subtitles.get(number), disk.member(number))


def drascula_recordings(folder: Path) -> Iterator[Line]:
    """Speech of `Drascula`; a few lines of the cast have no subtitle of their own."""
    subtitles = drascula_subtitles((folder / "drascula.dat").read_bytes())
    for path in sorted(folder.glob("*.ALS")):
        text, voice = subtitles.get(path.stem, (None, "unknown"))
        yield Line(f"drascula_{path.stem}", "game-drascula", voice, text, path.read_bytes())


def warzone_recordings(path: Path) -> Iterator[Line]:
    """Announcements and messages of `Warzone 2100`, without subtitles; its sound effects are left out."""
    with zipfile.ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            if re.fullmatch(r"(audio/(?!sfx/)|sequenceaudio/).*\.ogg", name):
                stem = "_".join(Path(name).with_suffix("").parts[-2:])
                yield Line(f"warzone_{stem}", "game-warzone", "unknown", None, archive.read(name))


def stamp_recordings(folder: Path) -> Iterator[Line]:
    """English descriptions of Tux Paint's stamps; the text is the first line of the stamp's text file."""
    for ending, voice in (("_desc", "tuxpaint"), ("_en_GB", "tuxpaint-british")):
        for path in sorted(folder.rglob(f"*{ending}.ogg")):
            text = path.with_name(f"{path.stem.removesuffix(ending)}.txt")
            if text.is_file():
                name = "_".join(path.relative_to(folder).with_suffix("").parts[-2:])
                first = text.read_text(encoding="utf-8").partition("\n")[0]
                yield Line(f"stamp_{name}", "game-stamps", voice, first, path.read_bytes())


def recordings(root: Path, words: dict[str, str]) -> list[Line]:
    """All recordings. Args: root: as `game_packages` gives it."""
    return [
        *queen_recordings(root / QUEEN_FILE),
        *sky_recordings(root / SKY_FOLDER, root / SCUMMVM, words),
        *drascula_recordings(root / DRASCULA_FOLDER),
        *warzone_recordings(root / WARZONE_FILE),
        *stamp_recordings(root / STAMPS_FOLDER),
    ]


def share_known(text: str, words: Iterable[str]) -> float:
    """Share of the words of a text that are known; 0 for no words."""
    found = re.findall(r"[a-z]+(?:'[a-z]+)?", text.lower())
    return sum(word in words or word.removesuffix("'s") in words for word in found) / max(1, len(found))


# ---- subtitles as normal text ----


def game_words(subtitles: Iterable[str], words: dict[str, str]) -> dict[str, str]:
    """Spelling by lower-case word: `words`, and what the games write in small letters or with one capital."""
    forms: dict[str, Counter] = {}
    for text in subtitles:
        for word in re.findall(r"(?<=[a-z] )[A-Za-z][a-z']*[a-z]", text):
            forms.setdefault(word.lower(), Counter())[word] += 1
    return {word: counts.most_common(1)[0][0] for word, counts in forms.items()} | words


def plain_subtitle(text: str, words: dict[str, str]) -> str | None:
    """A subtitle as one writes: no emphasis in capitals, no trailing dots; None where marks stand for other sounds.

    Args: words: spelling by lower-case word.
    """
    text = re.sub(r"\s+-+\s+", ", ", text.replace('"', ""))
    text = re.sub(r"\.{2,}(?=[?!])", "", text).strip(" .-,")
    text = re.sub(r"\s*\.{2,}\s*(?=[A-Z](?!'|\b))", ". ", text)
    text = re.sub(r",?\s*\.{2,}\s*", ", ", text)
    text = re.sub(r"\b[A-Z][A-Z']*[A-Z]\b|\bA(?= [A-Z]{2})", lambda found: without_emphasis(found[0], words), text)
    text = re.sub(r"([?!])[?!]+", r"\1", re.sub(r"\s+", " ", text)).strip(" ,:-")
    if not re.fullmatch(r"[A-Za-z][A-Za-z ,.?!:;'-]*", text):
        return None
    text = re.sub(r"(?<=[.?!] )[a-z]", lambda found: found[0].upper(), text[0].upper() + text[1:])
    return text if text[-1] in ".?!" else text.rstrip(" ,:;-") + "."


def without_emphasis(word: str, words: dict[str, str]) -> str:
    """A word in capitals as it is written elsewhere."""
    if word in ABBREVIATIONS:
        return word
    if word.startswith("I'"):
        return "I" + word[1:].lower()
    stem, mark, ending = word.lower().partition("'")
    return words.get(word.lower()) or words.get(stem, stem) + mark + ending


def fits(text: str, seconds: float, words: dict[str, str]) -> bool:
    """Whether a text can be what is said in a clip: its rate, and at least half of its words are known."""
    low, high = CHARACTERS_A_SECOND
    return low <= len(text) / seconds <= high and share_known(text, words) >= 0.5


# ---- what Whisper hears ----


def without_loop(heard: list[str], length: int) -> list[str]:
    """Words without the repetitions at their end that Whisper makes after short clips.

    Args: length: least number of words that stay.
    """
    plain = [re.sub(r"\W", "", word).lower() for word in heard]
    for period in range(max(1, length), len(heard)):
        again = [plain[i % period] for i in range(len(plain))]
        if plain[:-1] == again[:-1] and again[-1].startswith(plain[-1]):  # the last word may be cut off
            return heard[:period]
    return heard


def agreement(subtitle: str, heard: str) -> float:
    """1 - word error rate of what Whisper heard against the subtitle, at least 0; loops do not count."""
    from soundwave_hf.evaluation.metrics import word_error_rate

    said = spoken_key(subtitle).split()
    found = spoken_key(heard).split()
    if not said or not found:
        return 0.0
    readings = (found, without_loop(found, min(len(said), 4)))
    rates = [word_error_rate([" ".join(said)], [" ".join(words)], normalize=False) for words in readings]
    return max(0.0, 1.0 - min(rates))


class ShortListener:
    """Whisper base on windows as short as the clip, because 30 s of silence take most of the time."""

    def __init__(self):
        from transformers import WhisperForConditionalGeneration, WhisperProcessor

        folder = resolve_backbone("openai/whisper-base")
        self.model = WhisperForConditionalGeneration.from_pretrained(folder).eval()
        self.model.generation_config.max_length = None  # `hear` limits the new tokens
        self.processor = WhisperProcessor.from_pretrained(folder)
        self.positions = self.model.model.encoder.embed_positions.weight.detach().clone()

    def set_window(self, positions: int) -> None:
        import torch

        self.model.config.max_source_positions = self.model.model.encoder.config.max_source_positions = positions
        self.model.model.encoder.embed_positions = torch.nn.Embedding.from_pretrained(self.positions[:positions])

    def hear(self, samples: np.ndarray, subtitle: str | None) -> dict:
        """Greedy transcript, and the mean log-probability a token of the subtitle (of the transcript without one)."""
        import torch

        frames = min(3000, 50 * int(np.ceil(2 * (len(samples) / SAMPLING_RATE + WINDOW_MARGIN_SECONDS))))
        self.set_window(frames // 2)
        inputs = self.processor(
            samples, sampling_rate=SAMPLING_RATE, return_tensors="pt", max_length=frames * SAMPLING_RATE // 100
        )
        with torch.inference_mode():
            most = 8 + round(7 * len(samples) / SAMPLING_RATE)
            ids = self.model.generate(**inputs, language="en", task="transcribe", do_sample=False, max_new_tokens=most)
            heard = self.processor.batch_decode(ids, skip_special_tokens=True)[0].strip()
            labels = torch.tensor([self.processor.tokenizer(f" {subtitle or heard}").input_ids])
            decoder_input_ids, targets = labels[:, :-1], labels[:, 1:].clone()
            targets[:, :3] = -100  # language, task and no-timestamps tokens say nothing about the words
            loss = self.model(**inputs, decoder_input_ids=decoder_input_ids, labels=targets).loss
        return {"heard": heard, "logprob": round(-float(loss), 4)}


def listen(folder: Path, lines: list[Line], words: dict[str, str], most: int) -> None:
    """Add what Whisper hears in up to `most` more clips to `heard.jsonl`."""
    path = folder / "heard.jsonl"
    known = {row["clip"] for row in read_rows(path)} if path.is_file() else set()
    left = [line for line in lines if line.name not in known and clip_path(folder, line).is_file()]
    left.sort(key=lambda line: hashlib.sha1(line.name.encode()).hexdigest())
    listener, started = ShortListener(), time.monotonic()
    with open(path, "a", encoding="utf-8") as output:
        for number, line in enumerate(left[:most], start=1):
            samples = soundfile.read(clip_path(folder, line), dtype="float32")[0]
            subtitle = plain_subtitle(line.subtitle, words) if line.subtitle else None
            output.write(json.dumps({"clip": line.name, **listener.hear(samples, subtitle)}) + "\n")
            output.flush()
            if number % 100 == 0:
                print(f"{number} clips in {time.monotonic() - started:.0f} s, {len(left)} to hear", flush=True)


# ---- clips and rows ----


def clip_path(folder: Path, line: Line) -> Path:
    return folder / "clips" / f"{line.name}.flac"


def write_clips(folder: Path, lines: list[Line]) -> None:
    """Write the clips that are missing, 0.5 to 20 s long; the same recording once."""
    seen: set[bytes] = set()
    for line in lines:
        digest = hashlib.sha1(line.member).digest()
        if digest in seen or clip_seconds(clip_path(folder, line)) is not None:
            seen.add(digest)
            continue
        seen.add(digest)
        samples = line.samples()
        if SECONDS[0] <= len(samples) / SAMPLING_RATE <= SECONDS[1]:
            write_clip(clip_path(folder, line), samples)


def manifest_row(line: Line, seconds: float, heard: dict | None, words: dict[str, str]) -> dict | None:
    """The row of a clip, or None where its text is not to be trusted."""
    row = {"audio": f"clips/{line.name}.flac", "text": None, "seconds": round(seconds, 3)}
    row |= {"source": line.source, "voice": line.voice, "label": "subtitle", "logprob": None, "agreement": None}
    if heard:
        row["logprob"] = heard["logprob"]
    if line.subtitle:
        row["text"] = plain_subtitle(line.subtitle, words)
        if row["text"] and heard:
            row["agreement"] = round(agreement(row["text"], heard["heard"]), 3)
            if row["agreement"] < LEAST_AGREEMENT and row["logprob"] < LOWEST_SUBTITLE_LOGPROB:
                return None
        if line.source not in SCRIPTED and row["agreement"] != 1.0:
            return None
    elif heard and heard["logprob"] >= LOWEST_LOGPROB:
        text = plain_subtitle(" ".join(without_loop(heard["heard"].split(), 2)), words)
        if text and is_plausible(text, seconds):
            row |= {"text": text, "label": "whisper-base"}
    return row if row["text"] and fits(row["text"], seconds, words) else None


def write_manifest(folder: Path, lines: list[Line], words: dict[str, str], kept_apart: HeldOut) -> list[dict]:
    """Write the rows of the clips in random order; returns them."""
    path = folder / "heard.jsonl"
    heard = {row["clip"]: row for row in read_rows(path)} if path.is_file() else {}
    rows = []
    for line in lines:
        seconds = clip_seconds(clip_path(folder, line))
        row = manifest_row(line, seconds, heard.get(line.name), words) if seconds else None
        if row and not kept_apart.repeats(row["text"]):
            rows.append(row)
    random.Random(0).shuffle(rows)
    write_rows(folder / "manifest.jsonl", rows)
    return rows


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Hold the folder for this process.

    Raises: RuntimeError where another process works in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RuntimeError(f"Another process works in {folder}. Let it end, or stop it first.") from error
        yield


def make_game_speech(most_to_hear: int) -> Path:
    """Make clips and manifest; returns their folder."""
    folder = soundwave_home() / "data" / "human"
    with only_one(folder):
        root = game_packages()
        dictionary = dictionary_words(root / "usr/share/dict/american-english")
        lines = recordings(root, dictionary)
        words = game_words((line.subtitle for line in lines if line.subtitle), dictionary | NAMES)
        write_clips(folder, lines)
        kept_apart = held_out(soundwave_home() / "data" / "small")
        try:
            if most_to_hear:
                listen(folder, lines, words, most_to_hear)
        finally:
            print_summary(write_manifest(folder, lines, words, kept_apart))
    return folder


def print_summary(rows: list[dict]) -> None:
    """Clips, hours and agreement by source."""
    for source in sorted({row["source"] for row in rows}):
        found = [row for row in rows if row["source"] == source]
        checked = [row["agreement"] for row in found if row["agreement"] is not None]
        hours = sum(row["seconds"] for row in found) / 3600
        mean = f"{np.mean(checked):.3f} of {len(checked)} clips" if checked else "not measured"
        print(f"{source}: {len(found)} clips, {hours:.2f} h, mean agreement {mean}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--listen", type=int, default=0, help="clips that Whisper transcribes in this run")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("Stopped; the same command goes on from here."))
    print(f"Done: {make_game_speech(options.listen)}")


if __name__ == "__main__":
    main()
