"""The benchmark of spoken questions: which answers are right, and who answers what."""

import json
import random

import numpy as np
import pytest

from soundwave_hf.evaluation.shipped import EXAMPLES
from soundwave_hf.evaluation.transcribe import ctc_transcribe
from soundwave_hf.processing.text_soundwave import normalize_text
from tests.modeling.conftest import folder, model, processor  # noqa: F401


@pytest.mark.parametrize(
    ("text", "accepted", "right"),
    [
        ("The capital is Bern.", ["bern", "berne"], True),
        ("the capital is BERNE!", ["bern", "berne"], True),
        ("Bernard knows.", ["bern"], False),
        ("It is carbon dioxide (CO2).", ["carbon dioxide"], True),
        ("Carbon, then dioxide.", ["dioxide carbon"], False),
        ("", ["bern"], False),
    ],
)
def test_an_answer_is_right_if_it_contains_an_accepted_one_as_words(benchmark, text, accepted, right):
    assert benchmark.is_right(text, accepted) is right


def test_no_question_is_in_the_training_data(benchmark, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES / "soundwave-small"))
    import chat_questions
    import spoken_questions

    trained = [
        *spoken_questions.capital_questions(),
        *spoken_questions.word_questions(),
        *spoken_questions.calendar_questions(),
        *spoken_questions.arithmetic_questions(250, random.Random(0)),
    ]
    texts = [question for question, _ in trained] + chat_questions.all_questions()
    trained = {normalize_text(text, policy="lower") for text in texts}
    questions = benchmark.read_questions()
    asked = {normalize_text(question["question"], policy="lower") for question in questions}
    assert len(asked) == len(questions) == 300
    assert not asked & trained
    # Nor the same question in other words: the words that tell questions apart.
    frame = "what which who is are was were do does did the a an in on of to people speak spoken call called"
    frame = set(normalize_text(frame, policy="lower").split())
    contents = {frozenset(set(text.split()) - frame) for text in trained}
    asked = {frozenset(set(text.split()) - frame) for text in asked}
    assert not {words for words in asked & contents if len(words) > 1}


def test_no_question_holds_its_answer(benchmark):
    questions = benchmark.read_questions()
    assert [one["question"] for one in questions if benchmark.is_right(one["question"], one["answers"])] == []


def test_answers_are_counted_by_who_was_asked(benchmark):
    answers = [
        benchmark.Answer("LLM", "What?", ["yes"], "Yes."),
        benchmark.Answer("LLM", "What?", ["yes"], "No."),
        benchmark.Answer("model", "What?", ["yes"], "Yes.", voice="flite awb"),
        benchmark.Answer("model", "What?", ["yes"], "yes, it is", voice="kokoro am_echo"),
    ]
    lines = list(benchmark.report(answers))[2:]
    assert lines[0].startswith("| LLM | 2 | 1 | 50 | 0 to 100 |")
    assert lines[1:] == [
        "| model | 2 | 2 | 100 | 100 to 100 |",
        "| model, flite | 1 | 1 | | |",
        "| model, kokoro | 1 | 1 | | |",
    ]


def test_the_model_hears_what_the_llm_knows(benchmark, model, processor, folder, tmp_path, monkeypatch, capsys):  # noqa: F811
    questions = [{"question": f"Question {number}?", "answers": ["yes"]} for number in range(5)]
    heard = []

    def speak(text, number):
        heard.append(text)
        return (3000 * np.random.default_rng(number).standard_normal(8_000)).astype(np.int16), "kokoro test"

    def llm(asked, model, tokenizer, questions, batch_size):
        texts = ["Yes." if "3" in one["question"] or "1" in one["question"] else "No." for one in questions]
        return [benchmark.Answer(asked, **one, text=text) for one, text in zip(questions, texts, strict=True)]

    monkeypatch.setattr(benchmark, "read_questions", lambda: questions)
    monkeypatch.setattr(benchmark, "speaker", lambda: speak)
    monkeypatch.setattr(benchmark, "written_answers", llm)
    out = tmp_path / "answers.jsonl"
    monkeypatch.setattr(benchmark.AutoModelForCausalLM, "from_pretrained", lambda *args, **kwargs: model)
    monkeypatch.setattr(benchmark.AutoTokenizer, "from_pretrained", lambda *args, **kwargs: processor.tokenizer)
    monkeypatch.setattr(benchmark, "resolve_backbone", lambda name: name)
    benchmark.main(["--adapter", str(folder), "--written", "2", "--answers", str(out), "--cascade"])
    assert heard == 2 * ["Question 1?", "Question 3?"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("| untouched LLM, written | 5 | 2 | 40 |")
    assert lines[3].startswith("| untouched LLM, written, first 2 | 2 | 1 |")
    assert lines[4].startswith("| model, written, first 2 | 2 | 1 |")
    assert lines[5].startswith("| model, spoken | 2 | ")
    cascade = [line for line in lines if ", questions " in line]
    assert [line.split(" | ")[1] for line in cascade] == ["2"] * 4
    assert [line.split(", questions")[0] for line in cascade] == ["| untouched LLM"] * 3 + ["| model"]
    assert cascade[0].startswith("| untouched LLM, questions in the form of CTC targets | 2 | 2 |")
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["voice"] for row in rows] == [None] * 9 + ["kokoro test"] * 2 + [None] * 8
    assert [row["question"] for row in rows[11:]] == 4 * ["Question 1?", "Question 3?"]
    assert [row["heard"] for row in rows[:13]] == [None] * 11 + ["question 1", "question 3"]
    clips = [{"array": speak("", number)[0], "sampling_rate": 16_000} for number in (0, 1)]
    assert [row["heard"] for row in rows[13:15]] == ctc_transcribe(model, processor, clips).texts
    assert [row["heard"] for row in rows[15:17]] == [row["heard"] for row in rows[17:]]
    assert [row["is_right"] for row in rows[:5]] == [False, True, False, True, False]


def test_written_questions_are_answered_in_batches(benchmark, model, processor):  # noqa: F811
    questions = [
        {"question": question, "answers": ["yes"]} for question in ("What?", "Is it a long question?", "Why?")
    ]
    processor.tokenizer.chat_template = processor.chat_template
    together = benchmark.written_answers("model", model, processor.tokenizer, questions, batch_size=3)
    alone = benchmark.written_answers("model", model, processor.tokenizer, questions, batch_size=1)
    assert [one.question for one in together] == [question["question"] for question in questions]
    assert [one.text for one in together] == [one.text for one in alone]
