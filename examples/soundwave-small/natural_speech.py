"""Hours of natural training speech, by Kokoro-82M: `python natural_speech.py --hours 20 --processes 2`.

Writes 16 kHz FLAC clips and manifest.jsonl below `$SOUNDWAVE_HOME`/data/small/natural. It may be stopped at any time
and goes on where it was; clips come in random order, so that any beginning of the work is a fair sample of the whole.
"""

import argparse
import fcntl
import hashlib
import multiprocessing
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from kokoro_voices import HELD_OUT_VOICES, Kokoro, KokoroVoice, draw_voice, kokoro_folder
from natural_texts import Text, held_out, natural_texts
from sentences import HeldOut
from voices import LONGEST_SECONDS, SAMPLING_RATE, SHORTEST_SECONDS, clip_seconds, write_clip

from soundwave_hf.data.manifest import read_rows, write_rows
from soundwave_hf.paths import soundwave_home


SPEEDS = (0.85, 1.15)
SAVE_SECONDS = 180  # between two versions of the manifest
TEXT_SECONDS = 3.0  # a little less than a clip lasts, so that the texts suffice for the hours asked for
WORDS_A_SECOND = (0.4, 6.0)  # outside of it something went wrong
QUIETEST_PEAK = 300  # of 32,767: below it a clip is silence
MOST_TURNS = 5  # how often a text is spoken where the texts do not suffice for the hours


@dataclass(frozen=True)
class Clip:
    """One clip to be made."""

    text: Text
    voice: KokoroVoice
    speed: float
    audio: str  # path of the FLAC file below the manifest's folder

    def row(self, seconds: float) -> dict:
        """The clip's line in the manifest."""
        return {
            "audio": self.audio,
            "text": self.text.text,
            "seconds": round(seconds, 3),
            "voice": self.voice.name,
            "source": f"natural-{self.text.source}",
            "split": self.text.split,
        }


def clip_of(text: Text, seed: int) -> Clip:
    """Voice, speed and file name of a text: they depend on text and seed only, not on the order."""
    rng = random.Random(f"{seed} {text.text}")
    voice, speed = draw_voice(rng), round(rng.uniform(*SPEEDS), 3)
    digest = hashlib.sha1(f"{text.text}|{voice.name}|{speed}".encode()).hexdigest()[:16]
    return Clip(text, voice, speed, f"clips/{digest[:2]}/{digest}.flac")


def clips_of(texts: list[Text], seed: int) -> Iterator[Clip]:
    """Each text once, then each once more with another voice and speed, and so on (`MOST_TURNS`)."""
    for turn in range(MOST_TURNS):
        yield from (clip_of(text, seed + turn) for text in texts)


def planned_texts(folder: Path, count: int, kept_apart: HeldOut, seed: int) -> list[Text]:
    """The texts of the job: chosen at its first run, and read again at the next (delete the file to choose anew)."""
    path = folder / f"texts_{count}_{seed}.jsonl"
    if not path.is_file():
        texts = natural_texts(count, kept_apart, seed)
        write_rows(path, [{"text": text.text, "source": text.source, "split": text.split} for text in texts])
    texts = [Text(row["text"], row["source"]) for row in read_rows(path)]
    return [text for text in texts if not kept_apart.repeats(text.text)]


def question_texts(kept_apart: HeldOut, seed: int) -> list[Text]:
    """The questions that stage III hears, in random order."""
    from training_sets import question_pairs

    questions = [question for question, _ in question_pairs(0) if not kept_apart.repeats(question)]
    return [Text(question, "question") for question in random.Random(seed).sample(questions, len(questions))]


# ---- one clip ----

Speaker = Callable[[str, KokoroVoice, float], np.ndarray]  # text, voice, speed -> int16 samples at 16 kHz


def speak_clip(clip: Clip, folder: Path, speaker: Speaker) -> float | None:
    """Write one clip, in one step; its seconds, or None where the speech cannot be what the text says."""
    samples = speaker(clip.text.text, clip.voice, clip.speed)
    seconds = len(samples) / SAMPLING_RATE
    if not is_plausible(clip.text.text, samples):
        return None
    write_clip(folder / clip.audio, samples)
    return seconds


def is_plausible(text: str, samples: np.ndarray) -> bool:
    """Whether samples can be the text: not silent, of a usable length, at a rate at which people speak."""
    seconds = len(samples) / SAMPLING_RATE
    if not SHORTEST_SECONDS <= seconds <= LONGEST_SECONDS or np.abs(samples.astype(np.int32)).max() < QUIETEST_PEAK:
        return False
    return WORDS_A_SECOND[0] <= len(text.split()) / seconds <= WORDS_A_SECOND[1]


# ---- several processes ----

_process: dict = {}  # of a worker: its speaker and folder


