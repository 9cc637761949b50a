"""The eval stage: opens the runs, refuses what leaks or does not match, asks every method, writes the run, closes the gates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from eval.baselines import Contestants, method_groups
from eval.bootstrap import Resampler
from eval.cases import make_cases
from eval.config import EvalConfig
from eval.data import TeacherRun, check_same_questions, load_teacher
from eval.evaluate import Result, evaluate
from eval.gates import Gate, cardinality_gate, randomised_gate, shuffled_gate, trained_gate
from eval.judged import Judged, check_tasks, draw_folds
from eval.leakage import check_leakage
from eval.methods import Array
from eval.parquet_tables import write_tables
from eval.plot import write_plots
from eval.report.stage import write_report
from eval.students import Student, check_same_split, load_students
from eval.summary import make_summary
from eval.table import make_sections, to_markdown, to_text
from eval.tasks import load_groups, load_tasks
from eval.teachers import randomise, teacher_cost, teacher_scores
from eval.wandb_log import log_to_wandb
from influcoder.errors import GateError, require
from influcoder.runs import create_run, write_json_atomic, write_text_atomic


def run(config: EvalConfig, resolved_yaml: str) -> dict[str, Any]:
    """Judge a student on rows that it has not seen, write the run, print the table, return the summary.

    Raises:
        RunError: when runs are unfinished or do not belong together.
        DataError: when the test rows leak, answers do not fit, or a score is not finite.
        GateError: when a gate fails; the run is written all the same.
        MissingExtraError: when W&B is asked for and not installed.
    """
    output = Path(config.output)
    if config.wandb_project is not None:
        require("wandb", "wandb")  # say now that it is missing, not after the work
    with create_run(output, "eval", resolved_yaml) as made:
        summary = _judge(config, made.folder)
        made.facts = {"seed": config.seed, **{name: summary[name] for name in ("target", "counts", "query_set")}}
        sections = make_sections(summary)
        write_text_atomic(made.folder / "table.md", to_markdown(sections))
        write_plots(made.folder, summary)
    write_report(output)  # of the complete run, as `python -m eval.report` makes it again
    print(f"\n{to_text(sections)}\n\n{output}: report.html, summary.json, table.md, *.parquet, *.png")
    if config.wandb_project is not None:  # last, so that an outage there costs no result
        log_to_wandb(output, config, summary)
    failed = [
        f"{name} ({gate['meaning']}: {gate['value']:.3f}, limit {gate['limit']:.3f})"
        for name, gate in summary["gates"].items()
        if not gate["passed"]
    ]
    if failed:
        raise GateError(f"{output}: written, but not to be believed: {'; '.join(failed)}")
    return summary


def open_runs(config: EvalConfig) -> Contestants:
    """Open the teacher and all students.

    Raises:
        RunError: when they do not belong together.
    """
    teacher = load_teacher(Path(config.teacher))
    student = load_students(config.student, teacher)
    references = {name: load_students(folders, teacher) for name, folders in config.compare.items()}
    control = load_students(config.shuffled_target, teacher, control=True) if config.shuffled_target else None
    teachers = {name: load_teacher(Path(folder)) for name, folder in config.teachers.items()}
    for name, run in teachers.items():
        check_same_questions(name, run, teacher)
    for other in [*references.values(), *([control] if control else [])]:
        check_same_split(student, other)
    return Contestants(teacher=teacher, student=student, references=references, teachers=teachers, control=control)


def make_judged(config: EvalConfig, teacher: TeacherRun, student: Student) -> Judged:
    """Return the rows that some run has not seen, in a seeded random order, and all questions about them.

    Raises:
        DataError: when there are too few rows, or answers do not fit.
    """
    fold_of = student.fold_of()
    places = np.random.default_rng(config.seed).permutation(np.flatnonzero(fold_of >= 0))
    rows = [teacher.rows[place] for place in places]
    tasks = load_tasks(config.tasks, [row.id for row in teacher.rows], rows, teacher.queries)
    asked = sorted({int(place) for task in tasks.values() for place in task.queries})
    judged = Judged(
        rows=rows,
        folds=draw_folds(fold_of[places], config.num_queries, config.seed),
        task_queries=[teacher.queries[place] for place in asked],
        groups=load_groups(config.groups, rows),
        tasks={name: task.renumbered(asked) for name, task in tasks.items()},
    )
    check_tasks(judged)
    return judged


def _judge(config: EvalConfig, folder: Path) -> dict[str, Any]:
    contestants = open_runs(config)
    teacher, student = contestants.teacher, contestants.student
    judged = make_judged(config, teacher, student)
    _announce(contestants, judged)
    leakage = check_leakage(teacher, student, judged.task_queries)
    target = teacher_scores(teacher, judged, teacher.record["seeds"][0])
    cost = teacher_cost(teacher, judged, teacher.decoder_config(config.device), config.cost_rows) if teacher.has_decoder else None
    groups = method_groups(
        contestants, judged, target=target, teacher_cost=cost, cost_rows=config.cost_rows, seed=config.seed, device=config.device
    )
    resampler = Resampler(config.bootstrap_draws, config.seed)
    results = evaluate(judged, target.asked[0], groups, top=config.top, resampler=resampler)
    gates = _gates(config, teacher, judged, target.asked[0], results)
    summary = make_summary(contestants, judged, results, gates, leakage)
    write_json_atomic(folder / "summary.json", summary)
    write_tables(folder, judged, results)
    kept = {result.name: result.first_seed for result in results if result.first_seed is not None}
    cases = make_cases(judged, kept["teacher"], kept["student"], kept.get("teacher_second_seed"), config.seed)
    write_json_atomic(folder / "cases.json", cases)
    return summary


def _announce(contestants: Contestants, judged: Judged) -> None:
    """Say what is to be done before it begins."""
    students = [contestants.student, *contestants.references.values(), *([contestants.control] if contestants.control else [])]
    seeds = sum(len(student.runs) for student in students)
    rows, asking = len(judged.rows), judged.num_asking
    texts = (seeds + 1) * (rows + len(judged.task_queries))
    print(
        f"eval: {rows} rows in {len(judged.folds)} fold{'s' * (len(judged.folds) > 1)}, {asking} queries, {len(judged.tasks)} tasks; "
        f"about {texts:,} texts to embed, {4e-6 * asking * rows:,.0f} MB of scores a seed"
    )


def _gates(config: EvalConfig, teacher: TeacherRun, judged: Judged, target: Array, results: list[Result]) -> list[Gate]:
    by_name = {result.name: result for result in results}
    rhos = {name: found.metrics["per_query_spearman"] for name, found in by_name.items()}
    floors = {name: rho.value for name, rho in rhos.items() if rho is not None and by_name[name].role == "floor"}
    ceiling, control = rhos.get("teacher_second_seed"), rhos.get("shuffled_target")
    gates: list[Gate | None] = []
    if not teacher.has_decoder:
        print("eval: the teacher run names no decoder: the gates `trained` and `randomised` are not asked, its cost is not known")
    elif config.gates.trained_share is not None or config.gates.randomised_share is not None:
        beside = randomise(teacher, judged, target, teacher.decoder_config(config.device), config.gates.randomised_queries)
        gates.append(trained_gate(beside.loss, beside.random_loss, config.gates))
        gates.append(randomised_gate(beside.agreement, 1.0 if ceiling is None else ceiling.value, config.gates))
    gates += [
        cardinality_gate(by_name["student"].cardinality, by_name["teacher"].cardinality, config.gates),
        shuffled_gate(None if control is None else control.value, floors, config.gates),
    ]
    return [gate for gate in gates if gate is not None]
