"""Rows of training or evaluation data, from any file type: column names, checks, clips and transcripts."""

import io
import math
import numbers
import os
import reprlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import soundfile

from ..processing.audio_soundwave import KEYS, audio_of_part, is_clip_list
from ..processing.spelling_soundwave import spell_numbers


COLUMNS = ("audio", "text", "seconds", "source", "task", "question", "answer", "messages")
COLUMNS += ("language",)  # of the transcript, for number words
COLUMNS += ("speaker", "translation")  # training ignores these; other verbs of `data` use them
TEXTS = ("source", "task", "question", "answer", "language", "speaker", "translation")  # one text in each row
BARE_KEYS = ("audio", "path", "url", "bytes")  # keys of an audio part whose value is a clip by itself
# Names that other data sets use. They are never assumed: an error suggests the `columns` to write.
COMMON_NAMES = {
    "audio": (
        *("path", "file", "file_name", "filename", "audio_path", "audio_file", "audio_filepath", "clip", "speech"),
        *("wav", "flac", "mp3", "ogg", "opus", "m4a"),
    ),
    "text": (
        *("sentence", "transcription", "transcript", "txt", "normalized_text", "raw_text", "raw_transcription"),
        *("json.text", "json.transcript", "json.sentence"),
    ),
    "messages": ("conversations", "conversation"),
}


def check_columns(columns: Mapping[str, str | None]):
    """Raise `ValueError` if a value of the mapping is not one of our names, or occurs twice."""
    if not isinstance(columns, Mapping):
        raise ValueError(f"`columns` is {columns!r}; give `their_name: our_name` pairs.")
    ours = [name for name in columns.values() if name is not None]
    for theirs, name in columns.items():
        if name is not None and name not in COLUMNS:
            turned = f" It is `their_name: our_name`: write `{name}: {theirs}`." if theirs in COLUMNS else ""
            raise ValueError(f"`columns` maps `{theirs}` to `{name}`; our names are {', '.join(COLUMNS)}.{turned}")
        if name is not None and ours.count(name) > 1:
            raise ValueError(f"`columns` maps {ours.count(name)} columns to `{name}`: choose one.")


def suggest_columns(names: Collection[str], missing: Sequence[str]) -> str:
    """A sentence for an error: the `columns` to write, or the columns that exist."""
    found = {}
    for ours in missing:
        theirs = next((common for common in COMMON_NAMES.get(ours, ()) if common in names), None)
        if theirs is not None:
            found[theirs] = ours
    if list(missing) == ["text"] and set(names) == {"audio"}:
        return "Add a column `text`; a folder of clips takes a metadata.csv with the columns `file_name` and `text`."
    there = f"Its columns are {sorted(names)}."
    if not found:
        return f"{there} Map others with `columns: {{their_name: our_name}}`."
    return f"{there} Write `columns: {{{', '.join(f'{a}: {b}' for a, b in found.items())}}}`."


def rename(row: dict, columns: Mapping[str, str | None], name: str) -> dict:
    """A row with our column names. A column that is mapped to null is left out.

    Raises: `ValueError` if two columns would get the same name.
    """
    if not columns:
        return row
    renamed = {columns.get(key, key): value for key, value in row.items()}
    for theirs, ours in columns.items():
        if ours is not None and theirs in row and ours in row and ours not in columns and row[ours] is not None:
            raise ValueError(
                f"{name} has both `{theirs}`, which `columns` maps to `{ours}`, and a column `{ours}`: leave the "
                f"mapping out, or add `{ours}: null`, which leaves that column out."
            )
    for theirs, ours in columns.items():
        if ours is not None and theirs in row:
            renamed[ours] = row[theirs]
    renamed.pop(None, None)
    return renamed


