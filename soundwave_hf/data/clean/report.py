"""The report of a cleaning run: counts, a table, and a plot."""

import dataclasses
import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from transformers.utils import logging

from ...atomic import atomic_file
from ..card import CardFacts, report_facts, write_card
from ..prepared import REPORT
from .duplicates import COMPARISONS, Comparison, Comparisons
from .filter import Filter
from .judge import BAD_CLIP, BAD_ROW
from .settings import filter_settings


logger = logging.get_logger(__name__)

LISTED = 20  # bad clips and rows that the report names; the others are in the lists of dropped rows
DRAWN = 20_000  # values of a filter that a plot reads at most
BINS = 40
COMPARED = {each.name for each in COMPARISONS}


class Sample:
    """Every n-th of the numbers that come, n as small as `DRAWN` allows: the memory does not grow with the data."""

    def __init__(self):
        self.values, self.step, self.seen = [], 1, 0

    def add(self, value: float):
        if self.seen % self.step == 0:
            self.values.append(value)
        self.seen += 1
        if len(self.values) > DRAWN:
            self.values, self.step = self.values[::2], 2 * self.step


@dataclasses.dataclass
class Totals:
    """Counts over all rows of a run."""

    rows: int = 0
    kept: int = 0
    seconds: float = 0.0
    kept_seconds: float = 0.0
    dropped_by: Counter = dataclasses.field(default_factory=Counter)
    only_by: Counter = dataclasses.field(default_factory=Counter)  # rows that this filter alone drops
    both: Counter = dataclasses.field(default_factory=Counter)  # by pair of filters
    values: dict[str, Sample | Counter] = dataclasses.field(default_factory=dict)
    bad: list[dict] = dataclasses.field(default_factory=list)  # the first ones
    left_out: Counter = dataclasses.field(default_factory=Counter)  # values by column that the result does not have
    held_out: int = 0  # rows of evaluation sets
    unread_held_out: int = 0

    def add(self, line: Mapping):
        """Count a row. Args: line: its verdict, as `shards.read_verdicts` gives it."""
        reasons, seconds = line["reasons"], line["seconds"] or 0.0
        self.rows += 1
        self.seconds += seconds
        self.kept += not reasons
        self.kept_seconds += 0.0 if reasons else seconds
        self.dropped_by.update(reasons)
        self.only_by.update(reasons if len(reasons) == 1 else ())
        self.both.update((one, other) for one in reasons for other in reasons if one < other)
        self.left_out.update(line["left_out"])
        if line["why"] and len(self.bad) < LISTED:
            self.bad.append({"row": line["name"], "kind": reasons[0], "why": line["why"]})
        for name, value in line["values"].items():
            if name not in COMPARED:
                self._add_value(name, value)

    def _add_value(self, name: str, value: float | str):
        if isinstance(value, str):
            self.values.setdefault(name, Counter())[value] += 1
        elif math.isfinite(value):
            self.values.setdefault(name, Sample()).add(value)


# ---- report.json ----


def describe(filters: Sequence[Filter], limits: Comparisons, totals: Totals, about: Mapping) -> dict:
    """The report as an object for JSON. Args: about: source, settings, versions and seed of the run."""
    names = _reasons(filters, limits, totals)
    lines = [
        {
            "name": name,
            "threshold": threshold,
            "unit": unit,
            "dropped": totals.dropped_by[name],
            "share": _share(totals.dropped_by[name], totals.rows),
            "dropped_by_it_alone": totals.only_by[name],
        }
        for name, threshold, unit in names
    ]
    return {
        "rows": totals.rows,
        "kept": totals.kept,
        "dropped": totals.rows - totals.kept,
        "share_dropped": _share(totals.rows - totals.kept, totals.rows),
        "seconds": round(totals.seconds, 3),
        "kept_seconds": round(totals.kept_seconds, 3),
        "filters": lines,
        "dropped_by_both": [[one, other, count] for (one, other), count in sorted(totals.both.items())],
        "bad": totals.bad,
        "columns_left_out": dict(sorted(totals.left_out.items())),
        "against": {"rows": totals.held_out, "unread": totals.unread_held_out},
        **about,
    }


