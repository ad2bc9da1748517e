"""Hotwords: the prefix tree worked out by hand, the filter against every path, and both in `generate`."""

import functools
import itertools
import math

import numpy as np
import pytest
import torch
from transformers import pipeline

from soundwave_hf.modeling.ctc_scores_soundwave import score_frames
from soundwave_hf.modeling.ctc_text_soundwave import CTCText, ctc_form
from soundwave_hf.modeling.decoding_soundwave import CTCLogitsProcessor
from soundwave_hf.modeling.hotwords_soundwave import (
    Heard,
    Hotwords,
    PhraseTree,
    check_hotwords,
    heard_phrases,
    phrase_scores,
)
from tests.modeling.test_ctc_scores import BLANK, BYTES, frames_of
from tests.modeling.test_decoding import END, Bridge, answers, ask, clips
from tests.modeling.test_word_times import BRIDGE, said_clip


# ---- the bonus ----


@pytest.mark.parametrize(
    "answer, open_bonus, whole_bonus",
    [
        ("", 0, 0),
        ("To", 0, 0),
        ("To P", 1, 0),
        ("To Port", 4, 4),  # a phrase of its own
        ("To Port ", 5, 4),  # "port" is whole, and a space more of "port kestrelmoor"
        ("To Port Kes", 8, 4),
        ("To Port Kent", 4, 4),  # the rest is taken back
        ("To Portugal", 0, 0),  # not the word "port"
        ("To Port Kestrelmoor", 16, 16),
        ("To Port-Kestrelmoor, ", 16, 16),
        ("To PORT Kestrelmoor", 0, 0),  # another case than given
        ("To Port Kestrelmoors", 4, 4),
        ("To Port Kestrelmoor Port", 20, 20),
        ("Ports, ports, ports.", 0, 0),
    ],
)
def test_each_byte_of_a_phrase_counts_until_the_text_goes_on_in_another_way(answer, open_bonus, whole_bonus):
    tree = PhraseTree(["Port Kestrelmoor", "port"], weight=0.5)
    assert tree.bonus(answer) == 0.5 * open_bonus
    assert tree.bonus(answer, is_whole=True) == 0.5 * whole_bonus


def test_words_may_begin_with_a_capital_and_otherwise_have_the_given_case():
    tree = PhraseTree(["new york", "iPhone"], weight=1)
    answers = ("new york", "New York", "New york", "NEW YORK", "iPhone", "IPhone", "iphone")
    assert [tree.bonus(answer, is_whole=True) for answer in answers] == [8, 8, 8, 0, 6, 6, 0]


def test_overlapping_phrases_count_once():
    tree = PhraseTree(["New York", "York City Hall"], weight=1)
    assert tree.bonus("New York City Hall", is_whole=True) == 14  # not 8 + 14
    assert tree.bonus("New York New York", is_whole=True) == 16


def test_a_phrase_counts_as_often_as_it_is_heard():
    tree = PhraseTree(["Dashwood", "Port Kestrelmoor", "kestrelmoor"], weight=1, times=[1, 2, 1])
    answers = {
        "Mr Dashwood": 8,
        "Mr Dashwood, Dashwood": 8,
        "Mr Dashwood, Dashwood, dash": 8,
        "Port Kestrelmoor Dashwood": 24,
        "Port Kestrelmoor, Port Kestrelmoor": 32,
        "Port Kestrelmoor, Port Kestrelmoor, Port": 32,
        "Port Kestrelmoor, Kestrelmoor, Kestrelmoor": 27,  # twice in all
        "Kestrelmoor, kestrelmoor, Port Kestrelmoor": 22,
        "Dashwood Port Kestrelmoor Dashwood": 24,
    }
    assert {answer: tree.bonus(answer, is_whole=True) for answer in answers} == answers
    begun = ("Dash", "Dashwood Dash", "Dashwood Port", "Dashwood Port,")
    assert [tree.bonus(answer) for answer in begun] == [4, 8, 12, 13]


