from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from influcoder.errors import ConfigError
from influcoder.influence import small_ekfac
from influcoder.influence.influence_function import CurvatureConfig, InfluenceFunction, influence_function
from influcoder.influence.pseudo_gradients import square_cotangents
from influcoder.influence.row_model import RowModel, Rows
from influcoder.influence.small_ekfac import ekfac_self_influence, ekfac_solve, fit_small_ekfac
from tests.influcoder.small_models import class_rows, classifier


def half_squares(outputs: Tensor, target: Tensor) -> Tensor:
    return (outputs - target).square().sum() / 2


def trained(model: RowModel) -> RowModel:
    return model.at(model.theta * 1.7)  # another point than the module came with


@pytest.mark.parametrize("damping", [1e-3, 0.1, 10.0])
def test_where_it_is_exact_it_equals_the_solve_of_whole_blocks(damping: float) -> None:
    torch.manual_seed(0)
    model = trained(RowModel(nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 6), nn.Linear(6, 3)), half_squares))
    inputs = class_rows(20).inputs
    rows, queries = Rows(inputs, inputs[:, :3] ** 2), Rows(inputs[:4] + 1, inputs[:4, :3])
    blocks = influence_function(model, rows, CurvatureConfig(structure="block", damping=damping))
    factors = fit_small_ekfac(model, rows, square_cotangents)
    found = InfluenceFunction(model, ekfac_solve(model, factors, damping))
    np.testing.assert_allclose(found.scores(queries, rows), blocks.scores(queries, rows), rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(ekfac_self_influence(model, factors, rows, damping), blocks.self_influence(rows), rtol=1e-8)


def test_self_influence_equals_that_of_written_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small_ekfac, "CHUNK_ROWS", 4)
    model, rows = trained(classifier()), class_rows(11)
    factors = fit_small_ekfac(model, rows)
    expected = InfluenceFunction(model, ekfac_solve(model, factors, 0.3)).self_influence(rows)
    np.testing.assert_allclose(ekfac_self_influence(model, factors, rows, 0.3), expected, rtol=1e-9)
    assert all(parameter.grad is None for parameter in model.module.parameters())


def test_it_is_near_the_solve_of_whole_blocks_where_it_is_not_exact() -> None:
    model, rows, queries = trained(classifier()), class_rows(200), class_rows(20, seed=5)
    scores = {
        "ekfac": InfluenceFunction(model, ekfac_solve(model, fit_small_ekfac(model, rows))).scores(queries, rows),
        "block": influence_function(model, rows, CurvatureConfig(structure="block")).scores(queries, rows),
        "identity": influence_function(model, rows, CurvatureConfig(matrix="identity")).scores(queries, rows),
    }
    near = {name: np.corrcoef(found.ravel(), scores["block"].ravel())[0, 1] for name, found in scores.items()}
    assert near["ekfac"] > 0.93 and near["ekfac"] > near["identity"] + 0.05, near


@pytest.mark.parametrize(
    ("module", "named"),
    [
        (nn.Sequential(nn.Linear(5, 4, bias=False), nn.Linear(4, 3)), "0 is a Linear"),
        (nn.Sequential(nn.Linear(5, 3), nn.LayerNorm(3)), "1 is a LayerNorm"),
    ],
)
def test_parameters_outside_a_linear_with_bias_are_refused(module: nn.Module, named: str) -> None:
    with pytest.raises(ConfigError, match=f"ekfac: {named}; expected every parameter in a Linear with a bias"):
        fit_small_ekfac(RowModel(module, nn.functional.cross_entropy), class_rows(4))
