"""Conversations over the LLM's own template: audio parts in order, the system prompt, batches, refusals."""

import re

import numpy as np
import pytest
import soundfile
import torch
from tokenizers.processors import TemplateProcessing

from soundwave_hf import SoundwaveDataCollator
from soundwave_hf.processing import ASR_QUESTION, SYSTEM_PROMPT
from tests.tiny import CHATML, tiny_processor


AUDIO = "<|audio|>"
SYSTEM = f"<|im_start|>system\n{SYSTEM_PROMPT}<|im_end|>\n"
# A template of the Gemma kind: no system message, the assistant is called model.
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}<start>{{ message['role'] }}\n{{ message['content'] | trim }}<end>\n{% endfor %}"
)
PARTS_ONLY = (
    "{% for message in messages %}<start>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'audio' %}[{{ audio_word }}<|audio|>]{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "<end>\n{% endfor %}"
)
TOOLS = "{% for tool in tools or [] %}{{ tool['function']['name'] }}\n{% endfor %}" + CHATML


def clip(seed: int = 0, samples: int = 1600) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


def user(*parts) -> dict:
    return {"role": "user", "content": list(parts)}


def audio(seed: int = 0, samples: int = 1600) -> dict:
    return {"type": "audio", "audio": clip(seed, samples), "sampling_rate": 16000}


def text(words: str) -> dict:
    return {"type": "text", "text": words}


def test_the_prompt_is_the_llms_own_template_with_a_token_for_the_clip():
    conversation = [user(audio(), text("What is said?"))]
    prompt = tiny_processor().apply_chat_template(conversation, add_generation_prompt=True)
    assert prompt == SYSTEM + f"<|im_start|>user\n{AUDIO}What is said?<|im_end|>\n<|im_start|>assistant\n"


def test_text_equals_the_tokenizers_own_rendering():
    processor = tiny_processor()
    conversation = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello?"}]
    for options in ({}, {"add_generation_prompt": True}):
        own = processor.tokenizer.apply_chat_template(conversation, tokenize=False, **options)
        assert processor.apply_chat_template(conversation, **options) == own
    inputs = processor.apply_chat_template(conversation, tokenize=True, return_dict=True)
    assert set(inputs) == {"input_ids", "attention_mask"}
    own = processor.tokenizer.apply_chat_template(conversation, return_tensors="pt")
    assert torch.equal(inputs["input_ids"], own["input_ids"])


def test_parts_are_joined_in_order_over_several_turns():
    conversation = [
        {"role": "system", "content": ["Be ", text("brief.")]},
        user(text("First "), audio(1), " second ", audio(2), "?"),
        {"role": "assistant", "content": "Yes."},
        user(audio(3, samples=3200)),
    ]
    processor = tiny_processor()
    inputs = processor.apply_chat_template(conversation, tokenize=True, return_dict=True)
    assert processor.decode(inputs["input_ids"][0]) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        f"<|im_start|>user\nFirst {AUDIO} second {AUDIO}?<|im_end|>\n"
        "<|im_start|>assistant\nYes.<|im_end|>\n"
        f"<|im_start|>user\n{AUDIO}<|im_end|>\n"
    )
    direct = processor(text=f"{AUDIO}{AUDIO}{AUDIO}", audio=[clip(1), clip(2), clip(3, 3200)], sampling_rate=16000)
    assert torch.equal(inputs["input_features"], direct["input_features"])
    assert torch.equal(inputs["input_features_mask"], direct["input_features_mask"])


def test_conversations_in_a_batch_are_those_alone_padded_left():
    processor = tiny_processor()
    conversations = [[user(audio(1), "What?")], [user("No audio.")], [user(audio(2, 3200), audio(3), "Longer?")]]
    batch = processor.apply_chat_template(conversations, tokenize=True, return_dict=True, add_generation_prompt=True)
    assert batch["input_features_mask"].sum(1).tolist() == [10, 20, 10]
    for index, conversation in enumerate(conversations):
        alone = processor.apply_chat_template(
            conversation, tokenize=True, return_dict=True, add_generation_prompt=True
        )
        length = alone["input_ids"].shape[1]
        assert torch.equal(batch["input_ids"][index, -length:], alone["input_ids"][0])
        assert batch["attention_mask"][index].sum() == length


