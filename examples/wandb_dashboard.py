"""Save a view of students in Weights & Biases: fidelity between its floor and its ceiling, the rank picture, examples, the loss.

    pip install 'wandb[workspaces]'
    python -m examples.wandb_dashboard --entity ME --project influcoder
    python -m examples.wandb_dashboard --print        the definition as JSON; nothing is installed or sent

Its keys are those that `student/dashboard.py` logs. Change SECTIONS to change the view; every call saves another one.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from typing import Any

STEP = "trainer/global_step"
LEVELS = [f"fidelity/{method}" for method in ("student", "untrained_encoder", "teacher_second_seed")]
CURVE = {"title": "Spearman per query on validation rows, with floor and ceiling", "y": ["validation_per_query_spearman", *LEVELS]}
SECTIONS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "Fidelity": [
        ("LinePlot", CURVE | {"x": STEP, "title_y": "Spearman"}),
        ("MediaBrowser", {"title": "Ranks by student and teacher", "media_keys": ["fidelity"]}),
        ("WeavePanelSummaryTable", {"table_name": "examples"}),
        ("BarPlot", {"title": "Finished students", "metrics": LEVELS[:1]}),
    ],
    "Training": [("LinePlot", {"title": "Loss", "x": STEP, "y": ["loss"], "smoothing_type": "exponential", "smoothing_factor": 0.5})],
}
"""panels by section: a class of wandb_workspaces.reports.v2 and what it is given"""


def main(arguments: Sequence[str]) -> int:
    """Save the view, or print its definition."""
    parser = argparse.ArgumentParser(prog="python -m examples.wandb_dashboard", description=main.__doc__)
    parser.add_argument("--entity", help="user or team; by default that of the login")
    parser.add_argument("--project", default="influcoder")
    parser.add_argument("--name", default="Students")
    parser.add_argument("--print", action="store_true", help="write the definition as JSON and send nothing")
    given = parser.parse_args(arguments)
    if given.print:
        print(json.dumps({"name": given.name, "project": given.project, "sections": SECTIONS}, indent=2))
        return 0
    try:
        print(save_view(given.entity, given.project, given.name))
    except ImportError as error:
        print(f"error: {error.name} is not installed; do: pip install 'wandb[workspaces]'", file=sys.stderr)
        return 2
    return 0


def save_view(entity: str | None, project: str, name: str) -> str:
    """Save SECTIONS as a view of a project; return its address."""
    wandb, workspaces, panels = (
        importlib.import_module(module) for module in ("wandb", "wandb_workspaces.workspaces", "wandb_workspaces.reports.v2")
    )
    sections = [
        workspaces.Section(name=title, panels=[getattr(panels, kind)(**settings) for kind, settings in content], is_open=True)
        for title, content in SECTIONS.items()
    ]
    workspace = workspaces.Workspace(entity=entity or wandb.Api().default_entity, project=project, name=name, sections=sections)
    return str(workspace.save().url)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
