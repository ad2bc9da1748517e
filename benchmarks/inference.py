"""python benchmarks/inference.py [--clips 16 --checked 100 --seconds 3,10,30 --batch 1,8 --modes plain lossless ...]

Speed, memory and word error rate of the ways to transcribe, on the same clips and, but for the last two, with the same
weights (`--adapter`, float32, CPU):

    published       one clip at a time, padded to the encoder's window of 30 s, all frames true; greedy decoding
    plain           `generate` as it is: clips of any length in one batch, only true frames are read
    lossless        `ctc_draft="lossless"`: the LLM checks the CTC head's transcript
    fast            `ctc_draft="fast"`: sure transcripts are taken unseen, others are checked with less care
    ctc             `ctc_draft="ctc"`: the CTC head alone
    plain_joint, lossless_joint, fast_joint
                    the same with `ctc_weight` (`--ctc-weight`)
    whisper         the Whisper that the encoder comes from, with its own decoder
    qwen2_audio     `Qwen2AudioForConditionalGeneration` of the same encoder and LLM sizes with random weights: the
                    encoder always takes 30 s, and the LLM gets 25 positions a second of the clip. Its answers have as
                    many tokens as the references

`published` takes the padding and the batch of the published code; what it does with the positions is this package's
code, so its row is no slower than the published code itself.

There is one table for validation clips as they are (`--checked`, batch 1), and one for each length of `--seconds`.
Clips of these lengths are validation clips joined, with 0.3 s of silence between them. `--long` adds one clip of 10
minutes, which `published` and `qwen2_audio` cannot take. The modes take turns on each batch, so that other work on the
machine slows all of them alike. All times begin with samples in memory and end with the ids of the answers:

    first token s   until the first scores of the LLM are there, or the whole answer where the LLM is not asked; median
    passes a token  calls of the LLM, divided by the tokens of all answers, end token included
    LLM s a clip    time in the LLM and its head
    real time       seconds taken, divided by seconds of audio
    MiB             highest growth of resident memory over what was there before the batch (Linux), so without weights
    same answer     answers whose ids are those of `plain` at batch 1; joint modes: of `plain_joint`

Where `plain` or `lossless` gives other ids than greedy decoding at batch 1, the difference of the two best scores at
the first differing token is printed: a tie, or an error.
"""

import argparse
import ctypes
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from ctc import MEBIBYTE, Memory
from torch import nn
from transformers import Qwen2AudioConfig, Qwen2AudioEncoderConfig, Qwen2AudioForConditionalGeneration, set_seed
from transformers.utils.logging import disable_progress_bar

from soundwave_hf.data.backbones import resolve_backbone
from soundwave_hf.evaluation.metrics import error_counts
from soundwave_hf.evaluation.sets import read_set
from soundwave_hf.evaluation.shipped import ADAPTER, load_adapter
from soundwave_hf.evaluation.transcribe import MAX_NEW_TOKENS, WINDOW_SECONDS, whisper_options, windows_of


SETS = ("human", "synthetic")
SILENCE_SECONDS = 0.3  # between validation clips that are joined
LONG_SECONDS = 600
GREEDY = ("plain", "lossless")  # modes whose answers are those of greedy decoding
WINDOWED = ("published", "qwen2_audio")  # modes that take no clip longer than the encoder's window


# ---- clips ----


@dataclass
class Clip:
    """Samples at the encoder's rate, and what is said."""

    samples: np.ndarray
    text: str


def read_rows(seed: int = 0) -> list[dict]:
    """Rows of the validation sets in a random order."""
    rows = [row for name in SETS for row in read_set(name)]
    random.Random(seed).shuffle(rows)
    return rows


def load_clips(rows: list[dict], processor) -> list[Clip]:
    return [Clip(processor.load_clips([row["audio"]])[0], row["text"]) for row in rows]


