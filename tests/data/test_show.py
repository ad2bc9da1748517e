"""`soundwave-hf data show`: one row of a data set."""

import pytest

from soundwave_hf import cli
from soundwave_hf.data.show import find_row
from soundwave_hf.data.tiny import write_tiny_llm
from tests.data.corpora import write_clip, write_kaldi, write_lines
from tests.tiny_models import save_tiny_soundwave


@pytest.fixture
def rows(tmp_path):
    for name in ("a", "b"):
        write_clip(tmp_path / "clips" / f"{name}.wav", 0.5)
    rows = [
        {"audio": "clips/a.wav", "text": "Go on.", "id": "first", "speaker": "ann"},
        {"audio": "clips/b.wav", "text": "Stop.", "question": "Who says it?", "answer": "Ann.", "id": "second"},
        {"question": "2 + 2?", "answer": "4"},
        {"audio": "clips/b.wav", "text": " "},
        {"audio": ["clips/a.wav", "clips/b.wav"], "text": ["go on", None], "question": "Same?", "answer": "No."},
    ]
    write_lines(tmp_path / "rows.jsonl", rows)
    return str(tmp_path / "rows.jsonl")


def show(*words) -> int:
    return cli.main(["data", "show", *map(str, words)])


def test_a_row_without_a_model_is_its_columns_and_messages(rows, capsys):
    assert show(rows, 1) == 0
    printed = capsys.readouterr().out
    assert "row 1, line 2 of" in printed and "seconds: 0.5" in printed and "clips/b.wav" in printed
    assert "user: [audio]\nuser: Who says it?\nassistant: Ann." in printed


def test_with_an_llm_the_messages_are_those_of_its_chat_template(rows, tmp_path, capsys):
    write_tiny_llm(tmp_path / "llm")
    assert show(rows, 0, "--llm", tmp_path / "llm") == 0
    printed = capsys.readouterr().out
    assert "<|im_start|>user\n<|audio|>" in printed.replace("<|AUDIO|>", "<|audio|>")
    assert "What does the person say?<|im_end|>\n<|im_start|>assistant\nGo on.<|im_end|>" in printed
    assert "CTC target: ' go on', 6 labels" in printed  # lower case without marks, a label for each byte


def test_with_a_model_the_peaks_are_named_and_drawn(rows, tmp_path, capsys):
    folder = save_tiny_soundwave(tmp_path / "model")
    assert show(rows, "first", "--model", folder, "--output", tmp_path / "clip.png") == 0
    printed = capsys.readouterr().out
    assert "CTC peaks: " in printed and "positions, " in printed and "clip.png" in printed
    assert (tmp_path / "clip.png").read_bytes().startswith(b"\x89PNG")


def test_each_clip_of_a_row_has_its_picture(rows, tmp_path, capsys):
    assert show(rows, 4, "--output", tmp_path / "clip.png") == 0
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["clip-1.png", "clip-2.png"]


def test_a_row_is_found_by_id_path_and_number(rows):
    assert find_row(rows, "second")[0] == 1
    assert find_row(rows, "clips/a.wav")[0] == find_row(rows, "a.wav")[0] == find_row(rows, "0")[0] == 0


def test_a_segment_is_cut(tmp_path, capsys):
    write_kaldi(tmp_path / "kaldi")
    source = f"{{layout: kaldi, path: {tmp_path / 'kaldi'}}}"
    assert show(source, "u2", "--output", tmp_path / "clip.png") == 0
    printed = capsys.readouterr().out
    assert "bytes, `u2.flac`" in printed and "seconds: 0.25" in printed


def test_a_row_that_training_cannot_use_says_why(rows, capsys):
    assert show(rows, 3) == 1
    assert "Training cannot use this row: line 4 of" in capsys.readouterr().out


def test_a_row_of_a_broken_clip_says_why(tmp_path, capsys):
    (tmp_path / "a.wav").write_text("no sound")
    (tmp_path / "rows.jsonl").write_text('{"audio": "a.wav", "text": "go on"}\n')
    assert show(tmp_path / "rows.jsonl", 0) == 1
    assert "Training cannot use this row: line 1 of" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["5"], "There is no row 5: the data has 5 rows, numbered from 0."),
        (["none.wav"], "No row has the `id` or the clip 'none.wav': the data has 5 rows."),
        (["2", "--output", "clip.png"], "has no clip, so there is no picture of it"),
        (["0", "--output", "clip.jpg"], "give a file that ends in .png"),
        (["0", "--encoder", "x"], "need weights: give `--adapter` or `--model`"),
        (["0", "--model", "x", "--llm", "y"], "`--llm` says what adapters belong to"),
    ],
)
def test_what_cannot_be_shown_is_one_line(rows, words, message, capsys):
    assert show(rows, *words) == 2
    assert message in capsys.readouterr().err


def test_a_negative_number_is_refused(rows, capsys):
    with pytest.raises(ValueError, match="ROW is -1; rows are numbered from 0"):
        find_row(rows, "-1")
    assert show(rows, "--", "-1") == 2


def test_a_mapped_column_that_no_row_has_is_refused(tmp_path):
    write_lines(
        tmp_path / "rows.jsonl", [{"question": "Who?", "answer": "Ann."}, {"question": "Where?", "answer": "Rome."}]
    )
    with pytest.raises(ValueError, match="`tx`"):
        find_row(str(tmp_path / "rows.jsonl"), "0", {"tx": "text"})
