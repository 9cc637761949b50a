"""The report's tables: one to see all methods at a glance, those of the eval stage, those of a truth run; as HTML and as CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from html import escape
from typing import Any

from eval.report.evidence import Evidence
from eval.report.names import label
from eval.report.standing import of_gap
from eval.report.truth import truth_sections
from eval.report.verdict import FIDELITY, gap_to
from eval.table import ROLES, TASK, Section, make_sections, with_interval

ABOVE = "▲"
"""behind a figure that the student is below, by the paired interval"""


def all_sections(evidence: Evidence) -> list[Section]:
    """Return every table, the one at a glance first."""
    truth = truth_sections(evidence.truth) if evidence.truth else []
    return [glance(evidence.summary), *truth, *make_sections(evidence.summary)]


def glance(summary: Mapping[str, Any]) -> Section:
    """Return the first figure of fidelity and of each task, and the cost, by method."""
    methods = summary["methods"]
    metrics = {FIDELITY: "Spearman per query"}
    metrics |= {
        f"{name}_{task['primary']}": f"{name}, {TASK.get(task['primary'], task['primary'])}" for name, task in summary["tasks"].items()
    }

    def place(name: str) -> tuple[int, float]:
        first = next((found["mean"] for metric in metrics if (found := methods[name]["metrics"].get(metric))), -1.0)
        return ROLES.index(methods[name]["role"]), -first

    lines = []
    for name in sorted(methods, key=place):
        cost = methods[name].get("cost")
        cells = [_cell(summary, name, metric) for metric in metrics]
        lines.append((name, methods[name]["role"], *cells, "-" if cost is None else f"{cost['seconds_per_1000']:,.2f}"))
    title = f"All methods at a glance: 95 % intervals; {ABOVE} stands above the student"
    return Section(title, ("method", "role", *metrics.values(), "s per 1,000 rows"), tuple(lines))


def to_html(section: Section) -> str:
    """Return a table with its caption, in a box that scrolls sideways by touch and by keyboard."""
    titles = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in section.header)
    named = section.header[0] == "method"
    body = "".join(
        f'<tr{_row_class(line[0])}><th scope="row">{escape(label(line[0]) if named else line[0])}</th>'
        f"{''.join(f'<td>{escape(cell)}</td>' for cell in line[1:])}</tr>"
        for line in section.lines
    )
    caption = escape(section.title)
    return (
        f'<div class="scroll" role="region" aria-label="{caption}" tabindex="0"><table><caption><span>{caption}</span></caption>'
        f"<thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def to_csv(section: Section) -> str:
    """Return the same cells, separated by commas."""
    written = io.StringIO()
    csv.writer(written, lineterminator="\n").writerows([section.header, *section.lines])
    return written.getvalue()


def file_name(section: Section) -> str:
    """Return a name of letters, digits and underscores, from the title's first part."""
    return re.sub(r"[^a-z0-9]+", "_", section.title.split(":")[0].lower()).strip("_")


def _cell(summary: Mapping[str, Any], name: str, metric: str) -> str:
    gap = gap_to(summary, name, metric)
    above = gap is not None and summary["methods"][name]["role"] != "ceiling" and of_gap(gap) == "below"
    return with_interval(summary["methods"][name]["metrics"].get(metric)) + (f" {ABOVE}" if above else "")


def _row_class(name: str) -> str:
    return ' class="ours"' if name == "student" else ""
