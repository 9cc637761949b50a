"""Trains the classifier, asks who influenced what, and takes the figures.

Legend: N training digits, Q test digits asked, D bootstrap draws, K at the top.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from examples.mnist.classifier import as_rows, flip_labels, margins, train_classifier
from examples.mnist.config import MnistConfig
from examples.mnist.images import Digits
from influcoder.errors import ConfigError
from influcoder.influence.curvature import gauss_newton
from influcoder.influence.damped_solve import Solve, cg_solve
from influcoder.influence.influence_function import CHUNK_ROWS, InfluenceFunction, relatif
from influcoder.influence.row_model import RowModel, Rows
from influcoder.influence.small_ekfac import ekfac_self_influence, ekfac_solve, fit_small_ekfac

Array = NDArray[np.float64]
SHOWN_A_QUERY, DRAWS, EDGE_SHARE = 10, 1000, 0.01
CG_TOLERANCE = 1e-2


@dataclass(frozen=True)
class Study:
    """What was asked and answered."""

    train: Digits
    """N, with their true labels"""
    given: NDArray[np.uint8]
    """(N,) labels that were trained on"""
    test: Digits
    """Q"""
    predicted: NDArray[np.int64]
    """(Q,) what the network reads in the test digits"""
    accuracy: float
    """on every test digit"""
    scores: Array
    """(Q, N), larger = training on the digit helps the network more with the test digit"""
    relative: Array
    """(Q, N), the same over the root of each digit's self-influence (RelatIF): digits that influence everything, as wrong labels do, count less"""
    suspicion: dict[str, Array]
    """(N,) by what a wrong label could be told: self_influence, gradient_length, loss"""
    margins: Array
    """(N,) of the training digits' true labels"""

    @property
    def flipped(self) -> NDArray[np.bool_]:
        """(N,) where the label is wrong."""
        flipped: NDArray[np.bool_] = self.given != self.train.labels
        return flipped

    def edge_cases(self) -> NDArray[np.int64]:
        """Return the rightly labelled digits of the highest self-influence, one in a hundred of all, the highest first."""
        order = np.argsort(-self.suspicion["self_influence"], kind="stable")
        return order[~self.flipped[order]][: max(20, round(EDGE_SHARE * len(order)))]


def make_study(config: MnistConfig, train: Digits, test: Digits) -> Study:
    """Train, and score every training digit for every test digit.

    Raises:
        ConfigError: when there are fewer test digits than are to be asked.
    """
    if config.queries > len(test):
        raise ConfigError(f"queries: {config.queries}; expected at most {len(test)}, the test digits there are; ask fewer")
    random = np.random.default_rng(config.seed)
    chosen = train[np.sort(random.permutation(len(train))[: config.rows])]
    asked = test[np.sort(random.permutation(len(test))[: config.queries])]
    given = flip_labels(chosen.labels, config.flipped, config.seed)
    rows, queries = as_rows(chosen.images, given), as_rows(asked.images, asked.labels)
    model = train_classifier(rows, config.training, config.seed)
    places = torch.from_numpy(random.permutation(len(rows))[: config.curvature_rows])
    factors = fit_small_ekfac(model, rows[places])
    solve = ekfac_solve(model, factors, config.damping) if config.method == "ekfac" else _exact(model, rows[places], config.damping)
    scores = InfluenceFunction(model, solve).scores(queries, rows)
    self_influence = ekfac_self_influence(model, factors, rows, config.damping)
    return Study(
        train=chosen,
        given=given,
        test=asked,
        predicted=_read(model, queries),
        accuracy=float((_read(model, as_rows(test.images, test.labels)) == test.labels).mean()),
        scores=scores,
        relative=relatif(scores, self_influence),
        suspicion={"self_influence": self_influence, **_plain_suspicion(model, rows)},
        margins=margins(model, chosen),
    )


