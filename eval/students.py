"""One student of the table may be several runs: one for each seed, and for each fold of a cross-fitted split.

With folds, every row is judged by the run whose test part it is in, so no row is scored by an encoder that trained on it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eval.data import StudentRun, TeacherRun, load_student
from influcoder.errors import RunError


@dataclass(frozen=True, kw_only=True)
class Student:
    """A student by seed and fold."""

    runs: tuple[tuple[StudentRun, ...], ...]
    """(seeds, folds); the fold's runs of every seed have the same test part"""

    @property
    def first(self) -> tuple[StudentRun, ...]:
        """The first seed's runs, one a fold."""
        return self.runs[0]

    def fold_of(self) -> NDArray[np.int64]:
        """Return the fold that judges each row of the teacher's pool, -1 for rows that none does."""
        places = np.full(len(self.first[0].parts), -1)
        for fold, run in enumerate(self.first):
            places[run.parts == "test"] = fold
        return places


def load_students(folders: Sequence[str], teacher: TeacherRun, *, control: bool = False) -> Student:
    """Open the runs of a student, by seed and fold.

    Args:
        folders: its runs, in any order.
        teacher: that they were distilled from.
        control: whether they are students of shuffled targets; these may have the first folds only.

    Raises:
        RunError: when a run is not of that teacher or not of that kind, a fold is missing or given twice, or seeds differ in their split.
    """
    by_seed: dict[int, list[StudentRun]] = defaultdict(list)
    for folder in folders:
        run = load_student(Path(folder), teacher)
        if run.record["shuffle_target"] != control:
            raise RunError(
                f"{folder}: shuffle_target is {run.record['shuffle_target']}, expected {control}; "
                "students of shuffled targets belong under `shuffled_target`, and no others"
            )
        by_seed[run.record["seed"]].append(run)
    runs = tuple(tuple(sorted(by_seed[seed], key=lambda run: run.record["fold"])) for seed in sorted(by_seed))
    for of_seed in runs:
        _check_folds(of_seed, control)
    student = Student(runs=runs)
    for other in runs[1:]:
        check_same_split(student, Student(runs=(other,)))
    return student


def check_same_split(first: Student, second: Student) -> None:
    """Refuse students that were not distilled on the same rows: one may have seen what the other is judged on.

    Raises:
        RunError: naming both runs and the number of rows that differ.
    """
    for mine, theirs in zip(first.first, second.first, strict=False):
        if mine.record["folds"] != theirs.record["folds"]:
            raise RunError(
                f"{theirs.folder}: split into {theirs.record['folds'] or 1} folds, but {mine.folder} into {mine.record['folds'] or 1}; "
                "expected the same split; train both students with the same split settings"
            )
        differing = int((mine.parts != theirs.parts).sum())
        if differing:
            raise RunError(
                f"{theirs.folder}: {differing} of {len(mine.parts)} rows stand on another side of the split than in {mine.folder}; "
                "expected the same split; train both students with the same split settings"
            )


def _check_folds(runs: Sequence[StudentRun], control: bool) -> None:
    found, counts = [run.record["fold"] for run in runs], sorted({run.record["folds"] or 1 for run in runs})
    expected = list(range(min(len(runs), counts[0]) if control else counts[0]))
    if found != expected or len(counts) > 1:
        raise RunError(
            f"{', '.join(str(run.folder) for run in runs)}: folds {found} of {' and '.join(map(str, counts))}, seed {runs[0].record['seed']}; "
            f"expected {expected} of one number of folds, each once; name every fold's run, and no run twice"
        )
