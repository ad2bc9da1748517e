"""Find out what a folder or hub repository contains, and which backbones trained adapters need."""

import hashlib
import importlib
import json
import os
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from huggingface_hub import HfApi, is_offline_mode, snapshot_download
from safetensors import safe_open
from transformers import CONFIG_NAME
from transformers.utils import cached_file, has_file, logging

from .configuration_soundwave import PUBLISHED_MODEL_TYPE


logger = logging.get_logger(__name__)

TRAINED_FILE = "trained.safetensors"  # Stage I: the trained parameters, named as in `SoundwaveModel`
ENCODER_LORA_FILE = "encoder_lora.safetensors"  # a LoRA of the encoder, if one was trained
LORA_CONFIG, LORA_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"  # PEFT's names
LORA_FILES = (LORA_CONFIG, LORA_WEIGHTS)  # later stages: adapters and LoRA
# Files to download from a hub repository of adapters, without weights of whole models.
ADAPTER_PATTERNS = ("*.json", "*.jinja", "*.txt", "*.model", TRAINED_FILE, ENCODER_LORA_FILE, LORA_WEIGHTS)
WHOLE_WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # either may be an index of shards instead
WHOLE_FILES = tuple(f"{name}{index}" for name in WHOLE_WEIGHTS for index in ("", ".index.json"))
PARTS = {"encoder": "audio_config", "llm": "text_config"}  # keyword of a backbone -> its field in `SoundwaveConfig`
# Options of `cached_file`, which then returns None for a file that is not there.
IF_THERE = dict.fromkeys(
    [f"_raise_exceptions_for_{what}" for what in ("gated_repo", "missing_entries", "connection_errors")], False
)
SAMPLED_ROWS, SAMPLED_COLUMNS = 4, 16  # of each matrix, for `weights_digest`


# ---- kinds of folders ----


def read_json(folder: str, name: str) -> dict:
    """A JSON file of a folder; an empty dict if it is missing or not a JSON object."""
    try:
        with open(os.path.join(folder, name), encoding="utf-8") as file:
            values = json.load(file)
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def has_whole_weights(folder: str) -> bool:
    """Whether a folder holds the weights of a whole model."""
    return any(os.path.isfile(os.path.join(folder, name)) for name in WHOLE_FILES)


def is_soundwave(folder: str) -> bool:
    """Whether a folder has the config of a Soundwave model or its adapters."""
    return read_json(folder, CONFIG_NAME).get("model_type") == "soundwave"


def adapter_kind(folder: str) -> str | None:
    """ "lora" for a folder of adapters and LoRA, "align" for one of stage I, None if it is neither."""
    if not is_soundwave(folder) or has_whole_weights(folder):
        return None
    if os.path.isfile(os.path.join(folder, TRAINED_FILE)):
        return "align"
    return "lora" if all(os.path.isfile(os.path.join(folder, name)) for name in LORA_FILES) else None


def describe_folder(folder: str) -> str:
    """One or two sentences: what a folder contains, and which call loads it."""
    if not os.path.isdir(folder):
        return f"There is no folder `{folder}`."
    if not os.listdir(folder):
        return f"`{folder}` is an empty folder."
    return _describe_soundwave(folder) if is_soundwave(folder) else _describe_other(folder)


def _describe_soundwave(folder: str) -> str:
    if has_whole_weights(folder):
        return (
            f"`{folder}` holds a whole Soundwave model, with its backbones. Load it by "
            "`SoundwaveForConditionalGeneration.from_pretrained(folder)`, or score it by "
            "`soundwave-hf evaluate --model FOLDER`."
        )
    if (kind := adapter_kind(folder)) == "lora":
        return (
            f"`{folder}` holds Soundwave adapters and a LoRA. Load them, with the backbones that they name, by "
            "`SoundwaveForConditionalGeneration.from_pretrained(folder)`."
        )
    if kind == "align":
        return (
            f"`{folder}` holds adapters of stage `align`, which have no shrinking adapter yet. Load them by "
            "`SoundwaveForCTC.from_pretrained(folder)`, or name the folder as `start_from` of stage `shrink`."
        )
    return (
        f"`{folder}` holds the config of a Soundwave model and no weights: no {' and '.join(LORA_FILES)} of stages "
        f"`shrink` and `instruct`, no {TRAINED_FILE} of stage `align`, no {WHOLE_WEIGHTS[0]}. Copy all of its files."
    )


