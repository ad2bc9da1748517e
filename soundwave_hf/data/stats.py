"""`soundwave-hf data stats`: what a data set holds, counted in one pass over its rows."""

import json
import math
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from ..atomic import atomic_file
from ..picture import check_matplotlib, new_figure
from .each_row import each_row, is_segment, with_whole_clip
from .lengths import clip_seconds, row_seconds
from .mixture import Mixture
from .rows import RowCheck, check_repeat, clips_of, conversation_of


EDGES = (0, 1, 2, 3, 5, 10, 15, 20, 30, 60, float("inf"))  # seconds, of the histogram
PERCENTILES = (5, 25, 50, 75, 95, 99)
ROWS_AT_ONCE = 256
LISTED = 20  # rows of a table, and reasons, that are shown
GROUPS = ("source", "task", "language")
NONE = "-"  # a row that does not name its source, task or language
FORMATS = (".json", ".png")


class Spread:
    """Percentiles of values, kept as counts of rounded values: the memory does not grow with the values."""

    def __init__(self, step: float):
        self.step, self.counts, self.total = step, Counter(), 0.0
        self.ends = (math.inf, -math.inf)

    def add(self, value: float):
        self.counts[round(value / self.step)] += 1
        self.total += value
        self.ends = (min(self.ends[0], value), max(self.ends[1], value))

    def summary(self) -> dict[str, float]:
        """Mean, smallest, percentiles (by nearest rank) and largest; empty without values."""
        count = self.counts.total()
        if not count:
            return {}
        ascending, passed, found = sorted(self.counts.items()), 0, {}
        for value, times in ascending:
            passed += times
            for percent in PERCENTILES:
                if passed * 100 >= percent * count:
                    found.setdefault(f"p{percent}", min(max(value * self.step, self.ends[0]), self.ends[1]))
        found = {name: round(value, 6) for name, value in found.items()}
        least, most = (round(value, 6) for value in self.ends)
        return {"mean": self.total / count, "min": least, "max": most, **found}


@dataclass
class DataStats:
    """Counts of rows. `add` them, then `report`.

    Args: unit (`str`): of the targets: "tokens", or "characters".
    """

    unit: str = "characters"
    rows: int = 0
    clips: int = 0
    text_rows: int = 0
    transcribed: int = 0  # rows of a clip and its transcript
    translated: int = 0  # rows with `translation`
    asked: int = 0  # rows of a clip with `answer` or `messages`
    lengths: Spread = field(default_factory=lambda: Spread(0.01))
    rates: Spread = field(default_factory=lambda: Spread(0.01))
    histogram: Counter = field(default_factory=Counter)
    seconds_of_bin: Counter = field(default_factory=Counter)
    groups: dict[str, dict[str, list]] = field(default_factory=lambda: {name: {} for name in GROUPS})
    speakers: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    totals: Counter = field(default_factory=Counter)
    task_sizes: Counter = field(default_factory=Counter)
    without_task: str | None = None
    unusable: int = 0
    reasons: list[str] = field(default_factory=list)

    def add(self, row: Mapping, name: str, seconds: float, targets: int, repeat: int = 1):
        """Count a row. Args: seconds: of its clips; targets: tokens or characters that the model writes for it."""
        texts = answers_of(row)
        self.rows += 1
        self.clips += len(clips_of(row))
        for group in GROUPS:
            entry = self.groups[group].setdefault(row.get(group) or NONE, [0, 0.0])
            entry[0] += 1
            entry[1] += seconds
        task = row.get("task") or row.get("source")
        self.task_sizes[task] += repeat
        if task is None:
            self.without_task = self.without_task or name
        if not clips_of(row):
            self.text_rows += 1
            return
        is_asked = row.get("answer") is not None or row.get("messages") is not None
        self.asked += is_asked
        self.transcribed += not is_asked
        self.translated += row.get("translation") is not None
        if row.get("speaker"):
            self.speakers[str(row["speaker"])] += seconds
        self.lengths.add(seconds)
        bin_of = next(index for index in range(len(EDGES) - 1) if seconds < EDGES[index + 1])
        self.histogram[bin_of] += 1
        self.seconds_of_bin[bin_of] += seconds
        self.totals["seconds"] += seconds
        self.totals[self.unit] += targets
        self.totals["words"] += sum(len(text.split()) for text in texts)
        if seconds:
            self.rates.add(targets / seconds)

    def refuse(self, reason: str):
        """Count a row that training cannot use."""
        self.unusable += 1
        if len(self.reasons) < LISTED:
            self.reasons.append(reason)

    def report(self, mixture: Mixture | None = None, epochs: int = 1) -> dict:
        """The counts as JSON values. Raises: `ValueError` for a mixture of rows without `task` and `source`."""
        seconds = self.totals["seconds"]
        bins = [
            {"from": low, "to": None if high == float("inf") else high}
            | {"clips": self.histogram[i], "hours": self.seconds_of_bin[i] / 3600}
            for i, (low, high) in enumerate(zip(EDGES, EDGES[1:], strict=False))
        ]
        return {
            "rows": self.rows,
            "clips": self.clips,
            "hours": seconds / 3600,
            "rows_of_text_alone": self.text_rows,
            "unusable_rows": self.unusable,
            "unusable": self.reasons,
            "seconds": self.lengths.summary(),
            "histogram": bins,
            "speakers": len(self.speakers),
            **{f"{group}s": self._group(group) for group in GROUPS},
            "target_unit": self.unit,
            f"{self.unit}_per_second": self.totals[self.unit] / seconds if seconds else None,
            "words_per_second": self.totals["words"] / seconds if seconds else None,
            f"{self.unit}_per_second_of_rows": self.rates.summary(),
            "mixture": [] if mixture is None else self._shares(mixture, epochs),
        }

    def _group(self, group: str) -> dict[str, dict]:
        by_hours = sorted(self.groups[group].items(), key=lambda item: (-item[1][1], -item[1][0], item[0]))
        return {str(name): {"rows": rows, "hours": seconds / 3600} for name, (rows, seconds) in by_hours}

    def _shares(self, mixture: Mixture, epochs: int) -> list[dict]:
        if self.without_task is not None:
            raise ValueError(
                f"A mixture weighs tasks, and {self.without_task} has neither `task` nor `source`: give each row one."
            )
        tasks = sorted(self.task_sizes)
        sizes = [self.task_sizes[task] for task in tasks]
        return [
            {"epoch": epoch, "temperature": mixture.temperature + mixture.step * epoch}
            | {"shares": dict(zip(tasks, mixture.shares(sizes, epoch).tolist(), strict=True))}
            for epoch in range(epochs)
        ]


