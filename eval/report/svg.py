"""Bricks of pictures: an axis, marks, words; strings of SVG.

Colours are CSS classes, so that a picture follows the page into the dark: a mark takes `var(--c)` of its class, the rest is ink.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

WIDTH = 400
"""of every picture, in its own units: at a phone's width letters stay readable"""
NAME_LETTERS = 19
Points = Iterable[tuple[float, float]]


@dataclass(frozen=True)
class Axis:
    """Places values on pixels."""

    low: float
    high: float
    start: float
    """pixel of `low`"""
    end: float
    """pixel of `high`; smaller than `start` where the axis points up"""
    kind: Literal["linear", "log", "root"] = "linear"
    """root: square roots, which give room to small shares"""

    def at(self, value: float) -> float:
        """Return the pixel of a value; one beyond the ends stays at the end."""
        low, high, placed = (self._scaled(number) for number in (self.low, self.high, min(max(value, self.low), self.high)))
        return self.start + (self.end - self.start) * (placed - low) / (high - low)

    def _scaled(self, value: float) -> float:
        return {"linear": float, "log": math.log10, "root": math.sqrt}[self.kind](value)


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Return round numbers within a range, at steps of 1, 2 or 5 times a power of ten, `most` at the utmost."""
    size = 10.0 ** math.floor(math.log10((high - low) / most))
    found: list[float] = []
    for times in (1, 2, 5, 10, 20):  # the smallest step that is not too many
        step = size * times
        found = [number * step for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
        if len(found) <= most:
            break
    return [round(value, 12) + 0.0 for value in found]  # + 0.0 takes the sign from -0.0


def decades(low: float, high: float) -> list[float]:
    """Return the powers of ten within a range."""
    return [10.0**power for power in range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9) + 1)]


def cut(name: str) -> str:
    """Return a method's name that fits beside its mark; pictures leave room for so many letters."""
    return name if len(name) <= NAME_LETTERS else f"{name[: NAME_LETTERS - 1]}…"


def picture(height: float, words: str, parts: Iterable[str]) -> str:
    """Return an image that a screen reader names by `words`."""
    return f'<svg class="chart" viewBox="0 0 {WIDTH} {_short(height)}" role="img" aria-label="{escape(words)}">{"".join(parts)}</svg>'


def text(x: float, y: float, words: str, anchor: str = "start", css: str = "") -> str:
    """Return words, the middle of their height at y."""
    classes = f' class="{css}"' if css else ""
    return f'<text{classes} x="{_short(x)}" y="{_short(y)}" dy=".35em" text-anchor="{anchor}">{escape(words)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, css: str) -> str:
    """Return a straight line."""
    return f'<path class="{css}" d="M{_short(x1)} {_short(y1)}L{_short(x2)} {_short(y2)}"/>'


def polyline(points: Points, css: str) -> str:
    """Return a line through points."""
    return f'<path class="line {css}" d="M{"L".join(f"{_short(x)} {_short(y)}" for x, y in points)}"/>'


def band(upper: Sequence[tuple[float, float]], lower: Sequence[tuple[float, float]], css: str) -> str:
    """Return the area between two lines."""
    corners = "L".join(f"{_short(x)} {_short(y)}" for x, y in (*upper, *reversed(lower)))
    return f'<path class="band {css}" d="M{corners}Z"/>'


def dots(points: Points, css: str) -> str:
    """Return points as one path, a round stroke each: some bytes a point."""
    return f'<path class="dots {css}" d="{"".join(f"M{_short(x)} {_short(y)}h0" for x, y in points)}"/>'


def rectangle(x1: float, x2: float, y: float, height: float, css: str) -> str:
    """Return a bar between x1 and x2, its middle at y."""
    left, right = sorted((x1, x2))
    return f'<rect class="{css}" x="{_short(left)}" y="{_short(y - height / 2)}" width="{_short(right - left)}" height="{_short(height)}"/>'


def bottom_axis(axis: Axis, upper: float, lower: float, marks: Iterable[tuple[float, str]], words: str) -> list[str]:
    """Return vertical lines of a grid at marks `(value, words)`, and what they mean below."""
    parts = []
    for value, written in marks:
        x = axis.at(value)
        parts += [line(x, upper, x, lower, "grid"), text(x, lower + 12, written, "middle")]
    return [*parts, text((axis.start + axis.end) / 2, lower + 30, words, "middle", "axis")]


def left_axis(axis: Axis, left: float, right: float, marks: Iterable[tuple[float, str]]) -> list[str]:
    """Return horizontal lines of a grid, with their values on the left."""
    return [
        part for value, written in marks
        for part in (line(left, axis.at(value), right, axis.at(value), "grid"), text(left - 6, axis.at(value), written, "end"))
    ]  # fmt: skip


def apart(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Return places moved as little as can be (in squares) so that neighbours are `gap` apart, between two ends, in their order.

    Places less `gap` times their number must not fall: isotonic regression, by pooling, cut at the ends. Expects room for all.
    """
    order = sorted(range(len(places)), key=lambda place: places[place])
    blocks: list[list[float]] = []  # wanted places less what stands before, whose means must not fall
    for number, place in enumerate(order):
        blocks.append([places[place] - gap * number])
        while len(blocks) > 1 and _mean(blocks[-2]) > _mean(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    last = high - gap * (len(places) - 1)
    moved = [0.0] * len(places)
    for number, (place, found) in enumerate(zip(order, [_mean(block) for block in blocks for _ in block], strict=True)):
        moved[place] = min(max(found, low), last) + gap * number
    return moved


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _short(number: float) -> str:
    return f"{number:.1f}".removesuffix(".0")
