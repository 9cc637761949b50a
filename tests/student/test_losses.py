from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import entropy, pearsonr, rankdata, spearmanr
from torch import Tensor

from student.losses import (
    average_ranks,
    block_pearson_loss,
    cka_loss,
    coordinate_loss,
    list_net_loss,
    pair_weights,
    pearson,
    rank_net_loss,
    row_pearson_loss,
    signed_power,
    soft_spearman_loss,
    standardised,
    tail_weights,
)

Q, N = 5, 7
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
LOSSES: dict[str, Loss] = {
    "row_pearson": row_pearson_loss,
    "row_pearson, weighted": lambda scores, target, mask: row_pearson_loss(scores, target, mask, tail_weights(target, mask, 2.0)),
    "block_pearson": block_pearson_loss,
    "list_net": lambda scores, target, mask: list_net_loss(scores, target, mask, 0.7),
    "rank_net": lambda scores, target, mask: rank_net_loss(scores, target, mask, 0.7, 0.1),
    "soft_spearman": lambda scores, target, mask: soft_spearman_loss(scores, target, mask, 0.3),
}


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


def test_signed_power_changes_no_ranking_and_lifts_small_values() -> None:
    target = torch.tensor([-0.81, -0.01, 0.0, 0.04, 0.49], dtype=torch.float64)
    np.testing.assert_allclose(signed_power(target, 0.5).numpy(), [-0.9, -0.1, 0.0, 0.2, 0.7])
    np.testing.assert_array_equal(signed_power(target, 1.0).numpy(), target.numpy())
    np.testing.assert_array_equal(rankdata(signed_power(target, 0.3).numpy()), rankdata(target.numpy()))


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
def test_gradients_are_right_and_masked_pairs_have_none(loss: Loss) -> None:
    scores, target, mask = block(6)
    scores.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda values: loss(values, target, mask), (scores,))
    (gradient,) = torch.autograd.grad(loss(scores, target, mask), scores)
    assert bool((gradient[~mask] == 0).all()) and bool((gradient[mask] != 0).any())


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
def test_what_is_masked_does_not_matter(loss: Loss) -> None:
    scores, target, mask = block(7)
    other_scores, other_target = torch.where(mask, scores, 9.0), torch.where(mask, target, -9.0)
    torch.testing.assert_close(loss(scores, target, mask), loss(other_scores, other_target, mask), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["row_pearson", "row_pearson, weighted", "rank_net", "soft_spearman"])
def test_a_flat_row_of_either_side_gives_finite_gradients(name: str) -> None:
    scores, target, mask = block(9)
    scores[0], target[1] = 0.3, 0.3
    scores.requires_grad_(True)
    (gradient,) = torch.autograd.grad(LOSSES[name](scores, target, mask), scores)
    assert bool(torch.isfinite(gradient).all()) and bool((gradient[2:] != 0).any())


@pytest.mark.parametrize("name", ["row_pearson", "row_pearson, weighted", "soft_spearman"])
def test_level_and_scale_of_a_row_do_not_matter_but_those_of_rows_do_to_the_block(name: str) -> None:
    scores, target, mask = block(10)
    moved = scores * torch.arange(1.0, Q + 1)[:, None] + torch.arange(Q)[:, None]
    torch.testing.assert_close(LOSSES[name](moved, target, mask), LOSSES[name](scores, target, mask))
    torch.testing.assert_close(block_pearson_loss(3 * scores - 1, target, mask), block_pearson_loss(scores, target, mask))
    assert abs(block_pearson_loss(moved, target, mask) - block_pearson_loss(scores, target, mask)) > 0.01


def test_perfect_scores_cost_nothing_and_opposite_ones_most() -> None:
    _, target, mask = block(8)
    assert list_net_loss(target, target, mask, 0.7).item() == pytest.approx(0, abs=1e-9)
    for loss in (row_pearson_loss, block_pearson_loss):
        assert loss(target, target, mask).item() == pytest.approx(0, abs=1e-9)
        assert loss(-target, target, mask).item() == pytest.approx(2)
    assert soft_spearman_loss(target, target, mask, 1e-4).item() == pytest.approx(0, abs=1e-9)
    assert soft_spearman_loss(-target, target, mask, 1e-4).item() == pytest.approx(2)


