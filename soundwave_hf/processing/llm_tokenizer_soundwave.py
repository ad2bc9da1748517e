"""The tokenizer for trained adapters. Their folder has none, but its config names the LLM."""

import importlib
import json
import os

from transformers import AutoTokenizer
from transformers.utils import cached_file


TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "token")


def find_file(name: str, file: str, subfolder: str = "", **hub) -> str | None:
    """A file of a folder or hub repository; None if it is missing, or the hub cannot be reached."""
    quiet = dict.fromkeys(("gated_repo", "missing_entries", "connection_errors"), False)
    quiet = {f"_raise_exceptions_for_{what}": value for what, value in quiet.items()}
    return cached_file(name, file, subfolder=subfolder, **quiet, **hub)


def lacks_tokenizer(name: str, subfolder: str = "", **hub) -> bool:
    """Whether a folder or hub repository belongs to a Soundwave model and has no tokenizer."""
    if any(find_file(name, file, subfolder, **hub) for file in TOKENIZER_FILES):
        return False
    return read_config(name, subfolder, **hub).get("model_type") == "soundwave"


def read_config(name: str, subfolder: str = "", **hub) -> dict:
    """The config.json of a folder or hub repository; an empty dict if there is none."""
    path = find_file(name, "config.json", subfolder, **hub)
    if path is None:
        return {}
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def named_llm(name: str, subfolder: str = "", **hub) -> str:
    """The LLM that the config of trained adapters names: a hub name, or a folder.

    Raises: `ValueError` if it has no LLM, `FileNotFoundError` if the LLM's folder is not on this machine.
    """
    llm = (read_config(name, subfolder, **hub).get("text_config") or {}).get("_name_or_path")
    if not llm:
        raise ValueError(f"`{name}` has no tokenizer and does not name its LLM: give `llm=`, its hub name or folder.")
    if llm.startswith("."):
        llm = os.path.abspath(os.path.join(name, subfolder, llm))
    if os.path.isabs(llm) and not os.path.isdir(llm):
        raise FileNotFoundError(
            f"`{name}` was trained on the LLM in `{llm}`, and there is no such folder here: give `llm=`, its hub name "
            "or folder on this machine."
        )
    return llm


# This and `local_backbone` are the same in modeling/folders_soundwave.py.
def _package_backbones():
    """The module of this package that finds backbones; None if this file is remote code without the package."""
    try:
        return importlib.import_module("soundwave_hf.data.backbones")
    except ImportError:
        return None


def locate_tokenizer(llm: str, **hub) -> str:
    """The folder or hub name of an LLM's tokenizer, without downloading weights."""
    folder = os.path.expanduser(llm)
    if os.path.isdir(folder):
        return folder
    backbones = _package_backbones()
    return llm if backbones is None else backbones.resolve_backbone(llm, weights=False, **hub)


def local_backbone(name: str) -> str:
    """The folder of a backbone below `$SOUNDWAVE_HOME/backbones` if it is there. Otherwise the name as it is."""
    backbones = _package_backbones()
    return name if backbones is None else backbones.local_copy(name)


def read_llm_tokenizer(llm: str, audio_token: str, **options):
    """The tokenizer of a causal LM with the audio token. It pads on the left by default, as generation needs.

    Args: options: of `AutoTokenizer.from_pretrained`.

    Raises: `ValueError` if it has no token for padding.
    """
    tokenizer = AutoTokenizer.from_pretrained(llm, **{"padding_side": "left", **options})
    # `replace...=False` keeps the LLM's own special tokens. An existing token keeps its id.
    tokenizer.add_special_tokens({"extra_special_tokens": [audio_token]}, replace_extra_special_tokens=False)
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ValueError(
                f"The tokenizer of {llm} has neither a padding nor an end token, so a batch cannot be padded. "
                "Set `pad_token` in its tokenizer_config.json."
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


__all__ = [
    "HUB_OPTIONS",
    "find_file",
    "lacks_tokenizer",
    "local_backbone",
    "locate_tokenizer",
    "named_llm",
    "read_config",
    "read_llm_tokenizer",
]
