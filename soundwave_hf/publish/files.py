"""The files of a model that go to the Hub: an allow list, weights in shards, and configs without local paths."""

import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import split_state_dict_into_shards_factory
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..json_files import read_json_object
from ..modeling.folders_soundwave import (
    ENCODER_LORA_FILE,
    LORA_FILES,
    TRAINED_FILE,
    adapter_kind,
    backbone_name,
    describe_folder,
    has_whole_weights,
    is_hub_name,
    is_soundwave,
    refuse_two_models,
    trained_backbone,
)
from ..paths import find_weights
from ..published_files import list_tensors
from ..secret_values import WAY_OUT, holds_secret, names_secret
from ..training.export import without_places
from .facts import on_hub


WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD_SIZE = "5GB"
CONFIGS = ("config.json", "generation_config.json", "processor_config.json", "preprocessor_config.json")
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json")
TOKENIZER += ("added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "spiece.model")
TEMPLATES = ("chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja")
CODE = ("*_soundwave.py",)
NOTICES = ("LICENSE*", "NOTICE*")
COPIED = (*TOKENIZER, *TEMPLATES, *CODE, *NOTICES)
WEIGHTS = {"lora": (LORA_FILES[1],), "align": (TRAINED_FILE,)}
# Files of an earlier push that this one may remove. A reader's own files on the Hub stay.
OURS = (*CONFIGS, *TOKENIZER, *TEMPLATES, *CODE, "model*.safetensors", INDEX, *LORA_FILES, TRAINED_FILE)
OURS += (ENCODER_LORA_FILE, "training.png", ".eval_results/*--*--*.yaml")
VOCABULARIES = {"tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model"}
TEXTS = (".json", ".jinja", ".py", ".md", ".txt", ".yaml")


def matches(path: str, patterns: Iterable[str]) -> bool:
    """Whether a path in a repository matches one of these patterns. A `*` does not cross folders."""
    return any(path.count("/") == pattern.count("/") and fnmatch(path, pattern) for pattern in patterns)


@dataclass(frozen=True)
class Model:
    """A folder that may be pushed.

    Args:
        folder (`Path`), kind (`str`): "whole", "lora" or "align".
        encoder, llm (`str`): backbones, by hub name where it is known, else by folder.
        weights (`tuple[str, ...]`): files with the weights, in order.
        copied, left_out (`tuple[str, ...]`): other files that go along, and those that stay here.
    """

    folder: Path
    kind: str
    encoder: str
    llm: str
    weights: tuple[str, ...]
    copied: tuple[str, ...]
    left_out: tuple[str, ...]


# ---- reading a folder ----


def read_model(folder: str | os.PathLike, encoder: str | None = None, llm: str | None = None) -> Model:
    """What of a folder is pushed.

    Args: encoder, llm: hub names of the backbones, where the folder names local ones.

    Raises: `FileNotFoundError` if it or a part of the model is missing; `ValueError` if it is no Soundwave model, or
        adapters whose backbones are local folders.
    """
    folder = Path(find_weights(os.fspath(folder)))
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder `{folder}`.")
    kind = _kind_of(folder)
    names = {}
    for part, given in (("encoder", encoder), ("llm", llm)):
        names[part] = _hub_name(folder, part, given, needed=kind != "whole")
    weights = _weights_of(folder, kind)
    if not (folder / "processor_config.json").is_file():
        raise FileNotFoundError(f"`{folder}` has no processor_config.json: save the processor there too.")
    modules = _code_of(folder, needed=kind == "whole")
    files = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
    configs = {*CONFIGS, *(("adapter_config.json",) if kind == "lora" else ())}
    copied = [name for name in files if name in configs or name in modules or matches(name, COPIED)]
    written = {*copied, *weights, INDEX, "README.md", "evaluation.json"}
    left_out = dict.fromkeys(_top(name) for name in files if name not in written)
    return Model(folder, kind, names["encoder"], names["llm"], weights, tuple(copied), tuple(left_out))


def _top(name: str) -> str:
    first, slash, _ = name.partition("/")
    return first + slash


def _kind_of(folder: Path) -> str:
    if not is_soundwave(str(folder)):
        raise ValueError(f"There is no Soundwave model to push. {describe_folder(str(folder))}")
    if (kind := adapter_kind(str(folder))) is not None:
        return kind
    if not has_whole_weights(str(folder)):
        raise ValueError(f"There is nothing to push. {describe_folder(str(folder))}")
    refuse_two_models(str(folder), str(folder))
    single, shards = (folder / WHOLE).is_file(), (folder / INDEX).is_file()
    if not single and not shards:
        raise ValueError(
            f"`{folder}` holds pickled weights, and the Hub wants safetensors: load the model and save it again with "
            "`save_pretrained`."
        )
    if single and shards:
        raise ValueError(f"`{folder}` holds both {WHOLE} and {INDEX}: remove the one that does not belong to it.")
    return "whole"


def _hub_name(folder: Path, part: str, given: str | None, needed: bool) -> str:
    """The name of a backbone; a hub name if it is `needed`."""
    if given is not None and not on_hub(given):
        raise ValueError(f"`--{part}` is `{given}`; expected its name on the Hub, such as `user/model`.")
    trained = trained_backbone(str(folder), part).name
    name = given or (backbone_name(trained) if trained else None)
    if name is not None and on_hub(name):
        return name
    if needed:
        named = f"names its {part} as the local folder `{name}`" if name else f"does not name its {part}"
        raise ValueError(
            f"`{folder}` {named}, and nobody else could load these adapters: give `--{part} USER/MODEL`, its name on "
            f"the Hub, or push a whole model, `soundwave-hf merge {folder} WHOLE`."
        )
    return name or f"an unnamed {part}"


def _weights_of(folder: Path, kind: str) -> tuple[str, ...]:
    """The files with the weights, all of them there and whole.

    Raises: `FileNotFoundError`, `ValueError`.
    """
    files = WEIGHTS.get(kind) or ((WHOLE,) if (folder / WHOLE).is_file() else _shards_of(folder))
    if kind != "whole" and read_config(folder / "config.json").get("encoder_lora") is not None:
        files = (*files, ENCODER_LORA_FILE)
        if not (folder / ENCODER_LORA_FILE).is_file():
            raise FileNotFoundError(f"`{folder}` lacks {ENCODER_LORA_FILE}, which its config names: copy it there.")
    for name in files:
        if not list_tensors(folder / name):
            raise ValueError(f"`{folder / name}` holds no weights.")
    return tuple(files)


def _shards_of(folder: Path) -> list[str]:
    """The shards that an index names; each holds what the index says."""
    try:
        places = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(places.values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"`{folder / INDEX}` is no index of shards ({error!r}): save the model again.") from error
    if any(os.path.basename(name) != name for name in names):
        raise ValueError(f"`{folder / INDEX}` names files outside the folder: save the model again.")
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise FileNotFoundError(f"`{folder}` lacks {missing}, which {INDEX} names: copy all shards of the model.")
    for name in names:
        listed = {weight for weight, place in places.items() if place == name}
        if absent := sorted(listed - list_tensors(folder / name).keys()):
            raise ValueError(f"`{folder / name}` lacks {absent[:3]}, which {INDEX} places there: save it again.")
    return names


def _code_of(folder: Path, needed: bool) -> set[str]:
    """Files with the code that the configs name in `auto_map`.

    Raises: `FileNotFoundError` if one is missing and `needed`: adapters load with the package's own code.
    """
    found = set()
    for name in ("config.json", "processor_config.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            found |= _modules_of(read_config(folder / name))
    missing = sorted(name for name in found if not (folder / name).is_file())
    if missing and needed:
        raise FileNotFoundError(
            f"`{folder}` lacks the code {missing}, which its configs name: save the model and the processor again "
            "with `save_pretrained`."
        )
    return found.difference(missing)


def _modules_of(config: Mapping) -> set[str]:
    """Files that `auto_map` of a config names; `user/repo--module.Class` is code of another repository."""
    named = (config.get("auto_map") or {}).values()
    classes = [each for value in named for each in (value if isinstance(value, list) else [value]) if each]
    return {f"{each.rpartition('.')[0]}.py" for each in classes if "--" not in each}


def read_config(path: Path) -> dict:
    """Raises: `ValueError` if a config is not a JSON object."""
    return read_json_object(path, "save the model or the processor again")


# ---- writing the upload ----


def write_files(model: Model, out: Path, repo: str, shard_size: str = SHARD_SIZE, linked: bool = False):
    """Write configs, tokenizer, code and weights of a model to a folder.

    Args: repo: name on the Hub, by which the Auto classes of transformers find adapters. linked: whether weights may
        be links to those of the model, in a folder that is removed again.

    Raises: `ValueError` if a text holds what looks like a token or password; `OSError` where the disk is full.
    """
    for name in model.copied:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        _refuse_secret(model.folder / name)
        if name in (*CONFIGS, "adapter_config.json"):
            config = _clean_config(read_config(model.folder / name), name, model, repo)
            (out / name).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        else:
            shutil.copyfile(model.folder / name, out / name)
    write_weights(model, out, shard_size, linked)


def _clean_config(config: dict, name: str, model: Model, repo: str) -> dict:
    config = without_places(config)
    if not _modules_of(config) <= set(model.copied):
        config.pop("auto_map")  # of adapters without code of their own
    if name == "adapter_config.json":
        config["base_model_name_or_path"] = repo
    if name == "config.json":
        for key, backbone in (("audio_config", model.encoder), ("text_config", model.llm)):
            part = config.get(key)
            if isinstance(part, dict):
                part.pop("_name_or_path", None)
                if is_hub_name(backbone):
                    part["_name_or_path"] = backbone
    return config


def _refuse_secret(path: Path):
    if path.suffix not in TEXTS or path.name in VOCABULARIES:
        return
    text = path.read_text(encoding="utf-8", errors="replace")
    if path.suffix == ".json" and path.name not in TOKENIZER and (key := _secret_key(_json_of(text))) is not None:
        raise ValueError(f"`{path}` sets `{key}`, which looks like a secret and would be public. {WAY_OUT}")
    if holds_secret(text):
        raise ValueError(f"`{path}` holds what looks like a token or password, and would be public. {WAY_OUT}")


def _secret_key(values) -> str | None:
    """A key at any depth that names a secret and has a text."""
    pairs = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in pairs:
        if isinstance(value, str) and value and names_secret(str(key)):
            return str(key)
        if (found := _secret_key(value)) is not None:
            return found
    return None


def _json_of(text: str):
    try:
        return json.loads(text)
    except json.JSONDecodeError:  # whoever reads the file says so
        return None


def write_weights(model: Model, out: Path, shard_size: str, linked: bool):
    """Write the weights in files of at most `shard_size`. Files that are small enough stay as they are."""
    sizes = {
        name: {weight: each.num_bytes for weight, each in list_tensors(model.folder / name).items()}
        for name in model.weights
    }
    if model.kind != "whole" or not any(len(_split(each, shard_size)) > 1 for each in sizes.values()):
        for name in [*model.weights, *((INDEX,) if model.weights[0] != WHOLE and model.kind == "whole" else ())]:
            _place(model.folder / name, out / name, linked and name != INDEX)
        return
    places = {weight: name for name, each in sizes.items() for weight in each}
    all_sizes = {weight: size for each in sizes.values() for weight, size in each.items()}
    shards = _split(all_sizes, shard_size)
    for name, weights in shards.items():
        _write_shard(out / name, weights, places, model.folder)
    index = {
        "metadata": {"total_size": sum(all_sizes.values())},
        "weight_map": {weight: name for name, weights in shards.items() for weight in weights},
    }
    (out / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _split(sizes: Mapping[str, int], shard_size: str) -> dict[str, list[str]]:
    """Weights by the file that will hold them."""
    pattern = "model{suffix}.safetensors"
    plan = split_state_dict_into_shards_factory(
        dict(sizes), get_storage_size=int, filename_pattern=pattern, max_shard_size=shard_size
    )
    return plan.filename_to_tensors


def check_shard_size(text: str):
    """Raises: `ValueError` unless the text is a size such as `5GB`."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*[KMGT]B", text.strip(), re.IGNORECASE)
    if found is None or not float(found[1]) > 0:
        raise ValueError(f"`--max-shard-size` is `{text}`; expected a size such as 5GB or 500MB.")


def _write_shard(path: Path, weights: Iterable[str], places: Mapping[str, str], folder: Path):
    """Write one shard; only its own tensors are in memory."""
    tensors = {}
    for weight in weights:
        with safe_open(folder / places[weight], "pt") as opened:
            tensors[weight] = opened.get_tensor(weight)
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"`{path.name}` could not be written ({error}): free disk space.") from error


def _place(source: Path, destination: Path, linked: bool):
    if linked:
        try:
            os.link(source.resolve(), destination)
            return
        except OSError:  # another disk, or a file system without links
            pass
    shutil.copyfile(source, destination)


def describe_left_out(model: Model) -> str | None:
    """One line that names what stays here."""
    if not model.left_out:
        return None
    return f"Left out, as no part of the model: {', '.join(model.left_out)}."


__all__ = [
    "INDEX",
    "OURS",
    "SHARD_SIZE",
    "Model",
    "check_shard_size",
    "describe_left_out",
    "matches",
    "read_model",
    "write_files",
]
