"""Two processes on CPU (gloo) train what one does: data parallel, and with sharded parameters (FSDP2)."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.training.workspace import SMALL_LORA, train, without_dropout


STAGES = ("align", "shrink", "instruct")
NO_DROPOUT = {**SMALL_LORA, "lora_dropout": 0.0}
# Batch and accumulation of one process; with two, both hold half of the eight clips of a step.
SHARES = {"ddp": {}, "ddp-accumulated": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}}
SHARES["fsdp"] = {"fsdp": "full_shard", "fsdp_config": {"version": 2, "reshard_after_forward": True}}


def recipe_of(workspace, chain, stage: str, folder: Path, **changes) -> dict:
    """Two steps of eight clips in the manifest's order, by SGD, whose step is the gradient."""
    start = {"shrink": "align", "instruct": "shrink"}.get(stage)
    return workspace.recipe(
        stage,
        folder,
        repeat={"s0": 2, "s1": 2},
        max_steps=2,
        optim="sgd",
        learning_rate=0.1,
        lr_scheduler_type="constant",
        train_sampling_strategy="sequential",
        save_strategy="no",
        **({"start_from": str(chain[start].folder)} if start else {}),
        **({"lora": NO_DROPOUT} if stage == "shrink" else {}),
        **{"per_device_train_batch_size": 4, **changes},
    )


@pytest.fixture(scope="module")
def two_processes(workspace, chain, tmp_path_factory):
    """What rank 0 of two saw of each stage and share of the work."""
    folder = tmp_path_factory.mktemp("distributed")
    cases = {
        f"{stage}-{share}": recipe_of(
            workspace, chain, stage, folder / f"{stage}-{share}", ddp_backend="gloo", **changes
        )
        for stage in STAGES
        for share, changes in SHARES.items()
    }
    (folder / "cases.json").write_text(json.dumps(cases))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0"]
    command += ["--standalone", "-m", "tests.training.distributed", str(folder / "cases.json"), str(folder)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-6000:]
    return {name: torch.load(folder / f"{name}.pt", weights_only=True) for name in cases}


@pytest.fixture(scope="module")
def one_process(workspace, chain, tmp_path_factory):
    """The same steps by one process: eight clips at once, and one by one."""
    folder = tmp_path_factory.mktemp("alone")
    runs = {}
    for stage in STAGES:
        for share, batch, accumulated in (("8x1", 8, 1), ("1x8", 1, 8)):
            recipe = recipe_of(
                workspace,
                chain,
                stage,
                folder / f"{stage}-{share}",
                per_device_train_batch_size=batch,
                gradient_accumulation_steps=accumulated,
            )
            trained = train(recipe, change=without_dropout)
            runs[stage, share] = {
                "logs": trained.logs,
                "weights": {n: p.detach() for n, p in trained.model.named_parameters() if p.requires_grad},
                "moved": trained.moved(),
            }
    return runs


def assert_same_training(result: dict, expected: dict):
    """Losses, what is logged beside them, and every trained weight."""
    for ours, theirs in zip(result["logs"], expected["logs"], strict=True):
        names = {"loss", "ce_loss", "ctc_loss", "grad_norm", "blank_share", "positions_per_second"} & theirs.keys()
        assert {name: ours[name] for name in names} == pytest.approx({name: theirs[name] for name in names}, rel=1e-5)
    assert result["weights"].keys() == expected["weights"].keys()
    for name, weight in result["weights"].items():
        torch.testing.assert_close(weight, expected["weights"][name], rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("stage", STAGES)
def test_one_by_one_is_eight_at_once(one_process, stage):
    assert one_process[stage, "8x1"]["moved"]
    assert_same_training(one_process[stage, "1x8"], one_process[stage, "8x1"])


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_are_one(one_process, two_processes, stage, share):
    result = two_processes[f"{stage}-{share}"]
    assert result["processes"] == 2
    assert any("FSDP" in base for base in result["wrapper"]) == (share == "fsdp")
    assert ("DistributedDataParallel" in result["wrapper"]) == (share != "fsdp")
    assert_same_training(result, one_process[stage, "8x1"])
