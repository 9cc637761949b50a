from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import spearmanr

from eval.bootstrap import Estimate, Resampler
from eval.fidelity import LENGTHS, NAMES, Figures, by_stratum, constant_queries, fidelity_metrics
from eval.judged import Fold, Judged
from eval.methods import MethodScores
from influcoder.examples import Example

Matrix = NDArray[np.float64]
Q, C = 6, 20
"""fidelity queries and candidates of a fold"""


def make_judged(folds: int = 1, candidates: int = C, queries: int = Q) -> Judged:
    """Return judged rows of two groups and many lengths, queries and candidates mixed."""
    rng = np.random.default_rng(17)
    count = folds * (queries + candidates)
    places, lengths = rng.permutation(count).reshape(folds, -1), rng.permutation(count) + 1
    return Judged(
        rows=[Example(id=f"row{place}", context=(), response="x" * int(lengths[place])) for place in range(count)],
        folds=tuple(Fold(queries=np.sort(fold[:queries]), candidates=np.sort(fold[queries:])) for fold in places),
        groups=np.array(["a", "b"])[rng.integers(2, size=count)],
    )


ONE, TWO = make_judged(), make_judged(folds=2)


def random_scores(judged: Judged, seed: int, seeds: int = 1) -> Matrix:
    return np.random.default_rng(seed).normal(size=(seeds, judged.num_asking, len(judged.rows)))


def block(matrix: Matrix, judged: Judged, number: int = 0) -> Matrix:
    """Return the `(Q, C)` scores that count in a fold, picked one by one."""
    first = sum(len(fold.queries) for fold in judged.folds[:number])
    fold = judged.folds[number]
    return np.array([[matrix[first + query, row] for row in fold.candidates] for query in range(len(fold.queries))])


def spread(scores: Matrix, judged: Judged) -> Matrix:
    """Return `(1, A, N)` scores of one fold that hold the `(Q, C)` given where it counts and NaN elsewhere."""
    asked = np.full((1, judged.num_asking, len(judged.rows)), np.nan)
    asked[0][:, judged.folds[0].candidates] = scores
    return asked


def measured(
    asked: Matrix, target: Matrix, judged: Judged = ONE, folds: tuple[int, ...] | None = None
) -> tuple[dict[str, Estimate], list[Figures]]:
    metrics, rhos = fidelity_metrics(MethodScores(asked=asked, folds=folds), target, judged, Resampler(50, 0))
    assert tuple(metrics) == NAMES
    return {name: value for name, value in metrics.items() if value is not None}, rhos


def of_block(predicted: Matrix, target: Matrix, judged: Judged = ONE) -> dict[str, Estimate]:
    """Measure `(Q, C)` scores of a single fold."""
    return measured(spread(predicted, judged), spread(target, judged)[0], judged)[0]


def tau_b(first: Matrix, second: Matrix) -> float:
    """Return Kendall's tau-b, one pair at a time; 0 for a constant."""
    agreement, pairs = 0.0, [0, 0]
    for place in range(len(first)):
        for other in range(place):
            signs = np.sign(first[place] - first[other]), np.sign(second[place] - second[other])
            agreement += signs[0] * signs[1]
            pairs = [count + int(sign != 0) for count, sign in zip(pairs, signs, strict=True)]
    return agreement / np.sqrt(pairs[0] * pairs[1]) if all(pairs) else 0.0


def ndcg(predicted: Matrix, target: Matrix) -> float:
    """Return NDCG@10 of tie-free predictions, one place at a time."""

    def gained(order: NDArray[np.int64]) -> float:
        return sum(max(float(target[row]), 0.0) / math.log2(2 + place) for place, row in enumerate(order[:10]))

    return gained(np.argsort(-predicted)) / gained(np.argsort(-target))


@pytest.mark.parametrize("judged", [ONE, TWO], ids=["one fold", "two folds"])
def test_a_perfect_method_scores_one_everywhere(judged: Judged) -> None:
    target = random_scores(judged, 0)[0]
    for name, value in measured(np.stack([3 * target - 1, target]), target, judged)[0].items():
        assert (value.value, *value.interval) == pytest.approx((1, 1, 1)), name


