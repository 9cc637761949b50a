"""Parquet tables from which the summary can be recomputed, and runs compared.

estimates.parquet    method, metric, value, seeds, draws: what `python -m eval.compare` pairs
per_query.parquet    query_id, method, seed, fold, length, group, spearman
per_row.parquet      task, row_id, method, seed, fold, score, positive: what detection and mislabel ranked
curves.parquet       task, method, inspected, recall
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from eval.evaluate import Result
from eval.judged import Judged
from eval.task_metrics import CURVE_SHARES

SCHEMAS = {
    "estimates": pa.schema(
        [
            ("method", pa.string()),
            ("metric", pa.string()),
            ("value", pa.float64()),
            ("n", pa.int64()),
            ("seeds", pa.list_(pa.float64())),
            ("draws", pa.list_(pa.float64())),
        ]
    ),
    "per_query": pa.schema(
        [
            ("query_id", pa.string()),
            ("method", pa.string()),
            ("seed", pa.int32()),
            ("fold", pa.int32()),
            ("length", pa.int32()),
            ("group", pa.string()),
            ("spearman", pa.float64()),
        ]
    ),
    "per_row": pa.schema(
        [
            ("task", pa.string()),
            ("row_id", pa.string()),
            ("method", pa.string()),
            ("seed", pa.int32()),
            ("fold", pa.int32()),
            ("score", pa.float32()),
            ("positive", pa.bool_()),
        ]
    ),
    "curves": pa.schema([("task", pa.string()), ("method", pa.string()), ("inspected", pa.float64()), ("recall", pa.float64())]),
}


def write_tables(folder: Path, judged: Judged, results: Sequence[Result]) -> None:
    """Write the parquet tables."""
    tables = {
        "estimates": _estimates(results),
        "per_query": _per_query(judged, results),
        "per_row": _per_row(judged, results),
        "curves": _curves(results),
    }
    for name, rows in tables.items():
        pq.write_table(pa.Table.from_pylist(list(rows), schema=SCHEMAS[name]), folder / f"{name}.parquet", compression="zstd")


def _estimates(results: Sequence[Result]) -> Iterator[dict[str, Any]]:
    for result in results:
        for metric, value in result.metrics.items():
            if value is not None:
                yield {
                    "method": result.name,
                    "metric": metric,
                    "value": value.value,
                    "n": value.n,
                    "seeds": value.seeds,
                    "draws": value.draws,
                }


def _per_query(judged: Judged, results: Sequence[Result]) -> Iterator[dict[str, Any]]:
    lengths = judged.lengths
    for result in results:
        for number, (fold, rhos) in enumerate(zip(judged.folds, result.per_query or [], strict=False)):
            for seed, by_query in enumerate(rhos):
                for place, rho in zip(fold.queries, by_query, strict=True):
                    group = None if judged.groups is None else str(judged.groups[place])
                    where = {"query_id": judged.rows[place].id, "length": int(lengths[place]), "group": group}
                    if np.isfinite(rho):
                        yield where | {"method": result.name, "seed": seed, "fold": number, "spearman": float(rho)}


def _per_row(judged: Judged, results: Sequence[Result]) -> Iterator[dict[str, Any]]:
    fold_of = {int(place): number for number, fold in enumerate(judged.folds) for place in fold.rows}
    for result in results:
        for name, found in result.found.items():
            for seed, values in enumerate(found.values if found.values is not None else ()):
                for place in np.flatnonzero(np.isfinite(values)).tolist():
                    row = {"task": name, "row_id": judged.rows[place].id, "method": result.name, "seed": seed, "fold": fold_of[place]}
                    yield row | {"score": float(values[place]), "positive": bool(judged.tasks[name].positive[place])}


def _curves(results: Sequence[Result]) -> Iterator[dict[str, Any]]:
    for result in results:
        for name, found in result.found.items():
            if found.recall is not None:
                for share, recall in zip(CURVE_SHARES, found.recall, strict=True):
                    yield {"task": name, "method": result.name, "inspected": float(share), "recall": float(recall)}