def answers_of(row: Mapping) -> list[str]:
    """What the model learns to write for a row: its answers, or the transcript."""
    messages = conversation_of(row, "")
    return [
        "".join(part["text"] for part in message["content"]) for message in messages if message["role"] == "assistant"
    ]


def seconds_of(row: Mapping, name: str) -> float:
    """Length of a row's clips: its `seconds`, or else from the headers.

    Raises: the errors of `clip_seconds`.
    """
    if row.get("seconds") is None and is_segment(clip := row.get("audio")):
        end = clip_seconds(clip["path"], name) if clip["end"] is None else clip["end"]
        return end - clip["start"]
    return row_seconds(row, name)


def collect_stats(
    source, columns: Mapping | None = None, tokenizer=None, repeat: Mapping[str, int] | None = None
) -> DataStats:
    """One pass over any source. Rows that training could not use are counted with their reasons.

    Args:
        source, columns: as in `open_rows`.
        tokenizer: counts the targets in its tokens; by default they are counted in characters.
        repeat: how often the rows of a source are repeated, as in a recipe; it changes the mixture's shares alone.

    Raises: the errors of `open_rows` for a source that cannot be read; `ValueError` if no row can be used.
    """
    stats = DataStats("characters" if tokenizer is None else "tokens")
    count = _count_characters if tokenizer is None else _counter_of(tokenizer)
    usable = _usable(each_row(source, columns), stats)
    while rows := list(islice(usable, ROWS_AT_ONCE)):
        targets = count([answers_of(row) for _, row, _ in rows])
        for (name, row, seconds), number in zip(rows, targets, strict=True):
            stats.add(row, name, seconds, number, (repeat or {}).get(row.get("source"), 1))
    if not stats.rows:
        raise ValueError(f"No row can be used. {stats.reasons[0] if stats.reasons else 'There are none.'}")
    check_repeat(repeat or {}, stats.groups["source"].keys() - {NONE})
    return stats


def _usable(rows: Iterator[tuple[str, dict]], stats: DataStats) -> Iterator[tuple[str, dict, float]]:
    check = RowCheck()
    for name, row in rows:
        try:
            check(with_whole_clip(row), name)
            seconds = seconds_of(row, name)
        except (ValueError, TypeError, OSError) as error:
            stats.refuse(str(error))
            continue
        kept = {key: value for key, value in row.items() if key != "audio"}
        yield name, {**kept, "audio": _without_bytes(row.get("audio"))}, seconds


def _without_bytes(audio):
    """A placeholder for each clip: waiting rows hold no audio."""
    return ["clip"] * len(clips_of({"audio": audio})) or None


def _count_characters(texts: Sequence[Sequence[str]]) -> list[int]:
    return [sum(map(len, each)) for each in texts]


def _counter_of(tokenizer) -> Callable[[Sequence[Sequence[str]]], list[int]]:
    def count(texts: Sequence[Sequence[str]]) -> list[int]:
        flat = [text for each in texts for text in each]
        sizes = iter(map(len, tokenizer(flat, add_special_tokens=False).input_ids if flat else []))
        return [sum(next(sizes) for _ in each) for each in texts]

    return count


