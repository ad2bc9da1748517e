"""The text of a card that this package writes, and the user's own text around it, which stays.

Two comments mark the written text. The first one has digests, so that later edits are seen. A third one repeats the
written metadata, so that what a user adds there is told from it.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import yaml
from huggingface_hub import ModelCard, ModelCardData

from ..keys import read_yaml
from ..modeling.folders_soundwave import is_hub_name


BEGIN = "<!-- soundwave-hf writes the text from here to the end mark again: {block} / {own} -->"
END = "<!-- end of the text that soundwave-hf writes: put your own above or below -->"
MARKED = re.compile(
    re.escape(BEGIN).replace(r"\{block\}", "([0-9a-f]{16})").replace(r"\{own\}", "([0-9a-f]{16})")
    + r"\n(.*?)\n"
    + re.escape(END)
    + r"(?:\n<!-- metadata that soundwave-hf wrote: (\{.*?\}) -->)?",
    re.DOTALL,
)
FRONT = re.compile(r"\A\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
# Keys of the metadata that only score files may fill.
MEASURED = ("model-index", "metrics")
UNITED = ("tags", "base_model", "datasets", "language")  # a user's values stay beside the written ones
WRITTEN = ("library_name", "pipeline_tag", "base_model_relation", *UNITED)
# What libraries add to the empty model card of the Hub.
FILLED_BY_LIBRARIES = re.compile(
    r"- PEFT \d\S*|This is the model card of a . transformers model that has been pushed on the Hub\. "
    r"This model card has been automatically generated\."
)
QUANTIZED = re.compile(
    r"^The following `bitsandbytes` quantization config was used during training:\n(?:- \w+: .*(?:\n|\Z))*",
    re.MULTILINE,
)
BASE_TAG = re.compile(r"base_model:(?:(?:adapter|finetune|merge|quantized):)?(.*)")


@dataclass(frozen=True)
class Card:
    """A README.md in parts.

    Args:
        metadata (`dict`): of the front matter, without what this package wrote.
        before, after (`str`): the user's own text around the written one; all of it is `after` without marks. A
            template that nobody filled in is no text.
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
    metadata = read_yaml(front[1], f"The metadata of {name}") if front else {}
    if not isinstance(metadata, dict | None):
        raise ValueError(f"The metadata of {name} is {metadata!r}; expected keys and values.")
    body = (text[front.end() :] if front else text).strip()
    marked = MARKED.search(body)
    if marked is None:
        return Card(metadata or {}, after=_without_template(body))
    before, after = body[: marked.start()].strip(), body[marked.end() :].strip()
    card = Card(_without_written(metadata or {}, marked[4]), before, after, marked[3].strip())
    card = replace(card, is_edited=_digest(card.block) != marked[1], is_as_written=_digest(card.own) == marked[2])
    return replace(card, before=_without_template(before), after=_without_template(after))


def _without_written(metadata: Mapping, record: str | None) -> dict:
    """The metadata that a user added. Args: record: JSON of the written one; cards of earlier versions have none."""
    own = {key: value for key, value in metadata.items() if key not in MEASURED}
    try:
        written = json.loads(record or "")
    except ValueError:
        written = {key: value for key, value in own.items() if key in WRITTEN and key not in ("tags", "language")}
        written["tags"] = ["non-commercial"]
    for key in written.keys() & own.keys():
        if key in UNITED:
            own[key] = [value for value in values_of(own, key) if value not in values_of(written, key)]
        if not own[key] or own[key] == written[key]:
            del own[key]
    return own


def _without_template(text: str) -> str:
    """Nothing for the empty model card of the Hub, as PEFT and transformers write it; else the text."""
    empty = {line.strip() for line in ModelCard.from_template(ModelCardData()).text.splitlines()}
    empty |= {"### Framework versions", "## Training procedure"}
    rest = QUANTIZED.sub("", text)
    lines = {line.strip() for line in rest.splitlines()} - empty
    return "" if all(FILLED_BY_LIBRARIES.fullmatch(line) for line in lines) else text


