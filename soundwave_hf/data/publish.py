"""`soundwave-hf data push`: a prepared set to the hub, as Parquet with the clips inside."""

import io
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import datasets
from datasets import Audio, Dataset, Features, List
from huggingface_hub import DatasetCard, HfApi
from huggingface_hub.errors import (
    HFValidationError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from ..processing.sources_soundwave import describe, open_source
from ..publish.card_parts import Card, join_own, read_card, write_card
from ..publish.errors import hub_errors
from .card import CARD, configs_of
from .named_rows import undecoded
from .prepared import HUB_DATA, Part, file_pattern, find_parts
from .readers import kind_of
from .rows import at_folder, stored_messages
from .tables import CLIP, MESSAGES, open_rows


SHARD_BYTES = 500 * 2**20  # of clips, in a file


def push_folder(folder: str | os.PathLike, repo: str, private: bool | None = None, revision: str | None = None) -> str:
    """Push a folder with a card to a data set repository, which is created if it is missing.

    The rows are written as Parquet with their clips, so that `load_dataset` plays them anywhere. Rows that an earlier
    push left there are replaced. A user's own text in the README.md of the hub stays.

    Args:
        private: whether a new repository is private; by default the account's choice.
        revision: branch to push to; it is created if it is missing.

    Returns: the address of the repository.

    Raises: `FileNotFoundError` without a card or a clip; `ValueError` for a name that no repository can have, for
        `private` where the repository is public, and if a user's text would be lost; `ConnectionError` if the hub
        refuses or does not answer.
    """
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ValueError(f"REPO is {repo!r}: {error}") from error
    folder, parts = Path(folder), find_parts(folder)
    if not (folder / CARD).is_file():
        raise FileNotFoundError(f"`{folder}` has no {CARD}: write it with `soundwave-hf data card {folder}` first.")
    api = HfApi(library_name="soundwave-hf")
    with hub_errors(repo):  # before all clips are written
        _refuse_public(api, repo, private)
        text, own = _own_card(api, repo, revision, folder)
    with tempfile.TemporaryDirectory(prefix=".push-", dir=folder.resolve().parent) as place:
        written = _write_parts(parts, Path(place))
        metadata = DatasetCard.load(folder / CARD).data.to_dict() | {"configs": configs_of(written)}
        (Path(place) / CARD).write_text(write_card(metadata, text, own, recorded=metadata), encoding="utf-8")
        with hub_errors(repo):
            return _upload(api, place, repo, private, revision)


def _refuse_public(api: HfApi, repo: str, private: bool | None):
    if _is_private(api, repo) is False and private:
        raise ValueError(f"`{repo}` exists and is public, and `--private` was given: give another name.")


def _own_card(api: HfApi, repo: str, revision: str | None, folder: Path) -> tuple[str, Card]:
    """The text of the folder's README.md, and a user's own text around it on the hub.

    Raises: `ValueError` if somebody edited the written text there, or own text would be lost.
    """
    here = read_card((folder / CARD).read_text(encoding="utf-8"), f"`{folder / CARD}`")
    text, own = (here.after, Card({})) if here.block is None else (here.block, replace(here, metadata={}))
    if (found := _hub_card(api, repo, revision)) is None:
        return text, own
    name = f"README.md of `{repo}`"
    there = read_card(found, name)
    # Types and sizes of files of an earlier push are no words of a user.
    there = replace(there, metadata={key: there.metadata[key] for key in there.metadata if key != "dataset_info"})
    if there.block is None and there.after == text:
        there = replace(there, after="")
    elif there.block is None and there.after:
        print(f"The text of {name} is kept below that of the folder.", flush=True)
    return text, join_own(there, own, name, "delete that file on the Hub")


def _hub_card(api: HfApi, repo: str, revision: str | None) -> str | None:
    """README.md on the hub: of the branch, or of main, from which a missing branch is made."""
    for each in (revision, None):
        try:
            path = api.hf_hub_download(repo, CARD, repo_type="dataset", revision=each)
        except RevisionNotFoundError:
            continue
        except (RemoteEntryNotFoundError, RepositoryNotFoundError):
            return None
        return Path(path).read_text(encoding="utf-8")
    return None


def _upload(api: HfApi, place: str, repo: str, private: bool | None, revision: str | None) -> str:
    name = api.create_repo(repo, repo_type="dataset", private=private, exist_ok=True).repo_id
    if revision is not None:
        api.create_branch(name, branch=revision, repo_type="dataset", exist_ok=True)
    api.upload_folder(
        repo_id=name,
        repo_type="dataset",
        folder_path=place,
        revision=revision,
        commit_message="Data and card",
        delete_patterns=[f"{HUB_DATA}/*.parquet"],  # rows of an earlier push
    )
    return f"{api.endpoint}/datasets/{name}"


def _is_private(api: HfApi, repo: str) -> bool | None:
    """Whether a repository is private; None if it does not exist."""
    try:
        return bool(api.dataset_info(repo).private)
    except RepositoryNotFoundError:
        return None


def _write_parts(parts: Sequence[Part], place: Path) -> list[Part]:
    """Write the rows of the parts as Parquet shards below `place`; no pattern matches the shards of another part."""
    written = [(part, *_write_part(part, place)) for part in parts]
    return [
        Part(part.config, part.split, f"{HUB_DATA}/{file_pattern(stem, files)}", files)
        for part, stem, files in written
    ]


def _write_part(part: Part, place: Path) -> tuple[str, tuple[Path, ...]]:
    """Write the rows of a part. Returns: how its shards begin, and the shards."""
    if kind_of(part.files[0].name) == "parquet" and not part.is_audio_folder:
        files = [str(file) for file in part.files]
        rows = undecoded(datasets.load_dataset("parquet", data_files={"train": files}, split="train"))
    else:
        rows = open_rows(part.source, with_seconds=False, keep_others=True)
    stem = part.split if part.config == "default" else f"{part.config}-{part.split}"
    features = Features({name: _stored_kind(name, feature) for name, feature in rows.features.items()})
    embed = _Embed(part.files[0].parent)
    count = max(1, -(-_clip_bytes(rows, embed) // SHARD_BYTES))
    (place / HUB_DATA).mkdir(exist_ok=True)
    files = tuple(place / HUB_DATA / f"{stem}-{number:05d}-of-{count:05d}.parquet" for number in range(count))
    for number, path in enumerate(files):
        _write_shard(rows.shard(count, number, contiguous=True), embed, features, path)
    return stem, files


def _write_shard(shard: Dataset, embed: "_Embed", features: Features, path: Path):
    stored = Features({name: _plain(kind) for name, kind in features.items()})
    embedded = shard.map(embed, features=stored, keep_in_memory=False, load_from_cache_file=False, batch_size=16)
    embedded.cast(features).to_parquet(path)


def _stored_kind(name: str, feature):
    """The type of a column on the hub: clips are `Audio`, which players and `load_dataset` know."""
    if name != "audio":
        return MESSAGES if name == "messages" else feature
    return List(Audio()) if isinstance(feature, List) else Audio()


def _plain(kind):
    if isinstance(kind, Audio):
        return CLIP
    return List(CLIP) if isinstance(kind, List) and isinstance(kind.feature, Audio) else kind


def _clip_bytes(rows: Dataset, embed: "_Embed") -> int:
    return sum(embed.size(row) for row in rows.select_columns([n for n in ("audio",) if n in rows.column_names]))


class _Embed:
    """Puts the bytes of the clips into a row. Args: folder: where relative paths begin."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __call__(self, row: dict) -> dict:
        changed = {}
        if row.get("audio") is not None:
            clips = row["audio"]
            changed["audio"] = [self._clip(clip) for clip in clips] if isinstance(clips, list) else self._clip(clips)
        if row.get("messages") is not None:
            messages = stored_messages(row["messages"], self.folder)
            changed["messages"] = [self._message(message) for message in messages]
        return changed

    def size(self, row: Mapping) -> int:
        clips = row.get("audio")
        return sum(self._size(clip) for clip in (clips if isinstance(clips, list) else [clips]) if clip is not None)

    def _size(self, clip) -> int:
        if isinstance(clip, Mapping) and clip.get("bytes") is not None:
            return len(clip["bytes"])
        path = at_folder(clip["path"] if isinstance(clip, Mapping) else clip, self.folder)
        return os.path.getsize(path) if os.path.isfile(path) else 0

    def _message(self, message: Mapping) -> dict:
        parts = [{**part, "audio": part["audio"] and self._clip(part["audio"])} for part in message["content"]]
        return {**message, "content": parts}

    def _clip(self, clip) -> dict:
        """A clip with its bytes, and the name of its file without the folders of this machine."""
        if isinstance(clip, Mapping) and clip.get("bytes") is not None:
            name = os.path.basename(clip.get("path") or "") or None
            return {"bytes": clip["bytes"], "path": name}
        path = at_folder(clip["path"] if isinstance(clip, Mapping) else clip, self.folder)
        opened = open_source(path, f"the clip `{describe(path)}`")
        content = opened.getvalue() if isinstance(opened, io.BytesIO) else Path(opened).read_bytes()
        return {"bytes": content, "path": os.path.basename(path.partition("?")[0]) or None}


__all__ = ["push_folder"]
