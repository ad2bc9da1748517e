"""What an output folder holds before a run: nothing, a run to continue, a finished run, or something else."""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from peft import LoraConfig
from transformers.trainer import TRAINER_STATE_NAME

from ..data.backbones import resolve_backbone
from ..json_files import read_json_object
from ..keys import read_yaml_file
from ..modeling.backbones_soundwave import LORA_FILES, TRAINED_FILE
from ..modeling.configuration_soundwave import SoundwaveConfig
from ..paths import soundwave_home
from ..secret_values import names_secret
from .arguments import SoundwaveTrainingArguments
from .checkpoints import last_checkpoint
from .recipe import ONCE_AT_HOME, SECTIONS, RecipeArguments, check_recipe


RECORD = "run.json"
# Files that a run writes beside checkpoints. Without a record of the run they are not replaced.
WRITTEN = (
    *("README.md", "config.json", "generation_config.json", "model.safetensors", "recipe.yaml"),
    *(RECORD, TRAINED_FILE, *LORA_FILES),
)
# Training arguments that change what is learnt. Others change only where, how fast or with which output a run goes.
LEARNT_BY = (
    *("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps"),
    *("optim", "optim_args", "optim_target_modules", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon"),
    *("max_grad_norm", "label_smoothing_factor", "neftune_noise_alpha", "loss_type", "router_aux_loss_coef"),
    *("seed", "data_seed", "bf16", "fp16", "train_sampling_strategy", "dataloader_drop_last"),
    *("packing", "packing_strategy", "padding_free", "shuffle_dataset"),
    *("chat_template_path", "eos_token"),  # of runs of earlier versions
)
OLD_DIGEST = re.compile(r"sha256 `([0-9a-f]{64})`")
BLOCKS, BLOCK_BYTES = 64, 1 << 16  # parts of a weights file that its digest reads, evenly spread


@dataclass(frozen=True)
class EarlierRun:
    """The checkpoint to continue from, if any, and whether the run is finished."""

    checkpoint: str | None = None
    finished: bool = False
    message: str = ""


# ---- what a run learns by ----


def learning_values(recipe: RecipeArguments, arguments: SoundwaveTrainingArguments, digests: Sequence[str]) -> dict:
    """All values that change what is learnt, as a flat mapping that JSON can hold.

    Args: digests: of the data: of its content, or of names and revisions.
    """
    batch = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    sections = {
        "model": SoundwaveConfig(**recipe.model).to_dict(),
        "lora": LoraConfig(**recipe.lora).to_dict(),
        "augment": vars(recipe.augment),
        "mixture": vars(recipe.mixture) if recipe.mixture else {},
    }
    values = {
        "stage": recipe.stage,
        **{
            f"{section}.{name}": sorted(value) if isinstance(value, set) else value
            for section, fields in sections.items()
            for name, value in fields.items()
            if name in SECTIONS[section]
        },
        **{f"repeat.{source}": times for source, times in recipe.repeat.items()},
        "encoder_lora": recipe.encoder_lora,
        "quantization": recipe.quantization,
        "mixture": recipe.mixture is not None,
        "ctc_negatives": recipe.ctc_negatives,
        "warm_start": recipe.warm_start is not False,
        "encoder_cache.variants": _cache_variants(recipe),
        "streaming": recipe.streaming,
        "max_batch_seconds": recipe.max_batch_seconds,
        "data": sorted(digests),
        "data in order": list(digests),  # not in records of earlier versions
        "clips of a step (per_device_train_batch_size x gradient_accumulation_steps x processes)": batch,
        "per_device_train_batch_size": _clips_of_batch(recipe, arguments),
        **{name: getattr(arguments, name) for name in LEARNT_BY if hasattr(arguments, name)},
    }
    return json.loads(json.dumps(values, default=str))


def _clips_of_batch(recipe: RecipeArguments, arguments: SoundwaveTrainingArguments) -> int | None:
    """The clips of a batch, where the steps get other clips if they are split into batches of another size."""
    by_batch = recipe.max_batch_seconds is not None or arguments.dataloader_drop_last
    by_batch = by_batch or arguments.train_sampling_strategy == "batch_rebalance"
    return arguments.per_device_train_batch_size if by_batch else None


def _cache_variants(recipe: RecipeArguments) -> int | None:
    """`encoder_cache.variants` if the recipe gives it, as in the records of earlier versions."""
    given = recipe.encoder_cache is not None and "variants" in recipe.written["encoder_cache"]
    return recipe.encoder_cache.variants if given else None


def origins(recipe: RecipeArguments) -> dict[str, dict[str, str | None]]:
    """The backbones and the start folder of a run: their names in the recipe, and a digest of each if it exists."""
    find = {"encoder": resolve_backbone, "llm": resolve_backbone, "start_from": lambda name: recipe.start_folder}
    found = {}
    for key, folder_of in find.items():
        if (name := getattr(recipe, key)) is not None:
            try:
                digest = folder_digest(folder_of(name))
            except OSError:  # an earlier run's, and no longer there
                digest = None
            found[key] = {"name": str(name), "digest": digest}
    return found


def folder_digest(folder: str) -> str | None:
    """Digest of evenly spread parts of a folder's weights; None if there are none.

    It reads a few megabytes of any model. Training changes every matrix, so these parts change too.
    """
    digest = hashlib.sha256()
    weights = sorted(path for path in Path(folder).glob("*") if path.suffix in (".safetensors", ".bin"))
    for path in weights:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with open(path, "rb") as file:
            for block in range(BLOCKS):
                file.seek(size * block // BLOCKS)
                digest.update(file.read(BLOCK_BYTES))
    return digest.hexdigest() if weights else None


def record_run(recipe: RecipeArguments, arguments: SoundwaveTrainingArguments, digests: Sequence[str]) -> dict:
    """The content of `run.json`, which a later run into the same folder compares with its own."""
    length = {"max_steps": arguments.max_steps, "num_train_epochs": arguments.num_train_epochs}
    return {
        "origins": origins(recipe),
        "learning": learning_values(recipe, arguments, digests),
        "length": json.loads(json.dumps(length)),
    }


# ---- the folder ----


def look_for_run(arguments: SoundwaveTrainingArguments, record: dict) -> EarlierRun:
    """Compare the output folder with the record of the run that begins.

    Raises: `ValueError` if it holds a run with other values, or a longer one; `FileExistsError` if it holds files of
    no recorded run.
    """
    folder = Path(arguments.output_dir)
    checkpoint = last_checkpoint(folder)
    done, reached = _steps_of(folder), -1 if checkpoint is None else _steps_of(Path(checkpoint))
    if done is None and checkpoint is None:
        if held := [name for name in WRITTEN if (folder / name).exists()]:
            raise FileExistsError(
                f"`{folder}` holds `{held[0]}` and no run to continue: name a new or empty folder as `output_dir`."
            )
        return EarlierRun()
    place = folder if done is not None and done >= reached else Path(checkpoint)
    earlier = _read_record(place)
    _refuse_other(folder, earlier, record)
    return _go_on(folder, checkpoint, done if place == folder else None, earlier["length"], arguments)


def _steps_of(folder: Path) -> int | None:
    try:
        return json.loads((folder / TRAINER_STATE_NAME).read_text(encoding="utf-8"))["global_step"]
    except (OSError, ValueError, KeyError):
        return None


def _refuse_other(folder: Path, earlier: dict, record: dict):
    """Raise `ValueError` that lists each key that differs, with both values."""
    changed = []
    for key, now in {**dict.fromkeys(earlier["origins"]), **record["origins"]}.items():
        before = earlier["origins"].get(key)
        if before is None or now is None:
            changed.append((key, before and before["name"], now and now["name"]))
        elif before["digest"] != now["digest"]:
            other = " (other weights)" if before["name"] == now["name"] else ""
            changed.append((key, before["name"], f"{now['name']}{other}"))
    then, now = earlier["learning"], record["learning"]
    if "data in order" not in then and {*then.get("data", ())} <= {*now["data"]}:
        then = {**then, "data": now["data"]}  # earlier versions recorded one of several files of the same name
    repeats = {key for key in {*then, *now} if key.startswith("repeat.")}
    keys = [key for key in now if key in then or key in repeats] + sorted(repeats - now.keys())
    other = [(key, then.get(key), now.get(key)) for key in keys if then.get(key) != now.get(key)]
    # Other data are in another order too.
    changed += [each for each in other if each[0] != "data in order" or then.get("data") == now.get("data")]
    if changed:
        listed = "; ".join(
            f"`{key}` was {_short(before)} and is {_short(after)} now" for key, before, after in changed
        )
        raise ValueError(
            f"`{folder}` holds another run: {listed}. Nothing was changed. Name a new folder as `output_dir`, or give "
            "what the run had."
        )


def _short(value) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


def _go_on(
    folder: Path, checkpoint: str | None, done: int | None, length: dict, arguments: SoundwaveTrainingArguments
) -> EarlierRun:
    """Compare the requested length with that of the run in the folder, which is finished after `done` steps."""
    unit = "max_steps" if arguments.max_steps > 0 else "num_train_epochs"
    unit_before = "max_steps" if length["max_steps"] > 0 else "num_train_epochs"
    asked, before = getattr(arguments, unit), length[unit_before]
    if unit != unit_before or asked < before:
        raise ValueError(
            f"`{folder}` holds a run whose `{unit_before}` was {before}, and `{unit}` is {asked} now. A run can only "
            f"be made longer: give `{unit_before}` of {before} or more. Nothing was changed. Name a new folder as "
            "`output_dir` to start another run."
        )
    if asked == before and done is not None:
        return EarlierRun(checkpoint, True, f"`{folder}` is already finished ({done} steps): nothing to train.")
    if checkpoint is None:
        raise ValueError(
            f"`{folder}` holds a finished run of {before} ({unit}) and no checkpoint, and {asked} are asked for: "
            "there is nothing to continue from. Name a new folder as `output_dir`."
        )
    step = _steps_of(Path(checkpoint))
    message = f"Resuming from {Path(checkpoint).name} in `{folder}`."
    if asked > before:
        message += (
            f" `{unit}` was {before} and is {asked} now: {_new_rate(arguments, checkpoint, step, asked / before)}"
        )
    return EarlierRun(checkpoint, False, message)


def _new_rate(arguments: SoundwaveTrainingArguments, checkpoint: str, step: int, times: float) -> str:
    """How a longer run changes the learning rate at the step where it continues."""
    schedule = str(getattr(arguments.lr_scheduler_type, "value", arguments.lr_scheduler_type))
    total = json.loads(Path(checkpoint, TRAINER_STATE_NAME).read_text(encoding="utf-8"))["max_steps"]
    rates = [_rate(arguments, step, steps) for steps in (total, round(total * times))]
    if None in rates:
        return f"the schedule `{schedule}` now ends there."
    return (
        f"the schedule `{schedule}` is stretched over all steps, and the learning rate at step {step} is "
        f"{rates[1]:.3g} instead of {rates[0]:.3g}."
    )


def _rate(arguments: SoundwaveTrainingArguments, step: int, total: int) -> float | None:
    try:
        return arguments.learning_rate * arguments.learning_rate_schedule(total).lr_lambdas[0](step)
    except (AttributeError, TypeError, ValueError):  # a schedule that depends on losses, or has no end
        return None


# ---- its record ----


def _read_record(place: Path) -> dict:
    """The record of a run. For a folder of an earlier version, which has only `recipe.yaml`, it is computed."""
    if (place / RECORD).is_file():
        advice = "restore it, or name a new folder as `output_dir`"
        return read_json_object(place / RECORD, advice, needed=("origins", "learning", "length"))
    if not (place / "recipe.yaml").is_file():
        raise FileExistsError(
            f"`{place}` was not written by `soundwave-hf train`: it has no `recipe.yaml`. Name a new folder as "
            "`output_dir`."
        )
    return _record_of_recipe(place)


def _record_of_recipe(place: Path) -> dict:
    name = f"`{place / 'recipe.yaml'}`"
    try:
        values = read_yaml_file(place / "recipe.yaml")
        if not isinstance(values, Mapping):
            raise ValueError("it holds no keys and values.")
        values = {key: _old_place(key, value) for key, value in values.items() if not names_secret(key)}
        augment = values.get("augment") or {}
        if any(augment.get(each) for each in ("speed", "noise", "narrow", "room")):
            values["augment"] = {"gain": 1.0, **augment}  # earlier versions always changed the level
        recipe, its_arguments = check_recipe(values, name)
    except (ValueError, OSError, AttributeError) as error:
        raise ValueError(
            f"{name} is the recipe of a run of an earlier version, and cannot be compared: {error} Name a new folder "
            "as `output_dir`."
        ) from error
    card = place / "data_card.md"
    digests = OLD_DIGEST.findall(card.read_text(encoding="utf-8").split("\n---\n")[0]) if card.is_file() else []
    learning = learning_values(recipe, its_arguments, digests)
    del learning["data in order"]  # the card has another order
    return {
        "origins": origins(recipe),
        "learning": learning,
        "length": {"max_steps": its_arguments.max_steps, "num_train_epochs": its_arguments.num_train_epochs},
    }


def _old_place(key: str, path):
    """A relative path as earlier versions read it, from `$SOUNDWAVE_HOME`."""
    if key not in ONCE_AT_HOME or not isinstance(path, str) or os.path.isabs(path) or path[:1] in (".", "~", "$"):
        return path
    return str(soundwave_home() / path)


__all__ = ["RECORD", "EarlierRun", "look_for_run", "record_run"]