def test_a_phrase_without_spaces_counts_as_often_as_it_is_heard():
    tree = PhraseTree(["北京", "北京大学"], weight=1, times=[1, 1])
    assert [tree.bonus(answer, is_whole=True) for answer in ("北京北京", "北京大学", "北京大学北京")] == [6, 12, 12]


def test_phrases_without_spaces_match_inside_of_a_text():
    tree = PhraseTree(["北京"], weight=1)
    assert [tree.bonus(answer) for answer in ("我在北", "我在北京", "我在北京大学", "我在北方")] == [3, 6, 6, 0]
    assert tree.bonus("我在北京大学", is_whole=True) == 6


def test_continuations_are_the_rest_of_begun_phrases_as_written_and_all_beginnings():
    tree = PhraseTree(["Port Kestrelmoor", "portal"], weight=1)
    starts = {b" Port Kestrelmoor", b" portal", b" Portal"}
    assert tree.continuations("To") == starts
    assert tree.continuations("To por") == starts | {b"tal"}
    assert tree.continuations("To Por") == starts | {b"t Kestrelmoor", b"tal"}
    assert tree.continuations("To Port ") == starts | {b"Kestrelmoor", b"Port Kestrelmoor", b"portal", b"Portal"}


def brute_bonus(text: bytes, phrases: list[bytes], is_whole: bool) -> int:
    """The most bytes of phrases that do not overlap; the last may be unfinished."""

    @functools.cache
    def best(place: int) -> int:
        if place >= len(text):
            return 0
        found = best(place + 1)
        for phrase in phrases:
            rest = text[place:]
            if rest.startswith(phrase) and rest[len(phrase) : len(phrase) + 1] in (b" ", b""):
                found = max(found, len(phrase) - 1 + best(place + len(phrase)))
            elif not is_whole and len(rest) > 0 and phrase.startswith(rest):
                found = max(found, len(rest) - 1)
        return found

    return best(0)


@pytest.mark.parametrize("seed", range(4))
def test_the_tree_is_the_best_choice_of_phrases(seed):
    random = np.random.default_rng(seed)
    words = ["a", "ab", "ba", "abb"]
    phrases = [" ".join(random.choice(words, size=random.integers(1, 4))) for _ in range(4)]
    tree = PhraseTree(phrases, weight=1)
    forms = [ctc_form(phrase, "lower").encode() for phrase in dict.fromkeys(phrases)]
    for _ in range(150):
        answer = " ".join(random.choice(words, size=random.integers(0, 7)))
        text = ctc_form(answer, "lower").encode()
        assert tree.bonus(answer) == brute_bonus(text, forms, is_whole=False), (phrases, answer)
        assert tree.bonus(answer, is_whole=True) == brute_bonus(text, forms, is_whole=True), (phrases, answer)


# ---- the filter ----


@pytest.mark.parametrize("seed", range(3))
def test_a_phrase_is_heard_as_well_as_its_best_place_allows(seed):
    frames, log_probs = frames_of(5, seed)
    relative = (log_probs - log_probs.max(dim=1, keepdim=True).values).double()
    bridge = Bridge()

    def at_best_place(text: bytes) -> float:  # over all spans, of the sum of all paths that write it there
        ends = {}
        for begin in range(5):
            for end in range(begin + 1, 6):
                for path in itertools.product(range(len(BYTES)), repeat=end - begin):
                    labels = [label for label, _ in itertools.groupby(path) if label != BLANK]
                    if path[0] != BLANK and b"".join(BYTES[label] for label in labels) == text:
                        score = math.exp(sum(relative[begin + n, label].item() for n, label in enumerate(path)))
                        ends[end] = ends.get(end, 0.0) + score
        return math.log(max(ends.values()))

    for phrase in ("a", "ab", "aba"):
        text = b" " + phrase.encode()
        found = phrase_scores(bridge.texts(frames), [phrase], bridge, least=-100.0)[0].score
        assert found >= at_best_place(text) / len(text) - 1e-6
        spellings = {text, b" " + phrase.title().encode()}
        assert found == pytest.approx(
            max(at_best_place(text) / len(text) for text in spellings if text.islower()), rel=1e-5
        )


