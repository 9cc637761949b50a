"""The report's pictures: which figures go into which; those that the run has nothing for are left out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from eval.report.bars import Bar, Strip, bars, strips
from eval.report.evidence import Evidence
from eval.report.lines import Line, recall_curves
from eval.report.names import css, label
from eval.report.points import Priced, cost_and_quality, scatter
from eval.report.verdict import FIDELITY, SECOND_SEED
from eval.table import TASK, ordered_methods, short
from eval.task_metrics import CURVE_SHARES

FLOOR_CURVES = 3
"""floors that are drawn beside teacher, student and chance: the best ones of the task"""


@dataclass(frozen=True)
class Picture:
    """One picture with its words."""

    title: str
    note: str
    svg: str
    key: tuple[tuple[str, str], ...] = ()
    """(classes, words) of lines that carry no name of their own"""


def fidelity_pictures(evidence: Evidence) -> list[Picture]:
    """Return how fidelity spreads over queries, ranks beside ranks, seeds, and what it costs."""
    found = [_by_query(evidence), *_ranks(evidence), _seeds(evidence), _priced(evidence.summary, FIDELITY, "Spearman per query")]
    return [picture for picture in found if picture is not None]


def task_pictures(summary: Mapping[str, Any], task: str) -> list[Picture]:
    """Return a task's primary figure by method, and its recall curves."""
    metric = f"{task}_{summary['tasks'][task]['primary']}"
    words = TASK.get(summary["tasks"][task]["primary"], metric)
    found = [_figures(summary, task, metric, words), _curves(summary, task)]
    return [picture for picture in found if picture is not None]


def cost_pictures(summary: Mapping[str, Any]) -> list[Picture]:
    """Return cost against the primary figure of each task."""
    found = []
    for name, task in summary["tasks"].items():
        words = f"{TASK.get(task['primary'], task['primary'])}, {name}"
        found.append(_priced(summary, f"{name}_{task['primary']}", words, f"What it costs: {name}"))
    return [picture for picture in found if picture is not None]


def bar_of(name: str, role: str, figure: Mapping[str, float]) -> Bar:
    """Return a method's bar."""
    return Bar(label(name), css(name, role), figure["mean"], figure["low"], figure["high"])


def told(rows: Iterable[Bar]) -> str:
    """Return bars as words."""
    return "; ".join(f"{row.label} {short(row.mean)} [{short(row.low)}, {short(row.high)}]" for row in rows)


def _by_query(evidence: Evidence) -> Picture | None:
    summary, values = evidence.summary, _mean_over_seeds(evidence.per_query)
    rows = [
        Strip(label(name), css(name, summary["methods"][name]["role"]), np.array(list(values[name].values())))
        for name in ordered_methods(summary, FIDELITY)
        if name in values
    ]
    if not rows:
        return None
    means = "; ".join(f"{row.label} {short(float(row.values.mean()))}" for row in rows)
    svg = strips(rows, "Spearman of a query", f"Spearman of each query by method, means: {means}")
    note = "A tick is a query's rank correlation with the teacher (mean over seeds), the bar the middle half, the long tick the mean."
    return Picture("Agreement with the teacher, query by query", note, svg)


def _ranks(evidence: Evidence) -> Iterator[Picture]:
    ranks = (evidence.cases or {}).get("ranks") or {}
    for name, title in (("student", "Ranks by teacher and student"), (SECOND_SEED, "Ranks by two seeds of the teacher")):
        if ranks.get(name):
            words = f"{label(name)}'s rank of {len(ranks[name])} pairs of a query and a row against the teacher's"
            svg = scatter(ranks["teacher"], ranks[name], "rank by the teacher", f"rank by the {label(name)}", words)
            note = "A dot is a row's place for a query, 0 the most helpful, 1 the least; pairs drawn at random."
            yield Picture(title, note if name == "student" else f"{note} What the student is measured against.", svg)


