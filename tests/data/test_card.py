"""Cards of prepared sets, and pushing them to the hub."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
from datasets import Audio, Dataset, load_dataset, load_dataset_builder
from huggingface_hub import DatasetCard

from soundwave_hf import cli
from soundwave_hf.data.card import CardFacts, DataSource, read_facts, size_category, write_card
from soundwave_hf.data.check import check_source
from soundwave_hf.data.licenses import HUB_IDS, is_non_commercial, license_fields
from soundwave_hf.data.prepared import find_parts
from soundwave_hf.data.publish import push_folder
from soundwave_hf.data.rows import stored_messages
from soundwave_hf.data.sources import open_rows
from tests.data.corpora import write_clip, write_lines
from tests.local_hub import local_hub


TOKEN = "hf_mine"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two splits with three clips of 1, 2 and 3 s."""
    place = tmp_path / "mine"
    for number in (1, 2, 3):
        write_clip(place / "clips" / f"{number}.wav", float(number))
    rows = [
        {"audio": f"clips/{number}.wav", "text": f"go {number}", "source": source, "language": language}
        for number, source, language in ((1, "a", "en"), (2, "b", "German"), (3, "b", "en"))
    ]
    write_lines(place / "train.jsonl", rows[:2])
    write_lines(place / "test.jsonl", rows[2:])
    return place


def test_a_card_counts_what_the_folder_holds(folder):
    facts = CardFacts(
        title="My set",
        sources=(DataSource("a", "cc-by-4.0", "https://example.org/a"), DataSource("b", "CC BY-NC 4.0")),
        dropped={"length": 3, "wer": 1},
        rows_before=7,
        seed=5,
        versions={"soundwave_hf": "0.3"},
        made_by="soundwave-hf data clean",
    )
    card = DatasetCard.load(write_card(folder, facts))
    assert card.data.license == ["cc-by-4.0", "cc-by-nc-4.0"]
    assert card.data.language == ["de", "en"]
    assert card.data.size_categories == "n<1K"
    assert card.data.task_categories == ["automatic-speech-recognition"]
    assert "non-commercial" in card.data.tags
    files = [{"split": "test", "path": "test.jsonl"}, {"split": "train", "path": "train.jsonl"}]
    (config,) = card.data.configs
    assert config.pop("description").startswith("files of rows, sha256 ")
    assert config == {"config_name": "default", "data_files": files}
    text = card.text
    assert "| default | test | 1 | 1 | 0.00 | - | 3.0 s |" in text
    assert "| a | cc-by-4.0 | 1 | 0.00 | https://example.org/a |" in text
    assert "| b | CC BY-NC 4.0 (non-commercial) | 2 | 0.00 | - |" in text
    assert "**Non-commercial:** the licence of b forbids" in text
    assert "| length | 3 |" in text and "of 7 rows" in text
    assert "Seed: 5." in text and "soundwave_hf 0.3" in text


def test_the_folder_loads_as_the_card_says(folder):
    write_card(folder)
    data = load_dataset(str(folder))
    assert {split: rows["text"][:] for split, rows in data.items()} == {"train": ["go 1", "go 2"], "test": ["go 3"]}


def _folder_of(place: Path, form: str, clips: int) -> Path:
    """A folder of data in one of the forms that `load_dataset` reads: its rows say `go 1`, `go 2`."""
    folder = place / "metadata" if form == "train/metadata.csv" else place / form.partition(".")[0]
    file = folder / form
    names = [f"{number}.wav" for number in range(1, clips + 1)]
    for name in names:
        write_clip(file.parent / name)
    key = "file_name" if "metadata" in form else "audio"
    rows = Dataset.from_dict({key: names, "text": [f"go {number}" for number in range(1, clips + 1)]})
    {".csv": rows.to_csv, ".jsonl": rows.to_json, ".parquet": rows.to_parquet}[file.suffix](file)
    return folder


