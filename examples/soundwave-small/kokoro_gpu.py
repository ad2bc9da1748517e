"""Speech from prepared jobs (`prepare_kokoro_jobs.py`) on a GPU machine without the project: clips and a manifest.

    python kokoro_gpu.py --jobs kokoro_jobs.jsonl.gz --styles kokoro_styles.npz --model model.onnx --out natural

Needs this file and kokoro_torch.py side by side, numpy, soundfile, onnx and torch (or onnxruntime and soxr or scipy
with `--engine onnxruntime`). It may be stopped at any time (Ctrl-C, SIGTERM, `--minutes`): the manifest then has a
line for each clip that is there, and the same command goes on. The jobs are in random order, and each round of them is
spoken in random order, so that any beginning of the work is a fair sample of the whole.
"""

import argparse
import gzip
import json
import multiprocessing
import os
import queue
import random
import signal
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile


MODEL_RATE, SAMPLING_RATE = 24_000, 16_000
# The limits of `voices.is_plausible`.
SHORTEST_SECONDS, LONGEST_SECONDS = 0.3, 20.0
WORDS_A_SECOND = (0.4, 6.0)
QUIETEST_PEAK = 300  # of 32,767

ROUND_CLIPS = 16_000  # read at once, so that many are of one length; about 5 GB of GPU memory
TOKENS = 8_192  # in one batch of text
FRAMES = 6_400  # of 25 ms, in one batch of speech
FRAME_STEP = 8  # clips are spoken at a multiple of it, so that fewer lengths differ, and then cut to their own
FRAMES_A_SECOND = 40
CLIPS_A_TASK = 8  # for a writing process, where the model is here
REPORT_SECONDS = 10


# ---- jobs ----


def read_jobs(path: Path) -> list[dict]:
    """Jobs of a file of JSON lines, compressed or not; one for each clip."""
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    jobs = [json.loads(line) for line in content.decode("utf-8").split("\n") if line]
    return list({job["audio"]: job for job in jobs}.values())


def earlier_rows(folder: Path) -> dict[str, dict]:
    """Rows of an earlier run whose clip is there, by audio path. A last line that was cut off is left out."""
    rows = {}
    path = folder / "manifest.jsonl"
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            print(f"Left out of {path}: {line[:80]!r} is no JSON", file=sys.stderr, flush=True)
            continue
        if (folder / row["audio"]).is_file():
            rows[row["audio"]] = row
    return rows


def style_of(job: dict, styles: dict[str, np.ndarray]) -> np.ndarray:
    """Style vector [256] of a job: of its voice (`af_heart:0.40+am_adam:0.60`), for its number of phonemes."""
    parts = [part.partition(":") for part in job["voice"].split("+")]
    row = len(job["tokens"]) - 1
    return sum(float(share or 1) * styles[name][row] for name, _, share in parts).astype(np.float32)


def manifest_row(job: dict, seconds: float) -> dict:
    """A clip's line in the manifest, as `training_sets.py` reads it."""
    return {
        "audio": job["audio"],
        "text": job["text"],
        "seconds": round(seconds, 3),
        "voice": job["voice"],
        "source": job["source"],
    }


# ---- a process that writes clips (and makes them, with onnxruntime) ----


class OnnxSpeaker:
    """The ONNX file on one thread of the processor."""

    def __init__(self, model: list[Path], styles: Path):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        content = b"".join(part.read_bytes() for part in model)
        self.session = onnxruntime.InferenceSession(content, options, ["CPUExecutionProvider"])
        self.styles = dict(np.load(styles))

    def __call__(self, job: dict) -> np.ndarray:
        """int16 samples at 16 kHz."""
        feeds = {
            "tokens": np.array([[0, *job["tokens"], 0]], dtype=np.int64),
            "style": style_of(job, self.styles)[None],
            "speed": np.array([job["speed"]], dtype=np.float32),
        }
        samples = resampled(np.asarray(self.session.run(None, feeds)[0], dtype=np.float32).ravel())
        return np.round(np.clip(samples, -1, 1) * 32767).astype(np.int16)


def resampled(samples: np.ndarray) -> np.ndarray:
    """24 kHz to 16 kHz."""
    try:
        import soxr
    except ImportError:
        from scipy.signal import resample_poly

        return resample_poly(samples, 2, 3)
    return soxr.resample(samples, MODEL_RATE, SAMPLING_RATE)


def is_plausible(text: str, samples: np.ndarray) -> bool:
    """Whether samples can be the text: not silent, of a usable length, at a rate at which people speak."""
    seconds = len(samples) / SAMPLING_RATE
    if not SHORTEST_SECONDS <= seconds <= LONGEST_SECONDS or np.abs(samples.astype(np.int32)).max() < QUIETEST_PEAK:
        return False
    return WORDS_A_SECOND[0] <= len(text.split()) / seconds <= WORDS_A_SECOND[1]


