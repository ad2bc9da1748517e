"""Labelled rows become messages: wordings, forms of answers, options, chain of thought, text-only rows, grounding."""

import random
from collections import Counter

import pytest

from soundwave_hf.data.build.draws import NotBuilt, Shares, cycled
from soundwave_hf.data.build.grounding import Word, draw_phrase, find_phrase, fold, say_intervals, words_of
from soundwave_hf.data.build.tasks import (
    FORMS,
    TASKS,
    draw_options,
    label_of,
    pool_key,
    task_row,
    task_wordings,
)
from soundwave_hf.data.build.wordings import choice_lines, placeholders, read_wordings
from soundwave_hf.data.rows import RowCheck


TIMED = [
    ("Where", 0.1, 0.3),
    ("is", 0.3, 0.4),
    ("the", 0.4, 0.5),
    ("red", 0.5, 0.8),
    ("the", 0.9, 1.0),
    ("end?", 1.0, 1.4),
]
ROW = {
    "audio": "clip.flac",
    "text": "Where is the red the end?",
    "seconds": 1.5,
    "source": "web",
    "translation": "Wo ist das rote Ende?",
    "target_language": "de",
    "words": [{"text": text, "start": start, "end": end} for text, start, end in TIMED],
    "language": "en",
    "gender": "female",
    "emotion": "happy",
    "age": "twenties",
    "entity": "red",
    "entity_kind": "colour",
    "intent": "find_end",
    "speakers": 2,
    "synthesized": True,
    "vocal_sound": "cough",
    "scene": "station",
    "question": "What is asked?",
    "answer": "Where the end is.",
}
POOL = ["happy", "sad", "angry", "calm", "bored"]


def asked(row: dict) -> str:
    return "".join(part.get("text", "<audio>") for part in row["messages"][0]["content"])


def answered(row: dict) -> str:
    return row["messages"][1]["content"][0]["text"]


# ---- wordings ----


def test_there_are_the_fifteen_tasks_of_the_paper():
    assert len(TASKS) == 15


@pytest.mark.parametrize("task", TASKS)
def test_a_task_has_fifty_different_wordings_with_its_placeholders(task):
    wordings, needed = task_wordings(task), set(TASKS[task].placeholders)
    assert len(wordings.wordings) >= 50 and len({fold(text) for text in wordings.wordings}) == len(wordings.wordings)
    assert all(placeholders(text) == needed for text in wordings.wordings)
    assert bool(wordings.sentences) == ("sentence" in TASKS[task].forms)
    assert all("label" in placeholders(text) for text in wordings.sentences)
    assert all(text == text.strip() and text[-1] in '.?!:}"' for text in wordings.wordings)


def test_no_wording_belongs_to_two_tasks():
    counts = Counter(fold(text) for task in TASKS for text in task_wordings(task).wordings)
    assert [text for text, count in counts.items() if count > 1] == []


@pytest.mark.parametrize("task", TASKS)
def test_every_wording_is_used_equally_often(task):
    count = len(task_wordings(task).wordings)
    drawn = Counter(cycled(count, number, 0, task) for number in range(3 * count))
    assert set(drawn.values()) == {3} and len(drawn) == count


def wordings_file(folder, lines: str):
    (folder / "emotion.yaml").write_text(lines, encoding="utf-8")
    return folder


FIFTY = "wordings:\n" + "".join(f"  - Question number {number}?\n" for number in range(50))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (FIFTY.replace("  - Question number 7?\n", ""), "has 49 wordings; expected at least 50"),
        (
            FIFTY + "  - question NUMBER 7!\n",
            "'Question number 7[?]' and 'question NUMBER 7!', which differ only in case",
        ),
        (FIFTY + "  - What is {phrase}?\n", r"has the placeholders \['phrase'\]; expected \[\]"),
        (FIFTY + "  - What is { this?\n", "has a brace without its other half"),
        (FIFTY + "sentences:\n  - It is so.\n", r"has the placeholders \[\]; expected \['label'\]"),
        (FIFTY + "words: 3\n", r"holds \['wordings', 'words'\]"),
        (FIFTY + "  - 12\n", "expected a list of texts"),
        ("wordings: [", "cannot be read as YAML"),
    ],
)
def test_a_bad_file_of_wordings_is_named(tmp_path, lines, message):
    with pytest.raises(ValueError, match=message):
        read_wordings("emotion", (), wordings_file(tmp_path, lines))


def test_a_good_file_of_wordings_is_read(tmp_path):
    assert len(read_wordings("emotion", (), wordings_file(tmp_path, FIFTY)).wordings) == 50


