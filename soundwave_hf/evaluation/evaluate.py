"""Transcribe sets of clips with a loaded model and score them; Whisper itself on the same clips is the ceiling."""

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from ..data.backbones import resolve_backbone, soundwave_home
from ..data.manifest import read_rows, write_rows
from ..processing.processing_soundwave import ASR_QUESTION
from ..whole_files import whole_file
from .metrics import collapse_ctc, positions_per_second, word_error_rate
from .shipped import ADAPTER, ENCODER, EXAMPLES, load_adapter, load_checkpoint


WINDOW_SECONDS = 30.0  # of the Whisper encoder
MAX_NEW_TOKENS = 120  # English speech of a window seldom has more
SETS = ("human", "librivox", "synthetic")  # telephone prompts, audiobook, new sentences in a new voice


# ---- one batch ----


@dataclass
class Transcripts:
    """What a model made of some clips, in their order."""

    texts: list[str]
    seconds_taken: float  # from audio files to texts, on the clock
    ctc_texts: list[str] | None = None  # greedy transcript of the CTC head, before the LLM
    num_positions: list[int] | None = None  # LLM positions of each clip


def conversation(audio: str | Path, question: str) -> list[dict]:
    """One user turn: a clip, then a question about it; without one, the clip itself is the question."""
    asked = [{"type": "text", "text": question}] if question else []
    return [{"role": "user", "content": [{"type": "audio", "path": str(audio)}, *asked]}]


@torch.inference_mode()
def ask(
    model, processor, clips: Sequence[str | Path], question: str, max_new_tokens: int = MAX_NEW_TOKENS
) -> Transcripts:
    """Put one question to each clip, all clips in one padded batch; greedy answers.

    Args: max_new_tokens: for each window of the encoder that the longest clip takes.
    """
    start = time.perf_counter()
    inputs = processor.apply_chat_template(
        [conversation(clip, question) for clip in clips], add_generation_prompt=True, tokenize=True, return_dict=True
    ).to(model.device)
    windows = math.ceil(inputs["input_features"].shape[-1] / processor.feature_extractor.nb_max_frames)
    ids = model.generate(**inputs, max_new_tokens=windows * max_new_tokens, do_sample=False)
    texts = processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    seconds_taken = time.perf_counter() - start
    # `generate` does not return what the audio side found; asking again costs little and is not on the clock.
    heard = hear(model, processor, clips)
    return Transcripts([text.strip() for text in texts], seconds_taken, heard.texts, heard.num_positions)


@torch.inference_mode()
def hear(model, processor, clips: Sequence[str | Path]) -> Transcripts:
    """Greedy transcripts of the CTC head, without the LLM: all that Stage I trains."""
    start = time.perf_counter()
    features = processor.log_mel(processor.load_clips([str(clip) for clip in clips]))
    audio = model.get_audio_features(
        **{name: torch.from_numpy(values).to(model.device) for name, values in features.items()}
    )
    ids = [
        collapse_ctc(best[:frames], model.config.audio_token_id)
        for best, frames in zip(audio.ctc_best.tolist(), audio.num_frames.tolist(), strict=True)
    ]
    texts = [text.strip() for text in processor.batch_decode(ids, skip_special_tokens=True)]
    return Transcripts(texts, time.perf_counter() - start, texts, audio.num_positions.tolist())


# ---- many clips ----


def transcribe(
    model,
    processor,
    rows: Sequence[dict],
    batch_size: int = 8,
    max_new_tokens: int = MAX_NEW_TOKENS,
    label: str = "transcribing",
    ctc: bool = False,
) -> Transcripts:
    """Greedy transcripts by `generate`, or by the CTC head alone.

    Args: rows: one a clip, with `audio` (path) and `seconds`; label: stands before the progress bar.
    """

    def run(clips: list[str]) -> Transcripts:
        if ctc:
            return hear(model, processor, clips)
        return ask(model, processor, clips, ASR_QUESTION, max_new_tokens)

    return in_batches(run, rows, batch_size, label)


def batches_of_like_length(seconds: Sequence[float], batch_size: int) -> list[list[int]]:
    """Places of clips in batches of like length, so that little is padded; none holds clips on both sides of a window.

    Longer clips are heard in another way than those within the encoder's window, which no company is to change.
    """
    if batch_size < 1:
        raise ValueError(f"The batch size is {batch_size}; it counts clips: give 1 or more.")
    order = sorted(range(len(seconds)), key=lambda index: seconds[index])
    within = sum(length <= WINDOW_SECONDS for length in seconds)
    parts = (order[:within], order[within:])
    return [part[start : start + batch_size] for part in parts for start in range(0, len(part), batch_size)]


