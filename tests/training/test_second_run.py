"""What a second run into a folder does: go on, say that it is finished, or refuse, and never rewrite before that."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file, save_file

from soundwave_hf import cli
from soundwave_hf.training.run import run_recipe
from tests.training.workspace import EVERY_AUGMENTATION, first_rows, train, write_manifest


def contents(folder: Path) -> dict[str, str]:
    """Digest of every file."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def finished(workspace, chain, tmp_path_factory):
    """A finished run of stage `shrink`, of two steps with a checkpoint each: its recipe."""
    recipe = workspace.recipe(
        "shrink",
        tmp_path_factory.mktemp("finished") / "out",
        start_from=str(chain["align"].folder),
        max_steps=2,
        save_steps=1,
        augment=EVERY_AUGMENTATION,
        repeat={"s0": 2},
        ctc_negatives=20,
        lr_scheduler_type="cosine",
    )
    train(recipe)
    return recipe


@pytest.fixture
def again(finished, tmp_path):
    """Runs a recipe with changes into a copy of the finished folder; returns the folder, and what it held."""
    folder = tmp_path / "copy"
    shutil.copytree(finished["output_dir"], folder)

    def run(**changes):
        recipe = {**finished, "output_dir": str(folder), **changes}
        (tmp_path / "recipe.yaml").write_text(
            yaml.safe_dump({key: value for key, value in recipe.items() if value is not None})
        )
        return run_recipe(tmp_path / "recipe.yaml")

    run.folder, run.held = folder, contents(folder)
    return run


def test_a_finished_run_is_left_as_it_is(again, capsys):
    assert again() == str(again.folder)
    assert f"`{again.folder}` is already finished (2 steps): nothing to train." in capsys.readouterr().out
    assert contents(again.folder) == again.held


