"""Features of rows computed from a finished run, against those that the run itself wrote of the same rows."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from influcoder.errors import DataError, RunError
from influcoder.examples import Example, load_examples
from influcoder.features import load_features
from influcoder.influence.decoder import DecoderConfig
from influcoder.influence.finetune import AdapterConfig, FinetuneConfig
from influcoder.influence.gradients import GradientConfig
from influcoder.influence.teacher_features import TeacherFeatures, load_teacher_features
from influcoder.runs import open_run
from teacher.config import EkfacConfig, TeacherConfig
from tests.teacher.test_stage import GRADIENTS, make_config, run_stage

BLOCKS = GradientConfig(rank=4, output_rank=4, factors="random", sketch="none", shard_rows=8)
TRAINED = FinetuneConfig(epochs=2, checkpoints=3, learning_rate=5e-3, max_batch_tokens=128)
METHODS: dict[str, dict[str, Any]] = {
    "influcoder": {},
    "the paper's": {"normalise": "unit", "gradients": replace(GRADIENTS, factors="random")},
    "dense sketch, relatif": {"normalise": "relatif", "gradients": replace(GRADIENTS, sketch="rademacher")},
    "tracin": {"method": "tracin", "finetune": TRAINED},
    "less": {"method": "less", "finetune": TRAINED},
    "logra": {"method": "logra", "gradients": BLOCKS},
    "logra, layers": {"method": "logra", "normalise": "layers", "gradients": BLOCKS},
    "trackstar": {"method": "trackstar", "gradients": BLOCKS, "finetune": TRAINED},
    "trackstar, moments of rows": {"method": "trackstar", "gradients": BLOCKS, "finetune": None},
    "ekfac": {"method": "ekfac", "gradients": GradientConfig(rank=None, dim=96, shard_rows=8), "ekfac": EkfacConfig(rows=12)},
    "adapter": {"finetune": replace(TRAINED, adapter=AdapterConfig(rank=4))},
}


def make_run(config: TeacherConfig) -> Path:
    return run_stage(config, json.dumps(asdict(config)))  # JSON is YAML: the run's own config, as the command line writes it


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose decoder others start from."""
    return make_run(make_config(tmp_path_factory.mktemp("base"), seeds=(3,)))


def made(name: str, base: Path, folder: Path) -> Path:
    decoder = DecoderConfig(path=str(base / "decoder"), device="cpu")
    return make_run(make_config(folder, **({"decoder": decoder, "seeds": (3, 5)} | METHODS[name])))


def load(run: Path) -> TeacherFeatures:
    return load_teacher_features(run, open_run(run, "teacher"), "cpu")


def relative(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    return float((np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)).max())


@pytest.mark.parametrize("name", METHODS)
def test_features_of_rows_are_the_runs_own(name: str, base: Path, tmp_path: Path) -> None:
    run = made(name, base, tmp_path / "new")
    features, place = load(run), run / "features" / "seed-3"
    rows, queries = load_examples(run / "rows.parquet"), load_examples(run / "queries.parquet")
    asked, asking = load_features(place / "rows").as_rows, load_features(place / "queries").as_queries
    chosen = [17, 2, 11]  # in other batches than the run's
    assert features.dim == asked.shape[1]
    assert relative(features.of_rows([rows[row] for row in chosen]), asked[chosen]) < 2e-3
    assert relative(features.of_queries(queries[::-1]), asking[::-1]) < 2e-3
    others = load_features(run / "features" / "seed-5" / "rows").as_rows
    assert relative(features.of_rows(rows[:2]), others[:2]) > 0.05  # the second seed's would not do


def test_a_row_that_the_decoder_cannot_read_costs_none_of_the_others(base: Path) -> None:
    features, rows = load(base), load_examples(base / "rows.parquet")
    long = replace(rows[0], response="bird " * 200)
    found = features.of_rows([rows[4], long, rows[5]])
    assert np.isnan(found[1]).all()
    np.testing.assert_array_equal(found[[0, 2]], features.of_rows([rows[4], rows[5]]))
    assert np.isnan(features.of_rows([long])).all() and features.of_rows([]).shape == (0, 128)
    with pytest.raises(DataError, match="tokens, expected at most the decoder's 96"):
        features.of_queries([rows[0], long])


def test_a_row_without_a_gradient_is_told_apart(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features, rows = load(base), load_examples(base / "rows.parquet")
    project = features.projector.project
    monkeypatch.setattr(type(features.projector), "project", lambda self, batch: project(batch) * 0)
    assert np.isnan(features.of_rows(rows[:2])).all()
    query = Example(id="q", context=(), response="fish")
    with pytest.raises(DataError, match=r"query 'q': its gradient is not a finite number above 0"):
        features.of_queries([query])


@pytest.mark.parametrize(
    ("name", "part", "message"),
    [
        ("influcoder", "decoder/model.safetensors", "has fingerprint .*, expected .* as when its gradients were taken"),
        ("influcoder", "config.yaml", "not the config of a teacher run"),
        ("logra", "fisher/seed-3.safetensors", r"not readable .* expected the Fisher of a teacher run"),
        ("tracin", "checkpoints", r"no such folder; expected the checkpoints that .* took its gradients at"),
    ],
)
def test_a_part_that_is_gone_is_named(name: str, part: str, message: str, base: Path, tmp_path: Path) -> None:
    run = made(name, base, tmp_path / "new") if name != "influcoder" else Path(shutil.copytree(base, tmp_path / "copy"))
    if part.startswith("decoder"):
        other = make_run(make_config(tmp_path / "other", finetune=FinetuneConfig(epochs=1, seed=9)))
        shutil.copy(other / part, run / part)
    elif (run / part).is_dir():
        shutil.rmtree(run / part)
    else:
        (run / part).unlink()
    with pytest.raises(RunError, match=message):
        load(run)
