"""python benchmarks/corrupted.py make SOURCE OUT --hours 5
python benchmarks/corrupted.py score OUT --ctc FOLDER [--whisper openai/whisper-base] [--share 0.1]

How well the filters of `soundwave-hf data clean` find bad transcripts.

`make` takes clips of SOURCE with true transcripts (a manifest: `audio`, `text`, `seconds`) and corrupts a fifth of
them, from a seed: `wrong` has the text of another clip, `cut` has lost the last third of its words or more, `inserted`
has two to five words of other texts more, and `noise` has white noise 0 to 10 dB above the speech. OUT gets
`true.jsonl` (the rows before), `rows.jsonl` (with a column `corruption`) and the noisy clips.

`score` prints three Markdown tables. Each filter with its default threshold (recordings from 1 s), and all of them
together: rows dropped, precision (the share of dropped rows that are corrupted) and recall (the share of corrupted
rows that are dropped), also by kind. Then filters with models at equal recall: their thresholds are moved until they
find 80, 90 and 95 % of the corrupted rows. Then what each filter costs, in seconds for an hour of audio. `--share`
scores a random part of the rows, because Whisper is slow. `--kept FILE` writes the rows that all filters keep.
"""

import argparse
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from soundwave_hf.data.clean.filter import Clip, Filter
from soundwave_hf.data.clean.settings import read_filters
from soundwave_hf.data.manifest import read_rows, write_rows
from soundwave_hf.processing.audio_soundwave import load_clip


RATE = 16_000
KINDS = ("wrong", "cut", "inserted", "noise")
CORRUPTED_SHARE = 0.2
RECALLS = (0.8, 0.9, 0.95)
CLIPS_AT_ONCE = 32
WORSE = {"ctc": -1, "whisper": 1}  # the sign that makes a larger value a worse row


def samples_of(row: dict) -> np.ndarray:
    return load_clip(row["audio"], "A clip", None, RATE, 0.0)


# ---- make ----


def cut_text(words: list[str], rng: random.Random) -> list[str]:
    """The first words alone: from a third to two thirds of them, at least one."""
    return words[: max(1, int(len(words) * rng.uniform(1 / 3, 2 / 3)))]


def insert_words(words: list[str], pool: list[str], rng: random.Random) -> list[str]:
    """Two to five words of other texts, at random places."""
    found = list(words)
    for _ in range(rng.randint(2, 5)):
        found.insert(rng.randrange(len(found) + 1), rng.choice(pool))
    return found


def noisy(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """White noise over the speech, 0 to 10 dB above it; the sum is scaled to the loudness before."""
    power = np.sqrt(np.mean(samples**2))
    louder = 10 ** (rng.uniform(0, 10) / 20)
    mixed = samples + louder * power * rng.standard_normal(len(samples))
    return (mixed / np.sqrt(1 + louder**2)).astype(np.float32)


def corrupt(rows: list[dict], folder: Path, seed: int) -> list[dict]:
    """The rows with a column `corruption`; noisy clips are written to `folder`.

    Rows of one word are never `cut`, and `wrong` never takes an equal text.
    """
    rng = random.Random(seed)
    chosen = rng.sample(range(len(rows)), round(CORRUPTED_SHARE * len(rows)))
    kinds = dict(zip(chosen, (KINDS[place % len(KINDS)] for place in range(len(chosen))), strict=True))
    pool = [word for row in rows for word in row["text"].split()]
    found = []
    for number, row in enumerate(rows):
        kind, words = kinds.get(number, "none"), row["text"].split()
        kind = "inserted" if kind == "cut" and len(words) < 2 else kind
        if kind == "wrong":
            text = rng.choice([other["text"] for other in rng.sample(rows, 9) if other["text"] != row["text"]])
            row = row | {"text": text}
        elif kind == "cut":
            row = row | {"text": " ".join(cut_text(words, rng))}
        elif kind == "inserted":
            row = row | {"text": " ".join(insert_words(words, pool, rng))}
        elif kind == "noise":
            path = folder / "noise" / f"{number:06d}.flac"
            path.parent.mkdir(parents=True, exist_ok=True)
            samples = noisy(samples_of(row), np.random.default_rng((seed, number)))
            soundfile.write(path, np.clip(samples, -1, 1), RATE)
            row = row | {"audio": str(path)}
        found.append(row | {"corruption": kind})
    return found


def make(source: Path, folder: Path, hours: float, seed: int) -> None:
    """Write `rows.jsonl`: random clips of 1 to 30 s, `hours` of them, a fifth corrupted."""
    rows = [row for row in read_rows(source) if row["text"].strip() and 1 <= row["seconds"] <= 30]
    random.Random(seed).shuffle(rows)
    ends = np.cumsum([row["seconds"] for row in rows])
    if ends[-1] < 3600 * hours:
        raise SystemExit(f"`{source}` has {ends[-1] / 3600:.2f} h of clips of 1 to 30 s; `--hours` is {hours:g}.")
    rows = rows[: int(np.searchsorted(ends, 3600 * hours)) + 1]
    rows = [row | {"audio": str((source.parent / row["audio"]).resolve())} for row in rows]
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / "true.jsonl", rows)
    write_rows(folder / "rows.jsonl", corrupt(rows, folder, seed))


