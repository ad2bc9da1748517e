"""The files of a published checkpoint: found in a folder or on the hub, verified, and read tensor by tensor."""

import hashlib
import pickle
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import torch
from huggingface_hub import HfApi, constants, snapshot_download, try_to_load_from_cache
from huggingface_hub.hf_api import RepoFile
from safetensors import SafetensorError, safe_open

from .json_files import read_json_object
from .modeling.backbones_soundwave import read_shards
from .modeling.folders_soundwave import WHOLE_WEIGHTS, is_hub_name
from .secret_values import first_line


# What is downloaded of a repository, beside its weights.
LICENCES = ("LICENSE*", "NOTICE*", "USE_POLICY*")
DESCRIPTION = ("*.json", "*.jinja", "*.txt", "*.model", "README.md", *LICENCES)


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor is, and what its header says of it."""

    path: Path
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


# ---- finding the files ----


def find_published(source: str, destination: Path, revision: str | None = None) -> Path:
    """The folder of a published checkpoint; a hub name is downloaded to the cache of the hub first.

    Args:
        destination: where the converted weights will be. They must fit on the disks together with the download.
        revision: branch, tag or commit of a hub repository.

    Raises: `FileNotFoundError` if there is no such folder or repository, `OSError` if the disk is too small.
    """
    if Path(source).is_dir():
        if revision is not None:
            raise ValueError(f"`{source}` is a folder and has no revision `{revision}`: leave the revision out.")
        return Path(source)
    if Path(source).exists() or not is_hub_name(source):
        raise FileNotFoundError(
            f"`{source}` is neither a folder nor a hub name such as `FreedomIntelligence/Soundwave`."
        )
    try:
        listed = HfApi().list_repo_tree(source, revision=revision)
        sizes = {file.path: file.size for file in listed if isinstance(file, RepoFile)}
    except Exception as error:  # the hub's clients raise errors of several libraries
        return find_cached(source, revision, error)
    chosen = choose_files(list(sizes))
    missing = [name for name in chosen if not isinstance(try_to_load_from_cache(source, name, revision=revision), str)]
    weights = [name for name in chosen if name.endswith((".safetensors", ".bin"))]
    refuse_full_disk(
        {
            Path(constants.HF_HUB_CACHE): sum(sizes[name] for name in missing),
            destination: sum(sizes[name] for name in weights),
        }
    )
    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=chosen))
    except Exception as error:  # as above
        raise OSError(
            f"`{source}` could not be downloaded ({first_line(error)}). Run the same command again: the download "
            "continues where it stopped."
        ) from error


def find_cached(source: str, revision: str | None, error: Exception) -> Path:
    """The copy in the cache of the hub. Raises: `FileNotFoundError` that says why the hub did not answer."""
    try:
        folder = snapshot_download(source, revision=revision, local_files_only=True, allow_patterns="config.json")
    except OSError:
        raise FileNotFoundError(
            f"There is no folder `{source}`, and no such repository could be read from the hub ({first_line(error)}). "
            "Check the name, the connection and, for a private repository, the login (`hf auth login`)."
        ) from error
    print(f"The hub did not answer ({first_line(error)}). The copy in the cache is used.")
    return Path(folder)


def choose_files(names: list[str]) -> list[str]:
    """The files of a repository that a conversion reads: its description, and its weights in one format."""
    weights = "*.safetensors" if any(name.endswith(".safetensors") for name in names) else "*.bin"
    return [name for name in names if "/" not in name and any(fnmatch(name, each) for each in (*DESCRIPTION, weights))]


def refuse_full_disk(needed: dict[Path, int]):
    """Raises: `OSError` if a disk has less free space than the files need that will be written to it.

    Args: needed: number of bytes by folder; the folders need not exist.
    """
    disks: dict[int, list[Path]] = {}
    free: dict[int, int] = {}
    for folder in needed:
        there = next(each for each in (folder, *folder.absolute().parents) if each.exists())
        disk = there.stat().st_dev
        disks.setdefault(disk, []).append(folder)
        free[disk] = shutil.disk_usage(there).free
    for disk, folders in disks.items():
        total = sum(needed[folder] for folder in folders)
        if total > free[disk]:
            names = " and ".join(f"`{folder}`" for folder in folders)
            raise OSError(
                f"{names}: {total / 1e9:.3f} GB are needed and {free[disk] / 1e9:.3f} GB of the disk are free. Free "
                "disk space, or name another place."
            )


# ---- weights ----


def weight_files(src: Path) -> list[Path]:
    """The files that hold the weights. Raises: `FileNotFoundError` if there is none, or a shard is missing."""
    index, single = find_index(src)
    if index is not None:
        read_json_object(index)
        return [Path(shard) for shard in read_shards(index)]
    if single is not None:
        return [single]
    loose = sorted(path.name for ending in (".safetensors", ".bin") for path in src.glob(f"*{ending}"))
    found = f" It holds {loose[:4]} and no index that names them." if loose else ""
    raise FileNotFoundError(
        f"`{src}` has no weights: model.safetensors or pytorch_model.bin was expected, or shards with an index.{found}"
    )


def find_index(src: Path) -> tuple[Path | None, Path | None]:
    """The index of the shards, or the single file of weights; safetensors come first."""
    for name in WHOLE_WEIGHTS:
        if (src / f"{name}.index.json").is_file():
            return src / f"{name}.index.json", None
        if (src / name).is_file():
            return None, src / name
    return None, None


def list_weights(src: Path) -> dict[str, StoredTensor]:
    """All tensors of a checkpoint by their published names. Only headers are read.

    Raises: `FileNotFoundError` if a file is missing; `ValueError` if one cannot be read, two hold the same tensor, or
    the index differs from the files.
    """
    found: dict[str, StoredTensor] = {}
    for path in weight_files(src):
        for name, tensor in list_tensors(path).items():
            if name in found:
                raise ValueError(
                    f"`{name}` is in `{found[name].path}` and in `{path}`: download the checkpoint again."
                )
            found[name] = tensor
    index, _ = find_index(src)
    if index is not None:
        check_index(index, found)
    return found


def check_index(index: Path, found: dict[str, StoredTensor]):
    """Raises: `ValueError` if the files hold other tensors than their index says, or another number of bytes."""
    values = read_json_object(index)
    differing = sorted(values["weight_map"].items() ^ {(name, each.path.name) for name, each in found.items()})
    if differing:
        raise ValueError(
            f"`{index}` and the files that it names disagree on {len(differing)} entries: {differing[:4]}. They are "
            "of different versions: download the checkpoint again."
        )
    promised, total = values.get("metadata", {}).get("total_size"), sum(each.num_bytes for each in found.values())
    if promised and promised != total:
        raise ValueError(
            f"`{index}` says {promised} bytes and the tensors have {total}: they are of different versions. Download "
            "the checkpoint again."
        )


def list_tensors(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one file, from its header. Raises: `ValueError` if it cannot be read."""
    with readable(path):
        if path.suffix != ".safetensors":
            return {
                name: StoredTensor(path, tuple(each.shape), each.dtype) for name, each in load_mapped(path).items()
            }
        with safe_open(path, "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            return {
                name: StoredTensor(
                    path, tuple(each.get_shape()), (each[:0] if each.get_shape() else file.get_tensor(name)).dtype
                )
                for name, each in slices.items()
            }


