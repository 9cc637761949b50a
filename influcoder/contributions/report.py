"""From an attributed pool to values, intervals and rewards of who gave its rows.

The pool is held in memory whole: its texts, their word triples while near-copies are sought (most of it), its vectors and the scores.
"""

from __future__ import annotations

import secrets
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from influcoder.contributions.config import ContributionsConfig
from influcoder.contributions.copies import alike, canonical_text, clusters, near_pairs
from influcoder.contributions.inputs import check_attribution, check_same_scores, embed, precedence, read_pool
from influcoder.contributions.kinds import Kind, find_kinds
from influcoder.contributions.ledger import Line, ledger
from influcoder.contributions.values import Clusters, Ints, Valuation, evaluate
from influcoder.errors import DataError
from influcoder.examples import Example
from influcoder.metrics import spearman
from influcoder.onnx_encoder import OnnxEncoder
from influcoder.readers import read_examples
from influcoder.runs import open_run

LEAST_QUERIES = 2
ROW_BYTES, CHARACTER_BYTES = 7000, 36
"""held a row and a character at the peak; measured at 20 000 and 100 000 rows of 231 and of 605 characters"""


@dataclass(frozen=True)
class Report:
    """What the files are written from."""

    rows: Sequence[Example]
    queries: Sequence[Example]
    secret: bytes
    first_rows: Ints
    clusters: Clusters
    contributors: Ints
    scores: NDArray[np.float32]
    valuation: Valuation
    lines: list[Line]
    kinds: list[Kind]
    top: int | None

    @property
    def rank_stability(self) -> float:
        """Mean Spearman between the totals and those of resampled queries, -1 to 1: how far the order is luck of the queries."""
        totals = self.valuation.totals.astype(np.float64)
        return float(np.mean([spearman(draw, totals) for draw in self.valuation.draws.astype(np.float64)]))


def make_report(config: ContributionsConfig, encoder: OnnxEncoder) -> Report:
    """Read the inputs, score every row with every query, value rows and contributors.

    Raises:
        RunError: when the attribution is of something else.
        DataError: when a row has no contributor, or there are too few queries for an interval.
    """
    folder, settings = Path(config.attribution), config.valuation
    record = open_run(folder, "attribution")
    queries, rows = read_examples(config.queries), read_pool(config.pool)
    weights = np.array([query.weight for query in queries])
    if (weights > 0).sum() < LEAST_QUERIES:
        raise DataError(
            f"queries: {(weights > 0).sum()} of positive weight; expected at least {LEAST_QUERIES}, and better dozens: "
            "intervals are taken over them"
        )
    expected = estimated_bytes(rows, encoder.settings.dim, len(queries))
    tqdm.write(f"about {len(rows):,} rows: {expected / 1e9:.2g} GB of memory besides the encoder's own", file=sys.stderr)
    recorded = check_attribution(folder, record, encoder, queries, rows)
    vectors = embed(encoder, rows, "rows")
    scores: NDArray[np.float32] = embed(encoder, queries, "queries") @ vectors.T
    texts = [canonical_text(row) for row in rows]
    pairs = [] if settings.near_duplicate_jaccard is None else near_pairs(texts, settings.near_duplicate_jaccard)
    first_rows = clusters(texts, alike(pairs, vectors, settings.near_duplicate_cosine))
    grouped = Clusters.of(first_rows, settings.copies, precedence(config.pool, rows, settings.commit_column))
    names, contributors = number_contributors(rows)
    valuation = evaluate(scores, weights, contributors, grouped, top=record["top"], settings=settings)
    check_same_scores(folder, rows, recorded, valuation.scores)
    leaders, worth = np.unique(first_rows), np.minimum(grouped.values(valuation.scores), valuation.cap)
    kinds = find_kinds(vectors[leaders], [texts[place] for place in leaders], worth, config.kinds) if config.kinds else []
    return Report(
        rows=rows,
        queries=queries,
        secret=secrets.token_bytes(32),
        first_rows=first_rows,
        clusters=grouped,
        contributors=contributors,
        scores=scores,
        valuation=valuation,
        lines=ledger(names, contributors, grouped, valuation, config.budget),
        kinds=kinds,
        top=record["top"],
    )


def estimated_bytes(rows: Sequence[Example], dim: int, queries: int) -> int:
    """Return about how many bytes a report of these rows takes at its peak, besides the encoder's; fewer where no near-copies are sought."""
    characters = sum(len(row.response) + sum(len(turn.content) for turn in row.context) for row in rows)
    return ROW_BYTES * len(rows) + CHARACTER_BYTES * characters + 8 * len(rows) * (dim + queries)


def number_contributors(rows: Sequence[Example]) -> tuple[list[str], Ints]:
    """Return the contributors' names in order, and each row's place among them, (rows,)."""
    names, places = np.unique([str(row.contributor) for row in rows], return_inverse=True)
    return [str(name) for name in names], places.astype(np.int64)