@pytest.mark.parametrize("seed", range(3))
def test_weighted_pearson_equals_numpy_and_repeated_pairs(seed: int) -> None:
    scores, target, mask = block(seed)
    weights = torch.from_numpy(np.random.default_rng(seed).integers(1, 5, size=(Q, N)).astype(np.float64))
    rows = []
    for first, second, weight in zip(kept(scores, mask), kept(target, mask), kept(weights, mask), strict=True):
        cov = np.cov(first, second, aweights=weight)
        rows.append(cov[0, 1] / np.sqrt(cov[0, 0] * cov[1, 1]))
        repeats = weight.astype(int)
        assert rows[-1] == pytest.approx(pearsonr(np.repeat(first, repeats), np.repeat(second, repeats)).statistic)
    np.testing.assert_allclose(pearson(scores, target, mask, dim=1, weights=weights).numpy(), rows, rtol=1e-9)
    assert row_pearson_loss(scores, target, mask, weights).item() == pytest.approx(1 - np.mean(rows), rel=1e-9)
    whole = np.cov(scores[mask].numpy(), target[mask].numpy(), aweights=weights[mask].numpy())
    expected = 1 - whole[0, 1] / np.sqrt(whole[0, 0] * whole[1, 1])
    assert block_pearson_loss(scores, target, mask, weights).item() == pytest.approx(expected, rel=1e-9)


