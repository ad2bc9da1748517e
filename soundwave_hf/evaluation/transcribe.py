"""Transcribe many clips in batches: with a loaded model, its CTC head, or Whisper itself."""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ..modeling.answers_soundwave import have_ended
from ..modeling.audio_model_soundwave import SoundwaveAudioModel
from ..modeling.decoding_soundwave import given_option
from ..modeling.positions_soundwave import POSITION_OPTIONS, PositionLimits, find_position_limits
from ..modeling.spacing_soundwave import join_texts
from ..processing.processing_soundwave import ASR_QUESTION
from .generate_options import TRANSCRIPT_OPTIONS, is_count
from .metrics import collapse_ctc, scoring_language
from .rows import SAMPLING_RATE, Request, decoded_groups


WINDOW_SECONDS = 30.0  # of the Whisper encoder
MAX_NEW_TOKENS = 120  # 30 s of English speech seldom need more


# ---- one batch ----


@dataclass
class Transcripts:
    """Texts of clips, in the order of the clips."""

    texts: list[str | None]
    seconds_taken: float  # wall-clock time from audio files to texts
    ctc_texts: list[str | None] | None = None  # greedy transcript of the CTC head, before the LLM
    num_positions: list[int | None] | None = None  # LLM positions of each clip
    finished: list[bool] | None = None  # whether each text ended, and was not cut off


def conversation(audio, question: str) -> list[dict]:
    """One user turn: a clip, then a question about it. An empty question is left out."""
    asked = [{"type": "text", "text": question}] if question else []
    kind = "path" if isinstance(audio, (str, Path)) else "audio"
    return [{"role": "user", "content": [{"type": "audio", kind: str(audio) if kind == "path" else audio}, *asked]}]


def ask(
    model,
    processor,
    clips: Sequence,
    question: str = ASR_QUESTION,
    max_new_tokens: int = MAX_NEW_TOKENS,
    language: str | None = None,
) -> Transcripts:
    """Ask the same question about each clip, in one padded batch. The search is that of the model's generation config.

    Args:
        clips: audio in any form that the processor accepts.
        question: `ASR_QUESTION` requests the transcript by `apply_transcription_request`, in `language`.
        max_new_tokens: for each encoder window of the longest clip.
    """
    talks = [None if question == ASR_QUESTION else conversation(clip, question) for clip in clips]
    requests = [
        Request(row, None, "", conversation=talk, clips=(clip,))
        for row, (clip, talk) in enumerate(zip(clips, talks, strict=True))
    ]
    return answer(model, processor, requests, max_new_tokens, language)


@torch.inference_mode()
def answer(
    model,
    processor,
    requests: Sequence[Request],
    max_new_tokens: int = MAX_NEW_TOKENS,
    language: str | None = None,
    generate: Mapping[str, Any] | None = None,
) -> Transcripts:
    """Texts for requests of one kind (all transcripts or all conversations) in one padded batch.

    Args: generate: options of `generate`; conversations ignore `TRANSCRIPT_OPTIONS`.
    """
    options = dict(generate or {})
    limits = find_position_limits(model, options)
    if not any(request.clips for request in requests):
        options = {name: value for name, value in options.items() if name not in POSITION_OPTIONS}
    start = time.perf_counter()
    if requests[0].conversation is None:
        clips = [clip for request in requests for clip in request.clips]
        inputs = processor.apply_transcription_request(clips, language=language)
    else:
        inputs = processor.apply_chat_template(
            [request.conversation for request in requests], add_generation_prompt=True, tokenize=True, return_dict=True
        )
        options = {name: value for name, value in options.items() if name not in TRANSCRIPT_OPTIONS}
    inputs = inputs.to(model.device)
    texts, ended = generated_texts(model, processor, inputs, max_new_tokens, **options)
    seconds_taken = time.perf_counter() - start
    # `generate` does not return the CTC labels. Computing them again is cheap and not timed.
    ctc_texts, num_positions = ctc_of_requests(model, processor, requests, limits)
    return Transcripts(texts, seconds_taken, ctc_texts, num_positions, ended)


