"""Logs a finished summary to Weights & Biases; wandb is imported only when the config names a project.

With WANDB_MODE=offline everything stays in the run's own folder, to be sent later by `wandb sync`.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from eval.config import EvalConfig
from eval.table import make_sections
from influcoder.errors import require


def log_to_wandb(folder: Path, config: EvalConfig, summary: dict[str, Any]) -> None:
    """Log config, tables, metrics by method, gates, and the plots of the complete run in `folder`.

    Raises:
        MissingExtraError: when wandb is not installed.
    """
    wandb = require("wandb", "wandb")
    with wandb.init(project=config.wandb_project, job_type="eval", dir=str(folder), config=asdict(config)) as run:
        for name, method in summary["methods"].items():
            for metric, value in method["metrics"].items():
                if value is not None:
                    run.summary[f"{name}/{metric}"] = value["mean"]
        for name, gate in summary["gates"].items():
            run.summary[f"gates/{name}"] = gate["passed"]
        tables = {
            section.title.split(":")[0]: wandb.Table(columns=list(section.header), data=[list(line) for line in section.lines])
            for section in make_sections(summary)
        }
        run.log({**tables, **{path.stem: wandb.Image(str(path)) for path in sorted(folder.glob("*.png"))}})
