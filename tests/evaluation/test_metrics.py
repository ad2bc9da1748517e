import pytest

from soundwave_hf.evaluation.metrics import collapse_ctc, positions_per_second, word_error_rate


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
