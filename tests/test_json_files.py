"""Records that a command wrote earlier, and that were damaged since: each is named, with what to do."""

from pathlib import Path

import pytest

from soundwave_hf.data.card import read_facts
from soundwave_hf.data.clean import run as clean
from soundwave_hf.data.prepared import find_parts, read_report
from soundwave_hf.json_files import read_json_object
from soundwave_hf.publish.facts import read_scores
from soundwave_hf.publish.runs import read_runs


RECORDS = {
    "build.json": (find_parts, "build the rows again in a new folder"),
    "report.json": (read_report, "clean the rows again, or move the file away"),
    ".card.json": (read_facts, "move it away"),
    "run.json": (lambda folder: clean.merge([folder], folder / "merged"), "clean this shard again in a new folder"),
    "evaluation.json": (lambda folder: read_scores(folder / "evaluation.json"), "copy it again"),
    "training_runs.json": (lambda folder: read_runs([folder]), "copy it again"),
}


@pytest.mark.parametrize("text", ['{"half": ', "[1]"])
@pytest.mark.parametrize("name", RECORDS)
def test_a_damaged_record_is_named(name, text, tmp_path):
    read, advice = RECORDS[name]
    Path(tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=f"{name}` (is no JSON file|holds list and a JSON object was).*{advice}"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("build.json", "{}", r"build.json` lacks \['recipe'\]: build the rows again in a new folder"),
        ("run.json", '{"shard": [0, 2]}', r"run.json` lacks \['settings'\]: clean this shard again"),
        (
            ".card.json",
            '{"titel": "x", "sources": []}',
            "card.json` is not what .*data card` writes .*titel.*: move it away",
        ),
        ("training_runs.json", '{"runs": [{}]}', "training_runs.json` is no record of training runs"),
    ],
)
def test_a_record_of_something_else_is_named(name, text, message, tmp_path):
    Path(tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        RECORDS[name][0](tmp_path)


def test_a_file_with_the_needed_keys_is_read(tmp_path):
    (tmp_path / "a.json").write_text('{"x": 1, "y": 2}')
    assert read_json_object(tmp_path / "a.json", needed=("x",)) == {"x": 1, "y": 2}
