"""Linear datamodelling score of every method on the same retrained models, with intervals.

A draw resamples queries and subsets, the same for every method: with a hundred subsets the choice of subsets is the larger part of the
doubt, and an interval over queries alone would leave it out.

Legend: S seeds, Q queries, N rows, M subsets, D draws.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from eval.bootstrap import Estimate, Resampler
from eval.truth.methods import Method
from influcoder.lds import lds

Array = NDArray[np.float64]


def lds_estimates(
    methods: Mapping[str, Method], masks: NDArray[np.bool_], outputs: Array, resampler: Resampler, groups: NDArray[np.bool_] | None = None
) -> dict[str, Estimate]:
    """Return every method's score, mean over queries and its seeds.

    Args:
        methods: scores (S, Q, N).
        masks: (M, N), True where a row was trained on.
        outputs: (M, Q) of the retrained models, larger = better, averaged over training seeds.
        resampler: of the intervals.
        groups: (Q,) which queries count; None takes all.
    """
    chosen = np.ones(outputs.shape[1], bool) if groups is None else groups
    estimates = {}
    for name, method in methods.items():
        scores = method.scores[:, chosen].astype(np.float64)
        figures = [float(lds(of_seed, masks, outputs[:, chosen]).mean()) for of_seed in scores]
        draws = np.stack([_draws(of_seed @ masks.T, outputs[:, chosen].T, resampler) for of_seed in scores])
        estimates[name] = resampler.over_seeds(figures, draws, int(chosen.sum()))
    return estimates


def ceiling(outputs: Array, resampler: Resampler) -> Estimate | None:
    """Return how far two trainings of the same subsets agree, Spearman over subsets, mean over queries; outputs (M, S, Q), None for S = 1.

    No score can be expected to predict one training better than another training of the same rows does.
    """
    if outputs.shape[1] < 2:
        return None
    first, second = outputs[:, 0].T, outputs[:, 1].T
    value = float(_spearman(first, second).mean())
    return Estimate(value, _draws(first, second, resampler), len(first), (value,))


def _draws(predicted: Array, outputs: Array, resampler: Resampler) -> Array:
    """Return the mean over queries of Spearman over subsets in every draw, (D,), from (Q, M) twice."""
    subsets = resampler.counts("subsets", outputs.shape[1])
    queries = resampler.counts("queries", len(outputs)).astype(np.float64)
    found = []
    for of_subsets, of_queries in zip(subsets, queries, strict=True):
        taken = np.repeat(np.arange(len(of_subsets)), of_subsets)
        found.append(_spearman(predicted[:, taken], outputs[:, taken]) @ of_queries / of_queries.sum())
    return np.array(found)


def _spearman(first: Array, second: Array) -> Array:
    """Return Spearman's rho of each line of (Q, M), all at once; 0 where one is constant."""
    mine, theirs = (ranks - ranks.mean(axis=1, keepdims=True) for ranks in (rankdata(first, axis=1), rankdata(second, axis=1)))
    scale = np.sqrt((mine**2).sum(axis=1) * (theirs**2).sum(axis=1))
    result: Array = np.divide((mine * theirs).sum(axis=1), scale, out=np.zeros(len(first)), where=scale > 0)
    return result
