"""Points: one ranking against another, and what a method costs against what it finds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from eval.report.svg import WIDTH, Axis, apart, bottom_axis, cut, decades, dots, left_axis, line, picture, text, ticks
from eval.table import short

LEFT, NAMES, TOP, LOWER = 44, 270, 12, 250
"""the plot's left end, where names begin, top and bottom"""
SIDE = 238
"""of the square of ranks"""


@dataclass(frozen=True)
class Priced:
    """What a method costs and how good it is."""

    label: str
    css: str
    seconds: float
    """for 1 000 rows"""
    mean: float
    low: float
    high: float


def scatter(
    xs: Sequence[float], ys: Sequence[float], across_words: str, up_words: str, words: str, limits: tuple[float, float] = (0, 1)
) -> str:
    """Return points in a square with its diagonal.

    Args:
        xs: to the right.
        ys: up.
        across_words: of the x axis.
        up_words: of the y axis.
        words: what the picture shows, for screen readers.
        limits: of both axes.
    """
    left = (WIDTH - SIDE) / 2
    across, up = Axis(*limits, left, left + SIDE), Axis(*limits, TOP + SIDE, TOP)
    marks = [(value, short(value)) for value in ticks(*limits, 6)]
    parts = bottom_axis(across, TOP, TOP + SIDE, marks, across_words) + left_axis(up, left, left + SIDE, marks)
    middle = TOP + SIDE / 2
    turned = f'<g transform="rotate(-90 {left - 42:.0f} {middle:.0f})">{text(left - 42, middle, up_words, "middle", "axis")}</g>'
    parts += [turned, line(across.at(limits[0]), up.at(limits[0]), across.at(limits[1]), up.at(limits[1]), "mark")]
    return picture(TOP + SIDE + 40, words, [*parts, dots(((across.at(x), up.at(y)) for x, y in zip(xs, ys, strict=True)), "student")])


def cost_and_quality(points: Sequence[Priced], up_words: str, words: str) -> str:
    """Return quality, with intervals, by seconds for 1 000 rows on a logarithmic axis; a method that costs nothing stands at the left end.

    Args:
        points: at least one.
        up_words: the quality.
        words: what the picture shows, for screen readers.
    """
    paid = [point.seconds for point in points if point.seconds > 0] or [1.0]
    across = Axis(min(paid) / 3, max(paid) * 2, LEFT, NAMES - 16, "log")
    up = Axis(min(0.0, *(point.low for point in points)), max(0.1, *(point.high for point in points)), LOWER, TOP + 18)
    marks = [(value, f"{value:,g}") for value in decades(across.low, across.high)]
    parts = bottom_axis(across, up.end, LOWER, marks, "seconds for 1 000 rows")
    parts += left_axis(up, LEFT, across.end, [(value, short(value)) for value in ticks(up.low, up.high)])
    parts.append(text(LEFT - 34, TOP, up_words, css="axis"))
    heights = apart([up.at(point.mean) for point in points], 14, up.end, LOWER)
    for point, height in zip(points, heights, strict=True):
        x, y = across.at(max(point.seconds, across.low)), up.at(point.mean)
        parts += [line(x, y, NAMES - 3, height, "leader"), text(NAMES, height, cut(point.label), css="name")]
    for point in points:
        x = across.at(max(point.seconds, across.low))
        parts += [line(x, up.at(point.low), x, up.at(point.high), f"line {point.css}"), dots([(x, up.at(point.mean))], f"big {point.css}")]
    return picture(LOWER + 40, words, parts)
