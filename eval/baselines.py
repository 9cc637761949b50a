"""The rows of the table: every method that is asked the same questions, and its role.

ceiling     teacher_second_seed: how far the teacher agrees with itself
teacher     the target of fidelity
student     what is judged
reference   other students and other teachers, named in the config
floor       what needs no distillation; a student that is not above them has learnt nothing of use
control     shuffled_target: a student that must not be above the floors
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from eval.data import TeacherRun
from eval.encoders import Embedder, encoder_scores, query_blind_scores, student_scores
from eval.floors import bm25_scores, decoder_scores, length_scores, random_scores
from eval.judged import Judged
from eval.methods import Cost, MethodGroup, MethodScores, Role
from eval.students import Student
from eval.teachers import mean_training_scores, other_teacher_scores, teacher_groups
from influcoder.influence.decoder import load_decoder


@dataclass(frozen=True, kw_only=True)
class Contestants:
    """Everything that is judged."""

    teacher: TeacherRun
    student: Student
    references: Mapping[str, Student]
    teachers: Mapping[str, TeacherRun]
    """of other methods, on the same rows and queries"""
    control: Student | None
    """of shuffled targets"""


def method_groups(
    contestants: Contestants, judged: Judged, *, target: MethodScores, teacher_cost: Cost | None, cost_rows: int, seed: int, device: str
) -> list[MethodGroup]:
    """Return every method of the table, none of them computed yet.

    Args:
        contestants: teacher and students.
        judged: what they are all asked.
        target: the teacher's scores under its first seed.
        teacher_cost: what the teacher's gradients cost; None when it names no decoder.
        cost_rows: rows on which other teachers' gradients are timed.
        seed: of the random floor.
        device: of encoders and decoder.
    """
    teacher, student = contestants.teacher, contestants.student
    groups = teacher_groups(teacher, judged, target, teacher_cost)

    def add(name: str, role: Role, compute: partial[MethodScores]) -> None:
        groups.append(MethodGroup(name=name, role=role, compute=lambda: {name: compute()}))

    def add_student(name: str, role: Role, judged_student: Student) -> None:
        setup = _setup_seconds(judged_student, teacher_cost)
        add(name, role, partial(student_scores, Embedder(device), judged_student, judged, setup))

    add_student("student", "student", student)
    for name, reference in contestants.references.items():
        add_student(name, "reference", reference)
    if contestants.control is not None:
        add_student("shuffled_target", "control", contestants.control)
    embedder = Embedder(device)
    add("untrained_encoder", "floor", partial(encoder_scores, embedder, student.first[0].folder / "initial_encoder", judged))
    add("query_blind", "floor", partial(query_blind_scores, embedder, student, judged, partial(mean_training_scores, teacher)))
    for name, run in contestants.teachers.items():
        add(name, "reference", partial(other_teacher_scores, run, judged, run.decoder_config(device), cost_rows))
    add("bm25", "floor", partial(bm25_scores, judged))
    add("bm25_response", "floor", partial(bm25_scores, judged, response_only=True))
    if teacher.has_decoder:
        load = partial(load_decoder, teacher.decoder_config(device), [], 0)
        groups.append(MethodGroup(name="decoder forward", role="floor", compute=partial(decoder_scores, load, judged)))
    add("length", "floor", partial(length_scores, judged))
    add("random", "floor", partial(random_scores, judged, seed))
    return groups


def _setup_seconds(student: Student, teacher_cost: Cost | None) -> float:
    """Return what one run of a student took before its first row: gradients of the rows to distil, and the distillation."""
    runs = [run for seed in student.runs for run in seed]
    distilled = np.mean([np.isin(run.parts, ["train", "validation"]).sum() for run in runs])
    gradients = 0.0 if teacher_cost is None else distilled * teacher_cost.seconds_per_1000 / 1000
    return float(gradients + np.mean([run.record["seconds"] for run in runs]))
