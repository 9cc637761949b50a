"""Linear datamodelling score: do a method's scores, summed over a subset of the rows, predict the model trained on that subset?

Ilyas et al., arXiv 2202.00622; Park et al., arXiv 2303.14186 (TRAK), section 2. Pure numpy.

Legend: Q queries, N rows, M subsets.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from influcoder.errors import DataError
from influcoder.metrics import per_query_spearman

Array = NDArray[np.floating]


def lds(scores: Array, masks: NDArray[np.bool_], outputs: Array) -> NDArray[np.float64]:
    """Return Spearman's rho, over subsets, of summed scores with what the retrained models say, `(Q,)`.

    Args:
        scores: (Q, N), larger = the row helps the query more.
        masks: (M, N), True where a row is in the subset; the same for every method that is compared.
        outputs: (M, Q) of models trained on the subsets, larger = better (a margin, minus the loss), averaged over training seeds.

    Returns:
        0 where a query's predictions or outputs are the same for all subsets.

    Raises:
        DataError: when the shapes do not fit each other, or there are fewer than three subsets.
    """
    shapes = scores.shape, masks.shape, outputs.shape
    expected = (shapes[0], (len(masks), scores.shape[-1]), (len(masks), len(scores)))
    if scores.ndim != 2 or masks.dtype != np.bool_ or shapes != expected or len(masks) < 3:
        raise DataError(
            f"lds: scores {shapes[0]}, masks {shapes[1]} of {masks.dtype}, outputs {shapes[2]}; "
            "expected (queries, rows), (subsets, rows) of bool, (subsets, queries), at least 3 subsets"
        )
    predicted = scores.astype(np.float64) @ masks.T
    # a query that no row influences differently is constant over subsets of one size, up to rounding
    flat = np.ptp(predicted, axis=1) <= 1e-12 * np.abs(scores).sum(axis=1)
    return np.where(flat, 0.0, per_query_spearman(predicted, np.ascontiguousarray(outputs.T)))


def half_masks(num_subsets: int, num_rows: int, seed: int) -> NDArray[np.bool_]:
    """Return random subsets of half the rows (rounded down), each drawn without replacement, `(M, N)`."""
    drawn = np.random.default_rng(seed).random((num_subsets, num_rows)).argsort(axis=1)
    masks: NDArray[np.bool_] = drawn.argsort(axis=1) < num_rows // 2
    return masks
