from __future__ import annotations

from dataclasses import replace

import pytest

from eval.data import TeacherRun
from eval.leakage import check_leakage
from eval.students import Student
from influcoder.errors import DataError
from influcoder.examples import Example
from tests.eval.fake_runs import PARTS, TEXT, make_rows, parts_of_fold

TRAIN, VALIDATION, TEST = PARTS.index("train"), PARTS.index("validation"), PARTS.index("test")
NO_COPIES = {"task_queries_with_a_near_copy_in_the_test_rows": 0}


def near_copy(row: Example, name: str) -> Example:
    return replace(row, id=name, response=f"{row.response} ")


def with_copy(teacher: TeacherRun, of: int, at: int) -> TeacherRun:
    rows = list(teacher.rows)
    rows[at] = near_copy(rows[of], rows[at].id)
    return replace(teacher, rows=rows)


def test_rows_of_nothing_in_common_pass(teacher: TeacherRun, student: Student, fitted_across: Student) -> None:
    assert check_leakage(teacher, student, teacher.queries) == NO_COPIES
    assert check_leakage(teacher, fitted_across, []) == NO_COPIES


@pytest.mark.parametrize("of", [TRAIN, VALIDATION])
def test_a_near_copy_of_a_distilled_row_is_refused_with_its_text(teacher: TeacherRun, student: Student, of: int) -> None:
    with pytest.raises(
        DataError, match=r"test rows: 1 of 24 have a near-copy among the distillation's training rows, .* is 'Prompt: \w"
    ) as caught:
        check_leakage(with_copy(teacher, of, TEST + 3), student, [])
    assert teacher.rows[of].prompt in str(caught.value) and "\n" not in str(caught.value)


def test_copies_among_the_test_rows_and_among_the_distilled_ones_are_no_leak(teacher: TeacherRun, student: Student) -> None:
    assert check_leakage(with_copy(teacher, TEST, TEST + 3), student, []) == NO_COPIES
    assert check_leakage(with_copy(teacher, TRAIN, VALIDATION), student, []) == NO_COPIES


def test_rows_that_differ_only_where_the_student_does_not_read_are_copies(teacher: TeacherRun, student: Student) -> None:
    long, ending = "x " * TEXT.max_response_chars, make_rows(2, "ending", seed=7)
    rows = list(teacher.rows)
    for place, row in ((TRAIN, ending[0]), (TEST, ending[1])):
        rows[place] = replace(rows[place], context=rows[0].context, response=long + row.response)
    with pytest.raises(DataError, match=r"test rows: 1 of 24"):
        check_leakage(replace(teacher, rows=rows), student, [])


def test_every_folds_test_rows_are_compared_with_what_that_fold_was_distilled_on(teacher: TeacherRun, fitted_across: Student) -> None:
    first, second = (parts_of_fold(len(teacher.rows), 2, fold) for fold in (0, 1))
    here, there = first.index("test"), second.index("test")
    same_fold = first.index("test", here + 1)
    assert check_leakage(with_copy(teacher, here, same_fold), fitted_across, []) == NO_COPIES
    with pytest.raises(DataError, match=r"test rows: 1 of 20"):
        check_leakage(with_copy(teacher, here, there), fitted_across, [])


@pytest.mark.parametrize("of", [TRAIN, VALIDATION])
def test_a_task_query_that_is_a_distilled_row_is_named_with_it(teacher: TeacherRun, student: Student, of: int) -> None:
    query = replace(teacher.rows[of], id="query9")
    with pytest.raises(DataError, match=rf"task query 'query9' is the training row 'row{of}' of the distillation") as caught:
        check_leakage(teacher, student, [*teacher.queries, query])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("of", [TRAIN, VALIDATION])
def test_a_task_query_that_is_nearly_a_distilled_row_is_refused(teacher: TeacherRun, student: Student, of: int) -> None:
    with pytest.raises(DataError, match=r"task queries: 1 of 6 have a near-copy"):
        check_leakage(teacher, student, [*teacher.queries, near_copy(teacher.rows[of], "query9")])


def test_a_task_query_like_a_test_row_is_counted(teacher: TeacherRun, student: Student) -> None:
    copies = [near_copy(teacher.rows[place], f"copy{place}") for place in (TEST, TEST + 5)]
    assert check_leakage(teacher, student, [*teacher.queries, *copies]) == {"task_queries_with_a_near_copy_in_the_test_rows": 2}


def test_with_folds_no_query_may_be_like_any_row(teacher: TeacherRun, fitted_across: Student) -> None:
    with pytest.raises(DataError, match=r"task queries: 1 of 1 have a near-copy"):
        check_leakage(teacher, fitted_across, [near_copy(teacher.rows[TEST], "copy")])
