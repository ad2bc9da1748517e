"""Weights written shard by shard: at most one shard is in memory, and a killed run continues after its last shard."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from huggingface_hub import StateDictSplit
from safetensors.torch import save_file

from .atomic import atomic_file, kept_folder
from .json_files import read_json_object
from .published_files import list_tensors, read_tensors, sha256


Reader = Callable[[list[str]], Iterator[tuple[str, torch.Tensor]]]  # names -> these tensors, read from their source


@dataclass
class UnfinishedShards:
    """A folder that is being written, and the record of its finished shards.

    The record is a file beside the folder, so that the finished folder never holds it.
    """

    folder: Path
    record: Path
    source: dict  # what the shards are made of; a record of other sources does not count
    finished: dict[str, str] = field(default_factory=dict)  # file name -> sha256

    def resume(self):
        """Keep the finished shards of a run that was stopped, if their checksums hold. Delete all other files."""
        if self.record.is_file():
            record = self._read_record()
            if record.get("source") == self.source:
                self.finished = {
                    name: digest
                    for name, digest in record["finished"].items()
                    if (self.folder / name).is_file() and sha256(self.folder / name) == digest
                }
            else:
                print(f"`{self.folder}` was begun from other weights or another version: it is begun again.")
        for path in self.folder.iterdir():
            if path.name not in self.finished:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _read_record(self) -> dict:
        try:
            return read_json_object(self.record, needed=("source", "finished"))
        except ValueError:
            return {}

    def num_bytes(self) -> int:
        """Of the finished shards."""
        return sum((self.folder / name).stat().st_size for name in self.finished)

    def finish(self, name: str):
        self.finished[name] = sha256(self.folder / name)
        self._write_record()

    def forget(self, name: str):
        (self.folder / name).unlink()
        del self.finished[name]
        self._write_record()

    def _write_record(self):
        with atomic_file(self.record) as part:
            part.write_text(json.dumps({"source": self.source, "finished": self.finished}), encoding="utf-8")

    def discard(self):
        shutil.rmtree(self.folder, ignore_errors=True)
        self.record.unlink(missing_ok=True)


@contextmanager
def unfinished_shards(path: Path, source: dict) -> Iterator[UnfinishedShards]:
    """Yield the shards that will be the folder `path`. It appears in one step when the block ends.

    If the block fails or the process is killed, finished shards are kept for the next call. If no shard is finished,
    nothing is kept.

    Raises: `BlockingIOError` if another process is writing `path`.
    """
    with kept_folder(path) as folder:
        shards = UnfinishedShards(folder, folder.with_name(f"{folder.name}.json"), source)
        shards.resume()
        try:
            yield shards
        except BaseException:
            if not shards.finished:
                shards.discard()
            raise
    shards.record.unlink(missing_ok=True)


def write_shards(shards: UnfinishedShards, split: StateDictSplit, read: Reader, num_parameters: int):
    """Write the shards that are not finished, each in one step, and the index if there are several.

    Raises: `OSError` if the disk is full.
    """
    for number, (name, tensors) in enumerate(split.filename_to_tensors.items(), start=1):
        place = f"shard {number} of {len(split.filename_to_tensors)}, {name}"
        if name in shards.finished:
            print(f"Kept {place}: finished earlier, and its checksum holds.")
            continue
        try:
            with atomic_file(shards.folder / name) as part:
                save_file(dict(read(tensors)), part, metadata={"format": "pt"})
            shards.finish(name)
        except OSError as error:
            raise OSError(
                f"{error} {len(shards.finished)} finished shards stay in `{shards.folder}`: run the same command "
                "again to continue."
            ) from error
        print(f"Wrote {place}: {(shards.folder / name).stat().st_size / 1e6:.1f} MB.")
    if split.is_sharded:
        metadata = {"total_parameters": num_parameters, **split.metadata}
        index = {"metadata": metadata, "weight_map": split.tensor_to_filename}
        path = shards.folder / "model.safetensors.index.json"
        path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def verify_shards(shards: UnfinishedShards, split: StateDictSplit, read: Reader):
    """Read the shards again and compare each tensor with its source, bit by bit.

    Raises: `OSError` if one differs; its shard is deleted.
    """
    for name, tensors in split.filename_to_tensors.items():
        path = shards.folder / name
        differing = sorted(list_tensors(path).keys() ^ set(tensors)) or [
            tensor for tensor, expected in read(tensors) if not holds(path, tensor, expected)
        ]
        if differing:
            shards.forget(name)
            raise OSError(
                f"`{path}` was read again and {len(differing)} tensors differ from the source: {differing[:4]}. The "
                "shard was deleted. The disk may be faulty, or the source changed: run the same command again."
            )


def holds(path: Path, name: str, expected: torch.Tensor) -> bool:
    """Whether a tensor of a file equals the expected one in shape, dtype and every bit, NaN included."""
    ((_, found),) = read_tensors(path, [name])
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    return torch.equal(found.reshape(-1).view(torch.uint8), expected.reshape(-1).view(torch.uint8))


__all__ = ["UnfinishedShards", "unfinished_shards", "verify_shards", "write_shards"]
