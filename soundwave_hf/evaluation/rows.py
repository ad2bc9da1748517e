"""Rows of any data as requests: what a model is asked, and what it should say."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..processing.audio_soundwave import load_clip
from ..processing.processing_soundwave import audio_of_part


SAMPLING_RATE = 16_000  # Hz, of every Whisper encoder
MIN_SECONDS = 0.04  # one position of the adapter
# Rows are decoded in groups, so that memory stays flat and clips of like length still meet in a batch.
GROUP_ROWS = 256
GROUP_SAMPLES = 4_000 * SAMPLING_RATE  # 256 MB as float32


@dataclass
class Request:
    """What one row asks of a model; its clips are decoded."""

    row: int  # number in its set, from 0
    audio_name: str | None  # file name, where there is one
    reference: str  # the transcript, or the answer that is expected
    is_answer: bool = False
    question: str | None = None  # of an answer
    spoken: str | None = None  # what is said in the clip, where the row tells; the CTC head is scored against it
    conversation: list[dict] | None = None  # of an answer; without one the transcript is asked for
    clips: tuple = ()  # `{"array", "sampling_rate"}` each
    seconds: float = 0.0  # of all clips
    failure: str | None = None  # why the row cannot be used

    def forget_audio(self):
        self.clips, self.conversation = (), None


def read_request(row: dict, number: int, transcripts_only: bool = False) -> Request:
    """One row with its clips decoded; where that fails, the request says why.

    Args:
        row: `audio` and `text`; or `audio`, `question` and `answer`; or `messages` that end with the assistant's turn.
        transcripts_only: whether `text` is asked for in rows with `question` and `answer` too.
    """
    request = Request(number, _audio_name(row.get("audio")), reference="")
    try:
        if row.get("messages") is not None and not transcripts_only:
            _read_messages(request, row["messages"])
        elif not transcripts_only and (row.get("answer") is not None or row.get("question") is not None):
            _read_question(request, row)
        else:
            request.reference = request.spoken = _text_of(row, "text")
            _take_clip(request, row.get("audio"))
    except (ValueError, TypeError, OSError, ImportError) as error:
        request.failure = str(error)
        request.forget_audio()
    return request


def _audio_name(audio: Any) -> str | None:
    if isinstance(audio, dict):
        audio = audio.get("path")
    if not isinstance(audio, (str, os.PathLike)) or str(audio).startswith("data:"):
        return None
    return Path(audio).name


def _text_of(row: dict, column: str) -> str:
    value = row.get(column)
    if not isinstance(value, str):
        raise ValueError(
            f"`{column}` is {value!r}; expected a string. A row needs `text`, or `question` and `answer`, or "
            "`messages`; name other columns with `--columns`."
        )
    return value


def _read_question(request: Request, row: dict):
    request.question, request.reference = _text_of(row, "question"), _text_of(row, "answer")
    request.spoken = row["text"] if isinstance(row.get("text"), str) else None
    request.is_answer = True
    audio = _take_clip(request, row.get("audio"))
    asked = [{"type": "text", "text": request.question}] if request.question else []
    request.conversation = [{"role": "user", "content": [{"type": "audio", "audio": audio}, *asked]}]


def _read_messages(request: Request, messages: list[dict]):
    """Everything before the assistant's last turn is asked, and that turn is the answer."""
    _check_messages(messages)
    request.is_answer = True
    request.reference = _text_content(messages[-1]["content"])
    request.conversation = [_decoded_message(request, message) for message in messages[:-1]]
    turns = [message["content"] for message in messages[:-1] if message["role"] == "user"]
    request.question = " ".join(filter(None, map(_text_content, turns)))


def _check_messages(messages: Any):
    """Raises: ValueError where these are no turns that end with the assistant's."""
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise ValueError(f"`messages` is {messages!r:.80}; expected a list of {{'role': ..., 'content': ...}}.")
    for message in messages:
        if not isinstance(message.get("role"), str) or not isinstance(message.get("content"), (str, list)):
            raise ValueError(
                f"A message is {message!r:.80}; expected `role` (a string) and `content` (text or parts)."
            )
    roles = [message["role"] for message in messages]
    if len(roles) < 2 or roles[-1] != "assistant":
        raise ValueError(f"`messages` has the roles {roles}; expected a question, and `assistant` at the end.")


def _decoded_message(request: Request, message: dict) -> dict:
    """A message whose audio parts hold samples. Columns of `datasets` fill missing keys with `None`: they go."""
    if isinstance(message.get("content"), str):
        return {"role": message["role"], "content": message["content"]}
    parts = []
    for part in message["content"]:
        part = {"type": "text", "text": part} if isinstance(part, str) else part
        part = {key: value for key, value in part.items() if value is not None}
        if part.get("type") == "audio":
            source = audio_of_part(part)
            request.audio_name = request.audio_name or _audio_name(source)
            part = {"type": "audio", "audio": _take_clip(request, source)}
        parts.append(part)
    return {"role": message["role"], "content": parts}


def _text_content(content: str | list) -> str:
    """The text of a turn; audio parts have none."""
    if isinstance(content, str):
        return content
    parts = [part if isinstance(part, str) else part.get("text") or "" for part in content]
    return " ".join(filter(None, parts))


def _take_clip(request: Request, audio: Any) -> dict:
    """Decode one clip into the request."""
    if audio is None:
        raise ValueError("`audio` is missing; expected a path, bytes, or samples with their rate.")
    samples = load_clip(audio, "audio", None, SAMPLING_RATE, MIN_SECONDS)
    clip = {"array": samples, "sampling_rate": SAMPLING_RATE}
    request.clips = (*request.clips, clip)
    request.seconds += len(samples) / SAMPLING_RATE
    return clip


def decoded_groups(rows: Iterable[dict], transcripts_only: bool = False) -> Iterator[list[Request]]:
    """Requests in groups that fit in memory: at most `GROUP_ROWS` rows, and no row after `GROUP_SAMPLES` samples."""
    group: list[Request] = []
    samples = 0
    for number, row in enumerate(rows):
        request = read_request(row, number, transcripts_only)
        group.append(request)
        samples += sum(np.size(clip["array"]) for clip in request.clips)
        if len(group) == GROUP_ROWS or samples >= GROUP_SAMPLES:
            yield group
            group, samples = [], 0
    if group:
        yield group
