"""Transcribe recordings of any length with a loaded model, or only its CTC head."""

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from numbers import Real
from typing import Any

import numpy as np
import torch

from .evaluation.generate_options import check_generate, not_taken
from .evaluation.transcribe import (
    audio_side,
    batches_of_like_length,
    check_batch_size,
    check_max_new_tokens,
    ctc_texts_of,
    ctc_transcribe,
    features_of,
    generate_texts,
    generated_texts,
)
from .modeling.hotwords_soundwave import refuse_control_tokens
from .modeling.pipeline_soundwave import SHORTEST_CHUNK, TOKENS_OF_30_SECONDS, is_clip
from .modeling.segments_soundwave import cut_samples
from .modeling.timed_generation_soundwave import ctc_clips
from .processing.languages_soundwave import language_name
from .transcripts import Segment, Transcript, Word


READ_AHEAD = 4  # batches of pieces that are read before the first of them is transcribed
# Errors of a single recording. Other errors stop the whole run.
CLIP_ERRORS = (ValueError, TypeError, OSError, ImportError, RuntimeError)
# What the library's `generate` raises for options that it does not check.
UNCHECKED = (TypeError, AttributeError, KeyError, IndexError)
NOT_TRIED = ("min_length", "min_new_tokens", "max_time")  # options that are about more than two tokens


@dataclass(frozen=True)
class TranscribeOptions:
    """How recordings are transcribed."""

    language: str | None = None  # code or English name; English by default
    batch_size: int = 8  # pieces transcribed at once, of one or several recordings
    chunk_length_s: float | None = None  # longest piece in seconds; the encoder's window by default
    max_new_tokens: int | None = None  # for each 30 s of a piece; 256 by default
    ctc_only: bool = False  # the CTC head's greedy transcript, without the LLM
    generate: Mapping[str, Any] | None = None  # options of `generate`; by default the model's, or greedy
    hotwords: Sequence[str] | None = None  # names and terms that the LLM favours where they are heard
    word_times: bool = False  # whether segments have words with their times
    confidence: bool = False  # whether segments, and words if there are any, have a probability
    streamer: Any = None  # a streamer of transformers, which gets the tokens as they come; `batch_size` must be 1

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> "TranscribeOptions":
        """Options by their names. Raises: `ValueError` for an unknown name."""
        known = [one.name for one in fields(cls)]
        for name in given:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"Did you mean `{near[0]}`?" if near else f"Expected some of {known}."
                raise ValueError(f"`{name}={given[name]!r}` is no option of a transcription. {hint}")
        return cls(**given)

    def __post_init__(self):
        check_batch_size(self.batch_size)
        language_name(self.language)
        longest = self.chunk_length_s
        if longest is not None and not (isinstance(longest, Real) and longest >= SHORTEST_CHUNK):
            raise ValueError(f"The longest piece is {longest!r} s; expected {SHORTEST_CHUNK:g} s or more.")
        if self.max_new_tokens is not None:
            check_max_new_tokens(self.max_new_tokens)
        self._check_generate()
        if self.streamer is not None and self.batch_size != 1:
            raise ValueError(f"A `streamer` takes one text at a time, and `batch_size` is {self.batch_size}: give 1.")
        for name in ("language", "max_new_tokens", "hotwords", "generate", "streamer"):
            if self.ctc_only and getattr(self, name) is not None:
                raise ValueError(
                    f"`{name}` is {getattr(self, name)!r}, but only the LLM uses it, and `ctc_only` runs without the "
                    "LLM: leave one of the two out."
                )

    def _check_generate(self):
        own = {} if self.hotwords is None else {"hotwords": self.hotwords}
        if own and "hotwords" in (self.generate or {}):
            raise ValueError("`hotwords` was given twice, by itself and in `generate`: leave one out.")
        check_generate({**own, **(self.generate or {})}, self.is_aligned, self.streamer)

    @property
    def is_aligned(self) -> bool:
        """Whether the words are aligned with the sound."""
        return self.word_times or self.confidence

    @property
    def most_tokens(self) -> int:
        return self.max_new_tokens or TOKENS_OF_30_SECONDS


def transcribe_clips(model, processor, clips: Iterable, **options) -> Iterator[Transcript]:
    """Yield transcripts of recordings of any length, in order.

    Each recording is read when it is needed. Long recordings are cut into pieces at quiet places. A batch may mix
    pieces of several recordings; a transcript does not depend on its batch.

    Args:
        model, processor: from `load_adapter` or `from_pretrained`.
        clips: a list, or another iterable, of clips in any form that the processor accepts.
        options: fields of `TranscribeOptions`.

    Raises: `ValueError` for bad options, and for one clip that is not in a list; the processor's error for a bad
    recording.

    Example:

    ```python
    >>> from soundwave_hf import transcribe_clips
    >>> from soundwave_hf.transcripts import as_srt

    >>> for transcript in transcribe_clips(model, processor, ["speech.wav"], batch_size=4):
    ...     subtitles = as_srt(transcript)
    ```
    """
    options = TranscribeOptions.of(options)
    if _is_one_clip(clips):
        raise ValueError(f"`clips` is one clip ({type(clips).__name__}): give a list of clips, such as `[clip]`.")
    return _or_raise(outcomes(model, processor, clips, options))


