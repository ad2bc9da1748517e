"""Corpora by the name of their layout."""

import io
import json

import numpy as np
import pytest
import soundfile

from soundwave_hf import cli
from soundwave_hf.data.cuts import Cutter
from soundwave_hf.data.each_row import each_row
from soundwave_hf.data.layouts import LAYOUTS, find_layout
from soundwave_hf.data.sources import Source, digest_source, list_sources, open_rows, open_streams
from tests.data.corpora import (
    RATE,
    WRITE,
    lhotse_recording,
    ramp,
    write_clip,
    write_covost2,
    write_kaldi,
    write_lhotse,
    write_lines,
    write_must_c,
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def samples_of(clip) -> np.ndarray:
    content = io.BytesIO(clip["bytes"]) if clip.get("bytes") is not None else clip["path"]
    return soundfile.read(content, dtype="int16")[0]


EXPECTED = {
    "librispeech": [
        # speaker 174's folder comes before 84's
        ("WELL HELLO", "en", "174", 0.5),
        ("GO ON", "en", "84", 0.5),
        ("STOP IT", "en", "84", 0.5),
    ],
    "common_voice": [('Er sagte "ja', "de", "s0", 0.5), ("Los", "de", "s1", 0.5), ("Gut", "de", "s0", 0.5)],
    "must_c": [
        ("Go on.", "en", "spk.1", 0.5),
        ("Stop it.", "en", "spk.1", 0.25),
        ("Well: hello.", "en", "spk.2", 0.4),
    ],
    "covost2": [("Oui", "fr", "c0", 0.5), ("Non", "fr", "c1", 0.5), ("Bien", "fr", "c2", 0.5)],
    "kaldi": [("go on", None, "ann", 0.5), ("stop it", None, "ann", 0.25), ("", None, "ben", 0.4)],
    "lhotse": [("go on", None, None, 0.5), ("stop it", None, None, 0.25), ("well hello", "English", "ben", 0.5)],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_gives_its_three_rows_at_once_and_as_a_stream(layout, tmp_path):
    source = {"layout": layout, "path": str(WRITE[layout](tmp_path / "corpus"))}
    rows = list(open_rows(source))
    streamed = list(open_streams(source).streams["every row"])
    for found in (rows, streamed):
        names = ("text", "language", "speaker", "seconds")
        values = [tuple(row[name] for name in names) for row in found]
        assert [value[:3] for value in values] == [value[:3] for value in EXPECTED[layout]]
        # an MP3 has the encoder's delay and padding: up to 0.1 s more
        assert [value[3] for value in values] == pytest.approx([v[3] for v in EXPECTED[layout]], abs=0.1)
    if layout in ("must_c", "covost2"):
        assert [row["translation"] for row in rows][0] in ("Weiter.", "Yes")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_clip_of_a_layout_passes_the_check(layout, tmp_path, capsys):
    folder = WRITE[layout](tmp_path / "corpus")
    assert cli.main(["data", "check", f"{{layout: {layout}, path: {folder}}}"]) == 0
    assert "0 bad clips in 3 rows" in capsys.readouterr().out


@pytest.mark.parametrize("layout", ["must_c", "kaldi", "lhotse"])
def test_a_segment_has_exactly_the_samples_of_its_interval(layout, tmp_path):
    rows = open_rows({"layout": layout, "path": str(WRITE[layout](tmp_path / "corpus"))})
    first, second = (samples_of(row["audio"]) for row in list(rows)[:2])
    assert first.tolist() == ramp(1.0)[4_000:12_000].tolist()  # 0.25 to 0.75 s of 16 kHz
    assert second.tolist() == ramp(1.0)[12_000:].tolist()


def test_a_supervision_of_a_whole_recording_keeps_the_file(tmp_path):
    folder = write_lhotse(tmp_path)
    assert open_rows({"layout": "lhotse", "path": str(folder)})[2]["audio"] == {
        "bytes": None,
        "path": str(folder / "b.flac"),
    }


def test_kaldi_without_segments_reads_whole_files(tmp_path):
    rows = open_rows({"layout": "kaldi", "path": str(write_kaldi(tmp_path, segments=False))})
    assert rows["audio"][:2] == [str(tmp_path / "a.wav"), str(tmp_path / "b.flac")]
    assert rows["seconds"][:2] == [1.0, 0.5]


def test_a_changed_recording_is_cut_again(tmp_path):
    source = {"layout": "kaldi", "path": str(write_kaldi(tmp_path))}
    before = samples_of(open_rows(source)[0]["audio"])
    soundfile.write(tmp_path / "a.wav", np.full(RATE, 7, np.int16), RATE)
    after = samples_of(open_rows(source)[0]["audio"])
    assert before[0] == 4_000 and set(after.tolist()) == {7}


def test_splits_are_chosen_by_name_and_joined(tmp_path):
    write_kaldi(tmp_path / "train")
    write_kaldi(tmp_path / "dev")
    source = {"layout": "kaldi", "path": str(tmp_path)}
    assert len(open_rows(source)) == 3  # train
    assert len(open_rows({**source, "split": "train+dev[:1]"})) == 4
    assert any("dev/wav.scp" in name for name in digest_source(Source.read({**source, "split": "train+dev"})))
    with pytest.raises(ValueError, match=r"has no split `test`; its splits are \['dev', 'train'\]"):
        open_rows({**source, "split": "test"})


@pytest.mark.parametrize("segments", [True, False])
def test_splits_with_a_hyphen_are_joined_and_cut(tmp_path, segments):
    for name in ("train-clean", "train-other"):
        write_kaldi(tmp_path / name, segments)
    source = {"layout": "kaldi", "path": str(tmp_path), "split": "all"}
    texts = open_rows({**source, "split": "train-clean"})["text"][:]
    assert open_rows(source)["text"][:] == texts * 2
    assert [row["text"] for row in open_streams(source).streams["every row"]] == texts * 2
    part = {**source, "split": "train-other[-1:] + train-clean[:50%]"}
    half = round(len(texts) / 2)  # of a half row the library takes the even number
    assert open_rows(part)["text"][:] == [texts[-1], *texts[:half]]


def test_a_corpus_joins_other_sources_and_its_columns_can_be_mapped(tmp_path):
    corpus = write_must_c(tmp_path / "mustc")
    other = write_clip(tmp_path / "x.wav")
    (tmp_path / "other.jsonl").write_text(json.dumps({"audio": str(other), "text": "x", "speaker": 5}) + "\n")
    mapped = {"layout": "must-c", "path": str(corpus), "columns": {"translation": "answer"}, "task": "translate"}
    rows = open_rows([mapped, str(tmp_path / "other.jsonl")])
    assert rows["answer"][:] == ["Weiter.", "Halt.", "Nun: hallo.", None]
    assert rows["speaker"][:] == ["spk.1", "spk.1", "spk.2", "5"]
    assert rows["task"][0] == "translate"


def test_lhotse_cuts_count_from_the_start_of_the_cut(tmp_path):
    recording = lhotse_recording("recA", write_clip(tmp_path / "a.wav", 1.0), 1.0)
    supervision = {"id": "s", "recording_id": "recA", "start": 0.125, "duration": 0.25, "text": "go", "channel": 0}
    cut = {"id": "c", "start": 0.5, "duration": 0.5, "channel": 0, "type": "MonoCut", "recording": recording}
    write_lines(tmp_path / "cuts_train.jsonl", [{**cut, "supervisions": [supervision]}])
    for path in (tmp_path, tmp_path / "cuts_train.jsonl"):
        (row,) = open_rows({"layout": "lhotse", "path": str(path)})
        assert samples_of(row["audio"]).tolist() == ramp(1.0)[10_000:14_000].tolist()


def test_a_channel_of_a_recording_of_two_is_picked(tmp_path):
    both = np.stack([ramp(0.5), -ramp(0.5)], axis=1)
    soundfile.write(tmp_path / "a.wav", both, RATE)
    recording = lhotse_recording("recA", tmp_path / "a.wav", 0.5) | {"channel_ids": [0, 1]}
    write_lines(tmp_path / "recordings.jsonl", [recording])
    supervision = {"id": "s", "recording_id": "recA", "start": 0, "duration": 0.5, "text": "go"}
    write_lines(tmp_path / "supervisions.jsonl", [{**supervision, "channel": 1}])
    (row,) = open_rows({"layout": "lhotse", "path": str(tmp_path)})
    assert samples_of(row["audio"]).tolist() == (-ramp(0.5)).tolist()


def test_covost_joins_the_released_table_with_common_voice(tmp_path):
    write_covost2(tmp_path)
    lines = (tmp_path / "covost_v2.fr_en.train.tsv").read_text().splitlines()
    cells = [line.split("\t") for line in lines]
    (tmp_path / "covost_v2.fr_en.train.tsv").unlink()
    (tmp_path / "validated.tsv").write_text("".join(f"{c[3]}\t{c[0]}\t{c[1]}\n" for c in cells))
    splits = ("split", "train", "test", "train")
    released = "".join(f"{c[0]}\t{c[2]}\t{split}\n" for c, split in zip(cells, splits, strict=True))
    (tmp_path / "covost_v2.fr_en.tsv").write_text(released)
    source = {"layout": "covost2", "path": str(tmp_path)}
    assert [(row["text"], row["translation"]) for row in open_rows(source)] == [("Oui", "Yes"), ("Bien", "Well")]
    assert open_rows({**source, "split": "test"})["text"][:] == ["Non"]
    (tmp_path / "validated.tsv").write_text((tmp_path / "validated.tsv").read_text().replace("_2.mp3", "_9.mp3"))
    with pytest.raises(ValueError, match="1 clips of .* are not in .*, the first `common_voice_fr_2.mp3`"):
        open_rows(source)


# ---- what is refused ----


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_empty_folder_says_what_the_layout_expects(layout, tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        open_rows({"layout": layout, "path": str(tmp_path)})
    assert LAYOUTS[layout].expects in str(error.value) and str(tmp_path) in str(error.value)
    with pytest.raises(FileNotFoundError, match="There is no `.*nowhere`.* expects"):
        open_rows({"layout": layout, "path": "nowhere"})


@pytest.mark.parametrize(
    ("layout", "gone", "named"),
    [
        ("librispeech", "LibriSpeech/dev-clean/84/121123/84-121123-0000.flac", "84-121123-0000"),
        ("common_voice", "de/clips", "There is no `.*clips`: Common Voice expects"),
        ("must_c", "en-de/data/train/wav", "There is no `.*wav`: MuST-C expects"),
        ("must_c", "en-de/data/train/txt/train.de", r"has the texts \['train.en'\]"),
        ("must_c", "en-de/data/train/wav/ted_2.wav", "ted_2.wav"),
        ("covost2", "clips", "There is no `.*clips`: CoVoST 2 expects"),
        ("kaldi", "text", "There is no `.*text`: Kaldi expects"),
        ("kaldi", "wav.scp", "There is no `.*wav.scp`: Kaldi expects"),
        ("kaldi", "b.flac", "b.flac"),
        ("lhotse", "mine_recordings_train.jsonl.gz", "has no recordings beside it: lhotse expects"),
    ],
)
def test_what_is_missing_is_named(layout, gone, named, tmp_path):
    folder = WRITE[layout](tmp_path / "corpus")
    place = folder / gone
    place.rename(tmp_path / "moved")
    with pytest.raises(FileNotFoundError, match=named):
        open_rows({"layout": layout, "path": str(folder)})


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("wav.scp", "recA sph2pipe -f wav a.sph |", "has the command `sph2pipe -f wav a.sph .`.* is not run"),
        ("wav.scp", "recA raw.ark:17", "expected the path of an audio file, not of an archive"),
        ("segments", "u1 recA 0.25 9.0", "is a segment from 0.25 to 9 s, and the recording .* lasts 1.00 s"),
        ("segments", "u1 recA 0.75 0.25", "is a segment from 0.75 to 0.25 s"),
        ("segments", "u1 recA 0.25 late", "has 'late'; expected seconds"),
        ("segments", "u1 recA 0.25", "expected a recording, and start and end"),
        ("segments", "u1 recC 0.25 0.5", "needs `recC`, which is not in"),
        ("segments", "u9 recA 0.25 0.5", "is of `u1`, which is not in"),
        ("utt2spk", "u2 ann", "names `u2` a second time"),
        ("text", "u2 hello again", "names `u2` a second time"),
    ],
)
def test_a_bad_line_of_kaldi_is_named(file, line, message, tmp_path):
    folder = write_kaldi(tmp_path / "corpus")
    lines = (folder / file).read_text().splitlines()
    (folder / file).write_text("\n".join([line, *lines[1:]]) + "\n")
    with pytest.raises(ValueError, match=message):
        open_rows({"layout": "kaldi", "path": str(folder)})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"sources": [{"type": "command", "channels": [0], "source": "cat a.wav"}]},
            "A command in a data file is not",
        ),
        ({"transforms": [{"name": "Speed"}]}, "has `transforms`, which only lhotse applies"),
        ({"id": "other"}, "is of recording 'recA', which .* lacks"),
    ],
)
def test_a_recording_of_lhotse_that_is_no_file_is_refused(changes, message, tmp_path):
    folder = write_lhotse(tmp_path / "corpus")
    recording = lhotse_recording("recA", folder / "a.wav", 1.0) | changes
    write_lines(folder / "mine_recordings_train.jsonl.gz", [recording])
    with pytest.raises(ValueError, match=message):
        open_rows({"layout": "lhotse", "path": str(folder)})


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("supervision", {"start": None}, "line 1 of .*: `start` of the supervision has None; expected seconds"),
        ("supervision", {"duration": "long"}, "`duration` of the supervision has 'long'; expected seconds"),
        ("recording", {"duration": None}, "`duration` of its recording has None; expected seconds"),
        ("recording", {"sources": [{"type": "file"}]}, "expected one file with its path in `source`"),
    ],
)
def test_a_lhotse_line_without_a_value_names_the_line(part, changes, message, tmp_path):
    folder = write_lhotse(tmp_path / "corpus")
    supervision = {"id": "u1", "recording_id": "recA", "start": 0.25, "duration": 0.5, "channel": 0, "text": "go"}
    rows = {"recording": lhotse_recording("recA", folder / "a.wav", 1.0), "supervision": supervision}
    rows[part] = {key: value for key, value in (rows[part] | changes).items() if value is not None}
    for kind, row in rows.items():
        write_lines(folder / f"mine_{kind}s_train.jsonl.gz", [row])
    with pytest.raises(ValueError, match=message):
        open_rows({"layout": "lhotse", "path": str(folder)})


