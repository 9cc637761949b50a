"""`fidelity.png` of a student run: how a validation row's rank by the student goes with its rank by the teacher."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from influcoder.errors import require
from influcoder.metrics import average_ranks, per_query_spearman

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Scores = NDArray[np.floating]
LINES = {"student": ("#1f6fb4", "-"), "untrained encoder": ("#7fb3d5", "--"), "teacher, second seed": ("#8c8c8c", "-")}
"""colour and style of a method, as eval draws it"""
CELLS = 25
"""of the picture of ranks, along either side"""


def write_plot(path: Path, target: Scores, scores: Mapping[str, Scores]) -> None:
    """Draw ranks against ranks, and each method's Spearman over the queries; png.

    Args:
        path: of the picture.
        target: (queries, candidates) the teacher's.
        scores: those of each method, (queries, candidates); a `student` is among them.

    Raises:
        MissingExtraError: when matplotlib is not installed.
    """
    figures = require("matplotlib.figure", "train")  # a Figure of its own: no pyplot, no display, nothing global
    figure = figures.Figure(figsize=(10.5, 4.6), layout="constrained")
    ranks, spread = figure.subplots(1, 2)
    _draw_ranks(ranks, target, scores["student"])
    _draw_spread(spread, target, scores)
    figure.savefig(path, dpi=120)


def rank_shares(scores: Scores) -> NDArray[np.float64]:
    """Return each row's place in its query's ranking, 0 the worst to 1 the best: (queries, candidates); ties share theirs."""
    ranks = np.stack([average_ranks(row) for row in scores])
    shares: NDArray[np.float64] = (ranks - 1) / max(1, scores.shape[1] - 1)
    return shares


def _draw_ranks(panel: Axes, target: Scores, student: Scores) -> None:
    panel.hexbin(rank_shares(target).ravel(), rank_shares(student).ravel(), gridsize=CELLS, cmap="Blues", mincnt=1, vmin=-1, linewidths=0.1)
    panel.plot([0, 1], [0, 1], color="#b03a2e", linewidth=1, linestyle="--")
    panel.set_title("A row's rank for a query", loc="left", fontweight="bold")
    panel.set_title("darker: more rows", loc="right", fontsize=9)
    panel.set_xlabel("by the teacher, 0 the worst to 1 the best", fontsize=9)
    panel.set_ylabel("by the student", fontsize=9)
    panel.spines[["top", "right"]].set_visible(False)


def _draw_spread(panel: Axes, target: Scores, scores: Mapping[str, Scores]) -> None:
    for name, found in scores.items():
        rhos = np.sort(per_query_spearman(found, target))
        colour, style = LINES[name]
        panel.plot(np.linspace(0, 1, len(rhos)), rhos, color=colour, linestyle=style, label=f"{name}: {rhos.mean():.2f}")
    panel.axhline(0, color="black", linewidth=0.8)
    panel.set_ylim(-1.02, 1.02)
    panel.set_title("Spearman with the teacher, query by query", loc="left", fontweight="bold")
    panel.set_xlabel("share of the queries, the worst met first", fontsize=9)
    panel.set_ylabel("Spearman", fontsize=9)
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(fontsize=9, loc="lower right", frameon=False)
