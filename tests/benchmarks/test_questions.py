"""The benchmark of spoken questions: which answers are right, and who answers what."""

import json
import random
from dataclasses import replace

import numpy as np
import pytest

from soundwave_hf import SoundwaveForConditionalGeneration, SoundwaveProcessor, answer_from_transcripts
from soundwave_hf.evaluation.shipped import EXAMPLES
from soundwave_hf.evaluation.transcribe import conversation, ctc_transcribe
from soundwave_hf.processing.text_soundwave import normalize_text
from tests.modeling.conftest import folder, model, processor  # noqa: F401
from tests.modeling.test_load_adapters import place  # noqa: F401


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


def test_the_model_hears_what_the_llm_knows(benchmark, place, tmp_path, monkeypatch, capsys):  # noqa: F811
    questions = [{"question": f"Question {number}?", "answers": ["yes"]} for number in range(5)]
    heard = []

    def speak(text, number):
        heard.append(text)
        return (3000 * np.random.default_rng(number).standard_normal(8_000)).astype(np.int16), "kokoro test"

    def llm(asked, untouched, tokenizer, questions, batch_size):
        texts = ["Yes." if "3" in one["question"] or "1" in one["question"] else "No." for one in questions]
        return [benchmark.Answer(asked, **one, text=text) for one, text in zip(questions, texts, strict=True)]

    monkeypatch.setattr(benchmark, "read_questions", lambda: questions)
    monkeypatch.setattr(benchmark, "speaker", lambda: speak)
    monkeypatch.setattr(benchmark, "written_answers", llm)
    monkeypatch.setattr(benchmark, "resolve_backbone", lambda name: str(place / "llm"))
    out = tmp_path / "answers.jsonl"
    benchmark.main(["--adapter", str(place / "run"), "--written", "2", "--answers", str(out), "--cascade"])
    assert heard == 2 * ["Question 1?", "Question 3?"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("| untouched LLM, written | 5 | 2 | 40 |")
    assert lines[3].startswith("| untouched LLM, written, first 2 | 2 | 1 |")
    assert lines[4].startswith("| model, written, first 2 | 2 | 1 |")
    assert lines[5].startswith("| model, spoken | 2 | ")
    assert [line.split(" | ")[:2] for line in lines[7:]] == [
        ["| model, spoken, from its transcripts", "2"],
        ["| model, spoken, from its transcripts, kokoro", "2"],
        ["| model with its LoRA, its transcripts", "2"],
        ["| untouched LLM, transcripts of the CTC head", "2"],
        ["| untouched LLM, the questions in the form of CTC targets", "2"],
    ]
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["is_right"] for row in rows[:5]] == [False, True, False, True, False]
    assert [row["voice"] for row in rows] == [None] * 9 + ["kokoro test"] * 4 + [None] * 6
    assert [row["question"] for row in rows[9:]] == 5 * ["Question 1?", "Question 3?"]
    assert [row["heard"] for row in rows[:11]] == [None] * 11
    loaded = (
        SoundwaveForConditionalGeneration.from_pretrained(place / "run", merge_lora=False),
        SoundwaveProcessor.from_pretrained(place / "run"),
    )
    clips = [{"array": speak("", number)[0], "sampling_rate": 16_000} for number in (0, 1)]
    found = answer_from_transcripts(*loaded, [conversation(clip, "") for clip in clips], max_new_tokens=64)
    assert [row["text"] for row in rows[11:13]] == [one.text for one in found]
    assert [row["heard"] for row in rows[11:15]] == 2 * [one.transcripts[0] for one in found]
    assert [row["heard"] for row in rows[15:17]] == ctc_transcribe(*loaded, clips).texts
    assert [row["heard"] for row in rows[17:]] == ["question 1", "question 3"]


def test_a_whole_checkpoint_is_asked_too(benchmark, folder, place, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setattr(benchmark, "read_questions", lambda: [{"question": "Is it?", "answers": ["yes"]}])
    monkeypatch.setattr(benchmark, "speaker", lambda: None)
    monkeypatch.setattr(benchmark, "resolve_backbone", lambda name: str(place / "llm"))
    answer = benchmark.Answer("nobody", "Is it?", ["yes"], "No.")
    monkeypatch.setattr(benchmark, "written_answers", lambda asked, *args: [replace(answer, asked=asked)])
    benchmark.main(["--adapter", str(folder), "--written", "1"])
    assert "| model, written, first 1 | 1 | 0 |" in capsys.readouterr().out
    with pytest.raises(ValueError, match="`merge_lora` is for trained adapters"):
        benchmark.main(["--adapter", str(folder), "--written", "1", "--cascade"])


def test_written_questions_are_answered_in_batches(benchmark, model, processor):  # noqa: F811
    questions = [
        {"question": question, "answers": ["yes"]} for question in ("What?", "Is it a long question?", "Why?")
    ]
    processor.tokenizer.chat_template = processor.chat_template
    together = benchmark.written_answers("model", model, processor.tokenizer, questions, batch_size=3)
    alone = benchmark.written_answers("model", model, processor.tokenizer, questions, batch_size=1)
    assert [one.question for one in together] == [question["question"] for question in questions]
    assert [one.text for one in together] == [one.text for one in alone]
