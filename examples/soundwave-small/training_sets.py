"""Which clips each stage hears: `python training_sets.py plan`, `speak`, `write`, in this order.

`plan` chooses what flite speaks: texts that `natural_speech.py` leaves to it, and questions. `speak` makes the clips.
`write` lists what is there in stage1.jsonl, stage2.jsonl, questions.jsonl (spoken ones) and instruct.jsonl, below
`$SOUNDWAVE_HOME`/data/small.
Stages I and II hear different texts, so that in Stage II the CTC head errs as it will on new speech.
"""

import argparse
import hashlib
import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
from chat_questions import chat_questions
from instructions import instruction_rows
from spoken_questions import spoken_questions
from voices import SAMPLING_RATE, VOICES, Utterance, clip_seconds, speak_all, write_clip

from soundwave_hf.data.card import count_rows
from soundwave_hf.data.manifest import read_rows, write_rows
from soundwave_hf.paths import soundwave_home


FLITE_TEXTS, WORD_SEQUENCES = 30_000, 4_000
LONGEST_SHARE = {"bible": 0.2}  # of the texts that flite speaks: one old book is not how people talk
FACT_QUESTIONS, CHAT_QUESTIONS = 1_000, 3_500
NO_SPEECH_CLIPS = 300  # of each of stages I and II
INSTRUCTED_CLIPS = 850  # that stage III asks a question about; see `instruction_rows`
SPLITS = ("stage1", "stage2")
TEXT_QUESTIONS = 900  # of stage III: asked in text alone
QUESTION_SOURCES = ("question", "natural-question")  # spoken by flite; by Kokoro, if its manifest lists some


def small_folder() -> Path:
    """Where the recipes look for the data."""
    return soundwave_home() / "data" / "small"


def split_of(text: str) -> str:
    """`stage1` or `stage2`, half each, by the text alone."""
    return SPLITS[int(hashlib.sha1(text.encode()).hexdigest(), 16) % 2]


# ---- what flite speaks ----


