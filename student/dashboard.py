"""What a student run shows in Weights & Biases, where the config's `trainer.logger` names a WandbLogger.

    trainer:
      logger: {class_path: lightning.pytorch.loggers.WandbLogger, init_args: {project: influcoder}}

Training logs loss and validation Spearman. After it come `fidelity/METHOD`, per-query Spearman of the finished student, of its floor
and of its ceiling, each at the first and at the last step: a level line beside the curve. Then `fidelity`, the picture; `examples`, a
table; and the encoder as an artifact where `log_encoder` asks for it. `examples/wandb_dashboard.py` arranges them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import WandbLogger
from numpy.typing import NDArray

from influcoder.calibration import FIDELITY_FILE
from influcoder.errors import require
from influcoder.metrics import per_query_spearman
from student.module import KeepBest

EXAMPLE_QUERIES = 9
EXAMPLE_ROWS = 3
COLUMNS = [
    "query",
    "its Spearman",
    "rank",
    "row, by the student",
    "its rank by the teacher",
    "row, by the teacher",
    "its rank by the student",
]


def wandb_loggers(trainer: Trainer) -> list[WandbLogger]:
    """Return those of the trainer's loggers that write to Weights & Biases."""
    return [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]


def log_dashboard(trainer: Trainer, folder: Path, best: KeepBest, scores: NDArray[np.floating], *, log_encoder: bool) -> None:
    """Log what is known only after training to the trainer's WandbLoggers; without any, nothing is imported or done.

    Args:
        trainer: whose training has ended.
        folder: of the complete run, with `fidelity.png` and the encoder's `fidelity.json`.
        best: validation texts and the teacher's scores.
        scores: the student's, (queries, candidates).
        log_encoder: whether the encoder's folder goes along.

    Raises:
        MissingExtraError: when wandb is not installed.
    """
    validation = json.loads((folder / "encoder" / FIDELITY_FILE).read_text())["validation"]
    for logger in wandb_loggers(trainer):
        wandb, run = require("wandb", "wandb"), logger.experiment
        levels = {metric_name(name): figures["per_query_spearman"] for name, figures in validation["methods"].items()}
        for step in (0, max(1, trainer.global_step - 1)):
            logger.log_metrics(levels, step=step)
        run.summary.update({"validation": validation})
        run.log({"fidelity": wandb.Image(str(folder / "fidelity.png")), "examples": wandb.Table(COLUMNS, example_lines(best, scores))})
        if log_encoder:
            artifact = wandb.Artifact(f"encoder-{run.id}", type="model", metadata=validation)
            artifact.add_dir(str(folder / "encoder"))
            run.log_artifact(artifact)


def metric_name(method: str) -> str:
    """Return the name of a method's line: letters, digits and underscores, which W&B can sort and filter by."""
    return f"fidelity/{method.replace(',', '').replace(' ', '_')}"


def example_lines(best: KeepBest, scores: NDArray[np.floating]) -> list[list[Any]]:
    """Return the lines of the table of examples: some queries from the worst met to the best, and the first rows for each.

    Args:
        best: validation texts and the teacher's scores.
        scores: the student's, (queries, candidates).
    """
    rhos = per_query_spearman(scores, best.target)
    places = np.linspace(0, len(rhos) - 1, min(EXAMPLE_QUERIES, len(rhos))).round().astype(int)
    lines: list[list[Any]] = []
    for query in np.argsort(rhos, kind="stable")[places]:
        student, teacher = (np.argsort(-found[query], kind="stable") for found in (scores, best.target))
        student_ranks, teacher_ranks = (np.argsort(order) + 1 for order in (student, teacher))
        lines += [
            [
                best.queries[query],
                round(float(rhos[query]), 3),
                rank + 1,
                best.candidates[student[rank]],
                int(teacher_ranks[student[rank]]),
                best.candidates[teacher[rank]],
                int(student_ranks[teacher[rank]]),
            ]
            for rank in range(min(EXAMPLE_ROWS, len(student)))
        ]
    return lines
