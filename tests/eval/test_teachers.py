from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from eval.data import TeacherRun, load_teacher
from eval.judged import Judged
from eval.teachers import mean_teacher_scores, teacher_scores
from influcoder.errors import RunError
from tests.eval.fake_runs import Runs


@pytest.fixture(scope="module")
def teacher(finished_runs: Runs) -> TeacherRun:
    return load_teacher(finished_runs.folder / "teacher")


def test_scores_are_cosines_in_the_order_of_the_judged_rows(teacher: TeacherRun) -> None:
    rows, queries = teacher.rows[::-3], teacher.queries[::-1]
    judged = Judged(rows=rows, num_queries=4, task_queries=queries, positive=np.arange(len(rows)) < 2)
    scores = teacher_scores(teacher, judged, seed=1)
    stored, asked = teacher.features(1, "rows").vectors[::-3], teacher.features(1, "queries").vectors[::-1]
    assert scores.fidelity is not None and scores.task is not None
    np.testing.assert_allclose(scores.fidelity, stored[:4] @ stored[4:].T, atol=1e-6)
    np.testing.assert_allclose(scores.task, asked @ stored.T, atol=1e-3)  # features are float16


def test_scores_of_other_rows_are_refused(teacher: TeacherRun) -> None:
    other = replace(teacher, rows=teacher.rows[::-1])
    with pytest.raises(RunError, match=r"scores belong to other rows: row 1 is .*use the scores of the same data") as caught:
        other.scores(0)
    assert "\n" not in str(caught.value)


def test_mean_scores_are_over_training_queries(teacher: TeacherRun) -> None:
    train = teacher.rows[3:20]
    vectors = teacher.features(0, "rows").vectors[3:20]
    np.testing.assert_allclose(mean_teacher_scores(teacher, train, 0), (vectors @ vectors.T).mean(axis=0), atol=1e-6)
