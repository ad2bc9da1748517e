"""The card of a prepared set: `README.md` in the form of the hub's dataset cards. Every figure is counted."""

import dataclasses
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import DatasetCard, DatasetCardData

from ..atomic import atomic_file
from ..json_files import read_json_object
from ..publish.card_parts import Card, read_card
from ..secret_values import refuse_secrets
from .licenses import check_license, is_non_commercial, license_fields
from .prepared import Part, files_digest, find_parts, read_report
from .stats import DataStats, collect_stats


# A hidden file is taken for data by nothing that reads the folder. Earlier versions wrote `card.json`.
CARD, FACTS, OLD_FACTS = "README.md", ".card.json", "card.json"
MARK = "<!-- written by `soundwave-hf data card`; it is written again when the data change -->"
SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B", "1B<n<10B")
SIZES += ("10B<n<100B", "100B<n<1T", "n>1T")
NONE = "-"  # rows without `source`


def count_rows(
    rows: Iterable[dict], columns: tuple[str, ...] = ("source", "voice")
) -> dict[tuple[str, ...], tuple[int, float]]:
    """Clips and seconds by the values of these columns."""
    counts: dict[tuple[str, ...], list[float]] = defaultdict(lambda: [0, 0.0])
    for line in rows:
        entry = counts[tuple(line[column] for column in columns)]
        entry[0] += 1
        entry[1] += line["seconds"]
    return {key: (int(clips), seconds) for key, (clips, seconds) in sorted(counts.items())}


@dataclass(frozen=True)
class DataSource:
    """Where rows come from.

    Args:
        name (`str`): their `source`; `-` for rows without one.
        license (`str`, *optional*): an id of the hub (`cc-by-4.0`), or a name.
        url (`str`, *optional*).
        rows (`int`), hours (`float`): counted by `write_card`.
    """

    name: str
    license: str | None = None
    url: str | None = None
    rows: int = 0
    hours: float = 0.0


@dataclass(frozen=True)
class CardFacts:
    """What a card says beside the counts of the rows.

    Args:
        title (`str`, *optional*): by default the folder's name.
        sources (`Sequence[DataSource]`): licences and addresses of the rows' sources.
        dropped (`Mapping[str, int]`): rows that each filter left out. A row may count for several.
        rows_before (`int`, *optional*): rows before the filters.
        seed (`int`, *optional*), versions (`Mapping[str, str]`): of the programs that made the rows.
        made_by (`str`, *optional*): the command.
    """

    title: str | None = None
    sources: Sequence[DataSource] = ()
    dropped: Mapping[str, int] = field(default_factory=dict)
    rows_before: int | None = None
    seed: int | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    made_by: str | None = None

    def with_licenses(self, licenses: Mapping[str, "str | Mapping"] | str | None) -> "CardFacts":
        """These facts with other licences: one for all sources, or `{source: id}`, `{source: {license, url}}`.

        Raises: `ValueError` for another form.
        """
        if licenses is None:
            return self
        if isinstance(licenses, str):
            return dataclasses.replace(self, sources=(DataSource("*", licenses),))
        if not isinstance(licenses, Mapping):
            raise ValueError(f"`--licenses` is {licenses!r}; give a licence, or `{{source: licence}}`.")
        known = {source.name: source for source in self.sources}
        for name, value in licenses.items():
            entry = {"license": value} if isinstance(value, str) else value
            if not isinstance(entry, Mapping) or entry.keys() - {"license", "url"}:
                raise ValueError(f"`--licenses` has {value!r} for `{name}`; give a licence, or {{license, url}}.")
            known[str(name)] = DataSource(str(name), **entry)
        return dataclasses.replace(self, sources=tuple(known.values()))


def read_facts(folder: str | os.PathLike) -> CardFacts:
    """What is known of a folder's rows: the facts of its last card, and the report of `data clean`."""
    facts, report = kept_facts(folder) or CardFacts(), read_report(folder)
    return report_facts(report, facts) if report else facts


def kept_facts(folder: str | os.PathLike) -> CardFacts | None:
    """The facts of a folder's last card; None if no card was written there.

    Raises: `ValueError` for a file that was changed to another form.
    """
    path = Path(folder) / FACTS
    return _facts_in(path) if path.is_file() else _old_facts(folder)


def _old_facts(folder: str | os.PathLike) -> CardFacts | None:
    """The facts that an earlier version wrote. `card.json` may also be data of the user."""
    try:
        return _facts_in(Path(folder) / OLD_FACTS)
    except (OSError, ValueError):
        return None


def _facts_in(path: Path) -> CardFacts:
    values = read_json_object(path, "move it away, and write the card again", needed=("sources",))
    try:
        return CardFacts(**values | {"sources": tuple(DataSource(**source) for source in values["sources"])})
    except TypeError as error:
        raise ValueError(f"`{path}` is not what `soundwave-hf data card` writes ({error}): move it away.") from error