def generated_texts(
    model, processor, inputs, max_new_tokens: int = MAX_NEW_TOKENS, **options
) -> tuple[list[str], list[bool]]:
    """Answers to a batch of inputs, and whether each ended by itself.

    Args:
        max_new_tokens: for each encoder window of the longest clip.
        options: of `generate`; by default those of the model's generation config, or greedy.
    """
    _, texts, ended = generate_texts(model, processor, inputs, max_new_tokens, **options)
    return texts, ended


def generate_texts(model, processor, inputs, max_new_tokens: int = MAX_NEW_TOKENS, **options) -> tuple:
    """The output of `generate`, and what `generated_texts` returns."""
    options = {"do_sample": False, "tokenizer": processor.tokenizer, **options}
    limit = max_new_tokens * windows_of(inputs, processor)
    outputs = model.generate(**inputs, max_new_tokens=limit, **options)
    new_ids = getattr(outputs, "sequences", outputs)[:, inputs["input_ids"].shape[1] :]
    texts = processor.batch_decode(new_ids, skip_special_tokens=True)
    return outputs, [text.strip() for text in texts], finished(model, processor, new_ids, options)


def windows_of(inputs, processor) -> int:
    """Number of encoder windows of the longest clip in a batch, without its trailing silence; 1 without clips."""
    if "input_features" not in inputs:
        return 1
    extractor = processor.feature_extractor
    silence = round(processor.trailing_silence * extractor.sampling_rate) // extractor.hop_length  # mel frames
    return max(1, math.ceil((inputs["input_features"].shape[-1] - silence) / extractor.nb_max_frames))


def finished(model, processor, new_ids: torch.Tensor, options: Mapping[str, Any]) -> list[bool]:
    """Whether each row of new ids `(batch, tokens)` ended by itself, see `have_ended`.

    Args: options: of `generate`; what they leave out is read in the model's generation config.
    """
    ends, stops = (given_option(name, options, [model.generation_config]) for name in ("eos_token_id", "stop_strings"))
    return have_ended(processor, new_ids, ends, stops)


def ctc_of_requests(
    model, processor, requests: Sequence[Request], limits: PositionLimits | None = None
) -> tuple[list[str | None], list[int]]:
    """CTC transcripts and LLM positions of requests with any number of clips."""
    clips = [clip for request in requests for clip in request.clips]
    found = ctc_transcribe(model, processor, clips, limits) if clips else Transcripts([], 0.0, [], [])
    texts, positions = iter(found.texts), iter(found.num_positions)
    joined = [join_texts(next(texts) for _ in request.clips) if request.clips else None for request in requests]
    return joined, [sum(next(positions) for _ in request.clips) for request in requests]


def features_of(model, processor, clips: Sequence) -> dict[str, torch.Tensor]:
    """`input_features` and `input_features_mask` of clips, in one padded batch on the model's device."""
    features = processor.log_mel(processor.load_clips(list(clips)))
    return {name: torch.from_numpy(values).to(model.device) for name, values in features.items()}


def audio_side(model) -> SoundwaveAudioModel:
    """The part of a model that hears: encoder, alignment adapter and CTC head. Also of a `PeftModel`."""
    return next(part for part in model.modules() if isinstance(part, SoundwaveAudioModel))


def audio_of(model, features: dict[str, torch.Tensor], limits: PositionLimits | None = None):
    """Encode the features of clips. Returns: `SoundwaveAudioOutput`."""
    encode = getattr(model, "get_audio_features", model)  # `SoundwaveForCTC` has only `forward`
    return encode(**features, **({} if limits is None else {"position_limits": limits}))


def ctc_texts_of(model, processor, audio) -> list[str]:
    """Greedy transcripts of the CTC head. Args: audio: what `audio_of` returns."""
    ids = [
        collapse_ctc(best[:frames], model.config.audio_token_id)
        for best, frames in zip(audio.ctc_best.tolist(), audio.num_frames.tolist(), strict=True)
    ]
    return [text.strip() for text in processor.batch_decode(ids, skip_special_tokens=True)]


@torch.inference_mode()
def ctc_transcribe(model, processor, clips: Sequence, limits: PositionLimits | None = None) -> Transcripts:
    """Greedy transcripts of the CTC head, without the LLM. Stage I trains only this part."""
    start = time.perf_counter()
    audio = audio_of(model, features_of(model, processor, clips), limits)
    texts = ctc_texts_of(model, processor, audio)
    return Transcripts(texts, time.perf_counter() - start, texts, audio.num_positions.tolist())


