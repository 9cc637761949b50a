"""How far scores agree with what really happens: the proximal Bregman response, and retraining without the row; beside what could be had.

Legend: Q queries, R rows asked about, S seeds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from influcoder.errors import DataError
from influcoder.metrics import per_query_pearson, per_query_spearman

Array = NDArray[np.floating]
MEANING = (
    "A score is a sensitivity around the final weights: how a small change of the row's weight, made now and with the model's other "
    "answers held, would move the query's loss. It is not what would have happened had the row never been seen: a model retrained "
    "without it takes another path, and one row's effect is mostly lost in the noise of training."
)


@dataclass(frozen=True)
class Agreement:
    """Means over queries, -1 to 1."""

    spearman: float
    pearson: float


@dataclass(frozen=True)
class Judgement:
    """Every method beside how far the truths agree with themselves."""

    pbrf: Mapping[str, Agreement]
    """by method"""
    pbrf_linearity: Agreement
    """doubling a row against giving it up, the opposite in first order, which is all that a score knows; PBRF itself has no noise"""
    loo: Mapping[str, Agreement]
    """by method, against the mean over seeds; `pbrf` is among the methods"""
    loo_one_seed: Mapping[str, Agreement]
    """the same against each seed alone, averaged"""
    loo_ceiling: Agreement
    """one half of the seeds against the other: what half as many more trainings would reach"""


def judge(scores: Mapping[str, Array], given_up: Array, doubled: Array, left_out: Array) -> Judgement:
    """Compare scores with both truths.

    Args:
        scores: (Q, R) by method, of the rows asked about alone.
        given_up: (Q, R) of `pbrf.responses`.
        doubled: (Q, R), the same with sign -1.
        left_out: (S, Q, R) of `retraining.leave_one_out`, at least two seeds.

    Raises:
        DataError: when shapes differ, or there is only one seed.
    """
    for name, found in {**scores, "doubled": doubled, "left out": left_out[0]}.items():
        if found.shape != given_up.shape:
            raise DataError(f"agreement: {name} {found.shape}; expected {given_up.shape}, queries by the rows asked about")
    if len(left_out) < 2:
        raise DataError(f"agreement: left out with {len(left_out)} seed; expected at least 2, since one seed's effects are mostly noise")
    mean = left_out.mean(axis=0)
    methods = {**scores, "pbrf": given_up}
    return Judgement(
        pbrf={name: agreement(found, given_up) for name, found in scores.items()},
        pbrf_linearity=agreement(doubled, given_up),
        loo={name: agreement(found, mean) for name, found in methods.items()},
        loo_one_seed={name: _mean([agreement(found, one) for one in left_out]) for name, found in methods.items()},
        loo_ceiling=split_half(left_out),
    )


def agreement(scores: Array, truth: Array) -> Agreement:
    """Return how the scores of each query's rows, (Q, R), go along with the truth, (Q, R)."""
    return Agreement(float(per_query_spearman(scores, truth).mean()), float(per_query_pearson(scores, truth).mean()))


def split_half(repeats: Array) -> Agreement:
    """Return how the mean of half the seeds agrees with that of the others, averaged over all ways to halve (S, Q, R)."""
    seeds = range(len(repeats))
    halves = list(combinations(seeds, len(repeats) // 2))
    found = [agreement(repeats[list(half)].mean(0), repeats[[seed for seed in seeds if seed not in half]].mean(0)) for half in halves]
    return _mean(found)


def describe(judgement: Judgement) -> str:
    """Return what was found in lines that people read: Spearman / Pearson."""
    width = max(len(name) for name in [*judgement.loo, "itself"])
    lines = [f"{'':{width}}  PBRF         leave one out, mean of seeds    one seed"]
    for name, left_out in judgement.loo.items():
        pbrf = judgement.pbrf.get(name)
        lines.append(f"{name:{width}}  {_cell(pbrf) if pbrf else '':11}  {_cell(left_out):30}  {_cell(judgement.loo_one_seed[name])}")
    lines.append(f"{'itself':{width}}  {_cell(judgement.pbrf_linearity):11}  {_cell(judgement.loo_ceiling)}")
    lines.append("itself: the row doubled against given up; half of the seeds against the other half")
    return "\n".join([*lines, "", MEANING])


def _cell(found: Agreement) -> str:
    return f"{found.spearman:.2f} / {found.pearson:.2f}"


def _mean(found: list[Agreement]) -> Agreement:
    return Agreement(float(np.mean([one.spearman for one in found])), float(np.mean([one.pearson for one in found])))