def _seeds(evidence: Evidence) -> Picture | None:
    """Return the student's Spearman of each query under its first two seeds."""
    first, second = (
        {line["query_id"]: line["spearman"] for line in evidence.per_query if line["method"] == "student" and line["seed"] == seed}
        for seed in (0, 1)
    )
    shared = [name for name in first if name in second]
    if len(shared) < 2:
        return None
    xs, ys = [first[name] for name in shared], [second[name] for name in shared]
    limits = min(0.0, *xs, *ys), max(0.1, *xs, *ys)
    svg = scatter(
        xs, ys, "Spearman, seed 1", "Spearman, seed 2", f"Spearman of {len(shared)} queries under two seeds of the student", limits
    )
    return Picture(
        "Two seeds of the student", "A dot is a query: near the diagonal, what is met and missed does not depend on chance.", svg
    )


def _priced(summary: Mapping[str, Any], metric: str, words: str, title: str = "What it costs") -> Picture | None:
    """Return cost against quality; the teacher's second seed, of the same cost, stands where the teacher itself has no figure."""
    points, names = [], ordered_methods(summary, metric)
    for name in names:
        method = summary["methods"][name]
        if method.get("cost") and method["role"] != "control" and not (name == SECOND_SEED and "teacher" in names):
            figure = method["metrics"][metric]
            seconds = method["cost"]["seconds_per_1000"]
            points.append(Priced(label(name), css(name, method["role"]), seconds, figure["mean"], figure["low"], figure["high"]))
    if not points:
        return None
    told_points = "; ".join(f"{point.label} {point.seconds:,.3g} s, {short(point.mean)}" for point in points)
    svg = cost_and_quality(points, words, f"{words} against seconds for 1 000 rows: {told_points}")
    return Picture(title, "Up is better, left is cheaper; the axis of costs is logarithmic. Set-up is not counted here.", svg)


def _figures(summary: Mapping[str, Any], task: str, metric: str, words: str) -> Picture | None:
    facts, names = summary["tasks"][task], ordered_methods(summary, metric)
    if not names:
        return None
    rows = [bar_of(name, summary["methods"][name]["role"], summary["methods"][name]["metrics"][metric]) for name in names]
    mark = (facts["base_rate"], "base rate") if facts["primary"] == "auprc" else (0.5, "chance") if facts["primary"] == "auroc" else None
    return Picture(f"{words} by method", "Means with 95 % intervals.", bars(rows, words, f"{words}, {task}: {told(rows)}", mark))


def _curves(summary: Mapping[str, Any], task: str) -> Picture | None:
    methods, metric = summary["methods"], f"{task}_{summary['tasks'][task]['primary']}"
    names = [name for name in ordered_methods(summary, metric) if methods[name].get("curves", {}).get(task)]
    floors = [name for name in names if methods[name]["role"] == "floor" and name != "random"][:FLOOR_CURVES]
    drawn = [name for name in names if methods[name]["role"] in ("teacher", "student", "reference") or name in (*floors, "random")]
    if not drawn:
        return None
    lines = [Line(css(name, methods[name]["role"]), list(CURVE_SHARES), methods[name]["curves"][task]) for name in drawn]
    tenth = int(np.argmin(np.abs(CURVE_SHARES - 0.1)))
    words = "; ".join(f"{label(name)} {100 * methods[name]['curves'][task][tenth]:.0f} %" for name in drawn)
    svg = recall_curves(
        lines[::-1], summary["tasks"][task]["base_rate"], f"Share of rows found by share inspected, {task}; in the first 10 %: {words}"
    )
    key = tuple((css(name, methods[name]["role"]), label(name)) for name in drawn)
    note = f"Of floors the best {FLOOR_CURVES} and chance. Roots on the axis of rows, since few are inspected."
    return Picture("Found by rows inspected", note, svg, key)


def _mean_over_seeds(lines: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return by method the mean over seeds of each query's figure."""
    found: dict[str, dict[str, list[float]]] = {}
    for line in lines:
        found.setdefault(line["method"], {}).setdefault(line["query_id"], []).append(line["spearman"])
    return {method: {query: float(np.mean(values)) for query, values in by_query.items()} for method, by_query in found.items()}
