"""Transcribe live audio: partial text while someone speaks, final text at each pause."""

import json
import shutil
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import torch

from .audio_files import HEAD_BYTES, refuse_empty, refuse_header
from .evaluation.metrics import collapse_ctc
from .evaluation.transcribe import audio_side
from .modeling.pipeline_soundwave import SHORTEST_CHUNK
from .modeling.segments_soundwave import cut_samples
from .processing.audio_soundwave import AudioOptions, check_rate, check_samples, import_soxr, read_array
from .processing.processing_soundwave import MIN_MEL_FRAMES
from .transcribe import TranscribeOptions, check_control_tokens, texts_of, try_options
from .transcripts import Segment, one_line


LONGEST_SECONDS = 10.0  # longest segment, if the speaker does not pause
HOPS_PER_SECOND = 100
SMOOTHED_HOPS = 10  # 0.1 s: loudness is averaged over this time to find the quietest place of a pause
READ_BYTES = 2**16
MOST_PENDING = 8  # segments that may wait for the LLM; with more, `feed` blocks, and partial text with it
# Partial text encodes only the last seconds.
SETTLED_SECONDS = 1.5  # labels older than this are final
CONTEXT_SECONDS = 2.0  # of audio before the open labels, encoded with them


@dataclass(frozen=True)
class Partial:
    """CTC transcript since the last segment. The final text may differ."""

    start: float  # seconds of the stream
    end: float
    text: str


