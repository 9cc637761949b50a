"""Pictures of the summary: `fidelity.png`, bars with intervals, and `tasks.png`, what is found against what is inspected."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.table import ordered_methods, short
from eval.task_metrics import CURVE_SHARES
from influcoder.errors import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {
    "ceiling": "#8c8c8c",
    "teacher": "#4d4d4d",
    "student": "#1f6fb4",
    "reference": "#8fbde0",
    "floor": "#d2d2d2",
    "control": "#e3c7c3",
}
LINE = "#b03a2e"
LINES = {"teacher": ("#4d4d4d", "-"), "student": ("#1f6fb4", "-"), "bm25": ("#d68910", "-"), "untrained_encoder": ("#7fb3d5", "--")}
LINES |= {"rep_sim": ("#27864a", "--"), "loss": ("#8e5ea2", ":"), "random": ("#b0b0b0", ":")}
"""curves that are drawn: colour and style"""


def write_plots(folder: Path, summary: dict[str, Any]) -> None:
    """Draw the pictures; png.

    Raises:
        MissingExtraError: when matplotlib is not installed.
    """
    figures = require("matplotlib.figure", "train")  # a Figure of its own: no pyplot, no display, nothing global
    height = 1.3 + 0.34 * len(summary["methods"])
    metrics = ["per_query_spearman", *(f"{name}_{task['primary']}" for name, task in summary["tasks"].items())]
    figure, panels = _grid(figures, len(metrics), 5.9, height)
    for panel, metric in zip(panels, metrics, strict=True):
        _draw_bars(panel, summary, metric)
        _finish_bars(panel, summary, metric)
    figure.savefig(folder / "fidelity.png", dpi=120)
    curved = [name for name, task in summary["tasks"].items() if task["kind"] != "retrieval"]
    if curved:
        figure, panels = _grid(figures, len(curved), 5.4, 4.2)
        for panel, task in zip(panels, curved, strict=True):
            _draw_curves(panel, summary, task)
        figure.savefig(folder / "tasks.png", dpi=120)


def _grid(figures: Any, count: int, width: float, height: float) -> tuple[Any, list[Axes]]:
    """Return a figure of `count` panels, at most three a line; width and height of a panel in inches."""
    columns = min(3, count)
    lines = -(-count // columns)
    figure = figures.Figure(figsize=(width * columns, height * lines), layout="constrained")
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    for empty in panels[count:]:
        empty.set_axis_off()
    return figure, panels[:count]


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


def _finish_bars(panel: Axes, summary: dict[str, Any], metric: str) -> None:
    left, right = panel.get_xlim()
    panel.set_xlim(min(left, 0.0), max(right, 0.2) + 0.08 * (max(right, 0.2) - min(left, 0.0)))  # room for the figures at the bars' ends
    line, name, axis = _reference_line(summary, metric)
    if line is not None:
        panel.axvline(line, color=LINE, linewidth=1, linestyle="--", zorder=0)
        panel.set_title(f"-- {name} {short(line)}", loc="right", fontsize=9, color=LINE)
    panel.axvline(0, color="black", linewidth=0.8)
    panel.set_title("Ranks like the teacher" if metric == "per_query_spearman" else metric.rsplit("_", 1)[0], loc="left", fontweight="bold")
    panel.set_xlabel(f"{axis}, mean and 95 % interval", fontsize=9)
    panel.spines[["top", "right", "left"]].set_visible(False)
    panel.tick_params(axis="y", length=0)


def _reference_line(summary: dict[str, Any], metric: str) -> tuple[float | None, str, str]:
    if metric == "per_query_spearman":
        ceiling = summary["methods"].get("teacher_second_seed")
        return (ceiling["metrics"][metric]["mean"] if ceiling else None), "second seed", "Spearman per query"
    task = next(task for name, task in summary["tasks"].items() if f"{name}_{task['primary']}" == metric)
    if task["primary"] == "auprc":
        return task["base_rate"], "base rate", "average precision"
    return (0.5, "chance", "AUROC") if task["primary"] == "auroc" else (None, "", "mean average precision")


def _draw_curves(panel: Axes, summary: dict[str, Any], task: str) -> None:
    for name, (colour, style) in LINES.items():
        recall = summary["methods"].get(name, {"curves": {}})["curves"].get(task)
        if recall is not None:
            panel.plot(CURVE_SHARES * 100, recall, color=colour, linestyle=style, label=name, linewidth=2 if name == "student" else 1.3)
    panel.axvline(summary["tasks"][task]["base_rate"] * 100, color=LINE, linewidth=1, linestyle="--", zorder=0)
    panel.set_xscale("symlog", linthresh=10, linscale=2)
    panel.set_xticks([0, 1, 2, 5, 10, 20, 50, 100], ["0", "1", "2", "5", "10", "20", "50", "100"])
    panel.set_xlim(0, 100)
    panel.set_ylim(0, 1.02)
    panel.set_title(task, loc="left", fontweight="bold")
    panel.set_title("-- as many as there are to find", loc="right", fontsize=9, color=LINE)
    panel.set_xlabel("rows inspected, % of the candidates", fontsize=9)
    panel.set_ylabel("share of the rows found", fontsize=9)
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(fontsize=8, loc="lower right", frameon=False)
