"""`python examples/soundwave-small/build_data.py`: the training and validation data of the small model.

The build is resumable: clips and labels that are there are not made again, and the manifests are written last, each in
one step. Speech synthesis is most of the time (`processes` cores).
"""

import hashlib
import random
from dataclasses import dataclass
from pathlib import Path

from debian_packages import debian_root
from human_speech import (
    TRAINING,
    VALIDATION,
    all_prompt_names,
    held_out_texts,
    prompt_rows,
    pseudo_rows,
    row,
    unused_prompt_words,
)
from sentences import (
    dictionary_words,
    fortune_sentences,
    normalized,
    phone_prompts,
    vocabulary_words,
    without,
    word_sequences,
)
from spoken_questions import DEMO_QUESTION, spoken_questions
from voices import VALIDATION_VOICE, Utterance, choose_voice, speak_all

from soundwave_hf.atomic import atomic_file
from soundwave_hf.data.backbones import resolve_backbone
from soundwave_hf.data.manifest import write_rows
from soundwave_hf.paths import soundwave_home


VALIDATION_DIGESTS = Path(__file__).parent / "validation_texts.sha1"  # of the sentences as they are spoken
SAVE_EVERY_CLIPS = 1000  # a build that is still running can be trained on up to here


@dataclass(frozen=True)
class Sizes:
    """How many texts of each kind are spoken."""

    fortunes: int = 13_000  # sentences of the fortunes collections, 4 to 22 words
    words: int = 4_000  # random-word sequences
    prompts: int = 2_500  # telephone prompts of our own grammar
    questions: int = 1_000  # spoken questions of stage III
    validation: int = 200  # fortunes sentences kept apart, in a voice not trained on


def demo_data_folder() -> Path:
    """Where the recipes look for the data of the small model."""
    return soundwave_home() / "data" / "demo"


def build_demo_data(folder: Path | None = None, processes: int = 2, sizes: Sizes = Sizes(), seed: int = 0) -> Path:
    """Write train.jsonl, instruct.jsonl, valid_human.jsonl, valid_synthetic.jsonl and README.md; returns their folder.

    Args: processes: speech synthesisers that run side by side; one needs about one core and 0.5 GB.
    """
    folder = folder or demo_data_folder()
    folder.mkdir(parents=True, exist_ok=True)
    validation = prompt_rows(folder, VALIDATION) + librivox_rows(folder)
    write_rows(folder / "valid_human.jsonl", validation)
    human = prompt_rows(folder, TRAINING) + pseudo_rows(folder)
    texts = spoken_texts(sizes, seed)
    synthetic = speak_rows(
        folder, utterances(folder, texts["validation"], VALIDATION_VOICE, seed), "fortunes-validation", processes
    )
    write_rows(folder / "valid_synthetic.jsonl", synthetic)
    questions = spoken_question_rows(folder, sizes.questions, seed, processes)
    train = human + training_rows(folder, texts, human, processes, seed)
    write_rows(folder / "train.jsonl", train)
    instruct = build_instructions(train, questions, seed)
    write_rows(folder / "instruct.jsonl", instruct)
    write_card(folder)
    return folder


# ---- texts and clips ----


def spoken_texts(sizes: Sizes, seed: int) -> dict[str, list[str]]:
    """Texts by source, each once over all sources, none equal to a validation text; a function of sizes and seed."""
    from transformers import AutoTokenizer

    root = debian_root()
    rng = random.Random(seed)
    words = dictionary_words(root / "usr/share/dict/american-english")
    held_out = held_out_texts() | unused_prompt_words(all_prompt_names()) | {normalized(DEMO_QUESTION)}
    fortunes = without(fortune_sentences(root / "usr/share/games/fortunes", frozenset(words)), held_out)
    rng.shuffle(fortunes)
    validation = validation_texts(fortunes)[: sizes.validation]
    kept_apart = held_out | {normalized(text) for text in validation}
    fortunes = without(fortunes, kept_apart)[: sizes.fortunes]
    tokenizer = AutoTokenizer.from_pretrained(resolve_backbone("HuggingFaceTB/SmolLM2-135M-Instruct"))
    vocabulary = vocabulary_words(tokenizer.convert_ids_to_tokens(range(len(tokenizer))), words)
    prompts = phone_prompts(round(1.2 * sizes.prompts), rng)
    return {
        "validation": validation,
        "fortunes": fortunes,
        "words": word_sequences(vocabulary, sizes.words, rng),
        "prompts": without(prompts, kept_apart)[: sizes.prompts],
    }