def test_what_does_not_change_what_is_learnt_may_differ(again, finished, tmp_path, workspace, chain, capsys):
    for old, name in ((workspace.encoder, "w"), (chain["align"].folder, "s"), (workspace.data, "d")):
        shutil.copytree(old, tmp_path / name)
    again(
        encoder=str(tmp_path / "w"),
        start_from=str(tmp_path / "s"),
        data=str(tmp_path / "d" / "train.jsonl"),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        save_steps=2,
        logging_steps=2,
        eval_data=str(tmp_path / "d" / "train.jsonl"),
        dataloader_num_workers=1,
        encoder_cache=None,
        plot_loss=False,
        lora={**finished["lora"], "use_rslora": False},  # as by default
        adam_beta1="0.9",
    )
    assert "already finished" in capsys.readouterr().out
    assert contents(again.folder) == again.held


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 0.02}, "`learning_rate` was 0.01 and is 0.02 now"),
        ({"lr_scheduler_type": "linear"}, "`lr_scheduler_type` was 'cosine' and is 'linear' now"),
        ({"warmup_steps": 1}, "`warmup_steps` was 0 and is 1 now"),
        ({"weight_decay": 0.1}, "`weight_decay` was 0.0 and is 0.1 now"),
        ({"adam_beta2": 0.98}, "`adam_beta2` was 0.999 and is 0.98 now"),
        ({"optim": "sgd"}, "`optim` was '.*' and is 'sgd' now"),
        ({"max_grad_norm": 0.5}, "`max_grad_norm` was 1.0 and is 0.5 now"),
        ({"seed": 7}, "`seed` was 42 and is 7 now"),
        ({"bf16": True}, "`bf16` was False and is True now"),
        ({"per_device_train_batch_size": 2}, r"`clips of a step \(.*\)` was 4 and is 2 now"),
        ({"repeat": {"s0": 3}}, "`repeat.s0` was 2 and is 3 now"),
        ({"repeat": {}}, "`repeat.s0` was 2 and is None now"),
        ({"ctc_negatives": None}, "`ctc_negatives` was 20 and is None now"),
        ({"augment": {}}, "`augment.noise` was 0.5 and is 0.0 now"),
        ({"lora": {"r": 4, "lora_alpha": 16, "lora_dropout": 0.1}}, "`lora.lora_alpha` was 8 and is 16 now"),
        ({"model": {"ctc_loss_weight": 0.5}}, "`model.ctc_loss_weight` was 0.3 and is 0.5 now"),
        ({"mixture": {"temperature": 1}}, "`mixture` was False and is True now"),
        ({"max_batch_seconds": 9.0}, "`max_batch_seconds` was None and is 9.0 now"),
        ({"train_sampling_strategy": "group_by_length"}, "`train_sampling_strategy` was 'random' and is 'group_by_l"),
        ({"stage": "align", "lora": {}, "start_from": None}, "`stage` was 'shrink' and is 'align' now"),
        ({"start_from": None}, "`start_from` was '.*' and is None now"),
        ({"max_steps": 1}, "`max_steps` was 2, and `max_steps` is 1 now. A run can only be made longer"),
        ({"max_steps": None, "num_train_epochs": 9}, "`max_steps` was 2, and `num_train_epochs` is 9 now"),
    ],
)
def test_what_changes_what_is_learnt_is_refused_with_both_values(again, changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        again(**changes)
    assert "Nothing was changed. Name a new folder as `output_dir`" in str(caught.value)
    assert contents(again.folder) == again.held


@pytest.mark.parametrize("changes", [{"max_batch_seconds": 9.0}, {"dataloader_drop_last": True}])
def test_the_batch_size_must_stay_where_the_clips_of_a_step_follow_from_it(workspace, tmp_path, changes):
    recipe = workspace.recipe("align", tmp_path / "out", max_steps=1, **changes)
    train(recipe)
    held = contents(tmp_path / "out")
    with pytest.raises(ValueError, match="holds another run: `per_device_train_batch_size` was 4 and is 1 now"):
        train({**recipe, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 4})
    assert contents(tmp_path / "out") == held


def test_other_data_other_backbones_and_another_start_are_refused(again, workspace, chain, tmp_path):
    with pytest.raises(ValueError, match=r"`data` was \['[0-9a-f]{64}'\] and is \['"):
        again(data=first_rows(workspace, 8, tmp_path / "fewer.jsonl"))
    for key, old, name in (
        ("llm", workspace.llm, "model.safetensors"),
        ("start_from", chain["align"].folder, "trained.safetensors"),
    ):
        shutil.copytree(old, tmp_path / key)
        weights = load_file(tmp_path / key / name)
        weights[min(weights)].view(-1)[0] += 1
        save_file(weights, tmp_path / key / name, metadata={"format": "pt"})
        with pytest.raises(ValueError, match=f"`{key}` was '.*' and is '{tmp_path / key}' now"):
            again(**{key: str(tmp_path / key)})
    assert contents(again.folder) == again.held


def test_the_same_name_with_other_weights_is_another_start(workspace, chain, tmp_path):
    start = tmp_path / "start"
    shutil.copytree(chain["align"].folder, start)
    recipe = workspace.recipe("shrink", tmp_path / "out", start_from=str(start), max_steps=1)
    train(recipe)
    weights = {name: weight + 1 for name, weight in load_file(start / "trained.safetensors").items()}
    save_file(weights, start / "trained.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"`start_from` was '.*start' and is '.*start \(other weights\)' now"):
        train(recipe)


def test_more_steps_go_on_from_the_last_checkpoint_and_say_what_the_rate_does(again, capsys):
    again(max_steps=4)
    printed = capsys.readouterr().out
    # Cosine from 0.01: at step 2 of 2 it is 0, at step 2 of 4 half.
    assert (
        f"Resuming from checkpoint-2 in `{again.folder}`. `max_steps` was 2 and is 4 now: the schedule `cosine` is "
        in printed
    )
    assert "the learning rate at step 2 is 0.005 instead of 0." in printed
    state = json.loads((again.folder / "trainer_state.json").read_text())
    rates = {entry["step"]: entry["learning_rate"] for entry in state["log_history"] if "learning_rate" in entry}
    assert rates[3] == pytest.approx(0.005)
    again(max_steps=4)
    assert "is already finished (4 steps)" in capsys.readouterr().out


def test_a_run_that_was_stopped_says_where_it_goes_on(workspace, tmp_path, capsys):
    recipe = workspace.recipe("align", tmp_path / "out", save_steps=1)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, stop_after=1)
    held = contents(tmp_path / "out")
    with pytest.raises(ValueError, match="`seed` was 42 and is 1 now"):
        train({**recipe, "seed": 1})
    assert contents(tmp_path / "out") == held
    capsys.readouterr()
    train(recipe)
    assert f"Resuming from checkpoint-1 in `{tmp_path / 'out'}`." in capsys.readouterr().out


def as_of_an_earlier_version(folder: Path, **changes):
    """Leave what an earlier version wrote: no `run.json`."""
    for record in folder.rglob("run.json"):
        record.unlink()
    for path in folder.rglob("recipe.yaml"):
        path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **changes}))