def read_tensors(path: Path, names: list[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors of one file with their names, one after another, each copied to memory.

    The pages of the file that were read stay in memory until the last one is taken.
    """
    with readable(path):
        if path.suffix != ".safetensors":
            stored = load_mapped(path)
            for name in names:
                yield name, stored[name].clone(memory_format=torch.contiguous_format)
            return
        with safe_open(path, "pt") as file:
            for name in names:
                yield name, file.get_tensor(name)


def load_mapped(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a PyTorch file, mapped from disk. Raises: `ValueError` if it holds something else."""
    stored = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    if not isinstance(stored, dict) or not all(isinstance(each, torch.Tensor) for each in stored.values()):
        raise ValueError(f"`{path}` holds no dict of tensors: give the weights alone, without a trainer's state.")
    return stored


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """A context for reading a file of weights. Raises: `ValueError` that names the file if it is broken."""
    try:
        yield
    except (FileNotFoundError, PermissionError):
        raise
    except (SafetensorError, RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
        raise ValueError(f"`{path}` cannot be read ({first_line(error)}): copy or download it again.") from error


# ---- checksums ----


def check_sha256(paths: list[Path]) -> int:
    """Compare files with the checksums that the hub gave when they were downloaded. Returns how many have one.

    Raises: `ValueError` if one differs.
    """
    known = {path: digest for path in paths if (digest := known_sha256(path)) is not None}
    for path, expected in known.items():
        if (found := sha256(path)) != expected:
            raise ValueError(
                f"`{path}` has the sha256 {found} and the hub's file has {expected}: it is damaged. Delete "
                f"`{path.resolve()}` and download it again."
            )
    return len(known)


def known_sha256(path: Path) -> str | None:
    """The sha256 by the hub of a file that was downloaded; None if it is not known.

    In the cache of the hub a file links to its content, which is named by its checksum. A download to a folder
    leaves a note with commit, checksum and time. It does not hold for a file that was written later.
    """
    names = [path.resolve().name] if path.is_symlink() else []
    note = path.parent / ".cache" / "huggingface" / "download" / f"{path.name}.metadata"
    if note.is_file():
        _, digest, written, *_ = [*note.read_text(encoding="utf-8").split(), "", "", "0"]
        if path.stat().st_mtime <= float(written) + 1:
            names.append(digest)
    return next((name for name in names if re.fullmatch("[0-9a-f]{64}", name)), None)


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


__all__ = [
    "LICENCES",
    "StoredTensor",
    "check_sha256",
    "find_published",
    "list_tensors",
    "list_weights",
    "read_tensors",
    "refuse_full_disk",
    "sha256",
    "weight_files",
]