def test_a_lhotse_file_that_was_cut_off_is_refused(tmp_path):
    file = write_lhotse(tmp_path / "corpus") / "mine_recordings_train.jsonl.gz"
    file.write_bytes(file.read_bytes()[:-12])
    with pytest.raises(ValueError, match="is compressed and was cut off or damaged"):
        open_rows({"layout": "lhotse", "path": str(file.parent)})


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("separator", [" ", "\t"])
def test_kaldi_tables_may_have_tabs_windows_line_ends_and_a_byte_order_mark(separator, mark, tmp_path):
    folder = write_kaldi(tmp_path / "corpus")
    for name in ("wav.scp", "text", "segments", "utt2spk"):
        lines = [line.replace(" ", separator, 1) for line in (folder / name).read_text().splitlines()]
        (folder / name).write_bytes((mark + "\r\n".join(lines) + "\r\n").encode())
    rows = [row for _, row in each_row({"layout": "kaldi", "path": str(folder)})]
    assert [(row["id"], row["text"], row["speaker"]) for row in rows] == [
        ("u1", "go on", "ann"),
        ("u2", "stop it", "ann"),
        ("u3", "", "ben"),
    ]


def test_a_length_of_common_voice_that_is_no_number_names_its_table(tmp_path):
    folder = WRITE["common_voice"](tmp_path / "corpus")
    (folder / "de" / "clip_durations.tsv").write_text("clip\tduration[ms]\ncommon_voice_0.mp3\tlong\n")
    with pytest.raises(ValueError, match="clip_durations.tsv` has 'long'"):
        open_rows({"layout": "common_voice", "path": str(folder), "split": "train"})


