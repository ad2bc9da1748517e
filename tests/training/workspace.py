"""A folder with tiny backbones, synthetic speech and its manifests, and one function that trains there."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn
from transformers import TrainerCallback

from soundwave_hf.data.tiny import write_tiny_data, write_tiny_llm, write_tiny_whisper
from soundwave_hf.modeling.adapters_soundwave import SoundwaveAttention
from soundwave_hf.processing.processing_soundwave import SoundwaveProcessor
from soundwave_hf.training import run


SMALL_LORA = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.1}
EVERY_AUGMENTATION = {"speed": 0.15, "noise": 0.5, "narrow": 0.5, "room": 0.5, "gain": 0.5, "spec_augment": 0.7}


@dataclass
class Workspace:
    """Where the tests train: `encoder` and `llm` are folders of backbones, `data` holds clips and manifests."""

    encoder: str
    llm: str
    data: Path

    def processor(self) -> SoundwaveProcessor:
        return SoundwaveProcessor.from_backbones(self.encoder, self.llm)

    def recipe(self, stage: str, output_dir: Path, **changes) -> dict:
        """A recipe of three steps of four clips, in float32 and without augmentation."""
        return {
            "stage": stage,
            "encoder": self.encoder,
            "llm": self.llm,
            "data": str(self.data / ("instruct.jsonl" if stage == "instruct" else "train.jsonl")),
            "output_dir": str(output_dir),
            "max_steps": 3,
            "per_device_train_batch_size": 4,
            "learning_rate": "1e-2",
            "logging_steps": 1,
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
            "dataloader_pin_memory": False,
            **({"lora": SMALL_LORA} if stage == "shrink" else {}),
            # On by default in TRL's arguments alone.
            **({"activation_checkpointing": False, "bf16": False} if stage == "instruct" else {}),
            **changes,
        }


def make_workspace(folder: Path) -> Workspace:
    """Write backbones, clips and manifests."""
    write_tiny_whisper(folder / "whisper")
    write_tiny_llm(folder / "llm")
    write_tiny_data(folder / "data")
    return Workspace(str(folder / "whisper"), str(folder / "llm"), folder / "data")


def write_manifest(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def first_rows(workspace: Workspace, count: int, path: Path, name: str = "train.jsonl") -> str:
    """A manifest at `path` of the first rows of another. Returns its path."""
    rows = [json.loads(line) for line in (workspace.data / name).read_text().splitlines()[:count]]
    return str(write_manifest(path, [row | {"audio": str(workspace.data / row["audio"])} for row in rows]))


@dataclass
class Trained:
    """What one run of a recipe did.

    Args:
        folder (`Path`): what it wrote.
        trainer (`Trainer`): as it stood at the end; its model is what was trained.
        before (`dict[str, torch.Tensor]`): copies of all parameters and buffers, taken before the first step.
    """

    folder: Path
    trainer: object
    before: dict[str, torch.Tensor]

    @property
    def model(self) -> nn.Module:
        return self.trainer.model

    @property
    def logs(self) -> list[dict]:
        """What was logged at each step, the summary of the whole run left out."""
        return [entry for entry in self.trainer.state.log_history if "loss" in entry]

    def losses(self) -> list[float]:
        return [entry["loss"] for entry in self.logs]

    def moved(self) -> set[str]:
        """Names of the parameters and buffers that are not bit for bit what they were."""
        now = everything_in(self.model)
        assert now.keys() == self.before.keys()
        return {name for name, value in now.items() if not torch.equal(value, self.before[name])}


def train_chain(workspace: Workspace, folder: Path, **model_fields) -> dict[str, Trained]:
    """All three stages, each from the folder of the one before."""
    chain = {"align": train(workspace.recipe("align", folder / "align", model=model_fields))}
    for stage, start in (("shrink", "align"), ("instruct", "shrink")):
        chain[stage] = train(workspace.recipe(stage, folder / stage, start_from=str(chain[start].folder)))
    return chain


def without_dropout(model: nn.Module):
    """Set every dropout to zero, so that a loss does not depend on how clips were put into batches."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module, SoundwaveAttention):
            module.dropout = 0.0


def everything_in(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers by name, those that no checkpoint holds included."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


class Watch(TrainerCallback):
    """Copies the model's tensors before the first step, and stops at a given step as a kill would: without a save."""

    def __init__(self, stop_after: int | None = None):
        self.stop_after = stop_after
        self.before = {}

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.before = {name: value.detach().clone() for name, value in everything_in(model).items()}

    def on_step_end(self, args, state, control, **kwargs):
        if self.stop_after is not None and state.global_step > self.stop_after:
            raise KeyboardInterrupt


def train(
    recipe: dict, stop_after: int | None = None, change: Callable | None = None, path: Path | None = None
) -> Trained:
    """Run a recipe from a YAML file, at `path` or beside its output. `change(model)` may edit the model beforehand.

    Raises: `KeyboardInterrupt` in the step after `stop_after`.
    """
    watch, trainers = Watch(stop_after), []

    def watched(stage, trainer_class=run.trainer_class):
        def make(**arguments):
            trainers.append(trainer_class(stage)(callbacks=[watch], **arguments))
            return trainers[0]

        return make

    def build(*arguments, build=run.build_model):
        model = build(*arguments)
        if change is not None:
            change(model)
        return model

    path = path or Path(recipe["output_dir"]).with_suffix(".yaml")
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "build_model", build)
        patch.setattr(run, "trainer_class", watched)
        folder = run.run_recipe(path)
    return Trained(Path(folder), trainers[0], watch.before)
