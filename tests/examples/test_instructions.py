"""Instruction rows: the answers are true, and the demo's question is in none of them."""

import random
from collections import Counter

import instructions
import pytest
from instructions import ASR_QUESTION, TRANSCRIBE_REQUESTS, instruction_rows, spoken_words
from sentences import normalized, number_words
from spoken_questions import CAPITALS, DEMO_QUESTION, spoken_questions


class First(random.Random):
    """Always the first choice and the smallest number."""

    def choice(self, options):
        return options[0]

    def random(self):
        return 0.0

    def randint(self, low, high):
        return low


@pytest.mark.parametrize(
    ("make", "text", "question", "answer"),
    [
        ("first_word", "Please hold.", "What is the first word?", 'The first word is "please".'),
        ("last_word", "You'll see, Mr. Fox!", "What is the last word?", 'The last word is "fox".'),
        (
            "nth_word",
            "Hold the line.",
            "What is the second word?",
            'The speaker says: "Hold the line." The second word is "the".',
        ),
        (
            "word_count",
            "It's twenty-one.",
            "How many words are said?",
            'The speaker says: "It\'s twenty-one." That is two words.',
        ),
        ("word_count", "Goodbye", "How many words are said?", 'The speaker says: "Goodbye" That is one word.'),
        (
            "is_question",
            "Is it?",
            "Is this a question?",
            'The speaker says: "Is it?" Yes, the speaker asks a question.',
        ),
        (
            "mentions_number",
            "Press two or five.",
            "Which numbers are mentioned?",
            'The speaker says: "Press two or five." The numbers are two and five.',
        ),
        (
            "which_key",
            "Please press the star key to go back.",
            "Which key do I press to go back?",
            'The speaker says: "Please press the star key to go back." To go back, press the star key.',
        ),
        (
            "which_key",
            "To cancel, press nine.",
            "Which key do I press to cancel?",
            'The speaker says: "To cancel, press nine." To cancel, press nine.',
        ),
    ],
)
def test_answers_worked_out_by_hand(make, text, question, answer):
    assert getattr(instructions, make)(text, [], First()) == (question, answer)


def test_a_word_is_said_or_not():
    said = [instructions.says_word("The horse sleeps", ["river"], random.Random(seed)) for seed in range(40)]
    for question, answer in said:
        word = question.split('"')[1]
        assert ("Yes, " in answer) == (word in ("horse", "sleeps")) and ("No, " in answer) == (word == "river")
    assert {question.split('"')[1] for question, _ in said} == {"horse", "sleeps", "river"}


def test_there_are_at_least_fifty_wordings_and_the_standard_one_comes_first():
    assert TRANSCRIBE_REQUESTS[0] == ASR_QUESTION == "What does the person say?"
    assert len({normalized(request) for request in TRANSCRIBE_REQUESTS}) >= 50


def test_spoken_questions_are_different_and_never_the_demos():
    pairs = spoken_questions(1000, random.Random(3))
    questions = {normalized(question) for question, _ in pairs}
    assert len(pairs) == len(questions) == 1000
    assert normalized(DEMO_QUESTION) not in questions
    assert not any("france" in question or "paris" in question for question in questions)
    assert len(set(CAPITALS.values())) == len(CAPITALS)  # "X is the capital of which country?" has one answer


def test_sums_are_right():
    signs = {"plus": "+", "minus": "-", "times": "*"}
    numbers = {number_words(number): number for number in range(101)}
    checked = 0
    for _, answer in spoken_questions(1000, random.Random(4)):
        words = answer.rstrip(".").lower().split(" ")
        if len(words) == 5 and words[1] in signs:
            assert eval(f"{numbers[words[0]]} {signs[words[1]]} {numbers[words[2]]}") == numbers[words[4]]
            checked += 1
    assert checked > 300


def test_too_few_spoken_questions_are_refused():
    with pytest.raises(ValueError, match="count arrived as 10"):
        spoken_questions(10, random.Random(0))


def clip(number: int, source: str) -> dict:
    return {
        "audio": f"{number}.flac",
        "text": f"Clip number {number_words(number)} is here.",
        "seconds": 2.0,
        "voice": "slt",
        "source": source,
    }


def test_rows_hold_every_kind_and_keep_the_fields_of_their_clip():
    train = [clip(i, "fortunes") for i in range(60)]
    questions = [{**clip(60, "spoken-question"), "question": "", "answer": "Yes."}]
    train += [clip(i, "human-prompt") for i in range(61, 63)]
    rows = instruction_rows(train, questions, random.Random(0), each=10)
    assert Counter(row["task"] for row in rows)["transcribe"] == 40 + 5 * 2
    assert len(rows) == 40 + 5 * 2 + 10 + 2 + 1
    assert all(
        set(row) == {"audio", "text", "seconds", "voice", "source", "question", "answer", "task"} for row in rows
    )
    assert {row["source"] for row in rows if row["task"] not in ("transcribe", "spoken_question")} == {
        "fortunes",
        "human-prompt",
    }
    assert {row["answer"] for row in rows if row["task"] == "spoken_question"} == {"Yes."}
    assert all(row["answer"] == row["text"] for row in rows if row["task"] == "transcribe")


@pytest.mark.parametrize(
    ("voice", "speaker"),
    [
        ("slt", "woman"),
        ("rms", "man"),
        ("kal16", None),
        ("af_sky", "woman"),
        ("bm_lewis", "man"),
        ("am_eric:0.40+am_onyx:0.60", "man"),
        ("am_eric:0.40+af_sky:0.60", None),
        ("GUYBRUSH", None),
        ("", None),
    ],
)
def test_the_speaker_is_a_woman_or_a_man_or_unknown(voice, speaker):
    assert instructions.speaker_of(voice) == speaker


def test_as_many_women_as_men_are_asked_about():
    voices = ["slt"] * 20 + ["am_eric"] * 7 + ["kal16"] * 9
    clips = [{**clip(number, "fortunes"), "voice": voice} for number, voice in enumerate(voices)]
    rows = instructions.who_speaks_rows(clips, random.Random(0), most=10)
    assert Counter((row["voice"], row["answer"]) for row in rows) == {
        ("slt", "A woman speaks."): 5,
        ("am_eric", "A man speaks."): 5,
    }
    assert len({row["audio"] for row in rows}) == 10
    assert len(instructions.who_speaks_rows(clips, random.Random(0), most=40)) == 14
    every = instruction_rows(clips, [], random.Random(0), each=30)
    asked = [row for row in every if row["task"] != "transcribe"]
    assert Counter(row["task"] for row in asked)["who_speaks"] == 2
    assert len({row["audio"] for row in asked}) == len(asked) == 30


def test_words_keep_apostrophes_and_hyphens():
    assert spoken_words("Don't, e-mail Mr. X!") == ["Don't", "e-mail", "Mr", "X"]
