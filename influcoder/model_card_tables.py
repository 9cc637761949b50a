"""Figures of a model card: what a student run measured on its validation side, and an eval on its test side, floors and ceiling beside."""

from __future__ import annotations

from typing import Any

from huggingface_hub import EvalResult

FIGURES = {
    "per_query_spearman": "per query",
    "residual_spearman": "residual",
    "aggregated_spearman": "aggregated",
    "top10_overlap": "top 10 overlap",
}
METHODS = {
    "student": "**student**",
    "untrained encoder": "untrained encoder (floor)",
    "teacher, second seed": "teacher, second seed (ceiling)",
}
ROLES = {"student": 0, "teacher": 1, "ceiling": 2}
"""first in the table of an eval, in this order; floors and others follow"""


def figures_of_test_side(evaluated: dict[str, Any]) -> list[str]:
    """Return paragraphs of an eval's `summary.json`: the table, what it is of, and each gate that failed."""
    tasks = {f"{name}_{task['primary']}": f"{name}: {task['primary']}" for name, task in evaluated["tasks"].items()}
    names = {name: FIGURES[name] for name in ("per_query_spearman", "residual_spearman")} | tasks
    methods = sorted(evaluated["methods"].items(), key=lambda method: ROLES.get(method[1]["role"], len(ROLES)))
    rows = [
        [f"**{name}**" if method["role"] == "student" else name, method["role"], *(_interval(method["metrics"].get(key)) for key in names)]
        for name, method in methods
        if method["role"] != "control"
    ]
    counts = evaluated["counts"]
    words = (
        f"Test side, rows and queries that the distillation never saw: {counts['queries']} queries, {counts['candidates']} candidates each, "
        f"{counts['student_seeds']} student seed(s), {counts['folds']} fold(s); 95 % intervals."
    )
    failed = [f"**Gate `{name}` failed**: {gate['meaning']}." for name, gate in evaluated["gates"].items() if not gate["passed"]]
    return [_table(["method", "role", *names.values()], rows), words, *failed]


def figures_of_validation_side(facts: dict[str, Any]) -> list[str]:
    """Return paragraphs of a student's `fidelity.json`."""
    validation = facts["validation"]
    rows = [
        [METHODS.get(name, name), *(f"{values[key]:.2f}" if key in values else "" for key in FIGURES)]
        for name, values in validation["methods"].items()
    ]
    return [
        _table(["method", *FIGURES.values()], rows),
        f"Validation side, on which the weights were chosen, so a little high: {validation['queries']} {facts['asks']} ask for "
        f"{validation['candidates']} rows. Spearman with the teacher's scores; residual: of the double-centred scores, where a query-blind "
        "method has 0; aggregated: of the query-averaged scores, which a query-blind method can have.",
    ]


def results(evaluated: dict[str, Any]) -> list[EvalResult]:
    """Return the student's figures of an eval as the hub lists them."""
    found = {name: _student(evaluated)["metrics"].get(name) for name in ("per_query_spearman", "residual_spearman")}
    return [
        EvalResult(
            task_type="feature-extraction",
            task_name="ranking rows as the teacher does",
            dataset_type="unknown",
            dataset_name=f"rows unseen in the distillation, {evaluated['query_set']['rows']}",
            metric_type="spearman",
            metric_name=f"Spearman with the teacher, {FIGURES[name]}",
            metric_value=round(figure["mean"], 4),
        )
        for name, figure in found.items()
        if figure is not None
    ]


def _interval(figure: dict[str, float] | None) -> str:
    if figure is None:
        return ""
    mean, low, high = (round(figure[name], 2) + 0.0 for name in ("mean", "low", "high"))  # + 0.0: no minus before nothing
    return f"{mean:.2f} [{low:.2f}, {high:.2f}]"


def _table(names: list[str], rows: list[list[str]]) -> str:
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _student(evaluated: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = next(method for method in evaluated["methods"].values() if method["role"] == "student")
    return found
