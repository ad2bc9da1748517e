"""python benchmarks/hotwords.py [--adapter weights/soundwave-small] [--clips 40] [--others 100] [--seed 0]

What hotwords do to names that no training text holds. The names are invented (`Kestrelmoor`), the sentences are those
of `examples/soundwave-small/name_sentences.py`, the voices are Kokoro's that are kept out of training (`--voice awb`:
flite's). Each clip with names gets its own names and 100 other invented names as hotwords. Clips without them, which
have common names, get 100 invented names.

It prints one Markdown table, a row for each weight (0: no hotwords): the share of names that are wrong, the word error
rate of the clips with names, and of those without; and leaks: transcripts with a hotword that nobody said.

`--scores` prints instead how well the filter works: for several thresholds (`LEAST_HEARD` in hotwords_soundwave.py),
the share of names that it keeps, and how many others it keeps a clip. That needs no LLM.

`--split choose` has other names and voices than the default, `test`. Weight and threshold were chosen on it.
"""

import argparse
import random
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from soundwave_hf import SoundwaveForConditionalGeneration, SoundwaveProcessor
from soundwave_hf.evaluation.metrics import word_error_rate
from soundwave_hf.evaluation.shipped import ADAPTER, EXAMPLES
from soundwave_hf.evaluation.transcribe import generated_texts
from soundwave_hf.modeling import hotwords_soundwave
from soundwave_hf.modeling.ctc_text_soundwave import ctc_form, find_bridge
from soundwave_hf.modeling.hotwords_soundwave import CTC_WEIGHT, HOTWORD_WEIGHT, phrase_scores


RATE = 16_000
STEMS = """
Kestrel Zyph Thorn Quill Bram Vel Cald Fenn Hal Ister Jorr Lyd Norr Pell Rav Sten Tarr Ulver Wex Yarr Drum Glen
""".split()  # noqa: SIM905
ENDINGS = "moor rane wick dale mere ford ston holm rick vane loft combe garth ley burn".split()  # noqa: SIM905
FRAMES = (
    "My name is {a}, and I am calling from {b}.",
    "Did {a} leave a message for {b}?",
    "When does the next flight from {a} to {b} leave?",
    "Our office in {a} opens again on Monday.",
    "Mister {a} will meet Missus {b} at the station.",
    "Please send the letter to {a} before the weekend.",
    "It takes about two hours to drive from {a} to {b}.",
    "Tell Doctor {a} that the train to {b} is late.",
    "Have you ever been to Port {a} in winter?",
    "The weather in {a} is much colder than here.",
)
THRESHOLDS = (-1.0, -2.0, -3.0, -4.0, -5.0, -6.0, -8.0)


@dataclass
class Clip:
    """A spoken sentence."""

    samples: np.ndarray
    text: str
    names: list[str]  # invented names in it
    hotwords: list[str]


def invented_names(split: str) -> list[str]:
    """Names of a split, in random order. The splits have no name in common."""
    names = [stem + ending for stem in STEMS for ending in ENDINGS]
    random.Random(0).shuffle(names)
    half = len(names) // 2
    return names[:half] if split == "choose" else names[half:]


def sentences(split: str, clips: int, others: int, distractors: int, seed: int) -> Iterator[tuple[str, list, list]]:
    """Text, invented names and hotwords of each clip: first those with names, then those without."""
    from name_sentences import name_sentences

    rng, names = random.Random(f"{split} {seed}"), invented_names(split)
    for number in range(clips):
        frame = FRAMES[number % len(FRAMES)]
        own = rng.sample(names, len(re.findall(r"{\w}", frame)))
        text = frame.format(**dict(zip("ab", own, strict=False)))
        wrong = rng.sample([name for name in names if name not in own], min(distractors, len(names) - len(own)))
        yield text, own, rng.sample(own + wrong, len(own + wrong))
    for text in name_sentences(others, rng):
        yield text, [], rng.sample(names, min(distractors, len(names)))


def speaker(voice: str, split: str):
    """A function from a text and a random generator to int16 samples."""
    if voice != "kokoro":
        from voices import flite_samples

        return lambda text, rng: flite_samples(text, voice, rng.uniform(0.9, 1.1), 1.0)
    from kokoro_voices import HELD_OUT_VOICES, Kokoro, draw_voice, kokoro_folder

    kokoro = Kokoro(kokoro_folder())
    voices = HELD_OUT_VOICES[::2] if split == "choose" else HELD_OUT_VOICES[1::2]
    return lambda text, rng: kokoro.say(text, draw_voice(rng, voices), rng.uniform(0.9, 1.1))


def speak(options) -> list[Clip]:
    sys.path.insert(0, str(EXAMPLES / "soundwave-small"))
    say, rng = speaker(options.voice, options.split), random.Random(options.seed)
    planned = sentences(options.split, options.clips, options.others, options.distractors, options.seed)
    return [Clip(say(text, rng), text, names, hotwords) for text, names, hotwords in planned]


