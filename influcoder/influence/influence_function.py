"""Classic influence of rows on queries for a small model (Koh & Liang, arXiv 1703.04730), and what is made of it.

    score(q, m) = grad f_q^T (C + l)^-1 grad L_m        f_q: the query's loss        C: Gauss-Newton matrix, Hessian, or a part of either

Larger = training on the row lowers the query's loss more: leaving row m out of N would raise f_q by about score / N. It is the
sensitivity around the final weights; see `agreement.MEANING` for what it is not.

Legend: Q queries, N rows, B vectors, P parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from influcoder.errors import ConfigError
from influcoder.influence.curvature import Curvature, gauss_newton, hessian
from influcoder.influence.damped_solve import Solve, cg_solve, cholesky_solve
from influcoder.influence.row_model import RowLoss, RowModel, Rows

Array = NDArray[np.float64]
CHUNK_ROWS = 512
"""whose gradients are in memory at once"""
DENSE_PARAMETERS = 4000
"""up to which a matrix is written out: 128 MB in float64, a Cholesky factor in seconds"""


@dataclass(frozen=True, kw_only=True)
class CurvatureConfig:
    """What stands between the two gradients."""

    matrix: Literal["ggn", "hessian", "identity"] = "ggn"
    """identity: the plain inner product of gradients, undamped"""
    structure: Literal["full", "block", "diagonal"] = "full"
    """block: each module's parameters apart; diagonal: of each such block"""
    damping: float = 0.1
    """l, above 0"""
    relative: bool = True
    """damping in mean eigenvalues of the matrix (of each block); otherwise as it stands, for instance the weight decay"""
    solver: Literal["auto", "dense", "cg"] = "auto"
    """auto: dense up to 4 000 parameters a block"""
    tolerance: float = 1e-6
    """of cg, relative to the right side"""
    max_iterations: int = 1000
    """of cg, a vector"""

    def __post_init__(self) -> None:
        if self.damping <= 0 or not 0 < self.tolerance < 1 or self.max_iterations < 1:
            raise ConfigError(
                f"curvature: damping {self.damping}, tolerance {self.tolerance}, max_iterations {self.max_iterations}; "
                "expected a damping above 0, a tolerance in (0, 1), at least 1 iteration"
            )


@dataclass(frozen=True)
class InfluenceFunction:
    """A model and the inverse of its curvature."""

    model: RowModel
    solve: Solve

    def scores(self, queries: Rows, rows: Rows, measurement: RowLoss | None = None) -> Array:
        """Return the influence of each row on each query, (Q, N); queries are solved for, rows stream by.

        Args:
            queries: Q.
            rows: N.
            measurement: what is asked of a query in place of the model's loss; of which less is better, minus the margin for instance.
        """
        theta = self.model.theta
        asked = self.solve(torch.cat([self.model.gradients(theta, chunk, measurement) for chunk in queries.chunks(CHUNK_ROWS)]))
        parts = [asked @ self.model.gradients(theta, chunk).T for chunk in rows.chunks(CHUNK_ROWS)]
        scores: Array = torch.cat(parts, dim=1).double().numpy()
        return scores

    def self_influence(self, rows: Rows) -> Array:
        """Return `grad L_m^T (C + l)^-1 grad L_m`, (N,): what a row does to its own loss. At least 0; high for wrong labels."""
        gradients = (self.model.gradients(self.model.theta, chunk) for chunk in rows.chunks(CHUNK_ROWS))
        found: Array = torch.cat([(chunk * self.solve(chunk)).sum(1) for chunk in gradients]).double().numpy()
        return found


def influence_function(model: RowModel, rows: Rows, config: CurvatureConfig) -> InfluenceFunction:
    """Return the influence function of a model trained on `rows`, which make the curvature.

    Raises:
        ConfigError: when the damped matrix is not positive definite (known at once where dense, while solving otherwise).
    """
    if config.matrix == "identity":
        return InfluenceFunction(model, lambda vectors: vectors)
    whole = {"ggn": gauss_newton, "hessian": hessian}[config.matrix](model, rows)
    blocks = model.blocks if config.structure != "full" else {"": slice(0, whole.size)}
    solves = {name: _solver(whole.restrict(block), config) for name, block in blocks.items()}
    return InfluenceFunction(model, by_block(blocks, solves))


def by_block(blocks: Mapping[str, slice], solves: Mapping[str, Solve]) -> Solve:
    """Return the solve of a block-diagonal matrix."""
    return lambda vectors: torch.cat([solves[name](vectors[:, block]) for name, block in blocks.items()], dim=1)


def relatif(scores: NDArray[np.floating], self_influence: NDArray[np.floating]) -> Array:
    """Return scores (Q, N) over the root of each row's self-influence (N,): rows that influence everything count less.

    RelatIF of Barshan et al., arXiv 2003.11630, section 3.2. A row without influence on itself has none on anything: 0.
    """
    root = np.sqrt(self_influence, dtype=np.float64)
    relative: Array = np.divide(scores, root, out=np.zeros(scores.shape), where=root > 0)
    return relative


def _solver(curvature: Curvature, config: CurvatureConfig) -> Solve:
    dense = config.solver == "dense" or (config.solver == "auto" and curvature.size <= DENSE_PARAMETERS)
    if not dense and config.structure != "diagonal":
        damping = config.damping * (curvature.trace() / curvature.size if config.relative else 1)
        return cg_solve(curvature, damping, tolerance=config.tolerance, max_iterations=config.max_iterations)
    matrix = curvature.dense()
    damping = config.damping * (float(matrix.trace()) / curvature.size if config.relative else 1)
    if config.structure == "diagonal":
        return _divide(matrix.diagonal() + damping)
    return cholesky_solve(matrix, damping)


def _divide(diagonal: Tensor) -> Solve:
    return lambda vectors: vectors / diagonal
