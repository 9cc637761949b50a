"""Gradients of labels that the model itself would give, for models of few outputs: what a Gauss-Newton matrix is the second moment of.

For a loss l(f) with outputs f (C,), the Gauss-Newton matrix of a row is J^T H J, with J = df / dtheta and H = d2 l / df2. Vectors u_1,
u_2, ... with sum_d u_d u_d^T = H, taken as gradients at the outputs one backward pass each, give `sum_d g_d g_d^T = J^T H J`:

- softmax with cross-entropy: H = diag(p) - p p^T = sum_c p_c (p - e_c)(p - e_c)^T, class by class, no label drawn
- half the squared error: H = I = sum_k e_k e_k^T
- sampled: (p - e_c) / sqrt(draws) with c from p has that H in expectation, for outputs too many to go through

True labels in place of the model's give another matrix, the empirical Fisher.

Legend: N rows, B rows of a batch, C classes or outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from influcoder.influence.ekfac import Batches, PseudoBatch
from influcoder.influence.projection import generator

Cotangents = Callable[[Tensor, Sequence[int], int], Iterable[Tensor]]
"""of outputs (B, C), the rows' places among all and the pass over the rows: the u_d (B, C), one a backward pass"""


def softmax_cotangents(logits: Tensor, places: Sequence[int], step: int) -> Iterator[Tensor]:
    """Yield `sqrt(p_c) (p - e_c)` of each class: exact for cross-entropy, C backward passes."""
    probabilities = logits.detach().softmax(1)
    for label, column in enumerate(probabilities.unbind(1)):
        yield column.sqrt()[:, None] * label_errors(probabilities, torch.full_like(column, label, dtype=torch.int64))


def square_cotangents(outputs: Tensor, places: Sequence[int], step: int) -> Iterator[Tensor]:
    """Yield `e_k` of each output: exact for half the squared error summed over outputs, C backward passes."""
    for index in range(outputs.shape[1]):
        unit = torch.zeros_like(outputs)
        unit[:, index] = 1
        yield unit


def sampled_cotangents(draws: int, seed: int) -> Cotangents:
    """Return what yields `(p - e_c) / sqrt(draws)` with c drawn from p, `draws` times; a row's labels depend on seed, place and pass alone."""

    def cotangents(logits: Tensor, places: Sequence[int], step: int) -> Iterator[Tensor]:
        probabilities = logits.detach().softmax(1)
        for draw in range(step * draws, (step + 1) * draws):
            uniforms = torch.cat([row_uniforms(seed, place, draw, 1) for place in places]).to(logits.device)
            yield label_errors(probabilities, sample_labels(probabilities, uniforms)) / math.sqrt(draws)

    return cotangents


def output_batches(model: nn.Module, inputs: Tensor, cotangents: Cotangents, batch_size: int = 256) -> Batches:
    """Return the pseudo-gradients of `inputs` (N, ...), for `ekfac.fit_ekfac`.

    Args:
        model: maps (B, ...) to outputs (B, C); a row's outputs depend on that row alone. Its mode is left as it is.
        inputs: floating-point rows.
        cotangents: of the loss: `softmax_cotangents`, `square_cotangents` or `sampled_cotangents(draws, seed)`.
        batch_size: rows.
    """

    def batches(step: int) -> Iterator[PseudoBatch]:
        for start in range(0, len(inputs), batch_size):
            rows = inputs[start : start + batch_size].detach().requires_grad_(True)
            places = range(start, start + len(rows))
            yield PseudoBatch(len(rows), lambda rows=rows, places=places: _backward(model, rows, cotangents, places, step))  # type: ignore[misc]

    return batches


def row_uniforms(seed: int, place: int, draw: int, count: int) -> Tensor:
    """Return `count` numbers in [0, 1) that depend on seed, row and draw, not on the batch, (count,) float32."""
    return torch.rand(count, generator=generator(seed, f"label:{place}:{draw}"))


def sample_labels(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """Return labels (B,) int64 of probabilities (B, C) by their inverse distribution function at uniforms (B,)."""
    cumulative = probabilities.cumsum(1)
    labels = torch.searchsorted(cumulative, (uniforms.to(cumulative) * cumulative[:, -1])[:, None], right=True)[:, 0]
    return labels.clamp_max(probabilities.shape[1] - 1)


def label_errors(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Return the gradient of cross-entropy at the logits, `p - e_label`, (B, C)."""
    return probabilities.scatter_add(1, labels[:, None], -torch.ones_like(probabilities[:, :1]))


def _backward(model: nn.Module, rows: Tensor, cotangents: Cotangents, places: Sequence[int], step: int) -> None:
    outputs = model(rows)
    for cotangent in cotangents(outputs, places, step):
        torch.autograd.grad(outputs, rows, cotangent, retain_graph=True)  # of the rows alone: no weight's gradient is computed