def _files_of_splits(folder: Path) -> dict[str, list[str]]:
    """What `load_dataset` takes as the files of each split. (To read clips it needs torchcodec.)"""
    found = load_dataset_builder(str(folder)).config.data_files
    return {str(split): sorted(os.path.basename(file) for file in files) for split, files in found.items()}


@pytest.mark.parametrize("clips", [1, 2])
@pytest.mark.parametrize(
    "form",
    [
        *("metadata.csv", "metadata.jsonl", "metadata.parquet", "train/metadata.csv"),
        *("train.csv", "train.jsonl", "train.parquet"),
    ],
)
def test_a_card_leaves_every_form_of_a_folder_as_readable_as_it_was(tmp_path, form, clips):
    folder = _folder_of(tmp_path, form, clips)
    for _ in range(2):
        assert check_source(str(folder), None, None, None) == []
        write_card(folder, read_facts(folder).with_licenses("mit"))
        assert [source.rows for source in read_facts(folder).sources] == [clips]
    assert len(open_rows(str(folder))) == clips
    with_clips = ["1.wav", "2.wav"][:clips] if "metadata" in form else []
    assert _files_of_splits(folder) == {"train": sorted([*with_clips, Path(form).name])}


def test_each_split_folder_of_clips_is_a_split(tmp_path):
    for split, text in (("train", "go"), ("dev", "stop")):
        write_clip(tmp_path / split / "clips" / "1.wav")
        (tmp_path / split / "metadata.csv").write_text(f"file_name,text\nclips/1.wav,{text}\n")
    assert "| default | validation | 1 |" in write_card(tmp_path).read_text()
    files = ["1.wav", "metadata.csv"]
    assert _files_of_splits(tmp_path) == {"train": files, "validation": files}


def test_a_card_of_an_earlier_version_is_read_and_its_facts_are_moved_out_of_the_data(tmp_path):
    folder = _folder_of(tmp_path, "metadata.csv", 1)
    write_card(folder, CardFacts(sources=(DataSource("*", "mit"),)))
    (folder / ".card.json").rename(folder / "card.json")
    assert read_facts(folder).sources[0].license == "mit"
    assert DatasetCard.load(write_card(folder)).data.license == "mit"
    assert not (folder / "card.json").exists() and read_facts(folder).sources[0].license == "mit"


def test_a_file_card_json_of_the_user_is_not_taken_for_facts(folder):
    (folder / "card.json").write_text('{"sources": "mine"}')
    write_card(folder)
    assert (folder / "card.json").read_text() == '{"sources": "mine"}'
    (folder / ".card.json").write_text("{")
    with pytest.raises(ValueError, match=r"\.card.json` is no JSON file .*: move it away, and write the card again"):
        write_card(folder)


def test_a_saved_data_set_gets_no_card(tmp_path):
    Dataset.from_dict({"text": ["go"]}).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match="was written by `save_to_disk`, and `load_dataset` does not read that form"):
        write_card(tmp_path / "saved")


def test_the_command_takes_licences_and_keeps_them(folder, capsys):
    words = ["data", "card", str(folder)]
    assert cli.main([*words, "--licenses", "{a: cc-by-4.0, b: {license: mit, url: 'https://b.example'}}"]) == 0
    assert cli.main([*words, "--title", "Two"]) == 0  # the licences are known from the first time
    card = DatasetCard.load(folder / "README.md")
    assert card.data.license == ["cc-by-4.0", "mit"] and card.data.pretty_name == "Two"
    assert cli.main([*words, "--licenses", "cc0-1.0"]) == 0  # one for all
    assert DatasetCard.load(folder / "README.md").data.license == "cc0-1.0"


@pytest.mark.parametrize(
    ("licenses", "message"),
    [
        ("{a: cc-by-4}", "`a` has the licence 'cc-by-4'. Did you mean `cc-by-4.0`?"),
        ("{z: mit}", "There are licences for ['z'], and the rows have the sources ['a', 'b']"),
        ("{a: {licence: mit}}", "give a licence, or {license, url}"),
        ("[mit]", "give a licence, or `{source: licence}`"),
        ("{a: hf_AbCdEfGhIjKlMnOpQrStUv}", "looks like a token or password"),
    ],
)
def test_wrong_licences_are_one_line_and_write_nothing(folder, licenses, message, capsys):
    assert cli.main(["data", "card", str(folder), "--licenses", licenses]) == 2
    assert message in capsys.readouterr().err
    assert not (folder / "README.md").exists()


