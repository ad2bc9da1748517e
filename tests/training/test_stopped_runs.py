import json
import os
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml

from soundwave_hf.training.checkpoints import last_checkpoint, writing_checkpoint
from tests.training.workspace import EVERY_AUGMENTATION, Trained, Workspace, everything_in, train


pytestmark = pytest.mark.slow


MAX_STEPS = 7
SAVE_STEPS = 2
REPOSITORY = Path(__file__).parents[2]
# How a run is stopped, after how many steps, and its exit code.
STOPS = {
    "killed": (random.randint(1, MAX_STEPS - 3), -9),
    "killed_in_optimizer": (4, -9),
    "killed_in_state": (4, -9),
    "terminated": (3, 143),
    "interrupted": (3, 130),
    "interrupted_twice": (3, 130),
    "full_at_trained": (4, 2),
    "full_at_optimizer": (4, 2),
}


def recipe_of(workspace: Workspace, folder: Path) -> dict:
    """Two epochs of three steps and one of a third, with all that draws at random, in float32."""
    return workspace.recipe(
        "align",
        folder,
        max_steps=MAX_STEPS,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        save_steps=SAVE_STEPS,
        augment=EVERY_AUGMENTATION,
        mixture={"temperature": 1, "step": 5},
        train_sampling_strategy="group_by_length",
        ctc_negatives=40,
    )


@pytest.fixture(scope="module")
def uninterrupted(workspace, tmp_path_factory) -> Trained:
    return train(recipe_of(workspace, tmp_path_factory.mktemp("whole") / "out"))


@dataclass
class Stopped:
    """A run that was stopped: its recipe, its exit code, what it printed, its last checkpoint and files then."""

    recipe: dict
    code: int
    printed: str
    checkpoint: str | None
    files: set[str]


@pytest.fixture(scope="module")
def stopped(workspace, tmp_path_factory) -> dict[str, Stopped]:
    folder = tmp_path_factory.mktemp("stopped")
    recipes = {how: recipe_of(workspace, folder / how) for how in STOPS}
    for how, recipe in recipes.items():
        (folder / f"{how}.yaml").write_text(yaml.safe_dump(recipe))
    runs = [[str(folder / f"{how}.yaml"), how, steps] for how, (steps, _) in STOPS.items()]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "tests.training.stopped_runs", json.dumps(runs)]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    results = json.loads(done.stdout.splitlines()[-1])
    return {
        how: Stopped(recipe, code, printed, last_checkpoint(recipe["output_dir"]), files_in(recipe["output_dir"]))
        for (how, recipe), (code, printed) in zip(recipes.items(), results, strict=True)
    }


def files_in(folder: str) -> set[str]:
    return {str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file()}


@pytest.mark.parametrize("how", STOPS)
def test_a_run_stopped_in_any_way_goes_on_as_if_it_had_not_been(stopped, uninterrupted, how):
    run = stopped[how]
    assert run.code == STOPS[how][1], run.printed
    resumed = train(run.recipe)
    assert resumed.trainer.state.global_step == MAX_STEPS
    assert resumed.moved()  # the rest was trained, not read
    assert resumed.losses() == pytest.approx(uninterrupted.losses(), abs=1e-6), f"after {STOPS[how][0]} steps"
    assert [e["share/sound"] for e in resumed.logs] == [e["share/sound"] for e in uninterrupted.logs]
    for name, value in everything_in(uninterrupted.model).items():
        torch.testing.assert_close(everything_in(resumed.model)[name], value, rtol=0, atol=1e-6)


@pytest.mark.parametrize("how", ["killed_in_optimizer", "killed_in_state"])
def test_a_checkpoint_that_a_kill_left_half_written_is_passed_over(stopped, how):
    folder = Path(stopped[how].recipe["output_dir"])
    assert "checkpoint-4/optimizer.pt" in stopped[how].files
    assert ("checkpoint-4/trainer_state.json" in stopped[how].files) == (how == "killed_in_state")
    assert stopped[how].checkpoint == str(folder / "checkpoint-2")


@pytest.mark.parametrize(("how", "name"), [("terminated", "SIGTERM"), ("interrupted", "Ctrl-C")])
def test_a_signal_saves_the_step_it_comes_in_and_says_so(stopped, how, name):
    run = stopped[how]
    step = int(run.checkpoint.rpartition("-")[2])
    assert 3 <= step < MAX_STEPS
    assert f"{name}: saved {run.checkpoint}; the same command goes on from there." in run.printed
    assert "Traceback" not in run.printed


def test_a_second_interrupt_stops_at_once(stopped):
    run = stopped["interrupted_twice"]
    assert run.checkpoint.endswith("checkpoint-2")
    assert "Ctrl-C: a checkpoint is saved after this step; again stops at once." in run.printed
    assert "Stopped." in run.printed and "saved" not in run.printed.split("at once.")[1]


@pytest.mark.parametrize("how", ["full_at_trained", "full_at_optimizer"])
def test_a_full_disk_leaves_the_last_good_checkpoint_and_is_named(stopped, how):
    run = stopped[how]
    folder = run.recipe["output_dir"]
    assert run.checkpoint == f"{folder}/checkpoint-2"
    assert f"`{folder}/checkpoint-4` could not be written and was removed" in run.printed
    assert f"the last complete one is `{folder}/checkpoint-2`" in run.printed
    assert "make room and start the run again" in run.printed
    assert "Traceback" not in run.printed


def test_a_full_disk_before_the_first_checkpoint_is_named(tmp_path):
    (tmp_path / "checkpoint-2").mkdir()
    message = r"and was removed; there is none before it.*The error was: .*No space left"
    with pytest.raises(OSError, match=message), writing_checkpoint(tmp_path / "checkpoint-2"):
        raise OSError(28, "No space left on device")
    assert not (tmp_path / "checkpoint-2").exists()


def test_a_checkpoint_written_to_its_end_is_kept_whatever_fails_after_it(tmp_path):
    (tmp_path / "checkpoint-2").mkdir()
    (tmp_path / "checkpoint-2" / "trainer_state.json").write_text("{}")
    with pytest.raises(RuntimeError, match="^no connection$"), writing_checkpoint(tmp_path / "checkpoint-2"):
        raise RuntimeError("no connection")
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")
