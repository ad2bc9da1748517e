"""A CTC head that spells numbers (`lower_spelled`) and an LLM that writes digits understand each other."""

import math
import sys

import numpy as np
import pytest
import torch

from soundwave_hf import SoundwaveForConditionalGeneration, SoundwaveProcessor
from soundwave_hf.modeling.ctc_scores_soundwave import CTCTexts
from soundwave_hf.modeling.ctc_text_soundwave import CTCText, bridge_of, ctc_form
from soundwave_hf.modeling.decoding_soundwave import CTCLogitsProcessor
from soundwave_hf.modeling.drafts_soundwave import draft_of
from soundwave_hf.modeling.support_soundwave import score_words
from soundwave_hf.processing.text_soundwave import ctc_target
from tests.modeling.test_word_times import said_clip
from tests.tiny import tiny_tokenizer
from tests.tiny_models import save_tiny_soundwave


END = 257


@pytest.fixture(scope="module")
def bridge():
    return CTCText(tiny_tokenizer(), "lower_spelled")


def ids_of(text: str) -> list[int]:
    return tiny_tokenizer()(text, add_special_tokens=False).input_ids


TEXTS = [
    "Dial 911 at 7:30, not 10 1 to 15.",
    "The 21st, 2nd, 12th and 1,000th of 1,250,000.",
    "3.05 % of 12,345 or 0.5 and 40",
    "Agent 007, room 0, mp3 of B2B in the 1990s",
    "1,05 and 12,345 or $1,231-fold 5's",
    "It was 1999 and 1231 and 2,020 and 100000.",
    "No numbers.",
    "Press 0,123 or 0,12 now.",
]


@pytest.mark.parametrize("text", TEXTS)
def test_the_model_spells_numbers_as_the_processor_does(text):
    assert ctc_form(text, "lower_spelled") == ctc_target(text, "lower_spelled")


def test_a_number_of_too_many_digits_is_spelled_digit_by_digit():
    for text, expected in (("9" * 301, " nine" * 301), ("1" * 5000 + ".5", " one" * 5000 + " point five")):
        assert ctc_form(text, "lower_spelled") == ctc_target(text, "lower_spelled") == expected
    assert ctc_target("1" + "0" * 299, "lower_spelled").startswith(" one hundred")


@pytest.mark.parametrize(
    ("answer", "begun", "finished"),
    [
        ("I am 4", [" i am 4", " i am four", " i am forty", " i am fortieth"], []),
        ("the 2", [" the 2", " the two", " the second", " the twenty", " the twentieth"], []),
        ("I am 4 ", [" i am four "], [" i am four"]),
        ("I am 4,", [" i am four"], []),  # "4,000", or the end of a part
        ("4t", [" 4t", " fourth"], []),
        ("4th", [" fourth"], []),
        ("3.", [" three "], [" three"]),  # or "3.5"
        ("3.5", [" three point five"], []),
        ("007", [" 007", " zero zero seven"], []),
        ("I am", [" i am"], []),
    ],
)
def test_an_answer_that_ends_in_a_number_stands_for_what_it_may_become(bridge, answer, begun, finished):
    found = bridge.prefixes(answer)
    assert ([text.decode() for text in found[0]], [text.decode() for text in found[1]]) == (begun, finished)


@pytest.mark.parametrize("text", TEXTS)
def test_each_beginning_of_an_answer_allows_its_whole_and_counts_it_once(bridge, text):
    whole = bridge.whole(text)
    for end in range(len(text) + 1):
        begun, finished = bridge.prefixes(text[:end])
        assert sum(whole.startswith(one) for one in begun) + (whole in finished) == 1, text[:end]


# ---- joint decoding ----


def joint_choice(bridge, said: str, answer: str, weight: float, **log_probs: float) -> str:
    """The text of the token that joint decoding chooses after an answer.

    Args: said: what the clip says; log_probs: scores of the LLM, by the character.
    """
    texts = CTCTexts(said_clip(said).frames, bridge.bytes_of, bridge.byte_labels)
    scores = torch.full((1, len(bridge.bytes_of)), -20.0)
    for character, value in log_probs.items():
        scores[0, END if character == "end" else bridge.token_of[character.strip("_").encode()]] = value
    processor = CTCLogitsProcessor([texts], bridge, weight, prompt_length=0, end_ids=[END])
    token = int(processor(torch.tensor([ids_of(answer)]), scores)[0].argmax())
    return "end" if token == END else bridge.bytes_of[token].decode()


@pytest.mark.parametrize(
    ("said", "answer", "liked", "right"),
    [
        ("i have forty two dogs", "I have ", "5", "4"),
        ("i have forty two dogs", "I have 4", "3", "2"),
        ("room twelve", "Room 1", "3", "2"),
        ("in nineteen thousand three", "In 19", "4", "0"),
        ("the second", "The ", "3", "2"),
        ("two million", "2,0", "1", "0"),
        ("pi is three point one", "Pi is 3.", "2", "1"),
    ],
)
def test_the_sound_decides_between_digits(bridge, said, answer, liked, right):
    scores = {f"_{liked}": -0.5, f"_{right}": -1.5}
    assert joint_choice(bridge, said, answer, 0.0, **scores) == liked
    assert joint_choice(bridge, said, answer, 0.5, **scores) == right


