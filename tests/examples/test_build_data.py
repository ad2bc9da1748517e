"""The build: manifests, the data card, and that the data which lies here keeps training and validation apart."""

import hashlib
import json

import build_data
import pytest
from build_data import training_rows, utterances
from data_card import MANIFESTS, data_card
from human_speech import held_out_texts
from sentences import normalized
from spoken_questions import DEMO_QUESTION

from soundwave_hf.data.card import count_rows
from soundwave_hf.data.manifest import read_rows, write_rows


ROW = {"audio": "a.flac", "text": "Hello.", "seconds": 1800.0, "voice": "joe", "source": "fortunes"}


def test_a_manifest_comes_back_as_it_was_written(tmp_path):
    rows = [ROW, {**ROW, "text": "Café.\u2028A line separator inside a text ends no row."}]
    write_rows(tmp_path / "train.jsonl", rows)
    assert read_rows(tmp_path / "train.jsonl") == rows
    assert [path.name for path in tmp_path.iterdir()] == ["train.jsonl"]


def test_a_missing_manifest_says_how_to_build_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="check the path"):
        read_rows(tmp_path / "train.jsonl")


def test_the_card_counts_rows_and_hours(tmp_path):
    for name in MANIFESTS:
        write_rows(tmp_path / name, [ROW, ROW, {**ROW, "voice": "slt"}])
    assert count_rows([ROW, ROW]) == {("fortunes", "joe"): (2, 3600.0)}
    card = data_card(tmp_path)
    assert "3 rows, 1.50 hours" in card and "| fortunes | joe | 2 | 1.00 |" in card
    assert all(licence in card for licence in ("CC-BY-SA 3.0", "public domain", "CC0"))


def test_voice_and_seed_of_a_clip_do_not_depend_on_how_many_there_are(tmp_path):
    few, many = (utterances(tmp_path, ["text"] * count, None, seed=0, name="words") for count in (3, 9))
    assert many[:3] == few
    assert len({clip.path for clip in many}) == 9


def test_clips_that_fail_are_left_out_and_part_of_the_corpus_can_be_read(tmp_path, monkeypatch):
    seen = []

    def speak_all(clips, processes, label):
        for number, clip in enumerate(clips):
            yield clip, None if number == 0 else 1.0
            seen.append(
                len(read_rows(tmp_path / "train_partial.jsonl")) if (tmp_path / "train_partial.jsonl").exists() else 0
            )

    monkeypatch.setattr(build_data, "speak_all", speak_all)
    monkeypatch.setattr(build_data, "SAVE_EVERY_CLIPS", 2)
    texts = {"fortunes": ["one", "two", "three"], "words": ["four"], "prompts": ["five"]}
    rows = training_rows(tmp_path, texts, human=[ROW], processes=1, seed=0)
    assert len(rows) == 4 and {row["source"] for row in rows} <= set(texts)
    assert max(seen) == 5  # the human row and all four clips
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(
    not (build_data.demo_data_folder() / "instruct.jsonl").is_file(), reason="the data is not built here"
)
def test_the_built_data_shares_no_text_with_validation():
    folder = build_data.demo_data_folder()
    train = [row for name in ("train.jsonl", "instruct.jsonl") for row in read_rows(folder / name)]
    validation = [row for name in ("valid_human.jsonl", "valid_synthetic.jsonl") for row in read_rows(folder / name)]
    held_out = held_out_texts() | {normalized(row["text"]) for row in validation} | {normalized(DEMO_QUESTION)}
    assert not {normalized(text) for text in {row["text"] for row in train}} & held_out
    assert not {row["audio"] for row in train} & {row["audio"] for row in validation}
    assert {row["voice"] for row in train} == {"slt", "rms", "kal16", "joe", "allison"}
    assert json.loads((folder / "train.jsonl").read_text(encoding="utf-8").splitlines()[0])["source"].startswith(
        "human"
    )


def test_the_validation_sentences_are_found_by_digest_in_their_own_order(tmp_path, monkeypatch):
    digests = [hashlib.sha1(text.encode()).hexdigest() for text in ("Third of all.", "First of all.")]
    (tmp_path / "digests").write_text("\n".join(digests) + "\n", encoding="utf-8")
    monkeypatch.setattr(build_data, "VALIDATION_DIGESTS", tmp_path / "digests")
    sentences = ["First of all.", "Second of all.", "Third of all."]
    assert build_data.validation_texts(sentences) == ["Third of all.", "First of all."]
    with pytest.raises(ValueError, match=f"1 of the 2 validation sentences .* sha1 {digests[0]}"):
        build_data.validation_texts(sentences[:2])


def test_two_hundred_validation_sentences_are_frozen():
    digests = build_data.VALIDATION_DIGESTS.read_text(encoding="utf-8").split()
    assert len(set(digests)) == len(digests) == 200
