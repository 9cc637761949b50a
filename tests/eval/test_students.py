from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eval.data import TeacherRun
from eval.students import check_same_split, load_students
from influcoder.errors import RunError
from influcoder.text_format import save_text_format
from tests.eval.fake_runs import FOLDS, PARTS, SEEDS, TEXT, Runs, edit_record


def move_first_test_row(folder: str) -> str:
    """Put it on the training side; return its id."""
    path = Path(folder) / "split.parquet"
    split = pq.read_table(path).to_pydict()
    place = split["part"].index("test")
    split["part"][place] = "train"
    pq.write_table(pa.table(split), path)
    return str(split["id"][place])


def test_runs_stand_by_seed_and_fold_in_whatever_order_they_are_given(finished_runs: Runs, teacher: TeacherRun) -> None:
    student = load_students(finished_runs.cross_fitted[::-1], teacher)
    assert [[(run.record["seed"], run.record["fold"]) for run in seed] for seed in student.runs] == [[(0, 0), (0, 1)], [(1, 0), (1, 1)]]
    assert [str(run.folder) for seed in student.runs for run in seed] == list(finished_runs.cross_fitted)
    assert len(student.runs) == SEEDS and student.first == student.runs[0]


def test_a_row_is_judged_by_the_run_in_whose_test_part_it_is(finished_runs: Runs, teacher: TeacherRun) -> None:
    student = load_students(finished_runs.cross_fitted, teacher)
    fold_of = student.fold_of()
    assert set(fold_of) == set(range(FOLDS)), "every row has a fold"
    for seed in student.runs:
        for place, fold in enumerate(fold_of):
            assert [run.parts[place] == "test" for run in seed] == [number == fold for number in range(FOLDS)]


def test_without_folds_the_other_rows_are_judged_by_none(finished_runs: Runs, teacher: TeacherRun) -> None:
    fold_of = load_students([str(finished_runs.folder / "student")], teacher).fold_of()
    np.testing.assert_array_equal(fold_of, np.where(np.array(PARTS) == "test", 0, -1))


def test_a_student_may_have_markers_of_its_own_but_cuts_as_its_teacher_does(runs: Runs, teacher: TeacherRun) -> None:
    folder = runs.folder / "student"
    markers = replace(TEXT, prompt_marker="<user>", separator="", response_marker="<assistant>", end_marker="<eos>")
    save_text_format(folder / "encoder", markers)
    assert load_students([str(folder)], teacher).first[0].folder == folder
    save_text_format(folder / "encoder", replace(markers, max_response_chars=101))
    with pytest.raises(RunError, match=r"encoder: cuts texts to \(100, 101\) characters, but .*teacher to \(100, 100\)") as caught:
        load_students([str(folder)], teacher)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("choose", "message"),
    [
        (lambda runs: runs[:3], r"seed-1-fold-0: folds \[0\] of 2, seed 1; expected \[0, 1\] .* each once"),
        (lambda runs: runs[1:2], r"seed-0-fold-1: folds \[1\] of 2, seed 0; expected \[0, 1\] .* each once"),
        (lambda runs: (*runs, runs[1]), r"folds \[0, 1, 1\] of 2, seed 0; expected \[0, 1\] .* no run twice"),
    ],
)
def test_a_fold_that_is_missing_or_given_twice_is_refused(
    finished_runs: Runs, teacher: TeacherRun, choose: Callable[[tuple[str, ...]], tuple[str, ...]], message: str
) -> None:
    with pytest.raises(RunError, match=message) as caught:
        load_students(choose(finished_runs.cross_fitted), teacher)
    assert "\n" not in str(caught.value)


def test_one_run_given_twice_is_refused(finished_runs: Runs, teacher: TeacherRun) -> None:
    with pytest.raises(RunError, match=r"folds \[0, 0\] of 1, seed 0; expected \[0\] .* each once"):
        load_students([str(finished_runs.folder / "student")] * 2, teacher)


def test_runs_of_other_numbers_of_folds_are_refused(runs: Runs, teacher: TeacherRun) -> None:
    edit_record(Path(runs.cross_fitted[1]), folds=3)
    with pytest.raises(RunError, match=r"folds \[0, 1\] of 2 and 3, seed 0; expected \[0, 1\] of one number of folds"):
        load_students(runs.cross_fitted, teacher)


def test_seeds_of_different_splits_are_refused_naming_both(runs: Runs, teacher: TeacherRun) -> None:
    other = runs.copy("other", seed=1)
    move_first_test_row(other)
    with pytest.raises(RunError, match=r"other: 1 of 40 rows stand on another side of the split than in .*student; .*same split") as caught:
        load_students([str(runs.folder / "student"), other], teacher)
    assert "\n" not in str(caught.value)


def test_seeds_of_another_split_in_a_later_fold_are_refused_too(runs: Runs, teacher: TeacherRun) -> None:
    move_first_test_row(runs.cross_fitted[-1])
    with pytest.raises(RunError, match=r"seed-1-fold-1: 1 of 40 rows stand on another side of the split than in .*seed-0-fold-1"):
        load_students(runs.cross_fitted, teacher)


@pytest.mark.parametrize("control", [False, True])
def test_a_control_is_no_student_and_a_student_no_control(runs: Runs, teacher: TeacherRun, control: bool) -> None:
    wrong = runs.copy("wrong", shuffle_target=not control)
    with pytest.raises(RunError, match=rf"wrong: shuffle_target is {not control}, expected {control}; .*`shuffled_target`") as caught:
        load_students([wrong], teacher, control=control)
    assert "\n" not in str(caught.value)


def test_a_control_may_have_the_first_fold_alone(runs: Runs, teacher: TeacherRun) -> None:
    first, second = (runs.copy(f"control-{fold}", f"seed-0-fold-{fold}", shuffle_target=True) for fold in range(FOLDS))
    control = load_students([first], teacher, control=True)
    assert len(control.first) == 1
    check_same_split(load_students(runs.cross_fitted, teacher), control)
    with pytest.raises(RunError, match=r"folds \[1\] of 2, seed 0; expected \[0\]"):
        load_students([second], teacher, control=True)


def test_a_control_of_more_folds_than_there_are_is_refused(runs: Runs, teacher: TeacherRun) -> None:
    controls = [runs.copy(f"control-{fold}", shuffle_target=True, fold=fold) for fold in (0, 1)]
    with pytest.raises(RunError, match=r"folds \[0, 1\] of 1, seed 0; expected \[0\] .* each once"):
        load_students(controls, teacher, control=True)


def test_a_record_of_before_there_were_folds_is_a_run_of_one_split(runs: Runs, teacher: TeacherRun) -> None:
    path = runs.folder / "student" / "run.json"
    record = json.loads(path.read_text())
    for name in ("seed", "folds", "fold", "shuffle_target"):
        del record[name]
    path.write_text(json.dumps(record))
    (run,) = load_students([str(runs.folder / "student")], teacher).first
    assert (run.record["seed"], run.record["folds"], run.record["fold"], run.record["shuffle_target"]) == (0, None, 0, False)
