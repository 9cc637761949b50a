"""Pictures of f-influence: mu with its interval, when rows mattered, trade-off curves, ranks from seed to seed.

Each function draws on axes that it is given; nothing global, no display.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from influcoder.errors import require
from influcoder.influence.f_influence import Influence, trade_off

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = NDArray[np.float64]
HELPFUL, HARMFUL, UNKNOWN = "#1f6fb4", "#b03a2e", "#b0b0b0"
STYLES = ("-", "--", ":", "-.")
"""of lines, in turn"""
DRAWN = 8
"""rows of either sign in a run's plot"""


def draw_intervals(axes: Axes, names: Sequence[str], influence: Influence) -> None:
    """Draw mu of each row or group with its interval, one a line, in the order given; grey where the interval holds 0."""
    places = np.arange(len(names))
    for mask, colour in (
        (~influence.distinguishable, UNKNOWN),
        (influence.distinguishable & (influence.mu > 0), HELPFUL),
        (influence.distinguishable & (influence.mu < 0), HARMFUL),
    ):
        reach = np.abs(np.stack([influence.mu - influence.lower, influence.upper - influence.mu])[:, mask])
        finite = np.where(np.isfinite(reach), reach, 0.0)  # of one block nothing is known
        axes.errorbar(influence.mu[mask], places[mask], xerr=finite, fmt="o", color=colour, markersize=4, capsize=2)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(places, names, fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("mu, 95 % interval (grey: sign not known)", fontsize=9)
    axes.spines[["top", "right", "left"]].set_visible(False)


def draw_over_training(axes: Axes, steps: Sequence[int], contributions: Mapping[str, Array]) -> None:
    """Draw how mu of some rows or groups adds up along the run: contributions (T,) by name at recorded steps (T,)."""
    for (name, added), style in zip(contributions.items(), cycle(STYLES), strict=False):
        colour = HELPFUL if added.sum() > 0 else HARMFUL
        axes.plot(steps, np.cumsum(added), label=name, color=colour, alpha=0.7, linewidth=1.2, linestyle=style)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xlabel("step", fontsize=9)
    axes.set_ylabel("mu so far", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)


def draw_trade_off(axes: Axes, groups: Mapping[str, float]) -> None:
    """Draw T(alpha) of groups by name and mu; a negative mu is drawn as the other side's test, with its absolute value."""
    alphas = np.linspace(0, 1, 201)
    axes.plot(alphas, 1 - alphas, color="black", linewidth=0.8, linestyle="--")
    for (name, mu), style in zip(groups.items(), cycle(STYLES), strict=False):
        colour = HELPFUL if mu > 0 else HARMFUL
        axes.plot(alphas, trade_off(abs(mu), alphas), label=f"{name}, mu {mu:.2f}", color=colour, linestyle=style)
    axes.set_xlabel("type-I error", fontsize=9)
    axes.set_ylabel("least type-II error", fontsize=9)
    axes.legend(fontsize=7, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def draw_seed_ranks(axes: Axes, first: Array, second: Array, marked: NDArray[np.bool_] | None = None) -> None:
    """Draw ranks of rows under one seed against another, (N,) scores each; `marked` rows stand out."""
    ranks = [scores.argsort(kind="stable").argsort(kind="stable") + 1 for scores in (first, second)]
    rest = np.ones(len(first), bool) if marked is None else ~marked
    axes.scatter(ranks[0][rest], ranks[1][rest], s=2, color=UNKNOWN)
    axes.scatter(ranks[0][~rest], ranks[1][~rest], s=4, color=HARMFUL)
    axes.set_xlabel("rank, one seed (1: most harmful)", fontsize=9)
    axes.set_ylabel("rank, another", fontsize=9)
    axes.set_aspect("equal")
    axes.spines[["top", "right"]].set_visible(False)


def save_run_plot(path: Path, row_ids: Sequence[str], influence: Influence, contributions: Array, steps: Sequence[int]) -> None:
    """Draw a run's most harmful and most helpful rows, with intervals and along the training; png.

    Args:
        path: to write.
        row_ids: (N,).
        influence: of the rows, (N,).
        contributions: (T, N) of each recorded step.
        steps: (T,).

    Raises:
        MissingExtraError: when matplotlib is not installed.
    """
    figures = require("matplotlib.figure", "train")  # a Figure of its own: no pyplot, no display, nothing global
    order = np.argsort(influence.mu, kind="stable")
    shown = order if len(order) <= 2 * DRAWN else np.concatenate([order[:DRAWN], order[-DRAWN:]])
    names = [row_ids[row] for row in shown]
    figure = figures.Figure(figsize=(10, 1.2 + 0.25 * len(shown)), layout="constrained")
    left, right = figure.subplots(1, 2)
    chosen = Influence(*(values[shown] for values in (influence.mu, influence.lower, influence.upper, influence.p_value)))
    draw_intervals(left, names, chosen)
    draw_over_training(right, steps, {name: contributions[:, row] for name, row in zip(names, shown, strict=True)})
    figure.savefig(path, dpi=120)