def _is_one_clip(clips) -> bool:
    """Whether `clips` can only be one clip: a name, an open file or its bytes, a row of audio, or samples."""
    is_batch = isinstance(clips, (np.ndarray, torch.Tensor)) and clips.ndim != 1  # each row is a clip
    return not is_batch and is_clip(clips)


def _or_raise(found: Iterator[Transcript | Exception]) -> Iterator[Transcript]:
    for outcome in found:
        if isinstance(outcome, Exception):
            raise outcome
        yield outcome


@dataclass
class Recording:
    """A recording that was read, and the transcripts of its pieces."""

    pieces: list[np.ndarray] = field(default_factory=list)  # `(samples,)` each
    segments: list[Segment | None] = field(default_factory=list)
    bounds: list[tuple[float, float]] = field(default_factory=list)  # seconds of each piece
    failure: Exception | None = None

    def outcome(self) -> Transcript | Exception:
        if self.failure is not None:
            return self.failure
        return Transcript.of_segments(self.segments, self.bounds[-1][1])


def outcomes(
    model,
    processor,
    clips: Iterable,
    options: TranscribeOptions = TranscribeOptions(),
    on_batch: Callable[[float], None] = lambda seconds: None,
) -> Iterator[Transcript | Exception]:
    """For each recording, in order, its transcript, or the error that prevented it.

    Args: on_batch: called after each batch with its seconds of audio.
    """
    check_control_tokens(processor, options)
    group: list[Recording] = []
    for number, clip in enumerate(clips):
        group.append(read_recording(processor, clip, options, number))
        if sum(len(recording.pieces) for recording in group) >= READ_AHEAD * options.batch_size:
            yield from transcribe_group(model, processor, group, options, on_batch)
            group = []
    yield from transcribe_group(model, processor, group, options, on_batch)


def check_control_tokens(processor, options: TranscribeOptions):
    """Raises: `ValueError` for a hotword with a control token of the LLM."""
    if (hotwords := generate_options(options).get("hotwords")) is not None:
        refuse_control_tokens(hotwords, processor.tokenizer)


def try_options(model, processor, options: TranscribeOptions):
    """Transcribe a second of noise, which tells errors of the options from errors of a recording.

    Raises: `ValueError` for options that this model can use with no recording.
    """
    rate = processor.feature_extractor.sampling_rate
    samples = np.random.default_rng(0).normal(scale=0.1, size=rate).astype(np.float32)
    generate = {name: value for name, value in (options.generate or {}).items() if name not in NOT_TRIED}
    most_tokens = None if options.ctc_only else 2
    short = replace(options, max_new_tokens=most_tokens, generate=generate or None, streamer=None)
    devices = [model.device] if model.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices):  # sampling goes on as without the trial
            spoken_in(model, processor, [{"array": samples, "sampling_rate": rate}], short)
    except UNCHECKED as error:
        if not options.generate:
            raise
        raise not_taken(options.generate, error) from error


def read_recording(processor, clip, options: TranscribeOptions, number: int) -> Recording:
    """Decode and cut one recording.

    Args: clip: audio, or an error that occurred before; number: of the clip in error messages.
    """
    if isinstance(clip, Exception):
        return Recording(failure=clip)
    extractor = processor.feature_extractor
    rate = extractor.sampling_rate
    try:
        (samples,) = processor.load_clips([clip], first=number)
    except CLIP_ERRORS as error:
        return Recording(failure=error)
    pieces = cut_samples(samples, rate, options.chunk_length_s or extractor.chunk_length)
    ends = np.cumsum([len(piece) for piece in pieces]) / rate
    bounds = list(zip([0.0, *ends[:-1].tolist()], ends.tolist(), strict=True))
    return Recording(pieces, [None] * len(pieces), bounds)


def transcribe_group(model, processor, group: list[Recording], options, on_batch) -> Iterator[Transcript | Exception]:
    """Outcomes of recordings that were read. Their pieces are batched by length."""
    places = [(recording, place) for recording in group for place in range(len(recording.pieces))]
    extractor = processor.feature_extractor
    seconds = [len(recording.pieces[place]) / extractor.sampling_rate for recording, place in places]
    for batch in batches_of_like_length(seconds, options.batch_size, extractor.chunk_length):
        transcribe_batch(model, processor, [places[number] for number in batch], options)
        on_batch(sum(seconds[number] for number in batch))
    for recording in group:
        recording.pieces = []
    yield from (recording.outcome() for recording in group)


