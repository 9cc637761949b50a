"""The teacher's own scores: the target (first seed), and the ceiling that projection noise sets (second seed)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from eval.data import TeacherRun
from eval.judged import Judged
from eval.methods import MethodGroup, MethodScores, from_vectors
from influcoder.examples import Example


def teacher_scores(teacher: TeacherRun, judged: Judged, seed: int) -> MethodScores:
    """Return what the teacher wrote under one seed: row features for fidelity, scores of the task queries for the task."""
    rows = teacher.features(seed, "rows").select([row.id for row in judged.rows])
    fidelity = from_vectors(judged, rows, None)
    if not judged.task_queries:
        return fidelity
    scores = teacher.scores(seed)
    return replace(fidelity, task=scores.select([query.id for query in judged.task_queries], [row.id for row in judged.rows]))


def mean_teacher_scores(teacher: TeacherRun, train: Sequence[Example], seed: int) -> NDArray[np.float32]:
    """Return each training row's mean score over the training rows as queries, itself among them (a constant more)."""
    vectors = teacher.features(seed, "rows").select([row.id for row in train])
    result: NDArray[np.float32] = vectors @ vectors.mean(axis=0)
    return result


def teacher_groups(teacher: TeacherRun, judged: Judged, target: MethodScores) -> list[MethodGroup]:
    """Return the teacher, which has no fidelity to itself, and its second seed when there is one."""
    groups = [MethodGroup(name="teacher", role="teacher", compute=lambda: {"teacher": replace(target, fidelity=None)})]
    seeds: list[int] = teacher.record["seeds"]
    if len(seeds) > 1:
        groups.append(
            MethodGroup(
                name="second seed",
                role="ceiling",
                compute=lambda: {"teacher_second_seed": teacher_scores(teacher, judged, seeds[1])},
            )
        )
    return groups
