"""python benchmarks/questions.py [--adapter weights/soundwave-small] [--cascade] [--answers FILE]

Whether a model answers spoken questions as its LLM answers written ones, and what the LLM still knows after training.
`questions.json` holds 300 questions with accepted answers; none is in the training data. An answer is right if it
contains an accepted one as whole words, whatever its case and marks.

First the untouched LLM gets every question in writing. The model then hears the first `--spoken` of those that it
answered right, without any text, in voices that are kept out of training: flite awb and Kokoro's, alone and mixed. And
it gets `--written` of the 300, right or not, in writing. All answers are greedy and have at most 64 tokens.

`--cascade` adds answers in two steps: the model transcribes a question, then the LLM answers the transcript
(`answer_from_transcripts`; the LoRA is off for the answer, and an empty transcript gets none). To tell what is lost in
hearing from what is lost in answering, the model with its LoRA gets its transcripts too. The untouched LLM gets the
transcripts of the CTC head, and the questions in the form of the CTC targets (perfect hearing).

It prints one Markdown table with 95 % intervals. `--answers` writes each answer as a line of JSON.
"""

import argparse
import json
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from soundwave_hf import SoundwaveForConditionalGeneration, SoundwaveProcessor, answer_from_transcripts
from soundwave_hf.data.backbones import resolve_backbone
from soundwave_hf.evaluation.metrics import bootstrap_interval
from soundwave_hf.evaluation.shipped import ADAPTER, EXAMPLES
from soundwave_hf.evaluation.transcribe import conversation, ctc_transcribe, generated_texts
from soundwave_hf.modeling.ctc_text_soundwave import ctc_form
from soundwave_hf.modeling.folders_soundwave import backbone_name
from soundwave_hf.processing.text_soundwave import normalize_text


QUESTIONS = Path(__file__).with_name("questions.json")
RATE = 16_000
MAX_NEW_TOKENS = 64
VOICES = 11  # flite awb and ten of Kokoro: each speaks as often


@dataclass
class Answer:
    """How one question was answered."""

    asked: str  # who was asked, and how
    question: str
    answers: list[str]  # accepted
    text: str
    voice: str | None = None
    heard: str | None = None  # what the LLM read in place of the question

    @property
    def is_right(self) -> bool:
        return is_right(self.text, self.answers)


def is_right(text: str, accepted: Sequence[str]) -> bool:
    """Whether a text contains one of the accepted answers as whole words."""
    words = normalize_text(text, policy="lower") + " "  # a space before each word
    return any(normalize_text(answer, policy="lower") + " " in words for answer in accepted)


def read_questions(path: Path = QUESTIONS) -> list[dict]:
    return json.loads(path.read_text(encoding="utf-8"))


def batches(rows: Sequence, size: int) -> Iterator[Sequence]:
    for begin in range(0, len(rows), size):
        yield rows[begin : begin + size]
        print(f"{min(begin + size, len(rows))} of {len(rows)}", end="\r", file=sys.stderr)


# ---- written ----


@torch.inference_mode()
def written_answers(asked: str, model, tokenizer, questions: Sequence[dict], batch_size: int) -> list[Answer]:
    """Answers to written questions, of a causal LM or of our model."""
    found = []
    for part in batches(questions, batch_size):
        turns = [[{"role": "user", "content": question["question"]}] for question in part]
        inputs = tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, padding=True, return_dict=True, return_tensors="pt"
        )
        ids = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        texts = tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        found += [Answer(asked, **question, text=text) for question, text in zip(part, texts, strict=True)]
    return found


# ---- spoken ----


def speaker() -> Callable[[str, int], tuple[np.ndarray, str]]:
    """A function from a text and its number to samples and the name of the voice."""
    sys.path.insert(0, str(EXAMPLES / "soundwave-small"))
    from kokoro_voices import HELD_OUT_VOICES, Kokoro, draw_voice, kokoro_folder
    from voices import flite_samples

    kokoro = Kokoro(kokoro_folder())

    @cache  # with `--cascade`, each question is heard twice
    def speak(text: str, number: int) -> tuple[np.ndarray, str]:
        rng = random.Random(number)
        speed = rng.uniform(0.9, 1.1)
        if number % VOICES == 0:
            return flite_samples(text, "awb", 1 / speed, 1.0), "flite awb"
        voice = draw_voice(rng, HELD_OUT_VOICES)
        return kokoro.say(text, voice, speed), f"kokoro {voice.name}"

    return speak


@torch.inference_mode()
def spoken_answers(asked: str, model, processor, questions: Sequence[dict], batch_size: int, speak) -> list[Answer]:
    """Answers to questions that are heard: a user turn is the clip alone."""
    found = []
    for part in batches(list(enumerate(questions)), batch_size):
        clips = [speak(question["question"], number) for number, question in part]
        talks = [conversation({"array": samples, "sampling_rate": RATE}, "") for samples, _ in clips]
        inputs = processor.apply_chat_template(talks, add_generation_prompt=True, tokenize=True, return_dict=True)
        texts, _ = generated_texts(model, processor, inputs, MAX_NEW_TOKENS)
        for (_, question), (_, voice), text in zip(part, clips, texts, strict=True):
            found.append(Answer(asked, **question, text=text, voice=voice))
    return found


