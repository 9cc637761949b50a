"""Summaries and truths made by hand: figures are given, everything else follows."""

from __future__ import annotations

from typing import Any

from eval.task_metrics import CURVE_SHARES, DETECTION, MISLABEL

ROLES = {"teacher": "teacher", "teacher_second_seed": "ceiling", "student": "student", "shuffled_target": "control"}
FIDELITY = ("per_query_spearman", "residual_spearman")
KINDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "detection": ("auprc", DETECTION),
    "mislabel": ("auroc", MISLABEL),
    "retrieval": ("map", ("recall_at_50", "mrr", "map")),
}


def figure(mean: float, half: float = 0.02, **more: object) -> dict[str, Any]:
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": 60, **more}


def gap(value: float, half: float = 0.02) -> dict[str, float]:
    return {"value": value, "low": value - half, "high": value + half, "p": 0.01}


def make_summary(
    fidelity: dict[str, float | None], tasks: dict[str, dict[str, float | None]] | None = None, kinds: dict[str, str] | None = None
) -> dict[str, Any]:
    """Return a summary of these figures by method; differences from the student have intervals of .02 to either side."""
    tasks, kinds = tasks or {}, kinds or {}
    facts: dict[str, dict[str, Any]] = {}
    primary: dict[str, str] = {}
    for name in tasks:
        kind = kinds.get(name, "detection")
        primary[name] = f"{name}_{KINDS[kind][0]}"
        facts[name] = {"kind": kind, "primary": KINDS[kind][0], "metrics": list(KINDS[kind][1]), "queries": 5, "candidates": 40, "folds": 1}
        facts[name] |= {"linked": 9, "answered_queries": 5} if kind == "retrieval" else {"positives": 4, "base_rate": 0.1}
    values = {metric: fidelity for metric in FIDELITY} | {primary[name]: found for name, found in tasks.items()}
    names = list(dict.fromkeys(name for found in values.values() for name in found))
    every = {f"{task}_{metric}" for task, fact in facts.items() for metric in fact["metrics"]} | set(values)
    methods = {
        name: {
            "role": ROLES.get(name, "floor"),
            "metrics": {metric: _figure(values.get(metric, {}).get(name)) for metric in sorted(every)} | dict.fromkeys(_OTHERS),
            "strata": {},
            "curves": {
                task: [min(1.0, value + share) for share in CURVE_SHARES]
                for task, found in tasks.items()
                if (value := found.get(name)) is not None and facts[task]["kind"] != "retrieval"
            },
            "cost": {"setup_seconds": 0.0, "seconds_per_1000": 30.0, "bytes_per_row": 4096.0, "break_even_rows": None},
        }
        for name in names
    }
    if "student" in methods:
        methods["student"]["cost"] = {"setup_seconds": 100.0, "seconds_per_1000": 3.0, "bytes_per_row": 64.0, "break_even_rows": 3704.0}
    return {
        "schema_version": 2,
        "target": {"method": "influcoder", "seed": 0, "exact": False, "decoder_fingerprint": "d" * 16},
        "made_of": {"decoder": "folder/small-lm", "teacher_commit": "1" * 12, "student_commits": ["2" * 12]},
        "counts": {"rows": 40, "train": 12, "validation": 4, "judged": 24, "folds": 1, "student_seeds": 1, "queries": 8, "candidates": 16,
                   "task_queries": 5},
        "split": "test",
        "query_set": {"fidelity": "a" * 16, "task": "b" * 16, "rows": "c" * 16},
        "tasks": facts,
        "methods": methods,
        "student_minus": {
            name: {
                metric: None if found.get("student") is None or found.get(name) is None else gap(found["student"] - found[name])  # type: ignore[operator]
                for metric, found in values.items()
            }
            for name in names
            if name != "student"
        },
        "gates": {name: gate(True) for name in ("trained", "randomised", "cardinality", "shuffled")},
        "leakage": {},
    }  # fmt: skip


def gate(passed: bool) -> dict[str, Any]:
    return {"value": 0.5, "limit": 0.4, "passed": passed, "meaning": "above the limit something is wrong"}


def make_truth(lds: dict[str, float] | None = None, removal: dict[str, float] | None = None) -> dict[str, Any]:
    """Return a truth: LDS by method, and the behaviour (from .5 with all rows to -.1 without the planted ones) after the largest budget."""
    truth: dict[str, Any] = {"schema_version": 1, "decoder": "small-lm", "git_commit": "3" * 12, "counts": {"rows": 40, "queries": 8}}
    truth["decoder_fingerprint"] = "d" * 16
    if lds is not None:
        methods = {name: {"role": ROLES.get(name, "floor"), "lds": figure(value), "student_minus": None} for name, value in lds.items()}
        truth["lds"] = {"subsets": 40, "seeds": 2, "ceiling": figure(0.6), "methods": methods}
    if removal is not None:
        removed = {
            name: {
                "role": ROLES.get(name, "floor"),
                "behaviour": [figure((0.5 + left) / 2), figure(left)],
                "benign_loss": [figure(2.0)] * 2,
                "found": [10, 20],
            }
            for name, left in removal.items()
        }
        truth["removal"] = {"poison": {"budgets": [10, 20], "positives": 25, "measure": "margin, nats a token", "full": figure(0.5),
                                       "clean": figure(-0.1), "methods": removed}}  # fmt: skip
    return truth


_OTHERS = (
    "within_group_spearman", "aggregated_spearman", "per_query_kendall", "ndcg_at_10", "top10_overlap", "bottom10_overlap",
    "top10_recall_at_100", "bottom10_recall_at_100",
)  # fmt: skip


def _figure(value: float | None) -> dict[str, Any] | None:
    return None if value is None else figure(value)