def start_worker(folder: Path, model_folder: Path) -> None:
    """Load the model in a new process, which ends when the one that started it is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
    _process.update(folder=folder, speaker=Kokoro(model_folder).say)


def speak_in_worker(clip: Clip) -> tuple[float | None, float]:
    """Seconds of a clip (None: left out) and the processor seconds it took."""
    began = time.process_time()
    try:
        seconds = speak_clip(clip, _process["folder"], _process["speaker"])
    except ValueError as error:  # more phonemes than the model reads
        print(f"Left out: {clip.text.text!r}: {error}", file=sys.stderr, flush=True)
        seconds = None
    return seconds, time.process_time() - began


def spoken_by_pool(clips: Iterable[Clip], pool: Executor, ahead: int) -> Iterator[tuple]:
    """(clip, seconds or None, processor seconds) as they are done; no more than `ahead` clips are under way."""
    under_way: dict[Future, Clip] = {}
    try:
        for clip in clips:
            under_way[pool.submit(speak_in_worker, clip)] = clip
            if len(under_way) >= ahead:
                yield from done_clips(under_way)
        while under_way:
            yield from done_clips(under_way)
    finally:
        for future in under_way:  # stopped: what has not begun is for the next run
            future.cancel()


def done_clips(under_way: dict[Future, Clip]) -> Iterator[tuple]:
    """Wait for a clip, and take those that are done out of `under_way`, so that one slow process holds up no other."""
    wait(under_way, return_when=FIRST_COMPLETED)
    for future in [future for future in under_way if future.done()]:
        yield under_way.pop(future), *future.result()


# ---- the job ----


@dataclass
class Work:
    """What has been made so far, and its manifest."""

    folder: Path
    rows: dict[str, dict] = field(default_factory=dict)  # by audio path
    processor_seconds: float = 0.0  # of this run
    made_seconds: float = 0.0  # of this run
    left_out: int = 0
    saved_at: float = field(default_factory=time.monotonic)

    def __post_init__(self):
        self.seconds = sum(row["seconds"] for row in self.rows.values())  # of speech in the manifest

    def add_row(self, clip: Clip, seconds: float) -> None:
        """Take in a clip that is there."""
        self.rows[clip.audio] = clip.row(seconds)
        self.seconds += seconds

    def add(self, clip: Clip, seconds: float | None, processor_seconds: float) -> None:
        """Take in a clip that was made or left out (None)."""
        self.processor_seconds += processor_seconds
        if seconds is None:
            self.left_out += 1
            return
        self.made_seconds += seconds
        self.add_row(clip, seconds)

    def save(self) -> None:
        """Put the manifest in place in one step, and say how far the work is."""
        write_rows(self.folder / "manifest.jsonl", list(self.rows.values()))
        self.saved_at = time.monotonic()
        rate = self.made_seconds / self.processor_seconds if self.processor_seconds else 0.0
        print(
            f"{time.strftime('%H:%M:%S')} {len(self.rows)} clips, {self.seconds / 3600:.2f} h; this run "
            f"{self.made_seconds / 3600:.2f} h, {rate:.2f} h a core-hour, {self.left_out} left out",
            flush=True,
        )


def earlier_rows(folder: Path, kept_apart: HeldOut) -> dict[str, dict]:
    """Rows of an earlier run whose clip is there, by audio path; none in a held-out voice or with a held-out text."""
    path = folder / "manifest.jsonl"
    rows = read_rows(path) if path.is_file() else []
    return {
        row["audio"]: row
        for row in rows
        if (folder / row["audio"]).is_file()
        and not any(name in row["voice"] for name in HELD_OUT_VOICES)
        and not kept_apart.repeats(row["text"])
    }


def missing_clips(clips: Iterable[Clip], work: Work, hours: float) -> Iterator[Clip]:
    """Clips that are still to be made, until there are `hours` of speech; files that lack a row get one."""
    for clip in clips:
        if work.seconds >= 3600 * hours:
            return
        if clip.audio in work.rows:
            continue
        seconds = clip_seconds(work.folder / clip.audio)
        if seconds is None:
            yield clip
        else:
            work.add_row(clip, seconds)


def fill_folder(work: Work, clips: Iterable[Clip], pool: Executor, hours: float, ahead: int) -> None:
    """Make the clips that are missing until there are `hours` of speech; save at intervals, and in the end."""
    try:
        for clip, seconds, processor_seconds in spoken_by_pool(missing_clips(clips, work, hours), pool, ahead):
            work.add(clip, seconds, processor_seconds)
            if time.monotonic() - work.saved_at >= SAVE_SECONDS:
                work.save()
    finally:
        work.save()


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Hold the folder for this process.

    Raises: RuntimeError where another process works in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RuntimeError(f"Another process makes speech in {folder}. Let it end, or stop it first.") from error
        yield


def make_natural_speech(hours: float, processes: int, seed: int = 0, questions: bool = False) -> Path:
    """Make clips until there are `hours` of speech; returns the folder of clips and manifest.

    Args: questions: whether the questions of Stage III are spoken before the other texts.
    """
    folder = soundwave_home() / "data" / "small" / "natural"
    with only_one(folder):
        model_folder, kept_apart = kokoro_folder(), held_out(folder)
        texts = question_texts(kept_apart, seed) if questions else []
        texts += planned_texts(folder, round(3600 * hours / TEXT_SECONDS), kept_apart, seed)
        work = Work(folder, earlier_rows(folder, kept_apart))
        print(f"{len(texts)} texts; {work.seconds / 3600:.2f} h of speech are there", flush=True)
        start = {"initializer": start_worker, "initargs": (folder, model_folder)}
        with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"), **start) as pool:
            fill_folder(work, clips_of(texts, seed), pool, hours, ahead=4 * processes)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hours", type=float, default=20.0, help="of speech, with what is there")
    parser.add_argument("--processes", type=int, default=2, help="one uses one core and about 0.5 GB")
    parser.add_argument("--seed", type=int, default=0, help="of texts, voices and speeds")
    parser.add_argument("--questions", action="store_true", help="speak the questions of Stage III before other texts")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("Stopped; the same command goes on from here."))
    print(f"Done: {make_natural_speech(options.hours, options.processes, options.seed, options.questions)}")


if __name__ == "__main__":
    main()
