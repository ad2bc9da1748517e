"""`python examples/soundwave-small/build_data.py`: the validation sets, and the telephone prompts for training.

It may be stopped at any time, and goes on where it was. All of it is below `$SOUNDWAVE_HOME`/data/demo.
"""

import hashlib
import random
from pathlib import Path

from debian_packages import debian_root
from human_speech import LIBRIVOX_FOLDER, TRAINING, VALIDATION, held_out_texts, prompt_rows, row
from librivox import CLIPS
from sentences import dictionary_words, fortune_sentences, without
from voices import VALIDATION_VOICE, Utterance, speak_all, write_clip

from soundwave_hf.data.manifest import write_rows
from soundwave_hf.paths import soundwave_home


VALIDATION_DIGESTS = Path(__file__).parent / "validation_texts.sha1"  # of the sentences as they are spoken
SPEED = (0.95, 1.05)  # range of the duration factor of the synthetic validation clips


def demo_data_folder() -> Path:
    """Where `soundwave-hf evaluate` looks for the validation sets."""
    return soundwave_home() / "data" / "demo"


def build_demo_data(folder: Path | None = None, processes: int = 2) -> Path:
    """Write valid_human.jsonl, valid_synthetic.jsonl and human.jsonl (training); returns their folder.

    Args: processes: speech synthesisers that run side by side.
    """
    folder = folder or demo_data_folder()
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / "human.jsonl", prompt_rows(folder, TRAINING))
    write_rows(folder / "valid_human.jsonl", prompt_rows(folder, VALIDATION) + librivox_rows(folder))
    write_rows(folder / "valid_synthetic.jsonl", synthetic_rows(folder, processes))
    return folder


def synthetic_rows(folder: Path, processes: int) -> list[dict]:
    """Rows of the validation sentences in a voice that no training clip has."""
    clips = validation_utterances(folder, validation_sentences())
    spoken = speak_all(clips, processes, label="validation speech")
    source = "fortunes-validation"
    return [row(clip.path, clip.text, seconds, clip.voice, source, folder) for clip, seconds in spoken if seconds]


def validation_sentences() -> list[str]:
    """The 200 sentences of the synthetic validation set, from Debian's fortunes packages."""
    root = debian_root()
    words = dictionary_words(root / "usr/share/dict/american-english")
    fortunes = fortune_sentences(root / "usr/share/games/fortunes", frozenset(words))
    return validation_texts(without(fortunes, held_out_texts()))


def validation_texts(sentences: list[str]) -> list[str]:
    """The sentences of the synthetic validation set among `sentences`, in a fixed order. They never change.

    Raises: ValueError where one of them is missing.
    """
    digests = VALIDATION_DIGESTS.read_text(encoding="utf-8").split()
    by_digest = {hashlib.sha1(text.encode()).hexdigest(): text for text in sentences}
    if missing := [digest for digest in digests if digest not in by_digest]:
        raise ValueError(
            f"{len(missing)} of the {len(digests)} validation sentences are not in the fortunes packages that came; "
            f"the first has sha1 {missing[0]}. Use the packages of Debian 12, or another set of sentences."
        )
    return [by_digest[digest] for digest in digests]


def validation_utterances(folder: Path, texts: list[str]) -> list[Utterance]:
    """Clips to speak in the validation voice, each at a speed of its own."""
    kind = f"valid_{VALIDATION_VOICE}"
    made = []
    for number, text in enumerate(texts):
        seed = random.Random(f"0 {kind} {number}").randrange(2**31)
        # The text is part of the name: a clip of an earlier build with other texts is never taken for this one.
        path = folder / "clips" / kind / f"{number:05d}_{VALIDATION_VOICE}_{text_digest(text)}.flac"
        made.append(Utterance(path, text, VALIDATION_VOICE, seed, SPEED))
    return made


def text_digest(text: str) -> str:
    return hashlib.sha1(text.encode()).hexdigest()[:8]


def librivox_rows(folder: Path) -> list[dict]:
    """Rows of the LibriVox clips, copied out of the Debian package."""
    import soundfile

    rows = []
    for clip in CLIPS:
        samples, rate = soundfile.read(debian_root() / LIBRIVOX_FOLDER / f"{clip.name}.wav", dtype="int16")
        target = folder / "librivox" / f"{clip.name}.flac"
        write_clip(target, samples)
        rows.append(row(target, clip.text, len(samples) / rate, voice="librivox", source="librivox", folder=folder))
    return rows


if __name__ == "__main__":
    print(f"The validation sets are in {build_demo_data()}.")
