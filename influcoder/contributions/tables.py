"""The tables of a report: exact decimals in parquet, scores in npy."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from influcoder.contributions.canonical_json import DIGITS
from influcoder.contributions.ledger import Line
from influcoder.contributions.values import Clusters, Ints, Valuation
from influcoder.examples import Example

ROWS_FILE = "rows.parquet"
QUERIES_FILE = "queries.parquet"
LEDGER_FILE = "contributions.parquet"
SCORES_FILE = "query_scores.npy"
VALUE = pa.decimal128(20, DIGITS)
WHOLE = pa.decimal128(38, 0)


def rows_table(rows: Sequence[Example], leaves: Sequence[bytes], first_rows: Ints, clusters: Clusters, valuation: Valuation) -> pa.Table:
    """Return one line a row: its leaf, its cluster (named by the id of its first row), the score and the part of the value it gets."""
    return pa.table(
        {
            "id": pa.array([row.id for row in rows], pa.string()),
            "contributor": pa.array([row.contributor for row in rows], pa.string()),
            "leaf": pa.array([leaf.hex() for leaf in leaves], pa.string()),
            "characters": pa.array([sum(len(turn.content) for turn in row.context) + len(row.response) for row in rows], pa.int64()),
            "cluster": pa.array([rows[place].id for place in first_rows], pa.string()),
            "cluster_rows": pa.array(clusters.sizes[clusters.number], pa.int64()),
            "score": decimals(valuation.scores),
            "capped": pa.array(valuation.capped, pa.bool_()),
            "value": decimals(valuation.values),
        }
    )


def queries_table(queries: Sequence[Example], leaves: Sequence[bytes]) -> pa.Table:
    """Return one line a query: its leaf and weight, and no text."""
    return pa.table(
        {
            "id": pa.array([query.id for query in queries], pa.string()),
            "weight": pa.array([query.weight for query in queries], pa.float64()),
            "leaf": pa.array([leaf.hex() for leaf in leaves], pa.string()),
        }
    )


def ledger_table(lines: Sequence[Line]) -> pa.Table:
    """Return one line a contributor."""
    columns: dict[str, pa.Array] = {"contributor": pa.array([line.contributor for line in lines], pa.string())}
    for name in ("rows", "unique_rows"):
        columns[name] = pa.array([getattr(line, name) for line in lines], pa.int64())
    for name in ("total", "positive", "negative", "low", "high"):
        columns[name] = decimals(np.array([getattr(line, name) for line in lines], np.int64))
    columns["reward"] = pa.array([Decimal(line.reward) for line in lines], WHOLE)
    columns["status"] = pa.array([line.status for line in lines], pa.string())
    return pa.table(columns)


def decimals(billionths: Ints) -> pa.Array:
    """Return whole billionths as exact decimals."""
    return pa.array([Decimal(int(value)).scaleb(-DIGITS) for value in billionths], VALUE)


def write_table(folder: Path, name: str, table: pa.Table) -> None:
    """Write a table of a report into its folder."""
    pq.write_table(table, folder / name)
