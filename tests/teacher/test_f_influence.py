"""The method f_influence as a stage: its tables against whole gradients taken row by row, and what it asks of the points."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import teacher.f_influence
from influcoder.errors import ConfigError, RunError
from influcoder.examples import load_examples
from influcoder.influence.checkpoints import Checkpoint
from influcoder.influence.decoder import Decoder, DecoderConfig, load_decoder
from influcoder.influence.f_influence import compose
from influcoder.influence.finetune import FinetuneConfig
from influcoder.influence.gradients import GradientConfig
from influcoder.influence.tokens import TokenizedRow, tokenize
from influcoder.scores import load_scores
from tests.teacher import dense
from tests.teacher.test_stage import make_config, run_stage

WHOLE = GradientConfig(rank=None, sketch="none", shard_rows=8, factors="random")
TUNED = FinetuneConfig(epochs=4, checkpoints=5, learning_rate=5e-3, max_batch_tokens=128)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of five points."""
    return run_stage(make_config(tmp_path_factory.mktemp("f"), method="f_influence", finetune=TUNED, gradients=WHOLE, seeds=(0,)))


def sides(run: Path) -> tuple[Decoder, list[TokenizedRow], list[TokenizedRow]]:
    """Return a run's decoder, queries and rows."""
    decoder = load_decoder(DecoderConfig(path=str(run / "decoder"), device="cpu"), [], 0)
    decoder.model.eval()
    queries, rows = (tokenize(load_examples(run / f"{side}.parquet"), decoder) for side in ("queries", "rows"))
    return decoder, queries, rows


def columns(run: Path, name: str) -> dict[str, Any]:
    table = pq.read_table(run / "scores" / "seed-0" / f"{name}.parquet")
    return {key: np.array(table[key].to_pylist()) for key in table.column_names}


def test_every_score_has_its_interval(made: Path) -> None:
    decoder, queries, rows = sides(made)
    expected = compose(dense.f_influence_steps(decoder, made, queries, rows))
    found = columns(made, "f_influence")
    scale = np.abs(expected.mu).max()
    for name, values in (("mu", expected.mu), ("mu_lower", expected.lower), ("mu_upper", expected.upper)):
        np.testing.assert_allclose(found[name].reshape(4, 20), values, atol=2e-3 * scale)
    np.testing.assert_allclose(found["p_value"], expected.p_value.ravel(), atol=0.02)
    certain = np.abs(expected.p_value - 0.05) > 0.02
    assert np.array_equal(found["distinguishable"].reshape(4, 20)[certain], expected.distinguishable[certain])
    assert 0 < found["distinguishable"].sum() < 80
    assert list(found["query_id"]) == [f"queries-{query}" for query in range(4) for _ in range(20)]
    assert list(found["row_id"]) == [f"pool-{row}" for row in range(20)] * 4
    np.testing.assert_allclose(load_scores(made / "scores" / "seed-0").values.ravel(), found["mu"], atol=1e-4 * scale)


def test_the_query_set_is_one_target(made: Path) -> None:
    decoder, queries, rows = sides(made)
    weights = np.array([query.weight for query in load_examples(made / "queries.parquet")])
    assert set(weights) == {1.0, -1.0}
    steps = dense.f_influence_steps(decoder, made, queries, rows, weights)[:, 0]
    expected, found, over = compose(steps), columns(made, "query_set"), columns(made, "over_training")
    for name, values in (("mu", expected.mu), ("mu_lower", expected.lower), ("mu_upper", expected.upper), ("p_value", expected.p_value)):
        np.testing.assert_allclose(found[name], values, rtol=1e-3, atol=1e-4 * np.abs(expected.mu).max())
    assert np.array_equal(found["distinguishable"], expected.distinguishable)
    np.testing.assert_allclose(over["mu"].reshape(5, 20), steps, rtol=1e-3, atol=1e-4 * np.abs(steps).max())
    assert list(over["row_id"]) == [f"pool-{row}" for row in range(20)] * 5
    points = [json.loads((folder / "checkpoint.json").read_text())["step"] for folder in dense.points(decoder, made)]
    assert list(over["step"]) == [step for step in points for _ in range(20)]
    assert (made / "scores" / "seed-0" / "f_influence.png").stat().st_size > 10_000