def test_phrases_that_are_said_are_heard_and_others_are_not():
    texts = BRIDGE.texts(said_clip("he met zyphrane today").frames)
    phrases = ["Zyphrane", "zyphmoor", "met Zyphrane", "kestrelmoor", "Today", "Zyphrane kestrel"]
    heard = heard_phrases(texts, phrases, BRIDGE)
    assert {one.phrase for one in heard} == {"Zyphrane", "met Zyphrane", "Today"}
    # A label every second frame from frame 1: " zyphrane" are labels 7 to 15.
    assert [(one.first, one.end) for one in heard if one.phrase == "Zyphrane"] == [(15, 32)]
    assert heard_phrases(texts, [], BRIDGE) == []


def test_a_phrase_that_is_said_twice_is_heard_at_both_places():
    texts = BRIDGE.texts(said_clip("zyphrane met zyphrane").frames)
    heard = heard_phrases(texts, ["Zyphrone"], BRIDGE)
    assert sorted((one.first, one.end) for one in heard) == [(1, 18), (27, 44)]
    both = texts.with_spans([(one.text, one.first, one.end) for one in heard])
    said = b" zyphrane met zyphrane"
    for favoured in (b" zyphrone met zyphrone", b" zyphrone met zyphrane", b" zyphrane met zyphrone"):
        assert both.whole(favoured) == pytest.approx(texts.whole(said), abs=5) and texts.whole(favoured) < -15
    assert both.whole(b" zyphrone met zyphrone zyphrone") < -15


def test_the_frame_beside_a_place_is_no_second_place():
    probs = torch.full((20, len(BYTES)), 1e-4)
    probs[:, BLANK] = 0.99
    said = {7: (b" ab", 0.3), 8: (b" a", 0.9), 10: (b"b", 0.9), 18: (b" ab", 0.9)}  # as two labels, and as one
    for frame, (text, probability) in said.items():
        probs[frame, BYTES.index(text)], probs[frame, BLANK] = probability, 0.99 - probability
    (frames,) = score_frames(probs.log()[None], torch.tensor([20]), torch.eye(len(BYTES)), BLANK)
    heard = heard_phrases(Bridge().texts(frames), ["ab"], Bridge())
    assert sorted((one.first, one.end) for one in heard) == [(8, 11), (18, 19)]


def test_of_phrases_in_the_same_frames_the_best_is_kept():
    texts = BRIDGE.texts(said_clip("he met zyphrane today").frames)
    assert [one.phrase for one in heard_phrases(texts, ["Zyphrone", "Zyphrane"], BRIDGE)] == ["Zyphrane"]
    assert [one.phrase for one in heard_phrases(texts, ["Zyphrone"], BRIDGE)] == ["Zyphrone"]


def test_a_phrase_is_as_likely_as_the_best_labels_where_it_is_heard_and_nowhere_else():
    texts = BRIDGE.texts(said_clip("he met zyphrane today").frames)
    (one,) = heard_phrases(texts, ["Zyphrone"], BRIDGE)
    both = texts.with_spans([(one.text, one.first, one.end)])
    said, favoured = b" he met zyphrane today", b" he met zyphrone today"
    assert both.whole(said) == pytest.approx(texts.whole(said), abs=1e-3)
    assert texts.whole(favoured) < texts.whole(said) - 10
    assert both.whole(favoured) == pytest.approx(texts.whole(said), abs=3)
    assert both.prefix(b" he met zyphro") > texts.prefix(b" he met zyphro") + 10
    for other in (b" he met zyphrow", b" he met zyphrone zyphrone today", b" zyphrone met zyphrane today"):
        assert both.whole(other) < texts.whole(said) - 10