def test_per_query_and_within_group_equal_scipy() -> None:
    predicted, target = random_scores(ONE, 1), random_scores(ONE, 2)[0]
    found, rhos = measured(predicted, target)
    mine, wanted = block(predicted[0], ONE), block(target, ONE)
    expected = [spearmanr(*pair).statistic for pair in zip(mine, wanted, strict=True)]
    np.testing.assert_allclose(rhos[0], [expected])
    assert found["per_query_spearman"].value == pytest.approx(np.mean(expected))
    assert ONE.groups is not None
    same = [ONE.groups[ONE.folds[0].candidates] == ONE.groups[query] for query in ONE.folds[0].queries]
    expected = [spearmanr(mine[query][kept], wanted[query][kept]).statistic for query, kept in enumerate(same)]
    assert found["within_group_spearman"].value == pytest.approx(np.mean(expected))


def test_what_only_tells_groups_apart_has_nothing_within_them() -> None:
    assert ONE.groups is not None
    topic = (ONE.groups[ONE.folds[0].queries, None] == ONE.groups[None, ONE.folds[0].candidates]).astype(np.float64)
    found = of_block(topic, topic * 10 + np.random.default_rng(2).normal(size=(Q, C)))
    assert found["per_query_spearman"].value > 0.8
    assert found["within_group_spearman"].value == 0


def test_a_query_blind_method_has_no_residual_though_it_meets_the_aggregate() -> None:
    target = np.random.default_rng(3).normal(size=C) + np.random.default_rng(4).normal(size=(Q, C))
    found = of_block(np.broadcast_to(target.mean(0), (Q, C)), target)
    assert found["aggregated_spearman"].value == pytest.approx(1)
    assert (found["residual_spearman"].value, *found["residual_spearman"].interval) == (0, 0, 0)


@pytest.mark.parametrize("value", [0.0, 0.1, -1e6])
def test_a_constant_method_has_correlations_of_zero_with_intervals_of_zero(value: float) -> None:
    found = of_block(np.full((Q, C), value), np.random.default_rng(5).normal(size=(Q, C)))
    for name in NAMES[:5]:
        assert (found[name].value, *found[name].interval) == (0, 0, 0), name


def test_kendall_equals_a_loop_over_pairs() -> None:
    rng = np.random.default_rng(6)
    predicted, target = rng.integers(-4, 5, size=(Q, C)).astype(np.float64), rng.integers(-9, 10, size=(Q, C)).astype(np.float64)
    predicted[0], target[1] = 2, -1
    expected = [tau_b(mine, theirs) for mine, theirs in zip(predicted, target, strict=True)]
    assert expected[:2] == [0, 0]
    assert of_block(predicted, target)["per_query_kendall"].value == pytest.approx(np.mean(expected))


def test_ndcg_equals_a_loop_over_places_and_leaves_out_a_query_that_no_row_helps() -> None:
    rng = np.random.default_rng(7)
    predicted, target = rng.normal(size=(Q, C)), rng.normal(size=(Q, C))
    target[2] = -np.abs(target[2])
    target[2, 0] = 0
    target[3] = np.where(predicted[3] == np.sort(predicted[3])[-4], 2, -1)  # a single row helps, and is predicted fourth
    expected = [ndcg(predicted[query], target[query]) for query in range(Q) if query != 2]
    found = of_block(predicted, target)["ndcg_at_10"]
    assert found.value == pytest.approx(np.mean(expected))
    assert found.n == Q - 1


def test_top_and_bottom_hand_case() -> None:
    judged = make_judged(candidates=120)
    target = np.arange(120.0) - 60  # rows 110 to 119 help most, 0 to 9 harm most
    best_first = [
        0,
        1,
        2,
        *range(110, 114),
        *range(10, 22),
        3,
        4,
        *range(22, 100),
        114,
        115,
        *range(100, 110),
        *range(5, 10),
        *range(116, 120),
    ]
    assert (best_first.index(114), best_first.index(4)) == (99, 120 - 100), "the last that are inspected, from above and from below"
    assert sorted(best_first) == list(range(120))
    predicted = np.empty(120)
    predicted[best_first] = -np.arange(120.0)
    found = of_block(np.tile(predicted, (Q, 1)), np.tile(target, (Q, 1)), judged)
    expected = {"top10_overlap": 0.4, "bottom10_overlap": 0.5, "top10_recall_at_100": 0.5, "bottom10_recall_at_100": 0.6}
    assert {name: found[name].value for name in expected} == pytest.approx(expected)


