"""python benchmarks/hallucinations.py [--adapter weights/soundwave-small] [--sets human librivox synthetic] [--seed 0]

How well the CTC head tells words that nobody said from words that were said. True transcripts are corrupted from a
seed, one place a clip: `insert` puts a random word of other transcripts in, `swap` puts it in another word's place,
`loop` repeats the last one to four words one to five times. Of the copies of a loop, those with the most support at
their place count as said: equal words are not to be told apart.

It prints one Markdown table, a set and kind of corruption a row: the AUROC of `support` over words (invented against
said), and at the threshold (`LEAST_SUPPORT` of `support_soundwave.py`, or `--threshold`) which share of invented words
is found and which share of said words is lost. `true` is the transcripts as they are.

`--data FILE.jsonl` measures clips of a manifest instead (`audio`, `text`). The threshold was chosen so: on 80 clips of
the neural voices of `examples/soundwave-small/kokoro_voices.py`, which are in none of the sets.
"""

import argparse
import random
from pathlib import Path

import numpy as np
import torch

from soundwave_hf import SoundwaveForConditionalGeneration, SoundwaveProcessor
from soundwave_hf.data.manifest import read_rows
from soundwave_hf.evaluation.evaluate import SETS, read_set
from soundwave_hf.evaluation.shipped import ADAPTER
from soundwave_hf.modeling.ctc_text_soundwave import bridge_of, ctc_form
from soundwave_hf.modeling.support_soundwave import LEAST_SUPPORT, score_words


WITHOUT_FRAMES = -100.0  # nats a label, in place of -inf


def corrupt(kind: str, words: list[str], pool: list[str], rng: random.Random) -> tuple[list[str], list[list[int]]]:
    """Words with one corruption, and the places of invented words; a loop gives the copies of each of its places."""
    if kind == "true":
        return words, []
    if kind == "insert":
        place = rng.randrange(len(words) + 1)
        return [*words[:place], rng.choice(pool), *words[place:]], [[place]]
    if kind == "swap":
        place = rng.randrange(len(words))
        other = rng.choice([word for word in pool if word != words[place]])
        return [*words[:place], other, *words[place + 1 :]], [[place]]
    length, copies = rng.randint(1, min(4, len(words))), rng.randint(1, 5)
    end = rng.randrange(length, len(words) + 1)
    looped = [*words[:end], *words[end - length : end] * copies, *words[end:]]
    return looped, [[end - length + n + length * copy for copy in range(copies + 1)] for n in range(length)]


def auroc(invented: np.ndarray, said: np.ndarray) -> float:
    """Probability that an invented word has less support than a said one; equal support counts half."""
    said = np.sort(said)
    below, up_to = (np.searchsorted(said, invented, side=side) for side in ("left", "right"))
    return float(np.mean(len(said) - (below + up_to) / 2) / len(said))


def judge(clip, words: list[str], places: list[list[int]], bridge, threshold: float) -> tuple[list, list]:
    """Support and verdict of invented and of said words."""
    heard = score_words(clip, " ".join(words), bridge, threshold)
    invented = set()
    for copies in places:
        ranked = sorted(copies, key=lambda place: heard[place].support)
        invented |= set(ranked if len(copies) == 1 else ranked[:-1])
    found = ([], [])
    for place, word in enumerate(heard):
        found[place not in invented].append((max(word.support, WITHOUT_FRAMES), word.supported))
    return found


def measure_set(model, processor, rows: list[dict], threshold: float, seed: int) -> dict[str, tuple[list, list]]:
    """Invented and said words of each kind of corruption."""
    texts = [ctc_form(row["text"], "lower").split() for row in rows]
    pool = sorted({word for words in texts for word in words})
    rng, found = random.Random(seed), {}
    for row, words in zip(rows, texts, strict=True):
        if not words:
            continue
        features = processor.log_mel(processor.load_clips([row["audio"]]))
        with torch.inference_mode():
            (clip,) = model.get_ctc_clips(**{name: torch.from_numpy(values) for name, values in features.items()})
        bridge = bridge_of(processor.tokenizer, clip.form)
        for kind in ("true", "insert", "swap", "loop"):
            invented, said = judge(clip, *corrupt(kind, words, pool, rng), bridge, threshold)
            for name in (kind, "all corruptions") if kind != "true" else (kind,):
                kept = found.setdefault(name, ([], []))
                kept[0].extend(invented)
                kept[1].extend(said)
    return found


def table_rows(name: str, found: dict[str, tuple[list, list]]) -> list[str]:
    lines = []
    for kind, (invented, said) in found.items():
        said_support, said_kept = map(np.array, zip(*said, strict=True))
        score, caught = "", ""
        if invented:
            support, kept = map(np.array, zip(*invented, strict=True))
            score, caught = f"{auroc(support, said_support):.3f}", f"{100 * np.mean(~kept):.1f}"
        lost = f"{100 * np.mean(~said_kept):.1f}"
        lines.append(f"| {name} | {kind} | {len(invented)} | {len(said)} | {score} | {caught} | {lost} |")
    return lines


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--adapter", type=Path, default=ADAPTER)
    parser.add_argument("--sets", nargs="*", default=list(SETS))
    parser.add_argument("--data", type=Path, help="manifest of other clips")
    parser.add_argument("--clips", type=int, help="the first so many of each set")
    parser.add_argument("--threshold", type=float, default=LEAST_SUPPORT)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    model = SoundwaveForConditionalGeneration.from_pretrained(str(options.adapter), dtype=torch.float32).eval()
    processor = SoundwaveProcessor.from_pretrained(str(options.adapter))
    sets = {} if options.data else {name: read_set(name) for name in options.sets}
    if options.data:
        rows = read_rows(options.data)
        sets = {options.data.stem: [{**row, "audio": str(options.data.parent / row["audio"])} for row in rows]}
    print(f"`{options.adapter}`, threshold {options.threshold:g} nats a label, seed {options.seed}\n")
    print("| set | corruption | invented words | said words | AUROC | found % | said, lost % |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for name, rows in sets.items():
        found = measure_set(model, processor, rows[: options.clips], options.threshold, options.seed)
        print("\n".join(table_rows(name, found)), flush=True)


if __name__ == "__main__":
    main()
