"""docs/f_influence.png: groups with intervals beside retraining, trade-off curves, when groups mattered, ranks from seed to seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.f_influence_measures import Groups, Recorded, estimators
from influcoder.influence.f_influence import compose, group_sums, step_influence
from influcoder.influence.f_influence_plot import draw_intervals, draw_over_training, draw_seed_ranks, draw_trade_off

SHOWN = ("100% flipped", "25% flipped", "class 2", "random 0")


def draw(path: Path, recorded: Recorded, groups: Groups, found: dict[str, Any]) -> None:
    """Draw the first training's groups, calibrated, and the first two trainings' ranks."""
    figure = Figure(figsize=(15, 9), layout="constrained")
    intervals, truth, curves, course, ours, last = figure.subplots(2, 3).flat
    factor, measured = found["calibration"]["standardised"]["factor"], list(found["groups"]["moment"].values())
    steps, names = factor * group_sums(step_influence(recorded.run(0)), list(groups.values())), list(groups)
    influence, places = compose(steps), [list(groups).index(name) for name in SHOWN if name in groups]
    draw_intervals(intervals, names, influence)
    intervals.scatter(measured, range(len(names)), marker="x", s=20, color="black", label="retrained without the group")
    intervals.legend(fontsize=8, frameon=False)
    truth.scatter(influence.mu, measured, s=14)
    truth.axline((0, 0), slope=1, color="black", linewidth=0.8, linestyle="--")
    truth.set(xlabel="mu of one run, calibrated", ylabel="mu of retraining")
    draw_trade_off(curves, {names[place]: float(influence.mu[place]) for place in places})
    draw_over_training(course, np.arange(1, len(steps) + 1).tolist(), {names[place]: steps[:, place] for place in places})
    course.legend(fontsize=8, frameon=False)
    scores = estimators(recorded)
    for axes, name in ((ours, "signed_squares"), (last, "last checkpoint")):
        draw_seed_ranks(axes, scores[name][0], scores[name][1], recorded.flipped)
        axes.set_title(f"{name} (red: flipped)", fontsize=9)
    figure.savefig(path, dpi=110)
