"""YAML of users: no key is unknown or written twice, and no error quotes the text, which may hold a secret."""

import difflib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import yaml

from .secret_values import hide_secrets


class _KeysOnce(yaml.SafeLoader):
    """YAML in which a key that is written twice is an error, not the last value."""

    def compose_mapping_node(self, anchor):
        # As it is written: merging (`<<: *other`) adds keys later.
        node, seen = super().compose_mapping_node(anchor), set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            if (key.tag, key.value) in seen:
                problem = f"`{key.value}` is written twice"
                raise yaml.constructor.ConstructorError(problem=problem, problem_mark=key.start_mark)
            seen.add((key.tag, key.value))
        return node


def read_yaml(text: str, name: str):
    """The value of a YAML text, called `name` in errors.

    Raises: `ValueError` if it is not YAML, also for a key that is written twice.
    """
    return _read(lambda: yaml.load(text, Loader=_KeysOnce), name)


def read_yaml_file(path: Path):
    """The value of a YAML file. Raises: as `read_yaml`; `OSError`; `ValueError` if it is not in UTF-8."""
    return read_yaml(_text_of(path), f"`{path}`")


def read_yaml_documents(path: Path) -> list:
    """The values of a YAML file, which `---` separates. Raises: as `read_yaml_file`."""
    text = _text_of(path)
    return _read(lambda: list(yaml.load_all(text, Loader=_KeysOnce)), f"`{path}`")


def _read(load: Callable, name: str):
    try:
        return load()
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a day such as 2026-02-30
        # Not the error's own text: it quotes the line, which may hold a secret.
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or "not YAML"
        line = "" if mark is None else f" in line {mark.line + 1}"
        raise ValueError(f"{name} cannot be read as YAML: {hide_secrets(problem)}{line}.") from None


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"`{path}` is not in UTF-8 ({error.reason} at byte {error.start}): convert it.") from None


# What people write for settings that have a longer name.
USUAL_NAMES = {
    "lr": "learning_rate",
    "epochs": "num_train_epochs",
    "num_epochs": "num_train_epochs",
    "batch_size": "per_device_train_batch_size",
    "train_batch_size": "per_device_train_batch_size",
    "grad_accum": "gradient_accumulation_steps",
    "gradient_accumulation": "gradient_accumulation_steps",
    "accumulation_steps": "gradient_accumulation_steps",
    "output": "output_dir",
}


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that a wrong one means: the longer one of a usual short name, or the closest in letters."""
    known, name = list(known), str(name)
    usual = USUAL_NAMES.get(name.replace("-", "_").lower())
    return usual if usual in known else next(iter(difflib.get_close_matches(name, known, n=1)), None)


def refuse_unknown(given: Mapping, known: Iterable[str], name: str, otherwise: str):
    """Refuse a key that is not known.

    Args: name: what the error calls the mapping; otherwise: a sentence for a key that is close to none.

    Raises: `ValueError` with the closest known key.
    """
    for key in given:
        if key not in known:
            near = nearest(key, known)
            hint = f"Did you mean `{near}`?" if near else otherwise
            raise ValueError(f"{name} has the key `{key}`, which does not exist. {hint}")


__all__ = ["nearest", "read_yaml", "read_yaml_documents", "read_yaml_file", "refuse_unknown"]
