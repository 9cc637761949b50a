from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch import Tensor

from influcoder.errors import ConfigError
from influcoder.influence.curvature import Curvature
from influcoder.influence.damped_solve import cg_solve, cholesky_solve

SIZE = 12


def matrix(least: float = 0.0, seed: int = 0) -> Tensor:
    """Return a symmetric matrix with eigenvalues from `least` to 5."""
    source = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(SIZE, SIZE, generator=source, dtype=torch.float64))[0]
    found: Tensor = basis @ torch.diag(torch.linspace(least, 5, SIZE, dtype=torch.float64)) @ basis.T
    return found


def vectors(count: int = 3) -> Tensor:
    return torch.randn(count, SIZE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def products(dense: Tensor) -> Curvature:
    return Curvature(lambda vector: dense.to(vector.dtype) @ vector, SIZE, dense.dtype)


@pytest.mark.parametrize("damping", [0.01, 2.0])
def test_both_solves_equal_numpys(damping: float) -> None:
    dense = matrix()
    expected = np.linalg.solve(dense.numpy() + damping * np.eye(SIZE), vectors().numpy().T).T
    np.testing.assert_allclose(cholesky_solve(dense, damping)(vectors()), expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(cg_solve(products(dense), damping, tolerance=1e-10)(vectors()), expected, rtol=1e-7, atol=1e-9)


def test_the_tolerance_is_of_the_residual_relative_to_the_right_side() -> None:
    dense, asked = matrix(), vectors() * 1e-6
    for tolerance in (1e-1, 1e-8):
        found = cg_solve(products(dense), 0.01, tolerance=tolerance)(asked)
        residual = torch.linalg.norm(found @ (dense + 0.01 * torch.eye(SIZE)) - asked, dim=1) / torch.linalg.norm(asked, dim=1)
        assert residual.max() <= tolerance
    assert residual.max() < 1e-7


def test_cg_takes_float32_products() -> None:
    dense = matrix().float()
    found = cg_solve(products(dense), 0.1, tolerance=1e-4)(vectors().float())
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, cholesky_solve(dense, 0.1)(vectors().float()), rtol=1e-2, atol=1e-3)


def test_a_vector_of_zeros_is_solved_by_zeros() -> None:
    assert not cg_solve(products(matrix()), 0.1)(torch.zeros(1, SIZE, dtype=torch.float64)).any()


def test_negative_curvature_is_an_error_of_both() -> None:
    dense = matrix(least=-1.0)
    message = re.escape("least eigenvalue -1 with damping 0.5; expected a sum above 0; take a larger damping, or the Gauss-Newton")
    with pytest.raises(ConfigError, match=message):
        cholesky_solve(dense, 0.5)
    with pytest.raises(ConfigError, match=r"curvature -0\.\d+ along a direction, damping included; expected none below 0; take a larger"):
        cg_solve(products(dense), 0.5)(vectors())
    torch.testing.assert_close(cg_solve(products(dense), 1.5, tolerance=1e-9)(vectors()), cholesky_solve(dense, 1.5)(vectors()))


def test_too_few_iterations_are_an_error_that_says_how_far_it_came() -> None:
    with pytest.raises(ConfigError, match=r"residual \d\.\de-\d\d of the right side after 2 iterations; expected 1\.0e-06; allow more"):
        cg_solve(products(matrix()), 0.01, max_iterations=2)(vectors())
