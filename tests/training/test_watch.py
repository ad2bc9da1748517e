from types import SimpleNamespace

import pytest
from PIL import Image

from soundwave_hf.training import watch
from soundwave_hf.training.arguments import SoundwaveTrainingArguments
from soundwave_hf.training.watch import (
    CollapseCallback,
    PaceCallback,
    PlotCallback,
    curves,
    describe_duration,
    plot_history,
)


ZERO = SimpleNamespace(is_world_process_zero=True, global_step=7)
HISTORY = [
    {"step": 1, "loss": 9.0, "ctc_loss": 9.0, "blank_share": 0.5},
    {"step": 2, "loss": 3.0, "ctc_loss": 3.0, "blank_share": 0.7},
    {"step": 2, "train_runtime": 1.0},
]


@pytest.fixture
def warnings(monkeypatch):
    said = []
    monkeypatch.setattr(watch.logger, "warning", said.append)
    return said


@pytest.mark.parametrize(
    ("shares", "times"),
    [
        ([0.999, 0.3, 0.999, 0.999], 0),
        ([0.999, 0.995, 1.0], 1),
        ([1.0] * 9, 1),
        ([1.0] * 3 + [0.5] + [1.0] * 3, 2),
        ([0.994] * 9, 0),
    ],
)
def test_a_collapse_is_told_once(warnings, tmp_path, shares, times):
    arguments = SoundwaveTrainingArguments(output_dir=str(tmp_path))
    callback = CollapseCallback()
    for share in shares:
        callback.on_log(arguments, ZERO, None, logs={"blank_share": share, "loss": 1.0})
        callback.on_log(arguments, ZERO, None, logs={"eval_loss": 1.0})
    assert len(warnings) == times
    assert all("Step 7" in text and "`learning_rate`" in text for text in warnings)


def run_steps(callback: PaceCallback, first: int, last: int, is_world_process_zero: bool = True):
    state = SimpleNamespace(global_step=first, max_steps=1007, is_world_process_zero=is_world_process_zero)
    callback.on_train_begin(None, state, None)
    for step in range(first + 1, last + 1):
        state.global_step = step
        callback.on_step_end(None, state, None)


def test_the_time_left_is_told_once_and_leaves_out_the_first_step(monkeypatch, capsys):
    # Steps of 2 s, the first of 60 s: that of a run that goes on from step 100.
    clock = iter([60.0, 70.0])
    monkeypatch.setattr(watch.time, "perf_counter", lambda: next(clock))
    run_steps(PaceCallback(), first=100, last=130)
    assert capsys.readouterr().out == "901 steps left, about 30 min: 2 s each, measured over 5.\n"


def test_one_process_tells_the_time(capsys):
    run_steps(PaceCallback(), first=0, last=10, is_world_process_zero=False)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(42.4, "42 s"), (420, "7 min"), (12_600, "3.5 h"), (9e5, "10.4 days")],
)
def test_a_duration_is_told_in_its_unit(seconds, text):
    assert describe_duration(seconds) == text


def test_curves_are_what_was_logged():
    assert curves(HISTORY, watch.LOSSES) == {"loss": [(1, 9.0), (2, 3.0)], "ctc_loss": [(1, 9.0), (2, 3.0)]}


@pytest.mark.parametrize("history", [HISTORY, []], ids=["logged", "empty"])
def test_the_plot_is_a_picture(tmp_path, history):
    plot_history(history, tmp_path / "loss.png")
    with Image.open(tmp_path / "loss.png") as image:
        assert image.size == (960, 1080)
        colours = len(image.convert("RGB").getcolors(1 << 16))
    assert [path.name for path in tmp_path.iterdir()] == ["loss.png"]
    plot_history(HISTORY[:1], tmp_path / "one.png")
    with Image.open(tmp_path / "one.png") as image:  # one step: fewer lines than all, more than none
        assert (len(image.convert("RGB").getcolors(1 << 16)) > colours) == (history == [])


def test_without_matplotlib_the_run_says_so_once(warnings, monkeypatch, tmp_path):
    monkeypatch.setattr(watch, "find_spec", lambda name: None)
    callback, arguments = PlotCallback(), SoundwaveTrainingArguments(output_dir=str(tmp_path))
    state = SimpleNamespace(is_world_process_zero=True, log_history=HISTORY)
    for _ in range(2):
        callback.on_save(arguments, state, None)
    assert len(warnings) == 1
    assert "pip install 'soundwave-hf[train]'" in warnings[0]
    assert not list(tmp_path.iterdir())


def test_share_out_of_range_is_refused(tmp_path):
    with pytest.raises(ValueError, match="`max_blank_share` is 1.5"):
        SoundwaveTrainingArguments(output_dir=str(tmp_path), max_blank_share=1.5)