def at_folder(audio, folder: str | os.PathLike):
    """Resolve relative paths of a row's clips against a folder; URLs, data URIs, bytes and arrays are not changed."""
    if isinstance(audio, list | tuple):
        return [at_folder(clip, folder) for clip in audio]
    if isinstance(audio, Mapping):
        if audio.get("path") and audio.get("bytes") is None and audio.get("array") is None:
            return {**audio, "path": at_folder(audio["path"], folder)}
        return audio
    if not isinstance(audio, str | os.PathLike) or not os.fspath(audio).strip():
        return audio
    text = os.path.expanduser(os.fspath(audio))
    if "://" in text[:64] or text.startswith("data:"):
        return text
    return str(Path(folder) / text)


def row_at_folder(row: Mapping, folder: str | os.PathLike | None) -> dict:
    """A row whose relative clip paths begin in a folder, in `audio` and in `messages`; unchanged without a folder."""
    places = {"audio": at_folder, "messages": _messages_at_folder}
    there = {} if folder is None else {name: place for name, place in places.items() if row.get(name) is not None}
    return {**row, **{name: place(row[name], folder) for name, place in there.items()}}


def _messages_at_folder(messages, folder: str | os.PathLike):
    if isinstance(messages, list | tuple):
        return [_messages_at_folder(message, folder) for message in messages]
    if not isinstance(messages, Mapping) or messages.get("type") == "text":
        return messages
    part = at_folder(messages, folder)  # a message, or a part of its content
    part = part | {key: at_folder(part[key], folder) for key in ("audio", "url") if part.get(key) is not None}
    return part | ({"content": _messages_at_folder(part["content"], folder)} if part.get("content") else {})


# ---- checks ----


