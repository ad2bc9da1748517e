"""Which clips each stage hears, and the everyday questions: `training_sets.py`, `chat_questions.py`."""

import itertools
import json
import random
from collections import Counter

import chat_questions
import numpy as np
import pytest
import soundfile
import training_sets
from natural_texts import Text
from sentences import LEAK_WORDS, HeldOut, normalized

from soundwave_hf.data.clean.settings import read_filters, settings_of
from soundwave_hf.data.manifest import read_rows, write_rows
from soundwave_hf.evaluation.shipped import EXAMPLES


def test_a_text_is_in_one_stage_in_every_voice():
    texts = [f"Sentence number {number}." for number in range(400)]
    first = [training_sets.split_of(text) for text in texts]
    assert first == [training_sets.split_of(text) for text in texts]
    assert 160 < first.count("stage1") < 240


def test_the_filters_for_leaks_look_for_nothing_else():
    filters, comparisons = read_filters(str(EXAMPLES / "soundwave-small" / "leaks.yaml"))
    on = {name: keys for name, keys in settings_of(filters, comparisons).items() if keys is not False}
    assert on == {"leaked_text": {"words": LEAK_WORDS}}


def test_quiet_sounds_are_short_and_differ():
    sounds = [training_sets.quiet_sound(np.random.default_rng(number)) for number in range(20)]
    assert all(16_000 <= len(sound) <= 8 * 16_000 and sound.dtype == np.int16 for sound in sounds)
    assert any(not sound.any() for sound in sounds) and sum(sound.any() for sound in sounds) > 10


def test_the_stages_share_no_text(monkeypatch, tmp_path):
    monkeypatch.setenv("SOUNDWAVE_HOME", str(tmp_path))
    monkeypatch.setattr(training_sets, "NO_SPEECH_CLIPS", 2)
    monkeypatch.setattr(training_sets, "common_words", lambda: ["clip"])  # of `wordfreq`, which tests do not install
    folder = training_sets.small_folder() / "built"
    folder.mkdir(parents=True)
    rows = []
    for number in range(24):
        audio = f"{number}.flac"
        soundfile.write(folder / audio, np.zeros(16_000, dtype=np.int16), 16_000)
        source = "question" if number > 20 else "wordnet"
        text = f"The clip has the number {number}."
        rows.append({"audio": audio, "text": text, "seconds": 1.0, "voice": "af_sky", "source": source})
    write_rows(folder / "kokoro-00000.jsonl", rows)
    answers = [{"question": rows[21]["text"], "answer": "Yes."}, {"question": rows[22]["text"], "answer": "No."}]
    answers.append({"question": "What is ice?", "answer": "Cold water."})
    answered = training_sets.small_folder() / "answers.jsonl"
    answered.write_text("".join(json.dumps(row) + "\n" for row in answers), encoding="utf-8")
    training_sets.write(seed=0)
    first, second, instruct, questions = (
        [json.loads(line) for line in (training_sets.small_folder() / f"{name}.jsonl").read_text().splitlines()]
        for name in ("stage1", "stage2", "instruct", "questions")
    )
    spoken = [{row["text"] for row in part if row["text"]} for part in (first, second)]
    assert not spoken[0] & spoken[1] and len(spoken[0] | spoken[1]) == 21
    assert [sum(row["text"] == "" for row in part) for part in (first, second)] == [2, 2]
    assert sorted(row["text"] for row in questions) == sorted(row["text"] for row in rows[21:])
    # A question whose answer is known is asked in speech and in text; one without an answer is not asked.
    assert [row["answer"] for row in instruct if row.get("text") == rows[21]["text"]] == ["Yes."]
    assert [row["answer"] for row in instruct if row.get("text") == rows[22]["text"]] == ["No."]
    assert {row["question"] for row in instruct if "audio" not in row} == {row["question"] for row in answers}
    assert not any(row.get("text") == rows[23]["text"] for row in instruct)


def test_chat_questions_differ_and_end_the_list():
    questions = chat_questions.chat_questions(500, random.Random(0))
    assert len(set(questions)) == 500
    with pytest.raises(ValueError, match="`count` is 100000, but there are only"):
        chat_questions.chat_questions(100_000, random.Random(0))


