"""Brittleness: how many of a query's most helpful rows must go before a model trained without them gets the query wrong?

Ilyas et al., arXiv 2202.00622, section 4.1. Rows of small models are left out, and each model is trained again from the same start.

Legend: Q queries, N rows, K budgets, S seeds, P parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from influcoder.errors import DataError
from influcoder.influence.retraining import TrainConfig, train
from influcoder.influence.row_model import RowModel, Rows

Array = NDArray[np.float64]


def margins_without_best(
    model: RowModel, starts: Tensor, rows: Rows, scores: Array, budgets: Sequence[int], config: TrainConfig, ask: Callable[[Tensor], Array]
) -> Array:
    """Return each query's margin after its best rows were left out, mean over seeds, (Q, K); below 0 = it is got wrong.

    Args:
        model: whose loss is trained.
        starts: (S, P), one a seed; seed s orders the batches too.
        rows: N.
        scores: (Q, N), larger = the row helps the query more.
        budgets: how many rows are left out; each below N.
        config: of the training.
        ask: every query's margin under each model: thetas (M, P) -> (M, Q).

    Raises:
        DataError: when scores are of other rows, or a budget leaves none.
    """
    if scores.shape[1] != len(rows) or not budgets or max(budgets) >= len(rows) or min(budgets) < 0:
        raise DataError(
            f"brittleness: scores {scores.shape}, {len(rows)} rows, budgets {list(budgets)}; expected (Q, N), budgets from 0 to N - 1"
        )
    order = np.argsort(-scores, axis=1, kind="stable")
    masks = np.ones((len(scores), len(budgets), len(rows)), dtype=bool)
    for place, budget in enumerate(budgets):
        np.put_along_axis(masks[:, place], order[:, :budget], False, axis=1)
    own = np.repeat(np.arange(len(scores)), len(budgets))
    found = [
        ask(train(model, start, rows, masks.reshape(-1, len(rows)), config, seed))[np.arange(len(own)), own]
        for seed, start in enumerate(starts)
    ]
    mean: Array = np.mean(found, axis=0).reshape(len(scores), len(budgets))
    return mean