def test_audio_may_come_as_path_url_key_or_row(tmp_path):
    path = str(tmp_path / "speech.wav")
    soundfile.write(path, clip(), 16000, subtype="FLOAT")
    row = {"array": clip(), "sampling_rate": 16000}
    processor = tiny_processor()
    expected = processor(text=AUDIO, audio=clip(), sampling_rate=16000)["input_features"]
    for part in (
        {"type": "audio", "audio": path},
        {"type": "audio", "path": path},
        {"type": "audio", "url": path, "text": None},
        {"type": "audio", "audio": row},
        {"type": "audio", "audio": {"path": path, "bytes": None}},
        {"type": "audio", "audio": clip().tolist(), "sampling_rate": 16000},
    ):
        inputs = processor.apply_chat_template([user(part)], tokenize=True, return_dict=True)
        assert torch.equal(inputs["input_features"], expected)


def test_the_rate_of_arrays_is_an_argument_or_a_processor_option():
    processor, part = tiny_processor(), {"type": "audio", "audio": clip()}
    options = {"tokenize": True, "return_dict": True}
    for rate in (
        {"sampling_rate": 8000},
        {"processor_kwargs": {"sampling_rate": 8000}},
        {"processor_kwargs": {"audio_kwargs": {"sampling_rate": 8000}}},
    ):
        inputs = processor.apply_chat_template([user(part)], **options, **rate)
        assert inputs["input_features"].shape[2] == 20  # 1600 samples at 8 kHz: 0.2 s
    processor.require_sampling_rate = True
    with pytest.raises(ValueError, match=r"audio\[0\] arrived as an array without its sampling rate"):
        processor.apply_chat_template([user(part)], **options)


def test_a_system_message_of_the_users_stands():
    processor = tiny_processor()
    assert processor.apply_chat_template([{"role": "system", "content": ""}, user("Hi")]).startswith(
        "<|im_start|>system\n<|im_end|>"
    )
    assert processor.apply_chat_template([user("Hi")]) == SYSTEM + "<|im_start|>user\nHi<|im_end|>\n"


def test_a_template_that_refuses_system_messages_gets_the_prompt_in_the_first_user_turn():
    processor = tiny_processor(chat_template=NO_SYSTEM)
    assert processor.apply_chat_template([user(audio(), "Hi")]) == (
        f"<start>user\n{SYSTEM_PROMPT}\n\n{AUDIO}Hi<end>\n"
    )
    assert processor.apply_chat_template([{"role": "user", "content": "Hi"}]) == (
        f"<start>user\n{SYSTEM_PROMPT}\n\nHi<end>\n"
    )


def test_a_template_written_for_parts_gets_them():
    conversation = [user(audio(), "Hi")]
    own = tiny_processor(chat_template=PARTS_ONLY).apply_chat_template(conversation, audio_word="sound")
    assert own == f"<start>system\n{SYSTEM_PROMPT}<end>\n<start>user\n[sound{AUDIO}]Hi<end>\n"
    passed = tiny_processor().apply_chat_template(conversation, chat_template=PARTS_ONLY, audio_word="sound")
    assert passed == f"<start>user\n[sound{AUDIO}]Hi<end>\n"


def test_continue_final_message_and_tools():
    processor = tiny_processor(chat_template=TOOLS)
    conversation = [user(audio(), "Hi"), {"role": "assistant", "content": [text("The person")]}]
    prompt = processor.apply_chat_template(conversation, continue_final_message=True)
    assert prompt.endswith(f"{AUDIO}Hi<|im_end|>\n<|im_start|>assistant\nThe person")
    for content in ([text("Listen:"), audio()], [audio()]):
        with pytest.raises(ValueError, match="the last message ends with a clip; expected text to continue"):
            processor.apply_chat_template([user(*content)], continue_final_message=True)
    tool = {"type": "function", "function": {"name": "get_time", "description": "", "parameters": {}}}
    assert processor.apply_chat_template(conversation, tools=[tool]).startswith("get_time\n<|im_start|>system")


def test_an_audio_token_written_by_a_user_is_text_when_sanitized():
    processor = tiny_processor()
    conversation = [user(audio(), f"What is {AUDIO}?")]
    options = {"tokenize": True, "return_dict": True}
    with pytest.raises(ValueError, match="The text holds 2 .* tokens and 1 clips arrived"):
        processor.apply_chat_template(conversation, **options)
    inputs = processor.apply_chat_template(conversation, sanitize_control_tokens=True, **options)
    assert (inputs["input_ids"] == processor.audio_token_id).sum() == 1
    assert processor.decode(inputs["input_ids"][0]).endswith(f"user\n{AUDIO}What is {AUDIO}?<|im_end|>\n")


