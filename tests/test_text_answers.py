"""Answers from transcripts: what the LLM reads, and that it is the LLM as it was before training."""

import numpy as np
import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer

from soundwave_hf import (
    SoundwaveForConditionalGeneration,
    SoundwaveProcessor,
    answer_from_transcripts,
    text_answers,
    transcribe_clips,
)
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


def test_the_untouched_llm_answers_what_the_model_transcribed(place, apart, merged, processor):  # noqa: F811
    before = reads(apart, processor)
    found = [
        answer_from_transcripts(apart, processor, [talk], max_new_tokens=TOKENS, transcribe=SHORT)[0] for talk in TALKS
    ]
    llm, tokenizer = (Auto.from_pretrained(place / "llm") for Auto in (AutoModelForCausalLM, AutoTokenizer))
    trained = []
    for talk, answer in zip(TALKS, found, strict=True):
        assert list(answer.transcripts) == heard_by(merged, processor, talk)
        assert answer.text == greedy(llm.eval(), tokenizer, written(talk, answer.transcripts))
        trained.append(greedy(merged, tokenizer, written(talk, answer.transcripts)))
    assert [answer.text for answer in found] != trained  # the LoRA makes a difference
    assert any(one for answer in found for one in answer.transcripts)
    torch.testing.assert_close(reads(apart, processor), before)  # the LoRA is on again


def test_a_batch_answers_as_its_conversations_alone(apart, processor):
    options = {"max_new_tokens": TOKENS, "transcribe": SHORT}
    together = answer_from_transcripts(apart, processor, TALKS, **options)
    assert together == [answer_from_transcripts(apart, processor, [talk], **options)[0] for talk in TALKS]
    assert together == answer_from_transcripts(apart, processor, TALKS, batch_size=3, **options)


def test_a_merged_lora_stays_on_and_a_warning_says_so(merged, processor, monkeypatch):
    warned = []
    monkeypatch.setattr(text_answers.logger, "warning_once", warned.append)
    (found,) = answer_from_transcripts(merged, processor, TALKS[:1], max_new_tokens=TOKENS, transcribe=SHORT)
    expected = greedy(merged, processor.tokenizer, written(TALKS[0], found.transcripts), processor.chat_template)
    assert found.text == expected
    assert len(warned) == 1 and "`merge_lora=False`" in warned[0]


def test_a_lora_of_transformers_is_switched_off_too(place, processor):  # noqa: F811
    model = SoundwaveForConditionalGeneration.from_pretrained(place / "run")
    ids = processor.tokenizer("Hello", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        before = model(ids).logits
        targets = lora_targets(model.model.language_model)
        model.add_adapter(LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
        tuned = model(ids).logits
        assert (tuned - before).abs().max() > 1e-3
        with text_answers.lora_off(model):
            torch.testing.assert_close(model(ids).logits, before)
        with pytest.raises(RuntimeError), text_answers.lora_off(model):
            raise RuntimeError
        torch.testing.assert_close(model(ids).logits, tuned)


def heard(texts, finished: bool = True):
    """A stand-in for `transcribe_clips`, which hears these texts."""

    def transcribe(model, processor, clips, **options):
        assert len(clips) == len(texts)
        return [Transcript.of_segments([Segment(0, 1, text, finished=finished)], 1) for text in texts]

    return transcribe


def test_what_nobody_said_is_not_answered(apart, processor, monkeypatch):
    expected = [
        answer_from_transcripts(apart, processor, [[user(text)]], max_new_tokens=TOKENS)[0].text
        for text in ("Is it quiet?", "Hello.")
    ]
    monkeypatch.setattr(text_answers, "transcribe_clips", heard(["", "", "Hello."]))
    asked = [[user(clip(0))], [user(clip(1), "Is it quiet?")], [user(clip(2))]]
    silent, *others = answer_from_transcripts(apart, processor, asked, max_new_tokens=TOKENS)
    assert silent == TextAnswer("", ("",), True)
    assert [one.text for one in others] == expected


def test_an_answer_to_a_cut_transcript_is_not_finished(apart, processor, monkeypatch):
    monkeypatch.setattr(text_answers, "answer_texts", lambda model, processor, talks, tokens: [("Yes.", True)])
    for finished in (True, False):
        monkeypatch.setattr(text_answers, "transcribe_clips", heard(["Hello."], finished))
        (found,) = answer_from_transcripts(apart, processor, [[user(clip(0))]])
        assert found == TextAnswer("Yes.", ("Hello.",), finished)


@pytest.mark.parametrize(
    ("talks", "options", "message"),
    [
        ([TALKS[0], []], {}, "Conversation 1 ends with 'no message'; expected a message of 'user'"),
        ([TALKS[2][:2]], {}, "Conversation 0 ends with 'assistant'"),
        ([TALKS[0]], {"batch_size": 0}, "The batch size is 0"),
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