def transcribe_batch(model, processor, batch: list[tuple[Recording, int]], options: TranscribeOptions):
    """Put what is said in each piece into its recording. If the model refuses a batch, each piece is tried alone.

    Raises: `ValueError` for options that the model refuses with any recording.
    """
    rate = processor.feature_extractor.sampling_rate
    clips = [{"array": recording.pieces[place], "sampling_rate": rate} for recording, place in batch]
    try:
        found = spoken_in(model, processor, clips, options)
    except (ValueError, torch.OutOfMemoryError, *UNCHECKED) as error:
        if len(batch) == 1:
            if not isinstance(error, torch.OutOfMemoryError):
                try_options(model, processor, options)
            if isinstance(error, UNCHECKED):
                raise
            batch[0][0].failure = error
            return
        for one in batch:
            transcribe_batch(model, processor, [one], options)
        return
    for (recording, place), spoken in zip(batch, found, strict=True):
        recording.segments[place] = spoken.segment(*recording.bounds[place])


@dataclass(frozen=True)
class Spoken:
    """What is said in a piece of a recording."""

    text: str
    finished: bool = True  # whether the text ended, and was not cut off
    chunks: Sequence[dict] | None = None  # words, as `generate` returns them; times are seconds of the piece
    confidence: float | None = None

    def segment(self, start: float, end: float) -> Segment:
        """The segment of a piece. Args: start, end: seconds of the recording."""
        words = self.chunks
        if words is not None:
            words = tuple(word_of(chunk, start, has_confidence=self.confidence is not None) for chunk in words)
        return Segment(start, end, self.text, words, self.confidence, self.finished)


def word_of(chunk: dict, seconds: float, has_confidence: bool) -> Word:
    """A word with times in the whole recording. Args: seconds: where the piece begins."""
    start, end = chunk["timestamp"]
    if start is not None:
        start = round(start + seconds, 3)
        end = max(round(end + seconds, 3), round(start + 0.001, 3))  # never without length after rounding
    return Word(chunk["text"], start, end, chunk["probability"] if has_confidence else None, chunk["supported"])


def spoken_in(model, processor, clips: list[dict], options: TranscribeOptions) -> list[Spoken]:
    """What is said in each piece of one padded batch."""
    if not options.is_aligned:
        texts, finished = texts_of(model, processor, clips, options)
        return [Spoken(text, ended) for text, ended in zip(texts, finished, strict=True)]
    align = ctc_aligned if options.ctc_only else llm_aligned
    texts, finished, chunks, probabilities = align(model, processor, clips, options)
    chunks = chunks if options.word_times else [None] * len(texts)
    probabilities = probabilities if options.confidence else [None] * len(texts)
    return [Spoken(*of_piece) for of_piece in zip(texts, finished, chunks, probabilities, strict=True)]


@torch.inference_mode()
def texts_of(model, processor, clips: list[dict], options: TranscribeOptions) -> tuple[list[str], list[bool]]:
    """Texts of pieces in one padded batch, and whether each ended before the limit."""
    if options.ctc_only:
        return ctc_transcribe(model, processor, clips).texts, [True] * len(clips)
    return generated_texts(model, processor, request_of(model, processor, clips, options), **generate_options(options))


@torch.inference_mode()
def llm_aligned(model, processor, clips: list[dict], options: TranscribeOptions) -> tuple:
    """Texts, whether each ended before the limit, words and probabilities, from one call of `generate`."""
    inputs = request_of(model, processor, clips, options)
    own = {**generate_options(options), "return_timestamps": "word"}
    outputs, texts, finished = generate_texts(model, processor, inputs, **own)
    return texts, finished, outputs.chunks, outputs.probabilities.tolist()


@torch.inference_mode()
def ctc_aligned(model, processor, clips: list[dict], options: TranscribeOptions) -> tuple:
    """As `llm_aligned`, of the CTC head's transcripts, from one pass of the encoder."""
    features = features_of(model, processor, clips)
    audio_model = audio_side(model)
    _, aligned, mask = audio_model.align(**features)
    audio = audio_model.label(aligned, mask, audio_model.token_table())
    texts = ctc_texts_of(model, processor, audio)
    clips = ctc_clips(model, audio, **features, frames=audio_model.ctc_frames(audio))
    found = processor.align_word_timestamps(texts, clips)
    chunks, probabilities = ([one[name] for one in found] for name in ("chunks", "probability"))
    return texts, [True] * len(texts), chunks, probabilities


def request_of(model, processor, clips: list[dict], options: TranscribeOptions):
    return processor.apply_transcription_request(clips, language=options.language).to(model.device)


def generate_options(options: TranscribeOptions) -> dict:
    given = {"hotwords": options.hotwords, "streamer": options.streamer}
    given = {name: value for name, value in given.items() if value is not None}
    return {"max_new_tokens": options.most_tokens, **given, **(options.generate or {})}


__all__ = ["TranscribeOptions", "outcomes", "transcribe_clips"]