def validation_texts(sentences: list[str]) -> list[str]:
    """The 200 sentences of the synthetic validation set, in a fixed order. They never change.

    Raises: ValueError where the fortunes packages lack one of them.
    """
    digests = VALIDATION_DIGESTS.read_text(encoding="utf-8").split()
    by_digest = {hashlib.sha1(text.encode()).hexdigest(): text for text in sentences}
    if missing := [digest for digest in digests if digest not in by_digest]:
        raise ValueError(
            f"{len(missing)} of the {len(digests)} validation sentences are not in the fortunes packages that came; "
            f"the first has sha1 {missing[0]}. Use the packages of Debian 12, or another set of sentences."
        )
    return [by_digest[digest] for digest in digests]


def utterances(folder: Path, texts: list[str], voice: str | None, seed: int, name: str = "") -> list[Utterance]:
    """Clips to speak in `voice`, or in training voices by their shares."""
    kind = name or f"valid_{voice}"
    made = []
    for number, text in enumerate(texts):
        rng = random.Random(f"{seed} {kind} {number}")
        speaker = voice or choose_voice(rng)
        # The text is part of the name: a clip of an earlier build with other texts is never taken for this one.
        path = folder / "clips" / kind / f"{number:05d}_{speaker}_{text_digest(text)}.flac"
        made.append(Utterance(path, text, speaker, rng.randrange(2**31), (0.95, 1.05) if voice else (0.85, 1.15)))
    return made


def text_digest(text: str) -> str:
    return hashlib.sha1(text.encode()).hexdigest()[:8]


def speak_rows(folder: Path, clips: list[Utterance], source: str, processes: int) -> list[dict]:
    """Speak and return the rows of the clips that the engines made."""
    spoken = speak_all(clips, processes, label=source)
    return [row(clip.path, clip.text, seconds, clip.voice, source, folder) for clip, seconds in spoken if seconds]


def training_rows(folder: Path, texts: dict, human: list[dict], processes: int, seed: int) -> list[dict]:
    """Rows of all synthetic training clips; spoken in mixed order, so that a part of them is a fair sample."""
    clips = {}
    for source in ("fortunes", "words", "prompts"):
        clips.update(dict.fromkeys(utterances(folder, texts[source], None, seed, name=source), source))
    order = random.Random(seed).sample(list(clips), len(clips))
    rows: list[dict] = []
    for clip, seconds in speak_all(order, processes, label="training speech"):
        if seconds:
            rows.append(row(clip.path, clip.text, seconds, clip.voice, clips[clip], folder))
        if len(rows) % SAVE_EVERY_CLIPS == 0 and not (folder / "train.jsonl").is_file():
            write_rows(folder / "train_partial.jsonl", human + rows)
    (folder / "train_partial.jsonl").unlink(missing_ok=True)
    return rows


def spoken_question_rows(folder: Path, count: int, seed: int, processes: int) -> list[dict]:
    """Rows of the spoken questions with `answer`; the user turn of these is the clip alone (`question` is empty)."""
    pairs = spoken_questions(count, random.Random(seed + 1))
    answers = dict(pairs)
    clips = utterances(folder, list(answers), None, seed, name="questions")
    rows = speak_rows(folder, clips, "spoken-question", processes)
    return [{**line, "question": "", "answer": answers[line["text"]]} for line in rows]


def librivox_rows(folder: Path) -> list[dict]:
    """Rows of the LibriVox clips, copied out of the Debian package."""
    import soundfile
    from human_speech import LIBRIVOX_FOLDER
    from librivox import CLIPS
    from voices import write_clip

    rows = []
    for clip in CLIPS:
        samples, rate = soundfile.read(debian_root() / LIBRIVOX_FOLDER / f"{clip.name}.wav", dtype="int16")
        target = folder / "librivox" / f"{clip.name}.flac"
        write_clip(target, samples)
        rows.append(row(target, clip.text, len(samples) / rate, voice="librivox", source="librivox", folder=folder))
    return rows


def build_instructions(train: list[dict], questions: list[dict], seed: int) -> list[dict]:
    from instructions import instruction_rows

    return instruction_rows(train, questions, random.Random(seed + 2))


def write_card(folder: Path) -> None:
    from data_card import data_card

    with atomic_file(folder / "README.md") as part:
        part.write_text(data_card(folder), encoding="utf-8")


if __name__ == "__main__":
    build_demo_data()
