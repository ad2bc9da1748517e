"""What the page asks of a loaded model. Nothing here knows the page."""

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from transformers import TextStreamer

from ..data.lengths import clip_seconds
from ..evaluation.rows import Request
from ..evaluation.transcribe import answer, conversation
from ..live import StreamingTranscriber
from ..modeling.spacing_soundwave import join_texts
from ..picture import ClipPicture, look_at_clip
from ..processing.chat_soundwave import text_message
from ..transcribe import TranscribeOptions, transcribe_clips
from ..transcripts import Segment, Transcript, one_line


MOST_TOKENS = 256  # of a text, for each window of the encoder


class Stopped(Exception):
    """Ends a call of `generate` whose text nobody reads any more."""


class QueueStreamer(TextStreamer):
    """Puts text into a queue as soon as `generate` has it. After `is_stopped` is set, it ends the call."""

    def __init__(self, tokenizer):
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.texts: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self.is_stopped = False

    def put(self, value):
        if self.is_stopped:
            raise Stopped
        super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False):
        self.texts.put(f"{text} " if stream_end else text)


def stream(tokenizer, work: Callable[[QueueStreamer], Any]) -> Iterator[str | Any]:
    """Yield the text so far whenever there is more, then what `work` returns.

    `work` runs in a thread of its own. If the caller closes the generator, it ends at the next token.
    """
    streamer = QueueStreamer(tokenizer)
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="soundwave-page") as thread:
        result = thread.submit(work, streamer)
        result.add_done_callback(lambda _: streamer.texts.put(None))
        text = ""
        try:
            while (more := streamer.texts.get()) is not None:
                if more.strip():
                    text += more
                    yield text.strip()
        finally:
            streamer.is_stopped = True
    yield result.result()


@dataclass(frozen=True)
class Answer:
    """The answer to one question."""

    text: str
    finished: bool  # whether it ended before the limit of tokens


@dataclass
class SpeechModel:
    """A loaded model as the page uses it.

    Args:
        model, processor: from `load_adapter` or `from_pretrained`.
        max_seconds (`float`): longest recording.
    """

    model: Any
    processor: Any
    max_seconds: float

    @property
    def place(self) -> str:
        """Device and precision, such as "cpu, float32"."""
        return f"{self.model.device}, {str(self.model.dtype).removeprefix('torch.')}"

    def read(self, path: str) -> dict:
        """The clip of a file, decoded once for all that is asked of it.

        Raises: `ValueError` for a recording that is too long; what `load_clips` raises for one that cannot be read.
        """
        if (seconds := clip_seconds(Path(path), "audio[0]")) > self.max_seconds:
            raise ValueError(
                f"The recording lasts {seconds:.1f} s, and this page takes at most {self.max_seconds:g} s. Cut it "
                "into shorter files."
            )
        (samples,) = self.processor.load_clips([Path(path)], max_seconds=self.max_seconds + 1)  # headers may be wrong
        return {"array": samples, "sampling_rate": self.processor.feature_extractor.sampling_rate}

    def transcribe(self, clip: dict, hotwords: str = "", language: str = "") -> Iterator[str | Transcript]:
        """The text so far, again and again, then the transcript with word times.

        Args: hotwords: phrases with commas between them; language: code or English name; both may be empty.
        """
        options = {"hotwords": read_phrases(hotwords), "language": language.strip() or None}
        options |= {"word_times": True, "max_new_tokens": MOST_TOKENS}
        TranscribeOptions(**options)  # errors before a thread is started

        def work(streamer: QueueStreamer) -> Transcript:
            clips = transcribe_clips(self.model, self.processor, [clip], batch_size=1, streamer=streamer, **options)
            return next(clips)

        return stream(self.processor.tokenizer, work)

    def ask(self, clip: dict, turns: Sequence[tuple[str, str]], question: str) -> Iterator[str | Answer]:
        """The answer so far, again and again, then the whole one.

        Args:
            turns: earlier questions about the clip, and their answers.
            question: may be empty if there are no earlier ones: then the clip itself asks.
        """
        request = Request(0, None, "", conversation=conversation_of(clip, turns, question), clips=(clip,))

        def work(streamer: QueueStreamer) -> Answer:
            options = {"max_new_tokens": MOST_TOKENS, "generate": {"streamer": streamer}}
            found = answer(self.model, self.processor, [request], **options)
            return Answer(found.texts[0], found.finished[0])

        return stream(self.processor.tokenizer, work)

    def look(self, clip: dict) -> ClipPicture:
        """What the CTC head finds in a clip, and the positions that the LLM reads."""
        return look_at_clip(clip, self.processor, self.model)

    def saved(self, picture: ClipPicture) -> "Saved":
        """Positions of a clip, and what the decoder of the encoder's Whisper would read."""
        frames = self.model.config.audio_config.max_source_positions
        window = self.processor.feature_extractor.chunk_length
        seconds = len(picture.samples) / picture.sampling_rate
        return Saved(len(picture.kept_seconds), seconds, frames, window)


