"""The table of contributors: what each is worth, how surely, and what it is paid.

Paid is `max(0, low)`, the lower end of the interval, never the signed total: a sum of signed totals can be near 0 or change its sign.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from influcoder.contributions.canonical_json import fixed_decimal
from influcoder.contributions.rewards import largest_remainder
from influcoder.contributions.values import Clusters, Ints, Valuation, totals_by_contributor

STATUSES = {
    "paid": "gets a share of the budget",
    "below one unit": "worth something, but less than a unit of the budget",
    "uncertain": "the interval reaches zero: nothing is paid",
    "negative": "the rows rather work against the queries: listed, not paid",
}


@dataclass(frozen=True, kw_only=True)
class Line:
    """One contributor; values in billionths."""

    contributor: str
    rows: int
    unique_rows: int
    """clusters of copies among its rows"""
    total: int
    positive: int
    """sum of the rows' values above zero"""
    negative: int
    low: int
    high: int
    reward: int
    """whole units of the budget"""
    status: str

    def canonical(self) -> dict[str, Any]:
        """Return the line as the manifest has it: values as decimals, the reward as a string of digits."""
        values = {name: fixed_decimal(getattr(self, name)) for name in ("total", "positive", "negative", "low", "high")}
        return {
            "contributor": self.contributor,
            "rows": self.rows,
            "unique_rows": self.unique_rows,
            **values,
            "reward": str(self.reward),
            "status": self.status,
        }


def ledger(names: Sequence[str], contributors: Ints, clusters: Clusters, valuation: Valuation, budget: int) -> list[Line]:
    """Return one line a contributor, in the order of `names`.

    Args:
        names: of the contributors.
        contributors: (rows,), places in `names`.
        clusters: which rows are the same data.
        valuation: what the rows are worth.
        budget: whole units to pay out.
    """
    count = len(names)
    rewards = largest_remainder([max(0, int(low)) for low in valuation.low], budget)
    rows = np.bincount(contributors, minlength=count)
    seen = np.unique(np.stack([contributors, clusters.number]), axis=1)
    unique = np.bincount(seen[0], minlength=count)
    positive = totals_by_contributor(np.maximum(valuation.values, 0), contributors, count)
    lines = []
    for place, name in enumerate(names):
        total, low = int(valuation.totals[place]), int(valuation.low[place])
        lines.append(
            Line(
                contributor=name,
                rows=int(rows[place]),
                unique_rows=int(unique[place]),
                total=total,
                positive=int(positive[place]),
                negative=total - int(positive[place]),
                low=low,
                high=int(valuation.high[place]),
                reward=rewards[place],
                status=_status(total, low, rewards[place]),
            )
        )
    return lines


def _status(total: int, low: int, reward: int) -> str:
    if reward > 0:
        return "paid"
    if low > 0:
        return "below one unit"
    return "negative" if total < 0 else "uncertain"