def test_sources_without_a_licence_are_flagged(folder):
    card = DatasetCard.load(write_card(folder))
    assert card.data.license == "unknown"
    assert "**No licence is stated** for a, b" in card.text


def test_a_card_of_the_user_is_not_overwritten(folder):
    (folder / "README.md").write_text("# Mine\n")
    with pytest.raises(ValueError, match="was not written by `data card`, and would be lost"):
        write_card(folder)
    assert (folder / "README.md").read_text() == "# Mine\n"


def test_rows_beside_those_that_clean_kept_are_not_left_out_without_a_word(tmp_path):
    rows = [{"question": "a?", "answer": "b"}]
    (tmp_path / "kept").mkdir()
    write_lines(tmp_path / "kept" / "000000-00000000.jsonl", rows)
    write_lines(tmp_path / "more.jsonl", rows)
    with pytest.raises(ValueError, match="holds rows in `kept/`, .* and beside it, `more`: move one of them"):
        find_parts(tmp_path)


def test_a_file_with_brackets_in_its_name_is_found_by_the_pattern_of_the_card(tmp_path):
    write_lines(tmp_path / "rows [1].jsonl", [{"question": "a?", "answer": "b"}])
    write_card(tmp_path)
    assert load_dataset(str(tmp_path), split="train")["answer"][:] == ["b"]


def test_what_clean_left_is_read_from_its_report(tmp_path):
    (tmp_path / "kept").mkdir()
    clip = str(write_clip(tmp_path / "a.wav"))
    for block in range(2):
        Dataset.from_dict({"audio": [clip], "text": ["go"]}).to_parquet(tmp_path / "kept" / f"{block}-00000.parquet")
    (tmp_path / "dropped").mkdir()
    write_lines(tmp_path / "dropped" / "0-00000.jsonl", [{"reasons": ["wer"]}])
    report = {"rows": 5, "seed": 3, "versions": {"python": "3.11"}, "filters": [{"name": "wer", "dropped": 3}]}
    (tmp_path / "report.json").write_text(json.dumps(report))
    card = DatasetCard.load(write_card(tmp_path))
    assert "| wer | 3 |" in card.text and "of 5 rows" in card.text and "Seed: 3." in card.text
    assert card.data.configs[0]["data_files"] == [{"split": "train", "path": "kept/*.parquet"}]
    assert len(load_dataset(str(tmp_path), split="train")) == 2


def test_parts_with_other_columns_are_configs(tmp_path):
    write_clip(tmp_path / "a.wav")
    for number in range(2):
        write_lines(tmp_path / f"asr-0000{number}.jsonl", [{"audio": "a.wav", "text": "go"}])
    write_lines(tmp_path / "chat-00000.jsonl", [{"question": "2 + 2?", "answer": "4"}])
    card = DatasetCard.load(write_card(tmp_path))
    assert [{key: config[key] for key in ("config_name", "data_files")} for config in card.data.configs] == [
        {"config_name": "asr", "data_files": [{"split": "train", "path": "asr-*.jsonl"}]},
        {"config_name": "chat", "data_files": [{"split": "train", "path": "chat-00000.jsonl"}]},
    ]
    assert len(load_dataset(str(tmp_path), "asr", split="train")) == 2
    assert load_dataset(str(tmp_path), "chat", split="train")["answer"][:] == ["4"]


def test_files_beside_the_metadata_of_clips_are_refused(tmp_path):
    for name in ("metadata.csv", "test.jsonl"):
        (tmp_path / name).write_text("file_name,text\na.wav,go\n")
    with pytest.raises(
        ValueError, match="metadata.csv, whose rows are its clips, and other files of rows, test.jsonl"
    ):
        find_parts(tmp_path)


