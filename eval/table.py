"""The summary as people read it: one section for fidelity, one for the task, each one line a method.

Lines are sorted by role, then by the section's first column.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

ROLES = ("ceiling", "teacher", "student", "reference", "floor")
FIDELITY = {
    "per_query_spearman": "per query",
    "within_group_spearman": "within group",
    "residual_spearman": "residual",
    "aggregated_spearman": "aggregated",
    "top10_overlap": "top-10 overlap",
}
TASK = {
    "poison_auprc": "AUPRC",
    "poison_recall_at_positives": "recall at positives",
    "poison_auprc_mean": "AUPRC by mean",
    "poison_auprc_max": "AUPRC by maximum",
}


@dataclass(frozen=True)
class Section:
    """A table of strings."""

    title: str
    header: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]


def make_sections(summary: dict[str, Any]) -> list[Section]:
    """Return the sections of a summary; without a task there is one."""
    counts = summary["counts"]
    title = (
        f"Fidelity to {summary['target']['method']}: Spearman over {counts['candidates']} candidates, "
        f"{counts['queries']} queries, {summary['split']} split"
    )
    sections = [_section(title, summary, FIDELITY)]
    if counts["positives"] is not None:
        found = f"{counts['positives']} of {counts['test']} rows to be found"
        sections.append(_section(f"Task: {found}, base rate {counts['positives'] / counts['test']:.3f}", summary, TASK))
    return sections


def ordered_methods(summary: dict[str, Any], metric: str) -> list[str]:
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
    return f"{round(value, 2) + 0.0:.2f}".replace("0.", ".", 1)  # + 0.0 takes the sign from -0.0


def _section(title: str, summary: dict[str, Any], columns: dict[str, str]) -> Section:
    methods = summary["methods"]
    shown = [metric for metric in columns if any(method["metrics"][metric] is not None for method in methods.values())]
    lines = [
        (name, methods[name]["role"], *(_cell(methods[name]["metrics"][metric]) for metric in shown))
        for name in ordered_methods(summary, shown[0])
    ]
    return Section(title, ("method", "role", *(columns[metric] for metric in shown)), tuple(lines))


def _cell(value: dict[str, float] | None) -> str:
    if value is None:
        return "-"
    return f"{short(value['mean'])} [{short(value['low'])}, {short(value['high'])}]"
