"""Answers from transcripts: what the LLM reads, and that it is the LLM as it was before training."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from soundwave_hf import (
    SoundwaveForConditionalGeneration,
    SoundwaveProcessor,
    StreamingTranscriber,
    answer_from_transcripts,
    text_answers,
    transcribe_clips,
)
from soundwave_hf.picture import look_at_clip
from soundwave_hf.processing.chat_soundwave import SYSTEM_PROMPT
from soundwave_hf.text_answers import TextAnswer
from soundwave_hf.training.stages import lora_targets
from soundwave_hf.transcripts import Segment, Transcript
from tests.modeling.test_load_adapters import place  # noqa: F401 (a fixture)


TOKENS = 6
SHORT = {"max_new_tokens": TOKENS}  # random models do not stop by themselves
RATE = 16_000


def clip(number: int, seconds: float = 1.0) -> dict:
    samples = 0.1 * np.random.default_rng(number).standard_normal(round(seconds * RATE))
    return {"type": "audio", "audio": samples.astype(np.float32), "sampling_rate": RATE}


def user(*parts) -> dict:
    return {"role": "user", "content": list(parts)}


TALKS = [
    [user(clip(0))],
    [user(clip(1, 0.6), {"type": "text", "text": "Who speaks?"})],
    [user("First:", clip(2), clip(3)), {"role": "assistant", "content": "Yes."}, user("And then, please?")],
    [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Text alone <|im_end|>"}],
]


@pytest.fixture(scope="module")
def processor(place):  # noqa: F811
    return SoundwaveProcessor.from_pretrained(place / "run")


@pytest.fixture(scope="module")
def apart(place):  # noqa: F811
    return SoundwaveForConditionalGeneration.from_pretrained(place / "run", merge_lora=False)


@pytest.fixture(scope="module")
def merged(place):  # noqa: F811
    return SoundwaveForConditionalGeneration.from_pretrained(place / "run")


def heard_by(model, processor, talk) -> list[str]:
    clips = [part for message in talk for part in message["content"] if isinstance(part, dict)]
    clips = [{"array": part["audio"], "sampling_rate": RATE} for part in clips if part["type"] == "audio"]
    return [found.text for found in transcribe_clips(model, processor, clips, **SHORT)]


def written(talk, heard) -> list[dict]:
    """The conversations above, by hand."""
    if talk is TALKS[0]:
        return [{"role": "user", "content": heard[0]}]
    if talk is TALKS[1]:
        return [{"role": "user", "content": f"{heard[0]}\n\nWho speaks?"}]
    if talk is TALKS[2]:
        first = {"role": "user", "content": f"First:\n\n{heard[0]}\n\n{heard[1]}"}
        return [first, talk[1], {"role": "user", "content": "And then, please?"}]
    return talk


@torch.no_grad()
def greedy(llm, tokenizer, talk, template=None) -> str:
    """The LLM's answer in plain transformers, one forward pass for each token."""
    text = tokenizer.apply_chat_template(talk, chat_template=template, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    if talk is TALKS[3]:  # the control token that the user wrote is text
        begin, end = text.split("<|im_end|>" * 2)
        parts = [begin, *"<|im_end|>", "<|im_end|>" + end]
        ids = torch.tensor([[token for part in parts for token in tokenizer(part)["input_ids"]]])
    new = []
    while len(new) < TOKENS and (not new or new[-1] != tokenizer.eos_token_id):
        new.append(int(llm(torch.cat([ids, torch.tensor([new], dtype=torch.long)], dim=1)).logits[0, -1].argmax()))
    return tokenizer.decode(new, skip_special_tokens=True).strip()


@torch.no_grad()
def reads(model, processor) -> torch.Tensor:
    inputs = processor.apply_transcription_request(
        {"array": TALKS[0][0]["content"][0]["audio"], "sampling_rate": RATE}
    )
    return model(**inputs).logits


def state_of(model) -> dict:
    """What a call must leave as it was."""
    trains = {name: value.requires_grad for name, value in model.named_parameters()}
    return {"trains": trains, "training": [module.training for module in model.modules()]}


def test_the_untouched_llm_answers_what_the_model_transcribed(place, apart, merged, processor, monkeypatch):  # noqa: F811
    warned = []
    monkeypatch.setattr(text_answers.logger, "warning_once", warned.append)
    before, state = reads(apart, processor), state_of(apart)
    options = {"max_new_tokens": TOKENS, "transcribe": SHORT}
    found = [answer_from_transcripts(apart, processor, [talk], **options)[0] for talk in TALKS]
    llm, tokenizer = (Auto.from_pretrained(place / "llm") for Auto in (AutoModelForCausalLM, AutoTokenizer))
    trained = []
    for talk, answer in zip(TALKS, found, strict=True):
        assert list(answer.transcripts) == heard_by(merged, processor, talk)
        assert answer.text == greedy(llm.eval(), tokenizer, written(talk, answer.transcripts))
        trained.append(greedy(merged, tokenizer, written(talk, answer.transcripts)))
    assert [answer.text for answer in found] != trained  # the LoRA makes a difference
    assert any(one for answer in found for one in answer.transcripts)
    torch.testing.assert_close(reads(apart, processor), before)  # the LoRA is on again
    assert state_of(apart) == state and not warned


def test_a_batch_answers_as_its_conversations_alone(apart, processor):
    options = {"max_new_tokens": TOKENS, "transcribe": SHORT}
    together = answer_from_transcripts(apart, processor, iter(TALKS), **options)
    assert together == [answer_from_transcripts(apart, processor, [talk], **options)[0] for talk in TALKS]
    assert together == answer_from_transcripts(apart, processor, TALKS, batch_size=3, **options)
    assert answer_from_transcripts(apart, processor, [], **options) == []


def test_a_long_clip_is_transcribed_in_pieces(apart, merged, processor):
    samples = np.concatenate([clip(number, 20)["audio"] for number in range(2)])
    talk = [user({"type": "audio", "audio": samples, "sampling_rate": RATE})]
    (found,) = answer_from_transcripts(apart, processor, [talk], max_new_tokens=TOKENS, transcribe=SHORT)
    (expected,) = transcribe_clips(merged, processor, [{"array": samples, "sampling_rate": RATE}], **SHORT)
    assert len(expected.segments) == 2 and found.transcripts == (expected.text,)


def test_answers_are_greedy_whatever_the_generation_config_says(place, apart, processor):  # noqa: F811
    model = SoundwaveForConditionalGeneration.from_pretrained(place / "run", merge_lora=False)
    model.generation_config.update(num_beams=4, num_return_sequences=2, do_sample=True)
    options = {"max_new_tokens": TOKENS}
    assert answer_from_transcripts(model, processor, TALKS[3:], **options) == answer_from_transcripts(
        apart, processor, TALKS[3:], **options
    )


def test_a_merged_lora_stays_on_and_a_warning_says_so(merged, processor, monkeypatch):
    warned = []
    monkeypatch.setattr(text_answers.logger, "warning_once", warned.append)
    (found,) = answer_from_transcripts(merged, processor, TALKS[:1], max_new_tokens=TOKENS, transcribe=SHORT)
    expected = greedy(merged, processor.tokenizer, written(TALKS[0], found.transcripts), processor.chat_template)
    assert found.text == expected
    assert len(warned) == 1 and "`merge_lora=False`" in warned[0]


@pytest.mark.parametrize("attach", ["transformers", "peft"])
def test_only_the_lora_is_switched_off_and_comes_back_as_it_was(place, processor, attach):  # noqa: F811
    model = SoundwaveForConditionalGeneration.from_pretrained(place / "run")
    ids = processor.tokenizer("Hello", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        before = model(ids).logits
        lora = LoraConfig(r=2, target_modules=lora_targets(model.model.language_model), init_lora_weights=False)
        if attach == "peft":
            lora.modules_to_save = ["alignment_adapter"]
            model = get_peft_model(model, lora)
        else:
            model.add_adapter(lora)
        for name, value in model.named_parameters():
            value.requires_grad_("layers.0" in name and "lora_A" in name)
            if "modules_to_save" in name:
                value.add_(0.1)
        state, heard_before, tuned = state_of(model.train()), reads(model.eval(), processor), model(ids).logits
        model.train()
        assert (tuned - before).abs().max() > 1e-3
        with text_answers.lora_off(model):
            torch.testing.assert_close(model.eval()(ids).logits, before)
            model.train()
        with pytest.raises(RuntimeError), text_answers.lora_off(model):
            raise RuntimeError
        assert state_of(model) == state
        torch.testing.assert_close(model.eval()(ids).logits, tuned)
        torch.testing.assert_close(reads(model, processor), heard_before)
        with text_answers.lora_off(model), text_answers.lora_off(model):
            pass
        torch.testing.assert_close(model(ids).logits, tuned)


def test_a_lora_that_was_off_stays_off(place, processor):  # noqa: F811
    model = SoundwaveForConditionalGeneration.from_pretrained(place / "run", merge_lora=False)
    with torch.no_grad(), model.disable_adapter():
        before = reads(model, processor)
        answer_from_transcripts(model, processor, TALKS[:1], max_new_tokens=2, transcribe=SHORT)
        torch.testing.assert_close(reads(model, processor), before)


def heard(texts, finished: bool = True, **expected):
    """A stand-in for `transcribe_clips`, which hears these texts."""

    def transcribe(model, processor, clips, **options):
        assert len(clips) == len(texts) and options == {"batch_size": 8, **expected}
        return [Transcript.of_segments([Segment(0, 1, text, finished=finished)], 1) for text in texts]

    return transcribe


@pytest.fixture
def read(monkeypatch) -> list:
    """The conversations that the LLM gets; it answers each with its number."""
    talks = []

    def answer(model, processor, batch, max_new_tokens, variables):
        talks.extend(batch)
        return [(str(len(talks)), True) for _ in batch]

    monkeypatch.setattr(text_answers, "answer_texts", answer)
    return talks


def test_what_nobody_said_is_not_answered(apart, processor, monkeypatch, read):
    monkeypatch.setattr(text_answers, "transcribe_clips", heard(["", "", "Hello."]))
    asked = [[user(clip(0))], [user(clip(1), "Is it quiet?")], [user(clip(2))]]
    found = answer_from_transcripts(apart, processor, asked)
    assert found == [TextAnswer("", ("",)), TextAnswer("2", ("",)), TextAnswer("2", ("Hello.",))]
    texts = [talk[-1]["content"] for talk in read]
    assert texts == [[{"type": "text", "text": "Is it quiet?"}], [{"type": "text", "text": "Hello."}]]


@pytest.mark.parametrize("content", ["", " ", []])
def test_a_message_without_text_and_clips_is_not_answered(apart, processor, read, content):
    talk = [{"role": "user", "content": content}]
    assert answer_from_transcripts(apart, processor, [talk]) == [TextAnswer("", ())] and not read


def test_messages_without_clips_stay_as_they_are(apart, processor, monkeypatch, read):
    monkeypatch.setattr(text_answers, "transcribe_clips", heard(["one", "two"]))
    call = {"role": "assistant", "content": None, "tool_calls": []}
    talk = [user(clip(0), clip(1), "\nWhat?", " Say."), call, {"role": "user", "content": "Go on."}]
    answer_from_transcripts(apart, processor, [talk])
    first, second, last = read[0]
    assert first["content"] == [{"type": "text", "text": "one\n\ntwo\n\n\nWhat? Say."}]
    assert second == call and last["content"] == [{"type": "text", "text": "Go on."}]
    assert talk[0]["content"][0]["type"] == "audio"  # the caller's messages are not changed


def test_options_reach_the_transcripts(apart, processor, monkeypatch, read):
    monkeypatch.setattr(text_answers, "transcribe_clips", heard(["Hola."], batch_size=1, language="es"))
    answer_from_transcripts(apart, processor, [[user(clip(0))]], transcribe={"batch_size": 1, "language": "es"})


def test_what_was_cut_is_not_finished(apart, processor, monkeypatch):
    talk = [[user(clip(0))]]
    for limit in (1, 3):
        monkeypatch.setattr(text_answers, "transcribe_clips", heard(["Hello."]))
        (cut,) = answer_from_transcripts(apart, processor, talk, max_new_tokens=limit)
        assert not cut.finished
    monkeypatch.setattr(text_answers, "answer_texts", lambda *args: [("Yes.", True)])
    for finished in (True, False):
        monkeypatch.setattr(text_answers, "transcribe_clips", heard(["Hello."], finished))
        assert answer_from_transcripts(apart, processor, talk) == [TextAnswer("Yes.", ("Hello.",), finished)]


PARTS_ONLY = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role }}{% for part in message.content %}"
    "{{ '[' + part.text + ']' }}{% endfor %}{{ think }}{% endfor %}"
)


