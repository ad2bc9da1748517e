"""python benchmarks/builders.py [--rows 10000] [--processes 1] [--timed 20] [--seed 0]

What `soundwave-hf data build` costs. Each builder makes `--rows` rows of 300 clips of 2 to 6 seconds, tones that stand
for speech, with labels for all 15 tasks of Stage III and word times of a corpus. `spoken` uses a function that returns
a tone, so that only the builder's own time counts. `--timed` rows get word times by the CTC head of `--model`, by
default the shipped weights.

It prints one Markdown table: rows a second of each builder, with opening its data, writing FLAC and manifests. Then
every row of every builder is rendered by the chat templates of Llama 3, ChatML and Gemma. It ends with an error if a
template fails, or if a rendered text lacks the question, the answer or an audio token.
"""

import argparse
import glob
import json
import random
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
from transformers import WhisperFeatureExtractor

from soundwave_hf import SoundwaveProcessor
from soundwave_hf.data.build.run import build
from soundwave_hf.data.build.tasks import TASKS
from soundwave_hf.data.manifest import read_rows, write_rows
from soundwave_hf.data.rows import conversation_of
from soundwave_hf.data.tiny import byte_tokenizer
from soundwave_hf.processing.processing_soundwave import ASR_QUESTION


RATE = 16_000
CLIPS, SOUNDS = 300, 40
WORDS = "the river house seven morning open small they never walk under paper blue train quiet".split()  # noqa: SIM905
LABELS = {
    "emotion": ["happy", "sad", "angry", "calm", "bored"],
    "age": ["teens", "twenties", "forties", "sixties"],
    "gender": ["female", "male"],
    "language": ["en", "de", "fr", "es", "it"],
    "entity_kind": ["city", "person", "food"],
    "intent": ["set_alarm", "play_music", "get_weather", "book_table"],
    "vocal_sound": ["cough", "laughter", "sneeze", "sigh"],
    "scene": ["park", "bus", "kitchen", "street"],
    "target_language": ["de", "nl", "it"],
    "speakers": [1, 2, 3],
    "synthesized": [True, False],
}
ENTITIES = {"city": ["Rome", "Oslo", "Lima"], "person": ["Ada", "Max", "Ines"], "food": ["rice", "soup", "bread"]}

