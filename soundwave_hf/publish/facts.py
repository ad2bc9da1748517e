"""What a model card says, read from recipes, logs and score files. Nothing is typed in."""

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..data.licenses import check_license
from ..data.used import DataUsed, read_metadata
from ..evaluation.scoring import Scores
from ..modeling.decoding_soundwave import DEFAULT_BEAMS, SEARCH_OPTIONS
from ..modeling.folders_soundwave import is_hub_name
from .runs import Run, read_json


SCORES = "evaluation.json"  # read from a folder where it is there


@dataclass(frozen=True)
class ScoreFile:
    """What `soundwave-hf evaluate --output` wrote.

    Args:
        weights (`str`): name of what was scored, without folders of a machine.
        digest (`str`, *optional*): `model_digest` of these weights; older files have none.
        defaults (`dict`, *optional*): what their generation config set; older files have none.
        generate (`dict`): options that were given to the command, and go before the defaults.
        sets (`dict[str, Scores]`), on_hub (`dict[str, dict]`): scores by set; where a set comes from, if the Hub.
    """

    weights: str
    metric: str
    language: str
    sets: Mapping[str, Scores]
    on_hub: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    generate: Mapping = field(default_factory=dict)
    ctc_only: bool = False
    digest: str | None = None
    defaults: Mapping | None = None

    @property
    def settings(self) -> dict:
        """The options of `generate` that made the texts: the defaults that hold, and what was given."""
        defaults = dict(self.defaults or {})
        if self.generate.keys() & set(SEARCH_OPTIONS) or self.generate.get("ctc_weight") == 0:
            defaults.pop(DEFAULT_BEAMS, None)
        return defaults | dict(self.generate)

    @property
    def decoding(self) -> str:
        """What made the texts, if it is not the LLM as it decodes by default."""
        settings = [f"{key}: {value}" for key, value in self.settings.items()]
        return ", ".join([*(["CTC head alone"] if self.ctc_only else []), *settings])


@dataclass(frozen=True)
class ModelFacts:
    """All that a card needs.

    Args:
        kind (`str`): "whole", "lora" (adapters and LoRA) or "align" (adapters of stage I).
        encoder, llm (`str`): backbones, by hub name or folder.
        name (`str`, *optional*): of the repository, `user/model`.
        license (`str`, *optional*): of the weights. licenses: of data sources and backbones, by name.
        has_plot (`bool`): whether `training.png` is beside the card.
        has_own (`bool`): whether the user's own text is on the same page. own (`dict`): the user's own metadata.
    """

    kind: str
    encoder: str
    llm: str
    name: str | None = None
    runs: Sequence[Run] = ()
    data: DataUsed = DataUsed()
    scores: Sequence[ScoreFile] = ()
    license: str | None = None
    licenses: Mapping[str, str] = field(default_factory=dict)
    has_plot: bool = False
    has_own: bool = False
    own: Mapping = field(default_factory=dict)


def on_hub(name: str) -> bool:
    """Whether a backbone's name is one of the Hub, and no folder of this machine."""
    return is_hub_name(name) and not os.path.isdir(name)


# ---- scores ----


def read_scores(path: str | os.PathLike) -> ScoreFile:
    """A file of `soundwave-hf evaluate --output`.

    Raises: `FileNotFoundError`; `ValueError` if the file is another one, or a figure in it cannot be right.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file `{path}`: write it with `soundwave-hf evaluate --output {path}`.")
    values = read_json(path)
    wrong = f"`{path}` is not a score file: write it with `soundwave-hf evaluate --output FILE`."
    if not isinstance(values.get("sets"), dict) or not values["sets"] or "weights" not in values:
        raise ValueError(wrong)
    return ScoreFile(
        weights=Path(str(values["weights"])).name if os.path.isabs(str(values["weights"])) else str(values["weights"]),
        metric=values.get("metric", "wer"),
        language=values.get("language", "en"),
        sets={name: _read_set(path, name, found, wrong) for name, found in values["sets"].items()},
        on_hub=values.get("data") or {},
        generate=values.get("generate") or {},
        ctc_only=bool(values.get("ctc_only")),
        digest=values.get("weights_digest"),
        defaults=values.get("generation_config"),
    )


def _read_set(path: Path, name: str, values, wrong: str) -> Scores:
    known = {each.name for each in dataclasses.fields(Scores)}
    if not isinstance(values, dict) or not {"clips", "audio_seconds"} <= values.keys() <= known:
        raise ValueError(wrong)
    scores = Scores(**values)
    for key, value in values.items():
        is_number = isinstance(value, int | float)
        if is_number and (not math.isfinite(value) or value < 0):
            raise ValueError(f"`{key}` of the set `{name}` in `{path}` is {value}; expected a number from 0 up.")
        if key.endswith("_interval"):
            low, high = value
            setattr(scores, key, (float(low), float(high)))
    return scores


def read_all_scores(paths: Sequence[str | os.PathLike]) -> list[ScoreFile]:
    """Several score files. Raises: `ValueError` if a set is in two of them with the same settings."""
    files = [read_scores(path) for path in paths]
    seen: dict[str, str] = {}
    for path, file in zip(paths, files, strict=True):
        for name in file.sets:
            key = json.dumps([name, file.ctc_only, file.settings], sort_keys=True)
            if key in seen:
                raise ValueError(f"The set `{name}` is in `{seen[key]}` and in `{path}`: leave one of them out.")
            seen[key] = str(path)
    return files


# ---- data and licences ----


def read_data_card(path: str | os.PathLike) -> DataUsed:
    """What a dataset card says: a `README.md`, or a folder that has one.

    Raises: `FileNotFoundError`.
    """
    from ..data.card import CARD, DataSource, kept_facts

    path = Path(path)
    card = path / CARD if path.is_dir() else path
    if not card.is_file():
        raise FileNotFoundError(f"There is no dataset card `{card}`: `soundwave-hf data card FOLDER` writes one.")
    license, languages = read_metadata(card)
    kept = kept_facts(card.parent)
    sources = (kept.sources if kept else ()) or (DataSource(card.resolve().parent.name, license=license),)
    return DataUsed(sources, languages=tuple(languages))


def with_licenses(facts: ModelFacts, licenses: Mapping[str, str] | str | None) -> ModelFacts:
    """Facts with licences of data sources and backbones by name, or one for all data.

    Raises: `ValueError` for a name that is neither, and for a misspelt id.
    """
    if licenses is None:
        return facts
    sources = [source.name for source in facts.data.sources]
    if isinstance(licenses, str):
        licenses = dict.fromkeys(sources, licenses)
        if not sources:
            raise ValueError("There is one licence for all data, and no data is known: name the run, `--run FOLDER`.")
    if not isinstance(licenses, Mapping) or not all(isinstance(value, str) for value in licenses.values()):
        raise ValueError(f"The licences are {licenses!r}; give one licence, or `{{name: licence}}`.")
    known = [*sources, *facts.data.datasets, facts.encoder, facts.llm]
    if unknown := sorted(set(licenses) - set(known)):
        raise ValueError(f"There are licences for {unknown}; the data and backbones of this model are {known}.")
    for name, license in licenses.items():
        check_license(license, name)
    return dataclasses.replace(facts, data=facts.data.with_licenses(licenses), licenses=dict(licenses))


__all__ = [
    "SCORES",
    "ModelFacts",
    "ScoreFile",
    "on_hub",
    "read_all_scores",
    "read_data_card",
    "read_scores",
    "with_licenses",
]
