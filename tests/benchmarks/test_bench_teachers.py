"""The teachers' benchmarks: their plan against the configs, and the README against their results."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from benchmarks import bench_planted, bench_teachers, planted_table
from benchmarks.bench_teachers import ROOT
from benchmarks.projections import PROJECTIONS
from benchmarks.teacher_tables import BLOCK, FLOORS, TASKS, TEACHERS, load, tables
from eval.config import EvalConfig
from influcoder.program import parse_config
from teacher.config import TeacherConfig


@pytest.mark.parametrize("bench", [bench_teachers, bench_planted])
def test_eval_judges_the_runs_that_the_plan_makes(repository: Path, bench: ModuleType) -> None:
    steps = bench.plan()
    config, _ = parse_config(EvalConfig, [str(repository / steps[-1][1][1])], "eval")
    assert {str(ROOT / name) for name, _ in steps} == {config.teacher, *config.teachers.values(), *config.student, config.output}
    for name, (module, path, *_) in steps:
        assert (repository / path).is_file()
        if module == "teacher":
            teacher, _ = parse_config(TeacherConfig, [str(repository / path)], "teacher")
            assert teacher.output == str(ROOT / name)


def test_the_readme_quotes_the_published_figures(repository: Path) -> None:
    results = repository / "benchmarks" / "results"
    assert BLOCK.quoted((repository / "README.md").read_text()) == tables(results)
    found, judged = load(results)
    assert set(found["projections"]) <= set(PROJECTIONS)
    assert {*TEACHERS, *FLOORS} <= set(judged["summary"]["methods"])
    assert all(task in judged["summary"]["methods"]["bm25"]["metrics"] for task in TASKS)


def test_the_readme_quotes_the_planted_rows(repository: Path) -> None:
    readme = (repository / "README.md").read_text()
    assert planted_table.BLOCK.quoted(readme) == planted_table.table(repository / planted_table.RESULT)
