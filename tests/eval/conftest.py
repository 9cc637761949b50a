"""Runs to judge: made once, copied for tests that change them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from eval.data import TeacherRun, load_teacher
from eval.students import Student, load_students
from tests.eval.fake_runs import PARTS, Runs, make_cross_fitted, make_rows, make_student, make_teacher, write_labels


@pytest.fixture(scope="session")
def finished_runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """The runs that `runs` copies. Do not write into them."""
    folder = tmp_path_factory.mktemp("runs")
    rows, queries = make_rows(len(PARTS), "row", seed=1), make_rows(5, "query", seed=2, weights=(1.0, 1.0, -1.0))
    make_teacher(folder / "teacher", rows, queries)
    scratch = tmp_path_factory.mktemp("scratch")
    make_student(folder / "student", rows, scratch)
    make_cross_fitted(folder, rows, scratch)
    write_labels(folder / "labels.jsonl", rows)
    return Runs(folder, rows, queries)


@pytest.fixture
def runs(finished_runs: Runs, tmp_path: Path) -> Runs:
    """Runs of this test alone."""
    folder = Path(shutil.copytree(finished_runs.folder, tmp_path / "runs"))
    return Runs(folder, finished_runs.rows, finished_runs.queries)


@pytest.fixture(scope="session")
def teacher(finished_runs: Runs) -> TeacherRun:
    """The fake teacher, opened."""
    return load_teacher(finished_runs.folder / "teacher")


@pytest.fixture(scope="session")
def student(finished_runs: Runs, teacher: TeacherRun) -> Student:
    """The fake student of one run, opened."""
    return load_students([str(finished_runs.folder / "student")], teacher)


@pytest.fixture(scope="session")
def fitted_across(finished_runs: Runs, teacher: TeacherRun) -> Student:
    """The cross-fitted fake student, opened."""
    return load_students(finished_runs.cross_fitted, teacher)
