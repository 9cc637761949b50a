"""Logs a finished eval run to Weights & Biases; wandb is imported only when the config names a project.

With WANDB_MODE=offline everything stays in the run's own folder, to be sent later by `wandb sync`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from eval.config import EvalConfig
from eval.report.stage import FILES
from eval.report.tables import glance
from eval.report.verdict import eval_verdicts
from eval.table import make_sections
from influcoder.errors import require


def log_to_wandb(folder: Path, config: EvalConfig, summary: dict[str, Any]) -> None:
    """Log config, metrics by method, gates, verdicts, tables, plots and report of the complete run in `folder`; its files as an artifact.

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
        tables = {name: wandb.Table(columns=header, data=lines) for name, header, lines in _tables(summary)}
        pictures = {path.stem: wandb.Image(str(path)) for path in sorted(folder.glob("*.png"))}
        report = wandb.Html(str(folder / "report.html"), inject=False)  # else it would fetch a style sheet of W&B's
        run.log({**tables, **pictures, "report": report})
        artifact = wandb.Artifact(f"eval-{run.id}", type="evaluation", metadata={"target": summary["target"], "counts": summary["counts"]})
        for name in ("summary.json", *FILES):
            artifact.add_file(str(folder / name))
        run.log_artifact(artifact)


def _tables(summary: dict[str, Any]) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    verdicts = [[verdict.question, verdict.status, verdict.answer] for verdict in eval_verdicts(summary)]
    yield "Verdicts", ["question", "status", "answer"], verdicts
    for section in (glance(summary), *make_sections(summary)):
        yield section.title.split(":")[0], list(section.header), [list(line) for line in section.lines]