# ---- what is shown ----


def describe_stats(report: Mapping) -> str:
    """The report as tables."""
    unit = report["target_unit"]
    lines = [
        f"{report['rows']} rows, {report['clips']} clips, {report['hours']:.2f} hours"
        + (f", {report['rows_of_text_alone']} rows of text alone" if report["rows_of_text_alone"] else "")
        + (f", {report['speakers']} speakers" if report["speakers"] else ", no speakers named"),
    ]
    if report["seconds"]:
        lines += ["", "seconds of a row".ljust(20) + _summary(report["seconds"])]
        lines += [f"{unit} a second".ljust(20) + _summary(report[f"{unit}_per_second_of_rows"])]
        rate, words = report[f"{unit}_per_second"], report["words_per_second"]
        lines += [f"over all clips: {rate:.2f} {unit} and {words:.2f} words a second"]
        lines += ["", "seconds     clips     hours"]
        lines += [f"{_bin(each):10} {each['clips']:6} {each['hours']:9.2f}" for each in report["histogram"]]
    for group in GROUPS:
        lines += ["", *_group_table(group, report[f"{group}s"])]
    if report["mixture"]:
        tasks = list(report["mixture"][0]["shares"])
        lines += ["", "mixture: share of each task in an epoch", "epoch     T  " + "  ".join(f"{t:>8}" for t in tasks)]
        for each in report["mixture"]:
            shares = "  ".join(f"{share:{max(8, len(task))}.3f}" for task, share in each["shares"].items())
            lines.append(f"{each['epoch']:5} {each['temperature']:5g}  {shares}")
    if report["unusable_rows"]:
        lines += ["", f"{report['unusable_rows']} more rows cannot be used:", *(f"  {r}" for r in report["unusable"])]
        if (more := report["unusable_rows"] - len(report["unusable"])) > 0:
            lines.append(f"  and {more} more")
    return "\n".join(lines)


def _summary(values: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.2f}" for name, value in values.items())


def _bin(each: Mapping) -> str:
    return f"{each['from']} to {each['to']}" if each["to"] is not None else f"over {each['from']}"


def _group_table(group: str, entries: Mapping[str, Mapping]) -> list[str]:
    shown = list(entries.items())[:LISTED]
    width = max(len(group), *(len(name) for name, _ in shown))
    lines = [f"{group:{width}}     rows     hours"]
    lines += [f"{name:{width}} {each['rows']:8} {each['hours']:9.2f}" for name, each in shown]
    return lines + ([f"and {len(entries) - LISTED} more"] if len(entries) > LISTED else [])


def write_stats(report: Mapping, path: str | os.PathLike):
    """Write the report as `.json`, or draw it as `.png`.

    Raises: `ValueError` for another ending.
    """
    path = Path(path)
    check_output(path)
    with atomic_file(path) as part:
        if path.suffix == ".json":
            part.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        else:
            draw_stats(report).savefig(part, dpi=120, format="png")


def check_output(path: str | os.PathLike):
    """Refuse a file that statistics cannot be written to.

    Raises: `ValueError` for another ending; `ImportError` for a picture without matplotlib.
    """
    if Path(path).suffix not in FORMATS:
        raise ValueError(f"`--output` is `{path}`; give a file that ends in .json or .png.")
    if Path(path).suffix == ".png":
        check_matplotlib()


def draw_stats(report: Mapping):
    """A matplotlib `Figure`: lengths, hours by source, task and language, and the shares of a mixture."""
    figure = new_figure(11, 7)
    panels = figure.subplots(2, 3 if report["mixture"] else 2).flatten()
    bins = report["histogram"]
    panels[0].bar([_bin(each) for each in bins], [each["hours"] for each in bins], color="tab:blue")
    panels[0].tick_params(axis="x", rotation=60)
    panels[0].set(title=f"{report['clips']} clips, {report['hours']:.2f} hours", xlabel="seconds of a row")
    panels[0].set_ylabel("hours")
    for panel, group in zip(panels[1:], GROUPS, strict=False):
        entries = list(report[f"{group}s"].items())[:LISTED]
        panel.barh([name for name, _ in entries], [each["hours"] for _, each in entries], color="tab:green")
        panel.invert_yaxis()
        panel.set(title=group, xlabel="hours")
    if report["mixture"]:
        epochs = [each["epoch"] for each in report["mixture"]]
        for task in report["mixture"][0]["shares"]:
            panels[4].plot(epochs, [each["shares"][task] for each in report["mixture"]], marker=".", label=task)
        panels[4].set(title="mixture", xlabel="epoch", ylabel="share", ylim=(0, 1))
        panels[4].legend(fontsize="small")
        panels[5].set_axis_off()
    return figure


__all__ = ["DataStats", "check_output", "collect_stats", "describe_stats", "draw_stats", "seconds_of", "write_stats"]
