"""The eval stage: opens the runs, refuses what leaks or does not match, asks every method, writes the summary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from eval.baselines import method_groups
from eval.config import EvalConfig
from eval.data import check_same_split, load_student, load_teacher
from eval.evaluate import evaluate
from eval.judged import make_judged, select_test_rows, select_train_rows
from eval.labels import load_labels
from eval.leakage import check_leakage
from eval.plot import write_plot
from eval.summary import make_summary, write_per_query, write_summary
from eval.table import make_sections, to_markdown, to_text
from eval.teachers import teacher_scores
from eval.wandb_log import log_to_wandb
from influcoder.errors import require
from influcoder.runs import create_run, write_text_atomic


def run(config: EvalConfig, resolved_yaml: str) -> dict[str, Any]:
    """Judge a student on its test split, write the run, print the table, return the summary.

    Raises:
        RunError: when runs are unfinished or do not belong together.
        DataError: when the test split leaks, or rows have no label.
        MissingExtraError: when W&B is asked for and not installed.
    """
    output = Path(config.output)
    if config.wandb_project is not None:
        require("wandb", "wandb")  # say now that it is missing, not after the work
    with create_run(output, "eval", resolved_yaml) as made:
        summary = _judge(config, made.folder)
        made.facts = {"seed": config.seed, "target": summary["target"], "counts": summary["counts"], "query_set": summary["query_set"]}
        sections = make_sections(summary)
        write_text_atomic(made.folder / "table.md", to_markdown(sections))
        write_plot(made.folder / "fidelity.png", summary)
    print(f"\n{to_text(sections)}\n\n{output}: summary.json, table.md, per_query.parquet, fidelity.png")
    if config.wandb_project is not None:  # last, so that an outage there costs no result
        log_to_wandb(output, config, summary)
    return summary


def _judge(config: EvalConfig, folder: Path) -> dict[str, Any]:
    teacher = load_teacher(Path(config.teacher))
    student = load_student(Path(config.student), teacher)
    references = {name: load_student(Path(path), teacher) for name, path in config.compare.items()}
    for reference in references.values():
        check_same_split(student, reference)
    rows, train = select_test_rows(teacher, student, config.seed), select_train_rows(teacher, student)
    judged = make_judged(rows, teacher.queries, load_labels(config.labels, rows), config.num_queries)
    check_leakage(train, rows, judged.task_queries, teacher.text_format, student.record["near_duplicate_jaccard"])
    target = teacher_scores(teacher, judged, teacher.record["seeds"][0])
    assert target.fidelity is not None  # only the teacher's own row of the table has none
    groups = method_groups(teacher, student, references, judged, target=target, seed=config.seed, device=config.device)
    results = evaluate(judged, target.fidelity, groups, top=config.top, seed=config.seed, draws=config.bootstrap_draws)
    summary = make_summary(teacher, student, judged, results)
    write_summary(folder, summary)
    write_per_query(folder, judged, results)
    return summary
