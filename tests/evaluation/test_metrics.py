import random

import jiwer
import numpy as np
import pandas as pd
import pytest
from datasets import Dataset

from soundwave_hf.evaluation.metrics import (
    Edit,
    ErrorCounts,
    bootstrap_interval,
    character_error_rate,
    collapse_ctc,
    contained_answer,
    contained_answers,
    edits_by_clip,
    error_counts,
    exact_match,
    exact_matches,
    main_metric,
    paired_bootstrap,
    positions_per_second,
    scoring_language,
    text_normalizer,
    word_error_rate,
)


def test_word_error_rate_counts_over_the_whole_set():
    # 1 substitution of 2 words, then 1 insertion over 4 words: 2 / 6. The mean over clips would be 0.375.
    references = ["good morning", "the door is open"]
    hypotheses = ["good evening", "the door is wide open"]
    assert word_error_rate(references, hypotheses) == pytest.approx(2 / 6)


def test_a_deleted_word_and_an_empty_hypothesis_are_errors():
    assert word_error_rate(["one fine day", "yes"], ["fine day", ""]) == pytest.approx(2 / 4)


def test_inventing_more_than_was_said_exceeds_one():
    assert word_error_rate(["stop"], ["please stop it now"]) == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("reference", "hypothesis"),
    [
        ("The colour, please!", "the color please"),  # case, punctuation, spelling
        ("I'm twenty-five", "i am 25"),  # contraction, number
        ("Mr. Smith [laughs] left.", "mister smith left"),  # title, what stands in brackets
        ("Um, well", "well"),  # fillers
    ],
)
def test_whispers_normaliser_hides_what_is_no_word_error(reference, hypothesis):
    assert word_error_rate([reference], [hypothesis]) == 0.0


def test_a_reference_without_words_still_counts_what_was_invented_for_it():
    assert word_error_rate(["um", "all right"], ["well", "all right"]) == pytest.approx(1 / 2)


def test_word_error_rate_refuses_sets_that_differ_in_length():
    with pytest.raises(ValueError, match="1 hypotheses arrived for 2 references"):
        word_error_rate(["a", "b"], ["a"])


def test_word_error_rate_refuses_references_without_words():
    with pytest.raises(ValueError, match="None of the 1 references has a word"):
        word_error_rate(["[music]"], ["hello"])


def test_positions_per_second_weighs_clips_by_their_length():
    assert positions_per_second([10, 20], [2.0, 8.0]) == pytest.approx(3.0)


def test_positions_per_second_refuses_no_speech():
    with pytest.raises(ValueError, match="0 s long"):
        positions_per_second([], [])


def test_collapse_ctc_merges_repeats_and_keeps_those_a_blank_divides():
    assert collapse_ctc([9, 4, 4, 9, 4, 7, 7, 9], blank_id=9) == [4, 4, 7]
    assert collapse_ctc([9, 9], blank_id=9) == []


def test_errors_are_counted_by_kind():
    # morning -> evening (1 substitution); "the" left out (1 deletion); two words for silence (2 insertions).
    references = ["good morning", "the door is open", ""]
    hypotheses = ["good evening", "door is open", "thank you"]
    counts = error_counts(references, hypotheses)
    assert counts == ErrorCounts(substitutions=1, deletions=1, insertions=2, reference_length=6)
    assert (counts.errors, counts.rate) == (4, pytest.approx(4 / 6))


def test_counts_and_rates_are_those_of_jiwer():
    draw = random.Random(0)
    words = ["one", "fish", "red", "blue", "sea", ""]
    references = [" ".join(draw.choices(words, k=6)) for _ in range(40)]
    hypotheses = [" ".join(draw.choices(words, k=5)) for _ in range(40)]
    normalise = text_normalizer()
    said, found = [list(map(normalise, texts)) for texts in (references, hypotheses)]
    expected = jiwer.process_words(said, found)
    counts = error_counts(references, hypotheses)
    assert counts.substitutions == expected.substitutions
    assert (counts.deletions, counts.insertions) == (expected.deletions, expected.insertions)
    assert word_error_rate(references, hypotheses) == pytest.approx(expected.wer)
    assert character_error_rate(references, hypotheses) == pytest.approx(jiwer.cer(said, found))


