"""Where a figure stands among others: above, below, or not apart. Everything that a verdict rests on.

A gap with an interval, paired by resample, decides where there is one; else two intervals that do not touch are apart, which is the
stricter rule of the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Relation = Literal["above", "level", "below"]
Figure = Mapping[str, Any]
"""mean, low, high, n"""
Gap = Mapping[str, Any]
"""value, low, high: one figure less another"""


def of_gap(gap: Gap) -> Relation:
    """Return where a figure stands whose lead is `gap`: above when the whole interval is."""
    return "above" if gap["low"] > 0 else "below" if gap["high"] < 0 else "level"


def of_intervals(mine: Figure, theirs: Figure) -> Relation:
    """Return where `mine` stands; level where the intervals touch."""
    return "above" if mine["low"] > theirs["high"] else "below" if mine["high"] < theirs["low"] else "level"


def relation(mine: Figure, theirs: Figure, gap: Gap | None) -> Relation:
    """Return where `mine` stands, by the paired gap where there is one."""
    return of_intervals(mine, theirs) if gap is None else of_gap(gap)


@dataclass(frozen=True)
class Floors:
    """The floors around one figure, each list best first."""

    figures: Mapping[str, Figure]
    """all of them, best first"""
    above: tuple[str, ...]
    """floors that the figure is below"""
    level: tuple[str, ...]
    """floors that it is not apart from"""

    @property
    def best(self) -> str | None:
        """The floor of the highest mean."""
        return next(iter(self.figures), None)


def among_floors(mine: Figure, floors: Mapping[str, Figure], gaps: Mapping[str, Gap | None]) -> Floors:
    """Place a figure among floors.

    Args:
        mine: the figure.
        floors: theirs by name.
        gaps: `mine` less theirs by name, where paired.
    """
    ordered = dict(sorted(floors.items(), key=lambda item: -item[1]["mean"]))
    found = {name: relation(mine, figure, gaps.get(name)) for name, figure in ordered.items()}
    return Floors(ordered, *(tuple(name for name in ordered if found[name] == where) for where in ("below", "level")))


def share_of_the_way(value: float, floor: float, ceiling: float) -> float:
    """Return how far `value` is from the floor, 0, to the ceiling, 1. Expects a ceiling above the floor."""
    return (value - floor) / (ceiling - floor)