def in_batches(run: Callable[[list[str]], Transcripts], rows: Sequence[dict], batch_size: int, label: str):
    """Call `run` on `batches_of_like_length`; results in the order of the rows."""
    batches = batches_of_like_length([row["seconds"] for row in rows], batch_size)
    order = [index for batch in batches for index in batch]
    parts = []
    with tqdm(total=len(rows), desc=label, unit="clip", mininterval=2) as progress:
        for batch in batches:
            parts.append(run([rows[index]["audio"] for index in batch]))
            progress.update(len(batch))

    def in_row_order(name: str) -> list | None:
        values = [getattr(part, name) for part in parts]
        if None in values:
            return None
        flat = [value for part in values for value in part]
        return [value for _, value in sorted(zip(order, flat, strict=True), key=lambda pair: pair[0])]

    return Transcripts(
        in_row_order("texts"),
        sum(part.seconds_taken for part in parts),
        in_row_order("ctc_texts"),
        in_row_order("num_positions"),
    )


def whisper_baseline(encoder_folder: str, rows: Sequence[dict], batch_size: int = 8) -> Transcripts:
    """Greedy English transcripts of the encoder's own Whisper, each clip padded to 30 s as it was trained.

    Longer clips go through its long form: window after window, each beginning where the last timestamp was.
    """
    from transformers import WhisperForConditionalGeneration, WhisperProcessor
    from transformers.audio_utils import load_audio

    model = WhisperForConditionalGeneration.from_pretrained(encoder_folder).eval()
    processor = WhisperProcessor.from_pretrained(encoder_folder)
    rate = processor.feature_extractor.sampling_rate

    @torch.inference_mode()
    def run(clips: list[str]) -> Transcripts:
        start = time.perf_counter()
        samples = [load_audio(str(clip), sampling_rate=rate) for clip in clips]
        long = max(map(len, samples)) > processor.feature_extractor.n_samples
        whole = {"truncation": False, "padding": "longest"} if long else {}
        inputs = processor(samples, sampling_rate=rate, return_tensors="pt", return_attention_mask=True, **whole)
        timestamps = {"return_timestamps": True} if long else {}
        ids = model.generate(**inputs, language="en", task="transcribe", num_beams=1, do_sample=False, **timestamps)
        texts = processor.batch_decode(ids, skip_special_tokens=True)
        return Transcripts([text.strip() for text in texts], time.perf_counter() - start)

    return in_batches(run, rows, batch_size, "Whisper itself")


# ---- sets and scores ----


def read_set(name: str) -> list[dict]:
    """Rows of one validation set, `audio` as a path that opens from anywhere.

    Raises: ValueError for a set that does not exist, FileNotFoundError where it was not built yet.
    """
    if name not in SETS:
        raise ValueError(f"There is no set `{name}`: choose from {', '.join(SETS)}.")
    if name == "librivox":
        return read_clips(EXAMPLES / "librivox")
    folder = soundwave_home() / "data" / "demo"  # where `examples/soundwave-small/build_data.py` writes them
    # The human manifest lists the audiobook clips too, which are a set of their own here.
    rows = [row for row in read_rows(folder / f"valid_{name}.jsonl") if row["source"] != "librivox"]
    return [{**row, "audio": str(folder / row["audio"])} for row in rows]


def read_clips(folder: Path) -> list[dict]:
    """Clips that ship with the repository, as rows: `audio` (path), `text`, `seconds`, and what else is known."""
    index = folder / "clips.json"
    if not index.is_file():
        raise FileNotFoundError(f"{index} is not there: the example clips come with a checkout of this repository.")
    return [{**clip, "audio": str(folder / clip["file"])} for clip in json.loads(index.read_text(encoding="utf-8"))]


@dataclass
class Scores:
    """Scores of one set."""

    clips: int
    audio_seconds: float
    wer: float  # share of words, Whisper's English normaliser
    ctc_wer: float  # of the CTC head's greedy transcript
    positions_per_second: float  # of speech, in the LLM
    seconds_taken: float
    whisper_wer: float | None = None  # of the encoder's own Whisper