def test_figures_are_means_over_queries_and_seeds() -> None:
    asked, target = random_scores(ONE, 8, seeds=3), random_scores(ONE, 9)[0]
    together, rhos = measured(asked, target)
    alone = [measured(asked[[seed]], target)[0] for seed in range(3)]
    assert rhos[0].shape == (3, Q)
    for name, value in together.items():
        assert value.seeds == pytest.approx([found[name].value for found in alone]), name
        assert value.value == pytest.approx(np.mean([found[name].value for found in alone])), name
        assert value.n == Q


def test_scores_across_folds_are_never_looked_at() -> None:
    asked, target = random_scores(TWO, 10, seeds=2), random_scores(TWO, 11)[0]
    holed = [matrix.copy() for matrix in (asked, target[None])]
    for number, fold in enumerate(TWO.folds):
        elsewhere = np.setdiff1d(np.arange(len(TWO.rows)), fold.candidates)
        for matrix in holed:
            for query in range(len(TWO.fidelity_queries))[TWO.asking(number)]:
                matrix[:, query, elsewhere] = np.nan
    assert np.isnan(holed[0]).mean() > 0.5
    (expected, rhos), (found, holed_rhos) = measured(asked, target, TWO), measured(holed[0], holed[1][0], TWO)
    np.testing.assert_array_equal(holed_rhos, rhos)
    assert set(found) == set(NAMES)
    for name, value in expected.items():
        assert found[name].seeds == value.seeds, name
        np.testing.assert_array_equal(found[name].draws, value.draws, err_msg=name)


def test_figures_of_folds_are_pooled_over_queries_the_aggregate_is_their_mean() -> None:
    asked, target = random_scores(TWO, 12), random_scores(TWO, 13)[0]
    found, rhos = measured(asked, target, TWO)
    pairs = [(block(asked[0], TWO, number), block(target, TWO, number)) for number in (0, 1)]
    by_fold = [[spearmanr(*query).statistic for query in zip(*pair, strict=True)] for pair in pairs]
    np.testing.assert_allclose([fold[0] for fold in rhos], by_fold)
    assert found["per_query_spearman"].value == pytest.approx(np.mean(by_fold))
    assert found["per_query_spearman"].n == 2 * Q
    means = [spearmanr(mine.mean(0), wanted.mean(0)).statistic for mine, wanted in pairs]
    assert found["aggregated_spearman"].value == pytest.approx(np.mean(means))


def test_a_method_of_the_first_fold_is_measured_there_alone() -> None:
    asked, target = random_scores(TWO, 14), random_scores(TWO, 15)[0]
    asked[:, TWO.asking(1)] = np.nan
    found, rhos = measured(asked, target, TWO, folds=(0,))
    first = Judged(rows=TWO.rows, folds=TWO.folds[:1], groups=TWO.groups)
    expected, _ = measured(asked[:, TWO.asking(0)], target[TWO.asking(0)], first)
    for name, value in expected.items():
        assert found[name].value == pytest.approx(value.value), name
        assert found[name].n == Q, name
    assert np.isfinite(rhos[0]).all() and np.isnan(rhos[1]).all()


def test_without_groups_there_is_nothing_within_them() -> None:
    target = random_scores(ONE, 16)
    assert set(NAMES) - set(measured(target, target[0], replace(ONE, groups=None))[0]) == {"within_group_spearman"}


