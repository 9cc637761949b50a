"""Which rows to spend gradients on, before any are taken: rows that the others say least about.

Pivoted Cholesky of the rows' products: each pick is the row with the largest part outside the span of the picks before it, the
greedy choice for the variance of a ridge regression on those vectors (D-optimal design; Chen, Zhang and Zhou 2018).
"""

from __future__ import annotations

import torch
from torch import Tensor

JITTER = 1e-2
"""of the mean squared length, added to every row as its own part: noise that no other row explains"""


def choose_rows(vectors: Tensor, count: int) -> Tensor:
    """Return the places of `count` rows in the order of their choice; ties go to the first.

    Args:
        vectors: (N, F) what an encoder pools; centred here.
        count: 1 to N.

    Raises:
        ValueError: on another count.
    """
    if not 1 <= count <= len(vectors):
        raise ValueError(f"count {count}; expected 1 to {len(vectors)}")
    centred = (vectors - vectors.mean(0)).double()
    left = centred.square().sum(1)
    noise = JITTER * left.mean()
    factor = torch.zeros(len(vectors), count, dtype=torch.float64)
    chosen = torch.zeros(count, dtype=torch.long)
    open_rows = torch.ones(len(vectors), dtype=torch.bool)
    for step in range(count):
        place = int(torch.where(open_rows, left, -torch.inf).argmax())
        column = centred @ centred[place] - factor[:, :step] @ factor[place, :step]
        factor[:, step] = column / (left[place].clamp_min(0) + noise).sqrt()
        left = left - factor[:, step].square()
        chosen[step], open_rows[place] = place, False
    return chosen
