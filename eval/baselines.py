"""The rows of the table: every method that is asked the same questions, and its role.

ceiling     teacher_second_seed: how far the teacher agrees with itself
teacher     the target of fidelity
student     what is judged
reference   other students, named in the config
floor       what needs no distillation; a student that is not above them has learnt nothing of use
"""

from __future__ import annotations

from functools import partial

from eval.data import StudentRun, TeacherRun
from eval.encoders import Embedder, encoder_scores, query_blind_scores
from eval.floors import bm25_scores, length_scores, random_scores, rep_sim_scores
from eval.judged import Judged, select_train_rows
from eval.methods import MethodGroup, MethodScores, Role
from eval.teachers import mean_teacher_scores, teacher_groups


def method_groups(
    teacher: TeacherRun,
    student: StudentRun,
    references: dict[str, StudentRun],
    judged: Judged,
    *,
    target: MethodScores,
    seed: int,
    device: str,
) -> list[MethodGroup]:
    """Return every method of the table, none of them computed yet.

    Args:
        teacher: the run that gives target, ceiling and decoder.
        student: the run that is judged.
        references: other students by name.
        judged: what they are all asked.
        target: the teacher's scores under its first seed.
        seed: of the random floor.
        device: of encoders and decoder.
    """
    embedder = Embedder(teacher.text_format, device)
    groups = teacher_groups(teacher, judged, target)

    def add(name: str, role: Role, compute: partial[MethodScores]) -> None:
        groups.append(MethodGroup(name=name, role=role, compute=lambda: {name: compute()}))

    add("student", "student", partial(encoder_scores, embedder, student.folder / "encoder", judged))
    for name, run in references.items():
        add(name, "reference", partial(encoder_scores, embedder, run.folder / "encoder", judged))
    add("untrained_encoder", "floor", partial(encoder_scores, embedder, student.folder / "initial_encoder", judged))
    train = select_train_rows(teacher, student)
    mean_target = partial(mean_teacher_scores, teacher, train, teacher.record["seeds"][0])
    add("query_blind", "floor", partial(query_blind_scores, embedder, student.folder / "encoder", judged, train, mean_target))
    add("bm25", "floor", partial(bm25_scores, judged))
    groups.append(MethodGroup(name="rep_sim", role="floor", compute=partial(rep_sim_scores, teacher.decoder_config(device), judged)))
    add("length", "floor", partial(length_scores, judged))
    add("random", "floor", partial(random_scores, judged, seed))
    return groups
