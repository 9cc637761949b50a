"""Ranking losses: pure functions of predicted and target scores.

Legend: Q queries, N candidates. `mask` (Q, N) is True where a pair counts; a row is no candidate of itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON = 1e-8


def pearson(first: Tensor, second: Tensor, mask: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """Return Pearson's r along `dim` over the pairs of the mask; 0 where either side is constant."""
    count = mask.sum(dim, keepdim=True).clamp_min(1)
    first = (first - (first * mask).sum(dim, keepdim=True) / count) * mask
    second = (second - (second * mask).sum(dim, keepdim=True) / count) * mask
    scale = (first.square().sum(dim) * second.square().sum(dim)).clamp_min(EPSILON**2).sqrt()
    return (first * second).sum(dim) / scale


def signed_power(target: Tensor, exponent: float) -> Tensor:
    """Return `sign(t) |t|^exponent`: monotone, so no ranking changes, but below 1 small differences count for more.

    Gradients of unrelated rows are nearly orthogonal: most of a row's ranking lies in cosines of a few hundredths, which
    Pearson's r on the cosines themselves hardly sees beside the few large ones.
    """
    return target.sign() * target.abs().pow(exponent)


def full_block_loss(scores: Tensor, target: Tensor, mask: Tensor, row_weight: float) -> Tensor:
    """Return `row_weight * (1 - mean row Pearson) + (1 - row_weight) * (1 - block Pearson)`.

    The row term asks for each query's order, the block term for the levels between queries. Neither depends on how many
    candidates a block has, so every pair of a block is a label.
    """
    rows = 1 - pearson(scores, target, mask, dim=1).mean()
    return row_weight * rows + (1 - row_weight) * (1 - pearson(scores, target, mask, dim=(0, 1)))


def reference_loss(scores: Tensor, target: Tensor, mask: Tensor, kl_weight: float, temperature: float) -> Tensor:
    """Return the paper's `(1 - kl_weight) * (1 - Pearson over the block) + kl_weight * KL(target || scores)`.

    Influcoder, arXiv 2606.13668, section 3: rows become softmax(s / temperature); KL summed over a row, averaged over rows.
    """
    log_p = torch.log_softmax((target / temperature).masked_fill(~mask, -torch.inf), dim=1)
    log_q = torch.log_softmax((scores / temperature).masked_fill(~mask, -torch.inf), dim=1)
    difference = torch.where(mask, log_p.exp() * (log_p - log_q), 0.0)
    return (1 - kl_weight) * (1 - pearson(scores, target, mask, dim=(0, 1))) + kl_weight * difference.sum(1).mean()
