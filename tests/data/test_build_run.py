"""`soundwave-hf data build`: recipes, shards, restarts, several processes, and what training reads of it."""

import hashlib
import io
import json
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from datasets import Audio, ClassLabel, Dataset, load_dataset
from huggingface_hub import DatasetCard
from setuptools import find_namespace_packages

from soundwave_hf import SoundwaveDataCollator
from soundwave_hf.cli import main
from soundwave_hf.data.build import run
from soundwave_hf.data.build.labelled import LabelledRows
from soundwave_hf.data.build.recipe import read_build_recipe
from soundwave_hf.data.build.run import build
from soundwave_hf.data.card import read_facts, write_card
from soundwave_hf.data.sources import open_rows
from tests.data.build_rows import clip, write_source
from tests.tiny import tiny_processor


SPEECH = [
    {"audio": clip(0.2 + number / 20), "text": f"Text {number}.", "speaker": "abc"[number % 3], "emotion": emotion}
    for number, emotion in enumerate(["happy", "sad", "angry", "calm"] * 3)
]
SOUNDS = [{"audio": clip(seconds), "label": label} for seconds, label in ((3.5, "cough"), (0.2, "Throat clearing"))]


@pytest.fixture
def data(tmp_path) -> Path:
    write_source(tmp_path, "speech", SPEECH)
    write_source(tmp_path, "sounds", SOUNDS)
    return tmp_path


def recipe_of(data: Path, **values) -> dict:
    speech = str(data / "speech.jsonl")
    steps = [
        {"build": "sounds", "data": speech, "sounds": str(data / "sounds.jsonl")},
        {"build": "conversations", "name": "talks", "data": speech, "speakers": [2, 3], "pause_seconds": [-0.05, 0.3]},
        {"build": "tasks", "data": speech, "rows": 30, "tasks": {"asr": 2, "emotion": 1}, "chain_of_thought": 0.5},
        {"build": "tasks", "name": "counts", "from": "talks", "tasks": ["number_of_speakers"]},
    ]
    return {"seed": 3, "shard_rows": 5, "steps": steps, **values}


