"""Hessian and Gauss-Newton matrix of a small model's mean loss over rows, known by their products with vectors.

    H = 1/N sum_i d2 L_i / d theta2          G = 1/N sum_i J_i^T (d2 L_i / d outputs2) J_i          J_i = d outputs_i / d theta

G is positive semi-definite where the loss is convex in the outputs; H is not, away from a minimum (Martens, arXiv 1412.1193, section 8).

Legend: N rows, K outputs of a row, P parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad, jvp, vjp, vmap

from influcoder.influence.row_model import RowModel, Rows

CHUNK_ROWS = 2048
"""whose activations are in memory at once"""
CHUNK_VECTORS = 32
"""multiplied at once where a matrix is written out"""
PROBES = 200
"""of Hutchinson's trace: off by a few per cent"""


@dataclass(frozen=True)
class Curvature:
    """A symmetric (P, P) matrix."""

    product: Callable[[Tensor], Tensor]
    """(P,) -> (P,)"""
    size: int
    """P"""
    dtype: torch.dtype

    def dense(self) -> Tensor:
        """Return the matrix, (P, P), made exactly symmetric."""
        matrix: Tensor = vmap(self.product, chunk_size=CHUNK_VECTORS)(torch.eye(self.size, dtype=self.dtype))
        return (matrix + matrix.T) / 2

    def restrict(self, block: slice) -> Curvature:
        """Return the matrix of some of the parameters alone, a block on the diagonal."""

        def product(vector: Tensor) -> Tensor:
            padded = torch.nn.functional.pad(vector, (block.start, self.size - block.stop))
            return self.product(padded)[block]

        return Curvature(product, block.stop - block.start, self.dtype)

    def trace(self, probes: int = PROBES, seed: int = 0) -> float:
        """Return Hutchinson's estimate, the mean of z^T C z over random signs z."""
        signs = torch.randint(2, (probes, self.size), generator=torch.Generator().manual_seed(seed)).to(self.dtype) * 2 - 1
        return float((signs * vmap(self.product, chunk_size=CHUNK_VECTORS)(signs)).sum() / probes)


def hessian(model: RowModel, rows: Rows) -> Curvature:
    """Return H at the model's parameters: `jvp` of the gradient (Pearlmutter 1994)."""

    def product(vector: Tensor) -> Tensor:
        total = torch.zeros_like(vector)
        for chunk in rows.chunks(CHUNK_ROWS):

            def gradient(theta: Tensor, chunk: Rows = chunk) -> Tensor:
                found: Tensor = grad(lambda theta: model.losses(theta, chunk).sum())(theta)
                return found

            total = total + jvp(gradient, (model.theta,), (vector,))[1]
        return total / len(rows)

    return Curvature(product, len(model.theta), model.dtype)


def gauss_newton(model: RowModel, rows: Rows) -> Curvature:
    """Return G at the model's parameters: forward through J, the loss's own Hessian a row, back through J^T (Schraudolph 2002)."""

    def product(vector: Tensor) -> Tensor:
        total = torch.zeros_like(vector)
        for chunk in rows.chunks(CHUNK_ROWS):

            def outputs(theta: Tensor, chunk: Rows = chunk) -> Tensor:
                return model.outputs(theta, chunk.inputs)

            found, moved = jvp(outputs, (model.theta,), (vector,))[:2]
            back = vjp(outputs, model.theta)[1]
            total = total + back(output_hessian_product(model, found, chunk.targets, moved))[0]
        return total / len(rows)

    return Curvature(product, len(model.theta), model.dtype)


def output_hessian_product(model: RowModel, outputs: Tensor, targets: Tensor, vectors: Tensor) -> Tensor:
    """Return `(d2 L_i / d outputs2) v_i` of each row, (N, K)."""

    def one(outputs: Tensor, target: Tensor, vector: Tensor) -> Tensor:
        def loss(outputs: Tensor) -> Tensor:
            return model.loss(outputs, target)

        product: Tensor = jvp(grad(loss), (outputs,), (vector,))[1]
        return product

    products: Tensor = vmap(one)(outputs, targets, vectors)
    return products
