"""What each stage hears: `python training_sets.py texts`, then `data.yaml`, then `python training_sets.py write`.

`texts` chooses what is spoken, and writes texts.jsonl and questions_to_speak.jsonl; `data.yaml` says in which voices.
`write` lists what is there in stage1.jsonl, stage2.jsonl, questions.jsonl (spoken ones), instruct.jsonl and
instruct_more.jsonl. All of it is below `$SOUNDWAVE_HOME`/data/small.
Stages I and II hear different texts, so that in Stage II the CTC head errs as it will on new speech.
"""

import argparse
import hashlib
import random
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
from chat_questions import all_answers, chat_questions
from instructions import instruction_rows, last_word_rows, transcribe_rows
from kokoro_voices import kokoro_folder
from natural_texts import LONGEST_TEXT_WORDS, Text, common_words, held_out, natural_texts, words_of
from spoken_questions import spoken_questions
from voices import SAMPLING_RATE, clip_seconds, write_clip

from soundwave_hf.data.card import count_rows
from soundwave_hf.data.manifest import read_rows, write_rows
from soundwave_hf.paths import soundwave_home


TEXTS = 16_000  # beside those that come again so that each common word is heard often
PARAGRAPHS = 600  # lines of several sentences
FACT_QUESTIONS, CHAT_QUESTIONS = 1_000, 3_500
NO_SPEECH_CLIPS = 300  # of each of stages I and II
INSTRUCTED_CLIPS = 850  # that stage III asks a question about; see `instruction_rows`
SPLITS = ("stage1", "stage2")
TEXT_QUESTIONS = 900  # of stage III: asked in text alone
LONG_SOURCES = ("paragraph", "menu")
# The second list of Stage III: at most so many spoken questions, long transcripts, questions about the last word.
MORE_SPOKEN, MORE_LONG, MORE_LAST_WORDS = 1_800, 1_300, 450
TIMES, IN_VOICES = 20, 5  # each common word is to be heard so often, and in so many voices


def small_folder() -> Path:
    """Where the recipes look for the data."""
    return soundwave_home() / "data" / "small"


def split_of(text: str) -> str:
    """`stage1` or `stage2`, half each, by the text alone."""
    return SPLITS[int(hashlib.sha1(text.encode()).hexdigest(), 16) % 2]


# ---- what is spoken ----


def write_texts(seed: int) -> None:
    """Write texts.jsonl and questions_to_speak.jsonl (text, source)."""
    folder = small_folder()
    kept_apart = held_out(folder)
    texts = natural_texts(TEXTS, kept_apart, lambda words: written_sentences(words, folder), seed)
    texts += paragraphs(texts, random.Random(seed))
    write_rows(folder / "texts.jsonl", [asdict(text) for text in texts])
    questions = [question for question, _ in question_pairs(seed) if not kept_apart.repeats(question)]
    rows = [{"text": question, "source": "question"} for question in questions]
    kokoro_folder()  # fetched once, before several processes of `data build` need it
    write_rows(folder / "questions_to_speak.jsonl", random.Random(seed).sample(rows, len(rows)))
    print(f"{len(texts)} texts, {len({text.text for text in texts})} of them different; {len(rows)} questions")


def paragraphs(texts: list[Text], rng: random.Random) -> list[Text]:
    """`PARAGRAPHS` lines of two to four sentences each, for each stage half of them, all sentences of its own.

    With single sentences alone, the LLM does not learn to write a long transcript to its end.
    """
    found: list[Text] = []
    for split in SPLITS:
        sentences = [text for text in dict.fromkeys(texts) if split_of(text.text) == split]
        while len(found) < PARAGRAPHS * (1 + SPLITS.index(split)) // len(SPLITS):
            joined = " ".join(text.text for text in rng.sample(sentences, rng.randint(2, 4)))
            if split_of(joined) == split and len(joined.split()) <= LONGEST_TEXT_WORDS:
                found.append(Text(joined, "paragraph"))
    return found


def written_sentences(words: list[str], folder: Path) -> list[str]:
    """Sentences with each of the words, written by the text LLM; those of an earlier start are read again."""
    forms = ('Write a short sentence with the word "{}".', 'Use the word "{}" in a sentence about everyday life.')
    requests = [form.format(word) for word in words for form in forms]
    return [answer for answer in all_answers(requests, folder / "written_sentences.jsonl").values() if answer]


def print_coverage(clips: list[dict]) -> None:
    """Say how many of the common words are in `TIMES` clips or more, in `IN_VOICES` voices or more."""
    times, voices = Counter(), defaultdict(set)
    for row in clips:
        for word in set(words_of(row["text"])):
            times[word] += 1
            voices[word].add(row["voice"])
    words = common_words()
    well = [word for word in words if times[word] >= TIMES and len(voices[word]) >= IN_VOICES]
    print(f"{len(well)} of the {len(words)} most frequent words: {TIMES} clips or more, {IN_VOICES} voices or more")


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
    """Every training clip that is there: those of `data.yaml`, of games, and the telephone prompts."""
    folder, home = small_folder(), soundwave_home() / "data"
    manifests = sorted((folder / "built").glob("*-*.jsonl"))
    manifests += [home / "human" / "manifest.jsonl", home / "demo" / "human.jsonl"]
    found = [(path.parent, read(path)) for path in manifests if path.is_file()]
    return [{**row, "audio": str(place / row["audio"])} for place, rows in found for row in rows]