def test_files_of_one_split_are_not_read_for_another(tmp_path):
    for name in ("train-00000", "train-00001", "train-held_out", "test"):
        write_lines(tmp_path / f"{name}.jsonl", [{"question": "Where?", "answer": name}])
    assert "| default | train | 2 |" in write_card(tmp_path).read_text()
    splits = {name: rows["answer"][:] for name, rows in load_dataset(str(tmp_path)).items()}
    assert splits == {
        "train": ["train-00000", "train-00001"], "train_held_out": ["train-held_out"], "test": ["test"]
    }  # fmt: skip


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["train-000.jsonl", "train_001.jsonl"],
            "No pattern matches the files of `train` .*number them all in one way",
        ),
        (["a-b.jsonl", "a_b.jsonl"], "The files `a-b` and `a_b` would both be called `a_b`: rename one of them"),
        (["kept/a.jsonl", "kept/b.parquet"], "No pattern matches the files of `kept` in "),
    ],
)
def test_files_that_would_be_left_out_are_refused(tmp_path, names, message):
    (tmp_path / "kept").mkdir()
    for name in names:
        (tmp_path / name).write_text('{"question": "Where?", "answer": "Here."}')
    with pytest.raises(ValueError, match=message):
        find_parts(tmp_path)


def test_a_folder_without_rows_says_what_is_expected(tmp_path):
    with pytest.raises(ValueError, match="holds no rows: expected .jsonl, .csv or .parquet"):
        find_parts(tmp_path)
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        find_parts(tmp_path / "none")


@pytest.mark.parametrize(
    ("license", "expected"),
    [
        *[("cc-by-nc-4.0", True), ("CC BY-NC-SA 3.0", True), ("Non-Commercial licence of X", True)],
        *[("noncommercial", True), ("academic use only", True), ("fair-noncommercial-research-license", True)],
        *[("cc-by-4.0", False), ("mit", False), ("ncsa", False), ("cc-by-nd-4.0", False), ("unlicense", False)],
    ],
)
def test_non_commercial_licences_are_known_by_id_or_name(license, expected):
    assert is_non_commercial(license) is expected


def test_a_licence_that_the_hub_has_no_id_for_is_other_with_a_name():
    assert license_fields(["mit", "My Own 1.0"]) == {"license": ["mit", "other"], "license_name": "my-own-1.0"}
    assert license_fields(["mit", None]) == {"license": ["mit", "unknown"]}
    assert {"mit", "cc0-1.0", "other"} <= HUB_IDS


def test_size_categories_are_the_hubs():
    assert [size_category(n) for n in (0, 999, 1000, 10_000, 5 * 10**9, 10**12)] == [
        *("n<1K", "n<1K", "1K<n<10K", "10K<n<100K", "1B<n<10B", "n>1T"),
    ]


# ---- pushing ----


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with local_hub(tmp_path / "hub", tmp_path / "home", {}) as server:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        server.writable = tmp_path / "written"
        yield server


LOAD = """
import io, soundfile
from datasets import Audio, load_dataset
data = load_dataset("me/set")
rows = data["train"].cast_column("audio", Audio(decode=False))
for row in rows:
    print(row["text"], row["audio"]["path"], len(soundfile.read(io.BytesIO(row["audio"]["bytes"]))[0]))
print(data["test"].features["audio"], sorted(data))
"""


def test_a_pushed_set_plays_where_it_is_loaded(folder, hub, tmp_path, capsys):
    write_card(folder)
    assert cli.main(["data", "push", str(folder), "me/set", "--private"]) == 0, capsys.readouterr().err
    assert "/datasets/me/set." in capsys.readouterr().out
    assert hub.private_made == {"datasets/me/set"}
    for path in (folder / "clips").iterdir():
        path.unlink()  # another machine does not have them
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment |= {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "elsewhere"), "HF_TOKEN": TOKEN}
    done = subprocess.run([sys.executable, "-c", LOAD], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:2] == ["go 1 1.wav 16000", "go 2 2.wav 32000"]
    assert lines[2].startswith("Audio(") and lines[2].endswith("['test', 'train']")
    pushed = list((hub.repositories["datasets/me/set"]).rglob("*.parquet"))
    assert all(str(tmp_path).encode() not in path.read_bytes() for path in pushed)


