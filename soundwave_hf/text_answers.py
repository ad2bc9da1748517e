"""Answer from transcripts: the model transcribes the clips of a conversation, then its LLM answers in text alone."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers.utils import logging

from .evaluation.transcribe import check_batch_size, generated_texts
from .processing.audio_soundwave import audio_of_part
from .processing.chat_soundwave import standard_parts
from .transcribe import transcribe_clips


logger = logging.get_logger(__name__)

MAX_NEW_TOKENS = 256


@dataclass(frozen=True)
class TextAnswer:
    """The answer to one conversation."""

    text: str
    transcripts: tuple[str, ...]  # of its clips, in order
    finished: bool = True  # whether the answer and all transcripts ended, and were not cut off


def answer_from_transcripts(
    model,
    processor,
    conversations: Sequence[Sequence[dict]],
    batch_size: int = 8,
    max_new_tokens: int = MAX_NEW_TOKENS,
    transcribe: Mapping[str, Any] | None = None,
) -> list[TextAnswer]:
    """Transcribe the clips of conversations, then let the LLM answer, with transcripts in place of the clips.

    The LLM answers as it was before training: its LoRA is off, and the prompt is that of its own chat template,
    without the paper's system prompt. This needs a LoRA that can be switched off: load the model with
    `merge_lora=False`. A merged LoRA stays on, and a warning says so.

    Args:
        model, processor: from `from_pretrained`.
        conversations: messages, as for `processor.apply_chat_template`. The last message is the user's. If it holds
            only clips without speech, the answer is empty.
        batch_size: how many pieces of clips are transcribed at once, and how many conversations are answered at once.
        max_new_tokens: of an answer. Answers are greedy.
        transcribe: options of `transcribe_clips`, such as `{"language": "fr"}`.

    Returns: a `TextAnswer` with `text`, `transcripts` and `finished` for each conversation.

    Raises: `ValueError` for bad options or messages; the processor's error for a bad clip.

    Example:

    ```python
    >>> from soundwave_hf import SoundwaveForConditionalGeneration, SoundwaveProcessor, answer_from_transcripts

    >>> model = SoundwaveForConditionalGeneration.from_pretrained(adapter, merge_lora=False)
    >>> processor = SoundwaveProcessor.from_pretrained(adapter)
    >>> question = [{"role": "user", "content": [{"type": "audio", "path": "speech.wav"}]}]
    >>> (answer,) = answer_from_transcripts(model, processor, [question], max_new_tokens=20)
    >>> len(answer.transcripts)  # one for each clip
    1
    ```
    """
    check_batch_size(batch_size)
    if max_new_tokens < 1:
        raise ValueError(f"`max_new_tokens` is {max_new_tokens}; expected 1 or more.")
    talks = [read_talk(number, messages) for number, messages in enumerate(conversations)]
    clips = [audio_of_part(part) for messages in talks for part in clips_of(messages)]
    heard = list(transcribe_clips(model, processor, clips, **{"batch_size": batch_size, **(transcribe or {})}))
    following = iter(heard)
    own = [[next(following) for _ in clips_of(messages)] for messages in talks]
    written = [with_transcripts(messages, found) for messages, found in zip(talks, own, strict=True)]
    asked = [number for number, messages in enumerate(written) if messages[-1]["content"].strip()]
    texts = dict.fromkeys(range(len(talks)), ("", True))
    with torch.inference_mode(), lora_off(model):
        for begin in range(0, len(asked), batch_size):
            numbers = asked[begin : begin + batch_size]
            found = answer_texts(model, processor, [written[number] for number in numbers], max_new_tokens)
            texts |= zip(numbers, found, strict=True)
    return [text_answer(*texts[number], found) for number, found in enumerate(own)]


def read_talk(number: int, messages: Sequence[dict]) -> list[dict]:
    """The messages of a conversation, with parts in the standard form.

    Raises: `ValueError` unless the last message is the user's.
    """
    if not messages or messages[-1].get("role") != "user":
        last = messages[-1].get("role") if messages else "no message"
        raise ValueError(f"Conversation {number} ends with {last!r}; expected a message of 'user' to answer.")
    return [standard_parts(message) for message in messages]


def clips_of(messages: Sequence[dict]) -> list[dict]:
    """The audio parts of a conversation, in order."""
    contents = (message["content"] for message in messages if isinstance(message.get("content"), list))
    return [part for content in contents for part in content if part["type"] == "audio"]


def with_transcripts(messages: Sequence[dict], heard: Sequence) -> list[dict]:
    """A conversation with transcripts in place of its clips. A blank line is between a transcript and other text."""
    heard, written = iter(heard), []
    for message in messages:
        if isinstance(message.get("content"), list):
            text, was_clip = "", False
            for part in message["content"]:
                is_clip = part["type"] == "audio"
                new = next(heard).text if is_clip else part["text"]
                text += "\n\n" + new if text and new and (is_clip or was_clip) else new
                was_clip = is_clip
            message = {**message, "content": text}
        written.append(message)
    return written


@contextmanager
def lora_off(model) -> Iterator[None]:
    """Switches the LoRA of a model off for a while."""
    if hasattr(model, "disable_adapter"):  # a `PeftModel`
        with model.disable_adapter():
            yield
    elif getattr(model, "_hf_peft_config_loaded", False):  # `model.add_adapter` of transformers
        model.disable_adapters()
        try:
            yield
        finally:
            model.enable_adapters()
    else:
        logger.warning_once(
            "If a LoRA was merged into this model, its LLM answers with it. Load the adapters with `merge_lora=False` "
            "to switch the LoRA off for answers."
        )
        yield


def answer_texts(model, processor, talks: Sequence[list[dict]], max_new_tokens: int) -> list[tuple[str, bool]]:
    """Answers to conversations in text, in one padded batch, and whether each ended."""
    inputs = processor.apply_chat_template(
        list(talks),
        add_system_prompt=False,
        add_generation_prompt=True,
        sanitize_control_tokens=True,
        tokenize=True,
        return_dict=True,
    ).to(model.device)
    return list(zip(*generated_texts(model, processor, inputs, max_new_tokens), strict=True))


def text_answer(text: str, ended: bool, heard: Sequence) -> TextAnswer:
    is_whole = ended and all(segment.finished for transcript in heard for segment in transcript.segments)
    return TextAnswer(text, tuple(transcript.text for transcript in heard), is_whole)


__all__ = ["TextAnswer", "answer_from_transcripts"]
