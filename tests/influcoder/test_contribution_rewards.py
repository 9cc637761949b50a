from __future__ import annotations

import itertools
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from influcoder.contributions.rewards import largest_remainder

WEIGHTS = st.lists(st.integers(0, 10**12) | st.integers(0, 5), min_size=1, max_size=30)
BUDGETS = st.integers(1, 10**24) | st.integers(1, 50)


@given(WEIGHTS, BUDGETS)
def test_rewards_add_up_keep_the_order_and_are_within_one_unit_of_proportional(weights: list[int], budget: int) -> None:
    rewards = largest_remainder(weights, budget)
    if sum(weights) == 0:
        assert rewards == [0] * len(weights), "nothing is paid where nobody's bound is above zero"
        return
    assert sum(rewards) == budget
    for weight, reward in zip(weights, rewards, strict=True):
        assert abs(reward - Fraction(budget * weight, sum(weights))) < 1
        assert weight > 0 or reward == 0
    ordered = sorted(zip(weights, rewards, strict=True))
    assert all(low[1] <= high[1] for low, high in itertools.pairwise(ordered) if low[0] < high[0])


@pytest.mark.parametrize(
    ("weights", "budget", "rewards"),
    [([1, 1, 1], 10, [4, 3, 3]), ([5, 3, 1], 7, [4, 2, 1]), ([0, 7], 3, [0, 3]), ([47, 16, 15, 12, 6, 3, 1], 10, [5, 2, 1, 1, 1, 0, 0])],
)
def test_splits_done_by_hand(weights: list[int], budget: int, rewards: list[int]) -> None:
    assert largest_remainder(weights, budget) == rewards


def test_negative_weights_are_a_bug_of_the_caller() -> None:
    with pytest.raises(ValueError, match="expected none below 0"):
        largest_remainder([3, -1], 10)
