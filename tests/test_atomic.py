import os
import resource
import signal
import time
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import save_file

from soundwave_hf import cli
from soundwave_hf.atomic import atomic_file, atomic_files, atomic_folder, kept_folder, refuse_used


def test_a_file_appears_once_it_is_written(tmp_path):
    path = tmp_path / "deep" / "scores.json"
    with atomic_file(path) as part:
        part.write_text("{}")
        assert not path.exists()
    assert path.read_text() == "{}"
    assert [file.name for file in path.parent.iterdir()] == ["scores.json"]


def test_a_file_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "scores.json"
    path.write_text("old")
    with pytest.raises(OSError, match="No space left"), atomic_file(path) as part:
        part.write_text("half")
        raise OSError("No space left on device")
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["scores.json"]


def test_two_writers_of_one_file_do_not_mix_their_halves(tmp_path):
    path = tmp_path / "scores.json"
    with atomic_file(path) as first:
        first.write_text("first")
        with atomic_file(path) as second:
            second.write_text("second")
        assert path.read_text() == "second"
    assert path.read_text() == "first"
    assert [file.name for file in tmp_path.iterdir()] == ["scores.json"]


def test_halves_of_killed_processes_are_removed_after_a_day(tmp_path):
    ages = {".scores.json.0123abcd.part": 25, ".other.csv.99999999.part": 25, ".scores.json.01234567.part": 1}
    kept = {".mine.part": 25, "mine.0123abcd.part": 25}
    for name, hours in (ages | kept).items():
        (tmp_path / name).write_text("half")
        os.utime(tmp_path / name, (time.time() - hours * 3600,) * 2)
    with atomic_file(tmp_path / "scores.json") as part:
        part.write_text("{}")
    left = sorted(file.name for file in tmp_path.iterdir())
    assert left == sorted(["scores.json", ".scores.json.01234567.part", *kept])


@pytest.mark.parametrize("write", [atomic_file, atomic_files, atomic_folder, kept_folder])
def test_a_file_where_a_folder_is_needed_is_named(tmp_path, write):
    (tmp_path / "a.csv").write_text("mine")
    place = tmp_path / "a.csv" if write is atomic_files else tmp_path / "a.csv" / "deep" / "model"
    with pytest.raises(NotADirectoryError, match="a.csv` is a file, and a folder was expected"), write(place):
        pass
    assert [file.name for file in tmp_path.iterdir()] == ["a.csv"]


@pytest.mark.parametrize("is_there", [False, True])
def test_a_folder_appears_once_all_of_it_is_written(tmp_path, is_there):
    path = tmp_path / "model"
    if is_there:
        path.mkdir()
    with atomic_folder(path) as part:
        (part / "config.json").write_text("{}")
        assert not (path / "config.json").exists()
    assert [file.name for file in path.iterdir()] == ["config.json"]
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


def test_a_folder_that_fails_leaves_nothing_even_of_a_run_that_was_killed(tmp_path):
    killed = tmp_path / ".model.part"
    killed.mkdir()
    (killed / "old.safetensors").write_text("half")
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "model") as part:
        assert list(part.iterdir()) == []
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_folders_that_were_made_for_what_fails_go_again(tmp_path):
    for whole in (atomic_file, atomic_folder):
        with pytest.raises(ValueError, match="diverged"), whole(tmp_path / "a" / "b" / "c"):
            raise ValueError("diverged")
        assert list(tmp_path.iterdir()) == []


@contextmanager
def full_disk():
    """Within it no file may grow beyond 1,000 bytes; pytest's own log may be longer, so that it is no fixture."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_weights_that_do_not_fit_on_the_disk_are_named(tmp_path):
    path = tmp_path / "shipped" / "model.safetensors"
    message = f"`{path}` could not be written .*too large.*Nothing there was changed. Free disk space"
    with pytest.raises(OSError, match=message), atomic_file(path) as part, full_disk():
        save_file({"weight": torch.zeros(1_000)}, part)
    assert list(tmp_path.iterdir()) == []


def test_files_come_together_or_not_at_all(tmp_path):
    (tmp_path / "config.json").write_text("old")
    with pytest.raises(OSError, match="No space left"), atomic_files(tmp_path) as part:
        (part / "config.json").write_text("new")
        raise OSError("No space left on device")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("config.json", "old")]
    with atomic_files(tmp_path) as part:
        (part / "config.json").write_text("new")
        (part / "notes.txt").write_text("mine")
        assert (tmp_path / "config.json").read_text() == "old"
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"config.json": "new", "notes.txt": "mine"}


def test_the_folder_that_one_stands_in_may_be_named_by_a_dot(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with atomic_folder(".") as part:
        (part / "config.json").write_text("{}")
    assert [file.name for file in (tmp_path / "here").iterdir()] == ["config.json"]


def test_what_is_there_is_not_replaced(tmp_path):
    refuse_used(tmp_path / "new")
    refuse_used(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    for used in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(FileExistsError, match=f"`{used}` exists and is not an empty folder: name a new one"):
            refuse_used(used)


# ---- two processes ----


@pytest.mark.parametrize("whole", [atomic_folder, kept_folder])
def test_a_second_writer_of_a_folder_is_refused_and_the_first_one_ends_well(tmp_path, whole):
    with whole(tmp_path / "model") as part:
        (part / "config.json").write_text("{}")
        for other in (atomic_folder, kept_folder):
            with pytest.raises(BlockingIOError, match="Another process is writing `.*model`: wait"):
                other(tmp_path / "model").__enter__()
        with whole(tmp_path / "other") as another:  # another folder is free
            (another / "config.json").write_text("{}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "other"]
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["config.json"]


@pytest.mark.parametrize("whole", [atomic_folder, kept_folder])
def test_the_lock_of_a_killed_process_does_not_block_the_next_one(tmp_path, whole):
    if (child := os.fork()) == 0:
        with whole(tmp_path / "model"):
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert (tmp_path / ".model.part.lock").exists()
    with whole(tmp_path / "model") as part:
        (part / "config.json").write_text("{}")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_folder_that_another_process_has_finished_meanwhile_is_not_written_to(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("theirs")
    for whole in (atomic_folder, kept_folder):
        with pytest.raises(FileExistsError, match="exists and is not an empty folder"), whole(tmp_path / "model"):
            raise AssertionError("the block ran")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data", "clean", "rows.jsonl", "kept.jsonl"], "OUT is a folder, and `kept.jsonl` is named like a file"),
        (["data", "merge", "a", "kept.parquet"], "OUT is a folder, and `kept.parquet` is named like a file"),
        (["data", "build", "steps.yaml", "rows.csv"], "OUT is a folder, and `rows.csv` is named like a file"),
        (["export", "run", "a.safetensors"], "DST is a folder, and `a.safetensors` is named like a file"),
        (["merge", "run", "model.gguf"], "DST is a folder, and `model.gguf` is named like a file"),
    ],
)
def test_a_folder_to_write_that_is_named_like_a_file_is_refused(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 2
    assert f"{message}: leave its ending out." in capsys.readouterr().err and not list(tmp_path.iterdir())
