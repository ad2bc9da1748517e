"""States of the frozen encoder on disk: stages I and II then need not compute them in every epoch."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm

from ..atomic import atomic_file
from ..data.lengths import clip_seconds
from ..data.rows import at_folder, clips_of
from ..processing.audio_soundwave import read_audio


FRAMES_PER_SECOND = 50  # of a Whisper encoder
SHARD_BYTES = 256 << 20
FRAMES_AT_ONCE = 16_000  # 20 ms each, padding counted: 5 minutes of speech
GIGABYTE = 1 << 30


@dataclass
class EncoderCache:
    """A folder of safetensors shards, one tensor `(encoder_frames, encoder_width)` for each version of a clip.

    A name is a digest of the clip and its changes; the folder's name is a digest of the encoder. Shards are complete
    files also when a process is killed.

    Args:
        root (`Path`): has a folder for each encoder.
        gigabytes (`float`): maximum size of the folder of one encoder.
        variants (`int`): augmented versions of each clip: epoch `e` uses version `e % variants`.
    """

    root: Path
    gigabytes: float = 20.0
    variants: int = 1
    folder: Path | None = None
    shards: dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        if self.variants < 1 or self.variants != int(self.variants):
            raise ValueError(f"`encoder_cache` has `variants` {self.variants!r}; give a whole number, 1 or more.")
        if not self.gigabytes > 0:
            raise ValueError(f"`encoder_cache` has `gigabytes` {self.gigabytes!r}; give what the disk may hold.")
        self._open = {}

    def __getstate__(self):
        return {**vars(self), "_open": {}}  # open files cannot go to another process

    def open(self, encoder: nn.Module):
        """Find the cached states of this encoder."""
        self.folder = Path(self.root) / fingerprint(encoder)
        self._list_shards()

    def _list_shards(self):
        self.shards = {}
        for path in sorted(self.folder.glob("*.safetensors")):
            try:
                with safe_open(path, framework="pt") as shard:
                    self.shards.update(dict.fromkeys(shard.keys(), path.name))
            except SafetensorError as error:
                raise ValueError(f"`{path}` is broken ({error}): remove it; its clips are encoded again.") from error

    def read(self, names: list[str]) -> dict[str, torch.Tensor]:
        """`encoder_states` `(clips, encoder_frames, encoder_width)`, padded, and their `encoder_mask`."""
        states = [self._file(self.shards[name]).get_tensor(name) for name in names]
        lengths = torch.tensor([len(clip) for clip in states])
        padded = pad_sequence(states, batch_first=True)
        return {"encoder_states": padded, "encoder_mask": torch.arange(padded.shape[1]) < lengths[:, None]}

    def _file(self, shard: str):
        key = (os.getpid(), shard)  # each worker opens its own
        if key not in self._open:
            self._open[key] = safe_open(self.folder / shard, framework="pt")
        return self._open[key]

    def write(self, states: dict[str, torch.Tensor]):
        """Write a shard in one step, named by a digest of its contents."""
        digest = hashlib.sha256("".join(sorted(states)).encode()).hexdigest()[:16]
        with atomic_file(self.folder / f"states-{digest}.safetensors") as part:
            save_file(states, part)

    def fill(self, model, collator, rows: Iterable[dict]):
        """Encode the clips that are missing, each process its share, with a progress bar.

        Args:
            model: has the encoder, on its device.
            collator (`SoundwaveDataCollator`): reads the clips.

        Raises: `ValueError`, before anything is encoded, if the states are too large, or a clip is longer than the
        encoder's window.
        """
        self.open(model.audio_tower)
        state = PartialState()
        missing = self._missing(collator, rows)
        self._check_size(model, missing)
        self.folder.mkdir(parents=True, exist_ok=True)
        mine = list(missing.items())[state.process_index :: state.num_processes]
        mine.sort(key=lambda item: item[1][2])
        pending, size = {}, 0
        bar = tqdm(total=len(mine), desc="encoder states", unit="clip", disable=not mine or state.process_index > 0)
        for group in _groups(mine):
            for name, clip in zip([name for name, _ in group], _encode(model, collator, group), strict=True):
                pending[name] = clip
                size += clip.nbytes
            bar.update(len(group))
            if size >= SHARD_BYTES:
                self.write(pending)
                pending, size = {}, 0
        if pending:
            self.write(pending)
        bar.close()
        state.wait_for_everyone()
        self._list_shards()

    def _missing(self, collator, rows: Iterable[dict]) -> dict[str, tuple[object, int, float]]:
        """Clip, version and seconds of each name that no shard holds."""
        wanted = {}
        for row in rows:
            clips = clips_of(row)
            for clip in clips:
                for variant in range(self.variants):
                    name = collator.clip_name(clip, variant)
                    if name not in self.shards and name not in wanted:
                        wanted[name] = (clip, variant, self._seconds(collator, row, clips, clip))
        return wanted

    @staticmethod
    def _seconds(collator, row: dict, clips: list, clip) -> float:
        if len(clips) == 1 and row.get("seconds") is not None:
            return row["seconds"]
        return clip_seconds(at_folder(clip, collator.folder), "A clip")

    def _check_size(self, model, missing: dict[str, tuple[object, int, float]]):
        config = model.config.audio_config
        longest = config.max_source_positions / FRAMES_PER_SECOND
        for clip, _, seconds in missing.values():
            if seconds > longest:
                raise ValueError(
                    f"`{_name_of(clip)}` is {seconds:g} s long and the encoder takes at most {longest:g} s: cut "
                    "the clip, or train without `encoder_cache`."
                )
        width = config.d_model * next(model.audio_tower.parameters()).element_size()
        there = sum(path.stat().st_size for path in self.folder.glob("*.safetensors"))
        needed = there + sum(seconds for _, _, seconds in missing.values()) * FRAMES_PER_SECOND * width
        if needed > self.gigabytes * GIGABYTE:
            raise ValueError(
                f"The encoder's states of {len(missing)} clips, with those in `{self.folder}`, take "
                f"{needed / GIGABYTE:.2f} GiB and `encoder_cache.gigabytes` is {self.gigabytes:g}: raise it, use "
                "fewer `variants`, or train without the cache."
            )


def _name_of(clip) -> str:
    return str((clip.get("path") or "a clip of bytes") if isinstance(clip, Mapping) else clip)


def clip_digest(clip) -> str:
    """Digest of a clip's content: of a file, of bytes or of samples."""
    if isinstance(clip, str | os.PathLike) and os.path.isfile(clip):
        with open(clip, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    if isinstance(clip, Mapping) and clip.get("bytes") is not None:
        clip = clip["bytes"]
    if isinstance(clip, bytes | bytearray | memoryview):
        return hashlib.sha256(clip).hexdigest()
    if isinstance(clip, str):  # a URL, or a missing file, for which its reader raises
        return hashlib.sha256(clip.encode()).hexdigest()
    samples, rate = read_audio(clip, "A clip", None)
    return hashlib.sha256(np.ascontiguousarray(samples).tobytes() + str(rate).encode()).hexdigest()


def version_name(digest: str, *followed: object) -> str:
    """Name of a version of a clip: a digest of the clip's digest and of everything else that changes its states."""
    return hashlib.sha256(json.dumps([digest, *followed], sort_keys=True).encode()).hexdigest()[:32]


def fingerprint(encoder: nn.Module) -> str:
    """Digest of an encoder's weights and their precision."""
    digest = hashlib.sha256()
    for name, weight in sorted(encoder.state_dict().items()):
        digest.update(f"{name} {weight.dtype}".encode())
        digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _groups(clips: list) -> Iterable[list]:
    """Clips in order of length -> batches of at most `FRAMES_AT_ONCE` frames, padding counted."""
    group = []
    for clip in clips:
        frames = FRAMES_PER_SECOND * (clip[1][2] + 1)
        if group and frames * (len(group) + 1) > FRAMES_AT_ONCE:
            yield group
            group = []
        group.append(clip)
    if group:
        yield group


@torch.no_grad()
def _encode(model, collator, group: list) -> list[torch.Tensor]:
    clips = [(clip, variant) for _, (clip, variant, _) in group]
    batch = collator.features([clip for clip, _ in clips], [collator.clip_draw(*clip) for clip in clips])
    states, mask = model.encode(
        batch["input_features"].to(model.device), batch["input_features_mask"].to(model.device)
    )
    return [clip[true].cpu().contiguous() for clip, true in zip(states, mask, strict=True)]


__all__ = ["EncoderCache", "clip_digest", "version_name"]