def figures(study: Study) -> dict[str, Any]:
    """Return what the page and `summary.json` say."""
    edge = study.edge_cases()
    return {
        "rows": len(study.train),
        "flipped": int(study.flipped.sum()),
        "queries": len(study.test),
        "test_accuracy": study.accuracy,
        "flips_in_top_10_percent": {name: float(found_at(study, name, 0.1)) for name in study.suspicion},
        "top_10": {name: _of_the_top(study, scores) for name, scores in (("relatif", study.relative), ("influence", study.scores))},
        "edge_cases": {
            "digits": len(edge),
            "margin": float(study.margins[edge].mean()),
            "margin_of_all_rightly_labelled": float(study.margins[~study.flipped].mean()),
            "difference": with_interval(study.margins[edge], study.margins[~study.flipped]),
        },
    }


def _of_the_top(study: Study, scores: Array) -> dict[str, dict[str, float]]:
    """Return shares of the digits at both ends of each test digit's ranking, averaged over test digits."""
    helpful, harmful, asked = top(scores), top(-scores), study.test.labels[:, None]
    shares = {
        "helpful_of_the_same_class": study.given[helpful] == asked,
        "helpful_that_are_flipped": study.flipped[helpful],
        "harmful_of_another_class": study.given[harmful] != asked,
        "harmful_that_are_flipped": study.flipped[harmful],
    }
    return {name: with_interval(share.mean(axis=1)) for name, share in shares.items()}


def top(scores: Array, k: int = SHOWN_A_QUERY) -> NDArray[np.int64]:
    """Return the K best places of each query, (Q, K); ties keep the order of the rows."""
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


def found_curve(study: Study, name: str) -> Array:
    """Return the share of the wrong labels found after looking at 1, 2, ... N digits, the most suspicious first, (N,)."""
    order = np.argsort(-study.suspicion[name], kind="stable")
    curve: Array = study.flipped[order].cumsum() / study.flipped.sum()
    return curve


def found_at(study: Study, name: str, share: float) -> float:
    """Return the share of the wrong labels among the most suspicious `share` of the digits."""
    return float(found_curve(study, name)[round(share * len(study.train)) - 1])


def with_interval(values: Array, others: Array | None = None) -> dict[str, float]:
    """Return the mean (less that of others) with its 95 % bootstrap interval."""
    random = np.random.default_rng(0)
    mean, draws = values.mean(), _bootstrap(values, random)
    if others is not None:
        mean, draws = mean - others.mean(), draws - _bootstrap(others, random)
    low, high = np.quantile(draws, [0.025, 0.975])
    return {"mean": float(mean), "low": float(low), "high": float(high)}


def _bootstrap(values: Array, random: np.random.Generator) -> Array:
    return np.array([values[random.integers(len(values), size=len(values))].mean() for _ in range(DRAWS)])


def _exact(model: RowModel, rows: Rows, damping: float) -> Solve:
    wide = RowModel(model.module, model.loss)  # float64: a third fewer iterations
    curvature = gauss_newton(wide, rows)
    solve = cg_solve(curvature, damping * curvature.trace(probes=50) / curvature.size, tolerance=CG_TOLERANCE, max_iterations=2000)
    return lambda vectors: solve(vectors.double()).to(vectors.dtype)


def _read(model: RowModel, rows: Rows) -> NDArray[np.int64]:
    with torch.no_grad():
        read: NDArray[np.int64] = model.outputs(model.theta, rows.inputs).argmax(1).numpy()
    return read


def _plain_suspicion(model: RowModel, rows: Rows) -> dict[str, Array]:
    """Return what needs no curvature: the length of each row's gradient, and its loss."""
    lengths = [model.gradients(model.theta, chunk).norm(dim=1) for chunk in rows.chunks(CHUNK_ROWS)]
    with torch.no_grad():
        losses = model.losses(model.theta, rows)
    return {"gradient_length": torch.cat(lengths).double().numpy(), "loss": losses.double().numpy()}
