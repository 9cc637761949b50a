"""`(C + l)^-1 v` for a symmetric C: by Cholesky where C can be written out, by conjugate gradients where it is known by products alone.

Legend: B vectors, P parameters.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, cg
from torch import Tensor
from tqdm import tqdm

from influcoder.errors import ConfigError
from influcoder.influence.curvature import Curvature

Solve = Callable[[Tensor], Tensor]
"""vectors (B, P) -> (B, P)"""
REMEDY = "take a larger damping, or the Gauss-Newton matrix in place of the Hessian"


def cholesky_solve(matrix: Tensor, damping: float) -> Solve:
    """Return the solve of a dense (P, P) matrix; damping is absolute.

    Raises:
        ConfigError: when the damped matrix is not positive definite.
    """
    factor, failed = torch.linalg.cholesky_ex(matrix + damping * torch.eye(len(matrix), dtype=matrix.dtype))
    if failed:
        least = float(torch.linalg.eigvalsh(matrix)[0])
        raise ConfigError(f"curvature: least eigenvalue {least:.3g} with damping {damping:.3g}; expected a sum above 0; {REMEDY}")
    return lambda vectors: torch.cholesky_solve(vectors.T, factor).T


def cg_solve(curvature: Curvature, damping: float, *, tolerance: float = 1e-6, max_iterations: int = 1000) -> Solve:
    """Return the solve by conjugate gradients, one vector after the other; damping is absolute.

    Args:
        curvature: C.
        damping: l.
        tolerance: length of the residual over that of the right side at which a solve ends, in (0, 1); float32 products reach about 1e-3.
        max_iterations: products a vector.

    Raises:
        ConfigError: (by the solve) when a direction of negative curvature is met, or the tolerance is not reached.
    """

    def multiply(vector: np.ndarray) -> np.ndarray:
        direction = torch.from_numpy(np.ascontiguousarray(vector)).to(curvature.dtype)
        product = curvature.product(direction) + damping * direction
        if direction @ product < 0:  # SciPy asks for products with search directions alone, and would go on along this one
            bend = float(direction @ product / (direction @ direction))
            raise ConfigError(
                f"conjugate gradients: curvature {bend:.3g} along a direction, damping included; expected none below 0; {REMEDY}"
            )
        return product.double().numpy()

    operator = LinearOperator((curvature.size, curvature.size), matvec=multiply, dtype=np.float64)

    def solve(vectors: Tensor) -> Tensor:
        solved = []
        for vector in tqdm(vectors, desc="conjugate gradients", unit="vector", disable=None, leave=False):
            found, failed = cg(operator, vector.double().numpy(), rtol=tolerance, atol=0.0, maxiter=max_iterations)
            if failed:
                reached = np.linalg.norm(operator @ found - vector.double().numpy()) / float(vector.norm())
                raise ConfigError(
                    f"conjugate gradients: residual {reached:.1e} of the right side after {max_iterations} iterations; "
                    f"expected {tolerance:.1e}; allow more iterations, a larger tolerance or damping, or float64"
                )
            solved.append(torch.from_numpy(found).to(vectors.dtype))
        return torch.stack(solved)

    return solve