def test_assistant_tokens_mask_marks_the_answer():
    template = CHATML.replace("message['content'] +", "").replace(
        "{{ '<|im_start|>' + message['role'] + '\\n' +  '<|im_end|>\\n' }}",
        "{{ '<|im_start|>' + message['role'] + '\\n' }}{% if message['role'] == 'assistant' %}{% generation %}"
        "{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}{{ message['content'] + '<|im_end|>' }}"
        "{% endif %}{{ '\\n' }}",
    )
    processor = tiny_processor(chat_template=template)
    inputs = processor.apply_chat_template(
        [user(audio(), "Hi"), {"role": "assistant", "content": "Yes."}],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        return_assistant_tokens_mask=True,
    )
    marked = inputs["input_ids"][0][inputs["assistant_masks"][0].bool()]
    assert processor.decode(marked) == "Yes.<|im_end|>"


def test_a_message_without_content_reaches_the_template_as_it_is():
    template = CHATML.replace("message['content']", "(message['content'] | default('[none]'))")
    conversation = [user(audio(), "Hi"), {"role": "assistant", "content": None, "tool_calls": []}]
    prompt = tiny_processor(chat_template=template).apply_chat_template(conversation)
    assert prompt.endswith(f"{AUDIO}Hi<|im_end|>\n<|im_start|>assistant\n[none]<|im_end|>\n")


def test_the_conversation_is_not_changed():
    conversation = [user(audio(), "Hi")]
    samples = conversation[0]["content"][0]["audio"].copy()
    tiny_processor().apply_chat_template(conversation, tokenize=True, return_dict=True)
    assert [message["role"] for message in conversation] == ["user"]
    part, words = conversation[0]["content"]
    assert sorted(part) == ["audio", "sampling_rate", "type"] and words == "Hi"
    assert np.array_equal(part["audio"], samples)


# conversation -> what the message says
REFUSED = {
    "empty": ([], "An empty conversation arrived"),
    "image": ([user({"type": "image", "url": "a.png"})], "A part of type 'image' arrived in a user message"),
    "audio part without audio": ([user({"type": "audio"})], "An audio part arrived with no audio; expected one of"),
    "audio part with two": (
        [user({"type": "audio", "audio": "a.wav", "path": "b.wav"})],
        r"An audio part arrived with \['audio', 'path'\]; expected one of",
    ),
}