def test_a_must_c_with_a_lost_line_is_refused(tmp_path):
    folder = write_must_c(tmp_path)
    (folder / "en-de/data/train/txt/train.de").write_text("Weiter.\nHalt.\n")
    with pytest.raises(ValueError, match="have different numbers of segments: the first ends after 2"):
        open_rows({"layout": "must_c", "path": str(folder)})


def test_two_languages_ask_for_a_config(tmp_path):
    WRITE["common_voice"](tmp_path, "de")
    WRITE["common_voice"](tmp_path, "fr")
    with pytest.raises(ValueError, match=r"has \['de', 'fr'\]: choose the language with `config`"):
        open_rows({"layout": "common_voice", "path": str(tmp_path)})
    rows = open_rows({"layout": "common_voice", "path": str(tmp_path), "config": "fr"})
    assert set(rows["language"]) == {"fr"}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"layout": "libri_speach", "path": "x"}, "the layouts are librispeech, .* Did you mean `librispeech`?"),
        ({"layout": 5, "path": "x"}, "`layout` of `data` is 5; expected text"),
        ({"layout": "kaldi", "path": "x", "revision": "main"}, "a layout finds its own files: leave `revision` out"),
    ],
)
def test_a_source_with_a_wrong_layout_is_refused(value, message):
    with pytest.raises(ValueError, match=message):
        list_sources(value)


