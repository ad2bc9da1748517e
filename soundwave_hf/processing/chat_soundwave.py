"""Conversations in the form that an LLM's chat template takes: parts joined, the system prompt of the paper."""

from transformers.utils.chat_template_utils import render_jinja_template

from .audio_soundwave import PART_TYPES


# Paper, section "Prompts": system prompt of training and evaluation.
SYSTEM_PROMPT = (
    "You are a helpful language and speech assistant. You are able to understand the speech content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)

# Runs before the LLM's own template, which needs each message as one string: joins the parts of a message in order.
# It is part of the template, because only there a token of the template can be distinguished from the same characters
# in a user's text (`sanitize_control_tokens`).
FLATTEN_PARTS = """\
{%- set flat = namespace(messages=[]) %}
{%- for message in messages %}
{%- if message.content is defined and message.content is not string and message.content is not mapping %}
{%- set joined = namespace(text="") %}
{%- for part in message.content %}
{%- set joined.text = joined.text + (AUDIO_TOKEN if part.type == "audio" else part.text) %}
{%- endfor %}
{%- set message = dict(message, content=joined.text) %}
{%- endif %}
{%- set flat.messages = flat.messages + [message] %}
{%- endfor %}
{%- set messages = flat.messages %}
{{- "" }}"""


def standard_parts(message: dict) -> dict:
    """The message with each part in a list as a dict of type "text" or "audio"."""
    if not isinstance(message.get("content"), (list, tuple)):
        return message
    parts = [{"type": "text", "text": part} if isinstance(part, str) else part for part in message["content"]]
    for part in parts:
        if part.get("type") not in ("text", *PART_TYPES):
            raise ValueError(
                f"A part of type {part.get('type')!r} arrived in a {message.get('role')} message; expected 'text' or "
                "'audio'. The model has no other inputs: remove the part."
            )
    return {
        **message,
        "content": [{**part, "type": "audio"} if part["type"] in PART_TYPES else part for part in parts],
    }


def refuse_clip_at_end(conversation: list[dict]):
    """Raises: `ValueError` if a message to continue ends with a clip, which transformers would leave out: it cuts the
    prompt behind the last text."""
    content = conversation[-1].get("content") if conversation else None
    if isinstance(content, list) and content and content[-1]["type"] == "audio":
        raise ValueError(
            "`continue_final_message` was given, and the last message ends with a clip; expected text to continue. "
            "Put text behind the clip, or use `add_generation_prompt=True` for an answer."
        )


def renders(template: str, messages: list[dict], expected: str, special_tokens: dict) -> bool:
    """Whether the template accepts these messages and prints the expected text."""
    try:
        rendered, _ = render_jinja_template(conversations=[messages], chat_template=template, **special_tokens)
    except Exception:  # a template may raise anything
        return False
    return expected in rendered[0]


def text_message(role: str, text: str) -> dict:
    return {"role": role, "content": [{"type": "text", "text": text}]}


def takes_strings(template: str, special_tokens: dict) -> bool:
    """True for templates of text models; false for templates that only accept messages as parts."""
    if renders(template, [{"role": "user", "content": "probe"}], "probe", special_tokens):
        return True
    return not renders(template, [text_message("user", "probe")], "probe", special_tokens)


def with_system_prompt(conversation: list[dict], template: str, special_tokens: dict) -> list[dict]:
    """Add the paper's system prompt to a conversation without a system message."""
    if any(message.get("role") in ("system", "developer") for message in conversation):
        return conversation
    probe = [text_message("system", "probe"), text_message("user", "hello")]
    if renders(template, probe, "probe", special_tokens):
        return [text_message("system", SYSTEM_PROMPT), *conversation]
    # Some templates (Gemma) refuse system messages. Then the text goes to the beginning of the first user turn.
    for index, message in enumerate(conversation):
        if message.get("role") == "user":
            content = message.get("content") or []
            parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
            opened = {**message, "content": [{"type": "text", "text": f"{SYSTEM_PROMPT}\n\n"}, *parts]}
            return [*conversation[:index], opened, *conversation[index + 1 :]]
    return conversation


__all__ = [
    "FLATTEN_PARTS",
    "SYSTEM_PROMPT",
    "refuse_clip_at_end",
    "standard_parts",
    "takes_strings",
    "with_system_prompt",
]
