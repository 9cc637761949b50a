"""Scores learnt from what retrained models did, by ridge regression in closed form: behaviour as label, groups of rows as input.

The idea of AirRep (Sun et al., arXiv 2505.18513): an embedding is right when the summed scores of a group of rows predict the model that was
trained on it. Here the embeddings f are given and a bilinear map between them is fitted, which has a closed form:

    min_W  sum_mq (y_mq - f_q^T W g_m)^2 + penalty |W|^2,      g_m = sum of f_i over the rows i of subset m

`y` and `g` are centred over subsets, so that what a query gets from any half of the rows is no one's influence. With the thin SVDs
G = U s V^T of the groups and A = P t R^T of the queries, W^T = V [ s_i t_j / (s_i^2 t_j^2 + penalty) * (U^T y P)_ij ] R^T.

Legend: Q queries, N rows, M subsets, D dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from influcoder.errors import DataError
from influcoder.lds import lds

Array = NDArray[np.float64]
PENALTIES = tuple(np.logspace(-4, 2, 13))
"""tried, as shares of the largest squared product of singular values"""
PARTS = 5


@dataclass(frozen=True)
class Fit:
    """A bilinear map and how it was chosen."""

    weights: Array
    """(D, D): score of row i for query q is f_q^T weights f_i"""
    penalty: float
    """of PENALTIES"""
    held_out_lds: float
    """mean LDS, -1 to 1, on subsets that the fit had not seen, at that penalty"""

    def scores(self, queries: NDArray[np.floating], rows: NDArray[np.floating]) -> NDArray[np.float32]:
        """Return scores (Q, N) of any queries (Q, D) and rows (N, D)."""
        found: NDArray[np.float32] = (queries @ self.weights @ rows.T).astype(np.float32)
        return found


def fit_behaviour(queries: NDArray[np.floating], rows: NDArray[np.floating], masks: NDArray[np.bool_], outputs: Array) -> Fit:
    """Fit the map, its penalty chosen by the LDS of each fifth of the subsets under the fit of the others.

    Args:
        queries: (Q, D) embeddings.
        rows: (N, D) embeddings.
        masks: (M, N), True where a row was trained on.
        outputs: (M, Q) of the retrained models, larger = better.

    Raises:
        DataError: when the shapes do not fit each other, or there are too few subsets to hold some out.
    """
    expected = (len(masks), rows.shape[0]), (len(masks), queries.shape[0])
    if (masks.shape, outputs.shape) != expected or queries.shape[1] != rows.shape[1] or len(masks) < 3 * PARTS:
        raise DataError(
            f"behaviour: queries {queries.shape}, rows {rows.shape}, masks {masks.shape}, outputs {outputs.shape}; expected (Q, D), (N, D), "
            f"(M, N), (M, Q), at least {3 * PARTS} subsets"
        )
    a, f = queries.astype(np.float64), rows.astype(np.float64)
    parts = np.arange(len(masks)) % PARTS
    found = np.zeros(len(PENALTIES))
    for part in range(PARTS):
        fitted, held = parts != part, parts == part
        for place, weights in enumerate(_path(a, masks[fitted] @ f, outputs[fitted])):
            found[place] += lds(a @ weights @ f.T, masks[held], outputs[held]).mean() / PARTS
    best = int(found.argmax())
    return Fit(_path(a, masks @ f, outputs)[best], float(PENALTIES[best]), float(found[best]))


def _path(queries: Array, groups: Array, outputs: Array) -> list[Array]:
    """Return the map under each penalty, (D, D): queries (Q, D), groups (M, D), outputs (M, Q)."""
    left, s, v = np.linalg.svd(groups - groups.mean(axis=0), full_matrices=False)
    right, t, r = np.linalg.svd(queries, full_matrices=False)
    rotated = left.T @ (outputs - outputs.mean(axis=0)) @ right
    scale = np.outer(s, t)
    ridges = [penalty * (s[0] * t[0]) ** 2 for penalty in PENALTIES]
    return [(v.T @ (scale / (scale**2 + ridge) * rotated) @ r).T for ridge in ridges]