def _describe_other(folder: str) -> str:
    model_type = read_json(folder, CONFIG_NAME).get("model_type")
    numbers = [int(name[11:]) for name in os.listdir(folder) if re.fullmatch(r"checkpoint-\d+", name)]
    if model_type == PUBLISHED_MODEL_TYPE:
        return (
            f'`{folder}` has model type "{model_type}", the layout that the authors published. Convert the folder '
            "first: `soundwave-hf convert SRC DST`."
        )
    if peft := read_json(folder, LORA_CONFIG):
        if whole := peft_base(folder):
            return (
                f"`{folder}` holds PEFT's adapter of the whole model `{whole}`. Load it by "
                "`SoundwaveForConditionalGeneration.from_pretrained(folder)`."
            )
        base = peft.get("base_model_name_or_path")
        if {"alignment_adapter", "ctc_head", "shrinking_adapter"} <= set(peft.get("modules_to_save") or ()):
            if base and os.path.realpath(base) != os.path.realpath(folder):
                return (
                    f"`{folder}` holds PEFT's adapter of the model `{base}`, whose weights are not found here. Put "
                    f"the model back, or write its new place as `base_model_name_or_path` in {LORA_CONFIG}."
                )
            return (
                f"`{folder}` holds Soundwave adapters and a LoRA that PEFT saved, and no {CONFIG_NAME}. Save it too, "
                "`model.get_base_model().config.save_pretrained(folder)`, and load the folder again."
            )
        base = base or "an unnamed model"
        return (
            f"`{folder}` holds a PEFT adapter of `{base}`, without all adapters of Soundwave, and `{base}` is "
            "no Soundwave model that is found here. Load it by `peft.PeftModel.from_pretrained(model, folder)`, where "
            "`model` is what it was trained on."
        )
    if model_type is not None:
        keyword = "encoder" if model_type == "whisper" else "llm"
        return (
            f'`{folder}` has model type "{model_type}" and "soundwave" was expected: load it with '
            "`AutoModel.from_pretrained(folder)`, or make it a backbone: "
            f"`SoundwaveForConditionalGeneration.from_backbones({keyword}=folder, ...)`."
        )
    if numbers:
        return f"`{folder}` holds checkpoints of a run. Name one of them: `{folder}/checkpoint-{max(numbers)}`."
    return f"`{folder}` holds no model: its files are {sorted(os.listdir(folder))[:6]}."


def peft_base(folder: str, **hub) -> str | None:
    """The whole Soundwave model that PEFT's adapter in a folder belongs to; None if it is not found, or the adapter
    belongs to backbones.

    `save_pretrained` writes such folders after `add_adapter` or `get_peft_model`, and so do the trainers.
    """
    peft = read_json(folder, LORA_CONFIG)
    base = peft.get("base_model_name_or_path")
    if not base or has_whole_weights(folder) or not (os.path.isdir(base) or is_hub_name(base)):
        return None
    if is_soundwave(folder) and not os.path.isdir(base):  # published adapters name themselves
        return None
    config = cached_file(base, CONFIG_NAME, **IF_THERE, **hub)
    if config is None or not is_soundwave(os.path.dirname(config)):
        return None
    if "alignment_adapter" not in (peft.get("modules_to_save") or ()):
        return base
    is_whole = has_whole_weights(base) if os.path.isdir(base) else _holds_whole_model(base, "", hub)
    return base if is_whole else None


# ---- a whole model beside adapters ----


