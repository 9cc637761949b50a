from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

import pytest

from influcoder.errors import MissingExtraError
from tests.teacher.test_stage import make_config, run_stage


class FakeRun:
    def __init__(self, **arguments: Any) -> None:
        self.arguments, self.summary, self.finished = arguments, dict[str, Any](), False

    def __enter__(self) -> FakeRun:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.finished = True


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[FakeRun]:
    """What a stand-in for wandb was asked for."""
    asked: list[FakeRun] = []

    def init(**arguments: Any) -> FakeRun:
        asked.append(FakeRun(**arguments))
        return asked[-1]

    module = ModuleType("wandb")
    module.__dict__["init"] = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return asked


def test_a_finished_run_is_logged(runs: list[FakeRun], tmp_path: Path) -> None:
    made = run_stage(make_config(tmp_path, wandb_project="influcoder-test", seeds=(4,)))
    (logged,) = runs
    assert logged.finished
    assert (logged.arguments["project"], logged.arguments["job_type"]) == ("influcoder-test", "teacher")
    assert logged.arguments["config"]["seeds"] == (4,) and logged.arguments["config"]["gradients"]["dim"] == 128
    assert logged.summary == json.loads((made / "run.json").read_text())
    assert {"cost", "coverage", "projection", "self_check"} <= set(logged.summary)


def test_nothing_is_logged_unless_asked_for(runs: list[FakeRun], tmp_path: Path) -> None:
    run_stage(make_config(tmp_path))
    assert runs == []


def test_without_wandb_nothing_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'influcoder\[wandb\]'"):
        run_stage(make_config(tmp_path, wandb_project="influcoder-test"))
    assert not list(tmp_path.glob("*run*"))


def test_nothing_is_imported_unless_asked_for(repository: Path) -> None:
    for path in sorted((repository / "teacher").glob("*.py")):
        assert "import wandb" not in path.read_text(), path
