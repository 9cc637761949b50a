"""The part of the README that quotes `benchmarks.rescoring`, and its picture: written by `python -m benchmarks.rescoring_table`, checked by a test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.readme_block import Block, line
from benchmarks.rescoring import RESULT
from eval.table import short

PICTURE = Path("docs/rescoring.png")
BLOCK = Block("<!-- rescoring: written by python -m benchmarks.rescoring_table -->", "<!-- end of rescoring -->")
METHODS = {
    "student": "student",
    "bm25": "BM25",
    "untrained": "student before its head is fitted",
    "random": "random",
    "second_seed": "teacher, second seed",
}
SHOWN = (0.01, 0.1, 0.3)


def table(path: Path) -> str:
    """Return the markdown that stands between the marks."""
    figures = json.loads(path.read_text())
    panels, wanted = figures["panels"], short(figures["wanted"])
    lines = [line("", *panels), "| --- " * (len(panels) + 1) + "|"]
    lines.append(line("rows, queries", *(f"{panel['rows']:.0f}, {panel['queries']}" for panel in panels.values())))
    for share in SHOWN:
        cells = [_point(panel, "student", panel["shares"].index(share)) for panel in panels.values()]
        lines.append(line(f"a query alone: recall with {share:.0%} of the rows in its short-list", *cells))
    for name, title in METHODS.items():
        title = f"**short-list for {wanted}**" if name == "student" else f"the same, {title}"
        lines.append(line(title, *(_percent(panel["methods"][name]["needed"], "share", "interval") for panel in panels.values())))
    cells = [_percent(panel["methods"]["student"]["needed_together"], "touched", "touched_interval") for panel in panels.values()]
    lines.append(line(f"all queries together: touched for {wanted}", *cells))
    return "\n".join(lines) + "\n"


def _point(panel: dict[str, Any], method: str, place: int) -> str:
    found = panel["methods"][method]["alone"][place]
    return f"{short(found['value'])} [{', '.join(map(short, found['interval']))}]"


def _percent(found: dict[str, Any], value: str, interval: str) -> str:
    low, high = found[interval]
    return f"{100 * found[value]:.3g} % [{100 * low:.3g}, {100 * high:.3g}]"


def draw(path: Path, figures: dict[str, Any]) -> None:
    """Draw recall against what a query alone takes, and against what all queries together touch."""
    panels = figures["panels"]
    figure = Figure(figsize=(3.1 * len(panels), 6.4), layout="constrained")
    above, below = figure.subplots(2, len(panels), sharey=True)
    for place, (title, panel) in enumerate(panels.items()):
        _draw_methods(above[place], panel, "alone", panel["shares"], figures["wanted"])
        above[place].set(xscale="log", title=title, xlabel="share of the rows in a query's short-list")
        above[place].set_xticks((0.01, 0.1, 1), ("1 %", "10 %", "all"))
        _draw_methods(below[place], panel, "together", None, figures["wanted"])
        below[place].set(xlabel=f"share of the rows touched for {panel['queries']} queries")
        below[place].set_xticks((0, 0.5, 1), ("0", "50 %", "all"))
    for axes in (above[0], below[0]):
        axes.set_ylabel(f"found of the teacher's {figures['k']} best rows")
    figure.legend(*above[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(METHODS), frameon=False)
    figure.savefig(path, dpi=110)


def _draw_methods(axes: Axes, panel: dict[str, Any], which: str, shares: list[float] | None, wanted: float) -> None:
    for colour, (name, label) in zip(("tab:red", "tab:green", "tab:purple", "tab:gray", "tab:blue"), METHODS.items(), strict=True):
        found = panel["methods"][name]
        places = found["touched_by_all"] if shares is None else shares
        axes.plot(places, [point["value"] for point in found[which]], color=colour, label=label)
        axes.fill_between(places, *np.array([point["interval"] for point in found[which]]).T, color=colour, alpha=0.15, linewidth=0)
    axes.axhline(wanted, color="black", linewidth=0.8, linestyle="--")
    axes.grid(alpha=0.3)


def main() -> None:
    """Write the table into the README, and draw."""
    BLOCK.write(table(RESULT))
    draw(PICTURE, json.loads(RESULT.read_text()))


if __name__ == "__main__":
    main()
