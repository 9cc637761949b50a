"""What a report is made of: files of a complete eval run, and of a truth run beside it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from eval.cases import SCHEMA_VERSION as CASES_VERSION
from eval.summary import SCHEMA_VERSION as SUMMARY_VERSION
from influcoder.errors import RunError
from influcoder.runs import open_run

TRUTH_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Content of the files."""

    summary: dict[str, Any]
    record: dict[str, Any] = field(default_factory=dict)
    """run.json"""
    per_query: list[dict[str, Any]] = field(default_factory=list)
    """lines of per_query.parquet"""
    cases: dict[str, Any] | None = None
    """cases.json; None for a run of before there was one"""
    truth: dict[str, Any] | None = None
    """truth.json; None without a truth run"""


def load_evidence(eval_run: Path, truth_run: Path | None) -> Evidence:
    """Read the files.

    Raises:
        RunError: when a run is unfinished, or a file is missing, unreadable or of another schema.
    """
    record = open_run(eval_run, "eval")
    cases = eval_run / "cases.json"
    summary = _read(eval_run / "summary.json", SUMMARY_VERSION, "eval")
    truth = None if truth_run is None else _read(truth_run / "truth.json", TRUTH_VERSION, "eval.truth")
    ours, theirs = summary["target"].get("decoder_fingerprint"), (truth or {}).get("decoder_fingerprint")
    if truth is not None and theirs != ours:
        raise RunError(
            f"{truth_run}: of decoder {theirs}, but {eval_run} of {ours}; expected a truth run that retrained the judged decoder; give its own"
        )
    return Evidence(
        summary=summary,
        record=record,
        per_query=_read_per_query(eval_run / "per_query.parquet"),
        cases=_read(cases, CASES_VERSION, "eval") if cases.exists() else None,
        truth=truth,
    )


def _read(path: Path, version: int, program: str) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found = content.get("schema_version")
    except (OSError, ValueError, AttributeError) as error:  # ValueError: not UTF-8 or not JSON
        raise RunError(f"{path}: not readable ({error}); expected what python -m {program} writes; run it again") from error
    if found != version:
        raise RunError(f"{path}: schema {found!r}; expected {version}; run python -m {program} again")
    return content


def _read_per_query(path: Path) -> list[dict[str, Any]]:
    try:
        lines: list[dict[str, Any]] = pq.read_table(path, columns=["query_id", "method", "seed", "spearman"]).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise RunError(f"{path}: cannot be read ({error}); expected what the eval stage wrote; run eval again") from error
    return lines