@pytest.mark.parametrize("form", ["train.jsonl", "train.csv", "metadata.csv"])
def test_a_push_keeps_all_columns(tmp_path, hub, form):
    (folder,) = {write_clip(tmp_path / "mine" / name).parent for name in ("a.wav", "b.wav", "c.wav")}
    row = {
        "file_name" if form == "metadata.csv" else "audio": "a.wav",
        "text": "go",
        "id": "a7",
        "row": "3",
        "mood": "",
    }
    lines = [",".join(row), ",".join(row.values())]
    (folder / form).write_text(json.dumps(row) if form == "train.jsonl" else "\n".join(lines))
    write_card(folder)
    push_folder(folder, "me/set")
    (file,) = hub.repositories["datasets/me/set"].rglob("*.parquet")
    (kept,) = Dataset.from_parquet(str(file)).remove_columns("audio")
    assert (kept["id"], kept["row"], kept["mood"]) == ("a7", "3", "" if form == "train.jsonl" else None)


def test_a_second_push_replaces_the_rows_of_the_first(folder, hub):
    write_card(folder)
    push_folder(folder, "me/set")
    (folder / "test.jsonl").unlink()
    write_card(folder)
    push_folder(folder, "me/set", revision="next")
    names = [path.name for path in hub.repositories["datasets/me/set"].rglob("*") if path.is_file()]
    assert sorted(names) == ["README.md", "train-00000-of-00001.parquet"]
    assert hub.commits == [("datasets/me/set", "main"), ("datasets/me/set", "next")]


def test_messages_and_lists_of_clips_travel_too(tmp_path, hub):
    content = write_clip(tmp_path / "mine" / "a.wav").read_bytes()
    parts = [{"type": "audio", "path": "a.wav"}, {"type": "text", "text": "Who?"}]
    messages = [
        {"role": "user", "content": parts},
        {"role": "assistant", "content": [{"type": "text", "text": "Ann"}]},
    ]
    stored = stored_messages(messages, "")
    clips = [{"bytes": None, "path": "a.wav"}, {"bytes": content, "path": "/far/away/b.wav"}]
    Dataset.from_list([{"messages": stored, "audio": clips}]).to_parquet(tmp_path / "mine" / "train.parquet")
    write_lines(tmp_path / "rows.jsonl", [{"audio": str(tmp_path / "mine" / "a.wav"), "text": "x"}])
    (tmp_path / "mine" / "README.md").write_text("---\nlicense: mit\n---\n# By hand\n")
    push_folder(tmp_path / "mine", "me/set")
    (file,) = hub.repositories["datasets/me/set"].rglob("*.parquet")
    (row,) = Dataset.from_parquet(str(file)).cast_column("audio", [Audio(decode=False)])
    assert [clip["path"] for clip in row["audio"]] == ["a.wav", "b.wav"]
    assert [len(soundfile.read(io.BytesIO(clip["bytes"]))[0]) for clip in row["audio"]] == [8_000, 8_000]
    assert row["messages"][0]["content"][0]["audio"] == {"bytes": content, "path": "a.wav"}
    card = DatasetCard.load(hub.repositories["datasets/me/set"] / "README.md")
    assert (
        "# By hand" in card.text
        and card.data.configs[0]["data_files"][0]["path"] == "data/train-00000-of-00001.parquet"
    )


