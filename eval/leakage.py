"""Refuses to judge what the distillation has seen, be it the same text or a near-copy of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from eval.data import TeacherRun
from eval.students import Student
from influcoder.errors import DataError
from influcoder.examples import Example, content_hash
from influcoder.splits import near_duplicate_groups
from influcoder.text_format import render

Mask = NDArray[np.bool_]


def check_leakage(teacher: TeacherRun, student: Student, queries: Sequence[Example]) -> dict[str, int]:
    """Compare every run's test rows, and the task queries, with the rows that it was distilled on (validation rows included).

    Args:
        teacher: gives the rows and how the split saw them.
        student: runs of which the first seed's are looked at; other seeds have the same split.
        queries: the task queries that are asked; may be empty.

    Returns:
        Counts that do not fail the run: task queries with a near-copy among the rows that they are asked about.

    Raises:
        DataError: naming how many leaked and the first of them.
    """
    rows = teacher.rows
    texts = [render(row, teacher.text_format) for row in (*rows, *queries)]
    groups = np.array(near_duplicate_groups(texts, student.first[0].record["near_duplicate_jaccard"]))
    of_rows, of_queries = np.split(groups, [len(rows)])
    judged = np.zeros(len(rows), dtype=bool)
    for run in student.first:
        test, seen = run.parts == "test", np.isin(run.parts, ["train", "validation"])
        judged |= test
        _check_same_text(rows, seen, queries)
        _refuse("test rows", of_rows[test], of_rows[seen], [text for text, tested in zip(texts, test, strict=False) if tested])
        if queries:
            _refuse("task queries", of_queries, of_rows[seen], texts[len(rows) :])
    return {"task_queries_with_a_near_copy_in_the_test_rows": int(np.isin(of_queries, of_rows[judged]).sum())}


def _check_same_text(rows: Sequence[Example], seen: Mask, queries: Sequence[Example]) -> None:
    known = {content_hash(row.context, row.response): row.id for row, trained in zip(rows, seen, strict=True) if trained}
    for query in queries:
        row_id = known.get(content_hash(query.context, query.response))
        if row_id is not None:
            raise DataError(
                f"task query {query.id!r} is the training row {row_id!r} of the distillation; expected queries that it has not seen; "
                "take the query or the row out"
            )


def _refuse(what: str, groups: NDArray[np.int64], seen: NDArray[np.int64], texts: Sequence[str]) -> None:
    leaked = np.flatnonzero(np.isin(groups, seen))
    if len(leaked):
        raise DataError(
            f"{what}: {len(leaked)} of {len(texts)} have a near-copy among the distillation's training rows, "
            f"the first is {texts[leaked[0]][:80]!r}; expected none; take them out or split again"
        )
