"""Keys of YAML files that a user writes: none is unknown, and none is written twice."""

import difflib
from collections.abc import Iterable, Mapping

import yaml


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


def read_yaml(text: str):
    """The value of a YAML text. Raises: `yaml.YAMLError`, also for a key that is written twice."""
    return yaml.load(text, Loader=_KeysOnce)


def read_yaml_documents(text: str) -> list:
    """The values of a YAML text, which `---` separates. Raises: as `read_yaml`."""
    return list(yaml.load_all(text, Loader=_KeysOnce))


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


__all__ = ["nearest", "read_yaml", "read_yaml_documents", "refuse_unknown"]