@dataclass(frozen=True)
class RowCheck:
    """Refuses rows that training cannot use.

    Args:
        control (`tuple[str, ...]`): special tokens of the tokenizer, which no text may contain.
        losses (`tuple[str, ...]`): losses of the stage; with "ctc" alone, each row needs a clip and its transcript.
        spells_numbers (`bool`): whether the CTC targets have numbers as words, which not every language has.
    """

    control: tuple[str, ...] = ()
    losses: tuple[str, ...] = ("ce",)
    spells_numbers: bool = False

    @classmethod
    def of(cls, processor, losses: Sequence[str]) -> "RowCheck":
        """The check of a stage with this processor."""
        tokenizer = processor.tokenizer
        special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        control = {*special, *tokenizer.all_special_tokens, processor.audio_token}
        control = tuple(sorted(token for token in control if token.strip()))
        return cls(control, tuple(losses), "ctc" in losses and processor.ctc_text == "lower_spelled")

    def __call__(self, row: dict, name: str):
        """Raise `ValueError` for a bad row. The message begins with `name` (file and row) and states the value."""
        if not isinstance(row, Mapping):
            raise ValueError(f"{name} is {_short(row)}; expected an object with `audio` and `text`.")
        self._check_types(row, name)
        if row.get("messages") is not None:
            self._check_messages(row, name)
        else:
            self._check_fields(row, name)
        for key, text in _texts_of(row):
            self._check_control(text, f"{name} has `{key}`")
        clips, transcripts = clips_of(row), transcripts_of(row, name)
        if "ce" not in self.losses and not any(text is not None for text in transcripts):
            what = "no transcript (`text`)" if clips else "no clip"
            raise ValueError(f"{name} has {what}, and this stage learns only from transcripts: leave the row out.")
        if self.spells_numbers:
            _check_numbers(transcripts, row.get("language"), name)

    def _check_types(self, row: Mapping, name: str):
        for key in ("question", "answer", "source", "task"):
            if (value := row.get(key)) is not None and not isinstance(value, str):
                raise ValueError(f"{name} has `{key}` {_short(value)}; expected text.")
        if (value := row.get("answer")) is not None and not value.strip():
            raise ValueError(f"{name} has `answer` {value!r}; expected text, or no answer.")
        texts = row.get("text")
        for text in texts if isinstance(texts, list | tuple) else [texts]:
            if text is not None and (not isinstance(text, str) or (text and not text.strip())):
                raise ValueError(
                    f'{name} has `text` {_short(text)}; expected what the clip says, or "" for a clip without speech.'
                )
        seconds = row.get("seconds")
        if seconds is not None and not _is_length(seconds):
            raise ValueError(f"{name} has `seconds` {_short(seconds)}; expected a number over 0, or leave it out.")
        _check_audio(row.get("audio"), name)

    def _check_fields(self, row: Mapping, name: str):
        has_answer, has_question = row.get("answer") is not None, row.get("question") is not None
        has_audio, text = bool(clips_of(row)), row.get("text")
        if row.get("question") and not has_answer:
            raise ValueError(
                f"{name} has a `question` ({_short(row['question'])}) and no `answer`: give both, or neither for a "
                "transcript."
            )
        missing = [
            *(["audio"] if not has_audio and not (has_answer and has_question) else []),
            *(["text"] if text is None and not has_answer else []),
        ]
        if missing:
            raise ValueError(
                f"{name} lacks {missing}: a row has a clip and its transcript. {suggest_columns(list(row), missing)}"
            )
        if not has_audio and not row["question"]:
            raise ValueError(f"{name} has an empty `question` and no `audio`: there is nothing to answer.")
        if len(clips_of(row)) > 1 and not has_answer:
            raise ValueError(f"{name} has {len(clips_of(row))} clips and no `answer`: give `answer` or `messages`.")

    def _check_messages(self, row: Mapping, name: str):
        messages = row["messages"]
        if not isinstance(messages, list | tuple) or not all(isinstance(message, Mapping) for message in messages):
            raise ValueError(f"{name} has `messages` {_short(messages)}; expected a list of role and content.")
        if row.get("question") is not None or row.get("answer") is not None:
            raise ValueError(f"{name} has both `messages` and `question` or `answer`: give only one of these forms.")
        for message in messages:
            if not isinstance(message.get("role"), str):
                raise ValueError(f"{name} has a message with the `role` {_short(message.get('role'))}; expected text.")
            for part in _parts(message):
                _check_part(part, message["role"], name)
        answers = [message for message in messages if message["role"] == "assistant"]
        if not answers:
            raise ValueError(f"{name} has `messages` without a turn of the `assistant`: there is nothing to learn.")
        if any(not "".join(part.get("text") or "" for part in _parts(answer)).strip() for answer in answers):
            raise ValueError(f"{name} has an `assistant` turn without text: there is nothing to learn in it.")
        last = max(place for place, message in enumerate(messages) if message["role"] == "assistant")
        # The LLM reads a conversation up to its last answer. CTC alone learns any clip that has a transcript.
        if "ce" in self.losses and any(
            part["type"] != "text" for turn in messages[last + 1 :] for part in _parts(turn)
        ):
            raise ValueError(
                f"{name} has audio after the last turn of the `assistant`, which no turn answers: add the answer, or "
                "leave these turns and their clips out."
            )
        open_places, given = _open_places(messages), len(_as_clips(row.get("audio")))
        if open_places != given:
            raise ValueError(
                f"{name} has {open_places} audio parts without a clip and {given} clips in `audio`: give one clip for "
                "each part."
            )

    def _check_control(self, text: str, what: str):
        for token in self.control:
            if token in text:
                raise ValueError(
                    f"{what} {_short(text)}, which holds the control token {token!r}: remove it from the text."
                )


def _check_part(part, role: str, name: str):
    if not isinstance(part, Mapping) or not isinstance(part.get("type"), str):
        raise ValueError(f"{name} has a part {_short(part)} in `messages`; expected a dict with a `type`.")
    if part["type"] == "text":
        if not isinstance(part.get("text"), str):
            raise ValueError(f"{name} has a text part with {_short(part.get('text'))}; expected text.")
    elif role == "assistant":
        raise ValueError(f"{name} has audio in a turn of the `assistant`, which can only answer in text: move it.")
    elif _has_own_clip(part):
        _check_audio(_own_clip(part), name)


