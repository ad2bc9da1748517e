"""`soundwave-hf data show`: one row of a data set, as the model will see it."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from ..picture import check_matplotlib, describe_peaks, look_at_clip, save_picture
from ..processing.processing_soundwave import ASR_QUESTION
from ..processing.sources_soundwave import without_secrets
from .each_row import cut_segment, each_row
from .rows import RowCheck, clips_of, conversation_of, transcripts_of
from .stats import seconds_of


SHOWN = ("id", "text", "seconds", "language", "speaker", "translation", "source", "task", "question", "answer")


def find_row(source, wanted: str, columns: Mapping | None = None) -> tuple[int, str, dict]:
    """The row of a number from 0, or the first with this `id` or path of its clip; its number, name and content.

    Raises: `ValueError` for a negative number, and a number or name that no row has.
    """
    wanted = str(wanted).strip()
    if wanted.lstrip("+-").isdecimal() and int(wanted) < 0:
        raise ValueError(f"ROW is {wanted}; rows are numbered from 0. Give a number, an `id` or a clip's path.")
    number = int(wanted) if wanted.isdecimal() else None
    mapped = {ours for ours in (columns or {}).values() if ours is not None}
    count, found = 0, None
    for index, (name, row) in enumerate(each_row(source, columns)):
        count += 1
        mapped -= row.keys() if isinstance(row, Mapping) else set()
        is_wanted = index == number or (
            number is None and isinstance(row, Mapping) and wanted in _names_of(row, wanted)
        )
        found = (index, name, row) if found is None and is_wanted else found
        if found is not None and not mapped:  # else the rest is read: a column that no row has is an error
            break
    if found is not None:
        index, name, row = found
        return index, name, cut_segment(row, name)
    rows = f"the data has {count} rows"
    if number is not None:
        raise ValueError(f"There is no row {number}: {rows}, numbered from 0.")
    raise ValueError(f"No row has the `id` or the clip {wanted!r}: {rows}. Give a number from 0 to {count - 1}.")


def _names_of(row: Mapping, wanted: str) -> Iterator[str]:
    """`id` and clip paths of a row. A path matches by its end: `a.wav`, `clips/a.wav`."""
    if row.get("id") is not None:
        yield str(row["id"])
    audio = row.get("audio")
    for clip in audio if isinstance(audio, list) else [audio]:
        path = clip.get("path") if isinstance(clip, Mapping) else clip
        if isinstance(path, str | os.PathLike):
            path = os.fspath(path)
            yield wanted if path == wanted or path.endswith(f"/{wanted}") else path


def describe_row(row: Mapping, name: str, number: int, processor=None) -> str:
    """Columns of a row, and its messages as the chat template writes them."""
    clips = clips_of(row)
    lines = [f"row {number}, {name}"]
    lines += [f"audio: {_describe_clip(clip)}" for clip in clips] or ["audio: none, a row of text alone"]
    if clips and row.get("seconds") is None:
        row = {**row, "seconds": round(seconds_of(row, name), 3)}
    lines += [f"{key}: {row[key]}" for key in SHOWN if row.get(key) is not None]
    if processor is not None:
        for text in transcripts_of(row, name):
            if text is not None:
                target = processor.ctc_target(text, row.get("language"))
                tokens = processor.tokenizer(target, add_special_tokens=False).input_ids
                lines.append(f"CTC target: {target!r}, {len(tokens)} labels")
    return "\n".join([*lines, "", "messages:", render(conversation_of(row, ASR_QUESTION), processor)])


def _describe_clip(clip) -> str:
    if isinstance(clip, Mapping) and clip.get("bytes") is not None:
        return f"{len(clip['bytes'])} bytes" + (f", `{clip['path']}`" if clip.get("path") else "")
    return without_secrets(str(clip["path"] if isinstance(clip, Mapping) and clip.get("path") else clip))[:200]


def render(messages: list[dict], processor=None) -> str:
    """Messages by the chat template of the processor; without one, a line for each part."""
    if processor is not None:
        return processor.apply_chat_template(messages, tokenize=False)
    return "\n".join(
        f"{message['role']}: {'[audio]' if part['type'] == 'audio' else part['text']}"
        for message in messages
        for part in message["content"]
    )


def llm_processor(llm: str):
    """A processor for the messages of an LLM by folder or hub name, with Whisper's usual log-mel."""
    from transformers import WhisperFeatureExtractor

    from ..processing.llm_tokenizer_soundwave import read_llm_tokenizer
    from ..processing.processing_soundwave import AUDIO_TOKEN, SoundwaveProcessor
    from .backbones import resolve_backbone

    tokenizer = read_llm_tokenizer(resolve_backbone(llm, weights=False), AUDIO_TOKEN)
    return SoundwaveProcessor(WhisperFeatureExtractor(), tokenizer)


def show_row(
    source, wanted: str, columns: Mapping | None = None, processor=None, model=None, output: str | None = None
) -> bool:
    """Print a row, and draw its clips as PNG.

    Args:
        source, columns: as in `open_rows`; wanted: as in `find_row`.
        processor, model (*optional*): a chat template and tokens; a CTC head.
        output (*optional*): PNG to write; for a row of several clips `NAME-1.png`, `NAME-2.png`.

    Returns: whether training could use the row.

    Raises: the errors of `find_row`; `ValueError` for another ending, and a picture of a row without a clip.
    """
    if output is not None and Path(output).suffix != ".png":
        raise ValueError(f"`--output` is `{output}`; give a file that ends in .png.")
    if output is not None:
        check_matplotlib()
    number, name, row = find_row(source, wanted, columns)
    try:
        (RowCheck() if processor is None else RowCheck.of(processor, ("ce",)))(row, name)
        described = describe_row(row, name, number, processor)  # reads the header of a clip
    except (ValueError, OSError) as error:
        print(f"row {number}, {name}\n{row!r:.2000}\nTraining cannot use this row: {error}", flush=True)
        return False
    print(described, flush=True)
    clips = clips_of(row)
    if output is not None and not clips:
        raise ValueError(f"{name} has no clip, so there is no picture of it: leave `--output` out.")
    pictures = []
    if output is not None or model is not None:
        pictures = [look_at_clip(clip, processor, model, f"row {number}: {_title(row)}") for clip in clips]
    for picture in pictures:
        if model is not None:
            print(f"\n{describe_peaks(picture)}", flush=True)
    for place, picture in enumerate(pictures if output is not None else [], start=1):
        path = Path(output) if len(clips) == 1 else Path(output).with_stem(f"{Path(output).stem}-{place}")
        save_picture(picture, path)
        print(f"The picture is in {path}.", flush=True)
    return True


def _title(row: Mapping) -> str:
    text = " ".join(text for text in transcripts_of(row) if text)
    return text if len(text) <= 100 else text[:97] + "..."


__all__ = ["describe_row", "find_row", "llm_processor", "render", "show_row"]
