"""The summary as people read it: fidelity, each task, what it costs, by kind of row, gates.

Lines are sorted by role, then by the section's first column. Brackets are 95 % intervals. "student -" is the student's figure
less the method's, paired.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ROLES = ("ceiling", "teacher", "student", "reference", "floor", "control")
FIDELITY = {
    "per_query_spearman": "per query",
    "within_group_spearman": "within group",
    "residual_spearman": "residual",
    "aggregated_spearman": "aggregated",
    "per_query_kendall": "Kendall",
    "ndcg_at_10": "NDCG@10",
    "top10_overlap": "top-10 overlap",
    "bottom10_overlap": "bottom-10 overlap",
    "top10_recall_at_100": "top 10 in 100",
    "bottom10_recall_at_100": "bottom 10 in 100",
}
TASK = {
    "auprc": "AUPRC",
    "recall_at_positives": "recall at positives",
    "recall_at_1_percent": "at 1 %",
    "recall_at_5_percent": "at 5 %",
    "recall_at_10_percent": "at 10 %",
    "auroc": "AUROC",
    "auprc_trapezoid": "trapezoid",
    "auprc_mean": "by mean",
    "auprc_zmean": "by z-mean",
    "auprc_max": "by maximum",
    "auprc_trapezoid_mean": "DATE-LM (mean, trapezoid)",
    "map": "MAP",
    "mrr": "MRR",
}


@dataclass(frozen=True)
class Section:
    """A table of strings."""

    title: str
    header: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]


def make_sections(summary: dict[str, Any]) -> list[Section]:
    """Return the sections of a summary; those without figures are left out."""
    counts = summary["counts"]
    title = (
        f"Fidelity to {summary['target']['method']}: Spearman over {counts['candidates']} candidates, {counts['queries']} queries, "
        f"{summary['split']}, {counts['student_seeds']} student seed{'s' * (counts['student_seeds'] > 1)}"
    )
    sections = [_figures(title, summary, FIDELITY)]
    for name, task in summary["tasks"].items():
        order = [task["primary"], *(metric for metric in task["metrics"] if metric != task["primary"])]
        labels = {f"{name}_{metric}": TASK.get(metric, metric.replace("_", " ")) for metric in order}
        sections.append(_figures(f"{name}: {_question(task)}", summary, labels))
    return [*sections, _costs(summary), *_strata(summary), *_gates(summary)]


def ordered_methods(summary: Mapping[str, Any], metric: str) -> list[str]:
    """Return the methods that have this metric, by role, best first within a role."""
    methods = summary["methods"]
    measured = [name for name, method in methods.items() if method["metrics"][metric] is not None]
    return sorted(measured, key=lambda name: (ROLES.index(methods[name]["role"]), -methods[name]["metrics"][metric]["mean"]))


def to_text(sections: Sequence[Section]) -> str:
    """Return aligned columns for a terminal."""
    blocks = []
    for section in sections:
        rows = [section.header, *section.lines]
        widths = [max(len(row[column]) for row in rows) for column in range(len(section.header))]
        aligned = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        blocks.append("\n".join([section.title, "", aligned[0], "-" * len(max(aligned, key=len)), *aligned[1:]]))
    return "\n\n".join(blocks)


def to_markdown(sections: Sequence[Section]) -> str:
    """Return markdown tables."""
    blocks = []
    for section in sections:
        rows = [section.header, ("---",) * len(section.header), *section.lines]
        blocks.append(f"**{section.title}**\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n")
    return "\n".join(blocks)


def short(value: float) -> str:
    """Return two decimals without the leading zero: .83, -.02, 1.00."""
    written = f"{round(value, 2) + 0.0:.2f}"  # + 0.0 takes the sign from -0.0
    return written.replace("0.", ".", 1) if abs(value) < 1 else written


def with_interval(value: Mapping[str, Any] | None, key: str = "mean") -> str:
    """Return a figure of the summary with its interval."""
    return "-" if value is None else f"{short(value[key])} [{short(value['low'])}, {short(value['high'])}]"


def _question(task: dict[str, Any]) -> str:
    if task["kind"] == "retrieval":
        return f"{task['answered_queries']} queries, each with its own rows among {task['candidates']}"
    fold = f", within {task['folds']} folds" if task["folds"] > 1 else ""
    return f"{task['positives']} of {task['candidates']} rows to be found{fold}, base rate {task['base_rate']:.3f}"


def _figures(title: str, summary: dict[str, Any], columns: dict[str, str]) -> Section:
    """The first column and the residual with intervals; the first also as the student's lead; the others plain."""
    methods = summary["methods"]
    shown = [metric for metric in columns if any(method["metrics"][metric] is not None for method in methods.values())]
    first, *others = shown
    lines = []
    for name in ordered_methods(summary, first):
        figures = methods[name]["metrics"]
        gap = summary["student_minus"].get(name, {}).get(first)
        cells = [with_interval(figures[metric]) if metric == "residual_spearman" else _plain(figures[metric]) for metric in others]
        lines.append(
            (name, methods[name]["role"], with_interval(figures[first]), "-" if gap is None else with_interval(gap, "value"), *cells)
        )
    header = ("method", "role", columns[first], "student -", *(columns[metric] for metric in others))
    return Section(title, header, tuple(lines))


def _plain(value: dict[str, float] | None) -> str:
    return "-" if value is None else short(value["mean"])


def _costs(summary: dict[str, Any]) -> Section:
    lines = []
    for name in sorted(summary["methods"], key=lambda name: ROLES.index(summary["methods"][name]["role"])):
        cost = summary["methods"][name]["cost"]
        if cost is not None:
            even = "-" if cost["break_even_rows"] is None else f"{cost['break_even_rows']:,.0f}"
            setup = "-" if cost["setup_seconds"] == 0 else f"{cost['setup_seconds']:,.0f}"
            lines.append((name, setup, f"{cost['seconds_per_1000']:,.2f}", f"{cost['bytes_per_row']:,.0f}", even))
    header = ("method", "set-up, s", "s per 1 000 rows", "bytes a row", "break-even with the teacher, rows")
    return Section("Cost on this machine", header, tuple(lines))


def _strata(summary: dict[str, Any]) -> list[Section]:
    """Per-query Spearman by kind of query: ceiling, students, and the best floor."""
    names = ordered_methods(summary, "per_query_spearman")
    roles = {name: summary["methods"][name]["role"] for name in names}
    floors = [name for name in names if roles[name] == "floor"]
    shown = [name for name in names if roles[name] in ("ceiling", "student", "reference")] + floors[:1]
    sections = []
    for kind in ("length", "group"):
        labels = list(dict.fromkeys(label for name in shown for label in summary["methods"][name]["strata"].get(kind, {})))
        if labels:
            found = [[summary["methods"][name]["strata"][kind].get(label) for name in shown] for label in labels]
            lines = [(label, *(with_interval(value) for value in row)) for label, row in zip(labels, found, strict=True)]
            sections.append(Section(f"Fidelity per query, by {kind} of the query's row", (kind, *shown), tuple(lines)))
    return sections


def _gates(summary: dict[str, Any]) -> list[Section]:
    lines = [
        (name, "passed" if gate["passed"] else "FAILED", f"{gate['value']:.3f}", f"{gate['limit']:.3f}", gate["meaning"])
        for name, gate in summary["gates"].items()
    ]
    lines += [
        ("leakage", "passed", "0", "0", "test rows and task queries with a near-copy in the distillation's rows; else there is no run")
    ]
    return [Section("Gates", ("gate", "verdict", "value", "limit", "meaning"), tuple(lines))]