def rows_of_length(rows: list[dict], seconds: float, count: int) -> list[list[dict]]:
    """Rows to join to clips of at most `seconds`, and at least 80 % of it with a silence behind them.

    Raises: `ValueError` where the rows are too few: each is used once.
    """
    left, groups = list(rows), []
    while left and len(groups) < count:
        group, room = [], seconds
        for row in left:
            if row["seconds"] <= room:
                group.append(row)
                room -= row["seconds"] + SILENCE_SECONDS
        is_full = bool(group) and room <= 0.2 * seconds
        groups += [group] if is_full else []
        used = group if is_full else left[:1]
        left = [row for row in left if not any(row is own for own in used)]
    if len(groups) < count:
        raise ValueError(
            f"The validation sets give {len(groups)} clips of {seconds:g} s, and {count} are needed: lower `--clips`."
        )
    return groups


def join(clips: list[Clip], rate: int) -> Clip:
    silence = np.zeros(round(SILENCE_SECONDS * rate), dtype=np.float32)
    parts = [part for clip in clips for part in (silence, clip.samples)][1:]
    return Clip(np.concatenate(parts), " ".join(clip.text for clip in clips))


# ---- modes ----


class Watch:
    """Counts passes of an LLM, adds up the time in it and its head, and notes when its first scores were there."""

    def __init__(self, llm: nn.Module, head: nn.Module):
        self.begin()
        for module in (llm, head):
            module.register_forward_pre_hook(self._enter)
        llm.register_forward_hook(partial(self._leave, is_head=False))
        head.register_forward_hook(partial(self._leave, is_head=True))

    def begin(self):
        self.passes, self.seconds, self.first = 0, 0.0, None

    def _enter(self, *_):
        self._entered = time.perf_counter()

    def _leave(self, *_, is_head: bool):
        now = time.perf_counter()
        self.seconds += now - self._entered
        self.passes += not is_head
        if is_head and self.first is None:
            self.first = now


@dataclass
class Mode:
    """A way to transcribe.

    Args:
        answer: from clips to the ids of their answers, end token included; `scores=True` returns those of one clip.
        decode: from ids to texts.
    """

    answer: Callable[..., list[list[int]]]
    decode: Callable[[list[list[int]]], list[str]]
    watch: Watch


def up_to_end(rows: torch.Tensor, ends: int | list[int] | None) -> list[list[int]]:
    """Answers `(rows, tokens)` up to their first end token, without what is padded behind."""
    ends = [] if ends is None else [ends] if isinstance(ends, int) else ends
    answers = []
    for row in rows.tolist():
        lengths = [place + 1 for place, token in enumerate(row) if token in ends]
        answers.append(row[: lengths[0] if lengths else len(row)])
    return answers


def window_features(model, processor, clips: list[Clip]) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-mel padded to the encoder's window `(clips, mel_bins, mel_frames)`, and its mask `(clips, mel_frames)`."""
    extractor = processor.feature_extractor
    found = extractor(
        [clip.samples for clip in clips],
        sampling_rate=extractor.sampling_rate,
        padding="max_length",
        max_length=2 * model.config.audio_config.max_source_positions * extractor.hop_length,
        return_attention_mask=True,
        return_tensors="pt",
    )
    return found.input_features, found.attention_mask


def prompt_ids(processor, clips: list[Clip]) -> list[list[int]]:
    """Ids of the transcription requests, one audio token each."""
    rate = processor.feature_extractor.sampling_rate
    samples = [clip.samples for clip in clips]
    prompts = processor.apply_transcription_request(samples, tokenize=False, sampling_rate=rate)
    return processor.tokenizer(prompts, add_special_tokens=False).input_ids


