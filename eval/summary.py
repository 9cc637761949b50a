"""What the stage leaves for people and programs: `summary.json` and `per_query.parquet`.

A metric that could not be measured (no task, no groups, the teacher against itself) is null, never absent.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from eval.data import StudentRun, TeacherRun
from eval.evaluate import Result
from eval.judged import Judged
from influcoder.examples import fingerprint
from influcoder.runs import write_text_atomic

SCHEMA_VERSION = 1


def make_summary(teacher: TeacherRun, student: StudentRun, judged: Judged, results: Sequence[Result]) -> dict[str, Any]:
    """Return the content of `summary.json`."""
    parts = {part: int((student.parts == part).sum()) for part in ("train", "validation", "test")}
    return {
        "schema_version": SCHEMA_VERSION,
        "target": {
            "method": teacher.record["method"],
            "seed": teacher.record["seeds"][0],
            "exact": False,
            "decoder_fingerprint": teacher.record["decoder_fingerprint"],
        },
        "counts": {
            "rows": len(teacher.rows),
            **parts,
            "queries": judged.num_queries,
            "candidates": len(judged.candidates),
            "task_queries": len(judged.task_queries),
            "positives": None if judged.positive is None else int(judged.positive.sum()),
        },
        "split": "test",
        "query_set": {
            "fidelity": fingerprint(judged.queries),
            "task": fingerprint(judged.task_queries) if judged.task_queries else None,
        },
        "seconds": {result.name: round(result.seconds, 3) for result in results},
        "methods": {
            result.name: {
                "role": result.role,
                "metrics": {name: None if value is None else asdict(value) for name, value in result.metrics.items()},
            }
            for result in results
        },
    }


def write_summary(folder: Path, summary: dict[str, Any]) -> None:
    """Write `summary.json`."""
    write_text_atomic(folder / "summary.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")


def write_per_query(folder: Path, judged: Judged, results: Sequence[Result]) -> None:
    """Write `per_query.parquet`: each fidelity query's Spearman under each method."""
    rows = [
        {"query_id": query.id, "method": result.name, "spearman": float(rho)}
        for result in results
        if result.per_query is not None
        for query, rho in zip(judged.queries, result.per_query, strict=True)
    ]
    schema = pa.schema([("query_id", pa.string()), ("method", pa.string()), ("spearman", pa.float64())])
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / "per_query.parquet")