@pytest.mark.parametrize(("conversation", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_conversations_that_cannot_be_used_are_refused(conversation, message):
    with pytest.raises(ValueError, match=message):
        tiny_processor().apply_chat_template(conversation, tokenize=True, return_dict=True)


@pytest.mark.parametrize(
    ("keyword", "hint"),
    [
        ("add_generation_promt", "Did you mean `add_generation_prompt`?"),
        ("add_system_promt", "Did you mean `add_system_prompt`?"),
        ("language", "It belongs to `apply_transcription_request`."),
        ("hotwords", "It belongs to `apply_transcription_request`."),
    ],
)
@pytest.mark.parametrize("tokenize", [True, False])
def test_a_misspelt_keyword_and_one_of_a_request_are_refused(keyword, hint, tokenize):
    message = f"`apply_chat_template` got an unknown argument `{keyword}='fr'`. {hint}"
    with pytest.raises(ValueError, match=re.escape(message)):
        tiny_processor().apply_chat_template([user("Hi")], tokenize=tokenize, **{keyword: "fr"})


def test_options_of_the_call_and_variables_of_the_template_are_no_unknown_keywords():
    processor = tiny_processor()
    options = {"padding": "max_length", "max_length": 400, "truncation": False, "audio_kwargs": {"mono": True}}
    known = {"tokenize": True, "return_dict": True, "return_tensors": "np", "documents": None}
    inputs = processor.apply_chat_template([user(audio(), "Hi")], max_seconds=9, **options, **known)
    assert inputs["input_ids"].shape == (1, 400)
    template = CHATML + "{{ enable_thinking }}"
    processor.chat_template = {"default": CHATML, "thinks": template}
    for given in (template, "thinks"):
        prompt = processor.apply_chat_template([user("Hi")], chat_template=given, enable_thinking="<no>")
        assert prompt.endswith("<no>")
    # A variable of other models' templates has no effect, as in the library.
    plain = processor.apply_chat_template([user("Hi")])
    assert processor.apply_chat_template([user("Hi")], enable_thinking=False) == plain


def test_a_tokenizer_without_a_chat_template_is_named_when_a_chat_is_asked_for():
    processor = tiny_processor(chat_template=None)
    assert processor(text="hello")["input_ids"].shape == (1, 5)
    with pytest.raises(ValueError, match="TokenizersBackend.* has no chat template to render.*`chat_template=`"):
        processor.apply_chat_template([user("Hi")])
    assert processor.apply_chat_template([user("Hi")], chat_template=CHATML).endswith("user\nHi<|im_end|>\n")


def test_a_transcription_request_asks_the_question_of_the_paper_about_each_clip():
    processor = tiny_processor()
    inputs = processor.apply_transcription_request([clip(1), clip(2, 3200)], language="en", sampling_rate=16000)
    asked = processor.apply_chat_template(
        [[user(audio(1), ASR_QUESTION)], [user(audio(2, 3200), ASR_QUESTION)]],
        tokenize=True,
        return_dict=True,
        add_generation_prompt=True,
    )
    assert set(inputs) == {*asked, "is_transcription"}
    assert all(torch.equal(inputs[key], asked[key]) for key in asked)


@pytest.mark.parametrize(("form", "kind"), [("pt", torch.Tensor), ("np", np.ndarray), (None, list)])
def test_a_transcription_request_marks_its_rows_and_a_question_none(form, kind):
    processor = tiny_processor()
    clips, options = [clip(1), clip(2), clip(3)], {"sampling_rate": 16000}
    form_of_output = {} if form == "pt" else {"processor_kwargs": {"return_tensors": form}}
    marks = processor.apply_transcription_request(clips, **options, **form_of_output)["is_transcription"]
    assert isinstance(marks, kind) and list(marks) == [True, True, True]
    if form == "pt":
        assert marks.dtype == torch.bool
        inputs = processor.apply_transcription_request(clips, **options).to("cpu", torch.bfloat16)
        assert inputs["is_transcription"].dtype == torch.bool and inputs["input_features"].dtype == torch.bfloat16
    asked = processor.apply_chat_template([user(audio(1), ASR_QUESTION)], tokenize=True, return_dict=True)
    assert "is_transcription" not in asked
    assert "is_transcription" not in processor(text=f"{AUDIO} a", audio=clip(1), sampling_rate=16000)


def test_a_transcription_request_may_name_languages_and_questions():
    processor = tiny_processor()
    prompts = processor.apply_transcription_request(
        ["a.wav", "b.wav", "c.wav"], language=["French", None, "de"], prompt=[None, "Write it.", None], tokenize=False
    )
    questions = [prompt.split(f"user\n{AUDIO}")[1].split("<|im_end|>")[0] for prompt in prompts]
    assert questions == [
        f"{ASR_QUESTION} The speech is in French.",
        "Write it.",
        f"{ASR_QUESTION} The speech is in German.",
    ]
    with pytest.raises(ValueError, match="Unsupported language: 'klingon'"):
        processor.apply_transcription_request("a.wav", language="klingon")
    with pytest.raises(ValueError, match="No clip arrived to transcribe"):
        processor.apply_transcription_request([])


def test_a_tokenizer_that_adds_a_first_token_gets_the_prompt_of_training():
    """The chat template of TinyLlama has no `<s>`, and its tokenizer adds one to plain text."""
    processor = tiny_processor()
    tokenizer = processor.tokenizer
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    first = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", first)]
    )
    assert tokenizer("a")["input_ids"][0] == first
    request = processor.apply_transcription_request(clip(), sampling_rate=16000)
    (row,) = SoundwaveDataCollator(processor, ".", ("ce",))([{"audio": audio(), "text": "a"}])["input_ids"]
    length = request["input_ids"].shape[1]
    assert row[0] != first and torch.equal(request["input_ids"][0], row[:length])
    asked = processor.apply_chat_template([user(text("a"))], tokenize=True, return_dict=True)
    assert asked["input_ids"][0][0] != first
    options = {"processor_kwargs": {"add_special_tokens": True}}
    asked = processor.apply_chat_template([user(text("a"))], tokenize=True, return_dict=True, **options)
    assert asked["input_ids"][0][0] == first


def test_decoded_batches_have_the_format_that_was_asked_for():
    processor = tiny_processor()
    ids = processor.tokenizer([" ab <|im_end|>", "c"])["input_ids"]
    assert processor.batch_decode(ids, return_format="transcription_only") == ["ab", "c"]
    assert processor.batch_decode(ids, return_format="parsed")[1] == {"language": None, "transcription": "c"}
    assert processor.batch_decode(sequences=ids, return_format="transcription_only") == ["ab", "c"]
    assert processor.batch_decode(sequences=ids) == processor.batch_decode(ids)
    assert processor.batch_decode(ids) == processor.tokenizer.batch_decode(ids)
    with pytest.raises(ValueError, match="`return_format` is 'nonsense'"):
        processor.batch_decode(ids, return_format="nonsense")
