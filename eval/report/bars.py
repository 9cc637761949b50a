"""Methods below one another: bars with intervals, and strips of one figure a query."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eval.report.svg import WIDTH, Axis, bottom_axis, cut, line, picture, rectangle, text, ticks
from eval.table import short

STEP, LEFT, RIGHT, TOP = 22, 138, 36, 8
"""height of a line, and what is left for names, for figures, and above"""


@dataclass(frozen=True)
class Bar:
    """One method."""

    label: str
    css: str
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Strip:
    """One method's figure of each query."""

    label: str
    css: str
    values: NDArray[np.float64]
    """(Q,)"""


def bars(
    rows: Sequence[Bar], axis_words: str, words: str, mark: tuple[float, str] | None = None, write: Callable[[float], str] = short
) -> str:
    """Return bars with intervals.

    Args:
        rows: from top to bottom; at least one.
        axis_words: what the length is.
        words: what the picture shows, for screen readers.
        mark: a dashed line, and its name above it.
        write: how a number is written.
    """
    ends = [value for row in rows for value in (row.low, row.high, row.mean)] + ([mark[0]] if mark else [])
    upper = TOP + (14 if mark else 0)
    axis, lower = _axis(min(0.0, *ends), max(ends)), upper + STEP * len(rows)
    parts = bottom_axis(axis, upper, lower, [(value, write(value)) for value in ticks(axis.low, axis.high, 6)], axis_words)
    for place, row in enumerate(rows):
        y = upper + STEP * (place + 0.5)
        parts += [_name(row.label, y), rectangle(axis.at(0), axis.at(row.mean), y, 12, f"bar {row.css}")]
        parts += [line(axis.at(row.low), y, axis.at(row.high), y, "interval")]
        parts += [text(max(axis.at(row.high), axis.at(0)) + 5, y, write(row.mean), css="figure")]
    if mark:
        x = axis.at(mark[0])
        parts += [line(x, upper, x, lower, "mark"), text(min(x, WIDTH - 60), upper - 9, f"{mark[1]} {write(mark[0])}", "middle", "marked")]
    return picture(lower + 40, words, [*parts, line(axis.at(0), upper, axis.at(0), lower, "zero")])


def strips(rows: Sequence[Strip], axis_words: str, words: str) -> str:
    """Return a tick a query, the middle half as a bar, and the mean: how figures spread, by method."""
    every = np.concatenate([row.values for row in rows])
    axis, lower = _axis(min(0.0, float(every.min())), float(every.max())), TOP + STEP * len(rows)
    parts = bottom_axis(axis, TOP, lower, [(value, short(value)) for value in ticks(axis.low, axis.high, 7)], axis_words)
    parts += [line(axis.at(0), TOP, axis.at(0), lower, "zero")]
    for place, row in enumerate(rows):
        y, mean = TOP + STEP * (place + 0.5), float(row.values.mean())
        first, third = (float(value) for value in np.quantile(row.values, [0.25, 0.75]))
        rug = "".join(f"M{axis.at(float(value)):.1f} {y - 7:.0f}v14" for value in row.values)
        parts += [
            _name(row.label, y),
            f'<path class="rug {row.css}" d="{rug}"/>',
            rectangle(axis.at(first), axis.at(third), y, 6, f"bar {row.css}"),
        ]
        parts += [line(axis.at(mean), y - 8, axis.at(mean), y + 8, "mean"), text(WIDTH - 2, y, short(mean), "end", "figure")]
    return picture(lower + 40, words, parts)


def _axis(low: float, high: float) -> Axis:
    return Axis(low, high if high > low else low + 1.0, LEFT, WIDTH - RIGHT)


def _name(label: str, y: float) -> str:
    return text(LEFT - 8, y, cut(label), "end", "name")
