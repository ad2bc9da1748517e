"""Load what was written in a fresh process, and compare it with the model that it was made of."""

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from ..modeling.folders_soundwave import locate_backbone
from ..secret_values import hide_secrets
from . import look
from .files import Model, read_model


def check_reload(model: Model, out: Path, offline: bool) -> str:
    """Compare the tensors of both folders, and what both models give for a clip.

    Args: offline: whether nothing may be downloaded.

    Returns: one line that says what was compared.

    Raises: `RuntimeError` if the written folder does not load, or gives something else.
    """
    written = read_model(out)
    count = compare_tensors(model, written)
    if model.kind != "whole" and offline and (missing := _missing_backbones(model, written)):
        return (
            f"Checked: {count} tensors are those of {model.folder}. The model was not run, because {missing} is not "
            "on this machine."
        )
    with tempfile.TemporaryDirectory() as place:
        source = run_fresh(model.folder, Path(place), "package" if model.kind == "whole" else model.kind, offline)
        copy = run_fresh(out, Path(place), model.kind, offline)
    for name, value in source.items():
        if not torch.equal(value, copy[name]):
            raise RuntimeError(
                f"The written folder gives other {name} than `{model.folder}` for the same clip: its backbones or its "
                "code differ. Nothing was pushed."
            )
    return f"Checked in a fresh process: {count} tensors and the answer to a clip are those of {model.folder}."


def compare_tensors(model: Model, written: Model) -> int:
    """The number of tensors, which are the same in both.

    Raises: `RuntimeError` if they differ.
    """
    mine, theirs = digests(model), digests(written)
    if changed := sorted(name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name)):
        raise RuntimeError(f"The written folder has other values in {changed[:3]}. Nothing was pushed: try again.")
    return len(mine)


def digests(model: Model) -> dict[str, str]:
    """sha256 of type, shape and values of each tensor."""
    found = {}
    for file in model.weights:
        with safe_open(model.folder / file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (the file is not a container)
                tensor = opened.get_tensor(name)
                about = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
                about.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
                # The shards of a whole model may be other ones; the files of adapters have their own names.
                found[name if model.kind == "whole" else f"{name} of {file}"] = about.hexdigest()
    return found


def run_fresh(folder: Path, place: Path, how: str, offline: bool) -> dict[str, torch.Tensor]:
    """What a new process finds. Args: how: see `look`.

    Raises: `RuntimeError` with the last line of its error.
    """
    out = place / f"{len(list(place.iterdir()))}.safetensors"  # never one that is still read
    environment = {**os.environ, "HF_MODULES_CACHE": str(place / "modules"), "TRANSFORMERS_VERBOSITY": "error"}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).resolve().parents[2]), *_python_path()])
    if offline:
        environment["HF_HUB_OFFLINE"] = "1"
    script = Path(look.__file__).read_text(encoding="utf-8")
    command = [sys.executable, "-c", script, str(Path(folder).resolve()), str(out), how]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        last = hide_secrets(lines[-1]) if lines else f"the process ended with code {done.returncode}"
        raise RuntimeError(f"`{folder}` could not be loaded in a fresh process: {last}")
    return load_file(out)


def _python_path() -> list[str]:
    return [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]


def _missing_backbones(*models: Model) -> str | None:
    """The first backbone that is not on this machine."""
    for name in dict.fromkeys(name for model in models for name in (model.encoder, model.llm)):
        try:
            locate_backbone(name, local_files_only=True)
        except (OSError, ValueError, RuntimeError):
            return f"`{name}`"
    return None


__all__ = ["check_reload", "compare_tensors"]