def test_each_clip_says_which_words_differ():
    ((counts, edits),) = edits_by_clip(["please open the red door today"], ["please close the door today now"])
    assert counts == ErrorCounts(substitutions=1, deletions=1, insertions=1, reference_length=6)
    assert edits == [Edit("substitute", "open", "close"), Edit("delete", "red", ""), Edit("insert", "", "now")]


def test_case_and_marks_count_in_the_text_as_written():
    # Of 4 words as written, `hello` differs from `Hello,` and `paul` from `Paul.`; normalised, none differs.
    references, hypotheses = ["Hello, I am Paul."], ["hello I am paul"]
    assert word_error_rate(references, hypotheses) == 0
    assert word_error_rate(references, hypotheses, normalize=False) == pytest.approx(2 / 4)
    # 17 characters: H -> h and P -> p differ, the comma and the full stop are left out.
    assert character_error_rate(references, hypotheses, normalize=False) == pytest.approx(4 / 17)


def test_as_written_takes_equal_unicode_and_any_blank_for_equal():
    assert word_error_rate(["caf\u00e9  au\tlait"], ["cafe\u0301 au lait"], normalize=False) == 0


def test_character_error_rate_counts_the_space_between_words():
    # "an ice" (6 characters) -> "a nice": one space moves, a deletion and an insertion.
    assert character_error_rate(["an ice"], ["a nice"]) == pytest.approx(2 / 6)


@pytest.mark.parametrize(
    ("language", "reference", "hypothesis", "rate"),
    [
        ("zh", "你好，世界。", "你好世届", 1 / 4),  # the comma is no character, nor is the blank in its place
        ("Japanese", "猫 が いる", "猫がいた", 1 / 4),
        ("th", "ที่", "ที", 1 / 3),  # a tone mark is a character of its own
        ("de", "Straße", "Strasse", 2 / 6),
    ],
)
def test_character_error_rate_in_other_languages(language, reference, hypothesis, rate):
    assert character_error_rate([reference], [hypothesis], language) == pytest.approx(rate)


@pytest.mark.parametrize(
    ("language", "metric"),
    [
        (None, "wer"),
        ("en", "wer"),
        ("German", "wer"),
        ("ja", "cer"),
        ("zh-CN", "cer"),
        ("Thai", "cer"),
        ("auto", "wer"),
    ],
)
def test_languages_without_spaces_are_scored_by_characters(language, metric):
    assert main_metric(language) == metric


def test_other_languages_keep_what_the_english_normaliser_would_change():
    assert word_error_rate(["colour"], ["color"]) == 0
    assert word_error_rate(["colour"], ["color"], "de") == 1
    assert word_error_rate(["Guten Tag!"], ["guten tag"], "de") == 0


def test_vowel_signs_are_part_of_a_word():
    # Whisper's own basic normaliser drops them, and takes Hindi `की` (of, feminine) and `का` (masculine) for equal.
    assert word_error_rate(["राम की"], ["राम का"], "hi") == pytest.approx(1 / 2)


@pytest.mark.parametrize(
    ("given", "code"),
    [
        *((None, "en"), ("en-US", "en"), ("English", "en"), ("PT_br", "pt"), ("mandarin", "zh"), ("auto", "auto")),
        *(("nb", "no"), ("iw", "he"), ("cmn", "zh"), ("jv", "jw"), ("Filipino", "fil"), ("Chinese (Mainland)", "zh")),
    ],
)
def test_languages_are_named_as_people_write_them(given, code):
    assert scoring_language(given) == code


def test_an_unknown_language_is_refused():
    with pytest.raises(ValueError, match="Unsupported language: 'englich'. Did you mean 'english'"):
        word_error_rate(["a"], ["a"], "englich")