@pytest.mark.parametrize("phrase", ["Zyphrane", "zyphrane"])
def test_a_head_that_writes_case_hears_a_phrase_in_any(phrase):
    bridge = CTCText(BRIDGE.tokenizer, "as_written")
    texts = bridge.texts(said_clip("Zyphrane came", form="lower").frames)  # its labels are lower case
    assert [one.phrase for one in heard_phrases(texts, [phrase], bridge)] == [phrase]


# ---- scores of tokens ----


@pytest.mark.parametrize("weight", [0.0, 0.4])
@pytest.mark.parametrize("answer", [[], [2], [0, 3]])
def test_scores_of_tokens_are_the_joint_scores_and_the_change_of_the_bonus(weight, answer):
    frames, _ = frames_of(5)
    bridge, tree = Bridge(), PhraseTree(["ab a", "b"], 0.7)
    scores = torch.randn(1, 7, generator=torch.Generator().manual_seed(1))
    ids = torch.tensor([[9, 9, *answer]])
    texts = bridge.texts(frames)
    found = CTCLogitsProcessor([texts], bridge, weight, 2, [END], [tree])(ids, scores)[0]
    expected = {}
    begins = CTCLogitsProcessor([texts], bridge, weight, 2, [END])
    for token, log_prob in enumerate(scores.log_softmax(dim=-1)[0].tolist()):
        change = begins._score(texts, [*answer, token]) - begins._score(texts, answer)
        written = bridge.text_of(answer)
        after = tree.bonus(written, True) if token == END else tree.bonus(bridge.text_of([*answer, token]))
        expected[token] = (1 - weight) * log_prob + after - tree.bonus(written)
        expected[token] += weight * min(change, 0.0) if weight else 0.0
    assert int(found.argmax()) == max(expected, key=expected.get)
    for token, value in enumerate(found.tolist()):
        assert value == -math.inf or value == pytest.approx(expected[token], abs=1e-4)
    assert len(set(expected.values())) > 3


# ---- generate ----


@pytest.fixture
def all_heard(monkeypatch):
    """A filter that leaves no phrase out: the random head hears none."""
    monkeypatch.setattr(
        "soundwave_hf.modeling.hotwords_soundwave.heard_phrases",
        lambda texts, phrases, bridge: [Heard(phrase, b" ", 0.0) for phrase in phrases],
    )


def test_without_hotwords_or_with_weight_zero_the_ids_are_as_before(model, processor, all_heard):
    inputs = ask(processor, 1.9, 0.5)
    for weight in (None, 0.6):
        plain = answers(model, inputs, ctc_weight=weight)
        for options in ({"hotwords": []}, {"hotwords": None}, {"hotwords": [[], None]}):
            assert answers(model, inputs, ctc_weight=weight, **options) == plain
        assert answers(model, inputs, ctc_weight=weight, hotwords=["Kestrel"], hotword_weight=0) == plain
        assert answers(model, inputs, ctc_weight=weight, hotwords=["Kestrel"], hotword_weight=60.0) != plain


def test_a_row_where_no_phrase_is_heard_is_decoded_as_without_hotwords(model, processor):
    inputs = ask(processor, 1.9, 0.5)
    for weight in (None, 0.6):
        plain = answers(model, inputs, ctc_weight=weight)
        assert answers(model, inputs, ctc_weight=weight, hotwords=["Kestrelmoor"], hotword_weight=60.0) == plain


@pytest.mark.parametrize("options", [{"ctc_weight": 0}, {"ctc_weight": 0.6}, {"ctc_weight": None}, {"num_beams": 3}])
def test_a_phrase_with_enough_weight_is_written(model, processor, all_heard, options):
    inputs = ask(processor, 1.9, 0.5)
    rows = answers(model, inputs, hotwords=["zyph"], hotword_weight=60.0, max_new_tokens=12, **options)
    assert all("zyph" in processor.decode(row).lower() for row in rows)


