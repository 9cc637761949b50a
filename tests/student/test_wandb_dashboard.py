"""examples/wandb_dashboard.py shows what a student logs, and needs no package to say so."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from examples.wandb_dashboard import SECTIONS, STEP, main
from student.dashboard import metric_name
from student.module import MONITOR
from student.plot import LINES

LOGGED = {MONITOR, "loss", "fidelity", "examples", *(metric_name(method) for method in LINES)}
"""tests/student/test_dashboard.py sees all of them in a run"""


def test_the_definition_is_printed_offline_and_names_what_is_logged(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("wandb", "wandb_workspaces"):
        monkeypatch.setitem(sys.modules, name, None)
    assert main(["--print", "--project", "mine"]) == 0
    definition = json.loads(capsys.readouterr().out)
    assert definition["project"] == "mine" and list(definition["sections"]) == list(SECTIONS)
    panels = [settings for content in definition["sections"].values() for _, settings in content]
    shown = {key for panel in panels for name in ("y", "media_keys", "metrics") for key in panel.get(name, [])}
    assert shown | {panel["table_name"] for panel in panels if "table_name" in panel} == LOGGED
    assert {panel["x"] for panel in panels if "x" in panel} == {STEP}


def test_without_the_package_its_pip_command_is_said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    assert main([]) == 2
    assert capsys.readouterr().err.endswith("is not installed; do: pip install 'wandb[workspaces]'\n")


def test_the_view_is_saved_section_by_section(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[dict[str, Any]] = []

    def named(kind: str) -> Callable[..., Any]:
        return lambda **settings: (kind, settings)

    class Workspace(SimpleNamespace):
        def save(self) -> Workspace:
            saved.append(vars(self))
            return Workspace(url="https://wandb.ai/me/influcoder")

    kinds = {kind for content in SECTIONS.values() for kind, _ in content}
    stand_ins: dict[str, dict[str, Any]] = {
        "wandb": {"Api": lambda: SimpleNamespace(default_entity="me")},
        "wandb_workspaces": {},
        "wandb_workspaces.workspaces": {"Workspace": Workspace, "Section": SimpleNamespace},
        "wandb_workspaces.reports": {},
        "wandb_workspaces.reports.v2": {kind: named(kind) for kind in kinds},
    }
    for name, content in stand_ins.items():
        module = ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)
    assert main(["--name", "Ours"]) == 0
    assert capsys.readouterr().out == "https://wandb.ai/me/influcoder\n"
    (view,) = saved
    assert (view["entity"], view["project"], view["name"]) == ("me", "influcoder", "Ours")
    assert {section.name: section.panels for section in view["sections"]} == SECTIONS