def ours(model, processor, clips: list[Clip], scores: bool = False, **options) -> list[list[int]] | tuple:
    rate = processor.feature_extractor.sampling_rate
    inputs = processor.apply_transcription_request([clip.samples for clip in clips], sampling_rate=rate)
    if scores:
        options |= {"return_dict_in_generate": True, "output_scores": True}
    limit = MAX_NEW_TOKENS * windows_of(inputs, processor)
    given = {"do_sample": False, "num_beams": 1, "max_new_tokens": limit, "tokenizer": processor.tokenizer, **options}
    found = model.generate(**inputs, **given)
    if scores:
        return found.scores
    return up_to_end(found[:, inputs["input_ids"].shape[1] :], model.generation_config.eos_token_id)


def published(model, processor, clips: list[Clip]) -> list[list[int]]:
    features, _ = window_features(model, processor, clips)
    ids = torch.tensor(prompt_ids(processor, clips))
    mask = torch.ones(features.shape[0], features.shape[2], dtype=torch.long)
    audio = {"input_features": features, "input_features_mask": mask}
    found = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), **audio, do_sample=False, max_new_tokens=MAX_NEW_TOKENS
    )
    return up_to_end(found[:, ids.shape[1] :], model.generation_config.eos_token_id)


def whisper(model, processor, clips: list[Clip]) -> list[list[int]]:
    extractor = processor.feature_extractor
    is_long = max(len(clip.samples) for clip in clips) > extractor.n_samples
    inputs = processor(
        [clip.samples for clip in clips],
        sampling_rate=extractor.sampling_rate,
        return_attention_mask=True,
        return_tensors="pt",
        **({"truncation": False, "padding": "longest"} if is_long else {}),
    )
    timestamps = {"return_timestamps": True} if is_long else {}
    found = model.generate(**inputs, num_beams=1, do_sample=False, **whisper_options(model, "en"), **timestamps)
    special, end = set(processor.tokenizer.all_special_ids), processor.tokenizer.eos_token_id
    return [[token for token in row if token not in special] + [end] for row in found.tolist()]


