from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from eval.plot import write_plots
from eval.table import FIDELITY, make_sections, ordered_methods, short, to_markdown, to_text
from eval.task_metrics import CURVE_SHARES, DETECTION, MISLABEL

TASKS: dict[str, dict[str, Any]] = {
    "poison": {"kind": "detection", "primary": "auprc", "metrics": list(DETECTION), "queries": 3, "candidates": 40, "folds": 1,
               "positives": 4, "base_rate": 0.1},
    "facts": {"kind": "retrieval", "primary": "map", "metrics": ["recall_at_50", "mrr", "map"], "queries": 9, "candidates": 40,
              "folds": 1, "linked": 12, "answered_queries": 8},
    "wrong": {"kind": "mislabel", "primary": "auroc", "metrics": list(MISLABEL), "queries": 0, "candidates": 40, "folds": 2,
              "positives": 5, "base_rate": 0.125},
}  # fmt: skip


def value(mean: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - 0.05, "high": mean + 0.05, "n": 9}


def method(role: str, fidelity: float | None, task: float | None) -> dict[str, Any]:
    figures = dict.fromkeys(FIDELITY, fidelity) | {"within_group_spearman": None}
    figures |= {f"{name}_{metric}": task for name, facts in TASKS.items() for metric in facts["metrics"]}
    strata = {"long": fidelity, "short": fidelity} if fidelity is not None else {}
    return {
        "role": role,
        "metrics": {name: None if figure is None else value(figure) for name, figure in figures.items()},
        "strata": {"length": {label: value(figure) for label, figure in strata.items()}} if strata else {},
        "curves": {} if task is None else {"poison": [task] * len(CURVE_SHARES)},
        "cost": {"setup_seconds": 1234.0 * (role == "student"), "seconds_per_1000": 0.51, "bytes_per_row": 3072.0,
                 "break_even_rows": 54321.4 if role == "student" else None},
    }  # fmt: skip


@pytest.fixture
def summary() -> dict[str, Any]:
    gap = {"value": 0.5, "low": 0.4, "high": 0.6, "p": 0.01}
    return {
        "target": {"method": "influcoder"},
        "split": "test",
        "counts": {"rows": 100, "judged": 40, "queries": 10, "candidates": 30, "student_seeds": 1},
        "tasks": {"poison": TASKS["poison"]},
        "methods": {
            "random": method("floor", -0.021, 0.1),
            "shuffled_target": method("control", 0.02, None),
            "teacher": method("teacher", None, 0.9),
            "student": method("student", 0.8, 0.85),
            "bm25": method("floor", 0.3, 0.4),
            "teacher_second_seed": method("ceiling", 0.999, 0.91),
        },
        "student_minus": {"bm25": {"per_query_spearman": gap, "poison_auprc": None}},
        "gates": {
            "randomised": {"value": 0.1234, "limit": 0.4, "passed": True, "meaning": "of random weights"},
            "shuffled": {"value": 0.5, "limit": 0.35, "passed": False, "meaning": "of shuffled targets"},
        },
    }


def test_methods_stand_by_role_then_best_first(summary: dict[str, Any]) -> None:
    assert ordered_methods(summary, "per_query_spearman") == ["teacher_second_seed", "student", "bm25", "random", "shuffled_target"]
    assert ordered_methods(summary, "poison_auprc") == ["teacher_second_seed", "teacher", "student", "bm25", "random"]


def test_fidelity_and_task_show_figure_lead_and_interval(summary: dict[str, Any]) -> None:
    fidelity, task = make_sections(summary)[:2]
    assert fidelity.title == "Fidelity to influcoder: Spearman over 30 candidates, 10 queries, test, 1 student seed"
    assert fidelity.header[:5] == ("method", "role", "per query", "student -", "residual")
    assert "within group" not in fidelity.header, "a column without any figure is left out"
    assert fidelity.lines[2][:6] == ("bm25", "floor", ".30 [.25, .35]", ".50 [.40, .60]", ".30 [.25, .35]", ".30")
    assert fidelity.lines[1][:4] == ("student", "student", ".80 [.75, .85]", "-")
    assert task.title == "poison: 4 of 40 rows to be found, base rate 0.100"
    assert task.header[2:5] == ("AUPRC", "student -", "trapezoid")
    assert task.lines[3][:4] == ("bm25", "floor", ".40 [.35, .45]", "-"), "a figure that cannot be paired has no lead"
    summary["counts"]["student_seeds"] = 3
    assert make_sections(summary)[0].title.endswith("3 student seeds")