def test_only_ratios_of_weights_matter_and_a_weight_of_zero_masks() -> None:
    scores, target, mask = block(11)
    weights = torch.rand(Q, N, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.1
    one, every = torch.ones_like(weights), torch.ones_like(mask)
    torch.testing.assert_close(row_pearson_loss(scores, target, mask, 0.01 * weights), row_pearson_loss(scores, target, mask, weights))
    torch.testing.assert_close(row_pearson_loss(scores, target, every, one * mask), row_pearson_loss(scores, target, mask))
    assert abs(row_pearson_loss(scores, target, mask, weights) - row_pearson_loss(scores, target, mask)) > 1e-3


def test_average_ranks_equal_scipy_under_ties() -> None:
    _, target, mask = block(12)
    found = average_ranks(target, mask)
    for ranks, values in zip(kept(found, mask), kept(target, mask), strict=True):
        np.testing.assert_array_equal(ranks, rankdata(values))
    assert bool((found[~mask] == 0).all())
    torch.testing.assert_close(average_ranks(target.T, mask.T), average_ranks(target.T.contiguous(), mask.T.contiguous()), rtol=0, atol=0)


def test_standardised_rows_equal_numpy() -> None:
    scores, _, mask = block(13)
    found = standardised(scores, mask)
    for row, values in zip(kept(found, mask), kept(scores, mask), strict=True):
        np.testing.assert_allclose(row, (values - values.mean()) / values.std())
    assert bool((found[~mask] == 0).all())


def test_list_net_loss_equals_scipy_and_ignores_a_level() -> None:
    scores, target, mask = block(14)
    divergences = [
        entropy(np.exp(wanted / 0.3), np.exp(predicted / 0.3))
        for predicted, wanted in zip(kept(scores, mask), kept(target, mask), strict=True)
    ]
    assert list_net_loss(scores, target, mask, 0.3).item() == pytest.approx(np.mean(divergences), rel=1e-9)
    level = torch.arange(Q)[:, None]
    torch.testing.assert_close(list_net_loss(scores + level, target - level, mask, 0.3), list_net_loss(scores, target, mask, 0.3))


@pytest.mark.parametrize("least_gap", [0.0, 0.1, 1.5])
def test_rank_net_loss_equals_loops(least_gap: float) -> None:
    random = np.random.default_rng(15)
    scores, target = torch.from_numpy(random.normal(size=(3, 40))), torch.from_numpy(np.round(random.normal(size=(3, 40)), 1))
    mask = torch.from_numpy(random.random((3, 40)) > 0.2)
    target[0, 0], mask[0, 0] = 60.0, True
    rows, largest = [], 0.0
    for predicted, wanted in zip(kept(scores, mask), kept(target, mask), strict=True):
        wanted = (wanted - wanted.mean()) / wanted.std()
        losses = weights = 0.0
        for i, j in np.ndindex(len(wanted), len(wanted)):
            gap = wanted[i] - wanted[j]
            if gap > 0 and gap >= least_gap:
                losses -= min(gap, 5) * np.log(1 / (1 + np.exp(-(predicted[i] - predicted[j]) / 0.4)))
                weights += min(gap, 5)
                largest = max(largest, gap)
        rows.append(losses / weights)
    assert largest > 5, "no gap is clipped here: the test would not see a clip that is missing"
    assert rank_net_loss(scores, target, mask, 0.4, least_gap).item() == pytest.approx(np.mean(rows), rel=1e-9)


def test_rank_net_of_one_pair_is_its_logistic_loss_whatever_the_level_and_scale_of_targets() -> None:
    scores, mask = torch.tensor([[0.3, 0.1]], dtype=torch.float64), torch.ones(1, 2, dtype=torch.bool)
    for target in ([[1.0, 0.0]], [[-3.0, -7.0]]):
        found = rank_net_loss(scores, torch.tensor(target, dtype=torch.float64), mask, 0.1, 0.1)
        assert found.item() == pytest.approx(np.log(1 + np.exp(-2)))
    assert rank_net_loss(scores, torch.ones(1, 2, dtype=torch.float64), mask, 0.1, 0.1).item() == 0


@pytest.mark.parametrize("seed", range(3))
def test_soft_spearman_is_spearman_when_cold(seed: int) -> None:
    scores, target, mask = block(seed)
    scores[:, 2] = scores[:, 3]
    rhos = [spearmanr(first, second).statistic for first, second in zip(kept(scores, mask), kept(target, mask), strict=True)]
    assert soft_spearman_loss(scores, target, mask, 1e-5).item() == pytest.approx(1 - np.mean(rhos), rel=1e-9)


def test_soft_spearman_equals_loops_and_sees_only_ranks_of_the_target() -> None:
    scores, target, mask = block(16)
    rows = []
    for predicted, wanted in zip(kept(scores, mask), kept(target, mask), strict=True):
        unit = (predicted - predicted.mean()) / predicted.std()
        soft = [sum(1 / (1 + np.exp(-(one - other) / 0.5)) for other in unit) for one in unit]
        rows.append(pearsonr(soft, rankdata(wanted)).statistic)
    assert soft_spearman_loss(scores, target, mask, 0.5).item() == pytest.approx(1 - np.mean(rows), rel=1e-9)
    assert torch.equal(soft_spearman_loss(scores, target.exp(), mask, 0.5), soft_spearman_loss(scores, target, mask, 0.5))


def test_tail_weights_equal_loops_and_are_of_mean_one() -> None:
    _, target, mask = block(17)
    weights = tail_weights(target, mask, 2.0)
    for found, values in zip(kept(weights, mask), kept(target, mask), strict=True):
        n = len(values)
        raw = np.array([np.cosh(2.0 * (rank - (n + 1) / 2) / ((n - 1) / 2)) for rank in rankdata(values)])
        np.testing.assert_allclose(found, raw / raw.mean())
        assert found.mean() == pytest.approx(1)
    assert bool((weights[~mask] == 0).all())


def test_tail_weights_of_three_and_their_symmetries() -> None:
    _, target, mask = block(18)
    three = tail_weights(torch.tensor([[5.0, -1.0, 0.0]], dtype=torch.float64), torch.ones(1, 3, dtype=torch.bool), 1.5)[0]
    np.testing.assert_allclose(three / three[2], [np.cosh(1.5), np.cosh(1.5), 1])
    weights = tail_weights(target, mask, 3.0)
    assert torch.equal(tail_weights(target.exp(), mask, 3.0), weights), "not a function of ranks alone"
    torch.testing.assert_close(tail_weights(-target, mask, 3.0), weights)
    torch.testing.assert_close(tail_weights(target, mask, 0.0), mask.double())
    assert tail_weights(target[:, :1], mask[:, :1], 3.0).tolist() == mask[:, :1].double().tolist()


def test_pair_weights_equal_loops_whatever_the_unit_and_stay_below_two() -> None:
    deviation, _, mask = block(19)
    deviation = deviation.abs()
    deviation[0, 0], mask[0, 0] = 50.0, True  # one wild pair: all the others are certain beside it
    variances = deviation[mask].numpy() ** 2
    raw = np.array([1 / (variance + variances.mean()) for variance in variances])
    found = pair_weights(deviation, mask)
    np.testing.assert_allclose(found[mask].numpy(), raw / raw.mean())
    assert bool((found[~mask] == 0).all()) and found.max() <= 2
    torch.testing.assert_close(pair_weights(1e-3 * deviation, mask), found)
    torch.testing.assert_close(pair_weights(torch.zeros_like(deviation), mask), mask.double())


def vectors(seed: int, dim: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(9, dim)))


