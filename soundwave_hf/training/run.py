"""`soundwave-hf train RECIPE`: one function runs any stage from a YAML recipe."""

import difflib
import json
import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
import yaml
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import HfArgumentParser, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint
from trl import SFTConfig

from ..data.backbones import resolve_backbone, soundwave_home
from ..modeling.backbones_soundwave import TRAINED_FILE, adapter_fields, load_adapter
from ..modeling.modeling_soundwave import SoundwaveForConditionalGeneration, SoundwaveForCTC
from ..processing.processing_soundwave import SoundwaveProcessor
from .augment import Augmentation
from .collator import SoundwaveCollator
from .stages import ADAPTERS, LORA_TARGETS, STAGES, freeze_all_but
from .trainer import SoundwaveSFTTrainer, SoundwaveTrainer


@dataclass
class RecipeArguments:
    """What a recipe says beside the keys of `TrainingArguments` (stage III: of TRL's `SFTConfig`)."""

    stage: str = field(metadata={"help": "align, shrink or instruct"})
    encoder: str = field(metadata={"help": "Whisper model: hub name or folder"})
    llm: str = field(metadata={"help": "causal LM: hub name or folder"})
    data: str = field(metadata={"help": "manifest (JSON lines); a relative path begins at $SOUNDWAVE_HOME"})
    start_from: str | None = field(default=None, metadata={"help": "output folder of the stage before"})
    model: dict[str, Any] = field(default_factory=dict, metadata={"help": "fields of SoundwaveConfig"})
    lora: dict[str, Any] = field(default_factory=dict, metadata={"help": "fields of PEFT's LoraConfig"})
    augment: dict[str, float] = field(default_factory=dict, metadata={"help": "fields of Augmentation"})
    repeat: dict[str, int] = field(default_factory=dict, metadata={"help": "times a row of this source counts"})

    def __post_init__(self):
        if self.stage not in STAGES:
            raise ValueError(f"`stage` is {self.stage!r}; it must be one of {', '.join(STAGES)}.")
        if self.stage == "instruct" and self.start_from is None:
            raise ValueError("Stage `instruct` trains the LoRA of stage `shrink`: name its folder as `start_from`.")


