from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from eval.fidelity import NAMES, aggregated_interval, fidelity_metrics
from eval.judged import Judged
from influcoder.metrics import Interval
from tests.eval.fake_runs import make_rows

Q, C = 6, 20
JUDGED = Judged(rows=make_rows(Q + C, "row", seed=0), num_queries=Q, groups=np.array(["a", "b"] * ((Q + C) // 2)))


def measured(predicted: np.ndarray, target: np.ndarray, judged: Judged = JUDGED) -> dict[str, Interval]:
    metrics, _ = fidelity_metrics(predicted, target, judged, seed=0, draws=50)
    return {name: value for name, value in metrics.items() if value is not None}


def test_a_perfect_method_scores_one_everywhere() -> None:
    target = np.random.default_rng(0).normal(size=(Q, C))
    for name, value in measured(3 * target - 1, target).items():
        assert (value.mean, value.low, value.high) == pytest.approx((1, 1, 1)), name


def test_within_group_ranks_the_querys_own_group_alone() -> None:
    rng = np.random.default_rng(1)
    predicted, target = rng.normal(size=(Q, C)), rng.normal(size=(Q, C))
    expected = [spearmanr(predicted[query, query % 2 :: 2], target[query, query % 2 :: 2]).statistic for query in range(Q)]
    assert measured(predicted, target)["within_group_spearman"].mean == pytest.approx(np.mean(expected))


def test_what_only_tells_groups_apart_has_nothing_within_them() -> None:
    assert JUDGED.groups is not None
    topic = (JUDGED.groups[:Q, None] == JUDGED.groups[None, Q:]).astype(np.float64)
    target = topic * 10 + np.random.default_rng(2).normal(size=(Q, C))
    found = measured(topic, target)
    assert found["per_query_spearman"].mean > 0.8
    assert found["within_group_spearman"].mean == 0


def test_a_query_blind_method_has_no_residual_though_it_meets_the_aggregate() -> None:
    bias = np.random.default_rng(3).normal(size=C)
    target = bias + np.random.default_rng(4).normal(size=(Q, C))
    found = measured(np.broadcast_to(target.mean(0), (Q, C)), target)
    assert found["aggregated_spearman"].mean == pytest.approx(1)
    assert (found["residual_spearman"].mean, found["residual_spearman"].high) == (0, 0)


def test_aggregated_interval_equals_a_loop_over_resampled_queries() -> None:
    rng = np.random.default_rng(5)
    predicted, target = rng.normal(size=(Q, C)), rng.normal(size=(Q, C))
    draws = np.random.default_rng(9).integers(Q, size=(30, Q))
    rhos = [spearmanr(predicted[draw].mean(0), target[draw].mean(0)).statistic for draw in draws]
    found = aggregated_interval(predicted, target, seed=9, draws=30)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(rhos, [0.025, 0.975])))
    assert found.n == Q


def test_without_groups_or_for_the_teacher_itself_a_metric_is_none() -> None:
    target = np.random.default_rng(6).normal(size=(Q, C))
    metrics, per_query = fidelity_metrics(target, target, Judged(rows=JUDGED.rows, num_queries=Q), seed=0, draws=5)
    assert metrics["within_group_spearman"] is None
    assert per_query is not None and per_query.shape == (Q,)
    assert fidelity_metrics(None, target, JUDGED, seed=0, draws=5) == (dict.fromkeys(NAMES), None)