def flite_texts(count: int, seed: int) -> list[dict]:
    """`count` texts of the sources of `natural_texts` that are not spoken by Kokoro, and sequences of single words."""
    from natural_speech import planned_texts
    from natural_texts import held_out, source_texts, text_packages
    from sentences import spoken_key

    natural = small_folder() / "natural"
    kept_apart = held_out(natural)
    taken = {spoken_key(text.text) for text in planned_texts(natural, 24_000, kept_apart, 0)}
    found: dict[str, list[str]] = {}
    for text in source_texts(text_packages(), {"prompts": count // 10, "names": count // 12}, seed + 1):
        if spoken_key(text.text) not in taken and not kept_apart.repeats(text.text):
            found.setdefault(text.source, []).append(text.text)
    rng = random.Random(seed)
    rows = []
    for source, texts in found.items():
        most = round(LONGEST_SHARE.get(source, 1) * count)
        rows += [{"text": text, "source": source} for text in rng.sample(texts, min(most, len(texts)))]
    return rng.sample(rows, min(count, len(rows)))


def word_rows(count: int, seed: int) -> list[dict]:
    """Sequences of random words of the LLM's vocabulary, without one that is a validation text."""
    from build_data import Sizes, spoken_texts

    return [{"text": text, "source": "words"} for text in spoken_texts(Sizes(words=count), seed)["words"]]


def plan(seed: int) -> None:
    """Write flite.jsonl (text, source, voice, seed and path of each clip) and the list of the telephone prompts."""
    write_human(soundwave_home() / "data" / "demo")
    names = [name for name, voice in VOICES.items() if voice.engine == "flite" and voice.share]
    shares = [VOICES[name].share for name in names]
    questions = [{"text": question, "source": "question"} for question, _ in question_pairs(seed)]
    rows = []
    for row in flite_texts(FLITE_TEXTS, seed) + word_rows(WORD_SEQUENCES, seed) + questions:
        rng = random.Random(f"{seed} flite {row['text']}")
        voice, digest = rng.choices(names, shares)[0], hashlib.sha1(row["text"].encode()).hexdigest()[:16]
        audio = f"{digest[:2]}/{digest}_{voice}.flac"
        rows.append({"audio": audio, **row, "voice": voice, "seed": rng.randrange(2**31)})
    write_rows(small_folder() / "flite.jsonl", rows)


def speak(processes: int) -> None:
    """Make the clips of flite.jsonl that are missing, and list each in flite/manifest.jsonl as soon as it is there."""
    folder = small_folder() / "flite"
    rows = read_rows(small_folder() / "flite.jsonl")
    clips = [Utterance(folder / row["audio"], row["text"], row["voice"], row["seed"]) for row in rows]
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "manifest.jsonl", "w", encoding="utf-8", buffering=1) as manifest:
        for row, (_, seconds) in zip(rows, speak_all(clips, processes, label="flite"), strict=True):
            if seconds is not None:
                manifest.write(json.dumps({**row, "seconds": round(seconds, 3)}, ensure_ascii=False) + "\n")


# ---- clips without speech ----


def quiet_sound(rng: np.random.Generator) -> np.ndarray:
    """int16 samples without speech: silence, coloured noise, hum with overtones, or beeps; 1 to 8 s."""
    count = int(SAMPLING_RATE * rng.uniform(1, 8))
    times = np.arange(count) / SAMPLING_RATE
    spectrum = np.fft.rfft(rng.standard_normal(count)) / np.maximum(np.arange(count // 2 + 1), 1) ** rng.uniform(0, 1)
    noise = np.fft.irfft(spectrum, count)
    sound = noise / np.abs(noise).max()
    kind = rng.integers(4)
    if kind == 0:
        sound = np.zeros(count)
    elif kind == 1:
        base = rng.uniform(40, 400)
        sound = 0.05 * sound + sum(np.sin(2 * np.pi * base * k * times) / k for k in range(1, 6))
    elif kind == 2:
        gate = np.sin(2 * np.pi * rng.uniform(0.3, 3) * times) > 0
        sound = gate * np.sin(2 * np.pi * rng.uniform(200, 2000) * times)
    level = 10 ** rng.uniform(-3, -0.2) / max(np.abs(sound).max(), 1e-9)
    return np.round(32767 * level * sound).astype(np.int16)


def no_speech_rows(folder: Path, split: str, count: int, seed: int) -> list[dict]:
    """Rows of clips whose transcript is empty."""
    rows = []
    for number in range(count):
        path = folder / "no_speech" / f"{split}_{number:04d}.flac"
        if clip_seconds(path) is None:
            write_clip(path, quiet_sound(np.random.default_rng((seed, SPLITS.index(split), number))))
        rows.append(clip_row(path, "", "none", "no-speech"))
    return rows


# ---- what each stage hears ----


def clip_row(path: Path, text: str, voice: str, source: str) -> dict:
    return {"audio": str(path), "text": text, "seconds": clip_seconds(path), "voice": voice, "source": source}


def all_clips(read: Callable[[Path], list[dict]] = read_rows) -> list[dict]:
    """Every training clip that is there: flite's, Kokoro's, the telephone prompts', other human speech."""
    folder, home = small_folder(), soundwave_home() / "data"
    manifests = [folder / "flite" / "manifest.jsonl", folder / "natural" / "manifest.jsonl"]
    manifests += [home / "human" / "manifest.jsonl", home / "demo" / "human.jsonl"]
    found = [(path.parent, read(path)) for path in manifests if path.is_file()]
    return [{**row, "audio": str(place / row["audio"])} for place, rows in found for row in rows]


def write_human(folder: Path) -> None:
    """human.jsonl: the telephone prompts of the training part."""
    from human_speech import TRAINING, prompt_rows

    write_rows(folder / "human.jsonl", prompt_rows(folder, TRAINING))


def question_pairs(seed: int) -> list[tuple[str, str | None]]:
    """(question, answer) pairs to be spoken: facts with their answer, and questions that the LLM answers itself."""
    facts = dict(spoken_questions(FACT_QUESTIONS, random.Random(seed + 1)))
    chat = chat_questions(CHAT_QUESTIONS, random.Random(seed + 2))
    return [*facts.items(), *((question, None) for question in chat if question not in facts)]


def write(seed: int) -> None:
    """Write stage1.jsonl, stage2.jsonl, questions.jsonl and instruct.jsonl of the clips that are there."""
    folder = small_folder()
    clips = all_clips()
    speech = [row for row in clips if row["source"] not in QUESTION_SOURCES]
    stages = {split: [row for row in speech if split_of(row["text"]) == split] for split in SPLITS}
    for split, rows in stages.items():
        write_rows(folder / f"{split}.jsonl", rows + no_speech_rows(folder, split, NO_SPEECH_CLIPS, seed))
    for (source,), (count, seconds) in count_rows(clips, ("source",)).items():
        print(f"{source}: {count} clips, {seconds / 3600:.2f} h")
    write_rows(folder / "questions.jsonl", [row for row in clips if row["source"] in QUESTION_SOURCES])
    write_rows(folder / "instruct.jsonl", instruct_rows(clips, seed))


def instruct_rows(clips: list[dict], seed: int) -> list[dict]:
    """Stage III: requests about the clips of Stage II, spoken questions with their answers, the same in text."""
    answers = {row["question"]: row["answer"] for row in read_rows(small_folder() / "answers.jsonl")}
    questions = [row for row in clips if row["source"] in QUESTION_SOURCES]
    speech = [row for row in clips if row["source"] not in QUESTION_SOURCES and split_of(row["text"]) == "stage2"]
    rng = random.Random(seed + 3)
    spoken = [{**row, "question": "", "answer": answers[row["text"]]} for row in questions if row["text"] in answers]
    texts = [{"question": question, "answer": answer, "source": "text"} for question, answer in answers.items()]
    rows = instruction_rows(speech, spoken, rng, INSTRUCTED_CLIPS)
    rows += [{**row, "task": "text"} for row in rng.sample(texts, min(TEXT_QUESTIONS, len(texts)))]
    return rng.sample(rows, len(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("step", choices=("plan", "speak", "write"))
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="speech synthesisers side by side")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    steps = {"plan": lambda: plan(options.seed), "speak": lambda: speak(options.processes)}
    steps.get(options.step, lambda: write(options.seed))()


if __name__ == "__main__":
    main()