def read_recipe(path: str | os.PathLike, overrides: dict[str, str] | None = None):
    """A YAML recipe and `--key value` overrides (`--augment.speed 0.1` for a nested one) -> its two argument classes.

    Raises: `FileNotFoundError`; `ValueError` for a key that nobody reads.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"There is no recipe `{path}`; the repository's own are in `recipes/`.")
    values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise ValueError(f"`{path}` holds no `key: value` lines; see `recipes/1_align.yaml` for one that does.")
    for key, value in (overrides or {}).items():
        outer, _, inner = key.partition(".")
        target, name = (values.setdefault(outer, {}), inner) if inner else (values, outer)
        target[name] = yaml.safe_load(value)
    trainer_class = SFTConfig if values.get("stage") == "instruct" else TrainingArguments
    known = {f.name for c in (RecipeArguments, trainer_class) for f in fields(c)}
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            raise ValueError(
                f"`{path}` has the key `{key}`, which nobody reads. "
                + (f"Did you mean `{near[0]}`?" if near else f"See the fields of {trainer_class.__name__}.")
            )
    missing = [name for name in ("stage", "encoder", "llm", "data", "output_dir") if name not in values]
    if missing:
        raise ValueError(f"`{path}` lacks {missing}: a recipe needs them.")
    # The library refuses bf16 without an accelerator unless the CPU is asked for by name.
    values.setdefault("use_cpu", not torch.accelerator.is_available())
    values["output_dir"] = str(_at_home(values["output_dir"]))
    ours = {f.name: values.pop(f.name) for f in fields(RecipeArguments) if f.name in values}
    (arguments,) = HfArgumentParser(trainer_class).parse_dict(_numbers(values), allow_extra_keys=False)
    return RecipeArguments(**ours), arguments


def _numbers(values: dict) -> dict:
    """YAML reads `1e-4` as text."""
    return {key: float(v) if isinstance(v, str) and _is_number(v) else v for key, v in values.items()}


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _at_home(path: str) -> Path:
    return Path(path) if Path(path).is_absolute() or path.startswith(".") else soundwave_home() / path


def read_rows(manifest: Path, repeat: dict[str, int]) -> Dataset:
    """Rows of a manifest, those of a source named in `repeat` several times; column `row` tells repeats apart.

    Raises: `FileNotFoundError`; `ValueError` where `repeat` names a source that no row has.
    """
    if not manifest.is_file():
        raise FileNotFoundError(f"There is no data manifest `{manifest}`: `soundwave-hf data` builds the demo's.")
    with open(manifest, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    unknown = set(repeat) - {row["source"] for row in rows}
    if unknown:
        raise ValueError(f"`repeat` names {sorted(unknown)}, and no row of `{manifest}` has that source.")
    rows = [row for row in rows for _ in range(repeat.get(row["source"], 1))]
    return Dataset.from_list([{**row, "row": index} for index, row in enumerate(rows)])


def build_model(recipe: RecipeArguments, dtype: torch.dtype | None):
    """The model of a stage, with what the stage before trained, and exactly its own parameters set to train."""
    stage = STAGES[recipe.stage]
    encoder, llm = resolve_backbone(recipe.encoder), resolve_backbone(recipe.llm)
    start = None if recipe.start_from is None else str(_at_home(recipe.start_from))
    model_fields = dict(recipe.model) if start is None else {**adapter_fields(start, encoder, llm), **recipe.model}
    model_class = SoundwaveForConditionalGeneration if stage.has_llm else SoundwaveForCTC
    model = model_class.from_backbones(encoder, llm, dtype=dtype, **model_fields)
    # Saved with what trains, so that it says which backbones it needs, not where they lay.
    model.config.audio_config._name_or_path, model.config.text_config._name_or_path = recipe.encoder, recipe.llm
    for name in ADAPTERS:
        if (adapter := getattr(model.base_model, name, None)) is not None:
            adapter.float()
    has_lora = start is not None and not os.path.isfile(os.path.join(start, TRAINED_FILE))
    if has_lora:
        model = PeftModel.from_pretrained(model, start, is_trainable=True)
    elif start is not None:
        load_adapter(model, start)
    if stage.has_llm and not has_lora:
        model = get_peft_model(
            model, LoraConfig(target_modules=LORA_TARGETS, modules_to_save=list(ADAPTERS), **recipe.lora)
        )
    freeze_all_but(model, stage)
    return model


def run_recipe(path: str | os.PathLike, overrides: dict[str, str] | None = None) -> str:
    """Train one stage as its recipe says, from its last checkpoint if there is one; returns the output folder."""
    recipe, arguments = read_recipe(path, overrides)
    return run_stage(recipe, arguments)


def run_stage(recipe: RecipeArguments, arguments: TrainingArguments) -> str:
    """Train one stage and write what it trained to `arguments.output_dir`; see `read_recipe`."""
    stage = STAGES[recipe.stage]
    manifest = _at_home(recipe.data)
    rows = read_rows(manifest, recipe.repeat)
    processor = SoundwaveProcessor.from_backbones(resolve_backbone(recipe.encoder), resolve_backbone(recipe.llm))
    collator = SoundwaveCollator(
        processor, manifest.parent, stage.losses, Augmentation(**recipe.augment), arguments.seed
    )
    model = build_model(recipe, torch.bfloat16 if arguments.bf16 else None)
    arguments.remove_unused_columns = False
    arguments.label_names = ["labels" if stage.has_llm else "ctc_labels"]
    trainer_class = SoundwaveTrainer
    if recipe.stage == "instruct":
        trainer_class = SoundwaveSFTTrainer
        arguments.max_length = None
        arguments.dataset_kwargs = {"skip_prepare_dataset": True}
    trainer = trainer_class(
        model=model,
        args=arguments,
        train_dataset=rows,
        data_collator=collator,
        processing_class=processor,
        stage=stage,
    )
    _announce(recipe, arguments, model, rows)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(arguments.output_dir) if _begun(arguments) else None)
    trainer.save_model()
    trainer.save_state()
    return arguments.output_dir


def _begun(arguments: TrainingArguments) -> bool:
    return os.path.isdir(arguments.output_dir) and get_last_checkpoint(arguments.output_dir) is not None


def _announce(recipe, arguments, model, rows):
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    hours = sum(rows["seconds"]) / 3600
    size = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps
    print(
        f"Stage {recipe.stage}: {trained / 1e6:.2f} M parameters on {' + '.join(STAGES[recipe.stage].losses)}, "
        f"{len(rows)} clips ({hours:.1f} h), {size} a step, to {arguments.output_dir}",
        flush=True,
    )


__all__ = ["RecipeArguments", "build_model", "read_recipe", "read_rows", "run_recipe", "run_stage"]