def test_every_task_has_a_section_that_says_its_question(summary: dict[str, Any]) -> None:
    summary["tasks"] = TASKS
    titles = [section.title for section in make_sections(summary)]
    assert titles[1:4] == [
        "poison: 4 of 40 rows to be found, base rate 0.100",
        "facts: 8 queries, each with its own rows among 40",
        "wrong: 5 of 40 rows to be found, within 2 folds, base rate 0.125",
    ]
    assert make_sections(summary)[2].header[2:] == ("MAP", "student -", "recall at 50", "MRR")


def test_costs_gates_and_kinds_of_queries_have_their_sections(summary: dict[str, Any]) -> None:
    sections = {section.title: section for section in make_sections(summary)}
    costs = {line[0]: line[1:] for line in sections["Cost on this machine"].lines}
    assert costs["student"] == ("1,234", "0.51", "3,072", "54,321")
    assert costs["bm25"] == ("-", "0.51", "3,072", "-")
    kinds = sections["Fidelity per query, by length of the query's row"]
    assert kinds.header == ("length", "teacher_second_seed", "student", "bm25"), "of the floors the best alone"
    assert [line[0] for line in kinds.lines] == ["long", "short"]
    assert not any("by group" in title for title in sections)
    gates = {line[0]: line[1:] for line in sections["Gates"].lines}
    assert gates["randomised"] == ("passed", "0.123", "0.400", "of random weights")
    assert gates["shuffled"] == ("FAILED", "0.500", "0.350", "of shuffled targets")
    assert gates["leakage"][0] == "passed"


def test_a_method_without_cost_has_no_line_there(summary: dict[str, Any]) -> None:
    summary["methods"]["random"]["cost"] = None
    costs = next(section for section in make_sections(summary) if section.title.startswith("Cost"))
    assert {line[0] for line in costs.lines} == set(summary["methods"]) - {"random"}


def test_text_and_markdown_hold_the_same_cells(summary: dict[str, Any]) -> None:
    sections = make_sections(summary)
    text, markdown = to_text(sections), to_markdown(sections)
    for section in sections:
        assert f"**{section.title}**" in markdown and section.title in text.splitlines()
        for line in (section.header, *section.lines):
            assert len(line) == len(section.header)
            assert f"| {' | '.join(line)} |" in markdown
            assert any(row.split() == " ".join(line).split() for row in text.splitlines())


def test_without_a_task_there_is_no_section_of_one(summary: dict[str, Any]) -> None:
    before = [section.title for section in make_sections(summary)]
    summary["tasks"] = {}
    assert [section.title for section in make_sections(summary)] == [title for title in before if not title.startswith("poison")]


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0.834, ".83"),
        (-0.021, "-.02"),
        (0.0, ".00"),
        (-0.001, ".00"),
        (0.999, "1.00"),
        (1, "1.00"),
        (-1, "-1.00"),
        (0.994, ".99"),
        (-1.07, "-1.07"),
    ],
)
def test_numbers_are_short(number: float, text: str) -> None:
    assert short(number) == text


@pytest.mark.parametrize("names", [(), ("poison",), ("facts",), ("poison", "facts", "wrong")])
def test_bars_are_drawn_always_and_curves_where_something_is_to_be_found(
    summary: dict[str, Any], tmp_path: Path, names: tuple[str, ...]
) -> None:
    summary["tasks"] = {name: TASKS[name] for name in names}
    for each in summary["methods"].values():
        each["curves"] = {name: each["curves"]["poison"] for name in names if each["curves"] and name != "facts"}
    write_plots(tmp_path, summary)
    expected = {"fidelity.png"} | ({"tasks.png"} if "poison" in names else set())
    assert {path.name for path in tmp_path.iterdir()} == expected
    for name in expected:
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG") and (tmp_path / name).stat().st_size > 5000


def test_a_plot_without_second_seed_has_no_line_for_it(summary: dict[str, Any], tmp_path: Path) -> None:
    del summary["methods"]["teacher_second_seed"]
    write_plots(tmp_path, summary)
    assert (tmp_path / "fidelity.png").stat().st_size > 5000