def report_facts(report: Mapping, facts: CardFacts) -> CardFacts:
    """Facts with what the report of `data clean` says."""
    return dataclasses.replace(
        facts,
        dropped={line["name"]: line["dropped"] for line in report.get("filters", ()) if line.get("dropped")},
        rows_before=report.get("rows"),
        seed=report.get("seed"),
        versions=_versions_of(report),
        made_by=facts.made_by or "soundwave-hf data clean",
    )


def write_card(folder: str | os.PathLike, facts: CardFacts | None = None) -> Path:
    """Count the rows of a folder and write its card.

    Args: facts: by default what `read_facts` finds. They are kept in `.card.json` for the next time.

    Returns: the path of the card.

    Raises: `ValueError` if the folder holds no rows that can be used, a README.md of another origin, a licence id that
        is misspelt, or a fact that looks like a password.
    """
    folder = Path(folder)
    facts = read_facts(folder) if facts is None else facts
    refuse_secrets(dataclasses.asdict(facts), "the card")
    path = folder / CARD
    parts = find_parts(folder)
    if path.is_file() and not _is_written(read_card(path.read_text(encoding="utf-8"), f"`{path}`")):
        raise ValueError(
            f"`{path}` was not written by `data card`, and would be lost: move it, and add its text later."
        )
    if _old_facts(folder) is not None:  # beside one clip, `load_dataset` takes it for the data
        os.replace(folder / OLD_FACTS, folder / FACTS)
    stats = {part: collect_stats({"path": part.source}) for part in parts}
    facts = dataclasses.replace(facts, sources=_counted(facts.sources, stats.values()))
    with atomic_file(folder / FACTS) as part:
        part.write_text(json.dumps(dataclasses.asdict(facts), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    with atomic_file(path) as part:
        part.write_text(str(_card(folder, facts, stats)), encoding="utf-8")
    return path


def _is_written(card: Card) -> bool:
    """Whether all of a card's text is from here. `data push` marks it, and keeps a user's text around it."""
    return MARK in card.own if card.block is None else MARK in card.block and not card.own


def _counted(sources: Sequence[DataSource], stats: Iterable[DataStats]) -> tuple[DataSource, ...]:
    """The sources that rows have, with their counts and licences.

    Raises: `ValueError` for a source without rows, and a misspelt licence.
    """
    counts: dict[str, list] = {}
    for each in stats:
        for name, (rows, seconds) in each.groups["source"].items():
            entry = counts.setdefault(name, [0, 0.0])
            entry[0] += rows
            entry[1] += seconds / 3600
    named = {source.name: source for source in sources}
    every = named.pop("*", None)
    # Sources of an earlier card have counts, and may be gone; those of the command must be there.
    unknown = sorted(name for name, each in named.items() if name not in counts and each.license and not each.rows)
    if unknown:
        raise ValueError(f"There are licences for {unknown}, and the rows have the sources {sorted(counts)}.")
    for source in sources:
        if source.license:
            check_license(source.license, source.name)
    found = []
    for name, (rows, hours) in sorted(counts.items()):
        base = named.get(name) or every or DataSource(name)
        found.append(dataclasses.replace(base, name=name, rows=rows, hours=hours))
    return tuple(found)


# ---- the text ----


def _card(folder: Path, facts: CardFacts, stats: Mapping[Part, DataStats]) -> DatasetCard:
    title = facts.title or folder.resolve().name
    rows = sum(each.rows for each in stats.values())
    restricted = [source for source in facts.sources if source.license and is_non_commercial(source.license)]
    languages = sorted({language for each in stats.values() for language in each.groups["language"]} - {NONE})
    codes = {language: iso_code(language) for language in languages}
    metadata = DatasetCardData(
        pretty_name=title,
        language=sorted({code for code in codes.values() if code}) or None,
        task_categories=_task_categories(stats.values()),
        size_categories=size_category(rows),
        tags=["audio", "speech", *(["non-commercial"] if restricted else [])],
        configs=configs_of(stats),
        **license_fields([source.license for source in facts.sources]),
    )
    lines = [f"# {title}", "", MARK, "", *_counts(stats), "", *_loading(stats), "", *_sources(facts, restricted)]
    if unnamed := [language for language, code in codes.items() if code is None]:
        lines += ["", f"Languages without a code: {', '.join(unnamed)}."]
    lines += [*_dropped(facts), *_unusable(stats), *_making(facts)]
    return DatasetCard(f"---\n{metadata.to_yaml()}\n---\n\n" + "\n".join(lines) + "\n")


def configs_of(parts: Iterable[Part]) -> list[dict]:
    """`configs` of a card: with them `load_dataset` finds the files of each split.

    `datasets` caches a folder by its last name and these lines. The digest tells two folders of one name apart.
    """
    parts = list(parts)
    about = f"files of rows, sha256 {files_digest(parts)}"
    configs: dict[str, list[dict]] = {}
    for part in parts:
        path = list(part.pattern) if part.is_audio_folder else part.pattern
        configs.setdefault(part.config, []).append({"split": part.split, "path": path})
    return [{"config_name": name, "data_files": files, "description": about} for name, files in configs.items()]


def size_category(rows: int) -> str:
    """The hub's name for a number of rows."""
    limit, place = 1000, 0
    while rows >= limit and place < len(SIZES) - 1:
        limit, place = limit * 10, place + 1
    return SIZES[place]


def iso_code(language: str) -> str | None:
    """The ISO code of a language; None if it is not known."""
    from ..processing.languages_soundwave import language_code

    try:
        code = language_code(language)
    except ValueError:
        return language if len(language) in (2, 3) and language.isalpha() and language.islower() else None
    return {"jw": "jv"}.get(code, code)


def _task_categories(stats: Iterable[DataStats]) -> list[str] | None:
    stats = list(stats)
    kinds = {
        "automatic-speech-recognition": sum(each.transcribed for each in stats),
        "audio-text-to-text": sum(each.asked for each in stats),
        "translation": sum(each.translated for each in stats),
    }
    return [kind for kind, count in kinds.items() if count] or None


def _counts(stats: Mapping[Part, DataStats]) -> list[str]:
    lines = ["| config | split | rows | clips | hours | speakers | longest |", "|---|---|---|---|---|---|---|"]
    for part, each in stats.items():
        longest = each.lengths.summary().get("max", 0.0)
        lines.append(
            f"| {part.config} | {part.split} | {each.rows} | {each.clips} | {each.totals['seconds'] / 3600:.2f} | "
            f"{len(each.speakers) or NONE} | {longest:.1f} s |"
        )
    return lines


def _loading(parts: Iterable[Part]) -> list[str]:
    configs = list(dict.fromkeys(part.config for part in parts))
    name = "" if configs == ["default"] else f', "{configs[0]}"'
    code = [
        "from datasets import load_dataset",
        "",
        "folder = ...  # this repository: a folder, or its name on the Hub",
    ]
    return ["```python", *code, f"data = load_dataset(folder{name})", "```"]


def _sources(facts: CardFacts, restricted: Sequence[DataSource]) -> list[str]:
    lines = ["## Sources", "", "| source | licence | rows | hours | address |", "|---|---|---|---|---|"]
    for source in facts.sources:
        mark = " (non-commercial)" if source in restricted else ""
        name = "not named" if source.name == NONE else source.name
        lines.append(
            f"| {_cell(name)} | {_cell(source.license or 'not stated')}{mark} | {source.rows} | {source.hours:.2f} | "
            f"{_cell(source.url or NONE)} |"
        )
    if restricted:
        names = ", ".join(map(_said_name, restricted))
        lines += ["", f"**Non-commercial:** the licence of {names} forbids commercial use of these rows."]
    if unknown := [_said_name(source) for source in facts.sources if not source.license]:
        lines += ["", f"**No licence is stated** for {', '.join(unknown)}: find it out before you share the data."]
    return lines


def _versions_of(report: Mapping) -> dict[str, str]:
    """The versions that a report of `data clean` names, this package's first."""
    own = {"soundwave_hf": report["soundwave_hf"]} if report.get("soundwave_hf") else {}
    return {name: str(version) for name, version in {**own, **(report.get("versions") or {})}.items()}


def _said_name(source) -> str:
    return "rows that name no source" if source.name == NONE else source.name


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _dropped(facts: CardFacts) -> list[str]:
    if not facts.dropped:
        return []
    before = "" if facts.rows_before is None else f" of {facts.rows_before} rows"
    lines = [
        "",
        "## Left out",
        "",
        f"Rows that each filter or step left out{before}; a row may count for several filters.",
        "",
    ]
    lines += ["| filter or step | rows |", "|---|---|"]
    return lines + [f"| {_cell(name)} | {count} |" for name, count in facts.dropped.items()]


def _unusable(stats: Mapping[Part, DataStats]) -> list[str]:
    count = sum(each.unusable for each in stats.values())
    return (
        ["", f"{count} more rows cannot be used for training; `soundwave-hf data stats` lists them."] if count else []
    )


def _making(facts: CardFacts) -> list[str]:
    lines = [f"Made by `{facts.made_by}`."] if facts.made_by else []
    lines += [f"Seed: {facts.seed}."] if facts.seed is not None else []
    if facts.versions:
        lines.append("Versions: " + ", ".join(f"{name} {version}" for name, version in facts.versions.items()) + ".")
    return ["", "## How it was made", "", *lines] if lines else []


__all__ = [
    "CardFacts",
    "DataSource",
    "configs_of",
    "count_rows",
    "kept_facts",
    "read_facts",
    "report_facts",
    "write_card",
]