def content(folder: Path) -> dict[str, str]:
    """Digest of each file of a built folder, without the record, which names where the data lie."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "build.json"]
    return {str(path.relative_to(folder)): hashlib.sha1(path.read_bytes()).hexdigest() for path in files}


def rows_of(folder: Path, step: str) -> list[dict]:
    return [json.loads(line) for path in sorted(folder.glob(f"{step}-*.jsonl")) for line in path.open()]


# ---- what is built ----


def test_all_steps_are_built(data, capsys):
    built = build(recipe_of(data), data / "out")
    assert [(each.name, each.rows, each.skipped) for each in built] == [
        ("sounds", 12, []), ("talks", 12, []), ("tasks", 30, []), ("counts", 12, [])
    ]  # fmt: skip
    assert "talks: 12 rows." in capsys.readouterr().out
    assert [path.name for path in sorted((data / "out").glob("sounds*"))] == [
        "sounds-00000.jsonl", "sounds-00001.jsonl", "sounds-00002.jsonl"
    ]  # fmt: skip


def test_the_clips_are_flac_and_the_rows_say_how_long(data):
    build(recipe_of(data), data / "out")
    for row in rows_of(data / "out", "sounds") + rows_of(data / "out", "talks"):
        info = soundfile.info(data / "out" / row["audio"])
        assert (info.format, info.samplerate, info.channels) == ("FLAC", 16_000, 1)
        assert info.duration == pytest.approx(row["seconds"], abs=1e-4)
    assert {row["label"] for row in rows_of(data / "out", "sounds")} == {"cough", "Throat clearing"}


def test_each_sound_comes_equally_often_and_two_utterances_differ(data):
    build(recipe_of(data), data / "out")
    rows = rows_of(data / "out", "sounds")
    assert sum("<cough>" in row["text"] for row in rows) == 6
    for place, row in enumerate(rows):
        first, _, second = row["text"].partition(" <")
        assert first == f"Text {place}." and second.partition("> ")[2] != first


def test_conversations_have_different_speakers(data):
    build(recipe_of(data), data / "out")
    rows = rows_of(data / "out", "talks")
    assert {row["speakers"] for row in rows} == {2, 3}
    assert all(len({turn["speaker"] for turn in row["turns"]}) == row["speakers"] for row in rows)
    assert any(
        before["end"] > after["start"]
        for row in rows
        for before, after in zip(row["turns"][:-1], row["turns"][1:], strict=True)
    )


def test_tasks_have_their_weights_and_each_row_of_the_data_comes_before_any_comes_again(data):
    build(recipe_of(data), data / "out")
    rows = rows_of(data / "out", "tasks")
    assert 9 <= sum(row["task"] == "emotion" for row in rows) <= 11
    assert {rows[:12][place]["text"] for place in range(12)} == {f"Text {number}." for number in range(12)}


@pytest.mark.parametrize("step", ["sounds", "talks", "tasks", "counts"])
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_training_and_load_dataset_read_what_is_built(data, step, kind):
    build(recipe_of(data, format=kind), data / "out")
    rows = open_rows(str(data / "out" / f"{step}-*.{kind}"))
    assert len(rows) == {"tasks": 30}.get(step, 12) and min(rows["seconds"]) > 0.1
    assert ("messages" in rows.column_names) == (step in ("tasks", "counts"))
    loaded = load_dataset(str(data / "out"), step, split="train", cache_dir=str(data / "cache"))
    assert len(loaded) == len(rows)
    if kind == "parquet":
        assert loaded.features["audio"] == Audio()
        assert loaded.cast_column("audio", Audio(decode=False))[0]["audio"]["bytes"][:4] in (b"fLaC", b"RIFF")


def test_clips_inside_parquet_are_a_source_too(data):
    wav = (data / "speech-0.wav").read_bytes()
    rows = Dataset.from_list([{"wav": {"bytes": wav, "path": "a.wav"}, "feeling": mood} for mood in ("sad", "glad")])
    rows.cast_column("wav", Audio()).to_parquet(data / "in.parquet")
    step = {"build": "tasks", "data": str(data / "in.parquet"), "columns": {"wav": "audio", "feeling": "emotion"}}
    build({"steps": [step | {"tasks": "emotion", "forms": ["bare"]}]}, data / "out")
    rows = rows_of(data / "out", "tasks")
    assert [row["messages"][1]["content"][0]["text"] for row in rows] == ["sad", "glad"]
    assert soundfile.info(data / "out" / rows[1]["audio"]).format == "FLAC"


def test_text_only_rows_need_no_audio(data):
    write_source(
        data, "texts", [{"question": f"What is {number} plus one?", "answer": "More."} for number in range(4)]
    )
    build({"steps": [{"build": "tasks", "data": str(data / "texts.jsonl"), "tasks": "chat"}]}, data / "out")
    assert all("audio" not in row for row in rows_of(data / "out", "tasks"))
    assert len(open_rows(str(data / "out" / "tasks-*.jsonl"))) == 4


# ---- the same again ----


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_several_processes_build_the_same(data, kind):
    recipe = recipe_of(data, format=kind)
    build(recipe, data / "one")
    build(recipe, data / "two", processes=2)
    assert content(data / "one") == content(data / "two")


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("last", [1, 4])
def test_a_run_that_was_killed_goes_on_to_the_same_result(data, monkeypatch, kind, last):
    recipe = recipe_of(data, format=kind)
    build(recipe, data / "whole")
    written, write = [], run.ShardWriter.write

    def killed(self, shard, rows, skipped):
        if len(written) == last:
            if kind == "jsonl":  # what a run leaves that was killed before the marker
                (half := self.folder / "audio" / self.name / f"{shard:05d}").mkdir(parents=True)
                (half / "left.flac").write_text("half")
            raise KeyboardInterrupt
        written.append(shard)
        write(self, shard, rows, skipped)

    with monkeypatch.context() as patched:
        patched.setattr(run.ShardWriter, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            build(recipe, data / "killed")
    build(recipe, data / "killed")
    assert content(data / "killed") == content(data / "whole")


def test_a_finished_run_is_not_done_again(data, monkeypatch):
    build(recipe_of(data), data / "out")
    monkeypatch.setattr(run, "write_shard", lambda *_: pytest.fail("a shard was written again"))
    assert [each.rows for each in build(recipe_of(data), data / "out")] == [12, 12, 30, 12]


def test_a_damaged_record_of_a_shard_or_of_the_run_is_named(data):
    build(recipe_of(data), data / "out")
    marker = next(data.glob("out/.*/tasks-00003.json"))
    whole = marker.read_text()
    marker.write_text(whole[:7])
    with pytest.raises(ValueError, match="tasks-00003.json` is no JSON file .*: remove it: its rows are made again"):
        build(recipe_of(data), data / "out")
    marker.unlink()
    build(recipe_of(data), data / "out")
    assert marker.read_text() == whole
    (data / "out" / "build.json").write_text("")
    with pytest.raises(ValueError, match="build.json` is no JSON file .*: name a new folder"):
        build(recipe_of(data), data / "out")


def test_another_seed_gives_other_rows(data):
    build(recipe_of(data), data / "one")
    build(recipe_of(data, seed=4), data / "two")
    assert rows_of(data / "one", "talks") != rows_of(data / "two", "talks")


def test_a_row_does_not_depend_on_the_shards(data):
    build(recipe_of(data), data / "one")
    build(recipe_of(data, shard_rows=100), data / "two")
    for step in ("sounds", "talks", "tasks"):
        assert [row["text"] for row in rows_of(data / "one", step)] == [
            row["text"] for row in rows_of(data / "two", step)
        ]


# ---- folders and bad rows ----


def test_a_folder_with_another_run_is_refused(data):
    build(recipe_of(data), data / "out")
    with pytest.raises(FileExistsError, match="holds a run of another recipe"):
        build(recipe_of(data, seed=9), data / "out")
    write_source(data, "sounds", SOUNDS[:1])
    with pytest.raises(FileExistsError, match="on data that have changed since"):
        build(recipe_of(data), data / "out")


def test_a_folder_with_other_files_is_refused(data):
    (data / "out").mkdir()
    (data / "out" / "mine.txt").write_text("x")
    with pytest.raises(FileExistsError, match="exists and is not an empty folder"):
        build(recipe_of(data), data / "out")


def test_rows_that_cannot_be_made_are_counted_and_listed(data, capsys):
    (data / "speech-2.wav").unlink()
    soundfile.write(data / "speech-5.wav", np.zeros(8000), 16_000)
    recipe = recipe_of(data)
    recipe["steps"] = [recipe["steps"][0] | {"rows": 12}]
    (built,) = build(recipe, data / "out")
    assert 10 >= built.rows >= 6 and built.rows + len(built.skipped) == 12
    listed = [json.loads(line) for line in (data / "out" / "skipped.jsonl").open()]
    assert listed == built.skipped and any("is silent" in skip["reason"] for skip in listed)
    assert any("speech-2.wav" in skip["reason"] for skip in listed)
    assert f"{len(listed)} could not be made. The first reasons:\n  row" in capsys.readouterr().out
    card = (data / "out" / "README.md").read_text()
    assert f"| sounds | train | {built.rows} |" in card and f"| sounds | {len(listed)} |" in card


def test_the_card_of_a_built_folder_takes_licences(data):
    built = build(recipe_of(data), data / "out")
    write_card(data / "out", read_facts(data / "out").with_licenses("cc0-1.0"))
    card = DatasetCard.load(data / "out" / "README.md")
    assert card.data.license == "cc0-1.0" and "soundwave-hf data build" in card.text
    assert [config["config_name"] for config in card.data.configs] == [each.name for each in built if each.rows]


def test_a_label_that_is_not_listed_is_left_out(data):
    step = {"build": "tasks", "data": str(data / "speech.jsonl"), "tasks": "emotion", "forms": "choice"}
    (built,) = build({"steps": [step | {"labels": {"emotion": ["happy", "sad", "calm"]}}]}, data / "out")
    assert built.rows == 9 and len(built.skipped) == 3
    assert "has the label 'angry', which is not in `labels`: ['happy', 'sad', 'calm']" in built.skipped[0]["reason"]


def test_an_error_of_a_process_reaches_the_user(data):
    write_source(data, "texts", [{"text": f"Hi {number}."} for number in range(4)])
    step = {"build": "spoken", "data": str(data / "texts.jsonl"), "command": "no-such-voice {out}"}
    with pytest.raises(FileNotFoundError, match="There is no program `no-such-voice`"):
        build({"steps": [step], "shard_rows": 1}, data / "out", processes=2)
    with pytest.raises(ValueError, match="`function` is 'no_such:say', which cannot be imported"):
        build(
            {"steps": [step | {"command": None, "function": "no_such:say"}], "shard_rows": 1}, data / "2", processes=2
        )


def test_a_sound_needs_two_utterances(data):
    write_source(data, "speech", SPEECH[:1])
    with pytest.raises(ValueError, match="has one row, and a sound stands between two"):
        build({"steps": recipe_of(data)["steps"][:1]}, data / "out")


def test_a_step_without_a_single_row_is_an_error(data):
    write_source(data, "speech", [{"audio": clip(0.3), "text": "a", "emotion": "sad"}])
    step = {"build": "tasks", "data": str(data / "speech.jsonl"), "tasks": "emotion", "forms": ["choice"]}
    for _ in range(2):  # the second time too: nothing says that it is done
        with pytest.raises(
            ValueError, match="None of the 1 rows of step `tasks` could be made. (?s:.*)a choice needs"
        ):
            build({"steps": [step]}, data / "out")


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (
            {"tasks": "age"},
            r"has no column `age`. Its columns are \['audio', 'emotion', 'speaker', 'text'\]. Map others",
        ),
        ({"tasks": "emotion", "columns": {"mood": "emotion"}}, "maps `mood`, and .* has no such column: it has"),
        (
            {"tasks": "emotion", "columns": {"mood": "emotoin"}},
            "to `emotoin`, which does not exist. Did you mean `emotion`",
        ),
        ({"tasks": "emotions"}, "has 'emotions'; known are asr, translation"),
        ({"tasks": {"asr": 0}}, "has the weight 0 for .asr.; give a number over 0"),
        ({}, "`tasks` of step `tasks` is None; give names"),
        ({"tasks": "asr", "forms": {"choice": 1}}, "the task asr has only bare, sentence"),
        ({"tasks": "asr", "forms": ["essay"]}, "has 'essay'; known are bare, choice, sentence"),
        ({"tasks": "asr", "chain_of_thought": 1.5}, "is 1.5; give a share from 0 to 1"),
        ({"tasks": "asr", "chain_of_thought": {"asr": 1}}, "has asr, for which there are no such rows"),
        ({"tasks": "asr", "text_only": {"emotion": 1}}, "has 'emotion', which is no task of the step"),
        ({"tasks": "emotion", "labels": {"emotion": ["sad"]}}, "a choice needs at least two labels"),
        ({"tasks": "emotion", "labels": {"age": ["a", "b"]}}, "give a list of labels for tasks of the step"),
        ({"tasks": "asr", "rows": 0}, "`rows` of step `tasks` is 0"),
        ({"tasks": "asr", "task": 7}, "`task` of step `tasks` is 7"),
        ({"tasks": "asr", "form": 1}, "Step `tasks` has the key `form`, which does not exist. Did you mean `forms`?"),
        ({"tasks": "asr", "name": "a-b"}, "has the name 'a-b'; give each step its own `name`"),
        ({"tasks": "asr", "from": "talks"}, "has `from` 'talks'; give an earlier step of"),
        ({"build": "conversations", "speakers": 1}, "`speakers` of step `conversations` is 1"),
        ({"build": "conversations", "speakers": [3, 2]}, "give a number from 2 to 8"),
        ({"build": "conversations", "speakers": 4}, "has 3 speakers, and a conversation needs 4"),
        ({"build": "conversations", "pause_seconds": 1}, "`pause_seconds` of step `conversations` is 1"),
        ({"build": "sounds"}, "Step `sounds` has no `sounds`"),
        ({"build": "sounds", "sounds": "SPEECH"}, "`sounds` of step `sounds` has no column `label`. Its columns are"),
        ({"build": "spoken"}, "`command` is None and `function` is None"),
        ({"build": "sound"}, "Step 0 has `build` 'sound'; give one of sounds, conversations"),
    ],
)
def test_a_bad_step_is_named(data, step, message):
    speech = str(data / "speech.jsonl")
    step = {"build": "tasks", "data": speech} | {k: speech if v == "SPEECH" else v for k, v in step.items()}
    with pytest.raises(ValueError, match=message):
        build({"steps": [step]}, data / "out")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seeds": 1}, "The recipe has the key `seeds`, which does not exist. Did you mean `seed`?"),
        ({"seed": "x"}, "`seed` is 'x'"),
        ({"shard_rows": 0}, "`shard_rows` is 0"),
        ({"format": "csv"}, "`format` is 'csv'; give one of jsonl, parquet"),
        ({"steps": []}, r"`steps` is \[\]; give a list"),
        ({"steps": ["tasks"]}, "Step 0 has `build` 'tasks'"),
        ({"steps": [{"build": "tasks", "tasks": "asr"}]}, "has neither `data` nor `from`"),
    ],
)
def test_a_bad_recipe_is_named(data, values, message):
    with pytest.raises(ValueError, match=message):
        build(recipe_of(data, **values), data / "out")
    assert not (data / "out").exists()


def test_two_steps_of_one_name_are_refused(data):
    step = {"build": "tasks", "data": str(data / "speech.jsonl"), "tasks": "asr"}
    with pytest.raises(ValueError, match="Step 1 has the name 'tasks'; give each step its own"):
        read_build_recipe({"steps": [step, step]}, data / "out")


# ---- sources ----


def test_rows_of_several_sources_come_one_after_another(data):
    more = write_source(data, "more", [{"audio": clip(0.3), "sentence": "More.", "mood": "sad"}])
    both = [
        str(data / "speech.jsonl"),
        {"path": more, "source": "m", "columns": {"sentence": "text", "mood": "emotion"}},
    ]
    rows = LabelledRows(both)
    assert (
        len(rows) == 13 and rows[0]["text"] == "Text 0." and rows[12]["emotion"] == "sad" and rows[12]["source"] == "m"
    )
    assert rows.column_names == ["audio", "emotion", "source", "speaker", "text"]
    assert [row.get("emotion") for row in rows.of_columns("emotion")][-2:] == ["calm", "sad"]


def test_a_csv_is_a_source(tmp_path):
    (tmp_path / "a.csv").write_text("path,sentence,mood\na.wav,Hi,sad\nb.wav,Ho,\n")
    rows = LabelledRows(str(tmp_path / "a.csv"), {"path": "audio", "sentence": "text", "mood": "emotion"})
    assert rows[0] == {"audio": str(tmp_path / "a.wav"), "text": "Hi", "emotion": "sad"} and "emotion" not in rows[1]


@pytest.mark.parametrize("form", ["parquet", "saved"])
def test_labels_are_asked_for_by_their_names(data, form):
    rows = Dataset.from_list([{"audio": str(data / "speech-0.wav"), "emotion": 1, "sex": 0}] * 2)
    rows = rows.cast_column("emotion", ClassLabel(names=["sad", "glad"]))
    rows = rows.cast_column("sex", ClassLabel(names=["female", "male"]))
    source = str(data / f"labels.{form}")
    rows.save_to_disk(source) if form == "saved" else rows.to_parquet(source)
    step = {"build": "tasks", "data": source, "columns": {"sex": "gender"}, "tasks": ["emotion", "gender"], "rows": 4}
    build({"steps": [step | {"forms": {"bare": 1}}]}, data / "out")
    answers = [row["messages"][1]["content"][0]["text"] for row in rows_of(data / "out", "tasks")]
    assert sorted(answers) == ["female", "female", "glad", "glad"]


# ---- the verb ----


SPOKEN = """
seed: 1
steps:
- build: spoken
  name: questions
  data: texts.jsonl
  function: tiny_voices:say
  voices: [low, high]
  speed: [0.9, 1.1]