def refuse_two_models(name: str, folder: str):
    """Refuse whole weights beside adapters of Soundwave that belong to something else. transformers would put their
    LoRA onto these weights, which may hold it already.

    Args: name: folder or hub name. folder: where its adapter_config.json is.

    Raises: `ValueError` unless that file names `name` as the base.
    """
    peft = read_json(folder, LORA_CONFIG)
    base = peft.get("base_model_name_or_path")
    if "alignment_adapter" not in (peft.get("modules_to_save") or ()) or _is_one_of(name, [base]):
        return
    raise ValueError(
        f"`{name}` holds the weights of a whole model, and in {LORA_CONFIG} adapters of {base or 'backbones'}: "
        f"loaded together, a LoRA may count twice. For the whole model, remove {' and '.join(LORA_FILES)}. For the "
        f"adapters, remove {WHOLE_WEIGHTS[0]} or its shards. If they were trained on these very weights, write "
        f"`{name}` as `base_model_name_or_path` in {LORA_CONFIG}."
    )


def refuse_other_kind(folder: str, bases: Collection[str | None] | None):
    """Refuse to save a whole model beside adapters, or adapters beside the weights of a whole model that is not their
    base: loading would mix the two.

    Args: bases: the models that adapters name as their base; None for a whole model.

    Raises: `FileExistsError`.
    """
    _refuse_other_kind(folder, lambda name: os.path.isfile(os.path.join(folder, name)), bases)


def refuse_other_kind_on_hub(api: HfApi, repo: str, bases: Collection[str | None] | None, revision: str | None = None):
    """As `refuse_other_kind`, for a repository of the hub."""
    _refuse_other_kind(repo, lambda name: api.file_exists(repo, name, revision=revision), bases)


def _refuse_other_kind(place: str, holds: Callable[[str], bool], bases: Collection[str | None] | None):
    if bases is not None and _is_one_of(place, bases):
        return
    saved, others = ("adapters", WHOLE_FILES) if bases is not None else ("a whole model", (LORA_CONFIG,))
    if (other := next((name for name in others if holds(name)), None)) is not None:
        raise FileExistsError(
            f"`{place}` holds {other}, and {saved} would be saved beside it: loading would mix two models, and a LoRA "
            "may count twice. Name another place, or remove the model there first."
        )


def _is_one_of(place: str, bases: Collection[str | None]) -> bool:
    """Whether a folder or hub name is among the names of models."""
    return any(base and (base == place or os.path.realpath(base) == os.path.realpath(place)) for base in bases)


# ---- finding adapters ----


def is_hub_name(name: str) -> bool:
    """Whether a name may be a hub name: `model` or `user/model`."""
    return re.fullmatch(r"[A-Za-z0-9][\w.\-]*(/[A-Za-z0-9][\w.\-]*)?", name) is not None


def find_adapter(name: str, subfolder: str = "", **hub) -> str | None:
    """The local folder of trained adapters, downloaded if `name` is a hub name; None if there are no adapters.

    Args: hub: `revision`, `token`, `cache_dir`, `local_files_only` and `force_download`, as in `from_pretrained`.

    Raises: `ValueError` if there are adapters beside the weights of another whole model, see `refuse_two_models`.
    """
    if os.path.isdir(name):
        folder = os.path.join(name, subfolder) if subfolder else name
        if is_soundwave(folder) and has_whole_weights(folder):
            refuse_two_models(folder, folder)
        return folder if adapter_kind(folder) else None
    if os.path.exists(name) or not is_hub_name(name):
        return None
    hub["local_files_only"] = hub.get("local_files_only") or is_offline_mode()
    files = [cached_file(name, file, subfolder=subfolder, **IF_THERE, **hub) for file in (LORA_CONFIG, TRAINED_FILE)]
    if not any(files):
        return None
    if _holds_whole_model(name, subfolder, hub):
        if files[0] is not None:
            refuse_two_models(name, os.path.dirname(files[0]))
        return None
    inside = f"{subfolder}/" if subfolder else ""
    folder = snapshot_download(name, allow_patterns=[f"{inside}{pattern}" for pattern in ADAPTER_PATTERNS], **hub)
    return os.path.join(folder, subfolder) if subfolder else folder


def _holds_whole_model(name: str, subfolder: str, hub: dict) -> bool:
    options = {key: hub[key] for key in ("revision", "token", "cache_dir", "local_files_only") if key in hub}
    inside = f"{subfolder}/" if subfolder else ""
    return any(has_file(name, f"{inside}{file}", **options) for file in WHOLE_FILES)


# ---- which backbones ----


