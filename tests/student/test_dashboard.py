from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning.pytorch.loggers import WandbLogger
from scipy.stats import rankdata, spearmanr

from influcoder.errors import ConfigError
from influcoder.runs import open_run
from student.__main__ import main
from student.dashboard import COLUMNS, EXAMPLE_QUERIES, EXAMPLE_ROWS, example_lines, metric_name
from student.data import Pairs
from student.module import MONITOR, KeepBest
from student.plot import rank_shares, write_plot
from tests.student.test_stage import make_config, run_stage

Logged = tuple[Path, list[tuple[dict[str, Any], Any]], Any]
METHODS = ["student", "untrained encoder", "teacher, second seed"]


@pytest.fixture(scope="module")
def logged(finished_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Logged]:
    """The folder of a student that was logged offline, what its logger was given, and the W&B run, still open."""
    wandb = pytest.importorskip("wandb")
    folder, given = tmp_path_factory.mktemp("dashboard"), list[tuple[dict[str, Any], Any]]()
    log_metrics = WandbLogger.log_metrics

    def note(self: WandbLogger, metrics: dict[str, Any], step: int | None = None) -> None:
        given.append((metrics, step))
        log_metrics(self, metrics, step)

    logger = {"class_path": "lightning.pytorch.loggers.WandbLogger", "init_args": {"project": "influcoder-test", "save_dir": str(folder)}}
    trainer = {"max_epochs": 3, "enable_progress_bar": False, "accelerator": "cpu", "logger": logger, "log_every_n_steps": 1}
    config = asdict(make_config(finished_teacher, folder / "student", log_encoder=True, trainer=trainer))
    (folder / "config.yaml").write_text(json.dumps(config))  # which is YAML too
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_DATA_DIR": folder, "WANDB_CACHE_DIR": folder}.items():
            patch.setenv(name, str(value))
        patch.setattr(WandbLogger, "log_metrics", note)
        main([str(folder / "config.yaml")])
        yield folder, given, wandb.run
        wandb.finish()  # a run goes on until its process ends: other tests log too


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # wandb's own
def test_an_offline_run_holds_curve_levels_picture_examples_and_encoder(logged: Logged, finished_teacher: Path) -> None:
    folder, given, run = logged
    record = open_run(folder / "student", "student")
    figures = json.loads((folder / "student" / "encoder" / "fidelity.json").read_text())["validation"]["methods"]
    assert list(figures) == METHODS

    curve = [(step, metrics[MONITOR]) for metrics, step in given if MONITOR in metrics]
    levels = [(step, metrics) for metrics, step in given if metric_name("student") in metrics]
    assert len(curve) == 3
    assert [step for step, _ in levels] == [0, curve[-1][0]], "a level runs as far as the curve"
    for _, metrics in levels:
        assert metrics == {metric_name(name): figures[name]["per_query_spearman"] for name in METHODS}
    assert levels[0][1]["fidelity/student"] == pytest.approx(max(figure for _, figure in curve), abs=1e-6)
    assert levels[0][1]["fidelity/student"] == pytest.approx(record["validation"]["per_query_spearman"], abs=1e-6)
    assert any("loss" in metrics for metrics, _ in given)
    assert {*levels[0][1], MONITOR, "loss", "fidelity", "examples", "validation"} <= set(run.summary.keys())
    assert (
        run.config["teacher"] == str(finished_teacher)
        and run.config["optimizer"]["learning_rate"] == 5e-3
        and run.config["encoder"]["fresh"]["layers"] == 1
    )

    (offline,) = (folder / "wandb").glob("offline-run-*")
    assert list(offline.glob("*.wandb"))
    (table,) = (offline / "files" / "media" / "table").rglob("examples*.table.json")
    assert json.loads(table.read_text())["columns"] == COLUMNS
    assert list((offline / "files" / "media" / "images").rglob("fidelity*.png"))
    weights = (folder / "student" / "encoder" / "model.safetensors").read_bytes()
    assert any(path.read_bytes() == weights for path in (folder / "artifacts" / "staging").iterdir())


def test_a_run_draws_its_picture_without_wandb(finished_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    made = run_stage(make_config(finished_teacher, tmp_path / "student", trainer={"max_epochs": 1, "enable_progress_bar": False}))
    assert (made / "fidelity.png").read_bytes().startswith(b"\x89PNG")


def test_an_encoder_without_a_logger_to_take_it_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"log_encoder: true without a WandbLogger; expected one in trainer\.logger"):
        make_config(Path(), Path(), log_encoder=True)
    assert make_config(
        Path(), Path(), log_encoder=True, trainer={"logger": [{"class_path": "lightning.pytorch.loggers.WandbLogger"}]}
    ).log_encoder


def make_judge(queries: int, candidates: int) -> KeepBest:
    random = np.random.default_rng(0)
    asking, features = (random.normal(size=(count, 4)).astype(np.float32) for count in (queries, candidates))
    askers, texts = ([f"{name}{place}" for place in range(count)] for name, count in (("query", queries), ("row", candidates)))
    return KeepBest(Pairs(askers, asking, texts, features, rows_ask=False), 1)


@pytest.mark.parametrize(("queries", "candidates"), [(30, 12), (4, 12)])
def test_examples_go_from_the_worst_query_to_the_best_with_both_rankings(queries: int, candidates: int) -> None:
    best = make_judge(queries, candidates)
    noise = np.random.default_rng(1).normal(size=(queries, candidates))
    scores = best.target + noise * np.linspace(0, 6, queries)[:, None]
    rhos = {name: spearmanr(row, true).statistic for name, row, true in zip(best.queries, scores, best.target, strict=True)}
    lines = example_lines(best, scores)
    asked = list(dict.fromkeys(line[0] for line in lines))
    assert len(asked) == min(queries, EXAMPLE_QUERIES) and len(lines) == len(asked) * EXAMPLE_ROWS
    ordered = sorted(rhos, key=lambda name: rhos[name])
    assert asked[0] == ordered[0] and asked[-1] == ordered[-1]
    assert [ordered.index(name) for name in asked] == sorted(ordered.index(name) for name in asked)
    for line in lines:
        query, rho, rank, by_student, teachers_rank, by_teacher, students_rank = line
        assert len(line) == len(COLUMNS) and rho == pytest.approx(rhos[query], abs=6e-4)
        ranks = {who: rankdata(-found[best.queries.index(query)]) for who, found in (("student", scores), ("teacher", best.target))}
        assert ranks["student"][best.candidates.index(by_student)] == rank
        assert ranks["teacher"][best.candidates.index(by_student)] == teachers_rank
        assert ranks["teacher"][best.candidates.index(by_teacher)] == rank
        assert ranks["student"][best.candidates.index(by_teacher)] == students_rank


def test_shares_of_a_ranking_are_scipys_and_the_picture_does_not_hang_on_ties(tmp_path: Path) -> None:
    scores = np.array([[3.0, 1.0, 2.0, 2.0], [0.0, 0.0, 0.0, 0.0]])
    np.testing.assert_allclose(rank_shares(scores), (rankdata(scores, axis=1) - 1) / 3)
    write_plot(tmp_path / "ties.png", scores, {"student": scores[:, ::-1], "untrained encoder": np.zeros_like(scores)})
    assert (tmp_path / "ties.png").read_bytes().startswith(b"\x89PNG")