def test_names_of_layouts_may_have_other_marks():
    assert find_layout("CoVoST 2") is LAYOUTS["covost2"] and find_layout("MuST-C") is LAYOUTS["must_c"]


def test_a_row_with_a_segment_and_no_layout_is_refused(tmp_path):
    clip = {"path": str(write_clip(tmp_path / "a.wav")), "start": 0.1, "end": 0.2}
    (tmp_path / "rows.jsonl").write_text(json.dumps({"audio": clip, "text": "go"}) + "\n")
    with pytest.raises(ValueError, match="has `audio` with `start`, and a clip is a whole file"):
        open_rows(str(tmp_path / "rows.jsonl"))


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT"])
def test_a_cut_loses_nothing(subtype, tmp_path):
    samples = np.random.default_rng(0).uniform(-1, 1, RATE)
    soundfile.write(tmp_path / "a.wav", samples, RATE, subtype=subtype)
    with Cutter() as cutter:
        clip = cutter.cut({"path": str(tmp_path / "a.wav"), "start": 0.5, "end": None}, "u", "row 0")
    whole, _ = soundfile.read(tmp_path / "a.wav")
    cut, rate = soundfile.read(io.BytesIO(clip["bytes"]))
    assert rate == RATE and cut.tolist() == whole[8_000:].tolist()