def test_noise_of_a_sample_of_rows_is_about_that_of_all(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher.f_influence, "NOISE_ROWS", 12)
    config = make_config(
        tmp_path, decoder=DecoderConfig(path=str(made / "decoder"), device="cpu"), finetune=None, checkpoints=str(made / "checkpoints"),
        method="f_influence", gradients=WHOLE, seeds=(0,),
    )  # fmt: skip
    sampled, whole = load_scores(run_stage(config) / "scores" / "seed-0").values, load_scores(made / "scores" / "seed-0").values
    for some, every in zip(sampled, whole, strict=True):
        assert np.corrcoef(some, every)[0, 1] > 0.95
        assert 0.5 < np.abs(some).sum() / np.abs(every).sum() < 2
    assert not np.allclose(sampled, whole, rtol=1e-3)


def test_a_part_of_the_rows_that_was_trained_on_is_the_population(made: Path, tmp_path: Path) -> None:
    tuned = FinetuneConfig(epochs=4, checkpoints=1, share=0.5, learning_rate=5e-3, max_batch_tokens=128)
    run = run_stage(make_config(tmp_path, method="f_influence", finetune=tuned, gradients=WHOLE, seeds=(0,)))
    decoder, queries, rows = sides(run)
    expected = 2 * dense.f_influence(decoder, run, queries, rows)  # written for all rows; the half is twice as much to each
    found = columns(run, "f_influence")
    np.testing.assert_allclose(found["mu"].reshape(4, 20), expected, atol=2e-3 * np.abs(expected).max())
    assert np.isinf(found["mu_upper"]).all() and not found["distinguishable"].any(), "one point distinguishes nothing"


def test_points_without_the_size_of_batches_are_refused(made: Path, tmp_path: Path) -> None:
    points = tmp_path / "points"
    for source in dense.points(sides(made)[0], made):
        (points / source.name).mkdir(parents=True)
        for name in ("weights.safetensors", "adam.safetensors"):
            (points / source.name / name).write_bytes((source / name).read_bytes())
        record = json.loads((source / "checkpoint.json").read_text())
        (points / source.name / "checkpoint.json").write_text(json.dumps({key: record[key] for key in ("step", "learning_rate")}))
    config = make_config(
        tmp_path, decoder=DecoderConfig(path=str(made / "decoder"), device="cpu"), finetune=None, checkpoints=str(points),
        method="f_influence", gradients=WHOLE, seeds=(0,),
    )  # fmt: skip
    with pytest.raises(RunError, match=r"points/\d/checkpoint\.json: no batch_size; expected points of a recorder") as caught:
        run_stage(config)
    assert "\n" not in str(caught.value)


def test_the_batch_size_is_the_mean_over_steps() -> None:
    points = [Checkpoint(Path(), step, 0.1, size) for step, size in ((2, 10.0), (10, 5.0))]
    job: Any = SimpleNamespace(checkpoints=points, sides={"rows": SimpleNamespace(rows=range(40))}, config=SimpleNamespace(finetune=None))
    assert teacher.f_influence.mu_scale(job) == pytest.approx(np.sqrt(6.0) * np.sqrt(10 / 2) / (40 * np.sqrt(2)))


def test_layers_at_length_1_are_another_training(made: Path, tmp_path: Path) -> None:
    decoder, queries, rows = sides(made)
    config = make_config(
        tmp_path, decoder=DecoderConfig(path=str(made / "decoder"), device="cpu"), finetune=None, checkpoints=str(made / "checkpoints"),
        method="f_influence", normalise="layers", gradients=WHOLE, seeds=(0,),
    )  # fmt: skip
    found = columns(run_stage(config), "f_influence")["mu"].reshape(4, 20)
    expected = compose(dense.f_influence_steps(decoder, made, queries, rows, unit_layers=True)).mu
    plain = compose(dense.f_influence_steps(decoder, made, queries, rows)).mu
    np.testing.assert_allclose(found, expected, atol=2e-3 * np.abs(expected).max())
    assert np.abs(expected - plain).max() > 0.05 * np.abs(expected).max()


def test_mu_is_not_to_be_normalised(tmp_path: Path) -> None:
    for normalise in ("unit", "relatif"):
        with pytest.raises(ConfigError, match=f"normalise: {normalise} with method f_influence, whose products are mu"):
            make_config(tmp_path, method="f_influence", normalise=normalise)
    make_config(tmp_path, method="f_influence", normalise="none")
