from __future__ import annotations

import json
from pathlib import Path

import pytest

from eval.stage import run
from tests.eval.fake_runs import Runs


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # wandb's own
def test_offline_logging_stays_in_the_run(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run(runs.config(wandb_project="influcoder-test", bootstrap_draws=2), "")
    folder = runs.folder / "eval" / "wandb"
    (offline,) = folder.glob("offline-run-*")
    assert list(offline.glob("*.wandb"))
    logged = {path.name.split("_")[0] for path in (offline / "files" / "media").rglob("*") if path.is_file()}
    tables = {"Verdicts", "All methods at a glance", "Fidelity to influcoder", "poison", "Cost on this machine", "Gates"}
    assert {"fidelity", "tasks", "report"} | tables <= logged, sorted(logged)
    (report,) = (offline / "files" / "media" / "html").glob("report_*.html")
    assert report.read_text() == (runs.folder / "eval" / "report.html").read_text(), "as it is, without a style sheet from elsewhere"
    written = [json.loads(path.read_text()) for path in (offline / "files" / "media").rglob("*.table.json")]
    assert {row[0] for table in written for row in table["data"]} >= {"student", "teacher", "bm25"}


def test_nothing_is_imported_unless_asked_for(repository: Path) -> None:
    for path in sorted((repository / "eval").rglob("*.py")):
        assert "import wandb" not in path.read_text(), path