FORMS = {"list": list, "tuple": tuple, "array": np.array, "series": pd.Series, "generator": iter}
FORMS["column"] = lambda texts: Dataset.from_dict({"text": texts})["text"]


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_texts_may_be_any_column(form):
    said, found = ["good morning", "yes"], ["good evening", "yes"]
    assert word_error_rate(form(said), form(found)) == pytest.approx(1 / 3)
    assert character_error_rate(form(said), form(found)) == pytest.approx(error_counts(said, found, "characters").rate)
    assert [len(edits) for _, edits in edits_by_clip(form(said), form(found))] == [1, 0]
    assert exact_matches(form(said), form(found)) == contained_answers(form(said), form(found)) == [False, True]
    assert error_counts(form([]), form([])) == ErrorCounts()


@pytest.mark.parametrize("score", [word_error_rate, character_error_rate, exact_match, contained_answer])
@pytest.mark.parametrize(
    ("texts", "name"),
    [({"a": "yes"}, "dict"), ({"yes"}, "set"), (pd.DataFrame({"yes": ["no"]}), "DataFrame"), (None, "NoneType")],
)
def test_texts_without_an_order_are_refused(score, texts, name):
    with pytest.raises(ValueError, match=f"`hypotheses` is a {name}; expected a list with one text for each clip"):
        score(["yes"], texts)


def test_numbers_of_clips_may_be_any_column_too():
    for form in (list, np.array, pd.Series, iter):
        assert positions_per_second(form([10, 20]), form([2.0, 8.0])) == pytest.approx(3.0)
        assert bootstrap_interval(form([1, 1]), form([4, 4])) == (0.25, 0.25)


def test_one_text_in_place_of_a_list_is_refused():
    with pytest.raises(ValueError, match="`references` is one text, `good morning`"):
        word_error_rate("good morning", "good evening")


def test_a_missing_text_is_refused():
    with pytest.raises(ValueError, match=r"hypotheses\[1\] is None; expected a string"):
        error_counts(["a", "b"], ["a", None])


def test_an_unknown_unit_is_refused():
    with pytest.raises(ValueError, match="The unit is `word`; expected one of words, characters"):
        error_counts(["a"], ["a"], unit="word")


@pytest.mark.parametrize(
    ("reference", "answer", "exact", "contained"),
    [
        ("Paris", "paris.", True, True),
        ("Paris", "The capital of France is Paris.", False, True),
        ("art", "a party", False, False),  # words, not pieces of words
        ("New York", "York is new", False, False),
        ("twenty one", "21", True, True),
        ("(A)", "(B)", False, False),  # the normaliser drops what stands in brackets
        ("(A)", "(a)", True, True),
        ("", "", True, True),
        ("", "something", False, False),
        ("something", "", False, False),
    ],
)
def test_an_answer_is_the_reference_or_holds_it(reference, answer, exact, contained):
    assert exact_matches([reference], [answer]) == [exact]
    assert contained_answers([reference], [answer]) == [contained]


def test_an_answer_without_spaces_is_found_within_a_sentence():
    assert contained_answers(["巴黎"], ["首都是巴黎。"], "zh") == [True]


def test_answers_are_counted_over_the_set():
    references, answers = ["Paris", "Rome", "Bonn", "Oslo"], ["Paris", "It is Rome.", "Berlin", "Oslo!"]
    assert exact_match(references, answers) == pytest.approx(2 / 4)
    assert contained_answer(references, answers) == pytest.approx(3 / 4)


def test_a_share_of_no_answers_is_refused():
    with pytest.raises(ValueError, match="No answer arrived"):
        exact_match([], [])


def test_the_interval_of_equal_clips_is_the_rate():
    assert bootstrap_interval([1, 1, 1], [4, 4, 4]) == (0.25, 0.25)


