"""Scores as tables, as JSON, and as one line a clip."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from ..atomic import atomic_file
from .metrics import edits_by_clip
from .scoring import UNIT_OF, ClipScore, Scores
from .transcribe import Result


def percent(value: float | None) -> str | None:
    return None if value is None else f"{100 * value:.1f}"


def percent_interval(bounds: tuple[float, float] | None) -> str | None:
    return None if bounds is None else f"{100 * bounds[0]:.1f} to {100 * bounds[1]:.1f}"


def number(value: float | None, digits: int) -> str | None:
    return None if value is None else f"{value:.{digits}f}"


def number_interval(bounds: tuple[float, float] | None, digits: int) -> str | None:
    return None if bounds is None else f"{bounds[0]:.{digits}f} to {bounds[1]:.{digits}f}"


def columns_of(metric: str) -> dict[str, Callable[[Scores], str | None]]:
    """Headings of the table and their values; the main metric comes first. `None` means no value."""
    name, other = (metric, "cer") if metric == "wer" else (metric, "wer")
    head, second = name.upper(), other.upper()
    return {
        "clips": lambda row: str(row.clips),
        "seconds": lambda row: number(row.audio_seconds, 0),
        f"{head} %": lambda row: percent(getattr(row, name)),
        f"{head} 95 %": lambda row: percent_interval(getattr(row, f"{name}_interval")),
        f"{head} as written %": lambda row: percent(getattr(row, f"written_{name}")),
        f"{second} %": lambda row: percent(getattr(row, other)),
        "answers": lambda row: str(row.answers) if row.answers else None,
        "exact match %": lambda row: percent(row.exact_match),
        "exact match 95 %": lambda row: percent_interval(row.exact_match_interval),
        "contained answer %": lambda row: percent(row.contained_answer),
        f"CTC head {head} %": lambda row: percent(getattr(row, f"ctc_{name}")),
        "positions a second": lambda row: number(row.positions_per_second, 2),
        "positions 95 %": lambda row: number_interval(row.positions_per_second_interval, 2),
        f"Whisper {head} %": lambda row: percent(getattr(row, f"whisper_{name}")),
        "seconds taken": lambda row: number(row.seconds_taken, 0),
        "not scored": lambda row: str(len(row.failures)) if row.failures else None,
    }


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str | None]]) -> str:
    """A Markdown table; columns without any value are left out."""
    kept = [place for place, _ in enumerate(headings) if any(row[place] is not None for row in rows)]
    lines = [[headings[place] for place in kept], *([row[place] or "" for place in kept] for row in rows)]
    lines = ["| " + " | ".join(cells) + " |" for cells in lines]
    return "\n".join([lines[0], "|" + "---|" * len(kept), *lines[1:]])


def score_table(scores: dict[str, Scores], metric: str = "wer") -> str:
    """Scores as a Markdown table, one set a row."""
    columns = columns_of(metric)
    rows = [[name, *(value(row) for value in columns.values())] for name, row in scores.items()]
    return markdown_table(["set", *columns], rows)


def error_table(scores: dict[str, Scores], metric: str = "wer") -> str | None:
    """Kinds of errors as a Markdown table, one set a row; `None` if no set has transcripts."""
    unit = UNIT_OF[metric]
    kinds = ("substitutions", "deletions", "insertions", unit)
    counts = {name: getattr(row, f"{unit.removesuffix('s')}_errors") for name, row in scores.items()}
    rows = [[name, *(str(found[kind]) for kind in kinds)] for name, found in counts.items() if found]
    return markdown_table(["set", *kinds], rows) if rows else None


def comparison_table(scores: dict[str, Scores], name: str, other_name: str) -> str:
    """Two systems on the same clips as a Markdown table, one figure a row."""
    headings = ["set", "figure", "clips", f"{name} %", f"{other_name} %", "difference", "95 %", "p"]
    headings += ["clips better", "clips worse"]
    rows = [
        [
            set_name,
            found["metric"].replace("_", " ").replace("wer", "WER").replace("cer", "CER"),
            str(found["clips"]),
            percent(found["value"]),
            percent(found["other_value"]),
            f"{100 * found['difference']:+.1f}",
            percent_interval(found["difference_interval"]),
            f"{found['p_value']:.4f}",
            str(found["clips_better"]),
            str(found["clips_worse"]),
        ]
        for set_name, row in scores.items()
        for found in (row.comparison or {}).get("figures", [])
    ]
    return markdown_table(headings, rows) if rows else "Too few clips to compare: two or more are needed."


def write_report(path: str | Path, header: dict, scores: dict[str, Scores]):
    """Write a JSON file: what was scored, and the scores of each set, without empty ones."""
    sets = {
        name: {key: value for key, value in asdict(row).items() if value is not None} for name, row in scores.items()
    }
    with atomic_file(path) as part:
        text = json.dumps({**header, "sets": sets}, indent=2, ensure_ascii=False)
        part.write_text(text + "\n", encoding="utf-8")


# ---- one line a clip ----


def clip_line(set_name: str, result: Result, clip: ClipScore | None) -> dict:
    """Reference and text of a clip, its error counts, and the words that differ."""
    request = result.request
    line = {"set": set_name, "row": request.row, "audio": request.audio_name}
    if request.is_answer:
        line["question"] = request.question
    line |= {"reference": request.reference, "text": result.text}
    if clip is None:
        return line | {"failure": result.failure}
    line |= {"ctc_text": result.ctc_text, "positions": result.num_positions, "seconds": round(request.seconds, 3)}
    if request.is_answer:
        line |= {"exact": clip.exact, "contained": clip.contained}
    line |= {
        "words": clip.words.reference_length,
        "word_errors": clip.words.errors,
        "characters": clip.characters.reference_length,
        "character_errors": clip.characters.errors,
        "word_errors_as_written": clip.written_words.errors,
        "edits": [asdict(edit) for edit in clip.edits],
    }
    return line if result.finished else line | {"finished": False}


def other_columns(result: Result, other_text: str, other: ClipScore, language: str | None) -> dict:
    """Text and errors of another system on the clip, and the edits that turn its text into this one."""
    ((_, edits),) = edits_by_clip([other_text], [result.text], "words", language)
    return {
        "other_text": other_text,
        "other_word_errors": other.words.errors,
        "other_character_errors": other.characters.errors,
        "differs_from_other": [{"other": edit.reference, "text": edit.hypothesis} for edit in edits],
    }


def read_lines(path: str | Path) -> dict[str, dict[int, dict]]:
    """Read the lines of an earlier run: for each set, the rows that have a text.

    Raises: ValueError if a line is not in that format.
    """
    sets: dict[str, dict[int, dict]] = {}
    with open(path, encoding="utf-8") as file:
        for count, text in enumerate(file, start=1):
            line = _read_line(text, f"{path}, line {count}")
            rows = sets.setdefault(line["set"], {})
            # Files of earlier versions have no row numbers; their rows are complete and in order.
            place = line.get("row", len(rows))
            if place in rows:
                raise ValueError(f"{path}, line {count}: row {place} of the set `{line['set']}` is there twice.")
            rows[place] = line
    if not sets:
        raise ValueError(f"{path} is empty; expected the lines that `--transcripts` wrote.")
    return {name: {row: line for row, line in rows.items() if line["text"] is not None} for name, rows in sets.items()}


def _read_line(text: str, where: str) -> dict:
    try:
        line = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not JSON ({error}); expected the lines that `--transcripts` wrote.") from error
    missing = [key for key in ("set", "reference", "text") if not isinstance(line, dict) or key not in line]
    if missing:
        raise ValueError(f"{where} has no {', '.join(missing)}; expected the lines that `--transcripts` wrote.")
    return line
