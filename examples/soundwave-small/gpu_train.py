"""The three stages in one process on a GPU: `python gpu_train.py --minutes 2.5 2.5 0.7`.

The recipes, models, losses and trainers are those of `soundwave-hf train`. Two things differ. Clips stay in memory,
and augmentation and log-mel are computed on the GPU: data loader processes give a GPU too few clips. And each stage
lasts for the minutes asked for: the learning rate follows the time. Stage I reads new clips as they come.
"""

import argparse
import json
import math
import queue
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, IterableDataset
from training_sets import SPLITS, all_clips, instruct_rows, is_transcribed, quiet_sound, split_of
from transformers import TrainerCallback

from soundwave_hf import SoundwaveDataCollator, SoundwaveProcessor
from soundwave_hf.data.rows import conversation_of
from soundwave_hf.processing.processing_soundwave import ASR_QUESTION
from soundwave_hf.training.build import build_model
from soundwave_hf.training.recipe import load_recipes
from soundwave_hf.training.stages import stage_of
from soundwave_hf.training.trainer import ScoringCollator, SoundwaveTrainer


RATE, HOP, WINDOW, LEAST_POWER = 16_000, 160, 400, 1e-10
LONGEST_SECONDS, REFRESH_SECONDS, POOL_BATCHES, MAX_BATCH_SECONDS = 14.0, 20, 30, 900.0


# ---- clips in memory ----


class Clips:
    """Clips of `all_clips`, as int16 samples by path; `refresh` reads those that have come since."""

    def __init__(self):
        self.samples: dict[str, np.ndarray] = {}
        self.rows: list[dict] = []
        for split in SPLITS:
            for number in range(300):
                name = f"no-speech/{split}/{number}"
                self.samples[name] = quiet_sound(np.random.default_rng((0, SPLITS.index(split), number)))
                row = {"audio": name, "text": "", "source": "no-speech", "split": split}
                self.rows.append({**row, "seconds": len(self.samples[name]) / RATE})

    def refresh(self) -> None:
        began = time.monotonic()
        listed = [row for row in all_clips(finished_rows) if row["seconds"] <= LONGEST_SECONDS]
        new = [row for row in listed if row["audio"] not in self.samples]
        with ThreadPoolExecutor(8) as pool:
            for row, samples in zip(new, pool.map(read_clip, [row["audio"] for row in new]), strict=True):
                if samples is None:
                    continue
                self.samples[row["audio"]] = samples
                self.rows.append({**row, "split": split_of(row["text"])})
        hours = sum(row["seconds"] for row in self.rows) / 3600
        say(f"{len(new)} new clips in {time.monotonic() - began:.1f} s; {len(self.rows)} clips, {hours:.2f} h")


