"""Ranking losses: pure functions of predicted and target scores, and of embeddings and the teacher's coordinates.

Legend: Q queries, N candidates, B texts, D and K dimensions. `mask` (Q, N) is True where a pair counts; a row is no candidate of
itself. `weights` (Q, N) say how much a pair counts, None that all count the same; only their ratios matter.

Pairs of candidates are compared all at once, (Q, N, N): 34 MB a tensor at the largest block, Q 128 and N 256, half a dozen of them
with the gradient. A loop over queries that recomputes would save memory that the encoder's activations need many times over.
"""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON = 1e-8
LARGEST_GAP = 5.0
"""standard deviations between two targets from which a pair weighs no more (AirRep)"""


def pearson(first: Tensor, second: Tensor, mask: Tensor, dim: int | tuple[int, ...], weights: Tensor | None = None) -> Tensor:
    """Return (weighted) Pearson's r along `dim` over the pairs of the mask; 0 where either side is constant."""
    kept = mask if weights is None else weights * mask
    root = mask if weights is None else kept.sqrt()  # of a weight on either side of a product
    total = kept.sum(dim, keepdim=True).clamp_min(EPSILON)
    first = (first - (first * kept).sum(dim, keepdim=True) / total) * root
    second = (second - (second * kept).sum(dim, keepdim=True) / total) * root
    scale = (first.square().sum(dim) * second.square().sum(dim)).clamp_min(EPSILON**2).sqrt()
    return (first * second).sum(dim) / scale


def signed_power(target: Tensor, exponent: float) -> Tensor:
    """Return `sign(t) |t|^exponent`: monotone, so no ranking changes, but below 1 small differences count for more.

    Gradients of unrelated rows are nearly orthogonal: most of a row's ranking lies in cosines of a few hundredths, which
    Pearson's r on the cosines themselves hardly sees beside the few large ones.
    """
    return target.sign() * target.abs().pow(exponent)


def average_ranks(values: Tensor, mask: Tensor) -> Tensor:
    """Return each row's ranks over the mask, (Q, N), 1 the lowest; ties share their mean rank; 0 outside the mask."""
    filled = values.masked_fill(~mask, torch.inf)
    ordered = filled.sort(dim=1).values
    below, upto = torch.searchsorted(ordered, filled), torch.searchsorted(ordered, filled, right=True)
    return (below + upto + 1).to(values.dtype) / 2 * mask


def standardised(values: Tensor, mask: Tensor) -> Tensor:
    """Return rows of mean 0 and variance 1 over the mask, (Q, N); a constant row and what is outside the mask are 0."""
    count = mask.sum(1, keepdim=True).clamp_min(1)
    centred = (values - (values * mask).sum(1, keepdim=True) / count) * mask
    return centred / (centred.square().sum(1, keepdim=True) / count).clamp_min(EPSILON**2).sqrt()


def tail_weights(target: Tensor, mask: Tensor, sharpness: float) -> Tensor:
    """Return weights that grow toward the top and the bottom of each row's target ranking, (Q, N), mean 1 over a row's mask.

    `cosh(sharpness * p)`, p from -1 for the lowest rank to 1 for the highest, is a top weighting and its mirror image; the ends
    weigh cosh(sharpness) times the middle. 0 weighs all alike.
    """
    count = mask.sum(1, keepdim=True)
    position = (2 * average_ranks(target, mask) - count - 1) / (count - 1).clamp_min(1)
    weights = torch.cosh(sharpness * position) * mask
    return weights * count / weights.sum(1, keepdim=True).clamp_min(EPSILON)


def pair_weights(deviation: Tensor, mask: Tensor) -> Tensor:
    """Return weights `1 / (sigma^2 + mean sigma^2)` of targets with standard deviations `deviation`, (Q, N), mean 1 over the mask.

    The mean stands for what else separates scores from target, so that no pair weighs more than twice the average.
    """
    variance, count = deviation.square() * mask, mask.sum()
    weights = mask / (1 + variance / (variance.sum() / count).clamp_min(EPSILON**2))
    return weights * count / weights.sum()


