from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import pearsonr, spearmanr

from influcoder.errors import DataError
from influcoder.influence.agreement import MEANING, agreement, describe, judge, split_half
from influcoder.metrics import per_query_pearson

Array = NDArray[np.float64]


def table(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).normal(size=shape)


def slow(first: Array, second: Array) -> tuple[float, float]:
    pairs = list(zip(first, second, strict=True))
    return (
        float(np.mean([spearmanr(*pair).statistic for pair in pairs])),
        float(np.mean([pearsonr(*pair).statistic for pair in pairs])),
    )


def test_pearson_is_scipys_and_zero_of_a_constant() -> None:
    first, second = table(0, 4, 15), table(1, 4, 15)
    first[2:], second[3] = 0.1, 0.7  # fifteen of them: their mean is off by rounding
    assert (first[3] - first[3].mean()).any() and (second[3] - second[3].mean()).any()
    expected = [pearsonr(first[query], second[query]).statistic for query in range(2)]
    np.testing.assert_allclose(per_query_pearson(first, second), [*expected, 0, 0], atol=1e-12)


def test_agreement_is_the_mean_over_queries() -> None:
    first, second = table(0, 4, 9), table(1, 4, 9)
    found = agreement(first, second)
    assert (found.spearman, found.pearson) == pytest.approx(slow(first, second))


@pytest.mark.parametrize(("seeds", "ways"), [(2, 1), (3, 3), (4, 3)])
def test_halves_are_all_ways_to_halve(seeds: int, ways: int) -> None:
    repeats = table(0, seeds, 3, 8)
    halves: dict[int, list[tuple[tuple[int, ...], tuple[int, ...]]]] = {
        2: [((0,), (1,))],
        3: [((0,), (1, 2)), ((1,), (0, 2)), ((2,), (0, 1))],
        4: [((0, 1), (2, 3)), ((0, 2), (1, 3)), ((0, 3), (1, 2))],
    }
    expected = [slow(repeats[list(one)].mean(0), repeats[list(other)].mean(0)) for one, other in halves[seeds]]
    assert len(expected) == ways
    found = split_half(repeats)
    assert (found.spearman, found.pearson) == pytest.approx(tuple(np.mean(expected, axis=0)))


def test_a_judgement_compares_everything_with_its_own_truth() -> None:
    scores, given_up, doubled, left_out = {"a": table(0, 3, 8), "b": table(1, 3, 8)}, table(2, 3, 8), table(3, 3, 8), table(4, 4, 3, 8)
    found = judge(scores, given_up, doubled, left_out)
    assert found.pbrf == {name: agreement(one, given_up) for name, one in scores.items()}
    assert found.pbrf_linearity == agreement(doubled, given_up)
    assert found.loo == {name: agreement(one, left_out.mean(0)) for name, one in (scores | {"pbrf": given_up}).items()}
    one_seed = np.mean([slow(scores["b"], one) for one in left_out], axis=0)
    assert (found.loo_one_seed["b"].spearman, found.loo_one_seed["b"].pearson) == pytest.approx(tuple(one_seed))
    assert found.loo_ceiling == split_half(left_out)


def test_the_report_says_every_figure_and_what_a_score_means() -> None:
    given_up = table(2, 3, 8)
    report = describe(judge({"full": given_up, "nothing": -given_up}, given_up, given_up, np.stack([given_up, given_up])))
    lines = report.splitlines()
    assert lines[1].split() == "full 1.00 / 1.00 1.00 / 1.00 1.00 / 1.00".split()
    assert lines[2].split() == "nothing -1.00 / -1.00 -1.00 / -1.00 -1.00 / -1.00".split()
    assert lines[3].split() == "pbrf 1.00 / 1.00 1.00 / 1.00".split()
    assert lines[4].split() == "itself 1.00 / 1.00 1.00 / 1.00".split()
    assert lines[-1] == MEANING and "sensitivity around the final weights" in MEANING and "had the row never been seen" in MEANING


def test_what_does_not_fit_is_refused() -> None:
    good, left_out = table(0, 3, 8), table(1, 2, 3, 8)
    with pytest.raises(DataError, match=r"agreement: a \(3, 7\); expected \(3, 8\), queries by the rows asked about"):
        judge({"a": good[:, :7]}, good, good, left_out)
    with pytest.raises(DataError, match=r"agreement: left out \(2, 8\)"):
        judge({"a": good}, good, good, left_out[:, :2])
    with pytest.raises(DataError, match="with 1 seed; expected at least 2"):
        judge({"a": good}, good, good, left_out[:1])