@pytest.mark.parametrize(
    "text, is_finished, answer",
    [
        ("The opposite of hot is cold.", True, "The opposite of hot is cold."),
        ("Madrid", True, "Madrid"),
        ("It is Mars. It is red and has", False, "It is Mars."),
        ("It is 3.5 times as", False, ""),
        ("There are two:\n\n1. Gold", True, ""),
        ("It is Mars.\nIt is", False, "It is Mars."),
        ('He said "stop." Then he', False, 'He said "stop."'),
        ("It is by Dr. Seuss and", False, ""),
        ("1. Gold 2. Silver 3", False, ""),
    ],
)
def test_answers_end_with_a_sentence(text, is_finished, answer):
    assert chat_questions.whole_sentences(text, is_finished) == answer


def test_answers_of_a_stopped_start_are_kept(monkeypatch, tmp_path):
    asked = []

    def answers(questions, stop_after=None):
        for number, question in enumerate(questions):
            if number == stop_after:
                raise KeyboardInterrupt
            asked.append(question)
            yield {question: f"About {question}" if question != "c" else ""}

    monkeypatch.setattr(chat_questions, "text_answers", lambda questions: answers(questions, stop_after=3))
    with pytest.raises(KeyboardInterrupt):
        chat_questions.all_answers(["a", "b", "c", "d", "e"], tmp_path / "part.jsonl")
    monkeypatch.setattr(chat_questions, "text_answers", answers)
    found = chat_questions.all_answers(["e", "d", "b", "c"], tmp_path / "part.jsonl")
    assert list(found.items()) == [("e", "About e"), ("d", "About d"), ("b", "About b"), ("c", "")]
    assert asked == ["a", "b", "c", "e", "d"]  # each once, the one without an answer too


def test_each_question_is_asked_once_and_a_fact_keeps_its_answer():
    pairs = training_sets.question_pairs(seed=0)
    assert len({question for question, _ in pairs}) == len(pairs) > 3_000
    assert dict(pairs)["What is the opposite of hot?"] == "The opposite of hot is cold."


def test_texts_and_questions_to_speak_are_written_without_held_out_ones(monkeypatch, tmp_path):
    monkeypatch.setenv("SOUNDWAVE_HOME", str(tmp_path))
    folder = training_sets.small_folder()
    folder.mkdir(parents=True)
    held_out = "What is the opposite of hot?"
    texts = [Text("A text.", "wordnet"), Text("A text.", "wordnet"), Text("Another.", "written")]
    monkeypatch.setattr(training_sets, "kokoro_folder", lambda: None)
    monkeypatch.setattr(training_sets, "held_out", lambda folder: HeldOut([normalized(held_out)]))
    monkeypatch.setattr(training_sets, "natural_texts", lambda count, apart, write, seed: texts)
    monkeypatch.setattr(training_sets, "PARAGRAPHS", 0)
    training_sets.write_texts(seed=0)
    assert read_rows(folder / "texts.jsonl") == [{"text": text.text, "source": text.source} for text in texts]
    spoken = [row["text"] for row in read_rows(folder / "questions_to_speak.jsonl")]
    asked = {question for question, _ in training_sets.question_pairs(0)}
    assert set(spoken) == asked - {held_out} and len(spoken) == len(asked) - 1


def test_paragraphs_have_the_sentences_of_one_stage(monkeypatch):
    monkeypatch.setattr(training_sets, "PARAGRAPHS", 20)
    texts = [Text(f"Sentence number {number} is here.", "wordnet") for number in range(200)]
    found = training_sets.paragraphs(texts, random.Random(0))
    assert found == training_sets.paragraphs(texts, random.Random(0)) and len(set(found)) == 20
    for text in found:
        parts = [f"{part}." for part in text.text.rstrip(".").split(". ")]
        assert 2 <= len(parts) <= 4
        assert {training_sets.split_of(part) for part in parts} == {training_sets.split_of(text.text)}
    stages = [training_sets.split_of(text.text) for text in found]
    assert stages.count("stage1") == stages.count("stage2") == 10