def _share(count: int, rows: int) -> float:
    return round(count / rows, 6) if rows else 0.0


def _reasons(filters: Sequence[Filter], limits: Comparisons, totals: Totals) -> list[tuple[str, str, str]]:
    """Name, threshold and unit of everything that drops rows: what cannot be used, the filters, then comparisons."""
    bad = sorted(name for name in totals.dropped_by if name == BAD_ROW or name.startswith(BAD_CLIP))
    compared = [each for each in limits if totals.held_out or "leaked" not in each.name]
    judged = [(each.name, threshold_text(each), each.unit) for each in (*filters, *compared)]
    return [(name, "cannot be used", "") for name in bad] + judged


def threshold_text(each: Filter | Comparison) -> str:
    """The fields of a filter in a line: `min_seconds 3, max_seconds 30`."""
    pairs = ((name, value) for name, value in filter_settings(each).items() if value is not None)
    return ", ".join(f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in pairs)


# ---- report.md ----


def table(report: Mapping) -> str:
    """The report as Markdown."""
    size, unit = (3600, "hours") if report["seconds"] >= 3600 else (60, "minutes")
    kept, seconds = report["kept_seconds"] / size, report["seconds"] / size
    lines = [
        f"Rows kept: {report['kept']:,} of {report['rows']:,}, {kept:.2f} of {seconds:.2f} {unit}. "
        f"Dropped: {report['dropped']:,} ({report['share_dropped']:.1%}).",
        "",
        "A row that several filters drop counts for each of them, and once in the total.",
        "",
        "| filter | threshold | unit | rows dropped | share | by it alone |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {each['name']} | {each['threshold']} | {each['unit']} | {each['dropped']:,} | {each['share']:.1%} "
        f"| {each['dropped_by_it_alone']:,} |"
        for each in report["filters"]
    ]
    lines.append(f"| in all | | | {report['dropped']:,} | {report['share_dropped']:.1%} | |")
    if report["against"]["rows"]:
        unread = report["against"]["unread"]
        lines += ["", f"Evaluation sets: {report['against']['rows']:,} rows, {unread:,} of which could not be read."]
    for column, count in report["columns_left_out"].items():
        lines += ["", f"The column `{column}` is not kept: only later rows have it ({count:,} values)."]
    if report["bad"]:
        lines += ["", f"Rows that cannot be used (the first {LISTED}; all are in `dropped`):", ""]
        lines += [f"- {each['row']}: {each['kind']}. {each['why']}" for each in report["bad"]]
    return "\n".join(lines) + "\n"


# ---- report.png ----


def draw(report: Mapping, filters: Sequence[Filter], totals: Totals, path: Path):
    """Bars of the share that each filter drops, how often two drop the same row, and the values of each filter."""
    if find_spec("matplotlib") is None:
        logger.warning("No `report.png`: it needs matplotlib, `pip install 'soundwave-hf[train]'`.")
        return
    from matplotlib.figure import Figure

    measured = [each for each in filters if each.name in totals.values]
    height = 1 + math.ceil(len(measured) / 2)
    figure = Figure(figsize=(12, 3.5 * height + 1), layout="constrained")
    panels = figure.subplots(height, 2, squeeze=False)
    _draw_shares(panels[0, 0], report)
    _draw_overlap(figure, panels[0, 1], report, totals)
    for panel, each in zip(panels[1:].flat, measured, strict=False):
        _draw_values(panel, each, totals.values[each.name])
    for panel in list(panels[1:].flat)[len(measured) :]:
        panel.set_axis_off()
    with atomic_file(path) as part:
        figure.savefig(part, dpi=100, format="png", metadata={"Software": None})