def test_coordinate_loss_equals_loops_and_ignores_lengths() -> None:
    embeddings, coordinates = vectors(0, 4), vectors(1, 4)
    pairs = zip(embeddings.numpy(), coordinates.numpy(), strict=True)
    cosines = [first @ second / np.linalg.norm(first) / np.linalg.norm(second) for first, second in pairs]
    assert coordinate_loss(embeddings, coordinates).item() == pytest.approx(1 - np.mean(cosines), rel=1e-9)
    lengths = torch.arange(1.0, 10.0)[:, None]
    torch.testing.assert_close(coordinate_loss(embeddings, coordinates * lengths), coordinate_loss(embeddings, coordinates))
    assert coordinate_loss(embeddings, 3 * embeddings).item() == pytest.approx(0, abs=1e-12)
    assert coordinate_loss(embeddings, -embeddings).item() == pytest.approx(2)


def test_cka_loss_equals_centring_matrices() -> None:
    embeddings, coordinates = vectors(2, 4), vectors(3, 6)
    centring = np.eye(9) - 1 / 9

    def alignment(first: Tensor, second: Tensor) -> float:
        grams = [side.numpy() @ side.numpy().T for side in (first, second)]
        return float(np.trace(grams[0] @ centring @ grams[1] @ centring))

    scale = np.sqrt(alignment(embeddings, embeddings) * alignment(coordinates, coordinates))
    assert cka_loss(embeddings, coordinates).item() == pytest.approx(1 - alignment(embeddings, coordinates) / scale, rel=1e-9)


def test_cka_loss_sees_neither_rotation_nor_scale_nor_shift_but_a_stretch() -> None:
    embeddings = vectors(4, 5)
    rotation = torch.linalg.qr(vectors(5, 5)[:5])[0]
    assert cka_loss(embeddings, -3 * embeddings @ rotation + 2).item() == pytest.approx(0, abs=1e-9)
    assert cka_loss(embeddings, embeddings * torch.arange(1.0, 6.0)).item() > 0.01


@pytest.mark.parametrize("loss", [coordinate_loss, cka_loss])
def test_gradients_of_embeddings_are_right(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    embeddings, coordinates = vectors(6, 4).requires_grad_(True), vectors(7, 4)
    assert torch.autograd.gradcheck(lambda values: loss(values, coordinates), (embeddings,))
    assert bool((torch.autograd.grad(loss(embeddings, coordinates), embeddings)[0] != 0).any())