def _check_numbers(transcripts: Sequence[str | None], language, name: str):
    """Raises: `ValueError` for a number that has no words in the row's language."""
    try:
        for text in transcripts:
            spell_numbers(text or "", language)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} has the `language` {language!r}. {error}") from error


def _check_audio(audio, name: str):
    """Raise `ValueError` for a value that cannot be a clip. The file itself is read later."""
    for clip in _as_clips(audio):
        if isinstance(clip, bool | int | float) or (isinstance(clip, str | bytes) and not clip.strip()):
            raise ValueError(f"{name} has `audio` {_short(clip)}; expected a path, bytes or samples.")
        if isinstance(clip, Mapping) and (part := [key for key in ("start", "end") if clip.get(key) is not None]):
            raise ValueError(
                f"{name} has `audio` with `{part[0]}`, and a clip is a whole file: describe segments of recordings in "
                "a `layout` (kaldi, lhotse), which cuts them."
            )
        if isinstance(clip, Mapping) and all(clip.get(key) is None for key in KEYS):
            raise ValueError(f"{name} has `audio` {_short(dict(clip))}, which holds no clip; expected path or bytes.")


def plain_number(value):
    """A number of NumPy or PyTorch, as a data set `with_format` gives it, as Python's; another value as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def _is_length(seconds) -> bool:
    seconds = plain_number(seconds)
    return (
        isinstance(seconds, numbers.Real) and not isinstance(seconds, bool) and math.isfinite(seconds) and seconds >= 0
    )


def _short(value) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."


def _texts_of(row: Mapping):
    """Name and value of each text of a row that the model reads or writes."""
    for key in ("text", "question", "answer"):
        value = row.get(key)
        for text in value if isinstance(value, list | tuple) else [value]:
            if text is not None:
                yield key, text
    for message in row.get("messages") or []:
        for part in _parts(message):
            if part["type"] == "text":
                yield "messages", part["text"]


# ---- clips, transcripts, messages ----


def clips_of(row: Mapping) -> list:
    """The clips of a row in the order of their audio tokens; empty for a row of text alone."""
    loose = iter(_as_clips(row.get("audio")))
    if row.get("messages") is None:
        return list(loose)
    parts = [part for message in row["messages"] for part in _parts(message) if part["type"] != "text"]
    return [_own_clip(part) if _has_own_clip(part) else next(loose) for part in parts]


def transcripts_of(row: Mapping, name: str = "A row") -> list[str | None]:
    """The transcript of each clip of a row, None for one that has none.

    Raises: `ValueError` if the numbers of clips and transcripts differ.
    """
    count, text = len(clips_of(row)), row.get("text")
    texts = list(text) if isinstance(text, list | tuple) else [text]
    if text is None or (count == 0 and row.get("messages") is None):
        return [None] * count
    if len(texts) != count:
        raise ValueError(
            f"{name} has {count} clips and {len(texts)} transcripts in `text`: give a list with one for each clip, "
            "null where there is none."
        )
    return texts


def conversation_of(row: Mapping, asr_question: str) -> list[dict]:
    """A row as messages of parts: its own messages, or a question about its clips and the answer.

    Without `question`, the user requests the transcript (`asr_question`). With an empty `question`, the user's turn
    has only the clip.
    """
    if row.get("messages") is not None:
        return [{"role": message["role"], "content": _bare_parts(message)} for message in row["messages"]]
    question, answer = row.get("question"), row.get("answer")
    if question is None or answer is None:
        question = asr_question
    content = [{"type": "audio"}] * len(clips_of(row))
    content += [{"type": "text", "text": question}] if question else []
    (text,) = [answer] if answer is not None else transcripts_of(row)
    return [
        {"role": "user", "content": content},
        {"role": "assistant", "content": [{"type": "text", "text": text}]},
    ]


def stored_messages(messages: Sequence[Mapping], folder: str | os.PathLike) -> list[dict]:
    """Messages in the form that a column can store: parts with `type`, `text` and `audio` (`path` and `bytes`)."""
    stored = []
    for message in messages:
        parts = []
        for part in _parts(message):
            has_clip = part["type"] != "text" and _has_own_clip(part)
            audio = _stored_clip(_own_clip(part), folder) if has_clip else None
            kind = "text" if part["type"] == "text" else "audio"
            parts.append({"type": kind, "text": part.get("text"), "audio": audio})
        stored.append({"role": message["role"], "content": parts})
    return stored


def _stored_clip(clip, folder: str | os.PathLike) -> dict:
    """A clip as bytes, or as a path, URL or data URI."""
    if isinstance(clip, bytes | bytearray):
        return {"bytes": bytes(clip), "path": None}
    if isinstance(clip, str | os.PathLike):
        return {"bytes": None, "path": at_folder(clip, folder)}
    key = next(key for key in KEYS if clip.get(key) is not None)
    if key in ("base64", "data") and not clip[key].startswith("data:"):
        return {"bytes": None, "path": f"data:audio/wav;base64,{clip[key]}"}
    if key == "array":
        raise ValueError("An array cannot be stored in messages: give the path or the bytes of a file.")
    return _stored_clip(clip[key], folder)


def stored_clip(clip) -> dict:
    """A clip in any form as `{"bytes", "path"}`; samples become a WAV file of floats."""
    if isinstance(clip, Mapping) and clip.get("bytes") is None and clip.get("array") is not None:
        file = io.BytesIO()
        soundfile.write(file, clip["array"], clip["sampling_rate"], format="WAV", subtype="FLOAT")
        return {"bytes": file.getvalue(), "path": None}
    if isinstance(clip, Mapping) and clip.get("bytes") is not None:
        return {"bytes": bytes(clip["bytes"]), "path": clip.get("path")}
    (message,) = stored_messages([{"role": "user", "content": [{"type": "audio", "audio": clip}]}], "")
    return message["content"][0]["audio"]


def _own_clip(part: Mapping):
    """The clip that an audio part names."""
    clip = audio_of_part(_given(part))
    return next(iter(clip.values())) if len(clip) == 1 and next(iter(clip)) in BARE_KEYS else clip


def _as_clips(audio) -> list:
    if audio is None:
        return []
    return list(audio) if is_clip_list(audio) else [audio]


def _parts(message: Mapping) -> list:
    content = message.get("content")
    if content is None:
        return []
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list | tuple):
        return [content]
    return [{"type": "text", "text": part} if isinstance(part, str) else part for part in content]


def _bare_parts(message: Mapping) -> list[dict]:
    return [
        {"type": "text", "text": part["text"]} if part["type"] == "text" else {"type": "audio"}
        for part in _parts(message)
    ]


def _given(part: Mapping) -> dict:
    """A part without the keys that a column fills with null."""
    return {key: value for key, value in part.items() if value is not None}


def _has_own_clip(part: Mapping) -> bool:
    return any(value is not None for key, value in part.items() if key not in ("type", "text", "sampling_rate"))


def _open_places(messages: Sequence[Mapping]) -> int:
    return sum(part["type"] != "text" and not _has_own_clip(part) for message in messages for part in _parts(message))


def check_repeat(repeat: Mapping[str, int], sources: Iterable[str | None]):
    """Raises: `ValueError` if `repeat` names a source that no row has. Args: sources: of the rows."""
    found = set(sources) - {None}
    if unknown := set(repeat) - found:
        there = f"the sources of the rows are {reprlib.repr(sorted(found))}" if found else "no row has a `source`"
        raise ValueError(f"`repeat` names {sorted(unknown)}, but {there}: correct the names, or leave them out.")


__all__ = [
    "COLUMNS",
    "TEXTS",
    "RowCheck",
    "at_folder",
    "check_columns",
    "check_repeat",
    "clips_of",
    "conversation_of",
    "plain_number",
    "rename",
    "row_at_folder",
    "stored_clip",
    "stored_messages",
    "suggest_columns",
    "transcripts_of",
]
