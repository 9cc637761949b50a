"""`summary.json`: figures with intervals, differences from the student, costs, gates.

A metric that could not be measured (no task, no groups, the teacher against itself) is null, never absent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from eval.baselines import Contestants
from eval.bootstrap import Estimate, difference
from eval.evaluate import Result
from eval.gates import Gate
from eval.judged import Judged
from eval.methods import Cost
from eval.task_metrics import PRIMARY, metric_names
from influcoder.examples import fingerprint

SCHEMA_VERSION = 2


def make_summary(
    contestants: Contestants, judged: Judged, results: Sequence[Result], gates: Sequence[Gate], leakage: dict[str, int]
) -> dict[str, Any]:
    """Return the content of `summary.json`."""
    record = contestants.teacher.record
    teacher_cost = next(result.cost for result in results if result.role == "teacher")
    return {
        "schema_version": SCHEMA_VERSION,
        "target": {
            "method": record["method"],
            "seed": record["seeds"][0],
            "exact": False,
            "decoder_fingerprint": record["decoder_fingerprint"],
        },
        "made_of": _made_of(contestants),
        "counts": _counts(contestants, judged),
        "split": "test" if len(judged.folds) == 1 else f"{len(judged.folds)} folds",
        "query_set": {
            "fidelity": fingerprint([judged.rows[place] for place in judged.fidelity_queries]),
            "task": fingerprint(judged.task_queries) if judged.task_queries else None,
            "rows": fingerprint(judged.rows),
        },
        "tasks": {name: _task_facts(judged, name) for name in judged.tasks},
        "methods": {result.name: _method(result, teacher_cost) for result in results},
        "student_minus": _differences(judged, results),
        "gates": {gate.name: {key: value for key, value in asdict(gate).items() if key != "name"} for gate in gates},
        "leakage": leakage,
    }


def _made_of(contestants: Contestants) -> dict[str, Any]:
    """Return the decoder and the commits that teacher and students ran at; null where a run does not say."""
    teacher, students = contestants.teacher.record, [run.record for seed in contestants.student.runs for run in seed]
    return {
        "decoder": teacher.get("decoder_path"),
        "teacher_commit": teacher.get("git_commit"),
        "student_commits": sorted({record["git_commit"] for record in students if record.get("git_commit")}),
    }


def _counts(contestants: Contestants, judged: Judged) -> dict[str, Any]:
    runs = contestants.student.first
    parts = {part: round(float(np.mean([(run.parts == part).sum() for run in runs]))) for part in ("train", "validation")}
    return {
        "rows": len(contestants.teacher.rows),
        **parts,
        "judged": len(judged.rows),
        "folds": len(judged.folds),
        "student_seeds": len(contestants.student.runs),
        "queries": len(judged.fidelity_queries),
        "candidates": round(float(np.mean([len(fold.candidates) for fold in judged.folds]))),
        "task_queries": len(judged.task_queries),
    }


def _task_facts(judged: Judged, name: str) -> dict[str, Any]:
    task = judged.tasks[name]
    facts = {"kind": task.kind, "primary": PRIMARY[task.kind], "metrics": list(metric_names(task)), "queries": len(task.queries)}
    facts |= {"candidates": int(task.candidates.sum()), "folds": len(judged.folds)}
    if task.kind == "retrieval":
        return facts | {"linked": int(task.linked.sum()), "answered_queries": int(task.linked.any(axis=1).sum())}
    return facts | {"positives": int(task.positive.sum()), "base_rate": float(task.positive.sum() / task.candidates.sum())}


def _method(result: Result, teacher_cost: Cost | None) -> dict[str, Any]:
    return {
        "role": result.role,
        "metrics": {name: _figure(value) for name, value in result.metrics.items()},
        "strata": {kind: {label: _figure(value) for label, value in labels.items()} for kind, labels in result.strata.items()},
        "curves": {task: found.recall.round(5).tolist() for task, found in result.found.items() if found.recall is not None},
        "top10_cardinality": result.cardinality,
        "constant_queries": result.constant_queries,
        "cost": None if result.cost is None else asdict(result.cost) | {"break_even_rows": _break_even(result.cost, teacher_cost)},
    }


def _figure(value: Estimate | None) -> dict[str, Any] | None:
    if value is None:
        return None
    low, high = value.interval
    figure: dict[str, Any] = {"mean": value.value, "low": low, "high": high, "n": value.n}
    return figure | ({"seeds": list(value.seeds)} if len(value.seeds) > 1 else {})


def _break_even(cost: Cost, teacher: Cost | None) -> float | None:
    """Return from how many rows on a method is cheaper than the teacher, its set-up included; None: never."""
    if teacher is None or cost.setup_seconds == 0:
        return None
    saved = (teacher.seconds_per_1000 - cost.seconds_per_1000) / 1000
    return cost.setup_seconds / saved if saved > 0 else None


def _differences(judged: Judged, results: Sequence[Result]) -> dict[str, dict[str, Any]]:
    """Return the student's figures less every other method's, paired by resample."""
    student = next(result for result in results if result.role == "student")
    names = ["per_query_spearman", "residual_spearman", *(f"{name}_{PRIMARY[task.kind]}" for name, task in judged.tasks.items())]
    found: dict[str, dict[str, Any]] = {}
    for other in results:
        if other is student or other.role == "control":
            continue
        pairs = {name: (student.metrics[name], other.metrics[name]) for name in names}
        found[other.name] = {
            name: None if mine is None or theirs is None else asdict(difference(mine, theirs)) for name, (mine, theirs) in pairs.items()
        }
    return found