def has(text: str, name: str) -> bool:
    """Whether a text holds a name, whatever its case."""
    return f"{ctc_form(name, 'lower')} " in f"{ctc_form(text, 'lower')} "


def transcribe(model, processor, clips: list[Clip], options, weight: float) -> list[str]:
    texts = []
    for begin in range(0, len(clips), options.batch_size):
        batch = clips[begin : begin + options.batch_size]
        inputs = processor.apply_transcription_request([clip.samples for clip in batch], sampling_rate=RATE)
        own = {"hotwords": [clip.hotwords for clip in batch], "hotword_weight": weight} if weight else {}
        own |= {"ctc_weight": options.ctc_weight, "num_beams": options.num_beams}
        texts += generated_texts(model, processor, inputs, 80, **own)[0]
        print(f"{begin + len(batch)} of {len(clips)}", end="\r", file=sys.stderr)
    return texts


def report(clips: list[Clip], texts: list[str], weight: float, seconds: float) -> str:
    pairs = list(zip(clips, texts, strict=True))
    wrong = [not has(text, name) for clip, text in pairs for name in clip.names]
    leaks = [sum(has(text, word) for word in set(clip.hotwords) - set(clip.names)) > 0 for clip, text in pairs]
    rates = []
    for named in (True, False):
        kept = [(clip.text, text) for clip, text in pairs if bool(clip.names) == named]
        rates.append(f"{100 * word_error_rate(*zip(*kept, strict=True)):.1f}" if kept else "")
    leaked = [
        sum(leak for leak, clip in zip(leaks, clips, strict=True) if bool(clip.names) == n) for n in (True, False)
    ]
    names = f"{sum(wrong)} of {len(wrong)}"
    return f"| {weight:g} | {names} | {rates[0]} | {rates[1]} | {leaked[0]} | {leaked[1]} | {seconds:.2f} |"


@torch.inference_mode()
def filter_table(model, processor, clips: list[Clip]) -> list[str]:
    bridge, own, wrong, seconds = find_bridge(model, processor), [], [], 0.0
    for clip in clips:
        features = processor.log_mel(processor.load_clips([{"array": clip.samples, "sampling_rate": RATE}]))
        (found,) = model.get_ctc_clips(**{name: torch.from_numpy(values) for name, values in features.items()})
        start = time.perf_counter()
        scores = phrase_scores(bridge.texts(found.frames), clip.hotwords, bridge, min(THRESHOLDS))
        seconds += time.perf_counter() - start
        for one in scores:
            (own if one.phrase in clip.names else wrong).append(one.score)
    lines = [f"({len(own)} names in {len(clips)} clips; {1000 * seconds / len(clips):.0f} ms a clip)\n"]
    lines += ["| threshold | names kept | others kept a clip |", "|---|---|---|"]
    for least in THRESHOLDS:
        kept = 100 * np.mean(np.array(own) >= least)
        lines.append(f"| {least:g} | {kept:.0f} % | {np.sum(np.array(wrong) >= least) / len(clips):.2f} |")
    return lines


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--adapter", type=Path, default=ADAPTER)
    parser.add_argument("--split", choices=("test", "choose"), default="test")
    parser.add_argument("--clips", type=int, default=40, help="clips with invented names")
    parser.add_argument("--others", type=int, default=100, help="clips without them")
    parser.add_argument("--distractors", type=int, default=100)
    parser.add_argument("--voice", default="kokoro", help="kokoro, or a voice of flite, such as awb")
    parser.add_argument("--hotword-weights", type=float, nargs="+", default=[0, HOTWORD_WEIGHT])
    parser.add_argument("--ctc-weight", type=float, default=CTC_WEIGHT)
    parser.add_argument("--least-heard", type=float, default=hotwords_soundwave.LEAST_HEARD)
    parser.add_argument("--num-beams", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--scores", action="store_true", help="measure the filter alone")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    hotwords_soundwave.LEAST_HEARD = options.least_heard
    model = SoundwaveForConditionalGeneration.from_pretrained(str(options.adapter), dtype=torch.float32).eval()
    processor = SoundwaveProcessor.from_pretrained(str(options.adapter))
    clips = speak(options)
    print(
        f"`{options.adapter}`, split {options.split}, voice {options.voice}, {options.clips} clips with names and "
        f"{options.others} without, ctc_weight {options.ctc_weight:g}, beams {options.num_beams}, "
        f"threshold {options.least_heard:g}, seed {options.seed}"
    )
    print()
    if options.scores:
        print("\n".join(filter_table(model, processor, clips)))
        return
    print("| hotword_weight | wrong names | WER % with names | without | leaks with names | without | s a clip |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for weight in options.hotword_weights:
        start = time.perf_counter()
        texts = transcribe(model, processor, clips, options, weight)
        print(report(clips, texts, weight, (time.perf_counter() - start) / len(clips)), flush=True)


if __name__ == "__main__":
    main()