def test_own_text_on_the_hub_stays(folder, hub):
    there = hub.repositories["datasets/me/set"] = hub.writable / "datasets/me/set"
    there.mkdir(parents=True)
    (there / "README.md").write_text("---\ntags: [mine]\ndataset_info: {}\n---\n\nRead this first.\n")
    write_card(folder)
    push_folder(folder, "me/set")
    (folder / "test.jsonl").unlink()
    write_card(folder)
    push_folder(folder, "me/set")
    text = (there / "README.md").read_text()
    card = DatasetCard(text)
    assert text.count("Read this first.") == 1 and text.count("# mine") == 1
    assert card.data.tags == ["audio", "speech", "mine"] and "dataset_info" not in card.data.to_dict()
    assert [each["split"] for each in card.data.configs[0]["data_files"]] == ["train"]
    (folder / "README.md").write_text(text)  # a user took it from the hub
    push_folder(folder, "me/set")
    assert DatasetCard.load(there / "README.md").text.count("Read this first.") == 1
    with pytest.raises(ValueError, match="was not written by `data card`, and would be lost"):
        write_card(folder)


def test_text_on_the_hub_that_would_be_lost_stops_the_push(folder, hub):
    write_card(folder)
    push_folder(folder, "me/set")
    page = hub.repositories["datasets/me/set"] / "README.md"
    page.write_text(page.read_text().replace("## Sources", "## My sources"))
    with pytest.raises(ValueError, match="README.md of `me/set` was edited between the marks .* or delete that file"):
        push_folder(folder, "me/set")
    assert "## My sources" in page.read_text() and len(hub.commits) == 1


def test_a_public_repository_does_not_get_private_data(folder, hub):
    write_card(folder)
    push_folder(folder, "me/set")
    with pytest.raises(ValueError, match="`me/set` exists and is public, and `--private` was given"):
        push_folder(folder, "me/set", private=True)


@pytest.mark.parametrize(
    ("words", "message"),
    [(["a/b/c"], "REPO is 'a/b/c'"), (["me/set"], "has no README.md: write it with `soundwave-hf data card")],
)
def test_what_cannot_be_pushed_is_one_line(folder, hub, words, message, capsys):
    assert cli.main(["data", "push", str(folder), *words]) == 2
    assert message in capsys.readouterr().err


def test_a_hub_that_refuses_is_one_line_without_the_token(folder, hub, monkeypatch, capsys):
    write_card(folder)
    monkeypatch.setenv("HF_TOKEN", "hf_AbCdEfGhIjKlMnOpQrStUv")
    assert cli.main(["data", "push", str(folder), "me/set"]) == 2
    printed = capsys.readouterr().err
    assert "`me/set` could not be pushed to the hub: " in printed and "401" in printed
    assert "hf_AbCdEf" not in printed and "Traceback" not in printed
    assert not list(folder.parent.glob(".push-*"))


def test_a_missing_clip_stops_before_anything_is_pushed(folder, hub):
    write_card(folder)
    (folder / "clips" / "2.wav").unlink()
    with pytest.raises(FileNotFoundError, match="clips/2.wav"):
        push_folder(folder, "me/set")
    assert not hub.repositories


def test_folders_of_one_name_with_other_rows_load_their_own_rows(tmp_path):
    for place in ("a", "b"):  # `datasets` caches a folder by its last name and its card
        (tmp_path / place / "set").mkdir(parents=True)
        write_lines(tmp_path / place / "set" / "train.jsonl", [{"question": "Who?", "answer": place}])
        write_card(tmp_path / place / "set")
        assert load_dataset(str(tmp_path / place / "set"))["train"]["answer"][:] == [place]


def test_rows_without_a_source_are_named_in_words_and_the_package_has_its_version(tmp_path):
    write_clip(tmp_path / "a.wav")
    write_lines(tmp_path / "rows.jsonl", [{"audio": "a.wav", "text": "go on"}])
    report = {"soundwave_hf": "1.2.3", "versions": {"numpy": "4.5.6"}}
    (tmp_path / "report.json").write_text(json.dumps(report))
    card = write_card(tmp_path, read_facts(tmp_path)).read_text()
    assert "**No licence is stated** for rows that name no source: find it out" in card
    assert "Versions: soundwave_hf 1.2.3, numpy 4.5.6." in card
