"""Trains cases as one of several processes: `torchrun --nproc_per_node 2 -m tests.training.distributed CASES OUT`.

CASES is JSON, a recipe for each name; where it has `fsdp`, or `accelerate launch` says so, parameters are sharded;
where it has `stop_after`, the run is broken off in the step after that and started again; where it has
`evaluate_stream`, the trained model is evaluated on that manifest as a stream of so many shards. OUT gets `NAME.pt` of
each.
"""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor

from soundwave_hf.training.collator import SoundwaveDataCollator
from soundwave_hf.training.run import read_rows
from tests.training.workspace import train, without_dropout


# Asked before any case: the library sets it for the first that shards, and for all behind that one.
LAUNCHED_TO_SHARD = os.environ.get("ACCELERATE_USE_FSDP") == "true"


def pretend_to_be_gpus():
    """accelerate shards parameters (FSDP) only on accelerators: say so, and its code runs on CPU with gloo."""
    state = PartialState(cpu=True)
    assert (state.distributed_type, state.backend) == (DistributedType.MULTI_CPU, "gloo")
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def whole(weight: torch.Tensor) -> torch.Tensor:
    return (weight.full_tensor() if isinstance(weight, DTensor) else weight).detach().clone()


def listen(patch: pytest.MonkeyPatch) -> list[list[str]]:
    """A list that gets the clips of each batch that a collator makes."""
    heard, collate = [], SoundwaveDataCollator.__call__

    def collated(collator, rows):
        heard.append([row["audio"] for row in rows])
        return collate(collator, rows)

    patch.setattr(SoundwaveDataCollator, "__call__", collated)
    return heard


def run_case(name: str, recipe: dict, out: Path):
    def change(model):
        without_dropout(model)
        if recipe.get("fsdp") or LAUNCHED_TO_SHARD:
            pretend_to_be_gpus()

    recipe_path = out / f"{name}.{os.environ['RANK']}.yaml"
    streamed = recipe.pop("evaluate_stream", None)
    if stop_after := recipe.pop("stop_after", None):
        with pytest.raises(KeyboardInterrupt):
            train(recipe, stop_after, change, recipe_path)
    with pytest.MonkeyPatch.context() as patch:
        heard = listen(patch)
        trained = train(recipe, change=change, path=recipe_path)
    heard_by_all = [None] * trained.trainer.accelerator.num_processes
    torch.distributed.all_gather_object(heard_by_all, heard)
    evaluated = [entry for entry in trained.trainer.state.log_history if "eval_loss" in entry]
    if streamed:
        rows = read_rows(Path(streamed["data"]), {}).to_iterable_dataset(streamed["num_shards"])
        evaluated.append(trained.trainer.evaluate(rows))
    model = trained.trainer.model_wrapped
    weights = {n.removeprefix("module."): whole(p) for n, p in model.named_parameters() if p.requires_grad}
    if trained.trainer.is_world_process_zero():
        result = {
            "wrapper": [base.__name__ for base in type(model).__mro__],
            "processes": trained.trainer.accelerator.num_processes,
            "heard": heard_by_all,
            "logs": trained.logs,
            "evaluated": evaluated,
            "weights": weights,
            "sharded": sorted(n for n, p in model.named_parameters() if isinstance(p, DTensor)),
        }
        torch.save(result, out / f"{name}.pt")


def main(cases: str, out: str):
    torch.set_num_threads(1)
    for name, recipe in json.loads(Path(cases).read_text()).items():
        run_case(name, recipe, Path(out))
    torch.distributed.barrier()  # a process that ends while the other writes may be aborted at its exit
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