# ---- score ----


def measure(one: Filter, rows: Sequence[dict]) -> tuple[list, float]:
    """Value of each row, and the seconds that the filter took, without reading files."""
    one.load()
    values, taken = [], 0.0
    for begin in range(0, len(rows), CLIPS_AT_ONCE):
        part = rows[begin : begin + CLIPS_AT_ONCE]
        sounds = [samples_of(row) if one.reads_samples else None for row in part]
        clips = [Clip(row, row["text"], row["seconds"], sound) for row, sound in zip(part, sounds, strict=True)]
        start = time.perf_counter()
        values += one.measure(clips)
        taken += time.perf_counter() - start
    return values, taken


def share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}" if whole else "-"


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, *rows)]
    print("\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]]) + "\n", flush=True)


def found_cells(name: str, dropped: np.ndarray, kinds: np.ndarray) -> list[str]:
    """A row of the first table."""
    bad = kinds != "none"
    recalls = [share(int((dropped & (kinds == kind)).sum()), int((kinds == kind).sum())) for kind in KINDS]
    found = int((dropped & bad).sum())
    return [name, str(int(dropped.sum())), share(found, int(dropped.sum())), share(found, int(bad.sum())), *recalls]


def precision_at(badness: np.ndarray, bad: np.ndarray, recall: float) -> str:
    """Precision in percent where the threshold finds `recall` of the bad rows."""
    order = np.argsort(-badness, kind="stable")
    found = np.cumsum(bad[order])
    place = int(np.searchsorted(found, recall * bad.sum()))
    return share(int(found[place]), place + 1)


@dataclass
class Result:
    """What one filter said of the rows."""

    name: str
    values: list
    dropped: np.ndarray  # (rows,), bool
    seconds_an_hour: float  # time that it took for an hour of audio


def run_filter(one: Filter, rows: list[dict]) -> Result:
    values, taken = measure(one, rows)
    dropped = np.array([value is not None and not one.keeps(value) for value in values])
    return Result(one.name, values, dropped, 3600 * taken / sum(row["seconds"] for row in rows))


def print_equal_recall(results: Sequence[Result], bad: np.ndarray) -> None:
    """Precision of the filters with models."""
    rows = []
    for result in results:
        badness = np.array([WORSE[result.name] * value for value in result.values])
        rows.append([result.name, *(precision_at(badness, bad, recall) for recall in RECALLS)])
    print_table(["precision % at recall", *(f"{recall:.0%}" for recall in RECALLS)], rows)


def score(given: argparse.Namespace) -> None:
    rows = read_rows(given.folder / "rows.jsonl")
    rows = random.Random(f"share {given.seed}").sample(rows, round(given.share * len(rows)))
    kinds = np.array([row["corruption"] for row in rows])
    models = {"ctc": {"model": given.ctc}} | ({"whisper": {"model": given.whisper}} if given.whisper else {})
    filters, _ = read_filters({"seconds": {"min_seconds": 1}, **models})
    results = [run_filter(one, rows) for one in filters]
    hours = sum(row["seconds"] for row in rows) / 3600
    print(f"{len(rows)} clips, {hours:.2f} h, {(kinds != 'none').sum()} corrupted\n")
    together = np.any([result.dropped for result in results], axis=0)
    cells = [found_cells(result.name, result.dropped, kinds) for result in results]
    print_table(
        ["filter", "dropped", "precision %", "recall %", *KINDS], [*cells, found_cells("all", together, kinds)]
    )
    print_equal_recall([result for result in results if result.name in WORSE], kinds != "none")
    costs = [[result.name, f"{result.seconds_an_hour:.1f}"] for result in results]
    print_table(["filter", "s an hour of audio"], costs)
    if given.kept:
        write_rows(given.kept, [row for row, drop in zip(rows, together, strict=True) if not drop])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    makes, scores = steps.add_parser("make"), steps.add_parser("score")
    makes.add_argument("source", type=Path)
    makes.add_argument("--hours", type=float, default=5.0)
    scores.add_argument("--ctc", required=True, help="folder of a model or of adapters with a trained CTC head")
    scores.add_argument("--whisper", help="such as openai/whisper-base")
    scores.add_argument("--share", type=float, default=1.0, help="part of the rows that is scored")
    scores.add_argument("--kept", type=Path, help="JSON lines of the rows that all filters keep")
    for step in (makes, scores):
        step.add_argument("folder", metavar="OUT", type=Path)
        step.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if given.step == "make":
        make(given.source, given.folder, given.hours, given.seed)
    else:
        score(given)


if __name__ == "__main__":
    main()