def is_transcribed(row: dict) -> bool:
    """Whether stages I and II hear a clip: not a question, and no conversation, whose parts may be of both stages."""
    return row["source"] != "question" and "answer" not in row


def question_pairs(seed: int) -> list[tuple[str, str | None]]:
    """(question, answer) pairs to be spoken: facts with their answer, and questions that the LLM answers itself."""
    facts = dict(spoken_questions(FACT_QUESTIONS, random.Random(seed + 1)))
    chat = chat_questions(CHAT_QUESTIONS, random.Random(seed + 2))
    return [*facts.items(), *((question, None) for question in chat if question not in facts)]


def write(seed: int) -> None:
    """Write the lists of each stage, of the clips that are there."""
    folder = small_folder()
    clips = all_clips()
    speech = [row for row in clips if is_transcribed(row)]
    questions = [row for row in clips if row["source"] == "question"]
    stages = {split: [row for row in speech if split_of(row["text"]) == split] for split in SPLITS}
    for split, rows in stages.items():
        write_rows(folder / f"{split}.jsonl", rows + no_speech_rows(folder, split, NO_SPEECH_CLIPS, seed))
    print_coverage(speech)
    for (source,), (count, seconds) in count_rows(speech + questions, ("source",)).items():
        print(f"{source}: {count} clips, {seconds / 3600:.2f} h")
    write_rows(folder / "questions.jsonl", questions)
    write_rows(folder / "instruct.jsonl", instruct_rows(clips, seed))
    write_rows(folder / "instruct_more.jsonl", instruct_more_rows(clips, seed))


def instruct_rows(clips: list[dict], seed: int) -> list[dict]:
    """Stage III: requests about the clips of Stage II, spoken questions with their answers, the same in text.

    And who says what in each conversation, whose parts are clips of both stages.
    """
    rng = random.Random(seed + 3)
    rows = instruction_rows(second_stage(clips), spoken_rows(clips), rng, INSTRUCTED_CLIPS)
    rows += [row for row in clips if "answer" in row]
    rows += text_rows(rng)
    return rng.sample(rows, len(rows))


def instruct_more_rows(clips: list[dict], seed: int) -> list[dict]:
    """Stage III goes on: fewer spoken questions, more long transcripts, more questions about the last word.

    After `instruct_rows` alone, the LLM without the head ends long transcripts early.
    """
    rng = random.Random(seed + 4)
    speech, spoken = second_stage(clips), spoken_rows(clips)
    rows = instruction_rows(speech, sampled(spoken, MORE_SPOKEN, rng), rng, INSTRUCTED_CLIPS)
    asked = {row["audio"] for row in rows}
    left = [row for row in speech if row["audio"] not in asked and row["text"]]
    is_long = {row["audio"]: row["source"] in LONG_SOURCES for row in left}
    rows += transcribe_rows(sampled([row for row in left if is_long[row["audio"]]], MORE_LONG, rng), rng)
    rows += last_word_rows(sampled([row for row in left if not is_long[row["audio"]]], MORE_LAST_WORDS, rng), rng)
    rows += text_rows(rng)
    return rng.sample(rows, len(rows))


def second_stage(clips: list[dict]) -> list[dict]:
    """The clips that Stage II hears."""
    return [row for row in clips if is_transcribed(row) and split_of(row["text"]) == "stage2"]


def spoken_rows(clips: list[dict]) -> list[dict]:
    """The spoken questions whose answer is known."""
    answers = known_answers()
    questions = [row for row in clips if row["source"] == "question"]
    return [{**row, "question": "", "answer": answers[row["text"]]} for row in questions if row["text"] in answers]


def text_rows(rng: random.Random) -> list[dict]:
    """Up to `TEXT_QUESTIONS` questions in text alone."""
    pairs = sampled(list(known_answers().items()), TEXT_QUESTIONS, rng)
    return [{"question": question, "answer": answer, "source": "text", "task": "text"} for question, answer in pairs]


def known_answers() -> dict[str, str]:
    """The answers that `chat_questions.py` wrote, by their question."""
    return {row["question"]: row["answer"] for row in read_rows(small_folder() / "answers.jsonl")}


def sampled(rows: list, most: int, rng: random.Random) -> list:
    """At most `most` of the rows, in random order."""
    return rng.sample(rows, min(most, len(rows)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("step", choices=("texts", "write"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    {"texts": write_texts, "write": write}[options.step](options.seed)


if __name__ == "__main__":
    main()