def test_the_aggregates_interval_equals_a_loop_over_the_resamples() -> None:
    asked, target = random_scores(TWO, 18), random_scores(TWO, 19)[0]
    resampler = Resampler(30, 9)
    found = fidelity_metrics(MethodScores(asked=asked), target, TWO, resampler)[0]["aggregated_spearman"]
    rhos = np.zeros(30)
    for number in (0, 1):
        mine, wanted = block(asked[0], TWO, number), block(target, TWO, number)
        for draw, counts in enumerate(resampler.counts(f"queries:{number}", Q)):
            taken = np.repeat(np.arange(Q), counts.astype(int))
            rhos[draw] += spearmanr(mine[taken].mean(0), wanted[taken].mean(0)).statistic / 2
    assert found is not None
    np.testing.assert_allclose(found.draws, rhos)
    assert found.n == 2 * Q


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("candidates", [20, 203])
def test_equal_scores_stay_equal_in_every_resample(candidates: int, dtype: type[np.floating]) -> None:
    judged = make_judged(candidates=candidates, queries=60)
    rng = np.random.default_rng(25)
    target = rng.normal(size=(60, candidates))
    counts = Resampler(50, 0).counts("queries:0", 60).astype(int)
    for values in (np.full(candidates, 0.1), rng.integers(1, 5, size=candidates) / 10):
        blind = spread(np.tile(values, (60, 1)), judged).astype(dtype)
        found = measured(blind, spread(target, judged)[0], judged)[0]["aggregated_spearman"]
        means = [np.repeat(target, count, axis=0).mean(axis=0) for count in counts]
        expected = [spearmanr(values, mean).statistic if np.ptp(values) else 0 for mean in means]
        np.testing.assert_allclose(found.draws, expected, atol=1e-12)


@pytest.mark.parametrize("judged", [ONE, TWO], ids=["one fold", "two folds"])
def test_a_stratum_is_the_mean_over_its_queries(judged: Judged) -> None:
    resampler = Resampler(20, 0)
    scores, target = MethodScores(asked=random_scores(judged, 20, seeds=2)), random_scores(judged, 21)[0]
    _, rhos = fidelity_metrics(scores, target, judged, resampler)
    strata = by_stratum(rhos, judged, resampler)
    assert judged.groups is not None
    queries = [int(place) for fold in judged.folds for place in fold.queries]
    by_query = dict(zip(queries, np.concatenate(rhos, axis=1).mean(axis=0), strict=True))
    for label in ("a", "b"):
        expected = [rho for place, rho in by_query.items() if judged.groups[place] == label]
        assert strata["group"][label].value == pytest.approx(np.mean(expected))
        assert strata["group"][label].n == len(expected)
    ascending = sorted(queries, key=lambda place: len(judged.rows[place].response))
    third = len(queries) // 3
    for number, label in enumerate(LENGTHS):
        expected = [by_query[place] for place in ascending[number * third : (number + 1) * third]]
        assert strata["length"][label].value == pytest.approx(np.mean(expected))
        assert strata["length"][label].n == third


def test_a_stratum_without_figures_is_left_out() -> None:
    resampler = Resampler(20, 0)
    kinds = np.array(["kind"] * len(TWO.rows))
    kinds[TWO.folds[1].queries] = "none"
    scores = MethodScores(asked=random_scores(TWO, 22), folds=(0,))
    _, rhos = fidelity_metrics(scores, random_scores(TWO, 23)[0], TWO, resampler)
    strata = by_stratum(rhos, replace(TWO, groups=kinds), resampler)
    assert set(strata["group"]) == {"kind"}
    assert strata["group"]["kind"].n == Q
    assert set(by_stratum(rhos, replace(TWO, groups=None), resampler)) == {"length"}


def test_constant_queries_are_counted_over_candidates_in_every_fold() -> None:
    asked = random_scores(TWO, 24, seeds=2)
    asked[0, 1, TWO.folds[0].candidates] = 0.3
    asked[0, Q + 2, TWO.folds[1].candidates] = -1
    asked[0, 3, TWO.folds[1].candidates] = 5  # of the other fold
    asked[1, :, :] = 0
    assert constant_queries(MethodScores(asked=asked), TWO) == 2
    asked[:, TWO.asking(1)] = np.nan
    assert constant_queries(MethodScores(asked=asked, folds=(0,)), TWO) == 1