def _draw_shares(panel, report: Mapping):
    lines = report["filters"][::-1]
    names = [each["name"] for each in lines]
    panel.barh(names, [100 * each["share"] for each in lines], color="tab:orange", label="dropped")
    alone = [100 * _share(each["dropped_by_it_alone"], report["rows"]) for each in lines]
    panel.barh(names, alone, color="tab:red", label="by it alone")
    panel.set_xlabel("% of all rows")
    panel.set_title(f"{100 * report['share_dropped']:.1f} % of {report['rows']:,} rows dropped")
    panel.legend()


def _draw_overlap(figure, panel, report: Mapping, totals: Totals):
    names = [each["name"] for each in report["filters"] if each["dropped"]]
    panel.set_title("rows that both drop")
    if not names:
        panel.set_axis_off()
        return
    counts = np.array([[_both(totals, one, other) for other in names] for one in names], float)
    figure.colorbar(panel.imshow(counts, cmap="Oranges"), ax=panel)
    panel.set_xticks(range(len(names)), names, rotation=45, ha="right")
    panel.set_yticks(range(len(names)), names)
    for (row, column), count in np.ndenumerate(counts):
        panel.text(column, row, f"{count:.0f}", ha="center", va="center", fontsize=7)


def _both(totals: Totals, one: str, other: str) -> int:
    return totals.dropped_by[one] if one == other else totals.both[min(one, other), max(one, other)]


def _draw_values(panel, each: Filter, seen: Sample | Counter):
    panel.set_title(each.name)
    panel.set_xlabel(each.unit)
    panel.set_ylabel("rows")
    if isinstance(seen, Counter):
        most = seen.most_common(BINS)
        colours = ["tab:blue" if each.keeps(value) else "tab:red" for value, _ in most]
        panel.bar([value for value, _ in most], [count for _, count in most], color=colours)
        return
    values = np.array(seen.values, float)
    kept = np.array([bool(each.keeps(value)) for value in seen.values])
    edges = np.histogram_bin_edges(values, BINS)
    both, dropped = (np.histogram(part, edges)[0] for part in (values, values[~kept]))
    panel.stairs(both, edges, fill=True, color="tab:blue", label="kept")
    panel.stairs(dropped, edges, fill=True, color="tab:red", label="dropped")
    for place in thresholds(each, values):
        panel.axvline(place, color="black", linestyle="--", linewidth=1)
    panel.legend()


def thresholds(each: Filter, values: np.ndarray) -> list[float]:
    """Where a filter changes from keeping to dropping, between the values that occur."""
    ordered = np.unique(values).tolist()
    found = []
    for low, high in zip(ordered, ordered[1:], strict=False):
        first, last = bool(each.keeps(low)), bool(each.keeps(high))
        if first == last:
            continue
        for _ in range(40):  # halve the interval
            middle = (low + high) / 2
            low, high = (middle, high) if bool(each.keeps(middle)) == first else (low, middle)
        found.append((low + high) / 2)
    return found


# ---- all of it ----


def write_report(folder: Path, filters: Sequence[Filter], limits: Comparisons, totals: Totals, about: Mapping) -> dict:
    """Write the plot, the table, and last `report.json`: a folder that has it is complete."""
    report = describe(filters, limits, totals, about)
    draw(report, filters, totals, folder / "report.png")
    _write_text(folder / "report.md", table(report))
    text = json.dumps(report, ensure_ascii=False, indent=1) + "\n"
    if report["kept"]:
        write_card(folder, report_facts(report, CardFacts(title="Cleaned rows")))
    _write_text(folder / REPORT, text)
    return report


def _write_text(path: Path, text: str):
    with atomic_file(os.fspath(path)) as part:
        part.write_text(text, encoding="utf-8")


__all__ = ["Totals", "describe", "draw", "table", "threshold_text", "thresholds", "write_report"]