# ---- rows ----


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("form", FORMS)
def test_each_task_and_form_gives_a_row_that_training_takes(task, form):
    if form not in TASKS[task].forms:
        with pytest.raises(ValueError, match=f"The task {task} has no answers of the form '{form}'"):
            task_row(ROW, task, form=form)
        return
    for number in range(60):
        row = task_row(ROW, task, number, form, pool=[*POOL, "male", "two", "real"])
        RowCheck()(row, "row 0")
        assert row["task"] == task and row["source"] == "web" and row["messages"][0]["content"][0] == {"type": "audio"}
        assert "{" not in asked(row) + answered(row)


@pytest.mark.parametrize(
    ("task", "answer"),
    [
        ("asr", "Where is the red the end?"),
        ("translation", "Wo ist das rote Ende?"),
        ("language", "English"),
        ("gender", "female"),
        ("emotion", "happy"),
        ("age", "twenties"),
        ("entity", "red"),
        ("intent", "find_end"),
        ("number_of_speakers", "two"),
        ("synthesized_voice", "synthesized"),
        ("vocal_sound", "cough"),
        ("acoustic_scene", "station"),
        ("chat", "Where the end is."),
        ("spoken_instruction", "Where the end is."),
    ],
)
def test_the_bare_form_is_the_label_alone(task, answer):
    assert answered(task_row(ROW, task)) == answer


def test_a_sentence_holds_the_label():
    answers = {answered(task_row(ROW, "emotion", number, "sentence")) for number in range(40)}
    assert answers == {text.format(label="happy") for text in task_wordings("emotion").sentences}


def test_placeholders_are_filled():
    assert all("German" in asked(task_row(ROW, "translation", number)) for number in range(52))
    assert all("colour" in asked(task_row(ROW, "entity", number)) for number in range(52))
    assert all("What is asked?" in asked(task_row(ROW, "chat", number)) for number in range(52))


def test_a_choice_has_the_right_answer_once_among_four_different_options():
    places = Counter()
    for number in range(400):
        row = task_row(ROW, "emotion", number, "choice", pool=POOL)
        options = [line for line in asked(row).split("\n") if line[1:3] == ". "]
        assert [line[0] for line in options] == list("ABCD")
        labels = [line[3:] for line in options]
        assert len(set(labels)) == 4 and labels.count("happy") == 1 and set(labels) <= set(POOL)
        assert answered(row) in options and answered(row)[3:] == "happy"
        places[answered(row)[0]] += 1
    assert min(places.values()) > 60  # a quarter each is 100


def test_options_that_differ_only_in_case_or_marks_are_one():
    for seed in range(20):
        options, right = draw_options("happy", ["Happy!", "HAPPY", "sad", "Sad."], random.Random(seed))
        assert (
            len(options) == 2
            and options[right] == "happy"
            and {fold(option) for option in options} == {"happy", "sad"}
        )


def test_a_long_list_of_labels_gives_different_options_too():
    pool = [f"label {number}" for number in range(1000)]
    drawn = {tuple(sorted(draw_options("label 5", pool, random.Random(seed))[0])) for seed in range(50)}
    assert len(drawn) == 50 and all(len(set(options)) == 4 and "label 5" in options for options in drawn)
    alike = ["yes", "no", *(f"yes{'!' * number}" for number in range(1, 100))]
    assert sorted(draw_options("yes", alike, random.Random(0))[0]) == ["no", "yes"]


@pytest.mark.parametrize("pool", [[], ["happy"], ["Happy.", "happy"]])
def test_a_choice_needs_another_label(pool):
    with pytest.raises(NotBuilt, match="has the label 'happy', and the only options are"):
        task_row(ROW, "emotion", form="choice", pool=pool)


def test_labels_of_marks_alone_are_told_apart():
    assert sorted(draw_options("?", ["?", "!"], random.Random(0))[0]) == ["!", "?"]


def test_chain_of_thought_quotes_the_transcript_first():
    assert answered(task_row(ROW, "emotion", chain_of_thought=True)) == (
        'The speaker says: "Where is the red the end?" happy'
    )
    row = task_row(ROW, "spoken_instruction", chain_of_thought=True)
    assert answered(row) == 'The speaker says: "Where is the red the end?" Where the end is.'


@pytest.mark.parametrize("task", ["asr", "vocal_sound", "acoustic_scene", "number_of_speakers"])
def test_a_task_for_which_a_transcript_is_no_help_has_no_chain_of_thought(task):
    with pytest.raises(ValueError, match="has no chain of thought"):
        task_row(ROW, task, chain_of_thought=True)


