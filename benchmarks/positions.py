"""python benchmarks/positions.py [--adapter weights/soundwave-small] [--sets human synthetic] [--clips 20] [--max 3 2]

What fewer or more LLM positions of a clip cost and save: `max_positions_per_second`, `min_positions_per_second` and
`keep_blanks` of `generate`. All settings transcribe the same clips of validation sets with the same weights, greedily
(`--ctc-weight`: with joint decoding). It prints a Markdown table with one row for each setting:

- positions a second of audio, over all clips;
- WER: of the answers;
- CPU s a clip: process time of `generate`, encoder included, all threads.
"""

import argparse
import sys
import time
from dataclasses import dataclass

import torch
from transformers.utils.logging import disable_progress_bar

from soundwave_hf.evaluation.metrics import error_counts, positions_per_second
from soundwave_hf.evaluation.sets import SETS, read_set
from soundwave_hf.evaluation.shipped import ADAPTER, load_adapter
from soundwave_hf.evaluation.transcribe import WINDOW_SECONDS, batches_of_like_length, generated_texts
from soundwave_hf.modeling.positions_soundwave import find_position_limits


@dataclass
class Point:
    """One setting's place on the curve."""

    positions_per_second: float
    wer: float
    cpu_seconds_per_clip: float


def settings(highest: list[float], lowest: list[float]) -> dict[str, dict]:
    """Name and options of `generate` of each row."""
    found = {"as trained": {}}
    found |= {f"at most {value:g}": {"max_positions_per_second": value} for value in highest}
    found |= {f"at least {value:g}": {"min_positions_per_second": value} for value in lowest}
    found |= {f"blanks {'kept' if keep else 'left out'}": {"keep_blanks": keep} for keep in (True, False)}
    return found


@torch.inference_mode()
def measure(model, processor, rows: list[dict], batch_size: int, **options) -> Point:
    """Transcribe rows with options of `generate`."""
    seconds = [row["seconds"] for row in rows]
    texts, positions, taken = [""] * len(rows), [0] * len(rows), 0.0
    for batch in batches_of_like_length(seconds, batch_size):
        inputs = processor.apply_transcription_request([rows[place]["audio"] for place in batch])
        begin = time.process_time()
        found, _ = generated_texts(model, processor, inputs, num_beams=1, **options)
        taken += time.process_time() - begin
        clips = {name: inputs[name] for name in ("input_features", "input_features_mask")}
        audio = model.get_audio_features(**clips, position_limits=find_position_limits(model, options))
        for place, text, number in zip(batch, found, audio.num_positions.tolist(), strict=True):
            texts[place], positions[place] = text, number
    errors = error_counts([row["text"] for row in rows], texts)
    return Point(positions_per_second(positions, seconds), errors.rate, taken / len(rows))


def line(name: str, point: Point) -> str:
    return f"| {name} | {point.positions_per_second:.2f} | {100 * point.wer:.1f} | {point.cpu_seconds_per_clip:.2f} |"


def main(words: list[str] | None = None):
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", default=str(ADAPTER), help="trained adapters; default: the shipped ones")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=["human", "synthetic"])
    parser.add_argument("--clips", type=int, help="the first of each set; default: all")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--max", type=float, nargs="*", default=[3, 2.5, 2], help="highest positions a second")
    parser.add_argument("--min", type=float, nargs="*", default=[5], help="lowest positions a second")
    parser.add_argument("--ctc-weight", type=float, default=0.0)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args(words)
    torch.set_num_threads(given.threads)
    disable_progress_bar()
    model, processor = load_adapter(given.adapter)
    sets = [[row for row in read_set(name) if row["seconds"] <= WINDOW_SECONDS][: given.clips] for name in given.sets]
    rows = [row for found in sets for row in found]
    seconds = sum(row["seconds"] for row in rows)
    print(f"{len(rows)} clips of {' and '.join(given.sets)}, {seconds:.0f} s, {given.threads} threads\n")
    print("| positions | a second | WER % | CPU s a clip |\n|---|---|---|---|", flush=True)
    for name, options in settings(given.max, given.min).items():
        point = measure(model, processor, rows, given.batch_size, ctc_weight=given.ctc_weight, **options)
        print(line(name, point), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