hear = ctc_transcribe  # name in version 0.1.0


# ---- systems: functions from requests of one kind to texts ----


System = Callable[[Sequence[Request]], Transcripts]


def model_system(
    model,
    processor,
    ctc: bool = False,
    max_new_tokens: int = MAX_NEW_TOKENS,
    language: str | None = None,
    generate: Mapping[str, Any] | None = None,
) -> System:
    """A loaded model, or only its CTC head, as a `System`."""
    if ctc:
        return lambda requests: ctc_transcribe(model, processor, [request.clips[0] for request in requests])
    return partial(answer, model, processor, max_new_tokens=max_new_tokens, language=language, generate=generate)


def whisper_system(encoder_folder: str, language: str | None = None, device: str | torch.device = "cpu") -> System:
    """Greedy transcripts of the Whisper that the encoder comes from, with each clip padded to 30 s as in its training.

    Longer clips use Whisper's long-form algorithm: each window begins at the last timestamp of the window before it.
    Rows without exactly one clip get no text.
    """
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

    model = WhisperForConditionalGeneration.from_pretrained(encoder_folder).to(device).eval()
    processor = WhisperProcessor.from_pretrained(encoder_folder)
    options = whisper_options(model, language)

    @torch.inference_mode()
    def run(requests: Sequence[Request]) -> Transcripts:
        start = time.perf_counter()
        single = [request for request in requests if len(request.clips) == 1]
        if not single:
            return Transcripts([None] * len(requests), 0.0)
        samples = [request.clips[0]["array"] for request in single]
        long = max(map(len, samples)) > processor.feature_extractor.n_samples
        whole = {"truncation": False, "padding": "longest"} if long else {}
        inputs = processor(
            samples, sampling_rate=SAMPLING_RATE, return_tensors="pt", return_attention_mask=True, **whole
        ).to(model.device)
        timestamps = {"return_timestamps": True} if long else {}
        ids = model.generate(**inputs, num_beams=1, do_sample=False, **options, **timestamps)
        texts = iter(processor.batch_decode(ids, skip_special_tokens=True))
        found = [next(texts).strip() if len(request.clips) == 1 else None for request in requests]
        return Transcripts(found, time.perf_counter() - start)

    return run


def whisper_options(model, language: str | None) -> dict:
    """Language and task for Whisper's `generate`; English-only models accept neither."""
    code = scoring_language(language)
    if not getattr(model.generation_config, "is_multilingual", True):
        if code != "en":
            raise ValueError(
                f"The language is `{language}`, and this Whisper transcribes only English: name another Whisper."
            )
        return {}
    return {"task": "transcribe", **({} if code == "auto" else {"language": code})}


# ---- many clips ----


@dataclass
class Result:
    """The text of one row, or why there is none."""

    request: Request  # without its audio
    text: str | None = None
    ctc_text: str | None = None
    num_positions: int | None = None
    finished: bool = True
    failure: str | None = None  # why there is no text


def batches_of_like_length(
    seconds: Sequence[float], batch_size: int, window: float = WINDOW_SECONDS
) -> list[list[int]]:
    """Indices of clips, in batches of similar length, so that little is padded.

    The clips of a batch fill the same number of the encoder's windows, which decides how many tokens a text may have.

    Args: window: length of the encoder's window in seconds.
    """
    check_batch_size(batch_size)
    parts: dict[int, list[int]] = {}
    for index in sorted(range(len(seconds)), key=lambda index: seconds[index]):
        parts.setdefault(max(1, math.ceil(seconds[index] / window)), []).append(index)
    return [part[start : start + batch_size] for part in parts.values() for start in range(0, len(part), batch_size)]


def check_batch_size(batch_size: int):
    if not is_count(batch_size):
        raise ValueError(f"The batch size is {batch_size!r}; expected 1 clip or more, as a whole number.")


def check_max_new_tokens(max_new_tokens: int):
    if not is_count(max_new_tokens):
        raise ValueError(f"`max_new_tokens` is {max_new_tokens!r}; expected 1 or more, as a whole number.")


