"""`soundwave-hf inspect`: pictures of what a model finds in recordings."""

import io
import os
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from matplotlib.image import imread

from soundwave_hf import cli, inspect_files, picture
from soundwave_hf.evaluation import shipped
from tests.tiny_models import save_tiny_soundwave


RATE = 16_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(save_tiny_soundwave(tmp_path_factory.mktemp("saved")))


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "calls" / "deep").mkdir(parents=True)
    for name, seconds in (("c.wav", 2.0), ("calls/a.wav", 0.5), ("calls/deep/b.wav", 0.5)):
        soundfile.write(name, noise(seconds), RATE)
    return tmp_path


@pytest.fixture
def run(folder, capsys):
    def inspect(*words, model=folder):
        code = cli.main(["inspect", *words, "--model", model])
        printed = capsys.readouterr()
        return code, printed.out.strip(), printed.err.strip()

    return inspect


def noise(seconds: float) -> np.ndarray:
    return 0.1 * np.random.default_rng(0).standard_normal(round(RATE * seconds))


def pngs(folder) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png"))


def test_one_file_becomes_a_png_of_its_name_in_the_current_folder(here, run):
    code, out, err = run("calls/a.wav")
    assert (code, err, pngs(here)) == (0, "", ["a.png"])
    assert imread("a.png").shape[1] == 1320
    lines = out.splitlines()
    assert lines[0] == "a.wav, 0.50 s" and lines[-1] == "The picture is in a.png."
    assert lines[1].startswith("CTC peaks: 0.") and " positions, " in lines[2]


def test_output_names_the_png_of_one_file(here, run):
    assert run("c.wav", "--output", "figures/one.PNG")[0] == 0
    assert (here / "figures" / "one.PNG").is_file()


def test_several_files_become_several_pictures_at_their_places_below_a_folder(here, run):
    assert run("c.wav", "calls", "--output", "out")[0] == 0
    assert pngs(here) == ["out/a.png", "out/c.png", "out/deep/b.png"]


def test_a_part_is_drawn_alone_with_the_times_of_the_file(here, run, monkeypatch):
    drawn = []
    monkeypatch.setattr(inspect_files, "save_picture", lambda found, path: drawn.append(found))
    code, out, _ = run("c.wav", "--start", "1.25", "--end", "1.75")
    (found,) = drawn
    assert code == 0 and found.begin == 1.25 and len(found.samples) == 8_000
    assert np.allclose(found.samples, soundfile.read("c.wav")[0][20_000:28_000], atol=1e-6)
    assert found.title == "c.wav, 1.25 to 1.75 s"
    first = 1.25 + found.peaks[0].seconds
    assert f"CTC peaks: {first:.2f} " in out
    figure = picture.draw_clip(found)
    label = figure.axes[-1].xaxis.get_major_formatter()
    assert label(0.25, 0) == "1.5"


def test_a_recording_longer_than_the_encoders_window_is_drawn_whole(here, run, monkeypatch):
    soundfile.write("long.wav", noise(33.0), RATE)  # the window is 2 s
    drawn = []
    monkeypatch.setattr(inspect_files, "save_picture", lambda found, path: drawn.append(found))
    assert run("long.wav")[0] == 0
    assert drawn[0].seconds >= 33 and drawn[0].peaks[-1].seconds > 20 and drawn[0].kept_seconds[-1] > 31
    assert len(picture.draw_clip(drawn[0]).axes) == 2 * 3  # strips of 15 s


def test_an_existing_picture_is_overwritten_only_with_force(here, run):
    (here / "c.png").write_text("mine")
    code, _, err = run("c.wav", model="nowhere")
    assert code == 2 and "`c.png` exists: `--force` overwrites it" in err
    assert (here / "c.png").read_text() == "mine"
    assert run("c.wav", "--force")[0] == 0 and imread("c.png").shape[1] == 1320


def test_a_file_that_is_no_audio_is_named_and_the_others_are_drawn(here, run):
    (here / "calls" / "a.wav").write_text("not audio")
    code, out, err = run("calls", "--output", "out")
    assert code == 2 and pngs(here) == ["out/deep/b.png"]
    assert err.startswith("soundwave-hf inspect: `calls/a.wav`") and err.count("\n") == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere.wav"], "There is no file or folder `nowhere.wav`"),
        (["calls", "--output", "one.png"], "`--output` is `one.png`, and there are 3 files: give a folder"),
        (["c.wav", "--output", "one.jpg"], "`--output` is `one.jpg`, but pictures are PNG"),
        (["c.wav", "--output", "c.wav"], "`c.wav` is a file, and `--output` expects a folder"),
        (["c.wav", "--output", "c.wav/one.png"], "`c.wav` is a file, and `--output` expects a folder"),
        (["c.wav", "--output", "made.png"], "`made.png` is a folder, and a picture of this name"),
        (["c.wav", "calls/c.wav", "--output", "out"], "would both be written to `out/c.png`"),
        (["c.wav", "--start", "-1"], "`--start` is -1; expected seconds from the start of the file, 0 or more"),
        (["c.wav", "--end", "nan"], "`--end` is nan; expected seconds"),
        (["c.wav", "--start", "1", "--end", "1"], "`--end` is 1 s and the part begins at 1 s"),
        (["c.wav", "--llm", "mine"], "`--llm` says what adapters belong to"),
        (["c.wav", "--device", "gpu"], "The device is 'gpu'"),
    ],
)
def test_requests_that_do_not_fit_are_one_sentence_before_a_model_is_loaded(here, run, words, message):
    (here / "made.png").mkdir()
    soundfile.write("calls/c.wav", noise(0.5), RATE)
    code, out, err = run(*words, model="nowhere")
    assert (code, out) == (2, "") and message in err and err.count("\n") == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--start", "2.5"], "It has 2.00 s, and `--start` is 2.5"),
        (["--end", "2.5"], "It has 2.00 s, and `--end` is 2.5"),
        (["--start", "2"], "It has 2.00 s, and `--start` is 2"),
        (["--start", "1", "--end", "1.001"], "The part lasts 1.00 ms; expected at least"),
    ],
)
def test_a_part_that_the_file_does_not_have_is_an_error_that_names_the_file(here, run, words, message):
    code, out, err = run("c.wav", *words)
    assert (code, out, pngs(here)) == (2, "", []) and message in err and "`c.wav`: " in err


def test_standard_input_is_drawn_under_its_own_name(here, run, monkeypatch):
    pipe = SimpleNamespace(buffer=io.BytesIO((here / "c.wav").read_bytes()), isatty=lambda: False)
    monkeypatch.setattr(sys, "stdin", pipe)
    assert run("-")[1].startswith("Standard input, 2.00 s") and pngs(here) == ["stdin.png"]


def test_the_shipped_weights_are_the_default_and_adapters_of_the_first_stage_do(here, monkeypatch):
    seen = []

    def load(folder, **options):
        seen.append((os.fspath(folder), options))
        raise ValueError("enough")

    monkeypatch.setattr(shipped, "load_adapter", load)
    assert cli.main(["inspect", "c.wav"]) == 2
    ((given, options),) = seen
    assert given == str(shipped.ADAPTER) and options["ctc_only"]


def test_without_matplotlib_it_says_how_to_install_it(here, run, monkeypatch):
    monkeypatch.setattr("soundwave_hf.picture.find_spec", lambda name: None)
    code, _, err = run("c.wav", model="nowhere")
    assert code == 2 and "needs matplotlib: `pip install 'soundwave-hf[train]'`" in err
