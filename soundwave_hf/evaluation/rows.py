"""Rows of any data as requests: the question to the model, and the expected text."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..data.rows import RowCheck, clips_of, conversation_of
from ..processing.audio_soundwave import load_clip
from ..processing.processing_soundwave import ASR_QUESTION
from ..processing.sources_soundwave import without_secrets


SAMPLING_RATE = 16_000  # Hz, of every Whisper encoder
MIN_SECONDS = 0.04  # one position of the adapter
# Rows are decoded in groups, to limit memory and still batch clips of similar length.
GROUP_ROWS = 256
GROUP_SAMPLES = 4_000 * SAMPLING_RATE  # 256 MB as float32


@dataclass
class Request:
    """The question of one row to the model, with decoded clips."""

    row: int  # number in its set, from 0
    audio_name: str | None  # file name, if there is one
    reference: str  # the expected transcript or answer
    is_answer: bool = False
    question: str | None = None  # only if an answer is expected
    spoken: str | None = None  # transcript of the clip, if known; reference of the CTC head
    conversation: list[dict] | None = None  # None for a transcription request
    clips: tuple = ()  # `{"array", "sampling_rate"}` each
    seconds: float = 0.0  # of all clips
    failure: str | None = None  # why the row cannot be used

    def forget_audio(self):
        self.clips, self.conversation = (), None


def read_request(row: dict, number: int, transcripts_only: bool = False) -> Request:
    """One row as a request with decoded clips. If that fails, `failure` says why.

    Args:
        row: with `audio` and `text`, or `question` and `answer`, or `messages` that end with the assistant's turn.
        transcripts_only: whether to request the transcript (`text`) in rows with `question` and `answer` too.
    """
    request = Request(number, _audio_name(row), reference="")
    try:
        clips = _read_texts(request, row, transcripts_only)
        request.clips = tuple(map(_decoded, clips))
        if request.conversation is not None:
            request.conversation = _with_clips(request.conversation, request.clips)
    except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        request.failure = str(error)
        request.forget_audio()
    request.seconds = sum(len(clip["array"]) / SAMPLING_RATE for clip in request.clips)
    return request


def _read_texts(request: Request, row: dict, transcripts_only: bool) -> list:
    """Put question and reference of a row into the request. Returns: the row's clips, not decoded."""
    if not transcripts_only and _is_talk(row):
        RowCheck()(row, "The row")
        *asked, answer = conversation_of(row, ASR_QUESTION)
        if answer["role"] != "assistant" or not asked:
            roles = [message["role"] for message in (*asked, answer)]
            raise ValueError(f"`messages` has the roles {roles}; expected a question, and `assistant` at the end.")
        request.conversation, request.is_answer = asked, True
        request.reference = _text_of(answer)
        request.question = " ".join(filter(None, (_text_of(turn) for turn in asked if turn["role"] == "user")))
        request.spoken = row["text"] if isinstance(row.get("text"), str) else None
        return clips_of(row)
    clips = clips_of({"audio": row.get("audio")})
    if len(clips) != 1:
        raise ValueError(f"`audio` holds {len(clips)} clips; expected one with its transcript.")
    said, answer = row.get("text"), row.get("answer")
    said, answer = (each[0] if isinstance(each, list) and len(each) == 1 else each for each in (said, answer))
    text = said if answer is None or transcripts_only else answer
    if not isinstance(text, str):
        raise ValueError(
            f"`text` is {text!r}; expected a string. A row needs `text`, or `question` and `answer`, or `messages`; "
            "name other columns with `--columns`."
        )
    request.reference = text
    request.spoken = said if isinstance(said, str) else text
    return clips


def _is_talk(row: dict) -> bool:
    """Whether a row needs an answer and not a transcript. With an empty question, the clip asks the question."""
    if row.get("messages") is not None or row.get("question"):
        return True
    return row.get("question") is not None and row.get("answer") is not None


def _audio_name(row: dict) -> str | None:
    """File name of the first clip, or None."""
    try:
        audio = next(iter(clips_of(row)), None)
    except (ValueError, TypeError, KeyError, AttributeError, StopIteration):
        return None  # `read_request` reports what is wrong with the row
    if isinstance(audio, dict):
        audio = audio.get("path")
    if not isinstance(audio, (str, os.PathLike)) or str(audio).startswith("data:"):
        return None
    return Path(without_secrets(str(audio))).name


def _text_of(message: dict) -> str:
    """The text parts of a turn, joined."""
    return " ".join(part["text"] for part in message["content"] if part["type"] == "text")


def _decoded(audio: Any) -> dict:
    return {
        "array": load_clip(audio, "audio", None, SAMPLING_RATE, MIN_SECONDS),
        "sampling_rate": SAMPLING_RATE,
    }


def _with_clips(conversation: list[dict], clips: tuple) -> list[dict]:
    """The conversation with the clips in its audio parts, in order."""
    remaining = iter(clips)
    return [
        {
            "role": message["role"],
            "content": [
                part if part["type"] == "text" else {"type": "audio", "audio": next(remaining)}
                for part in message["content"]
            ],
        }
        for message in conversation
    ]


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
