"""Curves: what is found by what is inspected, and what is left of a behaviour by rows removed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from eval.report.svg import Axis, band, bottom_axis, dots, left_axis, line, picture, polyline, text, ticks

LEFT, RIGHT, TOP, LOWER = 44, 388, 20, 250
SHARES = (0, 0.01, 0.05, 0.1, 0.2, 0.5, 1)


@dataclass(frozen=True)
class Line:
    """One method: means, and its interval where there is one."""

    css: str
    xs: Sequence[float]
    ys: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


@dataclass(frozen=True)
class Level:
    """A height that holds whatever is removed."""

    label: str
    mean: float
    low: float
    high: float


def recall_curves(lines: Sequence[Line], mark: float, words: str) -> str:
    """Return the share found by the share inspected, both 0 to 1; small shares get more room; `mark` is as many as there are to find."""
    across, up = Axis(0, 1, LEFT, RIGHT, "root"), Axis(0, 1, LOWER, TOP)
    parts = bottom_axis(across, TOP, LOWER, [(share, f"{100 * share:.0f}") for share in SHARES], "rows inspected, % of the candidates")
    parts += left_axis(up, LEFT, RIGHT, [(share, f"{100 * share:.0f} %") for share in (0, 0.25, 0.5, 0.75, 1)])
    side = "start" if mark < 0.25 else "end"
    parts += [line(across.at(mark), TOP, across.at(mark), LOWER, "mark")]
    parts += [text(across.at(mark), TOP - 9, "as many as there are to find", side, "marked")]
    parts += [polyline(((across.at(x), up.at(y)) for x, y in zip(each.xs, each.ys, strict=True)), each.css) for each in lines]
    return picture(LOWER + 40, words, parts)


def removal_curves(lines: Sequence[Line], levels: Sequence[Level], axis_words: str, words: str) -> str:
    """Return a behaviour by rows removed, with bands; levels are dashed.

    Args:
        lines: by method, from no row on.
        levels: of models that nothing was removed for.
        axis_words: of the rows.
        words: what the picture shows, for screen readers.
    """
    ends = [value for each in lines for value in (*(each.low or each.ys), *(each.high or each.ys))]
    ends += [value for level in levels for value in (level.low, level.high)]
    low, high = min(ends), max(ends)
    margin = 0.05 * (high - low) or 1.0
    across, up = Axis(0, max(max(each.xs) for each in lines), LEFT, RIGHT), Axis(low - margin, high + margin, LOWER, TOP)
    parts = bottom_axis(across, TOP, LOWER, [(x, f"{x:,.0f}") for x in sorted({x for each in lines for x in each.xs})], axis_words)
    parts += left_axis(up, LEFT, RIGHT, [(y, f"{y:g}") for y in ticks(up.low, up.high)])
    for level in levels:
        parts += [band(_ends(across, up, level.high), _ends(across, up, level.low), "level")]
        parts += [line(LEFT, up.at(level.mean), RIGHT, up.at(level.mean), "mark")]
        parts += [text(LEFT + 4, up.at(level.mean) - 8, level.label, css="marked")]
    for each in lines:
        if each.low and each.high:
            parts.append(band(_places(across, up, each.xs, each.high), _places(across, up, each.xs, each.low), each.css))
    for each in lines:
        places = _places(across, up, each.xs, each.ys)
        parts += [polyline(places, each.css), dots(places, f"big {each.css}")]
    return picture(LOWER + 40, words, parts)


def _places(across: Axis, up: Axis, xs: Sequence[float], ys: Sequence[float]) -> list[tuple[float, float]]:
    return [(across.at(x), up.at(y)) for x, y in zip(xs, ys, strict=True)]


def _ends(across: Axis, up: Axis, y: float) -> list[tuple[float, float]]:
    return [(across.start, up.at(y)), (across.end, up.at(y))]
