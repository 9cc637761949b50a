from __future__ import annotations

import numpy as np
import pytest
import torch

from student.active import JITTER, choose_rows


def slow(vectors: np.ndarray, count: int) -> list[int]:
    """Pick by the posterior variance of a ridge regression, solved anew at every step."""
    centred = vectors - vectors.mean(0)
    noise, chosen = JITTER * (centred**2).sum(1).mean(), list[int]()
    for _ in range(count):
        known = centred[chosen]
        gain = np.linalg.solve(known @ known.T + noise * np.eye(len(known)), known @ centred.T) if chosen else np.zeros((0, len(centred)))
        variance = (centred**2).sum(1) - ((centred @ known.T) * gain.T).sum(1)
        variance[chosen] = -np.inf
        chosen.append(int(variance.argmax()))
    return chosen


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_picks_are_the_largest_posterior_variances(seed: int) -> None:
    vectors = np.random.default_rng(seed).normal(size=(60, 8)) * np.linspace(3, 0.2, 8)
    assert choose_rows(torch.from_numpy(vectors), 20).tolist() == slow(vectors, 20)


def test_a_copy_is_chosen_late() -> None:
    vectors = torch.eye(6)[[0, 0, 1, 2, 3, 4, 5]]
    assert sorted(choose_rows(vectors, 7)[:6].tolist())[:2] != [0, 1]


def test_all_rows_are_chosen_once() -> None:
    assert sorted(choose_rows(torch.randn(9, 3, generator=torch.Generator().manual_seed(0)), 9).tolist()) == list(range(9))


@pytest.mark.parametrize("count", [0, 10])
def test_other_counts_are_refused(count: int) -> None:
    with pytest.raises(ValueError, match="expected 1 to 9"):
        choose_rows(torch.randn(9, 3), count)
