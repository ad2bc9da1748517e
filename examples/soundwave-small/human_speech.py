"""Human speech: the Asterisk telephone prompts (one voice, split by name) and five clips of a LibriVox audiobook."""

import hashlib
import json
import re
from functools import cache
from pathlib import Path

import numpy as np
from debian_packages import debian_root
from sentences import HeldOut, normalized, spell_numbers
from voices import SAMPLING_RATE, clip_seconds, write_clip


ASTERISK_FOLDER = "usr/share/asterisk/sounds/en_US_f_Allison"
LIBRIVOX_FOLDER = "usr/share/pocketsphinx/test/data/librivox"
UNUSED, VALIDATION, TRAINING = 0, 1, 2  # remainder of the split rule

LONGEST_TRAINING_SECONDS = 30.0  # one window of the Whisper encoder; validation takes clips of any length


def prompt_name(path: Path, voice_folder: Path) -> str:
    """Name of a prompt: its path below the voice's folder, `/` as `_`, without ending."""
    return path.relative_to(voice_folder).with_suffix("").as_posix().replace("/", "_")


def split_remainder(name: str) -> int:
    """The split rule: sha1 of the name, as a number, modulo 3 (0 unused, 1 validation, 2 training)."""
    return int(hashlib.sha1(name.encode()).hexdigest(), 16) % 3


@cache
def asterisk_transcripts() -> dict[str, str]:
    """Transcripts of prompts by name, as published (remainder 0 is not in the file)."""
    path = Path(__file__).parent / "asterisk_en.json"
    return json.loads(path.read_text(encoding="utf-8"))["transcripts"]


def librivox_transcripts() -> list[str]:
    """Transcripts of the LibriVox validation clips."""
    from librivox import CLIPS

    return [clip.text for clip in CLIPS]


def spoken_prompt(text: str) -> str:
    """A prompt's transcript as the voice says it: without leading dots, numbers and keys in words."""
    text = re.sub(r"\s*\.\.\.\s*", " ", text).strip()
    text = re.sub(r"\*", "star", re.sub(r"#", "pound", text))
    return spell_numbers(re.sub(r"\s+", " ", text))


@cache
def held_out_texts() -> frozenset[str]:
    """Normalised texts no training clip may have: the validation prompts and the LibriVox clips."""
    prompts = [text for name, text in asterisk_transcripts().items() if split_remainder(name) != TRAINING]
    texts = prompts + [spoken_prompt(text) for text in prompts] + librivox_transcripts()
    return frozenset(normalized(text) for text in texts)


def unused_prompt_words(names: list[str]) -> frozenset[str]:
    """Texts of unused prompts (remainder 0), as far as their names give them: `digits_17` -> "17", `letters_k` -> "k".

    Their transcripts are unknown; training on the same single words would still be a use of them.
    """
    words = set()
    for name in names:
        if split_remainder(name) != UNUSED:
            continue
        stem = (
            name.split("_", 1)[1].removesuffix("_p") if name.startswith(("digits_", "letters_", "phonetic_")) else name
        )
        ordinal = re.fullmatch(r"h-(\d+)", stem)
        month, day = re.fullmatch(r"mon-(\d+)", stem), re.fullmatch(r"day-(\d)", stem)
        if ordinal or month or day:
            words.add(calendar_word(stem))
        else:
            words.add(stem.removeprefix("vm-").replace("-", " "))
            if name.startswith("phonetic_"):
                words.update(phonetic_words(stem))
    return frozenset(normalized(word) for word in words if word)


def calendar_word(stem: str) -> str:
    """`h-17` -> seventeenth, `mon-0` -> January, `day-0` -> Sunday."""
    from sentences import DAYS, MONTHS, ordinal_words

    kind, number = stem.split("-")
    return ordinal_words(int(number)) if kind == "h" else (MONTHS if kind == "mon" else DAYS)[int(number)]


def phonetic_words(letter: str) -> list[str]:
    from sentences import PHONETIC

    return [word for word in PHONETIC if word.lower().startswith(letter)]


def all_prompt_names() -> list[str]:
    """Names of every prompt of the English voice."""
    folder = debian_root() / ASTERISK_FOLDER
    return sorted(prompt_name(path, folder) for path in folder.rglob("*.g722"))


# ---- sound ----


def read_g722(path: Path) -> np.ndarray:
    """int16 samples at 16 kHz of a raw G.722 file (64 kbit/s telephone wideband)."""
    try:
        import av
    except ImportError as error:
        raise ImportError(
            "G.722 recordings are decoded with PyAV. Install it: `pip install 'soundwave-hf[data]'`."
        ) from error

    with av.open(str(path), format="g722") as container:
        frames = [frame.to_ndarray().reshape(-1) for frame in container.decode(audio=0)]
    return np.concatenate(frames).astype(np.int16)


def prompt_clip(name: str, folder: Path) -> tuple[Path, float]:
    """The decoded clip of a prompt in `folder`/prompts and its seconds; decoded at the first call."""
    target = folder / "prompts" / f"{name}.flac"
    seconds = clip_seconds(target)
    if seconds is None:
        voice_folder = debian_root() / ASTERISK_FOLDER
        source = next(path for path in voice_folder.rglob("*.g722") if prompt_name(path, voice_folder) == name)
        samples = read_g722(source)
        write_clip(target, samples)
        seconds = len(samples) / SAMPLING_RATE
    return target, seconds


# ---- rows ----


def prompt_rows(folder: Path, remainder: int) -> list[dict]:
    """Rows of the transcribed prompts of one part of the split (texts of the validation part as published).

    Training leaves out clips above 30 s, and texts that repeat one of `held_out_texts` (see `HeldOut`); validation
    leaves out none.
    """
    if remainder not in (VALIDATION, TRAINING):
        raise ValueError(
            f"remainder arrived as {remainder}; prompts with remainder 0 are used for nothing. Give 1 or 2."
        )
    rows, kept_apart = [], HeldOut(held_out_texts())
    for name, text in asterisk_transcripts().items():
        if split_remainder(name) != remainder:
            continue
        spoken = spoken_prompt(text) if remainder == TRAINING else text
        if remainder == TRAINING and kept_apart.repeats(spoken):
            continue
        path, seconds = prompt_clip(name, folder)
        if remainder == VALIDATION or seconds <= LONGEST_TRAINING_SECONDS:
            rows.append(row(path, spoken, seconds, voice="allison", source="human-prompt", folder=folder))
    return rows


def row(path: Path, text: str, seconds: float, voice: str, source: str, folder: Path) -> dict:
    """One line of a manifest; the audio path is relative to the manifest's folder."""
    return {
        "audio": path.relative_to(folder).as_posix(),
        "text": text,
        "seconds": round(seconds, 3),
        "voice": voice,
        "source": source,
    }


def is_plausible(text: str, seconds: float) -> bool:
    """Whether a transcript can be what was said: plain letters, no loop, 0.5 to 5 words a second."""
    words = normalized(text).split()
    loops = any(words[i : i + 3] == words[i + 3 : i + 6] for i in range(len(words) - 5))
    return bool(words) and text.isascii() and not loops and 0.5 <= len(words) / seconds <= 5.0
