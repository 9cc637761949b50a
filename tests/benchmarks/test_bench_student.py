from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from benchmarks import student_table
from benchmarks.bench_student import BENCHES, STUDENTS, plan, pool, run_name
from benchmarks.student_curves import int8
from benchmarks.student_scores import Question


def test_the_readme_quotes_the_results(repository: Path) -> None:
    readme = (repository / "README.md").read_text()
    assert student_table.BLOCK.quoted(readme) == student_table.table(repository / "benchmarks" / "results")


def test_every_student_is_planned_once_with_the_same_seconds(tmp_path: Path) -> None:
    steps = plan(tmp_path, BENCHES["mixed"], 100, STUDENTS)
    folders = [folder for folder, _ in steps]
    assert len(set(folders)) == len(folders) == 1 + sum(len(seeds) for _, seeds, _ in STUDENTS.values())
    assert all(command[command.index("--trainer.max_time") + 1] == "00:00:01:40" for folder, command in steps if folder != "teacher")


def test_a_second_target_changes_no_setting_of_a_student(tmp_path: Path) -> None:
    bench = BENCHES["ekfac"]
    first, second = (
        dict(plan(tmp_path, other, 100, {name: STUDENTS[name] for name in bench.students})) for other in (BENCHES["mixed"], bench)
    )
    assert first.pop("teacher") != second.pop("teacher") and first == second


def test_folders_of_students_differ() -> None:
    assert len({run_name(name, 0) for name in STUDENTS}) == len(STUDENTS)


def test_pools_are_the_same_every_time_and_of_4000_rows(data_folder: Path) -> None:
    mixed, plain = pool(data_folder, "mixed"), pool(data_folder, "plain")
    assert len(mixed) == len(plain) == 4000 and mixed == pool(data_folder, "mixed")
    assert len({row["id"] for row in mixed}) == 4000
    assert {row["source"].split(":")[-1] for row in plain} == {"alpaca", "dolly"}


def test_kernel_is_queries_by_candidates() -> None:
    vectors = np.arange(10.0).reshape(5, 2)
    question = Question([], np.array([]), [0, 1], [2, 3, 4], np.zeros((2, 3)))
    np.testing.assert_array_equal(question.kernel(vectors), vectors[:2] @ vectors[2:].T)


def test_int8_is_within_half_a_step() -> None:
    vectors = np.random.default_rng(0).normal(size=(20, 16)).astype(np.float32)
    error = np.abs(int8(vectors) - vectors)
    assert (error <= np.abs(vectors).max(1, keepdims=True) / 254 + 1e-6).all() and error.max() > 0


def test_a_missing_bench_is_left_out(tmp_path: Path) -> None:
    estimate = {"value": 0.5, "interval": [0.4, 0.6], "seeds": [0.5]}
    method = {"role": "student", "per_query_spearman": estimate, "residual_spearman": estimate, "top10_overlap": estimate}
    (tmp_path / "bench_student.json").write_text(json.dumps({"mixed": {"methods": {"ours": method}}}))
    assert student_table.table(tmp_path).splitlines()[2] == "| **ours** | student | .50 [.40, .60] | .50 [.40, .60] | .50 |  |  |"
