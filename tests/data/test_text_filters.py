"""Filters of transcripts, with values worked out by hand."""

import pytest

from soundwave_hf.data.clean.filter import Clip
from soundwave_hf.data.clean.text_filters import (
    TEXT_FILTERS,
    Characters,
    CharactersPerSecond,
    EmptyText,
    FramesPerCharacter,
    FrequentWord,
    LongWords,
    RepeatedNgrams,
    Words,
    words_of,
)


def clip(text: str, seconds: float = 4.0) -> Clip:
    return Clip(row={"text": text}, text=text, seconds=seconds)


def value(judge, text: str, seconds: float = 4.0):
    (found,) = judge.measure([clip(text, seconds)])
    return found


def test_words_are_lower_case_without_marks_and_characters_where_there_are_no_spaces():
    assert words_of("Don't -- e-mail ME!") == ["don't", "e", "mail", "me"]
    assert words_of("早上好。OK") == ["早", "上", "好", "ok"]
    assert words_of("नमस्ते दुनिया") == ["नमस्ते", "दुनिया"]
    assert words_of("สวัสดี") == ["ส", "วั", "ส", "ดี"]
    assert words_of("안녕 하세요") == ["안녕", "하세요"]
    assert words_of("?!") == []


def test_an_empty_transcript_is_dropped_unless_it_is_empty_on_purpose():
    strict, open_ = EmptyText(), EmptyText(allow_empty=True)
    assert [value(strict, text) for text in ("a1!", "", "  ", "...", "♪")] == [2, 0, 0, 0, 0]
    assert [strict.keeps(number) for number in (2, 0)] == [True, False]
    assert value(open_, "") is None and value(open_, "  ") is None
    assert value(open_, "...") == 0 and not open_.keeps(0)  # marks alone say nothing, and are not empty on purpose


@pytest.mark.parametrize("judge", [each() for each in TEXT_FILTERS[1:]], ids=lambda judge: judge.name)
def test_the_other_filters_do_not_apply_to_an_empty_transcript(judge):
    assert judge.measure([clip(""), clip(" ... "), clip("Good morning, all of you out there today.")])[:2] == [
        None,
        None,
    ]
    assert judge.measure([]) == []


def test_numbers_of_words_and_characters():
    assert value(Words(), "One two, three.") == 3
    assert value(Words(), "早上好") == 3
    assert [Words().keeps(number) for number in (0, 1, 200, 201)] == [False, True, True, False]
    assert value(Characters(), "  One   two. ") == len("One two.") == 8
    assert value(Characters(), "e\u0301") == 1  # "é" in two code points
    assert [Characters(min_characters=3).keeps(number) for number in (2, 3, 1200, 1201)] == [False, True, True, False]


def test_frames_of_10_ms_for_each_character():
    # 4 s are 400 frames; "Good" has 4 characters.
    assert value(FramesPerCharacter(), "Good") == 100 and FramesPerCharacter().keeps(100)
    assert value(FramesPerCharacter(), "Go") == 200 and not FramesPerCharacter().keeps(200)
    assert FramesPerCharacter(max_frames=200).keeps(200)


def test_characters_for_each_second():
    judge = CharactersPerSecond()
    assert value(judge, "ten chars.", seconds=2.0) == 5.0
    assert value(judge, "x", seconds=0.0) is None  # `seconds` judges it
    assert [judge.keeps(rate) for rate in (0.9, 1, 15, 30, 30.1)] == [False, True, True, True, False]


def test_share_of_ngrams_that_occurred_before():
    judge = RepeatedNgrams()
    # 20 words give 17 4-grams, and only two differ: 15 / 17 = 0.88.
    assert value(judge, "Thank you. " * 10) == pytest.approx(15 / 17)
    assert value(judge, "a b c d e f g") == 0 and value(judge, "no no no") == 0
    assert value(judge, "row row row your boat") == 0
    assert value(RepeatedNgrams(words=1), "a a b b") == 0.5
    assert value(judge, "好好好好好好") == pytest.approx(2 / 3)  # characters: 3 4-grams, one differs
    assert judge.keeps(0.3) and not judge.keeps(15 / 17)


def test_the_longest_word_has_so_many_characters():
    judge = LongWords()
    assert value(judge, "a " + "b" * 41 + "!") == 41 and not judge.keeps(41) and judge.keeps(40)
    assert value(judge, "Donaudampfschifffahrtsgesellschaftskapitän") == 42
    assert value(judge, "早上好" * 30) == 1  # a script without spaces has no long words


def test_share_of_the_most_frequent_word():
    judge = FrequentWord()
    assert value(judge, "The the THE the a b c d") == 0.5 and not judge.keeps(0.5) and judge.keeps(0.4)
    assert value(judge, "no no no") is None  # shorter than 8 words
    assert value(FrequentWord(min_words=3), "no no no") == 1
    assert value(judge, "一二三四五六七八") == 1 / 8


def test_values_do_not_depend_on_the_other_clips():
    clips = [clip("One two three four five six seven eight", 3.5), clip(""), clip("Thank you. " * 9, 8.0)]
    for own in TEXT_FILTERS:
        assert own().measure(clips) == [own().measure([each])[0] for each in clips]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Words(max_words=0), ValueError, "`words` has `max_words: 0`; expected 1 or more"),
        (lambda: Words(max_words=2.5), TypeError, "`words` has `max_words: 2.5`; expected a whole number"),
        (
            lambda: Words(min_words=9, max_words=8),
            ValueError,
            "`min_words: 9` above `max_words: 8`, so it would keep no",
        ),
        (lambda: FrequentWord(max_share=1.5), ValueError, "`max_share: 1.5`; expected a number from 0 to 1"),
        (lambda: EmptyText(allow_empty="yes"), TypeError, "`allow_empty: 'yes'`; expected true or false"),
        (lambda: FramesPerCharacter(max_frames=float("nan")), ValueError, "`max_frames: nan`; expected 1 or more"),
        (lambda: FramesPerCharacter(max_frames=True), TypeError, "`max_frames: True`; expected a number"),
    ],
)
def test_wrong_thresholds_are_refused_with_value_and_range(make, error, message):
    with pytest.raises(error, match=message):
        make()