def cascade_answers(untouched, tokenizer, model, processor, questions: Sequence[dict], batch_size: int, speak):
    """Answers to transcripts of spoken questions. Args: model: with its LoRA apart."""
    clips, voices = zip(*(speak(one["question"], number) for number, one in enumerate(questions)), strict=True)
    clips = [{"array": samples, "sampling_rate": RATE} for samples in clips]
    head = [text for part in batches(clips, batch_size) for text in ctc_transcribe(model, processor, part).texts]
    talks = [conversation(clip, "") for clip in clips]
    cascade = answer_from_transcripts(model, processor, talks, batch_size, MAX_NEW_TOKENS)
    perfect = [ctc_form(one["question"], model.config.ctc_text).strip() for one in questions]
    own = [one.transcripts[0] for one in cascade]
    found = [
        Answer("model, spoken, from its transcripts", **one, text=answer.text, voice=voice, heard=text)
        for one, answer, voice, text in zip(questions, cascade, voices, own, strict=True)
    ]
    for asked, llm, texts in (
        ("model with its LoRA, its transcripts", model, own),
        ("untouched LLM, transcripts of the CTC head", untouched, head),
        ("untouched LLM, the questions in the form of CTC targets", untouched, perfect),
    ):
        read = [{**one, "question": text} for one, text in zip(questions, texts, strict=True)]
        answers = written_answers(asked, llm, tokenizer, read, batch_size)
        pairs = zip(answers, questions, strict=True)
        found += [replace(answer, question=one["question"], heard=answer.question) for answer, one in pairs]
    return found


# ---- report ----


def row(name: str, answers: Sequence[Answer]) -> str:
    right = [answer.is_right for answer in answers]
    if len(right) < 2:
        return f"| {name} | {len(right)} | {sum(right)} | | |"
    low, high = bootstrap_interval(np.array(right, dtype=float), np.ones(len(right)))
    share = 100 * np.mean(right)
    return f"| {name} | {len(right)} | {sum(right)} | {share:.0f} | {100 * low:.0f} to {100 * high:.0f} |"


def report(answers: Sequence[Answer]) -> Iterator[str]:
    yield "| asked | questions | right | % | 95 % |"
    yield "|---|---|---|---|---|"
    for asked in dict.fromkeys(answer.asked for answer in answers):
        own = [answer for answer in answers if answer.asked == asked]
        yield row(asked, own)
        kinds = dict.fromkeys(answer.voice.split()[0] for answer in own if answer.voice)
        for kind in kinds:
            yield row(f"{asked}, {kind}", [answer for answer in own if answer.voice.split()[0] == kind])


def print_report(answers: Sequence[Answer], path: Path | None):
    """Print the table, and write each answer as a line of JSON to `path`, if it is given."""
    if path is not None:
        lines = (json.dumps({**asdict(answer), "is_right": answer.is_right}) for answer in answers)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(report(answers)))


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--adapter", type=Path, default=ADAPTER)
    parser.add_argument("--spoken", type=int, default=100, help="most spoken questions")
    parser.add_argument("--written", type=int, default=50, help="written questions for the model")
    parser.add_argument("--cascade", action="store_true", help="also answer from transcripts (of adapters alone)")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--answers", type=Path, help="file for the answers, as JSON lines")
    options = parser.parse_args(arguments)
    questions, speak = read_questions(), speaker()
    loading = {"dtype": torch.float32}
    if options.cascade:
        loading["merge_lora"] = False  # a whole checkpoint does not take the option
    model = SoundwaveForConditionalGeneration.from_pretrained(str(options.adapter), **loading).eval()
    processor = SoundwaveProcessor.from_pretrained(str(options.adapter))
    llm = resolve_backbone(backbone_name(model.config.text_config.name_or_path))
    tokenizer = AutoTokenizer.from_pretrained(llm, padding_side="left")
    untouched = AutoModelForCausalLM.from_pretrained(llm, dtype=torch.float32).eval()
    known = written_answers("untouched LLM, written", untouched, tokenizer, questions, options.batch_size)
    if not options.cascade:
        del untouched
    some = questions[: options.written]
    answers = known + [replace(one, asked=f"{one.asked}, first {len(some)}") for one in known[: len(some)]]
    answers += written_answers(f"model, written, first {len(some)}", model, tokenizer, some, options.batch_size)
    right = [{"question": one.question, "answers": one.answers} for one in known if one.is_right][: options.spoken]
    answers += spoken_answers("model, spoken", model, processor, right, options.batch_size, speak)
    if options.cascade and right:
        answers += cascade_answers(untouched, tokenizer, model, processor, right, options.batch_size, speak)
    print_report(answers, options.answers)


if __name__ == "__main__":
    main()
