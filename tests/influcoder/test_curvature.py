from __future__ import annotations

import numpy as np
import pytest
import torch

from influcoder.influence import curvature
from influcoder.influence.curvature import Curvature, gauss_newton, hessian
from tests.influcoder.small_models import (
    class_rows,
    classifier,
    regression,
    regression_rows,
    slow_gauss_newton,
    slow_hessian,
)


@pytest.fixture(params=[2048, 5])
def chunk_rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curvature, "CHUNK_ROWS", request.param)


@pytest.mark.usefixtures("chunk_rows")
def test_the_hessian_is_that_of_double_backward() -> None:
    model, rows = classifier(), class_rows(13)
    np.testing.assert_allclose(hessian(model, rows).dense(), slow_hessian(model, rows), rtol=1e-9, atol=1e-13)


@pytest.mark.usefixtures("chunk_rows")
def test_the_gauss_newton_matrix_is_that_of_jacobians() -> None:
    model, rows = classifier(), class_rows(13)
    found = gauss_newton(model, rows).dense()
    np.testing.assert_allclose(found, slow_gauss_newton(model, rows), rtol=1e-9, atol=1e-13)
    assert np.linalg.eigvalsh(found)[0] > -1e-12 > np.linalg.eigvalsh(hessian(model, rows).dense())[0]


def test_both_are_the_second_moment_of_inputs_in_linear_regression() -> None:
    rows = regression_rows(9)
    model, moment = regression(rows, 0.1), rows.inputs.T @ rows.inputs / 9
    for matrix in (hessian, gauss_newton):
        np.testing.assert_allclose(matrix(model, rows).dense(), moment, rtol=1e-12)


def test_a_restricted_matrix_is_a_block() -> None:
    model, rows = classifier(), class_rows(6)
    whole, block = gauss_newton(model, rows), model.blocks["2"]
    part = whole.restrict(block)
    assert part.size == 15
    np.testing.assert_allclose(part.dense(), whole.dense()[block, block], rtol=1e-12, atol=1e-15)


def test_a_dense_matrix_does_not_depend_on_how_many_vectors_go_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = gauss_newton(classifier(), class_rows(6))
    expected = matrix.dense()
    monkeypatch.setattr(curvature, "CHUNK_VECTORS", 7)
    np.testing.assert_allclose(matrix.dense(), expected, rtol=1e-12, atol=1e-15)
    assert torch.equal(expected, expected.T)


def test_the_estimated_trace_is_exact_of_a_diagonal_and_near_for_others() -> None:
    diagonal = torch.arange(1.0, 8, dtype=torch.float64)
    assert Curvature(lambda vector: diagonal * vector, 7, torch.float64).trace(probes=2) == pytest.approx(28)
    matrix = gauss_newton(classifier(), class_rows(20))
    exact = float(matrix.dense().trace())
    assert matrix.trace(probes=2000) == pytest.approx(exact, rel=0.05)
    assert matrix.trace(probes=3, seed=0) == matrix.trace(probes=3, seed=0) != matrix.trace(probes=3, seed=1)
