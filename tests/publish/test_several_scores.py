"""Several score files of one set: each says how its texts were made, and a benchmark gets one of them."""

import json

import pytest
import yaml

from soundwave_hf.publish.card import model_card
from soundwave_hf.publish.facts import ModelFacts, read_all_scores
from soundwave_hf.publish.remote import write_eval_results
from tests.publish.conftest import SCORES


KINDS = {
    "joint": {"generate": {"ctc_weight": 0.3, "num_beams": 4}},
    "greedy": {"generate": {"ctc_weight": 0}},
    "default": {},
    "ctc": {"ctc_only": True},
    "ctc_long": {"ctc_only": True, "generate": {"max_time": 9}},
}


@pytest.fixture
def files(tmp_path):
    """Reads score files of these kinds; the error rate is 1 % for the first one, and so on."""

    def read(*kinds, failures=()):
        for number, kind in enumerate(kinds, 1):
            values = json.loads(json.dumps({**SCORES, **KINDS[kind], "data": {"books": {"path": "org/bench"}}}))
            failed = [{"row": 3, "audio": "x.wav", "reason": "broken"}] if kind in failures else []
            values["sets"]["books"] |= {"wer": number / 100, "failures": failed}
            (tmp_path / f"{kind}.json").write_text(json.dumps(values))
        return read_all_scores([tmp_path / f"{kind}.json" for kind in kinds])

    return read


def test_results_of_one_set_say_how_the_texts_were_made(files):
    metadata, text = model_card(ModelFacts("lora", "a/b", "c/d", name="me/mine", scores=files(*KINDS)))
    (result,) = metadata["model-index"][0]["results"]
    assert [(each["name"], each.get("args")) for each in result["metrics"]] == [
        ("WER %, ctc_weight: 0.3, num_beams: 4", {"ctc_weight": 0.3, "num_beams": 4}),
        ("WER %, ctc_weight: 0", {"ctc_weight": 0}),
        ("WER %", None),
        ("WER %, CTC head alone", {"ctc_only": True}),
        ("WER %, CTC head alone, max_time: 9", {"ctc_only": True, "max_time": 9}),
    ]
    assert "without the LLM, `max_time: 9`. Language" in text and "without the LLM. Language" in text
    assert text.count("books has 200 words: one is 0.5 points.") == 1


@pytest.mark.parametrize(
    ("kinds", "failures", "value", "note"),
    [
        (["ctc", "joint", "greedy", "default"], [], 2.0, "ctc_weight: 0.3, num_beams: 4"),
        (["default", "joint", "ctc"], [], 1.0, "soundwave-hf evaluate"),
        (["joint", "default", "ctc"], ["joint"], 2.0, "soundwave-hf evaluate"),
        (["ctc", "ctc_long"], [], 1.0, "CTC head alone"),
    ],
)
def test_a_benchmark_gets_the_first_score_of_the_llm(files, tmp_path, monkeypatch, kinds, failures, value, note):
    monkeypatch.setattr("soundwave_hf.publish.remote.registered_task", lambda api, source: "clean")

    class Target:
        api = None

    assert write_eval_results(Target(), files(*kinds, failures=failures), tmp_path) == ["org/bench"]
    (path,) = (tmp_path / ".eval_results").iterdir()
    (entry,) = yaml.safe_load(path.read_text())
    assert entry["value"] == value and entry["notes"].split("evaluate, ")[-1].endswith(note)
