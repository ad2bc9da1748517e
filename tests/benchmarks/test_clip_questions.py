"""The benchmark of questions about a clip: what is asked, what counts as right, and that answers are the model's."""

import json
from collections import Counter

import numpy as np
import pytest
import soundfile

from soundwave_hf import SoundwaveForConditionalGeneration, SoundwaveProcessor
from soundwave_hf.evaluation.transcribe import conversation
from tests.benchmarks.conftest import FOLDER
from tests.modeling.conftest import folder, model, processor  # noqa: F401
from tests.modeling.test_load_adapters import place  # noqa: F401


TEXTS = ["Press two to leave.", "The red fox jumps.", "Nobody knows these long words.", "Goodbye now, my friend."]


@pytest.fixture(scope="module", autouse=True)
def scripts_beside():
    """A benchmark that is run as a script finds the others beside it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield


@pytest.fixture
def rows(tmp_path) -> list[dict]:
    made = []
    for number, text in enumerate(3 * TEXTS):
        path = tmp_path / f"{number}.flac"
        soundfile.write(path, 0.1 * np.random.default_rng(number).standard_normal(8_000), 16_000)
        made.append({"audio": str(path), "text": text, "voice": "awb" if number % 2 else "allison"})
    return made


def test_each_kind_is_asked_as_often_and_half_of_the_words_are_there(benchmark, rows):
    asked = benchmark.questions_about(rows, 4)
    assert Counter(kind for kind, _ in asked) == dict.fromkeys([*benchmark.KINDS, "who speaks"], 4)
    said = [row["answer"].split(",")[0] for kind, row in asked if kind == "is a word said"]
    assert Counter(said) == {"Yes": 2, "No": 2}
    spoken = [(row["voice"], row["answer"]) for kind, row in asked if kind == "who speaks"]
    assert Counter(spoken) == {("allison", "woman"): 2, ("awb", "man"): 2}
    last = {row["text"]: row["answer"] for kind, row in asked if kind == "the last word"}
    assert all(answer.split('"')[1] == text.split()[-1].strip(".").lower() for text, answer in last.items())
    assert benchmark.questions_about(rows, 4) == asked


def test_an_answer_is_right_with_or_without_the_quoted_transcript(benchmark, rows):
    asked = [row for kind, row in benchmark.questions_about(rows, 12) if kind == "how many words"]
    row = next(row for row in asked if row["text"] == TEXTS[1])
    right = 'The speaker says: "The red fox jumps." That is four words.'
    assert benchmark.Answer("", "", [row["answer"]], right).is_right
    assert benchmark.Answer("", "", [row["answer"]], "That is four words.").is_right
    assert not benchmark.Answer("", "", [row["answer"]], right.replace("four", "five")).is_right


def test_the_model_hears_each_clip(benchmark, rows, place, tmp_path, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setattr(benchmark, "read_set", lambda name: rows if name == "human" else [])
    out = tmp_path / "answers.jsonl"
    benchmark.main(["--adapter", str(place / "run"), "--each", "2", "--batch-size", "3", "--answers", str(out)])
    lines = capsys.readouterr().out.splitlines()
    kinds = [*benchmark.KINDS, "who speaks"]
    assert [line.split(" | ")[:2] for line in lines[2:]] == [[f"| {kind}", "2"] for kind in kinds]
    answers = [json.loads(line) for line in out.read_text().splitlines()]
    asked = benchmark.questions_about(rows, 2)
    assert [row["question"] for row in answers] == [row["question"] for _, row in asked]
    loaded = SoundwaveForConditionalGeneration.from_pretrained(place / "run").eval()
    processor = SoundwaveProcessor.from_pretrained(place / "run")  # noqa: F811
    talk = conversation(asked[-1][1]["audio"], asked[-1][1]["question"])
    inputs = processor.apply_chat_template([talk], add_generation_prompt=True, tokenize=True, return_dict=True)
    ids = loaded.generate(**inputs, max_new_tokens=benchmark.MAX_NEW_TOKENS, do_sample=False)
    text = processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0].strip()
    assert answers[-1]["text"] == text
