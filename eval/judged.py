"""What is judged: the test rows, split into fidelity queries and candidates, and the task's queries and answers.

Q fidelity queries, C candidates, T task queries, N = Q + C test rows in a seeded random order, so that "ties keep the row
order" favours nobody; the first Q are the queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eval.data import StudentRun, TeacherRun
from eval.labels import Labels
from influcoder.errors import DataError
from influcoder.examples import Example

MIN_QUERIES, MIN_CANDIDATES = 2, 3
"""below these there is neither an interval nor a rank correlation"""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Test rows and the questions about them."""

    rows: Sequence[Example]
    """N test rows, the fidelity queries first"""
    num_queries: int
    """Q"""
    groups: NDArray[np.str_] | None = None
    """(N,) kind of each row; None without such a label"""
    task_queries: Sequence[Example] = ()
    """T queries whose rows are to be found; empty without a task"""
    positive: NDArray[np.bool_] | None = None
    """(N,) rows that the task wants found; None without a task"""

    @property
    def queries(self) -> Sequence[Example]:
        """The Q fidelity queries."""
        return self.rows[: self.num_queries]

    @property
    def candidates(self) -> Sequence[Example]:
        """The C rows that the fidelity queries rank."""
        return self.rows[self.num_queries :]

    @property
    def weights(self) -> NDArray[np.float64]:
        """(T,) +1 for wanted behaviour, -1 for contrast."""
        return np.array([query.weight for query in self.task_queries])


def select_test_rows(teacher: TeacherRun, student: StudentRun, seed: int) -> list[Example]:
    """Return the rows of the test part in a seeded random order."""
    places = np.flatnonzero(student.parts == "test")
    return [teacher.rows[place] for place in np.random.default_rng(seed).permutation(places)]


def select_train_rows(teacher: TeacherRun, student: StudentRun) -> list[Example]:
    """Return the rows that the distillation trained on."""
    return [teacher.rows[place] for place in np.flatnonzero(student.parts == "train")]


def make_judged(rows: Sequence[Example], task_queries: Sequence[Example], labels: Labels, num_queries: int) -> Judged:
    """Take at most half of the rows as fidelity queries, and the task when it has answers.

    Raises:
        DataError: when the test rows are too few, hold no positive or nothing else, or the task has no queries.
    """
    chosen = min(num_queries, len(rows) // 2)
    if chosen < MIN_QUERIES or len(rows) - chosen < MIN_CANDIDATES:
        raise DataError(f"test split: {len(rows)} rows; expected at least {MIN_QUERIES + MIN_CANDIDATES}; raise split.test of the student")
    if labels.positive is not None:
        if not task_queries:
            raise DataError("labels.positive is set, but the teacher run has no queries; run the teacher with queries, or set it to null")
        if not 0 < labels.positive.sum() < len(rows):
            raise DataError(
                f"labels: {labels.positive.sum()} of {len(rows)} test rows are positive; expected some and not all; "
                "check the column, or raise split.test of the student"
            )
    return Judged(
        rows=rows,
        num_queries=chosen,
        groups=labels.groups,
        task_queries=task_queries if labels.positive is not None else (),
        positive=labels.positive,
    )
