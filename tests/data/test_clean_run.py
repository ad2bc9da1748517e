"""`data clean`: what is kept, dropped and reported; the same result however often it is stopped and divided."""

import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from datasets import Audio, ClassLabel, Dataset
from huggingface_hub import DatasetCard

from soundwave_hf import cli
from soundwave_hf.data import check
from soundwave_hf.data.clean import report, settings, shards
from soundwave_hf.data.clean import run as clean_run
from soundwave_hf.data.clean.duplicates import LeakedAudio, LeakedText, NearDuplicateAudio, NearDuplicateText
from soundwave_hf.data.clean.filter import Filter
from soundwave_hf.data.clean.judge import CleanRows
from soundwave_hf.data.clean.parts import open_parts, scan
from soundwave_hf.data.clean.report import Sample, Totals, draw, thresholds
from soundwave_hf.data.clean.run import clean, merge
from soundwave_hf.data.sources import open_rows, open_streams


RATE = 16_000


@dataclass
class Shortest(Filter):
    """Rows of a second or more."""

    name: ClassVar[str] = "seconds"
    unit: ClassVar[str] = "s"
    reads_text: ClassVar[bool] = False
    min_seconds: float = 1.0

    def measure(self, clips):
        return [clip.seconds for clip in clips]

    def keeps(self, value):
        return value >= self.min_seconds


@dataclass
class Loudest(Filter):
    """Recordings whose largest sample is at most this."""

    name: ClassVar[str] = "peak"
    unit: ClassVar[str] = "of full scale"
    reads_samples: ClassVar[bool] = True
    max_peak: float = 0.5

    def measure(self, clips):
        return [float(np.abs(clip.samples).max()) for clip in clips]

    def keeps(self, value):
        return value <= self.max_peak


FILTERS = [Shortest(), Loudest()]
COMPARED = [*FILTERS, NearDuplicateAudio(), NearDuplicateText(0.8), LeakedAudio(), LeakedText()]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """The library's copies of what it reads lie in a folder of these tests. Plots, which take a second each, are drawn
    by one test alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        patch.setattr(report, "draw", lambda *arguments: None)
        yield


def voice(seed: int, seconds: float, peak: float = 0.4) -> np.ndarray:
    """Tones that change twenty times a second: like speech, no two seeds have the same peaks."""
    rng, length = np.random.default_rng(seed), int(seconds * RATE)
    pitches = np.repeat(rng.uniform(200, 3500, (3, length // 800 + 1)), 800, axis=1)[:, :length]
    samples = np.sin(2 * np.pi * np.cumsum(pitches, axis=1) / RATE).sum(axis=0)
    return (peak * samples / np.abs(samples).max()).astype(np.float32)


# (seed, seconds, peak, text): what happens to each is worked out by hand in `DROPPED`.
ROWS = [
    (0, 2.0, 0.4, "the first row is kept as it is"),
    (1, 0.5, 0.4, "too short"),
    (2, 2.0, 0.9, "too loud"),
    (3, 0.5, 0.9, "too short and too loud"),
    (0, 2.0, 0.2, "the recording of the first row at half the volume"),
    (4, 1.5, 0.4, "The first row is kept, as it is!"),
    (5, 2.0, 0.4, "this recording is in the evaluation set"),
    (6, 2.0, 0.4, "before it comes a sentence that is evaluated here"),
    (7, 2.0, 0.4, "yes"),
    (8, 1.5, 0.4, "yes"),
]
AGAINST = [
    (5, 2.0, 0.4, "the same recording with another text"),
    (9, 2.0, 0.4, "A sentence that is evaluated."),
    (10, 1.0, 0.4, "yes"),
]
DROPPED = {
    2: ["seconds"],
    3: ["peak"],
    4: ["seconds", "peak"],
    5: ["near_duplicate_audio"],
    6: ["near_duplicate_text"],
    7: ["leaked_audio"],
    8: ["leaked_text"],
    11: ["clip: missing"],
    12: ["clip: empty"],
    13: ["clip: unreadable"],
    14: ["clip: silent"],
    15: ["row"],
    16: ["clip: too short"],
}


def write_rows(folder: Path, name: str, rows) -> Path:
    lines = []
    for place, (seed, seconds, peak, text) in enumerate(rows):
        clip = folder / "clips" / f"{name}{place}.wav"
        clip.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(clip, voice(seed, seconds, peak), RATE)
        lines.append({"audio": f"clips/{clip.name}", "text": text, "speaker": f"s{seed}", "age": seed})
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Ten rows that can be read, and one of each kind that cannot."""
    folder = tmp_path_factory.mktemp("data")
    path = write_rows(folder, "rows", ROWS)
    write_rows(folder, "against", AGAINST)
    soundfile.write(folder / "empty.wav", np.zeros(0, np.float32), RATE)
    soundfile.write(folder / "silent.wav", np.zeros(RATE, np.float32), RATE)
    soundfile.write(folder / "blip.wav", np.ones(80, np.float32), RATE)
    (folder / "text.wav").write_text("this is no audio")
    bad = [{"audio": name, "text": "bad"} for name in ("nothing.wav", "empty.wav", "text.wav", "silent.wav")]
    bad += [{"audio": "text.wav", "text": 7}, {"audio": "blip.wav", "text": "bad"}]
    with open(path, "a") as file:
        file.writelines(json.dumps(line) + "\n" for line in bad)
    return folder


