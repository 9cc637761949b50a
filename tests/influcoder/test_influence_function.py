"""The truth here: dense inverses by numpy, and derivatives of models solved anew with a row weighted up or down."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from influcoder.errors import ConfigError
from influcoder.influence import influence_function as module
from influcoder.influence.curvature import Curvature
from influcoder.influence.influence_function import CurvatureConfig, influence_function, relatif
from influcoder.influence.row_model import RowModel, Rows
from tests.influcoder.small_models import (
    class_rows,
    classifier,
    regression,
    regression_rows,
    slow_gauss_newton,
    slow_gradients,
    slow_hessian,
)

Array = NDArray[np.float64]
QUERIES = class_rows(4, seed=9)


def truth(model: RowModel, rows: Rows, config: CurvatureConfig) -> Array:
    """Return the damped matrix, (P, P)."""
    matrix = {"ggn": slow_gauss_newton, "hessian": slow_hessian}[config.matrix](model, rows)
    damped = np.zeros_like(matrix)
    for block in [slice(None)] if config.structure == "full" else list(model.blocks.values()):
        part = matrix[block, block]
        damping = config.damping * (np.trace(part) / len(part) if config.relative else 1)
        damped[block, block] = (np.diag(np.diag(part)) if config.structure == "diagonal" else part) + damping * np.eye(len(part))
    return damped


@pytest.mark.parametrize("solver", ["dense", "cg"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"structure": "block"},
        {"structure": "diagonal"},
        {"damping": 0.02, "relative": False},
        {"matrix": "hessian", "damping": 1.5, "relative": False},
        {"matrix": "hessian", "structure": "block", "damping": 1.5, "relative": False},
    ],
    ids=str,
)
def test_scores_are_those_of_the_dense_inverse(settings: dict[str, Any], solver: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_ROWS", 5)
    model, rows = classifier(), class_rows(12)
    config = CurvatureConfig(**settings, solver=solver, tolerance=1e-11)
    if solver == "cg" and config.relative:  # its trace is an estimate
        monkeypatch.setattr(Curvature, "trace", lambda matrix: float(matrix.dense().trace()))
    found = influence_function(model, rows, config)
    inverse = np.linalg.inv(truth(model, rows, config))
    asking, asked = slow_gradients(model, QUERIES), slow_gradients(model, rows)
    np.testing.assert_allclose(found.scores(QUERIES, rows), asking @ inverse @ asked.T, rtol=1e-7, atol=1e-8)
    np.testing.assert_allclose(found.self_influence(rows), np.einsum("np,pq,nq->n", asked, inverse, asked), rtol=1e-7, atol=1e-8)


def test_identity_is_the_plain_inner_product() -> None:
    model, rows = classifier(), class_rows(6)
    found = influence_function(model, rows, CurvatureConfig(matrix="identity"))
    np.testing.assert_allclose(found.scores(QUERIES, rows), slow_gradients(model, QUERIES) @ slow_gradients(model, rows).T, rtol=1e-9)
    np.testing.assert_allclose(found.self_influence(rows), np.square(slow_gradients(model, rows)).sum(1), rtol=1e-9)


def test_large_models_go_by_products_and_small_ones_densely(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = classifier(), class_rows(6)
    monkeypatch.setattr(Curvature, "dense", lambda matrix: pytest.fail("written out"))
    monkeypatch.setattr(module, "DENSE_PARAMETERS", 38)
    influence_function(model, rows, CurvatureConfig()).scores(QUERIES, rows)
    monkeypatch.setattr(module, "DENSE_PARAMETERS", 39)
    with pytest.raises(pytest.fail.Exception, match="written out"):
        influence_function(model, rows, CurvatureConfig())


def solved(rows: Rows, weights: Tensor, ridge: float) -> Tensor:
    """Return the minimiser of `1/N sum_i w_i L_i + ridge / 2 |theta|^2`."""
    x = rows.inputs * weights[:, None] / len(rows)
    solution: Tensor = torch.linalg.solve(x.T @ rows.inputs + ridge * torch.eye(x.shape[1], dtype=x.dtype), x.T @ rows.targets)
    return solution


@pytest.mark.parametrize("matrix", ["ggn", "hessian"])
def test_a_score_is_what_the_loss_loses_as_the_row_gains_weight(matrix: Any) -> None:
    rows, queries, ridge, step = regression_rows(15), regression_rows(5, seed=3), 0.3, 1e-5
    model = regression(rows, ridge)
    config = CurvatureConfig(matrix=matrix, damping=ridge, relative=False)
    scores = influence_function(model, rows, config).scores(queries, rows)
    for place in range(len(rows)):
        moved = [torch.ones(15, dtype=torch.float64).index_fill(0, torch.tensor(place), 1 + sign * step) for sign in (1, -1)]
        up, down = (model.losses(solved(rows, weights, ridge), queries) for weights in moved)
        np.testing.assert_allclose(scores[:, place], -(up - down) / (2 * step) * len(rows), rtol=1e-6, atol=1e-7)


def test_leaving_a_row_out_raises_the_loss_by_about_its_score_over_n() -> None:
    rows, queries, ridge = regression_rows(400), regression_rows(5, seed=3), 0.3
    model = regression(rows, ridge)
    scores = influence_function(model, rows, CurvatureConfig(damping=ridge, relative=False)).scores(queries, rows)
    before = model.losses(model.theta, queries)
    for place in range(5):
        weights = torch.ones(400, dtype=torch.float64).index_fill(0, torch.tensor(place), 0)
        after = model.losses(solved(rows, weights, ridge), queries)
        np.testing.assert_allclose(after - before, scores[:, place] / 400, rtol=0.1, atol=1e-5)


def test_a_measurement_takes_the_place_of_the_queries_loss_alone() -> None:
    model, rows = classifier(), class_rows(6)

    def minus_the_output(outputs: Tensor, target: Tensor) -> Tensor:
        return -outputs.gather(0, target[None])[0]

    found = influence_function(model, rows, CurvatureConfig(matrix="identity")).scores(QUERIES, rows, minus_the_output)
    expected = slow_gradients(model, QUERIES, minus_the_output) @ slow_gradients(model, rows).T
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_an_indefinite_hessian_is_refused() -> None:
    with pytest.raises(ConfigError, match="least eigenvalue -"):
        influence_function(classifier(), class_rows(12), CurvatureConfig(matrix="hessian", damping=1e-6, relative=False))


def test_relatif_divides_by_the_root_of_self_influence() -> None:
    scores = np.array([[2.0, -3.0, 0.0], [4.0, 6.0, 0.0]])
    np.testing.assert_allclose(relatif(scores, np.array([4.0, 9.0, 0.0])), [[1, -1, 0], [2, 2, 0]])
    model, rows = classifier(), class_rows(12)
    found = influence_function(model, rows, CurvatureConfig())
    relative = relatif(found.scores(rows, rows), found.self_influence(rows))
    root = np.sqrt(found.self_influence(rows))
    np.testing.assert_allclose(np.diag(relative), root)
    assert (np.abs(relative) <= root[:, None] * (1 + 1e-9)).all(), "no row helps a query more than the query's own row would"


@pytest.mark.parametrize("wrong", [{"damping": 0.0}, {"tolerance": 1.0}, {"max_iterations": 0}])
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="expected a damping above 0, a tolerance in"):
        CurvatureConfig(**wrong)
