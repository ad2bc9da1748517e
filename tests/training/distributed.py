"""Trains cases as one of several processes: `torchrun --nproc_per_node 2 -m tests.training.distributed CASES OUT`.

CASES is JSON, a recipe for each name; where it has `fsdp`, or `accelerate launch` says so, parameters are sharded. OUT
gets `NAME.pt` of each.
"""

import json
import os
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor

from tests.training.workspace import train, without_dropout


def pretend_to_be_gpus():
    """accelerate shards parameters (FSDP) only on accelerators: say so, and its code runs on CPU with gloo."""
    state = PartialState(cpu=True)
    assert (state.distributed_type, state.backend) == (DistributedType.MULTI_CPU, "gloo")
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def whole(weight: torch.Tensor) -> torch.Tensor:
    return (weight.full_tensor() if isinstance(weight, DTensor) else weight).detach().clone()


def run_case(name: str, recipe: dict, out: Path):
    def change(model):
        without_dropout(model)
        if recipe.get("fsdp") or os.environ.get("ACCELERATE_USE_FSDP") == "true":
            pretend_to_be_gpus()

    recipe_path = out / f"{name}.{os.environ['RANK']}.yaml"
    trained = train(recipe, change=change, path=recipe_path)
    model = trained.trainer.model_wrapped
    weights = {n.removeprefix("module."): whole(p) for n, p in model.named_parameters() if p.requires_grad}
    if trained.trainer.is_world_process_zero():
        result = {
            "wrapper": [base.__name__ for base in type(model).__mro__],
            "processes": trained.trainer.accelerator.num_processes,
            "logs": trained.logs,
            "weights": weights,
            "sharded": sorted(n for n, p in model.named_parameters() if isinstance(p, DTensor)),
        }
        torch.save(result, out / f"{name}.pt")


def main(cases: str, out: str):
    torch.set_num_threads(1)
    for name, recipe in json.loads(Path(cases).read_text()).items():
        run_case(name, recipe, Path(out))


if __name__ == "__main__":
    main(*sys.argv[1:])