@dataclass(frozen=True)
class TrainedBackbone:
    """A backbone in the config of trained adapters.

    Args:
        name (`str`, *optional*): hub name or absolute path of a folder; None if the config has no name.
        digest (`str`, *optional*): `weights_digest` of the backbone at training.
    """

    name: str | None
    digest: str | None


def trained_backbone(adapter: str, part: str) -> TrainedBackbone:
    """The backbone of a folder of adapters. Args: part: "encoder" or "llm"."""
    config = read_json(adapter, CONFIG_NAME)
    name = (config.get(PARTS[part]) or {}).get("_name_or_path") or None
    if name is not None and name.startswith("."):
        name = os.path.abspath(os.path.join(adapter, name))
    return TrainedBackbone(name, (config.get(PARTS[part]) or {}).get("weights_digest"))


def backbone_name(name: str) -> str:
    """The name of a backbone that other machines can use.

    For a folder in the hub's cache or below `$SOUNDWAVE_HOME/backbones` this is the hub name, for other folders the
    absolute path.
    """
    if not os.path.isdir(os.path.expanduser(name)):
        return name
    path = os.path.abspath(os.path.expanduser(name))
    cached = re.search(r"models--([^/\\]+)[/\\]snapshots[/\\][^/\\]+$", path)
    if cached:
        return cached[1].replace("--", "/", 1)
    folder, own = os.path.split(path)
    backbones = _package_backbones()
    if backbones is not None and folder == os.path.abspath(backbones.backbone_folder("any").parent):
        return own.replace("--", "/", 1)
    return path


# This and `local_backbone` are the same in processing/llm_tokenizer_soundwave.py.
def _package_backbones():
    """The module of this package that finds backbones; None if this file is remote code without the package."""
    try:
        return importlib.import_module("soundwave_hf.data.backbones")
    except ImportError:
        return None


def locate_backbone(name: str, **hub) -> str:
    """A folder that `from_pretrained` can load, or the hub name if this package is not installed.

    Args: hub: `token`, `cache_dir` and `local_files_only`, as in `from_pretrained`.
    """
    folder = os.path.expanduser(name)
    if os.path.isdir(folder):
        return folder
    backbones = _package_backbones()
    return name if backbones is None else backbones.resolve_backbone(name, **hub)


def local_backbone(name: str) -> str:
    """The folder of a backbone below `$SOUNDWAVE_HOME/backbones` if it is there. Otherwise the name as it is."""
    backbones = _package_backbones()
    return name if backbones is None else backbones.local_copy(name)


def choose_backbones(adapter: str, encoder: str | None = None, llm: str | None = None, **hub) -> tuple[str, str]:
    """Folders or hub names of the backbones of trained adapters: the given ones, or those in the adapters' config.

    Raises: `ValueError` if a backbone is neither given nor in the config, `FileNotFoundError` if it is not found.
    """
    found = []
    for part, given in (("encoder", encoder), ("llm", llm)):
        name = given or trained_backbone(adapter, part).name
        if name is None:
            raise ValueError(f"`{adapter}` does not name its {part}: give `{part}=`, its hub name or folder.")
        if given is None and os.path.isabs(name) and not os.path.isdir(name):
            raise FileNotFoundError(
                f"`{adapter}` was trained on the {part} in `{name}`, and there is no such folder here: give "
                f"`{part}=`, its hub name or folder on this machine."
            )
        found.append(locate_backbone(str(name), **hub))
    return found[0], found[1]


def refuse_other_backbones(adapter: str, encoder: str, llm: str):
    """Refuse backbones that adapters were not trained on.

    A backbone is accepted if its hub name or folder is the same. With another name, its `weights_digest` must equal
    that of the training, or that of the named backbone if it is on this machine.

    Raises: `ValueError` with both names and what to do.
    """
    for part, given in (("encoder", encoder), ("llm", llm)):
        trained = trained_backbone(adapter, part)
        if trained.name is None and trained.digest is None:
            logger.warning(
                f"`{adapter}` does not say which {part} it was trained on: only the width of `{given}` was compared."
            )
        elif not _is_same(trained, part, given):
            named = backbone_name(trained.name) if trained.name else "another one"
            raise ValueError(
                f"`{adapter}` was trained on the {part} `{named}`, and `{backbone_name(given)}` is another one, or "
                f"could not be compared with it. Leave `{part}` out to load `{named}`, or use it anyway with "
                "`allow_other_backbones=True` (on the command line `--allow-other-backbones`)."
            )


