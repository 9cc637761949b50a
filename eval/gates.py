"""Gates: figures that would be too good, or blind, if something were wrong. A run that fails one is not to be believed.

    trained       the decoder must predict the rows far better than with random weights: else there is nothing to attribute
    randomised    a decoder of random weights must not give the target's ranking: else it is not the training that is measured
                  (model randomisation, Adebayo et al. 2018; quanda's test for attribution)
    cardinality   different queries must have different top rows: else the student is query-blind (quanda's top-k cardinality)
    shuffled      a student of shuffled targets must score like a floor: else the judge leaks
The fifth, leakage (`leakage.py`), stops the run before anything is measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from eval.config import GateConfig
from influcoder.metrics import Array


@dataclass(frozen=True)
class Gate:
    """One verdict."""

    name: str
    value: float
    limit: float
    passed: bool
    meaning: str
    """what was compared, and what a failure says"""


def top_cardinality(scores: Array, k: int = 10) -> float:
    """Return the distinct rows among all queries' top k, as a share of the most there could be: `(Q, C)` scores, in (0, 1]."""
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return len(np.unique(best)) / int(min(scores.shape[1], best.size))


def trained_gate(loss: float, random_loss: float, config: GateConfig) -> Gate | None:
    """Judge the decoder's mean loss on judged rows, against that with random weights."""
    if config.trained_share is None:
        return None
    limit = config.trained_share * random_loss
    return Gate(
        "trained",
        loss,
        limit,
        loss <= limit,
        "the decoder's mean loss (nats) on judged rows; above the limit it predicts them hardly better than with random weights",
    )


def randomised_gate(agreement: float, ceiling: float, config: GateConfig) -> Gate | None:
    """Judge the target's per-query Spearman with a re-initialised decoder's scores, against that with its own second seed."""
    if config.randomised_share is None:
        return None
    limit = config.randomised_share * ceiling
    return Gate(
        "randomised",
        agreement,
        limit,
        agreement <= limit,
        "per-query Spearman between the target and the scores of the decoder with random weights; "
        "above the limit the target is not about what the decoder learnt",
    )


def cardinality_gate(student: float, target: float, config: GateConfig) -> Gate | None:
    """Judge how many distinct rows stand in the student's top 10, against the target's."""
    if config.cardinality_share is None:
        return None
    limit = config.cardinality_share * target
    return Gate(
        "cardinality",
        student,
        limit,
        student >= limit,
        "share of distinct rows among the student's top 10 of all queries; below the limit it gives every query the same rows",
    )


def shuffled_gate(control: float | None, floors: Mapping[str, float], config: GateConfig) -> Gate | None:
    """Judge the per-query Spearman of a student of shuffled targets, against the best floor's."""
    if config.shuffled_margin is None or control is None:
        return None
    best = max(floors, key=lambda name: floors[name])
    limit = floors[best] + config.shuffled_margin
    return Gate(
        "shuffled",
        control,
        limit,
        control <= limit,
        f"per-query Spearman of a student of shuffled targets, against the best floor ({best}); above the limit the judge leaks",
    )