def test_chain_of_thought_needs_a_transcript():
    with pytest.raises(NotBuilt, match="has `text` None; the task emotion quotes the transcript"):
        task_row({"audio": "a.wav", "emotion": "sad"}, "emotion", chain_of_thought=True)


def test_a_text_only_row_has_the_transcript_in_place_of_the_clip():
    row = task_row(ROW, "translation", text_only=True)
    RowCheck()(row, "row 0")
    assert not {"audio", "text", "seconds"} & row.keys()
    assert asked(row).startswith('The speaker says: "Where is the red the end?"\n') and "German" in asked(row)
    assert asked(task_row(ROW, "spoken_instruction", text_only=True)) == "Where is the red the end?"


def test_a_row_without_a_clip_is_text_only():
    row = task_row({"question": "What is two plus two?", "answer": "Four."}, "chat", 5)
    assert (asked(row), answered(row)) == ("What is two plus two?", "Four.")
    RowCheck()(row, "row 0")


@pytest.mark.parametrize("task", ["asr", "emotion", "vocal_sound", "grounding"])
def test_a_task_about_sound_is_never_text_only(task):
    with pytest.raises(ValueError, match="needs the sound"):
        task_row(ROW, task, text_only=True)


def test_half_of_the_spoken_instructions_are_the_clip_alone():
    alone = sum(asked(task_row(ROW, "spoken_instruction", number)) == "<audio>" for number in range(400))
    assert 150 < alone < 250


@pytest.mark.parametrize(
    ("task", "change", "message"),
    [
        ("emotion", {"emotion": None}, "has no `emotion`, which the task emotion needs. Its columns are"),
        ("emotion", {"emotion": ""}, "has no `emotion`"),
        ("emotion", {"emotion": " "}, "`emotion` of A row is ' '; expected a label"),
        ("emotion", {"emotion": ["a"]}, "expected a label"),
        ("emotion", {"audio": None}, "has no `audio`, which the task emotion needs"),
        ("translation", {"target_language": None}, "has no `target_language`"),
        ("entity", {"entity_kind": " "}, "has no value for the placeholder {kind}"),
        ("chat", {"question": None}, "has no `question`"),
        ("number_of_speakers", {"speakers": 0}, "is 0; expected a number of speakers from 1 to 10"),
        ("number_of_speakers", {"speakers": "many"}, "expected a number of speakers"),
        ("synthesized_voice", {"synthesized": "maybe"}, "expected true for a synthesized voice"),
        ("language", {"language": "und"}, "names no language"),
        ("grounding", {"words": None}, "has `words` None; expected a list"),
        ("grounding", {"words": [{"text": "a", "start": 1, "end": 0.5}]}, "has the times 1 and 0.5"),
        ("asr", {"text": ""}, "has no `text`"),
    ],
)
def test_a_row_without_its_label_says_so(task, change, message):
    with pytest.raises(NotBuilt, match=message):
        task_row(ROW | change, task)


def test_an_unknown_task_is_named():
    with pytest.raises(ValueError, match="The task is 'emotions'; expected one of asr, translation"):
        task_row(ROW, "emotions")


@pytest.mark.parametrize(
    ("task", "value", "label"),
    [
        ("language", "pt-BR", "Portuguese"),
        ("language", "Klingon", "Klingon"),
        ("number_of_speakers", "3", "three"),
        ("number_of_speakers", "Three", "three"),
        ("synthesized_voice", False, "real"),
        ("synthesized_voice", "True", "synthesized"),
        ("age", 25, "25"),
    ],
)
def test_values_become_labels(task, value, label):
    assert label_of(ROW | {TASKS[task].columns[0]: value}, task) == label


def test_options_for_an_entity_are_of_its_kind():
    assert pool_key(ROW, "entity") == "colour" and pool_key(ROW, "emotion") is None


def test_there_are_several_ways_to_introduce_options():
    assert len(choice_lines()) >= 10


# ---- grounding ----


WORDS = [Word(*entry) for entry in TIMED]


def test_a_phrase_has_an_interval():
    assert find_phrase(WORDS, "is the RED!") == [(0.3, 0.8)] and find_phrase(WORDS, "end") == [(1.0, 1.4)]


def test_a_phrase_that_is_said_twice_has_two_intervals():
    assert find_phrase(WORDS, "the") == [(0.4, 0.5), (0.9, 1.0)]
    assert say_intervals([(0.4, 0.5), (0.9, 1)]) == "0.40 to 0.50 seconds and 0.90 to 1.00 seconds"


def test_repeats_of_one_word_do_not_overlap():
    words = [Word("no", number, number + 1) for number in range(3)]
    assert find_phrase(words, "no no") == [(0, 2)]