def test_digits_that_say_all_words_may_end_the_answer(bridge):
    # After "42" nothing is said; the LLM would go on.
    assert joint_choice(bridge, "i have forty two", "I have 42", 0.5, _1=-0.5, end=-1.5) == "end"
    assert joint_choice(bridge, "i have forty two thousand", "I have 42", 0.5, end=-0.5, **{"_,": -1.5}) == ","


def test_numbers_that_are_written_as_words_are_right_too(bridge):
    assert joint_choice(bridge, "i have forty two", "I have forty ", 0.5, _o=-0.5, _t=-1.5) == "t"


# ---- drafts ----


@pytest.mark.parametrize(
    ("written", "rest"),
    [
        ("", "I have forty two dogs and a cat."),
        ("I have 42", " dogs and a cat."),
        ("I have 42 dogs", " and a cat."),
        ("I have 42 dogs and 1", " cat."),  # "1" for "a"
    ],
)
def test_a_draft_goes_on_behind_a_number_in_digits(bridge, written, rest):
    draft = draft_of(bridge, ids_of(" i have forty two dogs and a cat"), entropy=1.0)
    assert bridge.text_of(draft.tokens(bridge, ids_of(written))) == rest


def test_a_draft_goes_on_behind_a_word_with_a_hyphen():
    bridge = CTCText(tiny_tokenizer(), "lower")
    draft = draft_of(bridge, ids_of(" an ill disposed man came"), entropy=1.0)
    assert bridge.text_of(draft.tokens(bridge, ids_of("An ill-disposed"))) == " man came."


# ---- word times ----


def test_a_number_in_digits_has_the_frames_of_its_words(bridge):
    words = score_words(said_clip("i have forty two dogs"), "I have 42 dogs 7.", bridge, -9.0)
    assert [(word.text, word.supported) for word in words] == [
        *(("I", True), ("have", True), ("42", True), ("dogs", True)),
        ("7.", False),
    ]
    assert words[1].end <= words[2].start < words[2].end <= words[3].start
    # Ten letters of 0.08 s.
    assert words[2].end - words[2].start == pytest.approx(10 * 0.08, abs=0.2)


# ---- a model ----


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    folder = save_tiny_soundwave(tmp_path_factory.mktemp("spelled"))
    processor = SoundwaveProcessor.from_pretrained(folder)
    processor.ctc_text = "lower_spelled"
    model = SoundwaveForConditionalGeneration.from_pretrained(folder)
    model.config.ctc_text = "lower_spelled"
    return model, processor


def ask(processor):
    random = np.random.default_rng(0)
    clips = [(random.normal(size=int(16_000 * seconds)).astype("float32"), 16_000) for seconds in (1.9, 0.9)]
    return processor.apply_transcription_request(clips)


def test_generate_joins_drafts_and_times_words(loaded):
    model, processor = loaded
    inputs, options = ask(processor), {"max_new_tokens": 8, "do_sample": False, "eos_token_id": END}
    # The LLM likes digits.
    digits = {(token,): 6.0 for token in ids_of("0123456789")}
    options["sequence_bias"] = digits
    plain = model.generate(**inputs, **options)
    joint = model.generate(**inputs, **options, ctc_weight=0.5)
    assert not torch.equal(plain, joint)
    for weight, expected in ((0, plain), (0.5, joint)):
        assert torch.equal(model.generate(**inputs, **options, ctc_weight=weight, ctc_draft="lossless"), expected)
    timed = model.generate(**inputs, **options, return_timestamps="word", drop_unsupported=False)
    assert torch.equal(timed.sequences, plain) and any(any(map(str.isdigit, text)) for text in timed.texts)
    (found,) = processor.align_word_timestamps(["I am 42."], timed.clips[:1])
    assert [chunk["text"] for chunk in found["chunks"]] == ["I", "am", "42."]
    assert model.generate(**inputs, **options, ctc_weight=0.5, num_beams=2).shape[0] == 2


def test_without_num2words_the_options_are_refused(loaded, monkeypatch):
    model, processor = loaded
    monkeypatch.setitem(sys.modules, "num2words", None)
    bridge_of.cache_clear()
    with pytest.raises(ImportError, match="needs the library num2words: `pip install num2words`, or leave out"):
        model.generate(**ask(processor), max_new_tokens=2, ctc_weight=0.5)
    assert model.generate(**ask(processor), max_new_tokens=2).shape[0] == 2
    assert math.isfinite(float(model.get_ctc_clips(**ask(processor))[0].frames.entropy.max()))