def test_the_interval_of_many_clips_is_that_of_theory():
    # 400 one-word clips, a quarter of them wrong: 0.25 +- 1.96 * sqrt(0.25 * 0.75 / 400) = 0.25 +- 0.0424.
    low, high = bootstrap_interval([1, 0, 0, 0] * 100, [1] * 400, resamples=4_000)
    assert low == pytest.approx(0.25 - 0.0424, abs=0.006)
    assert high == pytest.approx(0.25 + 0.0424, abs=0.006)


def test_the_interval_is_of_clips_and_not_of_words():
    # The same 100 errors in 400 words; 10 clips that are all wrong or all right say less than 400 words of their own.
    few = bootstrap_interval([40, 40, 20, 0, 0, 0, 0, 0, 0, 0], [40] * 10)
    many = bootstrap_interval([1, 0, 0, 0] * 100, [1] * 400)
    assert few[1] - few[0] > 3 * (many[1] - many[0])


def test_the_interval_is_the_same_on_each_call():
    clips = ([1, 0, 2, 0, 3], [4, 5, 6, 7, 8])
    assert bootstrap_interval(*clips) == bootstrap_interval(*clips)
    assert bootstrap_interval(*clips) != bootstrap_interval(*clips, seed=1)


def test_a_silent_clip_adds_its_insertions():
    low, high = bootstrap_interval([2, 0, 0, 0], [0, 4, 4, 4])
    assert low == 0 and high > 2 / 12


@pytest.mark.parametrize(
    ("errors", "lengths", "message"),
    [
        ([1], [4], "needs two clips or more, and 1 arrived"),
        ([1, 2], [0, 0], "None of the 2 references has a word"),
        ([1, 2, 3], [4, 4], "3 error counts arrived for 2 lengths"),
    ],
)
def test_an_interval_of_too_little_is_refused(errors, lengths, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(errors, lengths)


def test_equal_systems_do_not_differ():
    found = paired_bootstrap([1, 0, 2], [1, 0, 2], [4, 4, 4])
    assert (found.value, found.low, found.high, found.p_value) == (0, 0, 0, 1)


def test_the_p_value_of_three_clips_that_all_get_better_is_a_quarter():
    # Of the 8 ways to swap, 2 give a difference as large: all, and none.
    found = paired_bootstrap([0, 0, 0], [1, 1, 1], [4, 4, 4], resamples=8_000)
    assert (found.value, found.low, found.high) == (-0.25, -0.25, -0.25)
    assert found.p_value == pytest.approx(2 / 8, abs=0.02)


def test_a_paired_comparison_sees_what_two_intervals_hide():
    # Clips differ much, the systems by one error on each of 20 clips.
    errors = np.arange(20)
    found = paired_bootstrap(errors, errors + 1, [20] * 20)
    assert found.value == pytest.approx(-1 / 20)
    assert found.high < 0 and found.p_value < 0.001
    first, second = bootstrap_interval(errors, [20] * 20), bootstrap_interval(errors + 1, [20] * 20)
    assert first[1] > second[0]  # the intervals of the two overlap


def test_a_difference_that_chance_gives_has_a_large_p_value():
    found = paired_bootstrap([1, 0] * 20, [0, 1] * 20, [4] * 40)
    assert found.value == 0 and found.low < 0 < found.high and found.p_value > 0.9


def test_texts_can_be_compared_in_the_form_of_ctc_targets():
    said, found = ["Am 3. Mai."], ["am dritten MAI"]
    assert word_error_rate(said, found, "de", normalize="lower_spelled") == 0
    assert word_error_rate(said, found, "de", normalize="lower") == 1 / 3  # "3" is not "dritten"
    assert word_error_rate(said, found, "de", normalize=False) == 1
    assert character_error_rate(["你 好"], ["你好"], "zh", normalize="lower") == 0
    with pytest.raises(ValueError, match="`ctc_text` is 'whisper'; expected one of 'as_written', 'lower'"):
        word_error_rate(said, found, normalize="whisper")