def _is_same(trained: TrainedBackbone, part: str, given: str) -> bool:
    if trained.name is not None and backbone_name(trained.name) == backbone_name(given):
        return True
    found = weights_digest(given, part)
    if found is None:
        return False
    if found == trained.digest:
        return True
    named = None if trained.name is None else _on_this_machine(trained.name)
    return named is not None and weights_digest(named, part) == found


def _on_this_machine(name: str) -> str | None:
    try:
        return locate_backbone(name, local_files_only=True)
    except (OSError, ValueError, RuntimeError):
        return None


def weights_files(name: str) -> list[str]:
    """The safetensors files of a model, by folder or hub name; empty if some are not on this machine."""
    options = {"local_files_only": True, **IF_THERE}
    if (whole := cached_file(name, WHOLE_WEIGHTS[0], **options)) is not None:
        return [whole]
    index = cached_file(name, f"{WHOLE_WEIGHTS[0]}.index.json", **options)
    if index is None:
        return []
    paths = [cached_file(name, shard, **options) for shard in sorted(set(shards_of(index).values()))]
    return [] if None in paths else paths


def shards_of(index: str | os.PathLike) -> dict[str, str]:
    """The name of each weight's shard, from an index of shards."""
    with open(index, encoding="utf-8") as file:
        return json.load(file)["weight_map"]


def weights_digest(name: str, part: str) -> str | None:
    """sha256 of samples of each matrix of a backbone in bfloat16; None if its safetensors are not on this machine.

    Fine-tuning changes the first rows of some matrix, and so the digest. A copy has the same digest, even with other
    shards or float types. The head is left out, because tied models may or may not store it; vectors are left out too.

    Args: name: folder or hub name; part: "encoder" (only the encoder of a Whisper counts) or "llm".
    """
    return _sampled_digest(weights_files(name), lambda key: _digested_name(key, part))


def model_digest(folder: str) -> str | None:
    """`weights_digest` of all matrices in a folder of adapters or a whole model; None if it has no safetensors."""
    names = sorted(name for name in os.listdir(folder) if name.endswith(".safetensors"))
    return _sampled_digest([os.path.join(folder, name) for name in names], lambda key: key)


def _sampled_digest(paths: list[str], name_of: Callable[[str], str | None]) -> str | None:
    samples = {}
    for path in paths:
        with safe_open(path, "pt") as weights:
            for key in weights.keys():  # noqa: SIM118 (the file is not a container)
                if (known := name_of(key)) is None:
                    continue
                matrix = weights.get_slice(key)
                if len(matrix.get_shape()) > 1:
                    samples[known] = matrix[:SAMPLED_ROWS, :SAMPLED_COLUMNS]
    if not samples:
        return None
    digest = hashlib.sha256()
    for known, sample in sorted(samples.items()):
        if sample.is_floating_point():
            sample = sample.to(torch.bfloat16).view(torch.int16)
        digest.update(known.encode() + sample.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _digested_name(key: str, part: str) -> str | None:
    if part == "encoder":
        return key[key.index("encoder.") :] if re.search(r"(^|\.)encoder\.", key) else None
    return None if key.startswith("lm_head.") else key.removeprefix("model.")


__all__ = [
    "ENCODER_LORA_FILE",
    "LORA_CONFIG",
    "LORA_FILES",
    "LORA_WEIGHTS",
    "TRAINED_FILE",
    "TrainedBackbone",
    "adapter_kind",
    "backbone_name",
    "choose_backbones",
    "describe_folder",
    "find_adapter",
    "is_hub_name",
    "local_backbone",
    "locate_backbone",
    "model_digest",
    "peft_base",
    "refuse_other_backbones",
    "refuse_other_kind",
    "refuse_other_kind_on_hub",
    "refuse_two_models",
    "shards_of",
    "trained_backbone",
    "weights_digest",
]
