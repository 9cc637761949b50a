"""The head in closed form: ridge regression of the teacher's principal coordinates on what the frozen encoder pools.

The best rank-K kernel of the teacher is a table of K coordinates a row (student.coordinates); a linear head that regresses them
needs one pass of the encoder over the rows and a solve, no gradient descent. A better start than random weights, and where labels are
few a better end: on real rows, what fine-tuning added was noise (docs/LOG.md).

Legend: N rows, F numbers pooled, K width of the head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense
from torch import Tensor
from torch.nn.functional import normalize

from influcoder.metrics import per_query_spearman

PENALTIES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""ridge penalties tried, times the mean squared length of a centred row"""


def ridge(inputs: Tensor, outputs: Tensor, penalties: Sequence[float]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield, for each penalty, `weight (K, F), bias (K,)` that minimise `|outputs - inputs W^T - b|^2 + penalty |W|^2`.

    The bias is not penalised.

    Args:
        inputs: (N, F).
        outputs: (N, K).
        penalties: above 0.
    """
    mean, level = inputs.double().mean(0), outputs.double().mean(0)
    x, y = inputs.double() - mean, outputs.double() - level
    dual = len(x) < x.shape[1]  # the smaller of the two equal systems
    square, right = (x @ x.T, y) if dual else (x.T @ x, x.T @ y)
    for penalty in penalties:
        shifted = square + penalty * torch.eye(len(square), dtype=square.dtype)
        solved = torch.cholesky_solve(right, torch.linalg.cholesky(shifted))
        weight = solved.T @ x if dual else solved.T
        yield weight.float(), (level - weight @ mean).float()


class Fitted(NamedTuple):
    """A ridge regression and what it is worth."""

    figure: float
    """mean per-query Spearman on the validation rows"""
    penalty: float
    """share of the inputs' mean squared length"""
    weight: Tensor
    """(K, F)"""
    bias: Tensor
    """(K,)"""


def best_ridge(inputs: Tensor, coordinates: Tensor, validation: tuple[Tensor, Tensor, NDArray[np.floating]]) -> Fitted:
    """Return the regression of `coordinates` (N, K) on `inputs` (N, F) whose penalty does best on validation rows; the first of equals.

    Args:
        inputs: of training texts.
        coordinates: the teacher's.
        validation: inputs of what asks (asking, F) and of what is ranked (ranked, F), the teacher's scores (asking, ranked).
    """
    asking, ranked, target = validation
    length = float((inputs - inputs.mean(0)).square().sum(1).mean())
    found = []
    for penalty, (weight, bias) in zip(PENALTIES, ridge(inputs, coordinates, [share * length for share in PENALTIES]), strict=True):
        queries, rows = (normalize(part @ weight.T + bias) for part in (asking, ranked))
        found.append(Fitted(float(per_query_spearman((queries @ rows.T).numpy(), target).mean()), penalty, weight, bias))
    return max(found, key=lambda each: each.figure)


def fit_head(
    encoder: SentenceTransformer,
    texts: Sequence[str],
    coordinates: Tensor,
    validation: tuple[Sequence[str], Sequence[str], NDArray[np.floating]],
) -> Fitted:
    """Set the Dense head to the ridge regression with the best per-query Spearman on validation rows; return it.

    Args:
        encoder: [..., Dense with bias, Normalize].
        texts: N training texts.
        coordinates: (N, K) the teacher's.
        validation: texts that ask, texts that are ranked, the teacher's scores (asking, ranked).
    """
    head = encoder[-2]
    assert isinstance(head, Dense)
    pooled, asking, ranked = (torch.from_numpy(pool(encoder, part)) for part in (texts, *validation[:2]))
    found = best_ridge(pooled, coordinates, (asking, ranked, validation[2]))
    head.linear.weight.data.copy_(found.weight)
    head.linear.bias.data.copy_(found.bias)
    return found


def pool(encoder: SentenceTransformer, texts: Sequence[str]) -> NDArray[np.float32]:
    """Return what comes before the head (N, F)."""
    pooling = SentenceTransformer(modules=list(encoder)[:-2], device=str(encoder.device)).eval()
    found: NDArray[np.float32] = pooling.encode(list(texts), show_progress_bar=len(texts) > 1000, batch_size=32)
    return found