def run_rows(
    system: System, rows: Iterable[dict], batch_size: int, label: str, transcripts_only: bool = False
) -> tuple[list[Result], float]:
    """Results of all rows in order, and the seconds that reading and answering took.

    A row that cannot be read, or that the system refuses, gets a `failure`; the other rows go on.

    Args: label: text before the progress bar; transcripts_only: see `read_request`.
    """
    check_batch_size(batch_size)
    results, seconds_taken, start = [], 0.0, time.perf_counter()
    total = len(rows) if hasattr(rows, "__len__") else None
    with tqdm(total=total, desc=label, unit="clip", mininterval=2) as progress:
        for group in decoded_groups(rows, transcripts_only):
            seconds_taken += time.perf_counter() - start
            found, seconds = run_group(system, group, batch_size, progress)
            results += found
            seconds_taken += seconds
            start = time.perf_counter()
    if not results:
        raise ValueError(f"`{label}` has no rows: there is nothing to transcribe.")
    return results, seconds_taken


def run_group(system: System, group: list[Request], batch_size: int, progress) -> tuple[list[Result], float]:
    """Results of decoded requests in order, and the seconds that answering took."""
    results = {request.row: Result(request, failure=request.failure) for request in group}
    usable = [request for request in group if request.failure is None]
    progress.update(len(group) - len(usable))
    seconds_taken = 0.0
    for is_talk in (False, True):  # transcription requests and conversations have separate batches
        alike = [request for request in usable if (request.conversation is not None) == is_talk]
        for places in batches_of_like_length([longest_clip(request) for request in alike], batch_size):
            batch = [alike[place] for place in places]
            seconds_taken += run_batch(system, batch, results)
            progress.update(len(batch))
    for request in group:
        request.forget_audio()
    return list(results.values()), seconds_taken


def longest_clip(request: Request) -> float:
    """Seconds of the longest clip of a decoded request; 0 without clips."""
    return max((len(clip["array"]) / SAMPLING_RATE for clip in request.clips), default=0.0)


def run_batch(system: System, batch: list[Request], results: dict[int, Result]) -> float:
    """Put the texts of a batch into the results. If the system refuses the batch, each row is tried alone.

    Returns: seconds taken.
    """
    try:
        found = system(batch)
    except ValueError as error:
        if len(batch) > 1:
            return sum(run_batch(system, [request], results) for request in batch)
        results[batch[0].row].failure = str(error)
        return 0.0
    for place, request in enumerate(batch):
        result = results[request.row]
        result.text = found.texts[place]
        result.ctc_text = found.ctc_texts and found.ctc_texts[place]
        result.num_positions = found.num_positions and found.num_positions[place]
        result.finished = found.finished is None or found.finished[place]
    return found.seconds_taken


def as_transcripts(results: Sequence[Result], seconds_taken: float) -> Transcripts:
    """The results as lists, one for each field.

    Raises: ValueError if a row failed.
    """
    for result in results:
        if result.failure is not None:
            raise ValueError(f"Row {result.request.row} could not be transcribed: {result.failure}")
    return Transcripts(
        [result.text for result in results],
        seconds_taken,
        [result.ctc_text for result in results],
        [result.num_positions for result in results],
        [result.finished for result in results],
    )


def transcribe(
    model,
    processor,
    rows: Iterable[dict],
    batch_size: int = 8,
    max_new_tokens: int = MAX_NEW_TOKENS,
    label: str = "transcribing",
    ctc: bool = False,
    language: str | None = None,
) -> Transcripts:
    """Transcripts by `generate`, or by the CTC head without the LLM.

    Args: rows: with `audio`, one for each clip; label: text before the progress bar.
    Raises: ValueError for a clip that cannot be read.
    """
    system = model_system(model, processor, ctc, max_new_tokens, language)
    return as_transcripts(*run_rows(system, only_audio(rows), batch_size, label))


def whisper_baseline(
    encoder_folder: str, rows: Iterable[dict], batch_size: int = 8, language: str | None = None
) -> Transcripts:
    """Like `transcribe`, by the Whisper that the encoder comes from (`whisper_system`)."""
    system = whisper_system(encoder_folder, language)
    return as_transcripts(*run_rows(system, only_audio(rows), batch_size, "Whisper itself"))


def only_audio(rows: Iterable[dict]) -> list[dict]:
    """Rows as transcription requests, without their other columns."""
    return [{"audio": row["audio"], "text": ""} for row in rows]