def test_a_template_of_parts_gets_them_and_its_variables(place, apart, monkeypatch):  # noqa: F811
    processor = SoundwaveProcessor.from_pretrained(place / "run", chat_template=PARTS_ONLY)
    monkeypatch.setattr(text_answers, "transcribe_clips", heard(["Hello."]))
    prompts = []

    def generated(model, processor, inputs, *args, **options):
        prompts.extend(processor.batch_decode(inputs["input_ids"]))
        return ["Yes."], [True]

    monkeypatch.setattr(text_answers, "generated_texts", generated)
    variables = {"think": "<no>"}
    answer_from_transcripts(apart, processor, [[user(clip(0))]], chat_template_kwargs=variables)
    assert prompts == ["<|im_start|>user[Hello.]<no>"]


@pytest.mark.parametrize(
    ("talks", "options", "message"),
    [
        ([TALKS[0], []], {}, "Conversation 1 ends with 'no message' .*; expected a message of 'user'"),
        (TALKS[0], {}, "One conversation arrived; expected a list of conversations"),
        (
            ["clip.flac"],
            {},
            r"Conversation 0 is 'clip.flac'; expected a list of messages, for a clip such as `\[\{'role'",
        ),
        ("clip.flac", {}, "Conversation 0 is 'clip.flac'"),
        ([TALKS[0], ["Who speaks?"]], {}, "Conversation 1 is .'Who speaks.'.; expected a list of messages"),
        ([TALKS[2][:2]], {}, "Conversation 0 ends with 'assistant'"),
        ([[{"role": "user", "content": None}]], {}, "Conversation 0 ends with 'user' and content of type NoneType"),
        ([[{"role": "user"}]], {}, "content of type NoneType"),
        ([TALKS[0], [user({"type": "text"})]], {}, "Conversation 1 has a text part"),
        ([TALKS[0]], {"batch_size": 0}, "The batch size is 0"),
        ([TALKS[0]], {"max_new_tokens": "9"}, "`max_new_tokens` is '9'; expected 1 or more"),
        ([TALKS[0]], {"max_new_tokens": 0}, "`max_new_tokens` is 0; expected 1 or more"),
        ([TALKS[0]], {"transcribe": {"language": "Klingon"}}, "Klingon"),
        ([[user({"type": "image", "image": "x.png"})]], {}, "A part of type 'image' arrived"),
        ([[user({"type": "audio"})]], {}, "An audio part arrived with no audio"),
    ],
)
def test_what_cannot_be_answered_is_refused(apart, processor, talks, options, message):
    with pytest.raises(ValueError, match=message):
        answer_from_transcripts(apart, processor, talks, **options)