def test_a_phrase_that_is_not_said_has_none():
    assert find_phrase(WORDS, "red end") == [] and find_phrase(WORDS, "blue") == []


def test_words_are_told_apart_by_vowel_signs():
    assert find_phrase([Word("कि", 0, 1), Word("की", 1, 2)], "की") == [(1, 2)]


def test_a_phrase_of_a_script_without_spaces_is_found_in_its_characters():
    words = [Word(letter, number, number + 1) for number, letter in enumerate("我很好。")]
    assert find_phrase(words[:3], "很好") == [(1, 3)]
    assert draw_phrase(words[1:3], random.Random(3)) in ("很", "好", "很好")


def test_a_word_without_times_is_not_asked_for():
    words = [Word("a", None, None), Word("b", 1.0, 2.0), Word("c", None, None)]
    assert {draw_phrase(words, random.Random(seed)) for seed in range(20)} == {"b"}
    with pytest.raises(NotBuilt, match="'b c' is said, and its words have no times"):
        find_phrase(words, "b c")
    with pytest.raises(NotBuilt, match="None of the words has times"):
        draw_phrase(words[:1], random.Random(0))


def test_drawn_phrases_are_in_the_words():
    drawn = {draw_phrase(WORDS, random.Random(seed)) for seed in range(200)}
    assert all(find_phrase(WORDS, phrase) for phrase in drawn) and {"end", "the", "is the red"} <= drawn


def test_a_phrase_has_words():
    with pytest.raises(ValueError, match="The phrase is '!'"):
        find_phrase(WORDS, "!")


@pytest.mark.parametrize(
    "entry",
    [{"text": "a", "start": 0, "end": 1}, {"word": "a", "start": 0.0, "end": 1}, {"text": " a", "timestamp": (0, 1)}],
)
def test_words_come_in_three_forms(entry):
    assert words_of({"words": [entry]}, "row 1") == [Word("a", 0.0, 1.0)]


def test_some_grounding_rows_ask_for_a_phrase_that_is_not_said():
    other = {"words": [{"text": "giraffe", "start": 0, "end": 1}]}
    rows = [task_row(ROW, "grounding", number, rng=random.Random(number), other=other) for number in range(300)]
    absent = [row for row in rows if "giraffe" in asked(row)]
    assert 15 < len(absent) < 50 and {answered(row) for row in absent} == {"It is not said."}
    row = next(
        r
        for n in range(300)
        if "giraffe" in asked(r := task_row(ROW, "grounding", n, "sentence", rng=random.Random(n), other=other))
    )
    assert "giraffe" in answered(row) and "not" in answered(row)


def test_grounding_options_are_different_intervals():
    for number in range(100):
        row = task_row(ROW, "grounding", number, "choice")
        options = [line[3:] for line in asked(row).split("\n") if line[1:3] == ". "]
        assert 2 <= len(options) <= 4 and len(set(options)) == len(options) and answered(row)[3:] in options


# ---- draws ----


def test_shares_are_exact_in_a_thousand_draws():
    shares = Shares({"a": 3, "b": 1}, 0, "x")
    drawn = [shares.deal(number) for number in range(2000)]
    assert Counter(choice for choice, _ in drawn[:1000]) == {"a": 750, "b": 250}
    assert sorted(rank for choice, rank in drawn if choice == "b") == list(range(500))
    assert 23 <= sum(choice == "b" for choice, _ in drawn[:100]) <= 27  # spread over the block
    gaps = {number % 4 for number, (choice, _) in enumerate(drawn) if choice == "b"}
    assert gaps == {0, 1, 2, 3}  # without a period, which the data may have too


def test_draws_depend_on_seed_and_number_alone():
    assert [Shares({1: 1, 2: 1}, 0).deal(n) for n in (5, 1005, 5)] == [
        Shares({1: 1, 2: 1}, 0).deal(n) for n in (5, 1005, 5)
    ]
    assert [cycled(9, n, 0) for n in range(9)] != [cycled(9, n, 1) for n in range(9)]


@pytest.mark.parametrize("weights", [{}, {"a": 0}, {"a": -1}, {"a": True}, {"a": "1"}, {"a": float("inf")}])
def test_a_weight_is_a_number_over_zero(weights):
    with pytest.raises(ValueError, match="give at least one choice, each with a number over 0"):
        Shares(weights)


def test_a_tiny_weight_is_refused():
    with pytest.raises(ValueError, match="The weight of `b` is 1 of 5001, less than a thousandth"):
        Shares({"a": 5000, "b": 1})
