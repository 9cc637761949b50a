"""Every gradient method as one composition: direction -> projection -> preconditioner -> normalisation -> checkpoints.

| method     | direction of a row               | preconditioner       | normalised      | checkpoints                    |
|------------|----------------------------------|----------------------|-----------------|--------------------------------|
| influcoder | gradient                         |                      | layers, unit    | the last                       |
| tracin     | gradient                         |                      | none            | all, by learning rate          |
| less       | Adam's step; queries: gradient   |                      | unit            | all, by share of learning rate |
| logra      | gradient                         | damped Fisher        | none            | the last                       |
| trackstar  | gradient / sqrt(second moment)   | Fisher of both sides | unit            | the last                       |
| ekfac      | (G + l)^(-1/2) gradient          |                      | none            | the last                       |
| f_influence | gradient less the rows' mean     |                      | none, layers    | all, by each query's noise     |

influcoder: Kachler et al., arXiv 2606.13668, whose cosine is `normalise: unit`; each layer to unit length first is ours. tracin: Pruthi et al., arXiv 2002.08484 (TracInCP). less: Xia et al., arXiv 2402.04333.
logra: Choe et al., arXiv 2405.13954; with `normalise: relatif`, RelatIF (Barshan et al., arXiv 2003.11630): divided by the root of
the row's self-influence. trackstar: Chang et al., arXiv 2410.17413. ekfac: Grosse et al., arXiv 2308.03296, half of the inverse on
each side, so that products are `g_q^T (G + l)^-1 g_d` with G the Gauss-Newton matrix (`ekfac.py`).
f_influence: Panda et al., arXiv 2510.10510, by our estimator (`f_influence.py`). With `normalise: layers` each layer's gradient of a row has
length 1 before all else: mu of a training that clips rows so, as DP-SGD does, in which a row's length buys no influence.
The score is an inner product of one vector a query and one a row, whatever the method: larger = the row helps the query more.

Legend: B rows, D coordinates at one checkpoint, K checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from influcoder.influence.fisher import precondition, unit_blocks

MethodName = Literal["influcoder", "tracin", "less", "logra", "trackstar", "ekfac", "f_influence"]
Direction = Literal["gradient", "adam_step", "second_moment"]
Normalise = Literal["layers", "unit", "none", "relatif"]
"""layers: each layer's part of a vector to length 1, then the whole, so that every layer's cosine counts alike; unit: the whole to
length 1; none: as they are; relatif: rows to length 1, queries as they are"""


@dataclass(frozen=True, kw_only=True)
class Method:
    """What a method does."""

    direction: Direction = "gradient"
    """what takes the place of a row's gradient before it is projected"""
    query_direction: Direction = "gradient"
    """the same for what asks; another direction than the rows' makes two feature sets"""
    ekfac: bool = False
    """whiten whole gradients by EK-FAC, rows and queries alike, before they are projected"""
    fisher: Literal["rows", "both"] | None = None
    """whose second moments precondition the projected gradients"""
    normalise: Normalise = "unit"
    """of the finished features"""
    every_checkpoint: bool = False
    """all checkpoints of the fine-tuning, or the last alone"""
    unit_weights: bool = False
    """normalise each checkpoint's vectors, and weigh by share of the learning rates instead of by them"""
    noise_scaled: bool = False
    """centre each checkpoint's rows and divide its queries by the noise of their products, so that scores are f-influence's mu"""

    @property
    def asymmetric(self) -> bool:
        """Whether a row as a query has other features than as a row."""
        return self.direction != self.query_direction

    @property
    def asks_checkpoints(self) -> bool:
        """Whether it looks at saved checkpoints, where a fine-tuning left some."""
        return self.every_checkpoint or self.direction != "gradient"

    @property
    def finished_at_once(self) -> bool:
        """Whether projected gradients are the features: nothing is combined or preconditioned."""
        return self.fisher is None and not self.every_checkpoint


METHODS: dict[MethodName, Method] = {
    "influcoder": Method(normalise="layers"),
    "tracin": Method(normalise="none", every_checkpoint=True),
    "less": Method(direction="adam_step", every_checkpoint=True, unit_weights=True),
    "logra": Method(fisher="rows", normalise="none"),
    "trackstar": Method(direction="second_moment", query_direction="second_moment", fisher="both"),
    "ekfac": Method(ekfac=True, normalise="none"),
    "f_influence": Method(normalise="none", every_checkpoint=True, noise_scaled=True),
}


def finish(
    method: Method,
    parts: Sequence[NDArray[np.float32]],
    learning_rates: Sequence[float],
    roots: Sequence[NDArray[np.float32]] | None,
    blocks: Sequence[int] | None,
) -> NDArray[np.float32]:
    """Return features at their lengths, `(B, D)` or `(B, K * D)`, of projected gradients.

    Args:
        method: how checkpoints are combined.
        parts: (B, D) of each checkpoint.
        learning_rates: of each checkpoint.
        roots: of the Fisher, if it preconditions.
        blocks: coordinates of each layer, where each is to have length 1 after the Fisher.
    """
    if roots is not None:
        parts = [precondition(part, roots) for part in parts]
        if blocks is not None:
            parts = [unit_blocks(part, blocks) for part in parts]
    return combine(parts, learning_rates, unit_weights=method.unit_weights) if method.every_checkpoint else parts[-1]


def combine(parts: Sequence[NDArray[np.float32]], learning_rates: Sequence[float], *, unit_weights: bool) -> NDArray[np.float32]:
    """Return one vector a row, `(B, K * D)`, whose inner products are `sum_k w_k <g_k, g'_k>` over checkpoints.

    Args:
        parts: (B, D) of each checkpoint.
        learning_rates: w of each (mean over the steps that led to it): TracIn's `sum_k lr_k <g_k, g'_k>`.
        unit_weights: LESS instead: each part at unit length, so that products are cosines, and weights that sum to 1.
    """
    weights = np.asarray(learning_rates, np.float64)
    if unit_weights:
        weights = weights / weights.sum()
        parts = [part / np.linalg.norm(part, axis=1, keepdims=True) for part in parts]
    joined = [(part * np.sqrt(weight)).astype(np.float32) for part, weight in zip(parts, weights, strict=True)]
    return np.concatenate(joined, axis=1)
