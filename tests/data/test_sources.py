"""Every source that `data:` takes gives the same rows, whole and streamed; what cannot be learnt from is named."""

import base64
import gzip
import io
import json
import tarfile
from datetime import datetime
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from datasets import Audio, ClassLabel, Dataset, DatasetDict, load_from_disk

from soundwave_hf import cli
from soundwave_hf.data import lengths
from soundwave_hf.data.build.labelled import LabelledRows
from soundwave_hf.data.check import (
    check_clips,
    check_source,
    describe_bad_clips,
    find_bad_clips,
    name_of_clip,
    read_clip,
)
from soundwave_hf.data.clean.parts import open_parts
from soundwave_hf.data.each_row import each_row
from soundwave_hf.data.lengths import many_seconds
from soundwave_hf.data.prepared import find_parts
from soundwave_hf.data.readers import is_clip, kind_of
from soundwave_hf.data.rows import RowCheck, clips_of, transcripts_of
from soundwave_hf.data.sources import digest_source, list_sources, looks_local, open_rows, open_streams
from soundwave_hf.data.streams import EVERY_ROW
from soundwave_hf.evaluation.sets import open_source
from soundwave_hf.processing.audio_soundwave import load_clip


TEXTS, SECONDS = ["yes", "null", 'say "no", now'], [0.5, 0.75, 1.0]
RATE = 16_000


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """The library's copies of what it reads lie in a folder of these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


def write_clip(path: Path, seconds: float) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = 0.1 * np.sin(np.arange(int(seconds * RATE)) / 5)
    soundfile.write(path, samples, RATE)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """The same three clips in every form, and a split `test` of the first beside `train` where a form has splits."""
    folder = tmp_path_factory.mktemp("data")
    clips = [write_clip(folder / "clips" / f"{i}.wav", seconds) for i, seconds in enumerate(SECONDS)]
    rows = [{"audio": f"clips/{i}.wav", "text": text} for i, text in enumerate(TEXTS)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "rows.json").write_text(json.dumps(rows))
    (folder / "rows.csv").write_text(
        'path,sentence,n\nclips/0.wav,yes,1\nclips/1.wav,null,2\nclips/2.wav,"say ""no"", now",3\n'
    )
    (folder / "rows.tsv").write_text(
        'path\tsentence\nclips/0.wav\tyes\nclips/1.wav\tnull\nclips/2.wav\t"say ""no"", now"\n'
    )
    for split, count in (("train", 3), ("test", 1)):
        for clip in clips[:count]:
            target = folder / "folder" / split / clip.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(clip.read_bytes())
        lines = [json.dumps({"file_name": f"{i}.wav", "transcription": TEXTS[i]}) for i in range(count)]
        (folder / "folder" / split / "metadata.jsonl").write_text("\n".join(lines))
    with tarfile.open(folder / "clips.tar", "w") as tar:
        for i, clip in enumerate(clips):
            for name, content in (
                (f"k{i}.wav", clip.read_bytes()),
                (f"k{i}.json", json.dumps({"text": TEXTS[i]}).encode()),
            ):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    inside = [
        {"audio": {"bytes": clip.read_bytes(), "path": clip.name}, "text": TEXTS[i]} for i, clip in enumerate(clips)
    ]
    stored = Dataset.from_list(inside).cast_column("audio", Audio())
    stored.to_parquet(folder / "rows.parquet")
    stored.save_to_disk(folder / "saved")
    DatasetDict({"train": stored, "test": stored.select([0])}).save_to_disk(folder / "saved_splits")
    for split, count in (("train", 3), ("test", 1)):
        (folder / "jsonl_splits").mkdir(exist_ok=True)
        lines = [json.dumps({"audio": f"../clips/{i}.wav", "text": TEXTS[i]}) for i in range(count)]
        (folder / "jsonl_splits" / f"{split}.jsonl").write_text("\n".join(lines))
        stored.select(range(count)).to_parquet(folder / "parquet_splits" / f"{split}.parquet")
    return folder


THEIRS = {"path": "audio", "sentence": "text"}
FORMS = {
    "rows.jsonl": {},
    "rows.json": {},
    "rows.csv": THEIRS,
    "rows.tsv": THEIRS,
    "folder": {"transcription": "text"},
    "clips.tar": {"wav": "audio", "json.text": "text"},
    "rows.parquet": {},
    "saved": {},
    "saved_splits": {},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_rows_and_their_lengths(data, form):
    rows = open_rows(str(data / form), FORMS[form])
    assert rows["text"][:] == TEXTS
    assert rows["seconds"][:] == SECONDS
    assert rows["row"][:] == [0, 1, 2]
    assert not any(isinstance(kind, Audio) and kind.decode for kind in rows.features.values())


@pytest.mark.parametrize("form", FORMS)
def test_every_form_can_be_streamed(data, form):
    opened = open_streams(str(data / form), columns=FORMS[form])
    (stream,) = opened.streams.values()
    rows = list(stream)
    assert [(row["text"], row["seconds"]) for row in rows] == list(zip(TEXTS, SECONDS, strict=True))
    read = iter(stream)
    next(read)
    state = stream.state_dict()
    stream.load_state_dict(state)
    assert [row["text"] for row in stream] == TEXTS[1:]  # goes on where it stood


def test_a_list_of_sources_is_one_behind_the_other_and_counts_by_source(data):
    sources = [
        {"path": str(data / "rows.csv"), "columns": THEIRS, "source": "mine"},
        str(data / "rows.parquet"),
        {"name": str(data / "folder"), "split": "test", "columns": {"transcription": "text"}, "task": "asr"},
    ]
    rows = open_rows(sources, repeat={"mine": 2})
    assert rows["text"][:] == [text for text in TEXTS for _ in range(2)] + TEXTS + TEXTS[:1]
    assert rows["source"][:] == ["mine"] * 6 + [None] * 4
    assert rows["task"][-1] == "asr"
    assert all(clip["bytes"] or Path(clip["path"]).is_file() for clip in rows["audio"])
    opened = open_streams([source for source in sources if not isinstance(source, str)], by_task=True)
    assert opened.sizes == {"asr": 1, "mine": 3}


def test_metadata_of_clips_may_be_parquet(tmp_path):
    clips = [write_clip(tmp_path / f"{i}.wav", seconds) for i, seconds in enumerate(SECONDS)]
    rows = Dataset.from_dict({"file_name": [clip.name for clip in clips], "text": TEXTS})
    rows.to_parquet(tmp_path / "metadata.parquet")
    found = open_rows(str(tmp_path))
    assert (found["text"][:], found["seconds"][:]) == (TEXTS, SECONDS)
    assert find_parts(tmp_path)[0].source == str(tmp_path)
    (tmp_path / "metadata.parquet").write_text("no table")
    with pytest.raises(ValueError, match="metadata.parquet` cannot be read as Parquet after row 0"):
        open_rows(str(tmp_path))


@pytest.mark.parametrize("form", ["rows.jsonl", "rows.parquet", "saved"])
def test_source_and_task_of_a_mapping_fill_the_rows_that_have_none(data, tmp_path, form):
    rows = [
        {"audio": str(data / "clips/0.wav"), "text": "yes", "source": name, "task": None} for name in ("web", None)
    ]
    path = tmp_path / form
    if form == "rows.jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        table = Dataset.from_list(rows)
        table.to_parquet(path) if form == "rows.parquet" else table.save_to_disk(path)
    source = {"path": str(path), "source": "mine", "task": "asr"}
    read = [open_rows(source), open_streams(source).streams[EVERY_ROW], LabelledRows(source)]
    for rows in read:
        assert [(row["source"], row["task"]) for row in rows] == [("web", "asr"), ("mine", "asr")]


@pytest.mark.parametrize("form", ["folder", "saved_splits"])
def test_a_split_is_named_or_a_part_of_one(data, form):
    def texts(split):
        return open_rows({"path": str(data / form), "split": split}, FORMS[form])["text"][:]

    assert texts("test") == TEXTS[:1]
    assert texts("train[1:]") == TEXTS[1:]
    assert texts("test+train[:1]") == TEXTS[:1] * 2
    with pytest.raises(ValueError, match=r"has no split `dev`; its splits are \['train', 'test'\]"):
        texts("dev")


@pytest.mark.parametrize("form", ["rows.jsonl", "rows.csv", "clips.tar", "rows.parquet", "saved"])
def test_a_name_with_brackets_is_a_file_before_it_is_a_pattern(data, form):
    place = data / form
    copy = place.with_name(f"{place.stem} [1]{place.suffix}")
    place.rename(copy)
    try:
        assert open_rows(str(copy), FORMS[form])["text"][:] == TEXTS
        assert [row["text"] for row in open_streams(str(copy), columns=FORMS[form]).streams[EVERY_ROW]] == TEXTS
    finally:
        copy.rename(place)


def test_a_list_in_a_json_file_may_stand_after_white_space(data):
    (data / "spaced.json").write_text(f"\n  {(data / 'rows.json').read_text()}\n")
    assert open_rows(str(data / "spaced.json"))["text"][:] == TEXTS


def test_a_question_mark_in_a_name_is_no_query(tmp_path):
    write_clip(tmp_path / "clips" / "Who?.wav", 0.5)
    rows = [{"audio": "clips/Who?.wav", "text": "who"}]
    (tmp_path / "What?.jsonl").write_text(json.dumps(rows[0]))
    assert open_rows(str(tmp_path / "What?.jsonl"))["seconds"][:] == [0.5]
    assert is_clip("Who?.wav") and is_clip("https://host/a.wav?token=x") and not is_clip("a.wav.gz")
    assert kind_of("https://host/a.tar.gz?token=x") == "webdataset"


def test_a_folder_with_brackets_in_its_name_is_refused_because_the_library_finds_nothing_there(tmp_path):
    (tmp_path / "set [1]").mkdir()
    (tmp_path / "set [1]" / "train.jsonl").write_text('{"question": "a?", "answer": "b"}\n')
    with pytest.raises(ValueError, match=r"the `\[` in the name of the folder `.*set \[1\]` as a pattern: rename"):
        open_rows(str(tmp_path / "set [1]"))
    assert open_rows(str(tmp_path / "set [1]" / "train.jsonl"))["answer"][:] == ["b"]


def test_a_folder_whose_name_ends_like_a_file_is_a_folder(tmp_path):
    (tmp_path / "set.csv").mkdir()
    (tmp_path / "set.csv" / "train.jsonl").write_text('{"question": "a?", "answer": "b"}\n')
    assert open_rows(str(tmp_path / "set.csv"))["answer"][:] == ["b"]


@pytest.mark.parametrize("form", ["saved", "rows.parquet"])
def test_rows_of_text_alone_have_no_seconds_in_any_form(tmp_path, form):
    rows = Dataset.from_list([{"question": "a?", "answer": "b"}])
    rows.save_to_disk(tmp_path / form) if form == "saved" else rows.to_parquet(tmp_path / form)
    assert open_rows(str(tmp_path / form))["seconds"][:] == [0.0]


WITH_SPLITS = {"saved_splits": {}, "jsonl_splits": {}, "parquet_splits": {}, "folder": FORMS["folder"]}


@pytest.mark.parametrize("split", ["all", "train+test"])
@pytest.mark.parametrize("form", WITH_SPLITS)
def test_whole_splits_are_joined_in_tables_streams_and_one_by_one(data, form, split):
    source = {"path": str(data / form), "split": split}
    columns, texts = WITH_SPLITS[form], sorted([*TEXTS, TEXTS[0]])
    opened = open_streams(source, columns=columns)
    assert sorted(open_rows(source, columns)["text"][:]) == texts
    assert sorted(row["text"] for row in opened.streams[EVERY_ROW]) == texts
    assert sorted(row["text"] for _, row in each_row(source, columns)) == texts
    assert sorted(row["text"] for row in LabelledRows(source, columns)) == texts
    parts = open_parts(source, columns)
    assert sorted(row.values["text"] for part in parts for row in part.read()) == texts


@pytest.mark.parametrize("form", [form for form in FORMS if form not in WITH_SPLITS])
def test_all_splits_of_a_form_without_splits_are_its_rows(data, form):
    source = {"path": str(data / form), "split": "all"}
    assert open_rows(source, FORMS[form])["text"][:] == TEXTS
    assert [row["text"] for row in open_streams(source, columns=FORMS[form]).streams[EVERY_ROW]] == TEXTS


@pytest.mark.parametrize("form", WITH_SPLITS)
def test_a_stream_refuses_a_part_of_a_split(data, form):
    with pytest.raises(ValueError, match=r"`split` is 'train\[:1\]', but a stream has no parts of splits: name whole"):
        open_streams({"path": str(data / form), "split": "train[:1]"}, columns=WITH_SPLITS[form])


def test_several_splits_without_train_must_be_named(data, tmp_path):
    rows = Dataset.from_list([{"question": "a?", "answer": "b"}])
    DatasetDict({"a": rows, "b": rows}).save_to_disk(tmp_path / "ab")
    with pytest.raises(ValueError, match=r"has the splits \['a', 'b'\]: choose one with `split`"):
        open_rows(str(tmp_path / "ab"))


def test_a_config_that_is_not_there_names_those_that_are(data):
    with pytest.raises(ValueError, match=r"BuilderConfig 'fr' not found. Available: \['default'\]"):
        open_rows({"path": str(data / "folder"), "config": "fr"}, FORMS["folder"])
    with pytest.raises(ValueError, match="BuilderConfig 'fr' not found"):
        open_rows({"path": str(data / "folder"), "name": "fr"}, FORMS["folder"])  # as of `load_dataset`


def test_a_data_set_of_the_hub_is_opened_by_name_with_its_config_and_split(data, monkeypatch):
    asked = []

    def build(path, name=None, **options):
        asked.append((path, name, options))
        return original(str(data / "folder"))

    original = datasets.load_dataset_builder
    monkeypatch.setattr(datasets, "load_dataset_builder", build)
    source = {"name": "who/what", "config": "en", "split": "test", "revision": "v1"}
    assert open_rows(source, FORMS["folder"])["text"][:] == TEXTS[:1]
    assert asked == [("who/what", "en", {"data_files": None, "data_dir": None, "revision": "v1"})]


def test_a_hub_that_does_not_answer_is_one_sentence():
    with pytest.raises(FileNotFoundError, match="There is no data at `who/what`: it is not a file or folder"):
        open_rows("who/what")


@pytest.mark.parametrize(
    ("name", "local"),
    [("who/what", False), ("what", False), ("./what", True), ("a/b/c", True), ("rows.csv", True), ("$X/what", True)],
)
def test_a_name_of_the_hub_is_told_from_a_path(name, local):
    assert looks_local(name) is local


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "`data` is an empty list"),
        (
            {"path": "a.csv", "spilt": "x"},
            r"has the keys \['spilt'\]: its keys are `path` \(or `name`\), config, split",
        ),
        ({"split": "x"}, "has no `path`"),
        (3, "`data` holds 3; give a path"),
        ({"path": "a.csv", "streaming": "yes"}, "`streaming` of `data` is 'yes'"),
        ({"path": "a", "name": "b", "config": "c"}, "has `path`, `name` and `config`"),
    ],
)
def test_a_source_that_says_something_else_is_refused(value, message):
    with pytest.raises(ValueError, match=message):
        list_sources(value)


# ---- columns ----


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (
            "rows.csv",
            r"line 2 of .*rows.csv` lacks \['audio', 'text'\].*Write `columns: \{path: audio, sentence: text\}`",
        ),
        ("folder", r"Write `columns: \{transcription: text\}`"),
        ("clips.tar", r"clip `k0` of .*Write `columns: \{wav: audio, json.text: text\}`"),
    ],
)
def test_columns_of_other_names_are_suggested_and_never_guessed(data, form, message):
    with pytest.raises(ValueError, match=message):
        open_rows(str(data / form))


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ("rows.csv", r"rows.csv` lacks \['audio', 'text'\].*Write `columns: \{path: audio, sentence: text\}`"),
        ("folder", r"folder` lacks \['text'\].*Write `columns: \{transcription: text\}`"),
        ("clips.tar", r"clips.tar` lacks \['audio', 'text'\].*Write `columns: \{wav: audio, json.text: text\}`"),
        ("spaced.csv", r"The fields of `.*spaced.csv` are separated by ';'"),
        ("list.jsonl", r"line 1 of .*list.jsonl` is \['a.wav', 'x'\]; expected an object with `audio` and `text`"),
    ],
)
def test_evaluation_which_refuses_no_row_refuses_files_without_its_columns(data, form, message):
    (data / "spaced.csv").write_text("audio;text\nclips/0.wav;yes\n")
    (data / "list.jsonl").write_text('["a.wav", "x"]\n')
    with pytest.raises(ValueError, match=message):
        open_source(str(data / form), None)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"sentense": "text", "path": "audio"},
            r"`columns` maps `sentense`, and .* it has \['n', 'path', 'sentence'\]",
        ),
        ({"text": "sentence"}, "`columns` maps `text` to `sentence`; our names are .*write `sentence: text`"),
        ({"sentence": "text", "n": "text"}, "`columns` maps 2 columns to `text`: choose one"),
        (["text"], "`columns` is .*give `their_name: our_name` pairs"),
    ],
)
def test_a_mapping_that_does_not_fit_is_refused(data, columns, message):
    check = RowCheck() if "sentense" not in columns else lambda row, name: None
    with pytest.raises(ValueError, match=message):
        open_rows(str(data / "rows.csv"), columns, check=check, with_seconds=False)


@pytest.mark.parametrize("form", ["rows.jsonl", "rows.parquet"])
def test_a_mapping_onto_a_column_that_is_there_needs_a_choice(data, tmp_path, form):
    rows = [{"audio": str(data / "clips/0.wav"), "text": "shown", "spoken": "said"}]
    path = tmp_path / form
    Dataset.from_list(rows).to_parquet(path) if form.endswith("parquet") else path.write_text(json.dumps(rows[0]))
    with pytest.raises(ValueError, match="`text: null`"):
        open_rows(str(path), {"spoken": "text"})
    assert open_rows(str(path), {"spoken": "text", "text": None})["text"][:] == ["said"]


# ---- values ----

CLIP = {"audio": "a.wav", "seconds": 1.0}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**CLIP, "text": None}, r"lacks \['text'\]"),
        ({**CLIP, "text": 12}, "has `text` 12; expected what the clip says"),
        ({**CLIP, "text": " "}, "has `text` ' '; expected what the clip says, or \"\" for a clip without speech"),
        ({**CLIP, "text": True}, "has `text` True; expected"),
        ({**CLIP, "text": {"a": 1}}, r"has `text` \{'a': 1\}; expected"),
        ({**CLIP, "text": "x", "seconds": -1}, "has `seconds` -1; expected a number over 0"),
        ({**CLIP, "text": "x", "seconds": float("nan")}, "has `seconds` nan"),
        ({**CLIP, "text": "x", "seconds": float("inf")}, "has `seconds` inf"),
        ({**CLIP, "text": "x", "seconds": "1"}, "has `seconds` '1'"),
        ({**CLIP, "text": "x", "seconds": True}, "has `seconds` True"),
        ({"audio": 3, "text": "x"}, "has `audio` 3; expected a path"),
        ({"audio": "", "text": "x"}, "has `audio` ''; expected a path"),
        ({"audio": {"path": None}, "text": "x"}, r"has `audio` \{'path': None\}, which holds no clip"),
        ({"audio": None, "text": "x"}, r"lacks \['audio'\]"),
        ({**CLIP, "text": "x", "question": 5, "answer": "a"}, "has `question` 5; expected text"),
        ({**CLIP, "text": "x", "question": "q?"}, r"has a `question` \('q\?'\) and no `answer`"),
        ({**CLIP, "text": "x", "answer": ""}, "has `answer` ''; expected text, or no answer"),
        ({**CLIP, "text": "x", "source": 1}, "has `source` 1; expected text"),
        ({**CLIP, "text": "a <|im_end|>"}, r"has `text` 'a <\|im_end\|>', which holds the control token '<\|im"),
        ({**CLIP, "text": "x", "answer": "<|audio|>"}, r"has `answer` '<\|audio\|>', which holds the control token"),
        ({"question": "", "answer": "x"}, "has an empty `question` and no `audio`"),
        ({"audio": ["a.wav", "b.wav"], "text": ["x"], "answer": "y"}, "has 2 clips and 1 transcripts in `text`"),
        ({"audio": ["a.wav", "b.wav"], "text": ["x", "y"]}, "has 2 clips and no `answer`: give `answer`"),
        ({"messages": "hi"}, "has `messages` 'hi'; expected a list"),
        ({"messages": [{"role": "user", "content": "hi"}]}, "without a turn of the `assistant`"),
        ({"messages": [{"role": 1, "content": "hi"}]}, "has a message with the `role` 1"),
        ({"messages": [{"role": "assistant", "content": [{"type": "text", "text": 4}]}]}, "a text part with 4"),
        ({"messages": [{"role": "assistant", "content": " "}]}, "an `assistant` turn without text"),
        ({"messages": [{"role": "assistant", "content": [{"type": "audio", "path": "a"}]}]}, "audio in a turn"),
        ({"messages": [{"role": "assistant", "content": "a"}, {"role": "user", "content": [{"type": "audio"}]}],
          "audio": "a.wav"}, "has audio after the last turn of the `assistant`, which no turn answers: add the"),
        ({"messages": [{"role": "assistant", "content": "a"}], "answer": "b"}, "both `messages` and `question` or"),
        ({"messages": [{"role": "user", "content": [{"type": "audio"}]}, {"role": "assistant", "content": "a"}]},
         "has 1 audio parts without a clip and 0 clips in `audio`"),
        (["a.wav", "x"], r"is \['a.wav', 'x'\]; expected an object with `audio` and `text`"),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_learnt_from_is_refused_with_file_row_and_value(tmp_path, row, message):
    path = tmp_path / "rows.jsonl"
    good = {"audio": str(write_clip(tmp_path / "good.wav", 0.1)), "text": "x", "seconds": 0.1}
    path.write_text(json.dumps(good) + "\n" + json.dumps(row))
    check = RowCheck(control=("<|audio|>", "<|im_end|>"))
    for read in (open_rows, open_streams):
        with pytest.raises(ValueError, match=rf"line 2 of .*rows.jsonl` .*{message}"):
            read(str(path), check=check)


@pytest.mark.parametrize("value", [None, " ", "x <|im_end|>"])
def test_rows_of_the_library_are_refused_by_their_number(data, tmp_path, value):
    stored = datasets.load_from_disk(str(data / "saved")).select([0])
    stored = stored.remove_columns("text").add_column("text", [value])
    datasets.concatenate_datasets([datasets.load_from_disk(str(data / "saved")), stored]).save_to_disk(
        tmp_path / "bad"
    )
    with pytest.raises(ValueError, match=r"row 3 of `.*bad`"):
        open_rows(str(tmp_path / "bad"), check=RowCheck(control=("<|im_end|>",)))


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_a_clip_without_speech_has_an_empty_text(tmp_path, capsys, ending):
    rows = [{"audio": str(write_clip(tmp_path / "hum.wav", 0.5)), "text": text} for text in ("", "x")]
    path = tmp_path / f"rows.{ending}"
    path.write_text("\n".join(map(json.dumps, rows)))
    if ending == "parquet":
        Dataset.from_list(rows).to_parquet(path)
    check = RowCheck(control=("<|audio|>",), losses=("ctc",))
    assert open_rows(str(path), check=check)["text"][:] == ["", "x"]
    (stream,) = open_streams(str(path), check=check).streams.values()
    assert [row["text"] for row in stream] == ["", "x"]
    assert cli.main(["data", "check", str(path), "--skip", str(tmp_path / "out.jsonl")]) == 0
    assert [json.loads(line)["text"] for line in (tmp_path / "out.jsonl").read_text().splitlines()] == ["", "x"]


def test_a_stage_of_transcripts_refuses_rows_without_one():
    with pytest.raises(
        ValueError, match="row has no transcript .`text`., and this stage learns only from transcripts"
    ):
        RowCheck(losses=("ctc",))({"audio": "a.wav", "answer": "b"}, "row")
    with pytest.raises(ValueError, match="row has no clip, and this stage learns only from transcripts"):
        RowCheck(losses=("ctc",))({"question": "a", "answer": "b"}, "row")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "a.csv",
            "audio;text\na.wav;one\n",
            r"are separated by ';': save it with commas as .csv or tabs as .tsv",
        ),
        ("a.csv", "audio\ttext\na.wav\tone\n", r"The fields of `.*a.csv` are separated by '\\t': save it with commas"),
        ("a.tsv", "audio,text\na.wav,one\n", r"The fields of `.*a.tsv` are separated by ',': save it with commas as"),
        ("a.csv", "audio,text\na.wav,one, two\n", r"line 2 of .* has 3 fields and the first line names 2 columns"),
        ("a.csv", "audio,audio\na.wav,x\n", "names a column twice"),
        ("a.csv", "audio,text,seconds\na.wav,x,long\n", "line 2 of .* has `seconds` 'long'; expected a number"),
        ("a.tsv", 'audio\ttext\na.wav\t"never closed\n', "cannot be read as CSV"),
        ("a.jsonl", '{"audio": \n', "line 1 of .* is not JSON"),
        ("a.jsonl", "", "is empty: it needs one JSON object a line"),
    ],
)
def test_a_file_that_cannot_be_read_names_the_line(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        open_rows(str(tmp_path / name))


def test_a_file_that_is_not_in_utf8_is_named(tmp_path):
    (tmp_path / "a.csv").write_bytes("audio,text\na.wav,é\n".encode("latin-1"))
    with pytest.raises(ValueError, match="a.csv` is not in UTF-8"):
        open_rows(str(tmp_path / "a.csv"))


# ---- lengths ----


def test_a_clip_that_is_missing_is_found_by_its_length(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"audio": "gone.wav", "text": "x"}')
    with pytest.raises(FileNotFoundError, match=r"line 1 of .*a.jsonl`: the clip `.*gone.wav` cannot be opened"):
        open_rows(str(tmp_path / "a.jsonl"))


def test_lengths_of_many_files_are_kept_and_a_changed_file_is_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr(lengths, "KEPT_FROM", 1)
    clip = str(write_clip(tmp_path / "a.wav", 0.5))
    assert many_seconds([[clip], [clip, clip]], ["a", "b"], tmp_path) == [0.5, 1.0]
    monkeypatch.setattr(lengths, "clip_seconds", lambda clip, name: -1.0)
    assert many_seconds([[clip]], ["a"], tmp_path) == [0.5]  # of the database
    write_clip(tmp_path / "a.wav", 0.75)
    assert many_seconds([[clip]], ["a"], tmp_path) == [-1.0]  # read anew


# ---- clips and transcripts of a row ----


def test_parts_that_name_no_clip_take_those_of_the_column_in_order():
    parts = [
        {"type": "audio"},
        {"type": "text", "text": "and"},
        {"type": "audio", "path": "own.wav"},
        {"type": "audio"},
    ]
    row = {"messages": [{"role": "user", "content": parts}], "audio": ["a.wav", "b.wav"], "text": ["a", None, "b"]}
    assert clips_of(row) == ["a.wav", "own.wav", "b.wav"]
    assert transcripts_of(row) == ["a", None, "b"]


def test_rows_of_one_clip_of_several_and_of_none_share_a_table(data):
    (data / "mixed.jsonl").write_text(
        json.dumps({"audio": "clips/0.wav", "text": "a"})
        + "\n"
        + json.dumps({"audio": ["clips/0.wav", "clips/2.wav"], "text": ["a", None], "answer": "b"})
        + "\n"
        + json.dumps({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]})
        + "\n"
        + json.dumps(
            {
                "messages": [
                    {"role": "user", "content": [{"type": "audio", "path": "clips/1.wav"}, "What?"]},
                    {"role": "assistant", "content": [{"type": "text", "text": "ho"}]},
                ]
            }
        )
    )
    rows = open_rows(str(data / "mixed.jsonl"))
    assert rows["seconds"][:] == [0.5, 1.5, 0.0, 0.75]
    assert [len(clips_of(row)) for row in rows] == [1, 2, 0, 1]
    assert [transcripts_of(row) for row in rows] == [["a"], ["a", None], [], [None]]


# ---- the check of the clips ----


@pytest.fixture
def bad(tmp_path) -> Path:
    write_clip(tmp_path / "good.wav", 0.5)
    write_clip(tmp_path / "long.wav", 3.0)
    soundfile.write(tmp_path / "silent.wav", np.zeros(8000), RATE)
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), RATE)
    soundfile.write(tmp_path / "short.wav", 0.1 * np.ones(80), RATE)
    (tmp_path / "text.wav").write_text("no audio at all")
    names = ["good", "long", "silent", "empty", "short", "text", "gone", "good"]
    rows = [{"audio": f"{name}.wav", "text": name} for name in names]
    rows[-1]["seconds"] = 500
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "rows.jsonl"


def test_bad_clips_are_listed_with_their_rows_and_reasons(bad):
    rows = open_rows(str(bad), with_seconds=False)
    found = find_bad_clips(rows, max_seconds=2.0)
    assert [(clip.row, clip.kind) for clip in found] == [
        *((1, "too long"), (2, "silent"), (3, "empty"), (4, "too short"), (5, "unreadable"), (6, "missing")),
        (7, "other length"),
    ]
    assert found[0].clip == str(bad.parent / "long.wav") and "It lasts 3.0 s and the limit is 2 s" in found[0].reason


def test_silence_is_right_where_the_text_is_empty(tmp_path):
    soundfile.write(tmp_path / "silent.wav", np.zeros(8000), RATE)
    rows = [
        {"audio": "silent.wav", "text": ""},
        {"audio": ["silent.wav", "silent.wav"], "text": ["", "hello"], "question": "Same?", "answer": "No"},
    ]
    for number, row in enumerate(rows):
        (tmp_path / f"{number}.jsonl").write_text(json.dumps(row))
    assert find_bad_clips(open_rows(str(tmp_path / "0.jsonl"))) == []
    (bad,) = find_bad_clips(open_rows(str(tmp_path / "1.jsonl")))
    assert bad.reason == 'Its loudest sample is 0, and its `text` is not "".'


def test_the_kind_of_a_bad_clip_does_not_come_from_its_name(tmp_path, monkeypatch):
    folder = tmp_path / "blasts, truncated NaN that is empty"
    long = write_clip(folder / "long.wav", 3.0)
    (folder / "text.wav").write_text("no audio at all")
    (folder / "cut.wav").write_bytes(long.read_bytes()[:1000])
    soundfile.write(folder / "nan.wav", np.full(8000, np.nan), RATE, subtype="FLOAT")
    soundfile.write(folder / "empty.wav", np.zeros(0), RATE)
    names = {"text.wav": "unreadable", "cut.wav": "truncated", "nan.wav": "not finite", "empty.wav": "empty"}
    assert {name: read_clip(str(folder / name))[1][0] for name in names} == names
    monkeypatch.setattr("soundwave_hf.processing.containers_soundwave.MAX_SECONDS", 2.0)  # of bytes
    assert read_clip({"bytes": long.read_bytes(), "path": None})[1][0] == "too long"


def test_bad_clips_are_refused_or_left_out_counted_and_listed(bad, capsys):
    rows = open_rows(str(bad), with_seconds=False)
    with pytest.raises(ValueError, match=r"6 bad clips in 8 rows: 1 silent, .*\n  row 2, .*silent.wav: silent"):
        check_clips(rows, skip=False)
    kept, left_out = check_clips(rows, skip=True)
    assert (kept["text"][:], len(left_out)) == (["good", "long"], 6)
    assert "6 rows are left out." in capsys.readouterr().out


def test_the_command_lists_bad_clips_and_writes_the_others(bad, capsys):
    assert cli.main(["data", "check", str(bad), "--max-seconds", "2"]) == 1
    assert "7 bad clips in 8 rows" in capsys.readouterr().out
    good = bad.parent / "good.jsonl"
    assert cli.main(["data", "check", str(bad), "--max-seconds", "2", "--skip", str(good)]) == 0
    assert open_rows(str(good))["text"][:] == ["good"]
    assert cli.main(["data", "check", str(good)]) == 0
    assert "0 bad clips in 1 rows: none." in capsys.readouterr().out


def test_rows_that_training_would_refuse_are_counted_and_listed(bad, capsys):
    with open(bad, "a") as file:
        file.write('{"audio": "good.wav", "text": 7}\n["a list"]\n{"audio": "good.wav"}\n')
    assert cli.main(["data", "check", str(bad)]) == 1
    printed = capsys.readouterr().out
    assert printed.startswith("6 bad clips and 3 unusable rows in 11 rows: 1 silent, 1 empty")
    assert f"  row 8, line 9 of `{bad}`: unusable. line 9 of `{bad}` has `text` 7; expected what" in printed
    assert cli.main(["data", "check", str(bad), "--skip", str(bad.parent / "good.jsonl")]) == 2


def test_a_folder_of_clips_without_texts_is_told_how_to_add_them(tmp_path, capsys):
    (tmp_path / "clips").mkdir()
    write_clip(tmp_path / "clips" / "a.wav", 1.0)
    assert cli.main(["data", "check", str(tmp_path / "clips")]) == 2
    assert "takes a metadata.csv with the columns `file_name` and `text`." in capsys.readouterr().err


def test_rows_with_their_clips_are_written_as_parquet(data, capsys):
    out = data / "kept.parquet"
    assert cli.main(["data", "check", str(data / "rows.parquet"), "--skip", str(out)]) == 0
    assert open_rows(str(out))["text"][:] == TEXTS
    assert cli.main(["data", "check", str(data / "rows.parquet"), "--skip", str(data / "kept.jsonl")]) == 2
    assert "give `--skip` a file ending in .parquet" in capsys.readouterr().err.replace("that ends in", "ending in")


def test_audio_parts_of_a_chat_may_hold_their_clip_in_any_form(data):
    content = (data / "clips/0.wav").read_bytes()
    text = base64.b64encode(content).decode()
    forms = [
        {"type": "audio", "path": "clips/0.wav"},
        {"type": "audio", "audio": "clips/0.wav"},
        {"type": "audio", "base64": text},
        {"type": "input_audio", "input_audio": {"data": text, "format": "wav"}},
        {"type": "audio_url", "audio_url": {"url": f"data:audio/wav;base64,{text}"}},
    ]
    rows = [
        {"messages": [{"role": "user", "content": [part]}, {"role": "assistant", "content": "hi"}]} for part in forms
    ]
    (data / "forms.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert open_rows(str(data / "forms.jsonl"))["seconds"][:] == [0.5] * 5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--skip", "out.csv"], "`--skip` is `"),
        (["--max-seconds", "0"], "`--max-seconds` is 0; give a number over 0."),
        (["--max-seconds", "nan"], "`--max-seconds` is nan; give a number over 0."),
    ],
)
def test_a_check_that_cannot_be_done_is_refused_before_a_clip_is_read(words, message, data, capsys):
    assert cli.main(["data", "check", str(data / "none.jsonl"), *words]) == 2
    assert message in capsys.readouterr().err


def test_a_compressed_file_that_was_cut_off_is_refused(data, tmp_path):
    whole = gzip.compress(b'{"audio": "a.wav", "text": "go on"}\n')
    (tmp_path / "rows.jsonl.gz").write_bytes(whole[:-8])
    with pytest.raises(ValueError, match="rows.jsonl.gz` is compressed and was cut off or damaged"):
        open_rows(str(tmp_path / "rows.jsonl.gz"))


# ---- clips in every form that JSON can hold ----


def test_clips_of_json_lines_in_any_form_are_kept(tmp_path):
    file = tmp_path / "a.wav"
    soundfile.write(file, np.full(800, 0.5), 16_000)
    text = base64.b64encode(file.read_bytes()).decode()
    forms = [
        {"path": "a.wav"},
        {"url": file.as_uri()},
        {"base64": text},
        {"data": f"data:audio/wav;base64,{text}"},
        {"array": [0.5] * 800, "sampling_rate": 16_000},
    ]
    lines = [json.dumps({"audio": form, "text": "hi"}) for form in [*forms, "a.wav"]]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    rows = open_rows(str(tmp_path / "rows.jsonl"))
    assert rows["seconds"][:] == [0.05] * 6
    for row in rows:
        assert load_clip(row["audio"], "clip", None, 16_000, 0.0) == pytest.approx(np.full(800, 0.5), abs=1e-3)
    assert "data:" not in describe_bad_clips(find_bad_clips(rows, max_seconds=0.01), 6)


@pytest.mark.parametrize(
    "clip",
    [
        {"path": None},
        {"bytes": None},
        {"array": [1, 2], "sampling_rate": None},
        {"array": [[0.5] * 9], "sampling_rate": 8},
    ],
)
def test_a_clip_of_json_without_sound_does_not_hide_the_other_rows(tmp_path, clip):
    soundfile.write(tmp_path / "a.wav", np.full(800, 0.5), 16_000)
    lines = [json.dumps({"audio": audio, "text": "hi"}) for audio in ({"path": "a.wav"}, clip)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    rows = open_rows(str(tmp_path / "rows.jsonl"), check=lambda row, name: None, with_seconds=False)
    assert len(rows) == 2 and rows[0]["audio"]["path"].endswith("a.wav")


def test_rows_that_a_check_writes_keep_urls_and_data(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.full(800, 0.5), 16_000)
    clip = "data:audio/wav;base64," + base64.b64encode((tmp_path / "a.wav").read_bytes()).decode()
    forms = [{"url": (tmp_path / "a.wav").as_uri()}, {"data": clip}, {"path": "a.wav"}]
    lines = [json.dumps({"audio": form, "text": "hi"}) for form in forms]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert cli.main(["data", "check", str(tmp_path / "rows.jsonl"), "--skip", str(tmp_path / "out.jsonl")]) == 0
    kept = [json.loads(line)["audio"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert kept == [(tmp_path / "a.wav").as_uri(), clip, str(tmp_path / "a.wav")]
    assert open_rows(str(tmp_path / "out.jsonl"))["seconds"][:] == [0.05] * 3


def test_a_check_does_not_write_over_the_rows_that_it_reads(tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"audio": "missing.wav", "text": "hi"}\n', encoding="utf-8")
    assert cli.main(["data", "check", str(path), "--skip", str(path)]) == 2
    assert "which is read by this command: give another file" in capsys.readouterr().err
    assert "missing.wav" in path.read_text(encoding="utf-8")


# ---- columns of any type ----


def test_columns_that_training_ignores_may_have_any_types(data, tmp_path, capsys):
    clip = str(data / "clips" / "0.wav")
    rows = [{"audio": clip, "text": "yes", "id": 1}, {"audio": clip, "text": "no", "id": "b7"}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert open_rows(str(path))["text"][:] == ["yes", "no"]
    assert cli.main(["data", "check", str(path)]) == 0
    assert cli.main(["data", "check", str(path), "--skip", str(tmp_path / "kept.jsonl")]) == 2
    assert "`id` (number, str). Give all rows one type, or leave a column out" in capsys.readouterr().err


def test_texts_of_another_type_are_rows_that_cannot_be_scored(data, tmp_path):
    clip = str(data / "clips" / "0.wav")
    rows = [{"audio": clip, "text": "yes"}, {"audio": clip, "text": 42}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = open_source(str(tmp_path / "rows.jsonl"), None)
    assert [row["text"] for row in found] == ["yes", None]


@pytest.mark.parametrize("form", ["table", "stream", "list"])
def test_columns_of_rows_in_memory_are_renamed_and_left_out(form):
    rows = Dataset.from_dict({"sentence": ["yes"], "extra": [1]})
    rows = {"table": rows, "stream": rows.to_iterable_dataset(), "list": rows.to_list()}[form]
    assert list(open_source(rows, {"sentence": "text", "extra": None})) == [{"text": "yes"}]


def test_a_column_that_rows_in_memory_lack_is_named():
    rows = Dataset.from_dict({"sentence": ["yes"]})
    with pytest.raises(ValueError, match="`columns` maps `words`, and `the data set` has no such column: it has"):
        open_source(rows, {"words": "text"})


def test_labels_of_rows_in_memory_are_scored_by_their_names():
    rows = Dataset.from_dict({"text": [1]}).cast_column("text", ClassLabel(names=["yes", "no"]))
    assert list(open_source(rows, None)) == [{"text": "no"}]


@pytest.mark.parametrize("form", ["large_string", "list", "path"])
def test_relative_paths_in_parquet_begin_at_its_folder(data, tmp_path, form):
    clips = {"large_string": "../clips/0.wav", "list": ["../clips/0.wav"], "path": {"path": "../clips/0.wav"}}
    kinds = {"large_string": pa.large_string(), "list": pa.list_(pa.string()), "path": None}
    folder = data / "tables"
    folder.mkdir(exist_ok=True)
    audio = pa.array([clips[form]], type=kinds[form])
    text = pa.array([["yes"]] if form == "list" else ["yes"])
    pq.write_table(pa.table({"audio": audio, "text": text}), folder / f"{form}.parquet")
    rows = open_rows(str(folder / f"{form}.parquet"))
    assert rows["seconds"][:] == [0.5]
    for (clip,) in (
        clips_of(rows[0]),
        clips_of(next(iter(open_streams(str(folder / f"{form}.parquet")).streams[EVERY_ROW]))),
    ):
        assert len(load_clip(clip, "clip", None, RATE, 0.01)) == 8000


AUDIO = {"audio": {"path": "a.wav", "bytes": None}, "text": "yes"}
MESSAGES = {
    "messages": [
        {"role": "user", "content": [{"type": "audio", "text": None, "audio": {"path": "a.wav", "bytes": None}}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Hi", "audio": None}]},
    ]
}


def write_rows(folder: Path, row: dict, form: str):
    """The row as a source of this form in the folder, and what `data` takes for it."""
    if form == "metadata":
        folder.mkdir(parents=True, exist_ok=True)
        row = {**row, "audio": "a.wav"} if "audio" in row else row
        (folder / "metadata.jsonl").write_text(json.dumps(row))
        return str(folder)
    rows = Dataset.from_list([row])
    if form == "parquet":
        folder.mkdir(parents=True, exist_ok=True)
        rows = rows.cast_column("audio", Audio(decode=False)) if "audio" in row else rows
        pq.write_table(rows.data.table, folder / "rows.parquet")  # `to_parquet` would put the clip inside
        return str(folder / "rows.parquet")
    if form == "saved":
        rows.save_to_disk(folder)
        return str(folder)
    DatasetDict({"test": rows, "train": rows}).save_to_disk(folder.parent)
    return {"path": str(folder.parent), "split": "train" if form == "saved_split" else "train[:1]"}


@pytest.mark.parametrize("row", [AUDIO, MESSAGES], ids=["audio", "messages"])
@pytest.mark.parametrize("form", ["parquet", "saved", "saved_split", "part_of_saved", "metadata"])
def test_relative_paths_begin_at_the_file_that_names_them(tmp_path, monkeypatch, row, form):
    write_clip(tmp_path / "a.wav", 2.0)  # another one, in the current folder
    monkeypatch.chdir(tmp_path)
    source = write_rows(tmp_path / "set" / "train", row, form)
    wanted = str(write_clip(tmp_path / "set" / "train" / "a.wav", 0.5))
    found = [next(iter(open_rows(source))), next(each_row(source))[1], next(iter(LabelledRows(source)))]
    found += [next(part.read()).values for part in open_parts(source)]
    if form != "part_of_saved":
        found.append(next(iter(open_streams(source).streams[EVERY_ROW])))
    for each in found:
        (clip,) = clips_of(each)
        assert (clip if isinstance(clip, str) else clip["path"]) == wanted
    assert found[0]["seconds"] == 0.5


def test_clips_inside_the_rows_are_not_copied(data):
    for form in ("rows.parquet", "saved"):
        before = Dataset.from_parquet(str(data / form)) if form == "rows.parquet" else load_from_disk(data / form)
        rows = open_rows(str(data / form))
        assert len({file["filename"] for file in rows.cache_files}) == len(before.cache_files)
    assert not list((data / "saved").glob("cache-*"))


@pytest.mark.parametrize("form", ["jsonl", "parquet", "several"])
def test_a_check_keeps_the_other_columns(data, tmp_path, form):
    clip = str(data / "clips" / "0.wav")
    rows = [{"audio": clip, "text": "yes", "emotion": "calm"}]
    (tmp_path / "rows.jsonl").write_text(json.dumps(rows[0]) + "\n")
    Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    sources = {"jsonl": ["rows.jsonl"], "parquet": ["rows.parquet"], "several": ["rows.jsonl", "rows.parquet"]}
    check_source([str(tmp_path / name) for name in sources[form]], None, str(tmp_path / "kept.jsonl"), None)
    kept = [json.loads(line) for line in (tmp_path / "kept.jsonl").read_text().splitlines()]
    assert [row["emotion"] for row in kept] == ["calm"] * len(sources[form])


def test_a_check_writes_other_columns_as_they_are(data, tmp_path):
    audio = str(data / "clips" / "0.wav")
    others = {"origin": {"path": "corpus/x"}, "row": 7, "meta": {"a": 1}}
    rows = [{"audio": audio, "text": "yes", **others}, {"audio": audio, "text": "no", **others, "meta": {}}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    check_source(str(tmp_path / "rows.jsonl"), None, str(tmp_path / "kept.jsonl"), None)
    assert [json.loads(line) for line in (tmp_path / "kept.jsonl").read_text().splitlines()] == rows


def test_a_check_writes_dates_as_text_and_labels_by_their_names(data, tmp_path):
    day = datetime(2024, 5, 6)
    rows = Dataset.from_list([{"audio": str(data / "clips/0.wav"), "text": "yes", "made": day, "mood": 1}])
    rows.cast_column("mood", ClassLabel(names=["sad", "glad"])).to_parquet(tmp_path / "rows.parquet")
    check_source(str(tmp_path / "rows.parquet"), None, str(tmp_path / "kept.jsonl"), None)
    (row,) = map(json.loads, (tmp_path / "kept.jsonl").read_text().splitlines())
    assert (row["made"], row["mood"]) == ("2024-05-06 00:00:00", "glad")


@pytest.mark.parametrize("column", ["audio", "vector"])
def test_bytes_that_json_cannot_hold_are_refused_before_a_clip_is_read(data, tmp_path, monkeypatch, column):
    clip = {"path": "a.wav", "bytes": (data / "clips/0.wav").read_bytes()}
    audio = clip if column == "audio" else str(data / "clips/0.wav")
    Dataset.from_list([{"audio": audio, "text": "yes", "vector": b"x" if column == "vector" else None}]).save_to_disk(
        tmp_path / "saved"
    )
    monkeypatch.setattr("soundwave_hf.data.check.read_clip", None)
    with pytest.raises(
        ValueError, match=f"bytes in `{column}`, and JSON cannot hold those: give `--skip` a file that"
    ):
        check_source(str(tmp_path / "saved"), None, str(tmp_path / "kept.jsonl"), None)


@pytest.mark.parametrize("form", ["rows.jsonl", "rows.parquet"])
def test_a_part_of_a_split_keeps_the_other_columns_too(data, tmp_path, form):
    rows = [{"audio": str(data / "clips/0.wav"), "text": "yes", "mood": "glad", "row": 7}]
    (tmp_path / "rows.jsonl").write_text(json.dumps(rows[0]))
    Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    source = {"path": str(tmp_path / form), "split": "train[:1]"}
    (part,) = open_parts(source)
    for row in (next(each_row(source))[1], next(part.read()).values):
        assert (row["mood"], row["row"]) == ("glad", 7)


def test_numbers_without_words_in_a_rows_language_are_refused_before_training(data, tmp_path):
    clip = str(data / "clips" / "0.wav")
    rows = [{"audio": clip, "text": "a 5", "language": "de"}, {"audio": clip, "text": "b 7", "language": "xx"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert len(open_rows(str(tmp_path / "rows.jsonl"))) == 2
    with pytest.raises(ValueError, match="line 2 of .*rows.jsonl` has the `language` 'xx'. Unsupported language"):
        open_rows(str(tmp_path / "rows.jsonl"), check=RowCheck(spells_numbers=True))


def test_streams_of_paths_and_of_clips_inside_are_refused_with_a_reason(data):
    with pytest.raises(ValueError, match="A stream cannot join these sources .*or leave `streaming` out"):
        open_streams([str(data / "rows.jsonl"), str(data / "rows.parquet")])


def test_a_bad_clip_is_named_without_the_secrets_of_its_url():
    url = "https://me:password@example.org/a.wav?X-Amz-Signature=abc"
    assert name_of_clip(url, 0) == name_of_clip({"path": url}, 0) == "https://example.org/a.wav"
    assert name_of_clip("odd?name#1.wav", 0) == "odd?name#1.wav"


def test_files_of_one_name_in_several_folders_have_digests_of_their_own(tmp_path):
    for folder in ("ann", "bob"):
        write_clip(tmp_path / "set" / folder / "1.wav", 0.5)
        (tmp_path / "set" / folder / "metadata.csv").write_text(f"file_name,transcription\n1.wav,{folder}\n")
    before = digest_source(list_sources(str(tmp_path / "set"))[0])
    assert len([name for name in before if name.endswith("metadata.csv")]) == 2
    (tmp_path / "set" / "ann" / "metadata.csv").write_text("file_name,transcription\n1.wav,other\n")
    assert digest_source(list_sources(str(tmp_path / "set"))[0]) != before


def test_a_url_of_rows_is_refused_without_its_secrets():
    with pytest.raises(ValueError, match="`https://example.org/rows.jsonl` is a URL: download the file") as caught:
        open_rows("https://me:password@example.org/rows.jsonl?token=abc")
    assert "password" not in str(caught.value) and "abc" not in str(caught.value)
