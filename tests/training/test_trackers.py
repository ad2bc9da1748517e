"""What is logged arrives at the trackers of `report_to`, under its own name."""

from importlib.util import find_spec

import pytest
import yaml

from soundwave_hf import cli
from tests.training.workspace import train


# Of a stage with both losses and a mixture of two tasks; "train/" is the library's.
NAMES = {
    "train/loss",
    "train/ce_loss",
    "train/ctc_loss",
    "train/grad_norm",
    "train/learning_rate",
    "train/blank_share",
    "train/ctc_skipped",
    "train/positions_per_second",
    "train/targets_per_frame",
    "train/share/asr",
    "train/share/sound",
}


@pytest.fixture
def write(workspace, tmp_path):
    """Writes a recipe of stage I for a tracker."""

    def make(report_to) -> str:
        recipe = workspace.recipe("align", tmp_path / "out", max_steps=1) | {"report_to": report_to}
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        return str(tmp_path / "recipe.yaml")

    return make


@pytest.mark.skipif(find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_tensorboard_gets_both_losses_and_what_is_logged_beside_them(workspace, chain, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    changes = {"report_to": ["tensorboard"], "mixture": {"temperature": 1}, "plot_loss": False}
    trained = train(
        workspace.recipe("shrink", tmp_path / "out", start_from=str(chain["align"].folder)) | changes,
    )
    (file,) = (tmp_path / "out").rglob("events.out.tfevents.*")  # in the output folder
    events = EventAccumulator(str(file)).Reload()
    assert set(events.Tags()["scalars"]) >= NAMES
    for name in sorted(NAMES):
        written = [(event.step, event.value) for event in events.Scalars(name)]
        expected = [(entry["step"], entry[name.removeprefix("train/")]) for entry in trained.logs]
        assert written == [(step, pytest.approx(value, rel=1e-5)) for step, value in expected], name


@pytest.mark.parametrize("tracker", ["tensorboard", "trackio", "wandb"])
def test_a_tracker_that_is_not_installed_is_named(write, tmp_path, capsys, tracker):
    if find_spec(tracker) is not None:
        pytest.skip(f"{tracker} is installed")
    assert cli.main(["train", write("none"), "--report_to", tracker]) == 2
    printed = capsys.readouterr().err
    assert f"requires {tracker} to be installed" in printed
    assert "Traceback" not in printed
    assert not (tmp_path / "out").exists()


def test_a_tracker_that_the_library_does_not_know_is_refused_with_those_it_does(write, tmp_path, capsys):
    assert cli.main(["train", write(["tensorbord"])]) == 2
    printed = capsys.readouterr().err
    assert "tensorbord is not supported, only " in printed
    assert all(name in printed for name in ("tensorboard", "trackio", "wandb"))
    assert not (tmp_path / "out").exists()
