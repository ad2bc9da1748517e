"""Answer from transcripts: the model transcribes the clips of a conversation, then its LLM answers in text alone."""

import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers.utils import logging

from .evaluation.transcribe import check_batch_size, check_max_new_tokens, generated_texts
from .paths import one_or_more
from .processing.audio_soundwave import audio_of_part
from .processing.chat_soundwave import standard_parts, text_message
from .transcribe import transcribe_clips
from .transcripts import Transcript


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
    conversations: Iterable[Sequence[dict]],
    batch_size: int = 8,
    max_new_tokens: int = MAX_NEW_TOKENS,
    transcribe: Mapping[str, Any] | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> list[TextAnswer]:
    """Transcribe the clips of conversations, then let the LLM answer, with transcripts in place of the clips.

    The LLM answers as it was before training: its LoRA is off, and the prompt is that of its own chat template,
    without the paper's system prompt. Load the model with `merge_lora=False` for this. A LoRA that was merged stays
    on; if the model has no other, a warning says so.

    A blank line stands between a transcript and other text of a message. Control tokens in messages and transcripts
    are read as text. If the last message has no text, because nobody speaks in its clips, the answer is empty.

    Args:
        model, processor: from `from_pretrained`.
        conversations: a list of conversations, each a list of messages as for `processor.apply_chat_template`. The
            last message of each is the user's. Tools are not supported.
        batch_size: how many pieces of clips are transcribed at once, and how many conversations are answered at once.
        max_new_tokens: of an answer. Answers are greedy.
        transcribe: options of `transcribe_clips`, such as `{"language": "fr"}`. Its `max_new_tokens` is that of a
            transcript.
        chat_template_kwargs: variables of the LLM's chat template, such as `{"enable_thinking": False}`.

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
    check_max_new_tokens(max_new_tokens)
    talks = [read_talk(number, messages) for number, messages in enumerate(one_or_more(conversations))]
    warn_of_merged(model)
    clips = [audio_of_part(part) for messages in talks for part in clips_of(messages)]
    heard = iter(list(transcribe_clips(model, processor, clips, **{"batch_size": batch_size, **(transcribe or {})})))
    own = [[next(heard) for _ in clips_of(messages)] for messages in talks]
    written = [with_transcripts(messages, found) for messages, found in zip(talks, own, strict=True)]
    asked = [number for number, messages in enumerate(written) if messages[-1]["content"][0]["text"].strip()]
    texts = dict.fromkeys(range(len(talks)), ("", True))
    with lora_off(model), torch.inference_mode():
        for begin in range(0, len(asked), batch_size):
            numbers = asked[begin : begin + batch_size]
            batch = [written[number] for number in numbers]
            found = answer_texts(model, processor, batch, max_new_tokens, chat_template_kwargs or {})
            texts |= zip(numbers, found, strict=True)
    return [text_answer(*texts[number], found) for number, found in enumerate(own)]


def read_talk(number: int, messages: Sequence[dict]) -> list[dict]:
    """The messages of a conversation, with content that is text or parts as one list of parts.

    Raises: `ValueError` unless the last message is the user's, and each part is text or a clip.
    """
    if isinstance(messages, Mapping):
        raise ValueError("One conversation arrived; expected a list of conversations: write `[messages]`.")
    if not isinstance(messages, list | tuple) or not all(isinstance(message, Mapping) for message in messages):
        raise ValueError(
            f"Conversation {number} is {reprlib.repr(messages)}; expected a list of messages, for a clip such as "
            "`[{'role': 'user', 'content': [{'type': 'audio', 'path': 'speech.wav'}]}]`."
        )
    last = messages[-1] if messages else {"role": "no message"}
    if last.get("role") != "user" or not isinstance(last.get("content"), (str, list, tuple)):
        raise ValueError(
            f"Conversation {number} ends with {last.get('role')!r} and content of type "
            f"{type(last.get('content')).__name__}; expected a message of 'user' with text or clips to answer."
        )
    return [read_message(number, message) for message in messages]


def read_message(number: int, message: dict) -> dict:
    if isinstance(message.get("content"), str):
        return {**message, **text_message(message["role"], message["content"])}
    message = standard_parts(message)
    for part in parts_of(message):
        if part["type"] == "text" and not isinstance(part.get("text"), str):
            raise ValueError(f"Conversation {number} has a text part {part}; expected its text under 'text'.")
    return message


def parts_of(message: dict) -> list[dict]:
    return message["content"] if isinstance(message.get("content"), list) else []


def clips_of(messages: Sequence[dict]) -> list[dict]:
    """The audio parts of a conversation, in order."""
    return [part for message in messages for part in parts_of(message) if part["type"] == "audio"]


def with_transcripts(messages: Sequence[dict], heard: Sequence[Transcript]) -> list[dict]:
    """A conversation with transcripts in place of its clips: the parts of each message become one text."""
    heard, written = iter(heard), []
    for message in messages:
        if isinstance(message.get("content"), list):
            text, was_clip = "", False
            for part in message["content"]:
                is_clip = part["type"] == "audio"
                new = next(heard).text if is_clip else part["text"]
                text += "\n\n" + new if text and new and (is_clip or was_clip) else new
                was_clip = is_clip
            message = {**message, **text_message(message["role"], text)}
        written.append(message)
    return written


def lora_layers(model) -> list[BaseTunerLayer]:
    """The layers of a model that have a LoRA of PEFT, or another of its tuners."""
    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]


def warn_of_merged(model):
    if not lora_layers(model):
        logger.warning_once(
            "If a LoRA was merged into this model, its LLM answers with it. Load the adapters with `merge_lora=False` "
            "to switch the LoRA off for answers."
        )


@contextmanager
def lora_off(model) -> Iterator[None]:
    """Switches the LoRA of a model off for a while. Nothing else of the model changes, also not what is trained."""
    layers = [layer for layer in lora_layers(model) if not layer.disable_adapters]
    trains = [(value, value.requires_grad) for layer in layers for value in layer.parameters()]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
        for value, was_trained in trains:
            value.requires_grad_(was_trained)


def answer_texts(model, processor, talks: list, max_new_tokens: int, variables: Mapping) -> list[tuple[str, bool]]:
    """Answers to conversations in text, in one padded batch, and whether each ended."""
    inputs = processor.apply_chat_template(
        talks,
        add_system_prompt=False,
        add_generation_prompt=True,
        sanitize_control_tokens=True,
        tokenize=True,
        return_dict=True,
        **variables,
    ).to(model.device)
    single = {"num_beams": 1, "num_return_sequences": 1}
    return list(zip(*generated_texts(model, processor, inputs, max_new_tokens, **single), strict=True))


def text_answer(text: str, ended: bool, heard: Sequence[Transcript]) -> TextAnswer:
    is_whole = ended and all(segment.finished for transcript in heard for segment in transcript.segments)
    return TextAnswer(text, tuple(transcript.text for transcript in heard), is_whole)


__all__ = ["TextAnswer", "answer_from_transcripts"]
