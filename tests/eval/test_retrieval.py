from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from eval.retrieval import average_precision, hit_ranks, recall_at, reciprocal_rank


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", [0.05, 0.3, 1.0])
def test_average_precision_equals_scikit_learn_without_ties(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    scores, linked = rng.normal(size=40), rng.random(40) < share
    linked[seed] = True
    assert average_precision(hit_ranks(scores, linked)) == pytest.approx(average_precision_score(linked, scores), abs=1e-12)


def test_hand_case() -> None:
    #                 ranks: 2    5    1    4    3    6
    scores = np.array([-1.0, -7, 2.5, -3, -2, -1e9])
    ranks = hit_ranks(scores, np.array([True, False, False, True, False, True]))
    assert ranks.tolist() == [2, 4, 6]
    assert reciprocal_rank(ranks) == 1 / 2
    assert average_precision(ranks) == pytest.approx((1 / 2 + 2 / 4 + 3 / 6) / 3)
    # of three linked rows, the best two can hold no more than two
    assert [recall_at(ranks, k) for k in (1, 2, 3, 4, 6, 50)] == pytest.approx([0, 1 / 3, 1 / 3, 2 / 3, 1, 1])


def test_recall_is_of_all_linked_rows_though_fewer_are_inspected() -> None:
    assert recall_at(hit_ranks(np.arange(8.0), np.ones(8, dtype=bool)), 2) == 2 / 8


@pytest.mark.parametrize("value", [0.0, -0.0, -3.5])
def test_ties_keep_the_row_order(value: float) -> None:
    linked = np.array([False, True, False, False, True])
    assert hit_ranks(np.full(5, value), linked).tolist() == [2, 5]
    assert hit_ranks(np.array([0.0, -0.0, 9, 0, -0.0]), linked).tolist() == [3, 5]


@given(st.lists(st.tuples(st.integers(-9, 9), st.booleans()), min_size=1, max_size=20), st.integers(1, 20))
def test_equals_a_walk_down_the_list(pairs: list[tuple[int, bool]], k: int) -> None:
    scores, linked = np.array([pair[0] for pair in pairs], dtype=np.float64), np.array([pair[1] for pair in pairs])
    assume(linked.any())
    walk = [pairs[place][1] for place in sorted(range(len(pairs)), key=lambda place: (-pairs[place][0], place))]
    precisions = [sum(walk[: place + 1]) / (place + 1) for place, hit in enumerate(walk) if hit]
    for moved in (scores, np.exp(scores) - 2, 1e-300 * scores):
        ranks = hit_ranks(moved, linked)
        assert average_precision(ranks) == pytest.approx(sum(precisions) / sum(walk))
        assert reciprocal_rank(ranks) == 1 / (1 + walk.index(True))
        assert recall_at(ranks, k) == sum(walk[:k]) / sum(walk)
