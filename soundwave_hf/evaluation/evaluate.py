"""`soundwave-hf evaluate`: score one system, or compare two, on the validation sets or on any data."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ..adapters import resolve_adapter
from ..atomic import refuse_output
from ..data.backbones import resolve_backbone
from ..data.locate import files_of
from ..data.manifest import write_rows
from ..modeling.backbones_soundwave import as_dtype
from ..modeling.configuration_soundwave import SoundwaveConfig
from ..modeling.folders_soundwave import choose_backbones, model_digest, peft_base, trained_backbone
from ..modeling.loading_soundwave import as_device, take_adapter
from ..paths import checkpoint_named, find_weights
from ..transcribe import TranscribeOptions, try_options
from .generate_options import check_generate, default_options
from .metrics import main_metric, scoring_language
from .reporting import (
    clip_line,
    comparison_table,
    error_table,
    other_columns,
    read_lines,
    score_table,
    write_report,
)
from .scoring import (
    UNIT_OF,
    ClipScore,
    Scores,
    add_whisper_scores,
    compare_clips,
    score_clips,
    score_results,
)
from .sets import SETS, holds_rows, hub_sets, named_sources, open_sets, read_clips, read_set
from .shipped import ADAPTER, ENCODER, load_weights
from .transcribe import (
    MAX_NEW_TOKENS,
    Result,
    System,
    Transcripts,
    ask,
    batches_of_like_length,
    check_batch_size,
    check_max_new_tokens,
    conversation,
    ctc_transcribe,
    hear,
    model_system,
    run_rows,
    transcribe,
    whisper_baseline,
    whisper_system,
)


# ---- systems ----


@dataclass(frozen=True)
class Options:
    """How sets are transcribed and scored."""

    batch_size: int = 8  # clips
    ctc: bool = False  # only the CTC head, without the LLM
    language: str | None = None  # of the speech; English by default
    metric: str | None = None  # `wer` or `cer`; the language decides by default
    max_new_tokens: int = MAX_NEW_TOKENS  # for each 30 s of the clips
    device: str | None = None  # the CPU by default
    dtype: str | None = None  # by default float32 for adapters, and a checkpoint's own dtype
    generate: Mapping[str, Any] | None = None  # options of `generate`; by default the model's, or greedy

    def __post_init__(self):
        check_batch_size(self.batch_size)
        check_generate(self.generate or {})
        if self.ctc and self.generate:
            raise ValueError(f"`generate` is {self.generate}, and the CTC head alone does not use it: leave one out.")
        object.__setattr__(self, "metric", self.metric or main_metric(self.language))
        if self.metric not in UNIT_OF:
            raise ValueError(f"The metric is `{self.metric}`; expected `wer` or `cer`.")
        check_max_new_tokens(self.max_new_tokens)
        as_device(self.device or "cpu")
        as_dtype(self.dtype)


def load_system(name: str, is_adapter: bool, options: Options, **backbones) -> System:
    """Load a model by folder or hub name: adapters, merged into their backbones, or a whole model.

    Args: backbones: `encoder`, `llm` and `allow_other_backbones`, as in `load_adapter`.
    """
    loaded = load_weights(name, is_adapter, options.ctc, options.device, options.dtype, **backbones)
    if options.generate:
        try_options(*loaded, TranscribeOptions(options.language, generate=options.generate))
    return model_system(*loaded, options.ctc, options.max_new_tokens, options.language, options.generate)


def whisper_of(folder: str) -> str:
    """Name of the Whisper that the encoder comes from, by the config of adapters or a model; else the shipped one."""
    return trained_backbone(folder, "encoder").name or ENCODER


def find_model(name: str) -> tuple[str, bool]:
    """Folder or hub name of a model for `load_system`, and whether it holds adapters. No weights are read.

    Raises: FileNotFoundError if there is no such model, or a backbone of it is missing; ValueError for another model.
    """
    folder = find_weights(os.path.expanduser(name))
    base = peft_base(folder)
    if base is None and (adapter := take_adapter(folder, {})) is not None:
        choose_backbones(adapter)
        return folder, True
    with checkpoint_named(folder):
        SoundwaveConfig.from_pretrained(base or folder)
    return folder, False


def find_whisper(name: str, options: Options) -> Callable[[], System]:
    """Find a Whisper by name. Returns: a function that loads it."""
    return partial(whisper_system, resolve_backbone(name), options.language, options.device or "cpu")


def transcribe_sets(
    load: Callable[[], System], sets: dict[str, Iterable[dict]], options: Options, label: str = ""
) -> Iterator[tuple[str, list[Result], float]]:
    """Name, results of one system, and the seconds it took, for each set. The system is freed afterwards."""
    system = load()
    for name, rows in sets.items():
        yield name, *run_rows(system, rows, options.batch_size, f"{label}{name}", options.ctc)


# ---- one set ----


@dataclass
class SetResult:
    """Results and scores of one system on one set."""

    results: list[Result]
    scores: Scores
    by_row: dict[int, ClipScore]
    whisper_texts: dict[int, str | None] = field(default_factory=dict)
    other: dict[int, tuple[str, ClipScore]] = field(default_factory=dict)  # texts of the other system


def score_set(results: list[Result], seconds: float, language: str | None) -> SetResult:
    return SetResult(results, *score_results(results, seconds, language))


def add_whisper(found: SetResult, whisper: list[Result], language: str | None):
    """Add texts and rates of Whisper itself."""
    found.whisper_texts = {result.request.row: result.text for result in whisper}
    add_whisper_scores(found.scores, found.by_row, whisper, language)


def evaluate_set(
    model, processor, rows: Iterable[dict], batch_size: int = 8, language: str | None = None, ctc: bool = False
) -> Scores:
    """Transcribe and score one set with a loaded model; rows as in `read_request`."""
    system = model_system(model, processor, ctc, language=language)
    return score_results(*run_rows(system, rows, batch_size, "transcribing", ctc), language)[0]


def lines_of(name: str, found: SetResult, with_whisper: bool, language: str | None) -> list[dict]:
    """One line a row, in order."""
    lines = []
    for result in found.results:
        row = result.request.row
        line = clip_line(name, result, found.by_row.get(row))
        if with_whisper:
            line["whisper_text"] = found.whisper_texts.get(row)
        if row in found.other:
            line |= other_columns(result, *found.other[row], language)
        lines.append(line)
    return lines


# ---- two systems ----


def find_other(against: str, sets: dict[str, Iterable[dict]], options: Options) -> Callable[[], dict]:
    """Find a second system. Returns: a function that gives its lines, by set and row.

    Args: against: lines of an earlier run, or adapters or a whole model, which the function runs.
    Raises: FileNotFoundError if it is neither; ValueError if the file lacks a set.
    """
    if Path(against).is_file():
        lines = earlier_lines(against, sets)
        return lambda: lines
    try:
        load = partial(load_system, *find_model(against), options)
    except FileNotFoundError as error:
        if os.path.isdir(against):
            raise
        raise FileNotFoundError(f"`--against` is `{against}`, and no file has this name. {error}") from error
    return partial(lines_of_system, load, sets, options, f"{Path(against).name} on ")


def earlier_lines(path: str, sets: Iterable[str]) -> dict[str, dict[int, dict]]:
    """Lines of a file from an earlier run, by set and row.

    Raises: ValueError if the file lacks a set.
    """
    lines = read_lines(path)
    missing = [name for name in sets if name not in lines]
    if missing:
        raise ValueError(
            f"`{path}` has the sets {', '.join(lines)} and lacks {', '.join(missing)}: score the same sets in both "
            "runs, under the same names (`--data NAME=SOURCE`)."
        )
    return lines


def lines_of_system(
    load: Callable[[], System], sets: dict[str, Iterable[dict]], options: Options, label: str
) -> dict[str, dict[int, dict]]:
    """The same lines as `earlier_lines`, from a model that is run now."""
    return {
        name: {r.request.row: {"reference": r.request.reference, "text": r.text} for r in results if not r.failure}
        for name, results, _ in transcribe_sets(load, sets, options, label)
    }


def compare_set(name: str, found: SetResult, lines: dict[int, dict], options: Options):
    """Compare with another system on the rows for which both have a text.

    Raises: ValueError if the references differ.
    """
    both = [result for result in found.results if result.failure is None and result.request.row in lines]
    for result in both:
        there = lines[result.request.row]["reference"]
        if there != result.request.reference:
            raise ValueError(
                f"Row {result.request.row} of the set `{name}` has the reference `{result.request.reference}` here "
                f"and `{there}` in the other system: the two were scored on different data."
            )
    texts = [lines[result.request.row]["text"] for result in both]
    clips = score_clips([result.request.reference for result in both], texts, options.language)
    found.other = {result.request.row: (text, clip) for result, text, clip in zip(both, texts, clips, strict=True)}
    figures = [compare_kind(found, both, is_answer, options.metric) for is_answer in (False, True)]
    found.scores.comparison = {
        "rows_of_one_system_only": len(found.by_row.keys() ^ lines.keys()),
        "figures": [figure for figure in figures if figure],
    }


def compare_kind(found: SetResult, both: list[Result], is_answer: bool, metric: str) -> dict | None:
    """Compare the transcripts, or the answers, of the two systems."""
    rows = [result.request.row for result in both if result.request.is_answer == is_answer]
    return compare_clips([found.by_row[row] for row in rows], [found.other[row][1] for row in rows], is_answer, metric)


# ---- the command ----


def run_evaluation(
    sets: str | Sequence[str] | None = None,
    checkpoint: str | None = None,
    adapter: str | Path | None = None,
    encoder: str | None = None,
    llm: str | None = None,
    with_baseline: bool = False,
    batch_size: int = 8,
    output: str | None = None,
    transcripts: str | None = None,
    ctc: bool = False,
    allow_other_backbones: bool = False,
    data: str | Sequence[str] | Mapping[str, object] = (),
    columns: dict[str, str] | None = None,
    against: str | None = None,
    **options,
) -> dict[str, Scores]:
    """Score a checkpoint, or adapters on their backbones (by default the shipped ones); print tables.

    Args:
        sets: validation sets; all of them by default, or none if there is `data`.
        data: any sources, `SOURCE` or `NAME=SOURCE` each, or rows by name. columns: `their_name: our_name`.
        encoder, llm, allow_other_backbones: backbones of `adapter`; by default those that its config names.
        with_baseline: whether to transcribe the same clips with the Whisper that the encoder comes from.
        ctc: whether to score only the CTC head, without the LLM.
        against: a second system on the same rows: adapters, a merged model, a hub name, or lines of an earlier run.
        output: JSON file for the scores. transcripts: JSON-lines file for the text of each clip.
        options: the other fields of `Options`: `language`, `metric`, `device`, `dtype`, `max_new_tokens`.
    Raises: FileNotFoundError if another system is not found, before the first clip; ValueError that names the rows
    that could not be scored, and the error of a set or another system, after all scores were printed and written.
    """
    options = Options(batch_size, ctc, **options)
    refuse_outputs(output, transcripts, against, data)
    rows = open_sets(SETS if sets is None and not data else sets or (), data, columns)
    folder = checkpoint or adapter or ADAPTER
    backbones = {"encoder": encoder, "llm": llm, "allow_other_backbones": allow_other_backbones}
    load = partial(load_system, folder, not checkpoint, options, **backbones)
    whisper = (encoder or whisper_of(checkpoint or resolve_adapter(folder))) if with_baseline else None
    # Other systems are found before the first one runs, so that a bad name fails at once.
    load_whisper = find_whisper(whisper, options) if with_baseline else None
    other_lines = find_other(against, rows, options) if against is not None else None
    scored: dict[str, SetResult] = {}
    try:
        score_systems(scored, rows, options, load, load_whisper, other_lines)
    finally:  # if a set or another system fails, the scores until then are not lost
        name, scores = str(checkpoint or adapter or ADAPTER.name), {key: one.scores for key, one in scored.items()}
        if scores:
            print(summary(scores, options, name, against))
        if scores and transcripts:
            found_lines = [lines_of(key, one, with_baseline, options.language) for key, one in scored.items()]
            write_rows(Path(transcripts), [line for lines in found_lines for line in lines])
        if scores and output:
            header = report_header(str(checkpoint or resolve_adapter(folder)), options, whisper, against, data)
            write_report(output, {"weights": name, **header}, scores)
    refuse_failures(scores)
    return scores


def score_systems(
    scored: dict[str, SetResult],
    rows: dict[str, Iterable[dict]],
    options: Options,
    load: Callable[[], System],
    load_whisper: Callable[[], System] | None,
    other_lines: Callable[[], dict] | None,
):
    """Run the systems, one after another, and put what is known of each set into `scored`."""
    for key, results, seconds in transcribe_sets(load, rows, options):
        scored[key] = score_set(results, seconds, options.language)
    if load_whisper:
        for key, results, _ in transcribe_sets(load_whisper, rows, options, "Whisper itself on "):
            add_whisper(scored[key], results, options.language)
    if other_lines:
        lines = other_lines()
        for key, found in scored.items():
            compare_set(key, found, lines[key], options)


def refuse_outputs(output: str | None, transcripts: str | None, against: str | None, data):
    """Refuse files that cannot be written, or would overwrite what is read or each other, before clips are read."""
    if not (output or transcripts):
        return
    inputs = [file for source in named_sources(data).values() if not holds_rows(source) for file in files_of(source)]
    inputs += [against] if against is not None and os.path.isfile(against) else []
    for option, path, endings in (
        ("--output", output, (".json",)),
        ("--transcripts", transcripts, (".jsonl", ".json")),
    ):
        if path:
            refuse_output(path, option, inputs)
            if Path(path).suffix not in endings:
                raise ValueError(f"`{option}` is `{path}`; give a file that ends in {endings[0]}, which it holds.")
    if output and transcripts and os.path.realpath(output) == os.path.realpath(transcripts):
        raise ValueError(f"`--output` and `--transcripts` are both `{output}`: give two files.")


def report_header(place: str, options: Options, whisper: str | None, against: str | None, data=()) -> dict:
    """Settings of the model in the folder `place`, of the evaluation, and data sets of the hub, for the JSON file."""
    header = {
        "weights_digest": model_digest(place) if os.path.isdir(place) else None,  # of a hub name: not known
        "generation_config": None if options.ctc else default_options(place),
        "metric": options.metric,
        "language": scoring_language(options.language),
        "whisper": whisper,
        "against": against,
        "ctc_only": options.ctc or None,
        "generate": dict(options.generate) if options.generate else None,
        "data": hub_sets(data) or None,
    }
    return {key: value for key, value in header.items() if value is not None}


def summary(scores: dict[str, Scores], options: Options, name: str, against: str | None) -> str:
    """The text that the command prints."""
    parts = [score_table(scores, options.metric), error_table(scores, options.metric)]
    compared = {key: row for key, row in scores.items() if row.comparison}
    if compared:
        parts.append(comparison_table(compared, Path(name).name, Path(against).name))
    for key, row in compared.items():
        if row.comparison["rows_of_one_system_only"]:
            parts.append(f"{key}: {row.comparison['rows_of_one_system_only']} rows have a text of one system only.")
    seconds = (options.generate or {}).get("max_time")
    clock = "" if seconds is None else f"{seconds:g} s for each batch, or "
    for key, row in scores.items():
        if row.unfinished:
            parts.append(
                f"{key}: {row.unfinished} texts were cut off at {clock}{options.max_new_tokens} tokens for each 30 s "
                "of speech: raise `--max-new-tokens`, unless they repeat themselves."
            )
        if row.whisper_failures:
            first = row.whisper_failures[0]
            parts.append(
                f"{key}: clips that Whisper could not transcribe: {len(row.whisper_failures)}. Its rate is left out. "
                f"Row {first['row']}: {first['reason']}"
            )
    return "\n\n".join(filter(None, parts))


def refuse_failures(scores: dict[str, Scores]):
    """Raises: ValueError that names the rows that could not be scored."""
    failed = [(name, failure) for name, row in scores.items() for failure in row.failures]
    if not failed:
        return
    named = []
    for name, failure in failed:
        file = f" ({failure['audio']})" if failure["audio"] else ""
        named.append(f"  {name}, row {failure['row']}{file}: {failure['reason']}")
    raise ValueError("\n".join([f"{len(failed)} rows could not be scored and are not part of the scores:", *named]))


__all__ = [
    "SETS",
    "Options",
    "Scores",
    "Transcripts",
    "ask",
    "batches_of_like_length",
    "conversation",
    "ctc_transcribe",
    "evaluate_set",
    "hear",
    "read_clips",
    "read_set",
    "run_evaluation",
    "score_table",
    "transcribe",
    "whisper_baseline",
]