def run(data: Path, out: Path, **options) -> dict:
    options = {"filters": COMPARED, "against": [str(data / "against.jsonl")], "block_rows": 3, **options}
    return clean(str(data / "rows.jsonl"), out, **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory) -> Path:
    """The folder of one run that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole") / "out"
    run(data, out)
    return out


def dropped_rows(out: Path) -> list[dict]:
    files = sorted((out / "dropped").glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]


# ---- the result ----


def test_each_row_is_dropped_for_the_reasons_worked_out_by_hand(data, whole):
    dropped = dropped_rows(whole)
    place = {f"line {number} of `{data / 'rows.jsonl'}`": number for number in range(1, 17)}
    assert {place[row["name"]]: row["reasons"] for row in dropped} == DROPPED
    by_line = {place[row["name"]]: row for row in dropped}
    assert by_line[4]["values"] == {"seconds": 0.5, "peak": pytest.approx(0.9, abs=1e-4)}
    assert by_line[5]["values"]["near_duplicate_audio"] == f"line 1 of `{data / 'rows.jsonl'}`"
    assert by_line[7]["values"]["leaked_audio"] == f"line 1 of `{data / 'against.jsonl'}`"
    assert by_line[6]["row"]["speaker"] == "s4" and by_line[6]["row"]["text"] == ROWS[5][3]
    assert "is not a file" in by_line[11]["why"] and "expected what the clip says" in by_line[15]["why"]


def test_kept_rows_are_read_by_load_dataset_and_by_recipes_with_clips_that_are_found(data, whole):
    texts = [ROWS[0][3], "yes", "yes"]
    for folder in (whole, whole / "kept"):
        loaded = datasets.load_dataset(str(folder))["train"]
        assert loaded["text"][:] == texts and loaded["speaker"][:] == ["s0", "s7", "s8"]
        assert loaded.features["audio"] == Audio() and loaded.features["age"].dtype == "int64"
        rows = open_rows(str(folder))
        assert rows["text"][:] == texts and rows["seconds"][:] == [2.0, 2.0, 1.5]
        assert [os.path.isfile(clip["path"]) for clip in rows["audio"]] == [True] * 3


def test_the_card_of_kept_rows_counts_what_each_filter_dropped(whole):
    card = DatasetCard.load(whole / "README.md")
    assert "| default | train | 3 | 3 |" in card.text and "| seconds | 2 |" in card.text and "of 16 rows" in card.text
    assert card.data.configs[0]["data_files"] == [{"split": "train", "path": "kept/*.parquet"}]


def test_the_report_counts_a_row_for_each_filter_and_once_in_the_total(whole):
    report = json.loads((whole / "report.json").read_text())
    assert (report["rows"], report["kept"], report["dropped"]) == (16, 3, 13)
    counts = {each["name"]: (each["dropped"], each["dropped_by_it_alone"]) for each in report["filters"]}
    assert counts["seconds"] == (2, 1) and counts["peak"] == (2, 1)
    assert counts["clip: missing"] == counts["row"] == counts["leaked_text"] == (1, 1)
    assert report["dropped_by_both"] == [["peak", "seconds", 1]]
    assert sum(count for count, _ in counts.values()) == 14  # one more than rows: one has two reasons
    assert report["against"] == {"rows": 3, "unread": 0}
    assert report["kept_seconds"] == 5.5 and report["settings"]["seconds"] == {"min_seconds": 1.0}
    assert report["seed"] == 0 and report["versions"]["datasets"] == datasets.__version__
    table = (whole / "report.md").read_text()
    assert "| seconds | min_seconds 1 | s | 2 | 12.5% | 1 |" in table and "| in all | | | 13 | 81.2% | |" in table
    assert not (whole / "work").exists()


def test_the_plot_is_the_same_bytes_for_the_same_rows(whole, tmp_path):
    described, totals = json.loads((whole / "report.json").read_text()), Totals()
    for reasons, seconds in ([], 2.0), (["seconds"], 0.5), (["seconds", "peak"], 0.5):
        line = {"values": {"seconds": seconds, "peak": "loud"}, "seconds": seconds, "why": "", "left_out": []}
        totals.add({**line, "reasons": reasons, "name": "a row"})
    for name in ("one.png", "two.png"):
        draw(described, [Shortest()], totals, tmp_path / name)
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_thresholds_are_found_where_a_filter_changes_its_mind():
    assert thresholds(Shortest(), np.array([0.2, 0.8, 3.0])) == [pytest.approx(1.0)]
    assert thresholds(Shortest(), np.array([2.0, 3.0])) == []


def test_a_sample_of_values_is_bounded_and_evenly_spaced():
    sample = Sample()
    for number in range(100_000):
        sample.add(number)
    assert len(sample.values) <= 20_000 and sample.values[:3] == [0, 8, 16]


# ---- stopped, divided, in several processes: the same bytes ----


@pytest.mark.parametrize("writes", [1, 2, 5, 8, 11, 14, 17, 19])
def test_a_run_that_dies_at_any_write_goes_on_to_the_same_bytes(data, whole, tmp_path, monkeypatch, writes):
    replace, left = Path.replace, [writes]

    def dying(self, target):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", dying)
        with pytest.raises(KeyboardInterrupt):
            run(data, tmp_path / "out")
    assert contents(tmp_path / "out").keys() != contents(whole).keys()
    run(data, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(whole)


def test_blocks_that_are_whole_are_not_judged_again(data, tmp_path, monkeypatch):
    judged, judge = [], shards.judge_block
    monkeypatch.setattr(clean_run, "judge_block", lambda block, *rest: (judged.append(block.key), judge(block, *rest)))
    monkeypatch.setattr(clean_run, "_finish", lambda *arguments: {})
    run(data, tmp_path / "out")
    assert len(judged) == 6  # of three rows, the last of one
    (tmp_path / "out/work/judged/000000-00000002.parquet").unlink()
    run(data, tmp_path / "out")
    assert judged[6:] == ["000000-00000002"]


@pytest.mark.slow
def test_a_run_killed_by_a_signal_goes_on_to_the_same_bytes(data, whole, tmp_path):
    out = tmp_path / "out"
    code = (
        "import sys, time; sys.path.insert(0, sys.argv[3])\n"
        "from pathlib import Path\n"
        "from tests.data import test_clean_run as t\n"
        "judge = t.shards.judge_block\n"
        "t.clean_run.judge_block = lambda *a: (judge(*a), time.sleep(0.5))\n"
        "t.run(Path(sys.argv[1]), Path(sys.argv[2]))\n"
    )
    root = str(Path(__file__).parents[2])
    process = subprocess.Popen([sys.executable, "-c", code, str(data), str(out), root])
    deadline = time.monotonic() + 60
    while len(list(out.glob("work/judged/*.parquet"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 2 <= len(list(out.glob("work/judged/*.parquet"))) < 6
    run(data, out)
    assert contents(out) == contents(whole)


def test_two_processes_give_the_bytes_of_one(data, whole, tmp_path):
    run(data, tmp_path / "out", processes=2)
    assert contents(tmp_path / "out") == contents(whole)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_merged_shards_give_the_bytes_of_one_run(data, whole, tmp_path, count):
    rows = [run(data, tmp_path / f"{i}", shard=(i, count))["rows"] for i in range(1, count + 1)]
    assert sum(rows) == 16
    folders = [tmp_path / f"{i}" for i in range(count, 0, -1)]  # the order of the folders does not matter
    merge(folders[0] if count == 1 else folders, tmp_path / "out", COMPARED)
    assert contents(tmp_path / "out") == contents(whole)
    assert merge(folders, tmp_path / "out", COMPARED)["kept"] == 3  # again: the report that is there


def test_with_as_many_files_as_shards_each_shard_reads_only_its_files(data, tmp_path):
    for place in range(3):
        lines = (data / "rows.jsonl").read_text().splitlines(keepends=True)[place : place + 1]
        (data / f"part-{place}.jsonl").write_text("".join(lines))
    options = {"filters": FILTERS, "shard": (2, 2)}
    assert clean(str(data / "part-*.jsonl"), tmp_path / "out", **options) == {"shard": [2, 2], "rows": 1}
    (line,) = pq.read_table(next((tmp_path / "out/work/judged").glob("*"))).to_pylist()
    assert line["name"] == f"line 1 of `{data / 'part-1.jsonl'}`"


def test_the_first_row_in_order_is_kept_though_it_is_judged_last(data, tmp_path):
    """Of two equal recordings the second shard has the earlier one."""
    lines = (data / "rows.jsonl").read_text().splitlines(keepends=True)
    (data / "twins.jsonl").write_text(lines[4] + lines[0])
    for index in (2, 1):
        clean(str(data / "twins.jsonl"), tmp_path / f"{index}", COMPARED, shard=(index, 2), block_rows=1)
    merge([tmp_path / "1", tmp_path / "2"], tmp_path / "out", COMPARED)
    (row,) = dropped_rows(tmp_path / "out")
    assert row["name"].startswith("line 2") and row["reasons"] == ["near_duplicate_audio"]


def test_a_copy_of_a_row_that_a_filter_drops_is_kept(data, tmp_path):
    lines = (data / "rows.jsonl").read_text().splitlines(keepends=True)
    loud = json.loads(lines[2])
    soundfile.write(data / "quiet.wav", voice(2, 2.0, 0.3), RATE)
    (data / "loud_first.jsonl").write_text(json.dumps(loud) + "\n" + json.dumps({**loud, "audio": "quiet.wav"}) + "\n")
    report = clean(str(data / "loud_first.jsonl"), tmp_path / "out", COMPARED)
    assert report["kept"] == 1
    assert datasets.load_dataset(str(tmp_path / "out"))["train"]["audio"]


# ---- any source ----


def as_parquet(data: Path, folder: Path) -> str:
    rows = [
        {
            "audio": {"bytes": (data / f"clips/rows{i}.wav").read_bytes(), "path": f"{i}.wav"},
            "text": ROWS[i][3],
            "speaker": "x",
        }
        for i in range(3)
    ]
    Dataset.from_list(rows).cast_column("audio", Audio()).to_parquet(folder / "rows.parquet")
    return str(folder / "rows.parquet")


def as_saved(data: Path, folder: Path) -> str:
    Dataset.from_parquet(as_parquet(data, folder)).save_to_disk(folder / "saved")
    return str(folder / "saved")


def as_tar(data: Path, folder: Path) -> dict:
    with tarfile.open(folder / "clips.tar", "w") as tar:
        for i in range(3):
            for name, content in (
                (f"k{i}.wav", (data / f"clips/rows{i}.wav").read_bytes()),
                (f"k{i}.json", json.dumps({"text": ROWS[i][3], "speaker": "x"}).encode()),
            ):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return {"path": str(folder / "clips.tar"), "columns": {"wav": "audio", "json.text": "text", "json.speaker": None}}


def as_csv(data: Path, folder: Path) -> dict:
    lines = [f"{data / f'clips/rows{i}.wav'},{ROWS[i][3]},x" for i in range(3)]
    (folder / "rows.csv").write_text("\n".join(["path,sentence,speaker", *lines]))
    return {"path": str(folder / "rows.csv"), "columns": {"path": "audio", "sentence": "text"}}


def as_folder(data: Path, folder: Path) -> dict:
    for i in range(3):
        (folder / "train").mkdir(exist_ok=True)
        shutil.copy(data / f"clips/rows{i}.wav", folder / "train" / f"{i}.wav")
    lines = [json.dumps({"file_name": f"{i}.wav", "transcription": ROWS[i][3], "speaker": "x"}) for i in range(3)]
    (folder / "train/metadata.jsonl").write_text("\n".join(lines))
    return {"path": str(folder), "columns": {"transcription": "text"}}


def as_part_of_split(data: Path, folder: Path) -> dict:
    return {"path": as_parquet(data, folder), "split": "train[:100%]"}


FORMS = [as_parquet, as_saved, as_tar, as_csv, as_folder, as_part_of_split]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_source_is_cleaned_alike(data, tmp_path, form):
    (tmp_path / "in").mkdir()
    report = clean(form(data, tmp_path / "in"), tmp_path / "out", FILTERS)
    assert (report["rows"], report["kept"]) == (3, 1)
    (row,) = open_rows(str(tmp_path / "out"))
    assert row["text"] == ROWS[0][3] and row["seconds"] == 2.0
    assert (row["audio"]["bytes"] is not None) == (form in (as_parquet, as_saved, as_tar, as_part_of_split))
    kept = datasets.load_dataset(str(tmp_path / "out"))["train"]
    assert ("speaker" in kept.column_names) == (form is not as_tar)


def test_a_list_of_sources_and_streams_are_read_one_behind_the_other(data, tmp_path):
    (tmp_path / "in").mkdir()
    sources = [
        {"path": as_parquet(data, tmp_path / "in"), "streaming": True, "source": "a"},
        {**as_csv(data, tmp_path / "in"), "source": "b"},
    ]
    report = clean(sources, tmp_path / "out", FILTERS)
    assert (report["rows"], report["kept"]) == (6, 2)
    assert datasets.load_dataset(str(tmp_path / "out"))["train"]["source"][:] == ["a", "b"]


def test_rows_of_conversations_and_of_text_alone_keep_their_form(data, tmp_path):
    clip = str(data / "clips/rows0.wav")
    turns = [
        {"role": "user", "content": [{"type": "audio", "audio": clip}]},
        {"role": "assistant", "content": "Hello."},
    ]
    rows = [
        {"messages": turns},
        {"question": "Two and two?", "answer": "Four."},
        {"audio": str(data / "clips/rows3.wav"), "question": "", "answer": "Short."},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = clean(str(tmp_path / "rows.jsonl"), tmp_path / "out", FILTERS)
    # The third lasts half a second. It has no transcript, so `peak`, which reads text, does not judge it.
    assert report["kept"] == 2
    (row,) = dropped_rows(tmp_path / "out")
    assert row["reasons"] == ["seconds"]
    kept = open_rows(str(tmp_path / "out"))
    assert kept[0]["messages"][0]["content"][0]["audio"]["path"] == clip
    assert kept[1]["answer"] == "Four." and kept[1]["audio"] is None


def test_columns_of_mixed_types_become_json_text(data, tmp_path):
    clip = str(data / "clips/rows0.wav")
    rows = [
        {"audio": clip, "text": "a", "note": 1},
        {"audio": clip, "text": "b", "note": "two"},
        {"audio": clip, "text": "c"},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    clean(str(tmp_path / "rows.jsonl"), tmp_path / "out", FILTERS)
    assert datasets.load_dataset(str(tmp_path / "out"))["train"]["note"][:] == ["1", '"two"', None]


def test_numbers_of_speakers_are_kept_as_text(data, tmp_path):
    clip = str(data / "clips/rows0.wav")
    speakers = [1089, "s2", 3.0, None]
    rows = [{"audio": clip, "text": f"row {n}", "speaker": speaker} for n, speaker in enumerate(speakers)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = clean(str(tmp_path / "rows.jsonl"), tmp_path / "out", FILTERS)
    assert (report["rows"], report["kept"]) == (4, 4)
    assert datasets.load_dataset(str(tmp_path / "out"))["train"]["speaker"][:] == ["1089", "s2", "3", None]


def test_a_text_column_that_holds_a_list_is_the_problem_of_its_row(data, tmp_path):
    rows = [{"audio": str(data / "clips/rows0.wav"), "text": "a", "speaker": each} for each in (["one"], "two")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = clean(str(tmp_path / "rows.jsonl"), tmp_path / "out", FILTERS)
    (row,) = dropped_rows(tmp_path / "out")
    assert report["kept"] == 1 and row["reasons"] == ["row"]
    assert "/rows.jsonl` has a value that its column cannot hold: Expected bytes, got a 'list'" in json.dumps(row)


@pytest.mark.parametrize("form", ["parquet", "saved", "streamed"])
def test_labels_of_text_columns_become_their_names(data, tmp_path, form):
    rows = [{"audio": str(data / "clips/rows0.wav"), "text": 0, "language": 1, "speaker": 0}]
    rows.append({**rows[0], "audio": str(data / "clips/rows6.wav"), "speaker": None})
    rows = Dataset.from_list(rows).cast_column("text", ClassLabel(names=["yes", "no"]))
    rows = rows.cast_column("language", ClassLabel(names=["en", "tr"]))
    rows = rows.cast_column("speaker", ClassLabel(names=["Ada"]))
    source = str(tmp_path / "rows")
    if form == "saved":
        rows.save_to_disk(source)
    else:
        source += ".parquet"
        rows.to_parquet(source)
    clean({"path": source, "streaming": form == "streamed"}, tmp_path / "out", FILTERS)
    kept = datasets.load_dataset(str(tmp_path / "out"))["train"]
    assert (kept["text"][:], kept["language"][:], kept["speaker"][:]) == (["yes"] * 2, ["tr"] * 2, ["Ada", None])
    opened = open_rows(source)
    assert (opened["text"][:], opened["language"][:], opened["speaker"][:]) == (["yes"] * 2, ["tr"] * 2, ["Ada", None])
    assert [row["language"] for row in open_streams(source).streams["every row"]] == ["tr", "tr"]


def test_names_of_labels_are_kept(data, tmp_path):
    rows = Dataset.from_list([{"audio": str(data / "clips/rows0.wav"), "text": "a", "mood": 1}])
    rows = rows.cast_column("mood", ClassLabel(names=["sad", "glad"]))
    rows.to_parquet(tmp_path / "rows.parquet")
    clean(str(tmp_path / "rows.parquet"), tmp_path / "out", FILTERS)
    kept = datasets.load_dataset(str(tmp_path / "out"))["train"]
    assert kept.features["mood"].names == ["sad", "glad"] and kept["mood"][:] == [1]
    clean(str(tmp_path / "rows.parquet"), tmp_path / "none", [Shortest(1000.0)])
    (line,) = (tmp_path / "none" / "dropped").glob("*.jsonl")
    assert json.loads(line.read_text())["row"]["mood"] == "glad"


# ---- bad input ----


def test_a_decoder_that_fails_in_its_own_way_does_not_stop_the_run(data, tmp_path, monkeypatch, capsys):
    def fail(clip, *arguments):
        raise ZeroDivisionError("no frames")

    monkeypatch.setattr(check, "load_clip", fail)
    assert cli.main(["data", "clean", str(data / "against.jsonl"), str(tmp_path / "out")]) == 0
    output = capsys.readouterr().out
    assert "Rows kept: 0 of 3, " in output and "No row is kept" in output and "ZeroDivisionError: no frames" in output


def test_a_mapped_column_that_is_not_there_names_the_columns_that_are(data, tmp_path):
    for source in (str(data / "rows.jsonl"), as_parquet(data, tmp_path), as_tar(data, tmp_path)["path"]):
        with pytest.raises(
            ValueError, match="maps `sentence`, and .* has no such column: it has .*'(text|json.text)'"
        ):
            clean(source, tmp_path / "out", FILTERS, columns={"sentence": "text"})
        assert not (tmp_path / "out").exists()


def test_rows_without_transcripts_are_refused_at_once_and_the_columns_named(data, tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"audio": str(data / "clips/rows0.wav"), "sentence": "hello"}))
    with pytest.raises(ValueError, match="lacks .*'text'.*columns: {sentence: text}"):
        clean(str(tmp_path / "rows.jsonl"), tmp_path / "out", FILTERS)


def test_a_folder_with_another_run_or_other_files_is_refused(data, whole, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    before = contents(out)
    assert run(data, out)["kept"] == 3  # the same run: its report
    assert run(data, out, against=str(data / "against.jsonl"))["kept"] == 3  # one evaluation set needs no list
    with pytest.raises(FileExistsError, match="other filters or thresholds"):
        run(data, out, filters=[Shortest(0.5), *COMPARED[1:]])
    with pytest.raises(FileExistsError, match="other evaluation sets"):
        run(data, out, against=[])
    with pytest.raises(FileExistsError, match="other data"):
        clean(str(data / "against.jsonl"), out, COMPARED, against=[str(data / "against.jsonl")], block_rows=3)
    with pytest.raises(FileExistsError, match="other `block_rows`"):
        run(data, out, block_rows=4)
    with pytest.raises(FileExistsError, match="another shard"):
        run(data, out, shard=(1, 2))
    assert contents(out) == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").write_text("mine")
    with pytest.raises(FileExistsError, match="not an empty folder"):
        run(data, tmp_path / "other")


def test_shards_that_do_not_fit_together_are_refused(data, whole, tmp_path):
    one, two, other = tmp_path / "1", tmp_path / "2", tmp_path / "other"
    run(data, one, shard=(1, 2))
    with pytest.raises(ValueError, match="shards are missing: 2/2"):
        merge([one], tmp_path / "out", COMPARED)
    with pytest.raises(ValueError, match="Shard 1/2 is given twice"):
        merge([one, one], tmp_path / "out", COMPARED)
    with pytest.raises(ValueError, match="a whole run, not a shard"):
        merge([whole], tmp_path / "out", COMPARED)
    with pytest.raises(FileNotFoundError, match="holds no shard"):
        merge([one, two], tmp_path / "out", COMPARED)
    run(data, other, shard=(2, 2), filters=FILTERS)
    with pytest.raises(ValueError, match="other filters or thresholds"):
        merge([one, other], tmp_path / "out", COMPARED)
    run(data, two, shard=(2, 2))
    (two / "work/complete.json").unlink()
    with pytest.raises(ValueError, match="Shard 2/2 .* is not complete"):
        merge([one, two], tmp_path / "out", COMPARED)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("shard", [(0, 2), (3, 2), (1, 0), (True, 1)])
def test_a_shard_that_does_not_exist_is_refused(data, tmp_path, shard):
    with pytest.raises(ValueError, match="expected i/n with i from 1 to n"):
        run(data, tmp_path / "out", shard=shard)


@pytest.mark.parametrize("words", ["2", "a/b", "1/2/3", "0/2", "-1/2"])
def test_a_shard_that_cannot_be_read_is_refused_by_the_command(data, tmp_path, capsys, words):
    command = ["data", "clean", str(data / "rows.jsonl"), str(tmp_path / "out"), f"--shard={words}"]
    assert cli.main(command) == 2 and "such as 1/8 to 8/8" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["processes", "block_rows"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True])
def test_a_number_of_processes_or_rows_that_is_none_is_refused(data, tmp_path, name, value):
    with pytest.raises(ValueError, match=f"`{name}` is {value}; expected a whole number from 1"):
        run(data, tmp_path / "out", **{name: value})
    assert not (tmp_path / "out").exists()


def test_misspelt_filters_are_refused_with_the_closest_name(data, tmp_path):
    with pytest.raises(ValueError, match="Did you mean `near_duplicate_audio`"):
        run(data, tmp_path / "out", filters={"near_duplicate_sound": {"shared": 0.2}})
    with pytest.raises(ValueError, match="unknown key.*Did you mean `shared`|`share`.*Did you mean `shared`"):
        run(data, tmp_path / "out", filters={"leaked_audio": {"share": 0.2}})
    with pytest.raises(FileNotFoundError, match="There is no file"):
        run(data, tmp_path / "out", filters=str(tmp_path / "filters.yaml"))
    with pytest.raises(TypeError, match="expected `Filter` and `Comparison` objects"):
        run(data, tmp_path / "out", filters=["seconds"])
    assert not (tmp_path / "out").exists()


def test_the_settings_of_a_shard_are_enough_to_merge(data, tmp_path):
    """Filters that are off stay off: without that, `seconds` would drop all rows under three seconds."""
    filters = {"seconds": False, "near_duplicate_audio": False}
    run(data, tmp_path / "1", filters=filters, shard=(1, 1))
    merged = merge([tmp_path / "1"], tmp_path / "out")
    assert merged["settings"]["seconds"] is False
    assert "seconds" not in {each["name"] for each in merged["filters"]}


@pytest.mark.parametrize("allowed", [3, 8, 14])
def test_a_full_disk_leaves_whole_blocks_and_says_how_to_go_on(data, whole, tmp_path, monkeypatch, capsys, allowed):
    replace, left = Path.replace, [allowed]

    def full(self, target):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return replace(self, target)

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        patch.setattr(clean_run, "read_filters", lambda _: settings.read_filters(COMPARED))
        words = ["data", "clean", str(data / "rows.jsonl"), str(out), "--block-rows", "3"]
        assert cli.main([*words, "--against", str(data / "against.jsonl")]) == 2
    message = capsys.readouterr().err
    assert "is full" in message and "run the same command again" in message
    for file in out.glob("work/*/*.parquet"):
        pq.read_table(file)  # whole
    run(data, out)
    assert contents(out) == contents(whole)


def test_a_tar_that_is_cut_off_is_counted_and_the_others_are_read(data, tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    source = as_tar(data, tmp_path / "a")
    content = (tmp_path / "a/clips.tar").read_bytes()
    (tmp_path / "b-0.tar").write_bytes(content[: content.index(b"k1.wav") + 2000])
    (tmp_path / "b-1.tar").write_bytes(content)
    report = clean({**source, "path": str(tmp_path / "b-*.tar")}, tmp_path / "out", FILTERS)
    assert report["kept"] == 2
    assert any("the rest of" in bad["row"] for bad in report["bad"])


# ---- the same functions inside other libraries ----


def test_map_of_datasets_drops_the_rows_that_clean_drops(data):
    rows = Dataset.from_list(
        [{"audio": {"path": str(data / f"clips/rows{i}.wav"), "bytes": None}, "text": ROWS[i][3]} for i in range(4)]
    )
    judged = rows.map(CleanRows(FILTERS), batched=True, batch_size=3)
    assert judged["dropped_by"][:] == ["", "seconds", "peak", "seconds, peak"]
    assert json.loads(judged["measured"][1])["seconds"] == 0.5
    assert judged["text"][:] == [row[3] for row in ROWS[:4]]
    alone = judged.filter(lambda row: not row["dropped_by"])
    assert len(alone) == 1


def test_manifests_are_counted_before_the_run_and_other_sources_only_looked_at(data, tmp_path):
    columns, count = scan(open_parts(str(data / "rows.jsonl")))
    assert count == 16 and columns.ours == ("audio", "seconds", "speaker", "text") and list(columns.others) == ["age"]
    columns, count = scan(open_parts(as_parquet(data, tmp_path)))
    assert count is None and "speaker" in columns.ours and list(columns.others) == []
