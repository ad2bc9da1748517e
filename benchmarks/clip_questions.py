"""python benchmarks/clip_questions.py [--adapter weights/soundwave-small] [--each 25] [--answers FILE]

Whether a model answers questions about a clip itself: its last word, how many words it has (up to eight), whether a
word is in it (half of the time it is), and who speaks, a man or a woman (half each). The clips are those of the
validation sets human and synthetic, the wordings those of Stage III (`examples/soundwave-small/instructions.py`).
An answer is right if it contains the last sentence of the expected one, whatever its case and marks; for who speaks,
the word "man" or "woman".

It prints one Markdown table with 95 % intervals. `--answers` writes each answer as a line of JSON.
"""

import argparse
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from questions import MAX_NEW_TOKENS, Answer, batches, print_report

from soundwave_hf import SoundwaveForConditionalGeneration, SoundwaveProcessor
from soundwave_hf.evaluation.sets import read_set
from soundwave_hf.evaluation.shipped import ADAPTER, EXAMPLES
from soundwave_hf.evaluation.transcribe import conversation, generated_texts


sys.path.insert(0, str(EXAMPLES / "soundwave-small"))
import instructions


SPEAKERS = {"allison": "woman", "awb": "man"}  # the voices of the two sets
KINDS = {
    "the last word": instructions.last_word,
    "how many words": instructions.word_count,
    "is a word said": instructions.says_word,
}


def clips_with_words() -> list[dict]:
    """Rows of the validation sets human and synthetic, with two words or more."""
    rows = read_set("human") + read_set("synthetic")
    return [row for row in rows if len(instructions.spoken_words(row["text"])) > 1]


def about_transcripts(make: Callable, rows: Sequence[dict], count: int, rng: random.Random) -> list[dict]:
    """`count` questions that `make` asks of the transcripts: rows with `question` and `answer`.

    Of questions with yes or no, half are to be answered with yes.
    """
    others = sorted({word.lower() for row in rows for word in instructions.spoken_words(row["text"])})
    asked = []
    for row in rng.sample(rows, len(rows)):
        made = make(row["text"], others, rng)
        if made is not None:
            question, answer = made
            last_sentence = answer.removeprefix(instructions.quoted(row["text"])).strip()
            asked.append({**row, "question": question, "answer": last_sentence})
    yes = [row for row in asked if row["answer"].startswith("Yes,")]
    no = [row for row in asked if row["answer"].startswith("No,")]
    return yes[: count // 2] + no[: count - count // 2] if yes or no else asked[:count]


def about_speakers(rows: Sequence[dict], count: int, rng: random.Random) -> list[dict]:
    """`count` questions about who speaks, half of them of each voice."""
    asked = []
    for place, (voice, speaker) in enumerate(SPEAKERS.items()):
        own = [row for row in rows if row["voice"] == voice]
        number = (count + place) // len(SPEAKERS)
        for row in rng.sample(own, min(number, len(own))):
            asked.append({**row, "question": rng.choice(instructions.WHO_SPEAKS), "answer": speaker})
    return asked


def questions_about(rows: Sequence[dict], each: int, seed: int = 0) -> list[tuple[str, dict]]:
    """Pairs of a kind and a row with `question` and `answer`, up to `each` of a kind."""
    rng = random.Random(seed)
    found = [(kind, row) for kind, make in KINDS.items() for row in about_transcripts(make, rows, each, rng)]
    return found + [("who speaks", row) for row in about_speakers(rows, each, rng)]


@torch.inference_mode()
def answers_about(model, processor, asked: Sequence[tuple[str, dict]], batch_size: int) -> list[Answer]:
    """The model's answers; a user turn is the clip and the question."""
    found = []
    for part in batches(asked, batch_size):
        talks = [conversation(row["audio"], row["question"]) for _, row in part]
        inputs = processor.apply_chat_template(talks, add_generation_prompt=True, tokenize=True, return_dict=True)
        texts, _ = generated_texts(model, processor, inputs, MAX_NEW_TOKENS)
        for (kind, row), text in zip(part, texts, strict=True):
            found.append(Answer(kind, row["question"], [row["answer"]], text, heard=row["text"]))
    return found


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--adapter", type=Path, default=ADAPTER)
    parser.add_argument("--each", type=int, default=25, help="most questions of each of the four kinds")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--answers", type=Path, help="file for the answers, as JSON lines")
    options = parser.parse_args(arguments)
    model = SoundwaveForConditionalGeneration.from_pretrained(str(options.adapter), dtype=torch.float32).eval()
    processor = SoundwaveProcessor.from_pretrained(str(options.adapter))
    asked = questions_about(clips_with_words(), options.each)
    answers = answers_about(model, processor, asked, options.batch_size)
    print_report(answers, options.answers)


if __name__ == "__main__":
    main()