def test_the_folder_of_an_earlier_version_is_compared_by_its_recipe(again, capsys):
    as_of_an_earlier_version(again.folder)
    held = contents(again.folder)
    again()
    assert "already finished" in capsys.readouterr().out
    for changes, message in (
        ({"learning_rate": 0.02}, "`learning_rate` was 0.01 and is 0.02 now"),
        ({"per_device_train_batch_size": 8}, "was 4 and is 8 now"),
        ({"start_from": None}, "`start_from` was"),
    ):
        with pytest.raises(ValueError, match=message):
            again(**changes)
    assert contents(again.folder) == held


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stage: [align\nseed: 1\n", "cannot be read as YAML: .* in line 2"),
        ("- align\n", "it holds no keys and values"),
    ],
)
def test_a_damaged_recipe_of_an_earlier_version_is_named(again, text, message):
    as_of_an_earlier_version(again.folder)
    (again.folder / "recipe.yaml").write_text(text)
    with pytest.raises(ValueError, match=f"recipe.yaml` is the recipe of .* cannot be compared: .*{message}. Name a"):
        again()


@pytest.mark.parametrize("text", ["", '{"origins": {}', "[]", '{"origins": {}}'])
def test_a_damaged_record_is_named(again, text):
    (again.folder / "run.json").write_text(text)
    with pytest.raises(ValueError, match="run.json` .*: restore it, or name a new folder as `output_dir`"):
        again()


def test_the_gain_of_an_earlier_version_was_that_of_every_clip(again, capsys):
    old = {name: share for name, share in EVERY_AUGMENTATION.items() if name != "gain"}
    as_of_an_earlier_version(again.folder, augment=old)
    again(augment={**old, "gain": 1.0})
    assert "already finished" in capsys.readouterr().out
    with pytest.raises(ValueError, match="`augment.gain` was 1.0 and is 0.0 now"):
        again(augment=old)


def test_a_token_that_an_earlier_version_wrote_down_is_not_shown(again, capsys):
    as_of_an_earlier_version(again.folder, hub_token="hf_AbCdEfGhIjKlMnOp0123")
    with pytest.raises(ValueError, match="`seed` was") as caught:
        again(seed=1)
    assert "hf_AbCd" not in str(caught.value)


def test_other_data_is_told_from_the_card_of_an_earlier_version(again, workspace, tmp_path):
    as_of_an_earlier_version(again.folder)
    with pytest.raises(ValueError, match="`data` was "):
        again(data=first_rows(workspace, 8, tmp_path / "fewer.jsonl"))


@pytest.mark.parametrize("name", ["config.json", "README.md", "model.safetensors", "adapter_model.safetensors"])
def test_a_folder_that_holds_something_else_is_not_written_into(workspace, tmp_path, name):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("mine")
    with pytest.raises(FileExistsError, match=f"holds `{name}` and no run to continue: name a new or empty folder"):
        train(workspace.recipe("align", tmp_path / "out"))
    assert contents(tmp_path / "out").keys() == {name}


def test_checkpoints_of_another_program_are_not_gone_on_with(workspace, tmp_path):
    checkpoint = tmp_path / "out" / "checkpoint-2"
    checkpoint.mkdir(parents=True)
    (checkpoint / "trainer_state.json").write_text('{"global_step": 2}')
    with pytest.raises(
        FileExistsError, match="checkpoint-2` was not written by `soundwave-hf train`: it has no `reci"
    ):
        train(workspace.recipe("align", tmp_path / "out"))