def score(rows: Sequence[dict], found: Transcripts, baseline: Transcripts | None = None) -> Scores:
    """Scores of transcripts against the `text` of their rows."""
    references = [row["text"] for row in rows]
    seconds = [row["seconds"] for row in rows]
    return Scores(
        clips=len(rows),
        audio_seconds=sum(seconds),
        wer=word_error_rate(references, found.texts),
        ctc_wer=word_error_rate(references, found.ctc_texts),
        positions_per_second=positions_per_second(found.num_positions, seconds),
        seconds_taken=found.seconds_taken,
        whisper_wer=None if baseline is None else word_error_rate(references, baseline.texts),
    )


def evaluate_set(model, processor, rows: Sequence[dict], batch_size: int = 8) -> Scores:
    """Transcribe and score one set."""
    return score(rows, transcribe(model, processor, rows, batch_size))


def score_table(scores: dict[str, Scores]) -> str:
    """Scores as a Markdown table, one set a row."""
    lines = [
        "| set | clips | seconds | WER % | CTC head WER % | positions a second | Whisper WER % | seconds taken |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in scores.items():
        whisper = "" if row.whisper_wer is None else f"{100 * row.whisper_wer:.1f}"
        lines.append(
            f"| {name} | {row.clips} | {row.audio_seconds:.0f} | {100 * row.wer:.1f} | {100 * row.ctc_wer:.1f} | "
            f"{row.positions_per_second:.2f} | {whisper} | {row.seconds_taken:.0f} |"
        )
    return "\n".join(lines)


# ---- the verb ----


def run_evaluation(
    sets: Sequence[str] = SETS,
    checkpoint: str | None = None,
    adapter: str | Path | None = None,
    encoder: str | None = None,
    llm: str | None = None,
    with_baseline: bool = False,
    batch_size: int = 8,
    output: str | None = None,
    transcripts: str | None = None,
    ctc: bool = False,
    allow_other_backbones: bool = False,
    device: str | None = None,
    dtype: str | None = None,
) -> dict[str, Scores]:
    """Score a checkpoint, or adapters on their backbones (the shipped ones unless told otherwise); print a table.

    Args:
        ctc: whether to score the CTC head alone.
        with_baseline: whether to transcribe the same clips with the Whisper that the encoder comes from.
        encoder, llm: what the adapters belong to; by default what they name.
        device, dtype: of the model; by default the CPU, and float32 for adapters, a checkpoint's own for a checkpoint.
        output: JSON file for the scores. transcripts: JSON-lines file for the text of each clip.
    """
    rows_of = {name: read_set(name) for name in sets}  # all of them, before minutes of work
    placing = {name: value for name, value in (("device", device), ("dtype", dtype)) if value is not None}
    if checkpoint:
        model, processor = load_checkpoint(checkpoint, **placing)
    else:
        others = {"allow_other_backbones": allow_other_backbones, "ctc_only": ctc}
        model, processor = load_adapter(adapter or ADAPTER, encoder, llm, **others, **placing)
    whisper = encoder or (ENCODER if checkpoint else model.config.audio_config.name_or_path)
    scores, lines = {}, []
    for name, rows in rows_of.items():
        found = transcribe(model, processor, rows, batch_size, label=name, ctc=ctc)
        baseline = whisper_baseline(resolve_backbone(whisper), rows, batch_size) if with_baseline else None
        scores[name] = score(rows, found, baseline)
        lines += transcript_lines(name, rows, found, baseline)
    print(score_table(scores))
    if output:
        report = {
            "weights": str(checkpoint or adapter or ADAPTER.name),
            "sets": {n: asdict(s) for n, s in scores.items()},
        }
        with whole_file(output) as part:
            part.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if transcripts:
        write_rows(Path(transcripts), lines)
    return scores


def transcript_lines(name: str, rows: Sequence[dict], found: Transcripts, baseline: Transcripts | None) -> list[dict]:
    """One line a clip: what was said and what each transcriber made of it."""
    whisper_texts = [None] * len(rows) if baseline is None else baseline.texts
    columns = zip(rows, found.texts, found.ctc_texts, found.num_positions, whisper_texts, strict=True)
    return [
        {
            "set": name,
            "audio": Path(row["audio"]).name,
            "reference": row["text"],
            "text": text,
            "ctc_text": ctc_text,
            "positions": positions,
            "whisper_text": whisper_text,
        }
        for row, text, ctc_text, positions, whisper_text in columns
    ]
