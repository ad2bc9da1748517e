"""The text of a card that this package writes, and the user's own text around it, which stays.

Two comments mark the written text. The first one has digests, so that later edits are seen.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import yaml


BEGIN = "<!-- soundwave-hf writes the text from here to the end mark again: {block} / {own} -->"
END = "<!-- end of the text that soundwave-hf writes: put your own above or below -->"
MARKED = re.compile(
    re.escape(BEGIN).replace(r"\{block\}", "([0-9a-f]{16})").replace(r"\{own\}", "([0-9a-f]{16})")
    + r"\n(.*?)\n"
    + re.escape(END),
    re.DOTALL,
)
FRONT = re.compile(r"\A\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
# Keys of the metadata that only score files may fill.
MEASURED = ("model-index", "metrics")
WRITTEN = ("library_name", "pipeline_tag", "tags", "base_model", "base_model_relation", "datasets", *MEASURED)


@dataclass(frozen=True)
class Card:
    """A README.md in parts.

    Args:
        metadata (`dict`): of the front matter.
        before, after (`str`): the user's own text around the written one; all of it is `after` without marks.
        block (`str`, *optional*): the written text; None without marks.
        is_edited (`bool`): whether somebody changed the written text.
        is_as_written (`bool`): whether the own text is still that of the last writing.
    """

    metadata: Mapping
    before: str = ""
    after: str = ""
    block: str | None = None
    is_edited: bool = False
    is_as_written: bool = False

    @property
    def own(self) -> str:
        return "\n\n".join(part for part in (self.before, self.after) if part)


def read_card(text: str, name: str) -> Card:
    """Args: name: of the file, for errors.

    Raises: `ValueError` if the metadata is not YAML.
    """
    front = FRONT.search(text)
    try:
        metadata = yaml.safe_load(front[1]) if front else {}
    except yaml.YAMLError as error:
        raise ValueError(f"The metadata of {name} cannot be read as YAML: {error}") from error
    if not isinstance(metadata, dict | None):
        raise ValueError(f"The metadata of {name} is {metadata!r}; expected keys and values.")
    body = (text[front.end() :] if front else text).strip()
    marked = MARKED.search(body)
    if marked is None:
        return Card(metadata or {}, after=body)
    before, after = body[: marked.start()].strip(), body[marked.end() :].strip()
    card = Card(metadata or {}, before, after, marked[3].strip())
    return replace(card, is_edited=_digest(card.block) != marked[1], is_as_written=_digest(card.own) == marked[2])


def write_card(metadata: Mapping, block: str, own: Card | None = None) -> str:
    """The text of a README.md. Args: own: the card whose metadata and own text stay."""
    own = own or Card({})
    block = block.strip()
    front = yaml.safe_dump(dict(merge_metadata(own, metadata)), sort_keys=False, allow_unicode=True)
    begin = BEGIN.format(block=_digest(block), own=_digest(own.own))
    parts = [own.before, f"{begin}\n{block}\n{END}", own.after]
    return f"---\n{front}---\n\n" + "\n\n".join(part for part in parts if part) + "\n"


def merge_metadata(own: Card, written: Mapping) -> dict:
    """The written metadata with the user's further keys and tags. Scores are never taken from a user's metadata."""
    kept = {key: value for key, value in own.metadata.items() if key not in WRITTEN}
    if written.get("license"):  # a user's name and link belong to the user's licence
        kept = {key: value for key, value in kept.items() if not key.startswith("license")}
    tags = own.metadata.get("tags") or []
    tags = [tags] if isinstance(tags, str) else list(tags)
    # In a card of this package, a tag that is no longer written is one that no longer holds.
    merged = dict.fromkeys([*written.get("tags", []), *(tag for tag in tags if tag != "non-commercial")])
    # The written keys come first, so that the same card is the same text after each push.
    return {**written, "tags": list(merged), **{key: value for key, value in kept.items() if key not in written}}


def left_out_metadata(own: Card) -> list[str]:
    """Keys of a user's metadata that are not taken, because only score files may fill them."""
    return [key for key in MEASURED if own.block is None and key in own.metadata]


def refuse_edited(card: Card, name: str):
    """Raises: `ValueError` if somebody edited the text that this package writes."""
    if card.is_edited:
        raise ValueError(
            f"{name} was edited between the marks of soundwave-hf, and that text is written again: move your text "
            "above or below the marks, or drop it with `--replace-card`."
        )


def join_own(remote: Card, own: Card, name: str) -> Card:
    """The user's text and metadata of the folder and of the Hub. Args: name: of the file on the Hub, for errors.

    Raises: `ValueError` if both have text of their own, and that on the Hub is not that of an earlier push.
    """
    refuse_edited(remote, name)
    if remote.own and own.own and remote.own != own.own and not remote.is_as_written:
        raise ValueError(
            f"{name} has text that the README.md of the folder lacks, and it would be lost: copy it there, or drop "
            "it with `--replace-card`."
        )
    added = {key: value for key, value in remote.metadata.items() if key not in own.metadata}
    if not own.own:
        own = replace(own, before=remote.before, after=remote.after)
    return replace(own, metadata={**added, **own.metadata})


def _digest(text: str) -> str:
    return hashlib.sha256(text.strip().encode()).hexdigest()[:16]


__all__ = ["Card", "join_own", "left_out_metadata", "read_card", "refuse_edited", "write_card"]
