"""From scores of rows to values of rows and contributors, in whole billionths.

A cluster of copies is valued once: the mean of its rows' scores, capped at a quantile over clusters, and shared among its rows; or, with
`copies: first`, its first row's score, which later copies cannot change. A contributor's value is the sum over its rows, so several identities are worth what one is. Contributors are never players of a game of
their own (Faithful Group Shapley, arXiv 2505.19013).

N rows, C contributors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from influcoder.contributions.resampling import RowScores, draw_counts
from influcoder.errors import ConfigError

Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class ValueSettings:
    """What a value is."""

    near_duplicate_jaccard: float | None = 0.5
    """rows whose word 3-shingles overlap at least so much are valued once, 0 to 1; null: only copies up to case and white space"""
    near_duplicate_cosine: float = 0.9
    """and whose embeddings have at least this cosine, -1 to 1"""
    copies: Literal["equal", "first"] = "equal"
    """what copies share: equal, the mean of their scores, every row the same part; first, the first row alone gets its own score"""
    commit_column: str | None = None
    """column of the pool that says when a row was committed: the least one of a cluster is first; null takes the order of the rows"""
    cap_quantile: float = 0.99
    """values of clusters above this quantile are cut to it, 0 to 1; 1 cuts nothing. Low ones are never cut: harm is not made cheaper"""
    draws: int = 400
    """resamples of the queries behind an interval"""
    confidence: float = 0.95
    """share of the draws inside an interval, 0 to 1; its lower end is what is paid for"""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.near_duplicate_jaccard is not None and not 0 < self.near_duplicate_jaccard <= 1:
            raise ConfigError(f"valuation: near_duplicate_jaccard {self.near_duplicate_jaccard}; expected a number in (0, 1], or null")
        if not -1 <= self.near_duplicate_cosine <= 1:
            raise ConfigError(f"valuation: near_duplicate_cosine {self.near_duplicate_cosine}; expected a number from -1 to 1")
        if not 0 < self.cap_quantile <= 1:
            raise ConfigError(f"valuation: cap_quantile {self.cap_quantile}; expected a number in (0, 1]; 1 cuts nothing")
        if self.draws < 20 or not 0 < self.confidence < 1:
            raise ConfigError(
                f"valuation: draws {self.draws}, confidence {self.confidence}; expected at least 20 draws and a share between 0 and 1"
            )
        if self.commit_column is not None and self.copies != "first":
            raise ConfigError("valuation: commit_column is read only with copies: first; set that, or leave commit_column out")


@dataclass(frozen=True)
class Clusters:
    """Which rows are the same data, and how a cluster's value is shared."""

    number: Ints
    """(N,), from 0 in order of the clusters' first rows"""
    sizes: Ints
    """rows of each cluster"""
    rank: Ints
    """(N,), a row's place within its cluster, 0 is first"""
    copies: Literal["equal", "first"]

    @classmethod
    def of(cls, first_rows: Ints, copies: Literal["equal", "first"], precedence: Ints | None = None) -> Clusters:
        """Return the clusters that `first_rows`, (N,), name; `precedence`, (N,), less is earlier, None is the order of the rows."""
        _, number, sizes = np.unique(first_rows, return_inverse=True, return_counts=True)
        precedence = np.arange(len(number)) if precedence is None else precedence
        order = np.lexsort((np.arange(len(number)), precedence, number))
        starts = np.cumsum(sizes) - sizes
        rank = np.empty(len(number), np.int64)
        rank[order] = np.arange(len(number)) - np.repeat(starts, sizes)
        return cls(number.astype(np.int64), sizes.astype(np.int64), rank, copies)

    def values(self, scores: Ints) -> Ints:
        """Return each cluster's mean score, rounded down, or that of its first row where copies get nothing."""
        if self.copies == "first":
            first = np.flatnonzero(self.rank == 0)
            return scores[first[np.argsort(self.number[first])]]
        sums = np.zeros(len(self.sizes), np.int64)
        np.add.at(sums, self.number, scores)
        return sums // self.sizes

    def shared(self, values: Ints) -> Ints:
        """Return each row's part of its cluster's value, (N,): the parts of a cluster add up to its value."""
        value, size = values[self.number], self.sizes[self.number]
        if self.copies == "first":
            return np.where(self.rank == 0, value, 0)
        part = value // size
        return part + (self.rank < value - part * size)


@dataclass(frozen=True)
class Valuation:
    """All that follows from the scores, in billionths."""

    scores: Ints
    """(N,), as the encoder gave them, over all queries"""
    cap: int
    """what clusters' values were cut to"""
    capped: NDArray[np.bool_]
    """(N,), whether the row's cluster was cut"""
    values: Ints
    """(N,), each row's part"""
    totals: Ints
    """(C,), sums of the parts"""
    draws: Ints
    """(draws, C), totals over resampled queries"""
    low: Ints
    """(C,), ends of the interval"""
    high: Ints


def quantile(values: Ints, share: float) -> int:
    """Return the value below or at which `share` of the values lie, one of them: no interpolation, so exact."""
    place = int(share * (len(values) - 1))
    return int(np.partition(values, place)[place])


def totals_by_contributor(values: Ints, contributors: Ints, count: int) -> Ints:
    """Return the sum of the rows' values of each of `count` contributors; `contributors`, (N,), says whose a row is."""
    totals = np.zeros(count, np.int64)
    np.add.at(totals, contributors, values)
    return totals


def evaluate(
    scores: NDArray[np.float32],
    weights: NDArray[np.float64],
    contributors: Ints,
    clusters: Clusters,
    *,
    top: int | None,
    settings: ValueSettings,
) -> Valuation:
    """Value rows and contributors.

    Args:
        scores: (queries, N), larger = the row lowers the query's loss more.
        weights: (queries,), +1 behaviour that is wanted, -1 behaviour to look away from, or harm.
        contributors: (N,), numbers from 0, none left out.
        clusters: which rows are the same data.
        top: a row's score is the mean over so many of its best queries; None takes all.
        settings: cap, draws, confidence, seed.
    """
    count, of_rows = int(contributors.max()) + 1, RowScores(scores, weights, top)

    def valued(row_scores: Ints) -> tuple[Ints, int, Ints]:
        values = clusters.values(row_scores)
        cap = quantile(values, settings.cap_quantile)
        return values, cap, clusters.shared(np.minimum(values, cap))

    row_scores = of_rows()
    values, cap, parts = valued(row_scores)
    draws = np.empty((settings.draws, count), np.int64)
    for draw in tqdm(range(settings.draws), desc="intervals", disable=None, leave=False):
        drawn = valued(of_rows(draw_counts(weights, settings.seed, draw)))[2]
        draws[draw] = totals_by_contributor(drawn, contributors, count)
    place, ordered = int((1 - settings.confidence) / 2 * settings.draws), np.sort(draws, axis=0)
    return Valuation(
        scores=row_scores,
        cap=cap,
        capped=(values > cap)[clusters.number],
        values=parts,
        totals=totals_by_contributor(parts, contributors, count),
        draws=draws,
        low=ordered[place],
        high=ordered[-1 - place],
    )