def test_the_command_ends_well_where_a_run_is_finished_and_not_where_it_is_another(workspace, tmp_path, capsys):
    recipe = workspace.recipe("align", tmp_path / "out", max_steps=1)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert cli.main(["train", str(tmp_path / "recipe.yaml")]) == 0
    assert cli.main(["train", str(tmp_path / "recipe.yaml")]) == 0
    assert "already finished" in capsys.readouterr().out
    assert cli.main(["train", str(tmp_path / "recipe.yaml"), "--seed", "3"]) == 2
    assert "`seed` was 42 and is 3 now" in capsys.readouterr().err


# ---- runs that come to nothing ----


def test_a_run_whose_loss_is_no_number_stops_and_keeps_its_last_good_checkpoint(workspace, tmp_path, capsys):
    def break_later(model):
        losses = []

        def spoil(module, arguments, output):
            losses.append(output.loss)
            if len(losses) == 3:
                output.loss = output.loss * float("nan")

        model.register_forward_hook(spoil)

    recipe = workspace.recipe("align", tmp_path / "out", max_steps=5, save_steps=1)
    with pytest.raises(
        RuntimeError, match="Step 3: the loss is nan: the run has diverged, and this state was not saved"
    ) as e:
        train(recipe, change=break_later)
    assert (
        f"The last good checkpoint is `{tmp_path / 'out' / 'checkpoint-2'}`. Lower `learning_rate` (it is 0.01)"
        in str(e.value)
    )
    held = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"checkpoint-1", "checkpoint-2"} <= held and not {"checkpoint-3", "trained.safetensors", "run.json"} & held


def test_weights_that_are_no_numbers_are_not_saved_between_two_logs(workspace, tmp_path):
    recipe = workspace.recipe(
        "align", tmp_path / "out", max_steps=3, learning_rate=1e38, max_grad_norm=0.0, optim="sgd", logging_steps=100
    )
    with pytest.raises(RuntimeError, match="weights are NaN or infinite.*There is no checkpoint before it"):
        train(recipe)
    assert not any((tmp_path / "out").glob("**/*.safetensors"))


@pytest.mark.parametrize("strategy", ["random", "group_by_length"])
def test_a_run_of_no_batch_is_refused(workspace, tmp_path, strategy):
    recipe = workspace.recipe(
        "align",
        tmp_path / "out",
        per_device_train_batch_size=16,
        dataloader_drop_last=True,
        train_sampling_strategy=strategy,
    )
    with pytest.raises(
        ValueError, match="12 rows make no batch of 16 in 1 processes, .*Lower `per_device_train_batch"
    ):
        train(recipe)
    assert not any((tmp_path / "out").glob("**/*.safetensors"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_steps": 0}, "`max_steps` is 0: a run needs at least one step"),
        ({"max_steps": -5}, "`max_steps` is -5: a run needs"),
        ({"max_steps": -1, "num_train_epochs": 0}, "`num_train_epochs` is 0.*: a run needs at least one step"),
    ],
)
def test_a_run_of_no_step_is_refused(workspace, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        train(workspace.recipe("align", tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()


def test_no_rows_are_refused(workspace, tmp_path):
    with pytest.raises(ValueError, match="is empty: it needs one JSON object a line"):
        train(workspace.recipe("align", tmp_path / "out", data=str(write_manifest(tmp_path / "none.jsonl", []))))


def test_the_same_data_in_another_order_is_another_run(finished, workspace, tmp_path):
    rows = (workspace.data / "train.jsonl").read_text().splitlines(keepends=True)
    parts = [workspace.data / "first.jsonl", workspace.data / "second.jsonl"]
    for part, lines in zip(parts, (rows[:4], rows[4:8]), strict=True):
        part.write_text("".join(lines))
    recipe = {**finished, "output_dir": str(tmp_path / "out"), "data": [str(part) for part in parts], "max_steps": 1}
    train(recipe)
    with pytest.raises(ValueError, match="`data in order` was"):
        train({**recipe, "data": [str(part) for part in reversed(parts)], "max_steps": 2})
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    del record["learning"]["data in order"]  # as earlier versions wrote it
    (tmp_path / "out" / "run.json").write_text(json.dumps(record))
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({**recipe, "data": [str(part) for part in reversed(parts)]}))
    assert run_recipe(path) == recipe["output_dir"]  # finished