def test_sentences_of_an_earlier_start_are_read_again(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(
        training_sets,
        "all_answers",
        lambda requests, part: (asked.append((requests, part)), {"a": "", "b": "It is."})[1],
    )
    assert training_sets.written_sentences(["venue"], tmp_path) == ["It is."]
    ((requests, part),) = asked
    assert len(requests) == 2 and all('"venue"' in request for request in requests) and part.parent == tmp_path


def test_coverage_counts_clips_and_voices_of_each_word(monkeypatch, capsys):
    monkeypatch.setattr(training_sets, "common_words", lambda: ["train", "venue", "left", "unheard"])
    rows = [{"text": "The train, the train left.", "voice": f"voice{number % 5}"} for number in range(20)]
    rows += [{"text": "A venue.", "voice": f"voice{number % 4}"} for number in range(40)]  # four voices
    training_sets.print_coverage(rows[:-1])
    assert "2 of the 4 most frequent words: 20 clips or more, 5 voices or more" in capsys.readouterr().out
    training_sets.print_coverage(rows[1:])  # 19 clips
    assert "0 of the 4" in capsys.readouterr().out


def test_built_clips_are_listed_and_conversations_are_left_to_stage_three(monkeypatch, tmp_path):
    monkeypatch.setenv("SOUNDWAVE_HOME", str(tmp_path))
    built = training_sets.small_folder() / "built"
    row = {"audio": "audio/a.flac", "text": "One two.", "seconds": 1.0, "voice": "slt", "source": "wordnet"}
    talk = {**row, "question": "Who speaks first?", "answer": "The first speaker says: One."}
    for name, rows in (("flite-00000", [row]), ("flite-00001", [row]), ("conversations-00000", [talk])):
        write_rows(built / f"{name}.jsonl", rows)
    clips = training_sets.all_clips()
    assert [row["audio"] for row in clips] == 3 * [str(built / "audio/a.flac")]
    assert [training_sets.is_transcribed(row) for row in clips] == [False, True, True]
    assert not training_sets.is_transcribed({**row, "source": "question"})
    write_rows(training_sets.small_folder() / "answers.jsonl", [])
    instructed = training_sets.instruct_rows(clips, seed=0)
    assert [row["answer"] for row in instructed if row.get("question") == talk["question"]] == [talk["answer"]]


def test_the_second_list_of_stage_three_has_long_transcripts_and_last_words(monkeypatch, tmp_path):
    monkeypatch.setenv("SOUNDWAVE_HOME", str(tmp_path))
    for name, most in (("INSTRUCTED_CLIPS", 3), ("MORE_SPOKEN", 2), ("MORE_LONG", 4), ("MORE_LAST_WORDS", 5)):
        monkeypatch.setattr(training_sets, name, most)
    sources = [*20 * ["wordnet"], *20 * ["paragraph"], *5 * ["question"]]
    clips = [
        {"audio": f"{number}.flac", "text": f"This is clip {number} of them all.", "voice": "slt", "source": source}
        for number, source in enumerate(sources)
    ]
    clips.append({**clips[0], "audio": "first.flac", "text": next(_texts_of("stage1"))})
    known = [{"question": row["text"], "answer": "Yes."} for row in clips if row["source"] == "question"]
    write_rows(training_sets.small_folder() / "answers.jsonl", known)
    rows = training_sets.instruct_more_rows(clips, seed=0)
    tasks = Counter(row["task"] for row in rows)
    assert tasks["spoken_question"] == 2 and tasks["text"] == 5
    audio = [row["audio"] for row in rows if "audio" in row]
    assert len(set(audio)) == len(audio) and "first.flac" not in audio  # no clip twice, none of Stage I
    heard = [row for row in rows if row["source"] in ("wordnet", "paragraph")]
    assert {training_sets.split_of(row["text"]) for row in heard} == {"stage2"}
    last = [row for row in heard if row["task"] == "last_word" and row["source"] == "wordnet"]
    assert last and {row["answer"] for row in last} == {'The last word is "all".'}
    assert rows == training_sets.instruct_more_rows(clips, seed=0)


def _texts_of(split: str):
    texts = (f"A sentence with the number {number}." for number in itertools.count())
    return (text for text in texts if training_sets.split_of(text) == split)
