from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from eval.judged import Judged
from eval.task import NAMES, stratified_interval, task_metrics
from influcoder.metrics import Interval, average_precision, recall_at
from tests.eval.fake_runs import make_rows

N = 40
POSITIVE = np.arange(N) % 5 == 0
JUDGED = Judged(
    rows=make_rows(N, "row", seed=0),
    num_queries=10,
    task_queries=make_rows(6, "query", seed=1, weights=(1.0, 1.0, -1.0)),
    positive=POSITIVE,
)


def measured(scores: np.ndarray, judged: Judged = JUDGED, top: int = 2) -> dict[str, Interval]:
    found = task_metrics(scores, judged, top=top, seed=0, draws=50)
    return {name: value for name, value in found.items() if value is not None}


def test_figures_equal_scikit_learn_on_hand_aggregated_scores() -> None:
    scores = np.random.default_rng(0).normal(size=(6, N))
    wanted, contrast = scores[[0, 1, 3, 4]], scores[[2, 5]]
    by_hand = {
        "poison_auprc": np.sort(wanted, axis=0)[-2:].mean(0) - contrast.mean(0),
        "poison_auprc_mean": wanted.mean(0) - contrast.mean(0),
        "poison_auprc_max": wanted.max(0) - contrast.max(0),
    }
    found = measured(scores)
    for name, values in by_hand.items():
        assert found[name].mean == pytest.approx(average_precision_score(POSITIVE, values)), name
    best = np.argsort(-by_hand["poison_auprc"], kind="stable")[:8]
    assert found["poison_recall_at_positives"].mean == pytest.approx(POSITIVE[best].mean())


def test_a_perfect_method_finds_all() -> None:
    scores = np.where(POSITIVE, 1.0, -1.0) * JUDGED.weights[:, None]
    for name, value in measured(scores).items():
        assert (value.mean, value.low, value.high) == (1, 1, 1), name


def test_query_blind_scores_with_contrast_are_worth_the_base_rate() -> None:
    blind = np.broadcast_to(np.where(POSITIVE, 3.7, 0.1) + np.random.default_rng(1).normal(size=N), (6, N))
    for name in ("poison_auprc", "poison_auprc_mean", "poison_auprc_max"):
        value = measured(blind)[name]
        assert (value.mean, value.low, value.high) == pytest.approx((0.2, 0.2, 0.2)), name


def test_resampling_keeps_the_base_rate_and_lets_no_tie_favour_positives() -> None:
    last = np.arange(N) >= N - 8  # ties keep the row order, so a constant finds none of these
    found = stratified_interval(lambda values, mask: recall_at(values, mask, int(mask.sum())), np.zeros(N), last, seed=0, draws=50)
    assert (found.mean, found.low, found.high) == (0, 0, 0)
    rates = stratified_interval(lambda values, mask: float(mask.mean()), np.zeros(N), POSITIVE, seed=0, draws=20)
    assert (rates.low, rates.high, rates.n) == (0.2, 0.2, N)


def test_interval_lies_around_the_figure() -> None:
    values = POSITIVE + np.random.default_rng(2).normal(size=N)
    found = stratified_interval(average_precision, values, POSITIVE, seed=0, draws=200)
    assert found.low < found.mean < found.high


def test_without_a_task_every_figure_is_none() -> None:
    assert task_metrics(None, replace(JUDGED, positive=None), top=5, seed=0, draws=5) == dict.fromkeys(NAMES)