def qwen2_audio(model, processor, clips: list[Clip]) -> list[list[int]]:
    features, mask = window_features(model, processor, clips)
    num_positions = ((((mask.sum(dim=1) - 1) // 2 + 1) - 2) // 2 + 1).tolist()
    audio_token, rows = model.config.audio_token_index, []
    for ids, num in zip(prompt_ids(processor, clips), num_positions, strict=True):
        place = ids.index(audio_token)
        rows.append([*ids[:place], *[audio_token] * num, *ids[place + 1 :]])
    inputs = processor.tokenizer.pad({"input_ids": rows}, padding_side="left", return_tensors="pt")
    lengths = [len(ids) + 1 for ids in processor.tokenizer([clip.text for clip in clips]).input_ids]
    found = model.generate(
        **inputs,
        input_features=features,
        feature_attention_mask=mask,
        do_sample=False,
        min_new_tokens=max(lengths),
        max_new_tokens=max(lengths),
    )[:, inputs["input_ids"].shape[1] :]
    return [row[:length] for row, length in zip(found.tolist(), lengths, strict=True)]


def random_qwen2_audio(config) -> Qwen2AudioForConditionalGeneration:
    """Qwen2-Audio's classes with the sizes of a Soundwave's encoder and LLM, and random weights."""
    set_seed(0)
    sizes = ("num_mel_bins", "encoder_layers", "encoder_attention_heads", "encoder_ffn_dim", "d_model")
    names = (*sizes, "max_source_positions")
    encoder = Qwen2AudioEncoderConfig(**{name: getattr(config.audio_config, name) for name in names})
    own = Qwen2AudioConfig(
        audio_config=encoder, text_config=config.text_config, audio_token_index=config.audio_token_id
    )
    return Qwen2AudioForConditionalGeneration(own).float().eval()


def our_modes(model, processor, ctc_weight: float) -> dict[str, Mode]:
    decode = partial(processor.batch_decode, skip_special_tokens=True)
    watch = Watch(model.model.language_model, model.lm_head)
    modes = {"published": Mode(partial(published, model, processor), decode, watch)}
    options = {"plain": {}, **{name: {"ctc_draft": name} for name in ("lossless", "fast", "ctc")}}
    for suffix, weight in (("", 0), ("_joint", ctc_weight)):
        for name, own in options.items():
            answer = partial(ours, model, processor, ctc_weight=weight, **own)
            modes[name + suffix] = Mode(answer, decode, watch)
    del modes["ctc_joint"]  # there is no LLM to join
    return modes


def whisper_mode(folder: str) -> Mode:
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

    model = WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    processor = WhisperProcessor.from_pretrained(folder)
    watch = Watch(model.model.decoder, model.proj_out)
    decode = partial(processor.batch_decode, skip_special_tokens=True)
    return Mode(partial(whisper, model, processor), decode, watch)


def qwen2_audio_mode(config, processor) -> Mode:
    model = random_qwen2_audio(config)
    watch = Watch(model.model.language_model, model.lm_head)
    return Mode(partial(qwen2_audio, model, processor), lambda ids: [""] * len(ids), watch)


def make_modes(model, processor, names: list[str], ctc_weight: float) -> dict[str, Mode]:
    modes = our_modes(model, processor, ctc_weight)
    if "whisper" in names:
        modes["whisper"] = whisper_mode(resolve_backbone(model.config.audio_config.name_or_path))
    if "qwen2_audio" in names:
        modes["qwen2_audio"] = qwen2_audio_mode(model.config, processor)
    return {name: modes[name] for name in names}


MODES = (
    *("published", "plain", "lossless", "fast", "ctc", "plain_joint", "lossless_joint", "fast_joint"),
    *("whisper", "qwen2_audio"),
)


# ---- the measurement ----


@dataclass
class Turn:
    """What one mode took for one batch."""

    ids: list[list[int]]
    seconds: float
    cpu_seconds: float
    first_seconds: float
    llm_seconds: float
    passes: int
    mebibytes: float


@torch.inference_mode()
def take_turn(mode: Mode, clips: list[Clip]) -> Turn:
    ctypes.CDLL(None).malloc_trim(0)  # or memory freed before would be used again, unseen
    memory = Memory("cpu")
    mode.watch.begin()
    start, cpu_start = time.perf_counter(), time.process_time()
    ids = mode.answer(clips)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    watch = mode.watch
    first = seconds if watch.first is None else watch.first - start
    return Turn(ids, seconds, cpu_seconds, first, watch.seconds, watch.passes, memory.growth() / MEBIBYTE)


def run_modes(modes: dict[str, Mode], clips: list[Clip], batch: int) -> dict[str, list[Turn]]:
    """The turns of each mode on batches of clips; `published` has batch 1 alone."""
    names = [name for name in modes if batch == 1 or name != "published"]
    turns = {name: [] for name in names}
    for begin in range(0, len(clips), batch):
        for name in names:
            turns[name].append(take_turn(modes[name], clips[begin : begin + batch]))
    return turns


@dataclass
class Figures:
    """One row of a table."""

    mode: str
    batch: int
    clips: int
    clips_per_second: float
    cpu_seconds_per_clip: float
    first_token_seconds: float
    passes_per_token: float
    llm_seconds_per_clip: float
    real_time_factor: float
    mebibytes: float
    wer: float | None = None  # None for random weights
    same_answers: int | None = None  # None where `plain` or `plain_joint` was not run
    ids: list[list[int]] | None = None


def figures(name: str, mode: Mode, turns: list[Turn], clips: list[Clip], batch: int, rate: int) -> Figures:
    ids = [row for turn in turns for row in turn.ids]
    seconds = sum(turn.seconds for turn in turns)
    texts = mode.decode(ids)
    is_random = name == "qwen2_audio"
    return Figures(
        mode=name,
        batch=batch,
        clips=len(clips),
        clips_per_second=len(clips) / seconds,
        cpu_seconds_per_clip=sum(turn.cpu_seconds for turn in turns) / len(clips),
        first_token_seconds=statistics.median(turn.first_seconds for turn in turns),
        passes_per_token=sum(turn.passes for turn in turns) / sum(map(len, ids)),
        llm_seconds_per_clip=sum(turn.llm_seconds for turn in turns) / len(clips),
        real_time_factor=seconds * rate / sum(len(clip.samples) for clip in clips),
        mebibytes=max(turn.mebibytes for turn in turns),
        wer=None if is_random else error_counts([clip.text for clip in clips], texts).rate,
        ids=ids,
    )


def greedy_name(name: str) -> str | None:
    """The mode of greedy decoding that a mode's answers are compared with."""
    if name in ("whisper", "qwen2_audio"):
        return None
    return "plain_joint" if name.endswith("_joint") else "plain"


def compare(rows: list[Figures], modes: dict[str, Mode], clips: list[Clip]) -> list[str]:
    """Count the answers that are those of greedy decoding at batch 1.

    Returns: a sentence for each answer that should be and is not.
    """
    greedy = {row.mode: row.ids for row in rows if row.batch == 1}
    sentences = []
    for row in rows:
        wanted = greedy.get(greedy_name(row.mode))
        if wanted is None:
            continue
        other = [place for place, (own, ids) in enumerate(zip(row.ids, wanted, strict=True)) if own != ids]
        row.same_answers = len(wanted) - len(other)
        if row.mode.removesuffix("_joint") in GREEDY:
            mode = modes[greedy_name(row.mode)]
            sentences += [describe_difference(row, place, wanted[place], mode, clips[place]) for place in other]
    return sentences


@torch.inference_mode()
def describe_difference(row: Figures, place: int, wanted: list[int], mode: Mode, clip: Clip) -> str:
    """Where an answer differs first from greedy decoding, and by how much the two best scores differ there."""
    found = row.ids[place]
    pairs = enumerate(zip(found, wanted, strict=False))
    token = next((number for number, (own, ids) in pairs if own != ids), min(len(found), len(wanted)))
    scores = mode.answer([clip], scores=True)
    best = scores[min(token, len(scores) - 1)][0].float().topk(2).values
    name = f"{row.mode}, batch {row.batch}, clip {place}"
    return f"{name}: token {token} differs; the two best scores differ by {float(best[0] - best[1]):.2g}"


# ---- output ----


COLUMNS = (
    *("way", "batch", "clips a second", "CPU s a clip", "speed / first row", "first token s", "passes a token"),
    *("LLM s a clip", "real time", "MiB", "WER %", "same answer"),
)


def table(rows: list[Figures]) -> str:
    """Markdown: a row a mode and batch; speeds are compared with the first row."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    for row in rows:
        cells = [
            *(row.mode, row.batch, f"{row.clips_per_second:.2f}", f"{row.cpu_seconds_per_clip:.2f}"),
            *(f"{row.clips_per_second / rows[0].clips_per_second:.2f}", f"{row.first_token_seconds:.2f}"),
            *(f"{row.passes_per_token:.2f}", f"{row.llm_seconds_per_clip:.2f}", f"{row.real_time_factor:.3f}"),
            *(f"{row.mebibytes:.0f}", "-" if row.wer is None else f"{100 * row.wer:.1f}"),
            "-" if row.same_answers is None else f"{row.same_answers} of {row.clips}",
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def llm_part(rows: list[Figures]) -> list[str]:
    """Sentences on the LLM's time with and without lossless drafts at batch 1."""
    seconds = {row.mode: row.llm_seconds_per_clip for row in rows if row.batch == 1}
    return [
        f"The LLM's part at batch 1: {plain} {seconds[plain]:.3f} s a clip, {drafted} {seconds[drafted]:.3f} s, "
        f"{seconds[plain] / seconds[drafted]:.2f} times as fast."
        for plain, drafted in (("plain", "lossless"), ("plain_joint", "lossless_joint"))
        if plain in seconds and seconds.get(drafted)
    ]


def run_group(modes: dict[str, Mode], clips: list[Clip], batches: list[int], rate: int, title: str) -> dict:
    """Measure and print one table."""
    rows = []
    for batch in batches:
        turns = run_modes(modes, clips, batch)
        rows += [figures(name, modes[name], own, clips, batch, rate) for name, own in turns.items()]
    sentences = [*llm_part(rows), *compare(rows, modes, clips)]
    mean = statistics.mean(len(clip.samples) for clip in clips) / rate
    title = f"{title}: {len(clips)}, {mean:.1f} s each on average"
    print(f"## {title}\n\n{table(rows)}", *sentences, sep="\n", end="\n\n", flush=True)
    kept = [{name: value for name, value in asdict(row).items() if name != "ids"} for row in rows]
    return {"title": title, "rows": kept, "sentences": sentences}


def numbers(kind: Callable) -> Callable[[str], list]:
    """Reads "3,10,30"; an empty word gives none."""
    return lambda words: [kind(word) for word in words.split(",") if word]


def read_arguments(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", default=str(ADAPTER), help="trained adapters; default: the shipped ones")
    parser.add_argument("--clips", type=int, default=16, help="clips of each length")
    parser.add_argument("--checked", type=int, default=100, help="validation clips as they are; 0 for none")
    parser.add_argument("--seconds", type=numbers(float), default=[3.0, 10.0, 30.0], help="lengths; '' for none")
    parser.add_argument("--batch", type=numbers(int), default=[1, 8], help="batch sizes of the clips of each length")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES), help="speeds are over the first's")
    parser.add_argument("--ctc-weight", type=float, default=0.3, help="of the joint modes")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--long", action="store_true", help="one clip of 10 minutes too")
    parser.add_argument("--output", type=Path, help="JSON to write all figures to")
    given = parser.parse_args(words)
    if wrong := [seconds for seconds in given.seconds if not 0 < seconds <= WINDOW_SECONDS]:
        parser.error(
            f"`--seconds` has {wrong[0]:g}; expected lengths up to {WINDOW_SECONDS:g}. For 10 minutes: `--long`."
        )
    if given.clips < 1 or not given.batch or min(given.batch) < 1:
        parser.error("`--clips` and `--batch` count clips: give 1 or more.")
    return given


def groups(given: argparse.Namespace, rows: list[dict], processor):
    """Title, clips, batch sizes and names of the modes of each table."""
    rate = processor.feature_extractor.sampling_rate
    within = [row for row in rows if row["seconds"] <= WINDOW_SECONDS]
    if given.checked:
        yield "Validation clips", load_clips(within[: given.checked], processor), [1], given.modes
    lengths = [(seconds, given.clips, given.batch, given.modes) for seconds in given.seconds]
    if given.long:
        lengths.append((LONG_SECONDS, 1, [1], [name for name in given.modes if name not in WINDOWED]))
    for seconds, count, batches, names in lengths:
        joined = rows_of_length(within, seconds, count)
        clips = [join(load_clips(parts, processor), rate) for parts in joined]
        yield f"Clips of about {seconds:g} s", clips, batches, names


def main(words: list[str] | None = None):
    """Measure and print."""
    given = read_arguments(words)
    torch.set_num_threads(given.threads)
    disable_progress_bar()
    model, processor = load_adapter(given.adapter)
    modes = make_modes(model, processor, given.modes, given.ctc_weight)
    rows = read_rows()
    (first,) = load_clips(rows[:1], processor)
    run_modes(modes, [first], 1)  # libraries load on first use
    rate = processor.feature_extractor.sampling_rate
    print(f"{Path(given.adapter).name}, ctc_weight {given.ctc_weight:g}, {given.threads} threads\n", flush=True)
    found = [
        run_group({name: modes[name] for name in names}, clips, batches, rate, title)
        for title, clips, batches, names in groups(given, rows, processor)
    ]
    if given.output is not None:
        given.output.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