def write_clip(path: Path, samples: np.ndarray) -> None:
    """16 kHz FLAC, put in place in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    soundfile.write(part, samples, SAMPLING_RATE, format="FLAC", subtype="PCM_16")
    os.replace(part, path)


def clip_work(tasks, results, folder: Path, speaker_files: tuple | None) -> None:
    """Write clips until a task is None; for each task a list of (job's audio path, row or None where it is no good).

    Args: tasks: lists of (job, int16 samples, or None where the speaker of this process is to make them).
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
    speaker = OnnxSpeaker(*speaker_files) if speaker_files else None
    for task in iter(tasks.get, None):
        results.put([made_clip(folder, job, samples, speaker) for job, samples in task])


def made_clip(folder: Path, job: dict, samples: np.ndarray | None, speaker) -> tuple[str, dict | None]:
    try:
        samples = speaker(job) if samples is None else samples
        if not is_plausible(job["text"], samples):
            return job["audio"], None
        write_clip(folder / job["audio"], samples)
        return job["audio"], manifest_row(job, len(samples) / SAMPLING_RATE)
    except Exception as error:  # one clip must not end the work
        print(f"Left out {job['audio']}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return job["audio"], None


# ---- the model on the GPU ----


def torch_tasks(jobs: list[dict], options: argparse.Namespace, work: "Work") -> Iterator[list]:
    """Tasks with samples, made in batches by PyTorch."""
    import torch
    from kokoro_torch import KokoroTorch

    model = KokoroTorch(b"".join(part.read_bytes() for part in options.model), options.device)
    torch.backends.cudnn.benchmark, torch.backends.cudnn.benchmark_limit = options.tune, 4
    styles, rng = dict(np.load(options.styles)), random.Random(0)
    print(f"{work.clock()} the model is on {options.device}", flush=True)
    with torch.inference_mode():
        for begin in range(0, len(jobs), ROUND_CLIPS):
            read = [
                clip
                for group in shuffled(text_batches(jobs[begin : begin + ROUND_CLIPS]), rng)
                if not work.must_stop()
                for clip in read_batch(model, group, styles)
            ]
            print(f"{work.clock()} {len(read)} texts are read", flush=True)
            work.left_out += sum(not is_speakable(clip) for clip in read)
            batches = shuffled(speech_batches([clip for clip in read if is_speakable(clip)]), rng)
            yield from spoken_batches(model, batches, work)


def shuffled(items: list, rng: random.Random) -> list:
    rng.shuffle(items)
    return items


def text_batches(jobs: list[dict]) -> list[list[dict]]:
    """Jobs of equal numbers of tokens."""
    groups = defaultdict(list)
    for job in jobs:
        groups[len(job["tokens"])].append(job)
    return [part for size, group in groups.items() for part in parts_of(group, TOKENS // (size + 2))]


def parts_of(group: list, most: int) -> list[list]:
    most = max(1, most)
    return [group[begin : begin + most] for begin in range(0, len(group), most)]


@dataclass
class ReadClip:
    """A job after `read_text`; tensors are on the model's device."""

    job: dict
    features: object  # [tokens, 640]
    text: object  # [tokens, 512]
    style: object  # [256]
    durations: np.ndarray  # int64 [tokens], in frames

    @property
    def frames(self) -> int:
        """Length of the clip."""
        return int(self.durations.sum())

    @property
    def spoken_frames(self) -> int:
        """Length at which it is spoken: the last pause is longer."""
        return self.frames + -self.frames % FRAME_STEP

    def frame_tokens(self) -> np.ndarray:
        """Index of the token of each frame, int64 [spoken_frames]."""
        index = np.repeat(np.arange(len(self.durations)), self.durations)
        return np.pad(index, (0, self.spoken_frames - self.frames), mode="edge")


def read_batch(model, jobs: list[dict], styles: dict[str, np.ndarray]) -> list[ReadClip]:
    """The first half of the model for jobs with equal numbers of tokens."""
    import torch

    tokens = torch.tensor([[0, *job["tokens"], 0] for job in jobs], device=model.device)
    style = torch.from_numpy(np.stack([style_of(job, styles) for job in jobs])).to(model.device)
    speed = torch.tensor([job["speed"] for job in jobs], dtype=torch.float32, device=model.device)
    features, text, durations = model.read_text(tokens, style, speed)
    return [ReadClip(*parts) for parts in zip(jobs, features, text, style, durations.cpu().numpy(), strict=True)]


def is_speakable(clip: ReadClip) -> bool:
    """Whether a clip will have a length that is plausible."""
    return SHORTEST_SECONDS <= clip.frames / FRAMES_A_SECOND <= LONGEST_SECONDS


def speech_batches(clips: list[ReadClip]) -> list[list[ReadClip]]:
    """Clips that are spoken at one length."""
    groups = defaultdict(list)
    for clip in clips:
        groups[clip.spoken_frames].append(clip)
    return [part for frames, group in groups.items() for part in parts_of(group, batch_size(frames))]


def batch_size(frames: int) -> int:
    """The most clips of so many frames in a batch: a power of two."""
    return 1 << (max(1, FRAMES // frames).bit_length() - 1)


def spoken_batches(model, batches: list[list[ReadClip]], work: "Work") -> Iterator[list]:
    """Tasks of all batches; a batch's samples are fetched while the next one is computed."""
    waiting = None
    for batch in batches:
        if work.must_stop():
            break
        spoken = (batch, *speak_batch(model, batch))
        if waiting:
            yield from batch_tasks(*waiting)
        waiting = spoken
    if waiting:
        yield from batch_tasks(*waiting)


def speak_batch(model, batch: list[ReadClip]) -> tuple:
    """int16 samples at 16 kHz, [clips, 400 * frames], on their way to the processor, and the event of their arrival.

    A small batch is filled up on a GPU, so that cuDNN meets two shapes a length.
    """
    import torch

    full = batch_size(batch[0].spoken_frames)
    filled = len(batch) if model.device.type != "cuda" else full // 4 if len(batch) <= full // 4 else full
    clips = batch + [batch[-1]] * (filled - len(batch))
    index = torch.from_numpy(np.stack([clip.frame_tokens() for clip in clips])).to(model.device)
    features = torch.stack([clip.features[row] for clip, row in zip(clips, index, strict=True)])
    text = torch.stack([clip.text[row] for clip, row in zip(clips, index, strict=True)])
    samples = model.speak(features, text, torch.stack([clip.style for clip in clips]))[: len(batch)]
    samples = (resampled_tensor(samples).clamp(-1, 1) * 32767).round().to(torch.int16)
    if model.device.type != "cuda":
        return samples, None
    host = torch.empty(samples.shape, dtype=torch.int16, pin_memory=True)
    host.copy_(samples, non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    return host, event


def batch_tasks(batch: list[ReadClip], samples, event) -> Iterator[list]:
    """Tasks of a few clips each."""
    if event is not None:
        event.synchronize()
    each = SAMPLING_RATE // FRAMES_A_SECOND
    pairs = [(clip.job, row[: each * clip.frames].copy()) for clip, row in zip(batch, samples.numpy(), strict=True)]
    yield from (pairs[begin : begin + CLIPS_A_TASK] for begin in range(0, len(pairs), CLIPS_A_TASK))


def resampled_tensor(samples):
    """24 kHz to 16 kHz: [clips, n] -> [clips, 2 * n / 3], n a multiple of 3 (windowed sinc, 7.2 kHz pass, 80 dB)."""
    import torch

    half, cutoff = 80, 7_600 / MODEL_RATE
    # Output sample 2m + phase is at 3m + 1.5 * phase of the input.
    offsets = torch.arange(-half, half + 2.0)[:, None] - torch.tensor([0.0, 1.5])
    window = torch.special.i0(8 * (1 - (offsets / (half + 1)) ** 2).clamp(min=0).sqrt()) / float(np.i0(8))
    kernel = (2 * cutoff * torch.sinc(2 * cutoff * offsets) * window).to(samples)
    padded = torch.nn.functional.pad(samples, (half, half + 1))
    return (padded.unfold(-1, len(kernel), 3) @ kernel).flatten(1)


# ---- the work ----


@dataclass
class Work:
    """What has been made, its manifest, and when to stop."""

    folder: Path
    minutes: float
    rows: dict[str, dict]
    began: float = field(default_factory=time.monotonic)
    reported: float = field(default_factory=time.monotonic)
    made: int = 0  # clips of this run
    made_seconds: float = 0.0
    left_out: int = 0
    interrupted: bool = False

    def must_stop(self) -> bool:
        return self.interrupted or time.monotonic() - self.began >= 60 * self.minutes

    def clock(self) -> str:
        return f"{time.monotonic() - self.began:6.1f} s:"

    def take(self, results: list[tuple[str, dict | None]], manifest) -> None:
        """Add clips that are done to the manifest."""
        for audio, row in results:
            if row is None:
                self.left_out += 1
                continue
            manifest.write(json.dumps(row, ensure_ascii=False) + "\n")
            self.rows[audio] = row
            self.made += 1
            self.made_seconds += row["seconds"]
        if time.monotonic() - self.reported >= REPORT_SECONDS:
            manifest.flush()
            self.report()

    def report(self) -> None:
        self.reported = time.monotonic()
        elapsed = self.reported - self.began
        hours = sum(row["seconds"] for row in self.rows.values()) / 3600
        print(
            f"{self.clock()} {len(self.rows)} clips, {hours:.3f} h; this run {self.made} clips, "
            f"{self.made_seconds / 3600:.3f} h, {self.made / elapsed:.1f} clips/s, {self.made_seconds / elapsed:.0f} "
            f"times as fast as speech; {self.left_out} left out",
            flush=True,
        )


def start_processes(options: argparse.Namespace) -> tuple[list, object, object]:
    """Processes that write clips, and the queues of their tasks and results."""
    context = multiprocessing.get_context("spawn")
    tasks, results = context.Queue(4 * options.processes), context.Queue()
    speaker_files = (options.model, options.styles) if options.engine == "onnxruntime" else None
    processes = [
        context.Process(target=clip_work, args=(tasks, results, options.out, speaker_files))
        for _ in range(options.processes)
    ]
    for process in processes:
        process.start()
    return processes, tasks, results


def put_task(task, tasks, processes: list) -> None:
    """Hand on a task.

    Raises: RuntimeError where a process has ended.
    """
    while True:
        try:
            return tasks.put(task, timeout=5)
        except queue.Full:
            ended = [process.exitcode for process in processes if not process.is_alive()]
            if ended:
                raise RuntimeError(f"{len(ended)} of {len(processes)} writing processes ended: {ended}") from None


def dropped_tasks(tasks) -> int:
    """Take out the tasks that no process has begun; returns how many."""
    count = 0
    while True:
        try:
            tasks.get(timeout=0.5)
        except queue.Empty:
            return count
        count += 1


def make_clips(jobs: list[dict], options: argparse.Namespace, work: Work) -> None:
    """Make clips of jobs until there are no more or it is time to stop; the manifest is complete in the end."""
    processes, tasks, results = start_processes(options)
    made = torch_tasks if options.engine == "torch" else onnx_tasks
    open_tasks = 0
    with open(options.out / "manifest.jsonl", "a", encoding="utf-8") as manifest:
        try:
            for task in made(jobs, options, work):
                put_task(task, tasks, processes)
                open_tasks += 1
                while not results.empty():
                    work.take(results.get(), manifest)
                    open_tasks -= 1
        finally:
            if options.engine == "onnxruntime" and work.must_stop():
                open_tasks -= dropped_tasks(tasks)
            for _ in processes:
                put_task(None, tasks, processes)
            while open_tasks and any(process.is_alive() for process in processes) or not results.empty():
                try:
                    work.take(results.get(timeout=1), manifest)
                    open_tasks -= 1
                except queue.Empty:
                    continue
    work.report()


def onnx_tasks(jobs: list[dict], options: argparse.Namespace, work: Work) -> Iterator[list]:
    """Tasks without samples: the writing processes make them."""
    for job in jobs:
        if work.must_stop():
            return
        yield [(job, None)]


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=Path, required=True, help="kokoro_jobs.jsonl.gz")
    parser.add_argument("--styles", type=Path, required=True, help="kokoro_styles.npz")
    parser.add_argument("--model", type=Path, required=True, nargs="+", help="model.onnx, or its pieces in order")
    parser.add_argument("--out", type=Path, required=True, help="folder of clips and manifest.jsonl")
    parser.add_argument("--engine", choices=("torch", "onnxruntime"), default="torch")
    parser.add_argument("--device", default="cuda", help="of torch")
    parser.add_argument("--tune", action="store_true", help="let cuDNN try several kernels for each new shape")
    parser.add_argument("--processes", type=int, default=8, help="that write clips, or also make them (onnxruntime)")
    parser.add_argument("--minutes", type=float, default=600.0, help="stop after so long")
    parser.add_argument("--clips", type=int, help="the first so many jobs alone")
    return parser.parse_args()


def main() -> None:
    options = read_options()
    options.out.mkdir(parents=True, exist_ok=True)
    work = Work(options.out, options.minutes, earlier_rows(options.out))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: setattr(work, "interrupted", True))
    with open(options.out / "manifest.jsonl", "w", encoding="utf-8") as manifest:
        manifest.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in work.rows.values())
    jobs = [job for job in read_jobs(options.jobs)[: options.clips] if job["audio"] not in work.rows]
    print(f"{len(work.rows)} clips are there, {len(jobs)} are to be made", flush=True)
    make_clips(jobs, options, work)


if __name__ == "__main__":
    main()