def row_pearson_loss(scores: Tensor, target: Tensor, mask: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return `1 - mean row Pearson`, 0 to 2: each query's order, at a level and scale of its own."""
    return 1 - pearson(scores, target, mask, dim=1, weights=weights).mean()


def block_pearson_loss(scores: Tensor, target: Tensor, mask: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return `1 - block Pearson`, 0 to 2: the levels between queries too."""
    return 1 - pearson(scores, target, mask, dim=(0, 1), weights=weights)


def list_net_loss(scores: Tensor, target: Tensor, mask: Tensor, temperature: float) -> Tensor:
    """Return ListNet's top-one KL(target || scores) in nats: rows become softmax(s / temperature); summed over a row, averaged over rows.

    Cao et al. 2007, "Learning to rank: from pairwise approach to listwise approach": its cross-entropy less the target's entropy.
    """
    log_p = torch.log_softmax((target / temperature).masked_fill(~mask, -torch.inf), dim=1)
    log_q = torch.log_softmax((scores / temperature).masked_fill(~mask, -torch.inf), dim=1)
    return torch.where(mask, log_p.exp() * (log_p - log_q), 0.0).sum(1).mean()


def rank_net_loss(scores: Tensor, target: Tensor, mask: Tensor, temperature: float, least_gap: float) -> Tensor:
    """Return the weighted RankNet loss `-sum w_ij log sigmoid((s_i - s_j) / temperature) / sum w_ij` of a row, averaged over rows.

    AirRep, arXiv 2505.18513: over the pairs t_i > t_j of a row's standardised targets, `w_ij = min(t_i - t_j, 5)`, 0 below
    `least_gap` (theirs: 0.1). Theirs is a sum; divided by the weights, it does not depend on the number of candidates.
    """
    gaps = _differences(standardised(target, mask))
    counts = (gaps >= least_gap) & mask[:, :, None] & mask[:, None, :]
    weights = torch.where(counts, gaps, 0.0).clamp(0, LARGEST_GAP)
    losses = torch.nn.functional.softplus(-_differences(scores) / temperature)
    return ((weights * losses).sum((1, 2)) / weights.sum((1, 2)).clamp_min(EPSILON)).mean()


def soft_spearman_loss(scores: Tensor, target: Tensor, mask: Tensor, temperature: float) -> Tensor:
    """Return `1 - mean row Pearson` of the scores' soft ranks and the target's ranks, 0 to 2; 1 - Spearman as temperature -> 0.

    A soft rank is `sum_j sigmoid((s_i - s_j) / temperature)` of a row's standardised scores (Qin, Liu and Li 2010, "A general
    approximation framework for direct optimization of information retrieval measures", which ranks from the top).
    """
    above = torch.sigmoid(_differences(standardised(scores, mask)) / temperature)
    return row_pearson_loss((above * mask[:, None, :]).sum(2), average_ranks(target, mask), mask)


def coordinate_loss(embeddings: Tensor, coordinates: Tensor) -> Tensor:
    """Return `1 - mean cosine` of the embeddings (B, D) and the teacher's coordinates (B, D), 0 to 2."""
    return 1 - torch.nn.functional.cosine_similarity(embeddings, coordinates, dim=1).mean()


def cka_loss(embeddings: Tensor, coordinates: Tensor) -> Tensor:
    """Return `1 - linear CKA` of the embeddings (B, D) and the teacher's coordinates (B, K), 0 to 1; neither's rotation or scale matters.

    Kornblith et al. 2019, arXiv 1905.00414. CKA is the cosine of the two centred Gram matrices, diagonals included; these have
    mean 0, so it is their Pearson.
    """
    first, second = _centred_gram(embeddings), _centred_gram(coordinates)
    return block_pearson_loss(first, second, torch.ones_like(first, dtype=torch.bool))


def _differences(values: Tensor) -> Tensor:
    """Return `v_i - v_j`, (Q, N, N)."""
    return values[:, :, None] - values[:, None, :]


def _centred_gram(vectors: Tensor) -> Tensor:
    """Return the products of (B, D) vectors less their mean, (B, B)."""
    centred = vectors - vectors.mean(0)
    return centred @ centred.T