class StreamingTranscriber:
    r"""
    Transcribes live audio. The CTC head gives partial text. The LLM gives the final text of a segment when the speaker
    pauses or the segment is full.

    Segments have no gaps or overlaps: each sample is in exactly one segment. The LLM runs in a separate thread, so
    the final text of a segment may come after partial text of the next one. Less than ten of the longest segments
    are kept in memory.

    Partial text costs the same however long the segment is: only its last seconds are encoded again.

    Args:
        model, processor: from `load_adapter` or `from_pretrained`.
        sampling_rate (`int`): Hz of the samples.
        partial_seconds (`float`): seconds of new audio before the next partial text.
        pause_seconds (`float`): time without a CTC label that ends a segment.
        longest_seconds (`float`, *optional*): longest segment, 10 s by default, at most the encoder's window. Without
            a pause, the segment is cut at the quietest place of its last third.
        language, max_new_tokens, ctc_only, hotwords: as in `TranscribeOptions`.
        generate: the same, but `num_beams` is 1 unless you set it: beams may not keep up with a speaker.

    Raises: `ValueError` for a value out of range.

    Example:

    ```python
    >>> from soundwave_hf import StreamingTranscriber

    >>> transcriber = StreamingTranscriber(model, processor, sampling_rate=16_000, max_new_tokens=20)
    >>> events = transcriber.feed([0.0] * 8_000)  # whenever samples arrive; gives `Partial`s and `Segment`s
    >>> events += transcriber.finish()
    >>> events[-1].end
    0.5
    ```
    """

    def __init__(
        self,
        model,
        processor,
        sampling_rate: int,
        *,
        partial_seconds: float = 0.5,
        pause_seconds: float = 0.8,
        longest_seconds: float | None = None,
        language: str | None = None,
        max_new_tokens: int | None = None,
        ctc_only: bool = False,
        hotwords: Sequence[str] | None = None,
        generate: Mapping[str, Any] | None = None,
    ):
        self.model, self.processor = model, processor
        search = generate
        if not ctc_only and (generate or {}).get("num_beams") is None:
            search = {**(generate or {}), "num_beams": 1}
        given = {"max_new_tokens": max_new_tokens, "ctc_only": ctc_only, "hotwords": hotwords, "generate": search}
        self.options = TranscribeOptions(language, batch_size=1, **given)
        self.rate = processor.feature_extractor.sampling_rate  # Hz of the model
        self.sampling_rate = sampling_rate
        check_rate(sampling_rate, "`sampling_rate`")
        window = processor.feature_extractor.chunk_length
        longest_seconds = min(LONGEST_SECONDS, window) if longest_seconds is None else longest_seconds
        if not (isinstance(longest_seconds, Real) and SHORTEST_CHUNK <= longest_seconds <= window):
            raise ValueError(
                f"`longest_seconds` is {longest_seconds!r}; expected {SHORTEST_CHUNK:g} to {window}, the encoder's "
                "window."
            )
        for name, value in (("partial_seconds", partial_seconds), ("pause_seconds", pause_seconds)):
            if not (isinstance(value, Real) and 0.1 <= value <= longest_seconds):
                raise ValueError(f"`{name}` is {value!r}; expected 0.1 to {longest_seconds:g}, the longest segment.")
        self._partial, self._pause, self._longest = (
            round(seconds * self.rate) for seconds in (partial_seconds, pause_seconds, longest_seconds)
        )
        same = sampling_rate == self.rate
        self._resampler = None if same else import_soxr().ResampleStream(sampling_rate, self.rate, 1, dtype="float32")
        self._waiting = np.zeros(0, np.float32)  # samples since the last segment ended
        self._start = 0  # their place in the stream, in samples
        self._new = 0  # samples since the last CTC pass
        self._said = ""  # the last partial text
        self._settled: list[int] = []  # CTC labels of the first waiting frames, which later audio does not change
        self._frame = round(model.config.frame_seconds * self.rate)  # samples
        self._is_finished = False
        check_control_tokens(processor, self.options)
        if generate:
            try_options(model, processor, self.options)
        self._llm = ThreadPoolExecutor(max_workers=1, thread_name_prefix="soundwave-final-text")
        self._pending: deque[Future] = deque()  # final texts, in order

    def feed(self, samples) -> list[Partial | Segment]:
        """Add samples `(samples,)`, floats in [-1, 1] or PCM integers other than int32.

        Returns: the text that is ready.

        Raises: `ValueError` for several channels, for samples that are not finite, for int32, and after `finish`.
        """
        if self._is_finished:
            raise ValueError("Samples arrived after `finish`: make a new `StreamingTranscriber` for another stream.")
        if not len(samples):
            return []
        if str(getattr(samples, "dtype", "")).removeprefix("torch.") == "int32":
            raise ValueError(
                "Samples arrived as int32, and one block does not tell their full scale (24 or 32 bits): divide by "
                "it, `block.astype('float32') / 2**31`."
            )
        samples, _ = read_array(samples, self.sampling_rate, "samples", own_rate=False, options=AudioOptions())
        check_samples(samples, "samples")
        events = self._take(samples if self._resampler is None else self._resampler.resample_chunk(samples))
        while self._pending and self._pending[0].done():
            events.append(self._pending.popleft().result())
        return sorted(events, key=lambda event: event.start)

    def finish(self) -> list[Partial | Segment]:
        """End the stream: wait for the LLM and return the remaining text."""
        if self._is_finished:
            return []
        self._is_finished = True
        events = []
        try:
            if self._resampler is not None:
                events = self._take(self._resampler.resample_chunk(np.zeros(0, np.float32), last=True))
            if len(self._waiting):
                events += self._end_segment(len(self._waiting))
            events += [text.result() for text in self._pending]
        finally:  # a text may have failed
            self._pending.clear()
            self._llm.shutdown(cancel_futures=True)
        return sorted(events, key=lambda event: event.start)

    def _take(self, samples: np.ndarray) -> list[Partial | Segment]:
        events = []
        while len(samples):
            room = self._longest - len(self._waiting)
            self._waiting = np.concatenate([self._waiting, samples[:room]])
            self._new += len(samples[:room])
            samples = samples[room:]
            if self._new >= self._partial or len(self._waiting) == self._longest:
                events += self._update()
        return events

    def _update(self) -> list[Partial | Segment]:
        """Run the CTC head on the waiting samples: end a segment, or return new partial text."""
        self._new = 0
        text, spoken = self._ctc()
        if spoken and len(self._waiting) - spoken >= self._pause:
            return self._end_segment(self._quietest(spoken))
        if len(self._waiting) == self._longest:
            return self._end_segment(len(cut_samples(self._waiting, self.rate, 0.9 * self._longest / self.rate)[0]))
        if text == self._said:
            return []
        self._said = text
        return [Partial(self._start / self.rate, (self._start + len(self._waiting)) / self.rate, text)]

    @torch.inference_mode()
    def _ctc(self) -> tuple[str, int]:
        """Greedy transcript of the waiting samples, and the sample after its last label (0 without labels)."""
        frames_per_second = self.rate / self._frame
        begin = max(0, len(self._settled) - round(CONTEXT_SECONDS * frames_per_second))
        best = self._settled + self._labels(self._waiting[begin * self._frame :], len(self._settled) - begin)
        num_heard = min(len(best), len(self._waiting) // self._frame)  # without the silence that the processor adds
        num_settled = num_heard - round(SETTLED_SECONDS * frames_per_second)
        self._settled = best[: max(len(self._settled), num_settled)]
        blank = self.model.config.audio_token_id
        labelled = [frame for frame, label in enumerate(best) if label != blank]
        text = self.processor.batch_decode([collapse_ctc(best, blank)], skip_special_tokens=True)[0].strip()
        return text, min((labelled[-1] + 1) * self._frame, len(self._waiting)) if labelled else 0

    def _labels(self, samples: np.ndarray, first: int) -> list[int]:
        """CTC label of each frame of samples from frame `first` on."""
        audio_model = audio_side(self.model)
        features = self.processor.log_mel(self.processor.load_clips([self._clip(samples)]))
        inputs = {name: torch.from_numpy(values).to(self.model.device) for name, values in features.items()}
        _, aligned, mask = audio_model.align(**inputs)
        found = audio_model.label(aligned[:, first:], mask[:, first:], audio_model.token_table())
        return found.ctc_best[0].tolist()

    def _quietest(self, begin: int) -> int:
        """The quietest place after a sample. A cut there does not hit a word that begins at the end of the pause."""
        hop = self.rate // HOPS_PER_SECOND
        pause = self._waiting[begin:]
        power = np.square(pause[: len(pause) // hop * hop]).reshape(-1, hop).mean(axis=1)  # [hops of 10 ms]
        width = min(SMOOTHED_HOPS, len(power))
        smooth = np.convolve(power, np.ones(width) / width, mode="valid")
        return begin + hop * (int(smooth.argmin()) + (width + 1) // 2)

    def _end_segment(self, length: int) -> list[Segment]:
        """Give the first waiting samples to the LLM. Returns: the oldest final text, if too many are pending."""
        samples, self._waiting = self._waiting[:length], self._waiting[length:].copy()
        start = self._start
        self._start, self._new, self._said, self._settled = start + length, len(self._waiting), "", []
        self._pending.append(self._llm.submit(self._segment, samples, start))
        return [self._pending.popleft().result()] if len(self._pending) > MOST_PENDING else []

    def _segment(self, samples: np.ndarray, start: int) -> Segment:
        """The final text of samples. Args: start: first sample of the segment in the stream."""
        shortest = MIN_MEL_FRAMES * self.processor.feature_extractor.hop_length
        padded = np.pad(
            samples, (0, max(0, shortest - len(samples)))
        )  # the last segment may be too short for the model
        texts, finished = texts_of(self.model, self.processor, [self._clip(padded)], self.options)
        return Segment(start / self.rate, (start + len(samples)) / self.rate, texts[0], finished=finished[0])

    def _clip(self, samples: np.ndarray) -> dict:
        return {"array": samples, "sampling_rate": self.rate}


# ---- raw samples from a pipe ----


def transcribe_pipe(transcriber: StreamingTranscriber, pipe, show: Callable[[Partial | Segment], None]):
    """Transcribe raw samples (16 bits, little-endian, one channel) from a pipe until it ends.

    Ctrl-C ends the stream: the remaining text is shown before `KeyboardInterrupt` is raised.

    Raises: `ValueError` if the pipe holds nothing, or a file with a header, or ends in the middle of a sample.
    """
    rest = b""
    try:
        block = read_head(pipe)
        check_head(block)
        while block:
            block = rest + block
            whole = len(block) // 2 * 2
            rest = block[whole:]
            for event in transcriber.feed(np.frombuffer(block[:whole], "<i2")):
                show(event)
            block = pipe.read1(READ_BYTES)
    finally:
        for event in transcriber.finish():
            show(event)
    if rest:
        raise ValueError(
            "The pipe ended in the middle of a two-byte sample: it was cut off, or it is not 16-bit audio."
        )


def read_head(pipe) -> bytes:
    """The first bytes of a pipe, enough to tell a file from raw samples."""
    head = b""
    while len(head) < HEAD_BYTES and (block := pipe.read1(READ_BYTES)):
        head += block
    return head


def check_head(head: bytes):
    refuse_empty(head, "raw samples")
    decoded = "`ffmpeg -i - -f s16le -ac 1 -ar RATE -` makes raw samples of it"
    refuse_header(head, f"leave `--live` and `--rate` out, or decode it first ({decoded})")


class LiveScreen:
    """Prints final text to standard output, one line for each segment, and partial text to standard error if it is a
    terminal.

    Args: as_json: print final and partial text as JSON lines instead.
    """

    def __init__(self, as_json: bool = False):
        self.as_json = as_json
        self.clear = "\r\033[K" if sys.stderr.isatty() and not as_json else ""

    def __call__(self, event: Partial | Segment):
        is_final = isinstance(event, Segment)
        text = one_line(event.text)
        if self.as_json:
            times = {"start": round(event.start, 3), "end": round(event.end, 3)}
            print(json.dumps({"final": is_final, **times, "text": text}, ensure_ascii=False), flush=True)
            return
        if self.clear:
            width = shutil.get_terminal_size().columns - 1
            print(self.clear + ("" if is_final else text[-width:]), end="", file=sys.stderr, flush=True)
        if is_final and text:
            print(text, flush=True)


__all__ = ["LiveScreen", "Partial", "StreamingTranscriber", "transcribe_pipe"]
