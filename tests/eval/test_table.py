from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from eval.plot import write_plot
from eval.table import make_sections, ordered_methods, short, to_markdown, to_text


def value(mean: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - 0.05, "high": mean + 0.05, "n": 9}


def method(role: str, fidelity: float | None, auprc: float | None) -> dict[str, Any]:
    figures = {
        "per_query_spearman": fidelity,
        "within_group_spearman": None,
        "residual_spearman": fidelity,
        "aggregated_spearman": fidelity,
    }
    figures |= {"top10_overlap": fidelity, "poison_auprc": auprc, "poison_recall_at_positives": auprc}
    figures |= {"poison_auprc_mean": auprc, "poison_auprc_max": auprc}
    return {"role": role, "metrics": {name: None if figure is None else value(figure) for name, figure in figures.items()}}


@pytest.fixture
def summary() -> dict[str, Any]:
    return {
        "target": {"method": "influcoder"},
        "split": "test",
        "counts": {"rows": 100, "test": 40, "queries": 10, "candidates": 30, "positives": 4},
        "methods": {
            "random": method("floor", -0.021, 0.1),
            "teacher": method("teacher", None, 0.9),
            "student": method("student", 0.8, 0.85),
            "bm25": method("floor", 0.3, 0.4),
            "teacher_second_seed": method("ceiling", 0.999, 0.91),
        },
    }


def test_methods_stand_by_role_then_best_first(summary: dict[str, Any]) -> None:
    assert ordered_methods(summary, "per_query_spearman") == ["teacher_second_seed", "student", "bm25", "random"]
    assert ordered_methods(summary, "poison_auprc") == ["teacher_second_seed", "teacher", "student", "bm25", "random"]


def test_text_and_markdown_hold_the_same_cells(summary: dict[str, Any]) -> None:
    fidelity, task = make_sections(summary)
    assert "within group" not in fidelity.header, "a column without any figure is left out"
    assert fidelity.lines[2][:3] == ("bm25", "floor", ".30 [.25, .35]")
    assert task.title == "Task: 4 of 40 rows to be found, base rate 0.100"
    text, markdown = to_text([fidelity, task]), to_markdown([fidelity, task])
    for section in (fidelity, task):
        for line in section.lines:
            assert f"| {' | '.join(line)} |" in markdown
            assert any(row.split() == " ".join(line).split() for row in text.splitlines())
    assert max(map(len, text.splitlines())) <= 120


def test_without_a_task_there_is_one_section(summary: dict[str, Any]) -> None:
    summary["counts"]["positives"] = None
    assert len(make_sections(summary)) == 1


@pytest.mark.parametrize(
    ("number", "text"),
    [(0.834, ".83"), (-0.021, "-.02"), (0.0, ".00"), (-0.001, ".00"), (0.999, "1.00"), (1, "1.00"), (-1, "-1.00"), (0.994, ".99")],
)
def test_numbers_are_short(number: float, text: str) -> None:
    assert short(number) == text


@pytest.mark.parametrize("positives", [4, None])
def test_plot_is_drawn_with_and_without_a_task(summary: dict[str, Any], tmp_path: Path, positives: int | None) -> None:
    summary["counts"]["positives"] = positives
    write_plot(tmp_path / "fidelity.png", summary)
    assert (tmp_path / "fidelity.png").stat().st_size > 5000