def finished_rows(path: Path) -> list[dict]:
    """Rows of a manifest to which another process adds lines: its last line may not be whole."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def read_clip(path: str) -> np.ndarray | None:
    try:
        samples, rate = soundfile.read(path, dtype="int16")
    except soundfile.LibsndfileError:  # still being written
        return None
    if rate != RATE:
        import soxr

        samples = soxr.resample(samples, rate, RATE)
    return samples


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


# ---- batches ----


def draw_batches(rows: list[dict], repeat: dict[str, int], size: int, rng: random.Random):
    """Batches of rows of similar length; sources are drawn by their number of clips times `repeat`."""
    weights = [repeat.get(row["source"], 1) for row in rows]
    drawn = sorted(rng.choices(rows, weights, k=size * POOL_BATCHES), key=lambda row: row.get("seconds", 0))
    batches, start = [], 0
    while start < len(drawn):
        longest = drawn[min(start + size, len(drawn)) - 1].get("seconds", 0)
        count = min(size, max(8, int(MAX_BATCH_SECONDS / max(longest, 0.1))))
        batches.append(drawn[start : start + count])
        start += count
    rng.shuffle(batches)
    return batches


class Batches(IterableDataset):
    """Endless batches, made ahead by a thread: `samples` and their lengths, labels, and what the LLM reads.

    Args: rows: a function that gives the rows as they are now. losses: as of the stage.
    """

    def __init__(self, rows, clips: Clips, processor, losses, repeat, size: int, audio_token_id: int, seed: int = 0):
        self.rows, self.clips, self.processor, self.losses, self.repeat = rows, clips, processor, losses, repeat
        self.size, self.rng = size, random.Random(seed)
        self.texts = SoundwaveDataCollator(processor, losses=losses, check_rows=False)
        self.scored = ScoringCollator(self.batch, audio_token_id)
        self.ids: dict[str, torch.Tensor] = {}

    def __iter__(self):
        ahead: queue.Queue = queue.Queue(12)
        stopped = threading.Event()

        def fill():
            while not stopped.is_set():
                for batch in draw_batches(self.rows(), self.repeat, self.size, self.rng):
                    made = self.scored(batch)
                    while not stopped.is_set():
                        try:
                            ahead.put(made, timeout=0.5)
                            break
                        except queue.Full:
                            continue

        thread = threading.Thread(target=fill, daemon=True)
        thread.start()
        try:
            while True:
                yield ahead.get(timeout=120)
        finally:
            stopped.set()

    def batch(self, rows: list[dict]) -> dict:
        batch = {}
        if clips := [self.clips.samples[row["audio"]] for row in rows if row.get("audio")]:
            samples = np.zeros((len(clips), max(map(len, clips))), dtype=np.int16)
            for place, clip in enumerate(clips):
                samples[place, : len(clip)] = clip
            batch["samples"] = torch.from_numpy(samples)
            batch["lengths"] = torch.tensor([len(clip) for clip in clips])
        if "ctc" in self.losses:
            batch["ctc_labels"] = pad_sequence(
                [self.target(row["text"]) for row in rows], batch_first=True, padding_value=-100
            )
            if "ce" not in self.losses:
                batch["labels"] = batch["ctc_labels"]
        if "ce" in self.losses:
            pairs = [self.texts._conversation(conversation_of(row, ASR_QUESTION)) for row in rows]
            ids, labels = [ids for ids, _ in pairs], [labels for _, labels in pairs]
            pad_id = self.processor.tokenizer.pad_token_id
            batch["input_ids"] = pad_sequence(ids, batch_first=True, padding_value=pad_id)
            batch["attention_mask"] = pad_sequence([torch.ones_like(each) for each in ids], batch_first=True)
            batch["labels"] = pad_sequence(labels, batch_first=True, padding_value=-100)
        return batch

    def target(self, text: str) -> torch.Tensor:
        if text not in self.ids:
            ids = self.processor.tokenizer(self.processor.ctc_target(text), add_special_tokens=False).input_ids
            self.ids[text] = torch.tensor(ids, dtype=torch.long)
        return self.ids[text]


# ---- augmentation and log-mel on the device ----


def changed_samples(samples: torch.Tensor, lengths: torch.Tensor, augment) -> tuple[torch.Tensor, torch.Tensor]:
    """`Augmentation.change_samples` for a batch on the device: float `(clips, samples)` and lengths.

    One speed for the whole batch; room, noise, band and level are drawn for each clip.
    """
    clips, device = len(samples), samples.device
    if augment.speed:
        pace = math.exp(random.uniform(-1, 1) * math.log1p(augment.speed))
        samples = torch.nn.functional.interpolate(samples[:, None], scale_factor=1 / pace, mode="linear")[:, 0]
        lengths = (lengths / pace).long().clamp(max=samples.shape[1])
    inside = torch.arange(samples.shape[1], device=device) < lengths[:, None]
    samples = samples * inside
    level = (samples.square().sum(1) / lengths).sqrt()
    size = 1 << (samples.shape[1] + RATE // 3).bit_length()
    spectrum, frequency = torch.fft.rfft(samples, size), torch.arange(size // 2 + 1, device=device) * (RATE / size)
    # A direct path and an exponentially decaying tail of 50 to 300 ms.
    tail = RATE * draw(clips, device, 0.05, 0.3)
    times = torch.arange(int(0.3 * RATE), device=device)
    impulse = torch.randn(clips, len(times), device=device) * torch.exp(-6.9 * times / tail) * (times < tail)
    impulse = impulse * draw(clips, device, 0.02, 0.15) * (torch.rand(clips, 1, device=device) < augment.room)
    impulse[:, 0] = 1.0
    spectrum = spectrum * torch.fft.rfft(impulse, size)
    narrow = torch.rand(clips, 1, device=device) < augment.narrow
    spectrum = spectrum * ~(narrow & (frequency > draw(clips, device, 3000, 7000)))
    samples = torch.fft.irfft(spectrum, size)[:, : samples.shape[1]] * inside
    samples = samples * (level / ((samples.square().sum(1) / lengths).sqrt() + 1e-9))[:, None]
    # Coloured noise between white and brown, 5 to 35 dB below the speech.
    colour = torch.fft.rfft(torch.randn(clips, size, device=device))
    colour = colour / torch.arange(size // 2 + 1, device=device).clamp(min=1) ** draw(clips, device, 0, 1)
    noise = torch.fft.irfft(colour, size)[:, : samples.shape[1]] * inside
    noise = noise / ((noise.square().sum(1) / lengths).sqrt() + 1e-9)[:, None]
    loud = level[:, None] * 10 ** (-draw(clips, device, 5, 35) / 20)
    samples = samples + noise * loud * (torch.rand(clips, 1, device=device) < augment.noise)
    gain = torch.where(torch.rand(clips, 1, device=device) < augment.gain, draw(clips, device, -0.6, 0.1), 0.0)
    return (samples * 10**gain).clamp(-1, 1), lengths


def draw(clips: int, device, low: float, high: float) -> torch.Tensor:
    return low + (high - low) * torch.rand(clips, 1, device=device)


def log_mel(samples: torch.Tensor, lengths: torch.Tensor, extractor, trailing_silence: float) -> dict:
    """The same as `SoundwaveProcessor.log_mel`, for a batch of padded clips of at most 30 s on their device."""
    device = samples.device
    kept = (lengths + round(trailing_silence * RATE)).clamp(max=extractor.n_samples)
    padded = int(min(int(lengths.max()) + round(trailing_silence * RATE) + WINDOW + HOP, extractor.n_samples))
    samples = torch.nn.functional.pad(samples, (0, max(0, padded - samples.shape[1])))[:, :padded]
    stft = torch.stft(samples, WINDOW, HOP, window=torch.hann_window(WINDOW, device=device), return_complex=True)
    filters = torch.as_tensor(extractor.mel_filters, dtype=torch.float32, device=device)
    features = (filters.T @ stft[..., :-1].abs().square()).clamp(min=LEAST_POWER).log10()
    features = torch.maximum(features, features.amax(dim=(1, 2), keepdim=True) - 8.0)
    frames = -(-kept // HOP)
    features = ((features + 4.0) / 4.0)[..., : int(frames.max())]
    mask = torch.arange(features.shape[-1], device=device) < frames[:, None]
    return {"input_features": features * mask[:, None], "input_features_mask": mask.long()}


def masked_features(batch: dict, share: float) -> dict:
    """`Augmentation.mask_features` for a batch: two bands and short spans set to the clip's mean."""
    features, mask = batch["input_features"], batch["input_features_mask"]
    clips, bins, frames = features.shape
    device, lengths = features.device, mask.sum(1, keepdim=True)
    hidden = torch.zeros(clips, bins, frames, dtype=torch.bool, device=device)
    bin_, frame = torch.arange(bins, device=device), torch.arange(frames, device=device)
    for _ in range(2):
        width = (torch.rand(clips, 1, device=device) * (bins // 5)).floor()
        start = (torch.rand(clips, 1, device=device) * (bins - width)).floor()
        hidden |= ((bin_ >= start) & (bin_ < start + width))[:, :, None]
    for number in range(1 + frames // 200):
        width = (torch.rand(clips, 1, device=device) * torch.clamp(1 + lengths // 10, max=15)).floor()
        start = (torch.rand(clips, 1, device=device) * (lengths - width)).floor()
        used = lengths >= 200 * number
        hidden |= ((frame >= start) & (frame < start + width) & used)[:, None, :]
    hidden &= (torch.rand(clips, 1, 1, device=device) < share) & mask[:, None].bool()
    mean = features.sum((1, 2), keepdim=True) / (mask.sum(1)[:, None, None] * bins)
    return {**batch, "input_features": torch.where(hidden, mean, features)}


# ---- one stage ----


class TimedTrainer(SoundwaveTrainer):
    """`SoundwaveTrainer` that computes log-mel on the device, and whose learning rate follows the time."""

    batches: Batches
    augment = None
    seconds: float = 60.0
    began: float | None = None

    def get_train_dataloader(self):
        return DataLoader(self.batches, batch_size=None)

    @torch.no_grad()
    def _prepare_inputs(self, inputs):
        inputs = super()._prepare_inputs(inputs)
        if (samples := inputs.pop("samples", None)) is None:
            return inputs
        processor, lengths = self.processing_class, inputs.pop("lengths")
        with torch.autocast(samples.device.type, enabled=False):
            samples, lengths = changed_samples(samples.float() / 32768, lengths, self.augment)
            batch = log_mel(samples, lengths, processor.feature_extractor, processor.trailing_silence)
            return {**inputs, **masked_features(batch, self.augment.spec_augment)}

    def share_done(self) -> float:
        self.began = self.began or time.monotonic()
        return min(1.0, (time.monotonic() - self.began) / self.seconds)

    def create_scheduler(self, num_training_steps, optimizer=None):
        warm = self.args.warmup_steps

        def rate(step: int) -> float:
            return min(1.0, (step + 1) / max(warm, 1)) * 0.5 * (1 + math.cos(math.pi * self.share_done()))

        self.lr_scheduler = LambdaLR(optimizer or self.optimizer, rate)
        return self.lr_scheduler


class StopInTime(TrainerCallback):
    def __init__(self, trainer: TimedTrainer, refresh=None):
        self.trainer, self.refresh, self.refreshed = trainer, refresh, time.monotonic()

    def on_step_end(self, args, state, control, **kwargs):
        if self.trainer.share_done() >= 1:
            control.should_training_stop = True
        elif self.refresh and time.monotonic() - self.refreshed > REFRESH_SECONDS:
            self.refresh()
            self.refreshed = time.monotonic()
        return control


def train_stage(number: int, clips: Clips, rows, seconds: float, options, refresh=None) -> None:
    """Train one stage for some seconds and save it to `runs`/NAME + number."""
    name = ("1_align", "2_shrink", "3_instruct")[number - 1]
    runs = Path(options.runs)
    overrides = {
        "output_dir": str(runs / f"{options.name}{number}"),
        "max_steps": 1_000_000,
        "per_device_train_batch_size": options.batch[number - 1],
        "bf16": torch.cuda.is_available(),
        "disable_tqdm": True,
        "plot_loss": False,
        "logging_steps": options.logging_steps,
        "warmup_steps": options.warmup[number - 1],
        "save_strategy": "no",
    }
    if number == 1:
        overrides["model.ctc_text"] = options.ctc_text
        overrides["model.alignment_layers"] = options.alignment_layers
        if options.encoder_rank:
            overrides["encoder_lora"] = {"r": options.encoder_rank, "lora_alpha": options.encoder_rank}
    else:
        overrides["start_from"] = str(runs / f"{options.name}{number - 1}")
    ((recipe, arguments),) = load_recipes(Path(__file__).parent / "recipes" / "gpu" / f"{name}.yaml", overrides)
    stage = stage_of(recipe)
    processor = SoundwaveProcessor.from_backbones(
        *recipe.backbones, adapter=recipe.start_folder, ctc_text=recipe.model.get("ctc_text")
    )
    model = build_model(recipe, torch.bfloat16 if arguments.bf16 else None)
    trainer = TimedTrainer(
        model=model, args=arguments, train_dataset=[], data_collator=lambda rows: rows, processing_class=processor,
        stage=stage,
    )  # fmt: skip
    trainer.augment, trainer.seconds = recipe.augment, seconds
    audio_token_id = trainer.audio_model.config.audio_token_id
    trainer.batches = Batches(
        rows, clips, processor, stage.losses, recipe.repeat, arguments.per_device_train_batch_size, audio_token_id
    )
    trainer.add_callback(StopInTime(trainer, refresh))
    trainer.train()
    trainer.save_model()
    trainer.save_state()
    say(f"stage {number}: {trainer.state.global_step} steps in {time.monotonic() - trainer.began:.0f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, nargs=3, default=[10.0, 10.0, 1.0], help="of stages I, II, III")
    parser.add_argument("--batch", type=int, nargs=3, default=[128, 128, 64], help="clips of a batch in each stage")
    parser.add_argument("--warmup", type=int, nargs=3, default=[150, 50, 20], help="steps of each stage")
    parser.add_argument("--ctc-text", default="lower")
    parser.add_argument("--alignment-layers", type=int, default=1)
    parser.add_argument("--encoder-rank", type=int, default=0, help="of a LoRA on the encoder in stage I; 0: none")
    parser.add_argument("--name", default="A", help="of the output folders")
    parser.add_argument("--runs", default="runs")
    parser.add_argument("--stages", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--logging-steps", type=int, default=20)
    options = parser.parse_args()
    clips = Clips()
    clips.refresh()

    def speech(split: str):
        return lambda: [r for r in clips.rows if r["split"] == split and is_transcribed(r)]

    sources = {1: speech("stage1"), 2: speech("stage2")}
    for number in options.stages:
        if number == 3:
            rows = instruct_rows(clips.rows, seed=0)
            say(json.dumps({"stage 3 rows": len(rows)}))
            sources[3] = lambda rows=rows: rows
        refresh = clips.refresh if number == 1 else None
        if number == 2:
            clips.refresh()
        train_stage(number, clips, sources[number], 60 * options.minutes[number - 1], options, refresh)


if __name__ == "__main__":
    main()
