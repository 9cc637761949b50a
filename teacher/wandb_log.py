"""Logs a finished teacher run to Weights & Biases; wandb is imported only when the config names a project."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from influcoder.errors import require
from teacher.config import TeacherConfig


def log_to_wandb(folder: Path, config: TeacherConfig) -> None:
    """Log config and facts of the complete run in `folder`.

    Raises:
        MissingExtraError: when wandb is not installed.
    """
    wandb = require("wandb", "wandb")
    record = json.loads((folder / "run.json").read_text())
    with wandb.init(project=config.wandb_project, job_type="teacher", dir=str(folder), config=asdict(config)) as run:
        run.summary.update(record)
