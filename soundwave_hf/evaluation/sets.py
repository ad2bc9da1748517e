"""Data sets to score: the validation sets of this package, and any other data."""

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from datasets import Dataset, IterableDataset

from ..data.manifest import read_rows
from ..data.rows import RowCheck, rename
from ..data.sources import Source, looks_local, open_rows, renamed, undecoded, with_label_names
from ..keys import read_yaml
from ..paths import one_or_more, soundwave_home
from .shipped import EXAMPLES


SETS = ("human", "librivox", "synthetic")  # telephone prompts, audiobook, new sentences in a new voice


def read_set(name: str) -> list[dict]:
    """Rows of one validation set; `audio` is an absolute path.

    Raises: ValueError for an unknown set, FileNotFoundError if the set was not built.
    """
    if name not in SETS:
        raise ValueError(f"There is no set `{name}`: choose from {', '.join(SETS)}.")
    if name == "librivox":
        return read_clips(EXAMPLES / "librivox")
    folder = soundwave_home() / "data" / "demo"  # where `examples/soundwave-small/build_data.py` writes them
    file = folder / f"valid_{name}.jsonl"
    if not file.is_file():
        raise FileNotFoundError(
            f"There is no file `{file}` of the set `{name}`: build the validation sets with "
            "`python examples/soundwave-small/build_data.py` in a checkout of this repository, or give your own data "
            "with `--data`."
        )
    # The human manifest lists the audiobook clips too. Here they are a separate set.
    return [{**row, "audio": str(folder / row["audio"])} for row in read_rows(file) if row["source"] != "librivox"]


def read_clips(folder: Path) -> list[dict]:
    """Clips that ship with the repository, as rows: `audio` (path), `text`, `seconds` and other columns."""
    index = folder / "clips.json"
    if not index.is_file():
        raise FileNotFoundError(f"There is no {index}: the example clips come with a checkout of this repository.")
    return [{**clip, "audio": str(folder / clip["file"])} for clip in json.loads(index.read_text(encoding="utf-8"))]


def named_sources(data: str | os.PathLike | Sequence[str] | Mapping[str, object]) -> dict[str, object]:
    """`["calls=calls.jsonl", "podcast.csv"]` -> `{"calls": "calls.jsonl", "podcast": "podcast.csv"}`.

    A source that begins with a brace is a mapping, as in a recipe: `{path: user/corpus, split: test}`. What has names
    already, such as rows in memory, is returned as it is.

    Raises: ValueError if two sets have the same name, or rows have none.
    """
    if isinstance(data, Mapping):
        return dict(data)
    sources = {}
    for word in one_or_more(data):
        if not isinstance(word, str | os.PathLike):
            raise ValueError(
                f"`data` holds a {type(word).__name__}; expected paths or names of sources. Give rows and mappings a "
                'name: `data={"calls": rows}`.'
            )
        word = os.fspath(word)
        named = re.fullmatch(r"([\w.-]+)=(.+)", word, re.DOTALL)
        name, source = named.groups() if named and not Path(word).exists() else (None, word)
        source = read_yaml(source, "A mapping of `--data`") if source.startswith("{") else source
        name = name or _usual_name(source)
        if name in sources:
            raise ValueError(
                f"Two sets are called `{name}`, `{sources[name]}` and `{source}`: name them, `--data NAME=SOURCE`."
            )
        sources[name] = source
    return sources


def _usual_name(source: str | dict) -> str:
    path = str(source.get("path") or source.get("name")) if isinstance(source, dict) else source
    return Path(path).stem or path


def open_sets(
    sets: str | Sequence[str], data: str | Sequence[str] | Mapping[str, object], columns: Mapping[str, str] | None
) -> dict[str, Iterable[dict]]:
    """Rows of all sets by name. All sets are opened first, so that a bad name fails at once."""
    opened = {name: read_set(name) for name in one_or_more(sets)}
    for name, source in named_sources(data).items():
        if name in opened:
            raise ValueError(f"`{name}` is a validation set: give `{source}` another name, `--data NAME=SOURCE`.")
        opened[name] = open_source(source, columns)
    if not opened:
        raise ValueError("There is nothing to score: name validation sets (`--sets`) or data (`--data`).")
    return opened


def hub_sets(data: str | Sequence[str] | Mapping[str, object]) -> dict[str, dict[str, str]]:
    """The sets that are data sets of the Hub, by name: `path`, and `config`, `split` and `revision` where given."""
    found = {}
    for name, source in named_sources(data).items():
        if isinstance(source, str) or (isinstance(source, Mapping) and {"path", "name"} & source.keys()):
            read = Source.read(source)
            if "://" not in read.path and not looks_local(read.path):
                about = {key: getattr(read, key) for key in ("path", "config", "split", "revision")}
                found[name] = {key: value for key, value in about.items() if value is not None}
    return found


def holds_rows(source) -> bool:
    """Whether a source is rows in memory, and not the name of some."""
    if isinstance(source, list):
        return all(isinstance(row, dict) and "path" not in row for row in source)
    return isinstance(source, (Dataset, IterableDataset))


def open_source(source, columns: Mapping[str, str] | None) -> Iterable[dict]:
    """Rows of a source, with undecoded clips; they can be read more than once. Rows in memory are used directly.

    No row is refused here: rows that cannot be scored are listed with the scores.
    """
    if isinstance(source, (Dataset, IterableDataset)):
        return with_label_names(renamed(undecoded(source), columns or {}, "the data set"))
    if holds_rows(source):
        return [rename(row, columns or {}, f"row {number}") for number, row in enumerate(source)]
    return open_rows(source, columns, check=_drop_odd_texts, with_seconds=False)


def _drop_odd_texts(row: dict, name: str):
    """Texts of another type become None, which is listed as a row that cannot be scored: a column has one type."""
    if not isinstance(row, Mapping):
        RowCheck()(row, name)
    for key in ("text", "question", "answer"):
        values = row.get(key)
        if not all(isinstance(value, str | None) for value in (values if isinstance(values, list) else [values])):
            row[key] = None