def write_card(metadata: Mapping, block: str, own: Card | None = None, recorded: Iterable[str] = WRITTEN) -> str:
    """The text of a README.md.

    Args:
        own: the card whose metadata and own text stay.
        recorded: keys of the metadata that the next writing knows to be written, and not a user's.
    """
    own = own or Card({})
    block = block.strip()
    front = yaml.safe_dump(dict(merge_metadata(own, metadata)), sort_keys=False, allow_unicode=True)
    begin = BEGIN.format(block=_digest(block), own=_digest(own.own))
    record = {key: metadata[key] for key in recorded if key in metadata}
    record = json.dumps(record, ensure_ascii=False).replace(">", "\\u003e")
    marked = f"{begin}\n{block}\n{END}\n<!-- metadata that soundwave-hf wrote: {record} -->"
    parts = [own.before, marked, own.after]
    return f"---\n{front}---\n\n" + "\n\n".join(part for part in parts if part) + "\n"


def merge_metadata(own: Card, written: Mapping) -> dict:
    """The written metadata with the user's. Scores are never taken from a user's metadata.

    Of lists, both stay. Of a single value, the written one stays: see `left_out_metadata`.
    """
    kept = {key: value for key, value in own.metadata.items() if key not in MEASURED}
    if written.get("license"):  # a user's name and link belong to the user's licence
        kept = {key: value for key, value in kept.items() if not key.startswith("license")}
    united = {key: [*values_of(written, key), *known_values(own.metadata, key)] for key in UNITED}
    united = {key: list(dict.fromkeys(values)) for key, values in united.items() if values or key in written}
    # The written keys come first, so that the same card is the same text after each push.
    merged = {**kept, **written, **united}
    return {key: merged[key] for key in dict.fromkeys([*written, *kept]) if key in merged and merged[key] is not None}


def values_of(metadata: Mapping, key: str) -> list[str]:
    """The values of a key that holds one or several."""
    values = metadata.get(key)
    values = values if isinstance(values, list) else [] if values is None else [values]
    return ["no" if value is False else str(value) for value in values]  # YAML takes `no`, Norwegian, for false


def known_values(metadata: Mapping, key: str) -> list[str]:
    """The values of a key without folders of a machine, and without tags of base models that are none."""
    values = [value for value in values_of(metadata, key) if value.strip()]
    if key in ("base_model", "datasets"):
        return [value for value in values if is_hub_name(value)]
    if key == "tags":
        return [tag for tag in values if (found := BASE_TAG.fullmatch(tag)) is None or is_hub_name(found[1])]
    return values


def left_out_metadata(own: Card, written: Mapping) -> list[str]:
    """What of a user's metadata is not taken, as `key: value`. Scores come from score files only."""
    merged = merge_metadata(own, written)
    lost = {key: own.metadata[key] for key in own.metadata if own.metadata[key] != merged.get(key)}
    for key in UNITED:
        lost[key] = [value for value in values_of(own.metadata, key) if value not in values_of(merged, key)]
    return [key if key in MEASURED else f"{key}: {value}" for key, value in lost.items() if value not in (None, [])]


DROP = "drop it with `--replace-card`"  # what `push` can do with a user's text


def refuse_edited(card: Card, name: str, way_out: str = DROP):
    """Raises: `ValueError` if somebody edited the text that this package writes."""
    if card.is_edited:
        raise ValueError(
            f"{name} was edited between the marks of soundwave-hf, and that text is written again: move your text "
            f"above or below the marks, or {way_out}."
        )


def join_own(remote: Card, own: Card, name: str, way_out: str = DROP) -> Card:
    """The user's text and metadata of the folder and of the Hub.

    Args: name: of the file on the Hub, for errors. way_out: what they say to do without its text.

    Raises: `ValueError` if both have text of their own, and that on the Hub is not that of an earlier push.
    """
    refuse_edited(remote, name, way_out)
    if remote.own and own.own and remote.own != own.own and not remote.is_as_written:
        raise ValueError(
            f"{name} has text that the README.md of the folder lacks, and it would be lost: copy it there, or "
            f"{way_out}."
        )
    added = {key: value for key, value in remote.metadata.items() if key not in own.metadata}
    if not own.own:
        own = replace(own, before=remote.before, after=remote.after)
    return replace(own, metadata={**added, **own.metadata})


def _digest(text: str) -> str:
    return hashlib.sha256(text.strip().encode()).hexdigest()[:16]


__all__ = ["Card", "join_own", "known_values", "left_out_metadata", "read_card", "refuse_edited", "write_card"]