# The structure of each model's prompts; a system turn is refused by Gemma.
LLAMA_3 = (
    "{{ '<|begin_of_text|>' }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + "
    "'<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
GEMMA = (
    "{{ '<bos>' }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('turns must alternate') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\\n' + "
    "message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
TEMPLATES = {"Llama 3": LLAMA_3, "ChatML": CHATML, "Gemma": GEMMA}


# ---- what is built from ----


def tone(seconds: float, hertz: float) -> np.ndarray:
    clock = np.arange(int(seconds * RATE)) / RATE
    return (0.2 * np.sin(2 * np.pi * hertz * clock) * np.sin(np.pi * 3 * clock) ** 2).astype(np.float32)


def write_data(folder: Path, count: int, seed: int):
    """speech.jsonl with `count` rows of `CLIPS` clips, sounds.jsonl, and texts.jsonl with `count` texts to speak."""
    rng = random.Random(seed)
    (folder / "clips").mkdir()
    clips = []
    for number in range(CLIPS):
        words = rng.choices(WORDS, k=rng.randint(4, 12))
        path = folder / "clips" / f"{number}.flac"
        soundfile.write(path, tone(len(words) / 2, 150 + number), RATE)
        timed = [{"text": word, "start": n / 2, "end": n / 2 + 0.5} for n, word in enumerate(words)]
        clips.append({"audio": str(path), "text": " ".join(words), "words": timed, "seconds": len(words) / 2})
    rows = []
    for number in range(count):
        row = {**clips[number % CLIPS], **{name: rng.choice(labels) for name, labels in LABELS.items()}}
        row |= {"entity": rng.choice(ENTITIES[row["entity_kind"]]), "translation": f"Satz {number}."}
        row |= {"speaker": f"s{number % 50}", "question": f"What is line {number} about?", "answer": f"Line {number}."}
        rows.append(row)
    write_rows(folder / "speech.jsonl", rows)
    for number in range(SOUNDS):
        soundfile.write(folder / "clips" / f"sound{number}.flac", tone(5, 900 + number), RATE)
    sounds = [{"audio": f"clips/sound{n}.flac", "label": f"sound {chr(97 + n % 26)}"} for n in range(SOUNDS)]
    write_rows(folder / "sounds.jsonl", sounds)
    texts = [{"text": " ".join(rng.choices(WORDS, k=8)) + "?", "answer": f"Answer {n}."} for n in range(count)]
    write_rows(folder / "texts.jsonl", texts)


def say(text: str, voice: str, speed: float) -> tuple[np.ndarray, int]:
    """A tone of a third of a second for each word."""
    return tone(len(text.split()) / 3 / speed, {"low": 200, "high": 400}[voice]), RATE


def steps(folder: Path, rows: int, timed: int, model: str) -> list[dict]:
    speech = str(folder / "speech.jsonl")
    every = {"build": "tasks", "data": speech, "chain_of_thought": 0.2, "text_only": 0.1, "tasks": list(TASKS)}
    spoken = {"build": "spoken", "data": str(folder / "texts.jsonl"), "function": f"{__name__}:say"}
    found = [
        {"build": "sounds", "data": speech, "sounds": str(folder / "sounds.jsonl")},
        {"build": "conversations", "data": speech, "speakers": [2, 3], "pause_seconds": [-0.3, 0.5]},
        every,
        spoken | {"voices": ["low", "high"], "speed": [0.9, 1.1]},
    ]
    return found + ([{"build": "word_times", "data": speech, "rows": timed, "model": model}] if timed else [])


# ---- measuring ----


def built_rows(folder: Path, name: str) -> list[dict]:
    return [row for path in sorted(glob.glob(str(folder / f"{name}-*.jsonl"))) for row in read_rows(Path(path))]


def render_all(rows: list[dict], template: str) -> int:
    """Render every row. Returns how many. Raises: `RuntimeError` if something of a row is lost."""
    tokenizer = byte_tokenizer(("<|audio|>",))
    tokenizer.chat_template = template
    processor = SoundwaveProcessor(WhisperFeatureExtractor(), tokenizer)
    for row in rows:
        messages = conversation_of(row, ASR_QUESTION)
        text = processor.apply_chat_template(messages, tokenize=False)
        parts = [part for message in messages for part in message["content"]]
        lost = [part["text"] for part in parts if part["type"] == "text" and part["text"].strip() not in text]
        if lost or text.count(processor.audio_token) != sum(part["type"] == "audio" for part in parts):
            raise RuntimeError(f"The template lost {lost or 'an audio token'} of {json.dumps(row)[:300]}: {text!r}")
    return len(rows)


def measure(folder: Path, options: argparse.Namespace) -> list[str]:
    """Lines of the table."""
    write_data(folder, options.rows, options.seed)
    lines, everything = ["| builder | rows | not made | rows a second |", "|---|---|---|---|"], []
    for step in steps(folder, options.rows, options.timed, options.model):
        out, start = folder / step["build"], time.perf_counter()
        (built,) = build({"seed": options.seed, "steps": [step]}, out, options.processes)
        seconds = time.perf_counter() - start
        rate = built.rows / seconds
        lines.append(f"| {built.name} | {built.rows} | {len(built.skipped)} | {rate:.{0 if rate > 10 else 2}f} |")
        everything += built_rows(out, built.name)
    counts = {name: render_all(everything, template) for name, template in TEMPLATES.items()}
    lines.append("")
    lines.append(f"Rendered without an error: {', '.join(f'{count} by {name}' for name, count in counts.items())}.")
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[1])
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--timed", type=int, default=20, help="rows that get word times by the CTC head")
    parser.add_argument("--model", default="weights/soundwave-small")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print("\n".join(measure(Path(folder), options)))


if __name__ == "__main__":
    main()
