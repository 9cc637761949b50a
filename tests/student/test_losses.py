from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import pearsonr, rankdata
from torch import Tensor

from student.losses import full_block_loss, pearson, reference_loss, signed_power

Q, N = 5, 7


def block(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return scores, a target with ties, and a mask, in float64."""
    random = np.random.default_rng(seed)
    mask = random.random((Q, N)) > 0.2
    target = np.round(random.normal(size=(Q, N)), 1)
    target[:, 1] = target[:, 0]
    return torch.from_numpy(random.normal(size=(Q, N))), torch.from_numpy(target), torch.from_numpy(mask)


def kept(values: Tensor, mask: Tensor) -> list[NDArray[np.float64]]:
    return [row[on] for row, on in zip(values.numpy(), mask.numpy(), strict=True)]


@pytest.mark.parametrize("seed", range(3))
def test_pearson_equals_scipy_by_row_and_over_the_block(seed: int) -> None:
    scores, target, mask = block(seed)
    by_row = [pearsonr(first, second).statistic for first, second in zip(kept(scores, mask), kept(target, mask), strict=True)]
    np.testing.assert_allclose(pearson(scores, target, mask, dim=1).numpy(), by_row, rtol=1e-9)
    whole = pearsonr(scores[mask].numpy(), target[mask].numpy()).statistic
    np.testing.assert_allclose(pearson(scores, target, mask, dim=(0, 1)).item(), whole, rtol=1e-9)


def test_pearson_of_a_constant_is_zero_and_its_gradient_finite() -> None:
    flat = torch.ones(2, 3, dtype=torch.float64, requires_grad=True)
    found = pearson(flat, torch.arange(6.0, dtype=torch.float64).reshape(2, 3), torch.ones(2, 3, dtype=torch.bool), dim=1)
    assert found.tolist() == [0, 0]
    found.sum().backward()
    assert flat.grad is not None and bool(torch.isfinite(flat.grad).all())


@pytest.mark.parametrize("row_weight", [0.0, 0.3, 1.0])
def test_full_block_loss_equals_loops(row_weight: float) -> None:
    scores, target, mask = block(4)
    rows = [pearsonr(first, second).statistic for first, second in zip(kept(scores, mask), kept(target, mask), strict=True)]
    whole = pearsonr(scores[mask].numpy(), target[mask].numpy()).statistic
    expected = row_weight * (1 - np.mean(rows)) + (1 - row_weight) * (1 - whole)
    np.testing.assert_allclose(full_block_loss(scores, target, mask, row_weight).item(), expected, rtol=1e-9)


def test_signed_power_changes_no_ranking_and_lifts_small_values() -> None:
    target = torch.tensor([-0.81, -0.01, 0.0, 0.04, 0.49], dtype=torch.float64)
    np.testing.assert_allclose(signed_power(target, 0.5).numpy(), [-0.9, -0.1, 0.0, 0.2, 0.7])
    np.testing.assert_array_equal(signed_power(target, 1.0).numpy(), target.numpy())
    np.testing.assert_array_equal(rankdata(signed_power(target, 0.3).numpy()), rankdata(target.numpy()))


@pytest.mark.parametrize("kl_weight", [0.0, 0.4, 1.0])
def test_reference_loss_equals_loops(kl_weight: float) -> None:
    scores, target, mask = block(5)
    divergences = []
    for predicted, wanted in zip(kept(scores, mask), kept(target, mask), strict=True):
        p, q = (np.exp(values / 0.7) / np.exp(values / 0.7).sum() for values in (wanted, predicted))
        divergences.append(sum(p[i] * np.log(p[i] / q[i]) for i in range(len(p))))
    whole = pearsonr(scores[mask].numpy(), target[mask].numpy()).statistic
    expected = (1 - kl_weight) * (1 - whole) + kl_weight * np.mean(divergences)
    np.testing.assert_allclose(reference_loss(scores, target, mask, kl_weight, 0.7).item(), expected, rtol=1e-9)


@pytest.mark.parametrize("objective", ["full_block", "reference"])
def test_gradients_are_right_and_masked_pairs_have_none(objective: str) -> None:
    scores, target, mask = block(6)
    scores.requires_grad_(True)

    def loss(values: Tensor) -> Tensor:
        if objective == "full_block":
            return full_block_loss(values, target, mask, 0.5)
        return reference_loss(values, target, mask, 0.5, 0.7)

    assert torch.autograd.gradcheck(loss, (scores,))
    (gradient,) = torch.autograd.grad(loss(scores), scores)
    assert bool((gradient[~mask] == 0).all()) and bool((gradient[mask] != 0).any())


def test_what_is_masked_does_not_matter() -> None:
    scores, target, mask = block(7)
    other_scores, other_target = torch.where(mask, scores, 9.0), torch.where(mask, target, -9.0)
    for first, second in (
        (full_block_loss(scores, target, mask, 0.5), full_block_loss(other_scores, other_target, mask, 0.5)),
        (reference_loss(scores, target, mask, 0.5, 0.7), reference_loss(other_scores, other_target, mask, 0.5, 0.7)),
    ):
        torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-12)


def test_perfect_scores_cost_nothing_and_opposite_ones_most() -> None:
    _, target, mask = block(8)
    assert reference_loss(target, target, mask, 0.5, 0.7).item() == pytest.approx(0, abs=1e-9)
    assert full_block_loss(target, target, mask, 0.5).item() == pytest.approx(0, abs=1e-9)
    assert full_block_loss(-target, target, mask, 0.5).item() == pytest.approx(2)