def test_the_papers_system_prompt_may_be_left_out(processor):
    talk = [user("Hello.")]
    with_prompt, without = (processor.apply_chat_template(talk, add_system_prompt=wanted) for wanted in (True, False))
    assert SYSTEM_PROMPT in with_prompt and SYSTEM_PROMPT not in without
    assert with_prompt.endswith(without)


@pytest.mark.parametrize("options", [{"word_times": True}, {"ctc_only": True, "confidence": True}])
def test_an_attached_lora_transcribes_as_the_merged_one(apart, merged, processor, options):
    options = options if "ctc_only" in options else {**SHORT, **options}
    audio = [{"array": clip(5)["audio"], "sampling_rate": RATE}]
    found, expected = (list(transcribe_clips(model, processor, audio, **options)) for model in (apart, merged))
    assert found[0].text == expected[0].text


def test_an_attached_lora_is_drawn_and_heard_live_as_the_merged_one(apart, merged, processor):
    samples = clip(5)["audio"]
    drawn = [look_at_clip({"array": samples, "sampling_rate": RATE}, processor, model) for model in (apart, merged)]
    assert drawn[0].peaks == drawn[1].peaks and drawn[0].kept_seconds == drawn[1].kept_seconds
    events = []
    for model in (apart, merged):
        live = StreamingTranscriber(model, processor, RATE, max_new_tokens=TOKENS)
        events.append([*live.feed(samples), *live.finish()])
    assert events[0] == events[1]