@pytest.mark.parametrize("beams", [{}, {"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 2}])
def test_each_row_has_its_own_phrases(model, processor, all_heard, beams):
    seconds, phrases = (0.5, 1.9, 1.2), [["zyph"], None, ["kest", "mo"]]
    together = answers(model, ask(processor, *seconds), hotwords=phrases, hotword_weight=60.0, **beams)
    alone = [
        row
        for length, own in zip(seconds, phrases, strict=True)
        for row in answers(model, ask(processor, length), hotwords=own or [], hotword_weight=60.0, **beams)
    ]
    assert [row[:6] for row in together] == [row[:6] for row in alone]


def test_lossless_drafts_give_the_same_answer(model, processor, all_heard):
    inputs = ask(processor, 1.9, 0.5)
    options = {"hotwords": ["zyph"], "hotword_weight": 60.0}
    assert answers(model, inputs, ctc_draft="lossless", **options) == answers(model, inputs, **options)


def test_word_times_and_hotwords_go_together(model, processor, all_heard):
    inputs = ask(processor, 1.9)
    options = {"hotwords": ["zyph"], "hotword_weight": 60.0, "max_new_tokens": 12}
    output = model.generate(**inputs, **options, ctc_weight=0.6, do_sample=False, return_timestamps="word")
    assert "zyph" in output.texts[0].lower()


def test_the_weight_of_the_generation_config_is_the_default(model, processor, all_heard):
    inputs = ask(processor, 1.9)
    explicit = answers(model, inputs, hotwords=["zyph"], hotword_weight=60.0)
    model.generation_config.hotword_weight = 60.0
    try:
        assert answers(model, inputs, hotwords=["zyph"]) == explicit
    finally:
        del model.generation_config.hotword_weight
    assert answers(model, inputs, hotwords=["zyph"]) != explicit


def test_the_pipeline_takes_one_list_for_all_clips_or_one_for_each(model, processor, all_heard):
    transcribe = pipeline(
        "soundwave-asr", model=model, tokenizer=processor.tokenizer, feature_extractor=processor.feature_extractor,
        processor=processor,
    )  # fmt: skip
    options = {"max_new_tokens": 12, "hotword_weight": 60.0, "ctc_weight": 0.6}
    several = [{"raw": clip, "sampling_rate": 16_000} for clip in clips(1.9, 0.5)]
    for batch_size in (1, 2):
        found = transcribe(several, hotwords=["zyph"], batch_size=batch_size, **options)
        assert all("zyph" in one["text"].lower() for one in found)
        found = transcribe(several, hotwords=[[], ["zyph"]], batch_size=batch_size, **options)
        assert ["zyph" in one["text"].lower() for one in found] == [False, True]
    long = {"raw": np.tile(several[0]["raw"], 3), "sampling_rate": 16_000}  # of three pieces or more
    (found,) = transcribe([long], hotwords=[["zyph"]], **options)
    assert found["text"].lower().count("zyph") >= 3
    with pytest.raises(ValueError, match="`hotwords` holds 1 entries and 2 clips arrived"):
        transcribe(several, hotwords=[["zyph"]], **options)


def test_the_processor_passes_hotwords_to_generate(model, processor, all_heard):
    audio = [(clip, 16_000) for clip in clips(1.9, 0.5)]
    inputs = processor.apply_transcription_request(audio, hotwords=[["zyph"], []]).to("cpu")
    assert inputs["hotwords"] == [["zyph"], []]
    given = answers(model, inputs, hotword_weight=60.0)
    plain = processor.apply_transcription_request(audio)
    assert given == answers(model, plain, hotwords=[["zyph"], []], hotword_weight=60.0)
    assert "hotwords" not in plain
    with pytest.raises(ValueError, match="`hotwords` holds 1 lists for 2 clips"):
        processor.apply_transcription_request(audio, hotwords=[["zyph"]])
    with pytest.raises(ValueError, match="`hotwords` was given, but the output is not a dict"):
        processor.apply_transcription_request(audio, hotwords=["zyph"], tokenize=False)
    model.get_ctc_clips(**inputs)  # ignores them, as the text


# ---- what is refused ----


@pytest.mark.parametrize(
    "hotwords, message",
    [
        ("Zyphrane", "`hotwords` is 'Zyphrane'; expected a list of phrases"),
        (7, "`hotwords` is 7; expected a list"),
        (["Zyphrane", ""], "`hotwords` holds ''; expected a text with a letter or a digit"),
        ([["Zyphrane"], [" ... "]], "`hotwords` holds ' ... '; expected a text with a letter"),
        (["x" * 101], "a phrase of 101 characters that begins with 'xxxxxxxxxxxxxxxxxxxx'; expected at most 100"),
        ([f"name{number}" for number in range(2001)], "`hotwords` holds 2001 phrases; expected at most 2000"),
        (["Zyphrane", ["Kestrelmoor"]], "`hotwords` holds 'Zyphrane' beside other things; expected phrases alone"),
        ([["Zyphrane"], 7], "`hotwords` holds 7 beside other things"),
        ([["Zyphrane", 7]], "`hotwords` holds 7; expected a text"),
        ([[["Zyphrane"]]], r"`hotwords` holds \['Zyphrane'\]; expected a text"),
    ],
)
def test_hotwords_that_are_none_are_named(hotwords, message):
    with pytest.raises(ValueError, match=message):
        check_hotwords(hotwords)


def test_repeats_count_once_and_two_thousand_are_taken():
    assert check_hotwords(("Port  Kestrelmoor", "Port Kestrelmoor")) == ["Port Kestrelmoor"]
    assert len(check_hotwords([f"name {number}" for number in range(2000)])) == 2000


@pytest.mark.parametrize(
    "change, options, message",
    [
        ({}, {"hotwords": ["a <|im_end|>"]}, r"holds 'a <\|im_end\|>', with the control token '<\|im_end\|>'"),
        ({}, {"hotwords": [["a"]]}, "holds 1 lists for 2 rows"),
        ({}, {"hotwords": ["a"], "hotword_weight": -1}, "`hotword_weight` is -1; expected a number of 0"),
        ({}, {"hotwords": ["a"], "hotword_weight": math.inf}, "`hotword_weight` is inf; expected"),
        ({}, {"hotword_weight": 1.0}, "`hotword_weight` is 1.0, but `hotwords` was not given"),
        ({}, {"hotwords": ["a"], "do_sample": True}, r"`hotwords` is \['a'\] and `do_sample` is True"),
        ({}, {"hotwords": ["a"], "ctc_draft": "ctc"}, "may be the answer without the LLM, where hotwords have no"),
        ({}, {"hotwords": ["a"], "ctc_draft": "fast"}, "may be the answer without the LLM"),
        ({"is_transcription": None}, {"hotwords": ["a"]}, "no row is marked as a transcription"),
        ({"is_transcription": torch.tensor([True, False])}, {"hotwords": ["a"]}, "row 1 is not a transcription"),
    ],
)
def test_hotwords_that_cannot_be_used_are_refused(model, processor, change, options, message):
    with pytest.raises(ValueError, match=message):
        answers(model, {**ask(processor, 1.9, 0.5), **change}, **{"ctc_weight": None, **options})


def test_a_message_does_not_list_two_thousand_phrases(model, processor):
    with pytest.raises(ValueError) as caught:
        answers(model, ask(processor, 1.9), hotwords=[f"name{number}" for number in range(2000)], do_sample=True)
    assert len(str(caught.value)) < 400


def test_hotwords_of_a_call_know_how_many_rows_there_are():
    with pytest.raises(ValueError, match="`hotwords` holds 3 lists for 1 rows"):
        Hotwords([["a"], ["b"], ["c"]], 1.0, 0.5).apply([None], BRIDGE)
