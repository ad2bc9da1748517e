"""Everyday questions, and the text LLM's own answers to them: `python chat_questions.py`.

A model that learns its own answers to spoken questions, and to the same questions in text, keeps what it knew. The
command may be stopped at any time, and goes on where it was.
"""

import random
import re
from collections.abc import Iterator
from pathlib import Path

from general_questions import fill_forms, general_questions

from soundwave_hf.data.manifest import read_rows, write_rows
from soundwave_hf.paths import soundwave_home


THINGS = """
water|bread|milk|rice|coffee|tea|sugar|salt|cheese|an apple|a banana|an orange|a potato|a tomato|soup|honey|an egg
a dog|a cat|a horse|a cow|a sheep|a bird|a fish|an elephant|a lion|a mouse|a bee|a spider|a snake|a frog|a bear
the sun|the moon|a star|rain|snow|wind|ice|fire|a river|a mountain|an island|the sea|a forest|a desert|a lake|a cloud
a house|a school|a hospital|a library|a bank|a museum|a church|a hotel|an airport|a market|a bridge|a road|a garden
a car|a train|a plane|a boat|a bicycle|a bus|a truck|a clock|a camera|a telephone|a computer|a radio|a book|a letter
a table|a chair|a bed|a lamp|a knife|a spoon|a cup|a key|a door|a window|a mirror|an umbrella|a coat|a shoe|a hat
a doctor|a teacher|a farmer|a nurse|a lawyer|a cook|a pilot|a writer|a painter|a judge|a soldier|an engineer
music|a song|a piano|a guitar|a drum|a violin|football|tennis|chess|swimming|dancing|a film|a game|a story|a poem
money|time|love|war|peace|history|science|art|language|mathematics|medicine|electricity|energy|oil|gold|iron|glass|paper
a tree|a flower|grass|a leaf|a seed|cotton|wood|a rose|corn|wheat|summer|winter|spring|autumn|the heart|the brain|blood
"""
ABOUT_THINGS = (
    "What is {}?",
    "Tell me something about {}.",
    "Why is {} important?",
    "How would you describe {} to a child?",
    "What can you tell me about {}?",
    "Can you explain what {} is?",
    "Where would you find {}?",
    "What do people use {} for?",
    "Say one sentence about {}.",
    "What do you know about {}?",
    "Give me a fact about {}.",
    "Write a short sentence with {}.",
)
DEEDS = """
cook rice|bake bread|make tea|clean a window|wash a car|paint a wall|plant a tree|grow tomatoes|feed a cat|train a dog
learn a language|write a letter|read faster|sleep better|save money|find a job|make friends|stay healthy|lose weight
ride a bicycle|drive a car|swim|dance|play chess|take a photograph|build a house|fix a door|tie a knot|draw a face
plan a trip|pack a bag|read a map|cross a road|call a doctor|stop a fire|keep warm|keep milk fresh|cut an onion
boil an egg|peel an orange|choose a book|give a speech|say thank you|tell a story|sing a song|buy a ticket
send a parcel
"""
ABOUT_DEEDS = (
    "How do I {}?",
    "How can I {}?",
    "What is the best way to {}?",
    "What do I need to {}?",
    "Please tell me how to {}.",
    "Can you help me {}?",
    "Is it hard to {}?",
    "Why do people {}?",
    "When should I {}?",
    "Give me one tip to {}.",
)
LONGEST_ANSWER_TOKENS = 90
NO_END = r"(?<!\b\d)(?<!\bDr)(?<!\bMr)(?<!\bMrs)(?<!\bSt)"  # a mark behind one of these
SENTENCE_END = re.compile(NO_END + r"[.!?][\"')\]]*(?=\s|$)")


def chat_questions(count: int, rng: random.Random) -> list[str]:
    """`count` different questions in random order.

    Raises: ValueError where there are not so many.
    """
    found = all_questions()
    if count > len(found):
        raise ValueError(f"`count` is {count}, but there are only {len(found)} questions. Ask for at most that many.")
    return rng.sample(found, count)


def all_questions() -> list[str]:
    return list(dict.fromkeys(fill_forms([(THINGS, ABOUT_THINGS), (DEEDS, ABOUT_DEEDS)]) + general_questions()))


def text_answers(questions: list[str], batch: int = 128) -> Iterator[dict[str, str]]:
    """The text LLM's greedy answers to each batch of questions, as `whole_sentences` cuts them.

    A question without a whole sentence in the first `LONGEST_ANSWER_TOKENS` has an empty answer.
    """
    import torch
    from tqdm import trange
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from soundwave_hf.data.backbones import resolve_backbone
    from soundwave_hf.evaluation.shipped import LLM

    folder = resolve_backbone(LLM)
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).to(device).eval()
    for start in trange(0, len(questions), batch, desc="answers", unit=f" x {batch}"):
        part = questions[start : start + batch]
        turns = [[{"role": "user", "content": question}] for question in part]
        inputs = tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, padding=True, return_dict=True, return_tensors="pt"
        ).to(device)
        with torch.inference_mode():
            ids = model.generate(**inputs, max_new_tokens=LONGEST_ANSWER_TOKENS, do_sample=False)
        answers = ids[:, inputs["input_ids"].shape[1] :]
        texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
        finished = [tokenizer.eos_token_id in row for row in answers]
        yield dict(zip(part, map(whole_sentences, texts, finished), strict=True))


def all_answers(questions: list[str], part: Path) -> dict[str, str]:
    """The text LLM's answers. Those in `part`, a file of an earlier start, are there already; new ones join them."""
    found = {row["question"]: row["answer"] for row in read_rows(part)} if part.is_file() else {}
    missing = [question for question in questions if question not in found]
    for answers in text_answers(missing) if missing else ():
        found |= answers
        write_rows(part, [{"question": question, "answer": answer} for question, answer in found.items()])
    return {question: found[question] for question in questions}


def whole_sentences(text: str, is_finished: bool) -> str:
    """An answer of one paragraph; of a longer or unfinished one, the whole sentences of the first paragraph."""
    paragraph, *others = text.strip().split("\n")
    ends = [found.end() for found in SENTENCE_END.finditer(paragraph)]
    return paragraph if is_finished and not others else paragraph[: ends[-1] if ends else 0]


def main() -> None:
    """Write answers.jsonl below `$SOUNDWAVE_HOME`/data/small: question, answer."""
    from training_sets import question_pairs, small_folder

    pairs = question_pairs(seed=0)
    open_questions = [question for question, answer in pairs if answer is None]
    own = all_answers(open_questions, small_folder() / "text_answers.jsonl")
    answers = {question: answer or own.get(question) for question, answer in pairs}
    rows = [{"question": question, "answer": answer} for question, answer in answers.items() if answer]
    write_rows(small_folder() / "answers.jsonl", rows)
    print(f"{len(rows)} questions with answers in {soundwave_home() / 'data' / 'small' / 'answers.jsonl'}")


if __name__ == "__main__":
    main()
