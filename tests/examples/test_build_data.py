"""The validation sets, and that the data which lies here keeps training and validation apart."""

import hashlib

import build_data
import pytest
from build_data import validation_utterances
from human_speech import held_out_texts
from sentences import normalized
from spoken_questions import DEMO_QUESTION
from training_sets import small_folder

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


def test_speed_and_seed_of_a_clip_do_not_depend_on_how_many_there_are(tmp_path):
    few, many = (validation_utterances(tmp_path, ["text"] * count) for count in (3, 9))
    assert many[:3] == few
    assert len({clip.path for clip in many}) == len({clip.seed for clip in many}) == 9


def test_the_sets_are_written_without_clips_that_the_engine_did_not_make(tmp_path, monkeypatch):
    human = {**ROW, "source": "human-prompt"}
    monkeypatch.setattr(build_data, "prompt_rows", lambda folder, part: [{**human, "text": str(part)}])
    monkeypatch.setattr(build_data, "librivox_rows", lambda folder: [{**ROW, "source": "librivox"}])
    monkeypatch.setattr(build_data, "validation_sentences", lambda: ["One.", "Two."])
    monkeypatch.setattr(build_data, "speak_all", lambda clips, processes, label: zip(clips, [None, 1.5], strict=True))
    folder = build_data.build_demo_data(tmp_path / "demo")
    assert [row["source"] for row in read_rows(folder / "valid_human.jsonl")] == ["human-prompt", "librivox"]
    assert [row["text"] for row in read_rows(folder / "human.jsonl")] == [str(build_data.TRAINING)]
    (spoken,) = read_rows(folder / "valid_synthetic.jsonl")
    assert (spoken["text"], spoken["seconds"], spoken["voice"]) == ("Two.", 1.5, "awb")
    assert spoken["audio"].startswith("clips/valid_awb/00001_awb_")


@pytest.mark.skipif(not (small_folder() / "instruct.jsonl").is_file(), reason="the data is not built here")
def test_the_built_data_shares_no_text_with_validation():
    train = [row for name in ("stage1", "stage2", "instruct") for row in read_rows(small_folder() / f"{name}.jsonl")]
    demo = build_data.demo_data_folder()
    validation = [row for name in ("valid_human.jsonl", "valid_synthetic.jsonl") for row in read_rows(demo / name)]
    held_out = held_out_texts() | {normalized(row["text"]) for row in validation} | {normalized(DEMO_QUESTION)}
    assert not {normalized(row["text"]) for row in train if row.get("text")} & held_out
    assert not {row.get("audio") for row in train} & {row["audio"] for row in validation}
    assert "awb" not in {row.get("voice") for row in train}


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
