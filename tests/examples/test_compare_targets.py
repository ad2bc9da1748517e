"""What the comparison of CTC targets counts."""

import json

import pytest
from compare_targets import (
    case_and_marks,
    common_prefix,
    matched_words,
    print_table,
    score_words,
    written_draft,
)


def test_words_in_common_keep_their_order():
    assert matched_words(["a", "b", "c"], ["b", "a", "c"]) in ([(0, 1), (2, 2)], [(1, 0), (2, 2)])
    assert matched_words(["a"], ["b"]) == []


@pytest.mark.parametrize(
    ("first", "second", "expected"), [([1, 2, 3], [1, 2, 4], 2), ([1], [2], 0), ([1, 2], [1], 1), ([], [1], 0)]
)
def test_a_common_prefix_ends_at_the_first_difference(first, second, expected):
    assert common_prefix(first, second) == expected


def test_case_and_marks_are_those_of_words_that_were_heard_right():
    # "He" and "was" are as written, "not," lacks its comma; "Young" was heard as another word.
    assert case_and_marks(["He was not, Young."], ["He was not yours."]) == pytest.approx(2 / 3)
    assert case_and_marks(["Wait -- what?"], ["Wait what?"]) == 1


def test_words_of_a_draft_are_accepted_up_to_the_first_other_one_and_where_they_agree():
    scores = score_words(["He was not young.", "Yes."], ["he is not young", "yes"])
    assert scores == {"first": pytest.approx(2 / 5), "each": pytest.approx(4 / 5)}


def test_a_draft_is_written_as_a_sentence():
    assert (written_draft("he was not"), written_draft("")) == ("He was not.", "")


def test_scores_of_two_runs_stand_side_by_side(tmp_path, capsys):
    for name, wer in (("a", 0.25), ("b", 0.5)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "head_scores.json").write_text(json.dumps({"run": name, "human": {"wer": wer}}))
    print_table([str(tmp_path / "a"), str(tmp_path / "b")])
    assert capsys.readouterr().out == "| run | a | b |\n|---|---|---|\n| human wer | 0.250 | 0.500 |\n"
    with pytest.raises(FileNotFoundError, match="c` holds no scores: run `compare_targets.py head` or `llm` on it"):
        print_table([str(tmp_path / "c")])
