"""The data that a run was trained on, with their licences, in a form that a model card can read back."""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from huggingface_hub import DatasetCard

from .card import NONE, DataSource, iso_code, kept_facts
from .locate import Source, looks_local


COMMENT = re.compile(r"^<!-- data of this run: (\{.*\}) -->$", re.MULTILINE)


@dataclass(frozen=True)
class DataUsed:
    """What a model was trained on.

    Args:
        sources (`tuple[DataSource, ...]`): counted by the `source` of the rows; unknown hours are NaN.
        datasets (`tuple[str, ...]`): data sets of the Hub, by name.
        languages (`tuple[str, ...]`): codes of the languages that the data's own cards name.
    """

    sources: tuple[DataSource, ...] = ()
    datasets: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()

    @classmethod
    def of(cls, values: Mapping) -> "DataUsed":
        """What `dataclasses.asdict` made a mapping of."""
        sources = tuple(DataSource(**source) for source in values["sources"])
        return cls(sources, tuple(values["datasets"]), tuple(values["languages"]))

    def comment(self) -> str:
        """One line of Markdown that shows nothing, for `read_comment`."""
        text = json.dumps(dataclasses.asdict(self), ensure_ascii=False).replace(">", "\\u003e")
        return f"<!-- data of this run: {text} -->"

    def with_licenses(self, licenses: Mapping[str, str]) -> "DataUsed":
        """The same data with the licences of the sources that are named."""
        sources = [
            dataclasses.replace(source, license=licenses.get(source.name, source.license)) for source in self.sources
        ]
        return dataclasses.replace(self, sources=tuple(sources))

    def __add__(self, other: "DataUsed") -> "DataUsed":
        """The data of both. Of a source in both, the larger count stays: the stages of a chain share their data."""
        known = {source.name: source for source in self.sources}
        for source in other.sources:
            earlier = known.get(source.name)
            if earlier is not None:
                larger = source if source.rows >= earlier.rows else earlier
                either = source.license or earlier.license, source.url or earlier.url
                source = dataclasses.replace(larger, license=either[0], url=either[1])
            known[source.name] = source
        datasets = tuple(dict.fromkeys((*self.datasets, *other.datasets)))
        return DataUsed(tuple(known.values()), datasets, tuple(dict.fromkeys((*self.languages, *other.languages))))


def read_comment(text: str) -> DataUsed:
    """The data that `DataUsed.comment` wrote into a text; empty without one."""
    found = COMMENT.search(text)
    if found is None:
        return DataUsed()
    return DataUsed.of(json.loads(found[1]))


def data_used(
    sources: Sequence[Source], counts: Mapping[tuple[str], tuple[int, float]], cards: Sequence[Path]
) -> DataUsed:
    """What the sources of a run and the cards beside them say.

    Args: counts: clips and seconds by the `source` of rows. cards: `README.md` of the sources.
    """
    known: dict[str, DataSource] = {}
    whole, languages = [], []
    for path in cards:
        license, spoken = read_metadata(path)
        languages += spoken
        whole.append(license)
        if (kept := kept_facts(path.parent)) is not None:
            known |= {source.name: source for source in kept.sources}
    # One card of one source speaks for all of its rows; with several, nobody knows which rows it means.
    of_all = whole[0] if len(whole) == len(sources) == 1 else None
    found = [
        DataSource(
            name,
            license=getattr(known.get(name), "license", None) or of_all,
            url=getattr(known.get(name), "url", None),
            rows=int(clips or 0),
            hours=seconds / 3600,
        )
        for (name,), (clips, seconds) in counts.items()
    ]
    on_hub = [source.path for source in sources if "://" not in source.path and not looks_local(source.path)]
    return DataUsed(tuple(found), tuple(dict.fromkeys(on_hub)), tuple(dict.fromkeys(languages)))


def read_metadata(path: Path) -> tuple[str | None, list[str]]:
    """Licence and language codes of a card's metadata; nothing where it has none that can be read."""
    try:
        metadata = DatasetCard(path.read_text(encoding="utf-8"), ignore_metadata_errors=True).data
    except (ValueError, TypeError, yaml.YAMLError):
        return None, []
    license, name = metadata.license, metadata.get("license_name")
    license = license[0] if isinstance(license, list) and len(license) == 1 else license
    if license == "other" and name:
        license = str(name)
    spoken = metadata.language or []
    codes = [iso_code(str(each)) for each in ([spoken] if isinstance(spoken, str) else spoken)]
    return license if isinstance(license, str) else None, [code for code in codes if code]


__all__ = ["NONE", "DataUsed", "data_used", "read_comment", "read_metadata"]