- build: tasks
  name: instructions
  from: questions
  tasks: [spoken_instruction]
  text_only: 0.2
"""
VOICES = """
import numpy as np
def say(text, voice, speed):
    if "?" not in text:
        raise ValueError("no question")
    return np.full(int(8000 * len(text.split()) / speed), 0.1 if voice == "low" else 0.2, np.float32), 8000
"""


def test_the_verb_speaks_texts_and_makes_instructions(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "tiny_voices.py").write_text(VOICES)
    (tmp_path / "build.yaml").write_text(SPOKEN)
    texts = [{"text": f"How much is {number}?", "answer": f"It is {number}."} for number in range(20)]
    write_source(tmp_path, "texts", [*texts, {"text": "Nothing.", "answer": "x"}])
    assert main(["data", "build", "build.yaml", "out", "--processes", "2"]) == 0
    assert "questions: 20 rows, 1 could not be made" in capsys.readouterr().out
    rows = rows_of(tmp_path / "out", "questions")
    assert {row["voice"] for row in rows} == {"low", "high"} and all(0.9 <= row["speed"] <= 1.1 for row in rows)
    assert len({row["speed"] for row in rows}) > 5
    asked = rows_of(tmp_path / "out", "instructions")
    assert len(asked) == 20 and asked[3]["messages"][1]["content"][0]["text"] == "It is 3."
    assert 3 <= sum("audio" not in row for row in asked) <= 5
    assert main(["data", "check", "out/questions-*.jsonl"]) == 0
    sys.modules.pop("tiny_voices", None)


def test_the_verb_names_a_missing_recipe(tmp_path, capsys):
    assert main(["data", "build", str(tmp_path / "no.yaml"), str(tmp_path / "out")]) == 2
    assert "There is no recipe" in capsys.readouterr().err


def test_the_number_of_processes_is_checked(data):
    with pytest.raises(ValueError, match="`--processes` is 0"):
        build(recipe_of(data), data / "out", processes=0)


def test_a_part_of_a_split_is_a_source(data):
    speech = str(data / "speech.jsonl")
    assert [row["text"] for row in LabelledRows({"path": speech, "split": "train[2:4]"})] == ["Text 2.", "Text 3."]
    assert len(LabelledRows({"path": speech, "split": "train[:50%]+train[-1:]"})) == 7


def test_a_tar_is_a_source(data):
    with tarfile.open(data / "a.tar", "w") as tar:
        for name, content in {"x.wav": (data / "speech-0.wav").read_bytes(), "x.json": b'{"mood": "sad"}'}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    rows = LabelledRows(str(data / "a.tar"), {"wav": "audio", "json.mood": "emotion"})
    assert rows[0]["emotion"] == "sad" and rows[0]["audio"]["bytes"][:4] == b"RIFF"


def test_a_stream_is_refused(data):
    with pytest.raises(ValueError, match="has `streaming: true`, and rows are read by number here"):
        LabelledRows({"path": str(data / "speech.jsonl"), "streaming": True})


def test_an_empty_list_of_sources_is_refused():
    with pytest.raises(ValueError, match="`data` is an empty list"):
        LabelledRows([])


def test_the_wordings_are_part_of_the_package():
    assert "soundwave_hf.data.build.wordings" in find_namespace_packages(
        str(Path(__file__).parents[2]), include=["soundwave_hf*"]
    )


@pytest.mark.parametrize("step", ["sounds", "talks", "tasks"])
def test_the_collator_makes_batches_of_what_is_built(data, step):
    build(recipe_of(data), data / "out")
    rows = open_rows(str(data / "out" / f"{step}-*.jsonl"))
    batch = SoundwaveDataCollator(tiny_processor())([rows[number] for number in range(4)])
    assert batch["input_ids"].shape[0] == 4 and (batch["labels"] != -100).any(dim=1).all()
    assert batch["input_features"].shape[0] == 4 and (batch["ctc_labels"] >= 0).any(dim=1).all()