@dataclass(frozen=True)
class Saved:
    """How many positions the LLM reads, beside the encoder frames that Whisper's decoder reads."""

    positions: int
    seconds: float
    window_frames: int  # 1,500 in every Whisper, whatever the length of the clip in the window
    window_seconds: float

    @property
    def whisper_frames(self) -> int:
        """Encoder frames of the windows that the clip needs. Whisper pads the last one with silence."""
        return self.window_frames * max(1, -int(-self.seconds // self.window_seconds))

    @property
    def unpadded_frames(self) -> int:
        """Encoder frames of the clip alone."""
        return round(self.seconds * self.window_frames / self.window_seconds)


def read_phrases(text: str) -> list[str] | None:
    """`"Ann, New York"` -> `["Ann", "New York"]`; None for an empty text."""
    return [phrase.strip() for phrase in text.split(",")] if text.strip() else None


def conversation_of(clip: dict, turns: Sequence[tuple[str, str]], question: str) -> list[dict]:
    """The messages of a talk about a clip, which is in the first.

    Raises: `ValueError` for an empty question after the first.
    """
    if turns and not question.strip():
        raise ValueError("The question is empty. Type one.")
    questions = [*(asked for asked, _ in turns), question.strip()]
    messages = conversation(clip, questions[0])
    for (_, answered), following in zip(turns, questions[1:], strict=True):
        messages += [text_message("assistant", answered), text_message("user", following)]
    return messages


# ---- the microphone ----


@dataclass
class LiveTalk:
    """What one person says into the microphone: the samples, final text and the latest partial text."""

    transcriber: StreamingTranscriber
    max_seconds: float
    recording: int = 0  # which one of this page, counted from 1
    blocks: list[np.ndarray] = field(default_factory=list)  # `(samples,)` each
    final: list[Segment] = field(default_factory=list)
    partial: str = ""
    is_full: bool = False  # whether later samples were left out
    lock: threading.Lock = field(default_factory=threading.Lock)  # a last block may come while the talk ends
    is_finished: bool = False

    @property
    def seconds(self) -> float:
        return sum(len(block) for block in self.blocks) / self.transcriber.sampling_rate

    @property
    def text(self) -> str:
        return join_texts(filter(None, (one_line(segment.text) for segment in self.final)))

    def hear(self, samples: np.ndarray):
        """Add samples `(samples,)`. Those after the longest recording are left out, and `is_full` says so."""
        with self.lock:
            room = round((self.max_seconds - self.seconds) * self.transcriber.sampling_rate)
            self.is_full = self.is_full or len(samples) > room
            if self.is_finished or room <= 0:
                return
            self.blocks.append(samples[:room])
            self._take(self.transcriber.feed(samples[:room]))

    def finish(self):
        """Wait for the LLM's text of the last words."""
        with self.lock:
            self.is_finished = True
            self._take(self.transcriber.finish())
            self.partial = ""

    def _take(self, events: Sequence):
        for event in events:
            if isinstance(event, Segment):
                self.final.append(event)
                self.partial = ""
            else:
                self.partial = event.text

    def save(self, path: str):
        """Write all samples as WAV."""
        soundfile.write(path, np.concatenate(self.blocks), self.transcriber.sampling_rate)


def start_talk(
    speech: SpeechModel, sampling_rate: int, hotwords: str = "", language: str = "", recording: int = 0
) -> LiveTalk:
    """A talk whose samples arrive at a rate in Hz. Args: recording: see `LiveTalk`."""
    options = {"hotwords": read_phrases(hotwords), "language": language.strip() or None}
    options["max_new_tokens"] = MOST_TOKENS
    transcriber = StreamingTranscriber(speech.model, speech.processor, sampling_rate, **options)
    return LiveTalk(transcriber, speech.max_seconds, recording)


def read_block(path: str) -> tuple[np.ndarray, int]:
    """Samples `(samples,)` of a block from the browser, of any length, and their rate in Hz."""
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    return samples.mean(axis=1), rate


class Clock:
    """Seconds since it was made."""

    def __init__(self):
        self.start = time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.start


__all__ = ["Answer", "Clock", "LiveTalk", "Saved", "SpeechModel", "read_block", "start_talk"]
