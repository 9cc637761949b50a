"""One picture of the summary: fidelity to the teacher, and beside it the task when there is one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.table import ordered_methods, short
from influcoder.errors import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {"ceiling": "#8c8c8c", "teacher": "#4d4d4d", "student": "#1f6fb4", "reference": "#8fbde0", "floor": "#d2d2d2"}
LINE = "#b03a2e"


def write_plot(path: Path, summary: dict[str, Any]) -> None:
    """Draw horizontal bars with their intervals, by role, best first; png.

    Raises:
        MissingExtraError: when matplotlib is not installed.
    """
    figures = require("matplotlib.figure", "train")  # a Figure of its own: no pyplot, no display, nothing global
    counts = summary["counts"]
    task = counts["positives"] is not None
    height = 1.3 + 0.34 * len(summary["methods"])
    figure = figures.Figure(figsize=(11.5 if task else 6.2, height), layout="constrained")
    panels = figure.subplots(1, 2 if task else 1, squeeze=False)[0]
    ceiling = summary["methods"].get("teacher_second_seed")
    line = ceiling["metrics"]["per_query_spearman"]["mean"] if ceiling else None
    _draw_bars(panels[0], summary, "per_query_spearman")
    _finish(panels[0], "Ranks like the teacher", "Spearman per query, mean and 95 % interval", line, "second seed")
    if task:
        _draw_bars(panels[1], summary, "poison_auprc")
        _finish(
            panels[1], "Finds the planted rows", "average precision and 95 % interval", counts["positives"] / counts["test"], "base rate"
        )
    figure.savefig(path, dpi=150)


def _draw_bars(panel: Axes, summary: dict[str, Any], metric: str) -> None:
    names = ordered_methods(summary, metric)
    for place, name in enumerate(names):
        method = summary["methods"][name]
        value = method["metrics"][metric]
        below, above = max(0.0, value["mean"] - value["low"]), max(0.0, value["high"] - value["mean"])
        panel.barh(place, value["mean"], height=0.7, color=COLOURS[method["role"]])
        panel.errorbar(value["mean"], place, xerr=[[below], [above]], color="black", linewidth=1, capsize=2)
        panel.annotate(
            short(value["mean"]), (max(value["high"], value["mean"], 0), place), (5, 0), textcoords="offset points", va="center", fontsize=9
        )
    panel.set_yticks(range(len(names)), names)
    panel.invert_yaxis()


def _finish(panel: Axes, title: str, axis: str, line: float | None, line_name: str) -> None:
    left, right = panel.get_xlim()
    panel.set_xlim(min(left, 0.0), max(right, 0.2) + 0.08 * (max(right, 0.2) - min(left, 0.0)))  # room for the figures at the bars' ends
    if line is not None:
        panel.axvline(line, color=LINE, linewidth=1, linestyle="--", zorder=0)
        panel.set_title(f"-- {line_name} {short(line)}", loc="right", fontsize=9, color=LINE)
    panel.axvline(0, color="black", linewidth=0.8)
    panel.set_title(title, loc="left", fontsize=11, fontweight="bold")
    panel.set_xlabel(axis, fontsize=9)
    panel.spines[["top", "right", "left"]].set_visible(False)
    panel.tick_params(axis="y", length=0)
