from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import softmax
from scipy.stats import entropy, pearsonr
from torch import Tensor
from torch.nn.functional import normalize

from influcoder.errors import ConfigError
from influcoder.program import parse_config
from student import config
from student.config import RecipeConfig, StudentConfig
from student.coordinates import principal_coordinates
from student.data import Block
from student.losses import (
    block_pearson_loss,
    cka_loss,
    coordinate_loss,
    list_net_loss,
    pair_weights,
    rank_net_loss,
    row_pearson_loss,
    signed_power,
    soft_spearman_loss,
    tail_weights,
)
from student.objective import LEAST_GAP, LOSSES, SOFT_RANK_TEMPERATURE, block_loss, weights_of

TEXTS, WIDTH = 14, 8
EVERY = dict(zip(config.LOSSES, (0.5, 1.0, 0.25, 2.0, 0.75, 1.5, 3.0), strict=True))


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def make_block(rows_ask: bool, second_seed: bool = False) -> Block:
    """Return rows that ask each other, or 5 queries and 9 rows; in float64."""
    features = normalize(drawn(0, TEXTS, 20), dim=1)
    queries, candidates = (torch.arange(TEXTS),) * 2 if rows_ask else (torch.arange(5), torch.arange(5, TEXTS))
    noisy = normalize(features + 0.1 * drawn(1, TEXTS, 20), dim=1)
    return Block(
        tokens={},
        queries=queries,
        candidates=candidates,
        target=features[queries] @ features[candidates].T,
        second_target=noisy[queries] @ noisy[candidates].T if second_seed else None,
        coordinates=principal_coordinates(features, WIDTH).coordinates[candidates],
    )


def embeddings() -> Tensor:
    return normalize(drawn(2, TEXTS, WIDTH), dim=1)


def seen(block: Block, unit: Tensor, recipe: RecipeConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Return scores, what is learnt, and the mask."""
    full = recipe.objective == "full_block"
    target = signed_power(block.target, recipe.target_exponent) if full else block.target
    return unit[block.queries] @ unit[block.candidates].T, target, block.mask


def direct(name: str, unit: Tensor, block: Block, recipe: RecipeConfig) -> Tensor:
    """Return one loss, called as such."""
    scores, target, mask = seen(block, unit, recipe)
    candidates, coordinates = unit[block.candidates], block.coordinates[:, : unit.shape[1]]
    return {
        "row_pearson": lambda: row_pearson_loss(scores, target, mask),
        "block_pearson": lambda: block_pearson_loss(scores, target, mask),
        "list_net": lambda: list_net_loss(scores, target, mask, recipe.temperature),
        "rank_net": lambda: rank_net_loss(scores, target, mask, recipe.temperature, LEAST_GAP),
        "soft_spearman": lambda: soft_spearman_loss(scores, target, mask, SOFT_RANK_TEMPERATURE),
        "cka": lambda: cka_loss(candidates, coordinates),
        "coordinates": lambda: coordinate_loss(candidates, coordinates),
    }[name]()


def test_the_names_of_the_config_are_those_of_the_losses() -> None:
    assert tuple(LOSSES) == config.LOSSES


@pytest.mark.parametrize("rows_ask", [True, False])
@pytest.mark.parametrize("objective", ["full_block", "reference"])
@pytest.mark.parametrize("name", config.LOSSES)
def test_a_named_loss_is_called_with_what_it_needs_and_weighed(name: str, objective: Any, rows_ask: bool) -> None:
    block, unit = make_block(rows_ask), embeddings()
    recipe = RecipeConfig(objective=objective, losses={name: 0.3}, temperature=0.2, target_exponent=0.7)
    torch.testing.assert_close(block_loss(unit, block, recipe), 0.3 * direct(name, unit, block, recipe))


def test_losses_add_up() -> None:
    block, unit, recipe = make_block(True), embeddings(), RecipeConfig(losses=EVERY)
    expected = sum(weight * direct(name, unit, block, recipe) for name, weight in EVERY.items())
    assert block_loss(unit, block, recipe).item() == pytest.approx(float(expected))


@pytest.mark.parametrize("rows_ask", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("objective", ["full_block", "reference"])
def test_without_names_the_objective_says_which_to_the_last_bit(objective: Any, share: float, rows_ask: bool) -> None:
    block = make_block(rows_ask)
    block = block._replace(target=block.target.float())
    recipe = RecipeConfig(objective=objective, row_weight=share, kl_weight=share)
    first, again = (embeddings().float().requires_grad_(True) for _ in range(2))
    scores, target, mask = seen(block, first, recipe)
    if objective == "full_block":
        expected = share * row_pearson_loss(scores, target, mask) + (1 - share) * block_pearson_loss(scores, target, mask)
    else:
        divergence = list_net_loss(scores, target, mask, recipe.temperature)
        expected = (1 - share) * block_pearson_loss(scores, target, mask) + share * divergence
    found = block_loss(again, block, recipe)
    assert torch.equal(found, expected)
    assert torch.equal(torch.autograd.grad(found, again)[0], torch.autograd.grad(expected, first)[0])


def kept(values: Tensor, mask: Tensor) -> list[NDArray[np.float64]]:
    return [row[on] for row, on in zip(values.numpy(), mask.numpy(), strict=True)]


def test_the_objectives_equal_loops() -> None:
    block, unit = make_block(True), embeddings()
    scores, mask = unit @ unit.T, block.mask
    powers = block.target.sign() * block.target.abs().sqrt()
    rows = [pearsonr(*pair).statistic for pair in zip(kept(scores, mask), kept(powers, mask), strict=True)]
    expected = 0.3 * (1 - np.mean(rows)) + 0.7 * (1 - pearsonr(scores[mask], powers[mask]).statistic)
    assert block_loss(unit, block, RecipeConfig(row_weight=0.3)).item() == pytest.approx(expected)
    pairs = zip(kept(block.target, mask), kept(scores, mask), strict=True)
    divergences = [entropy(softmax(wanted / 0.2), softmax(predicted / 0.2)) for wanted, predicted in pairs]
    expected = 0.6 * (1 - pearsonr(scores[mask], block.target[mask]).statistic) + 0.4 * np.mean(divergences)
    recipe = RecipeConfig(objective="reference", kl_weight=0.4, temperature=0.2)
    assert block_loss(unit, block, recipe).item() == pytest.approx(expected)


@pytest.mark.parametrize("losses", [{}, {"row_pearson": 0.5, "block_pearson": 0.5, "cka": 1.0}])
@pytest.mark.parametrize("sharpness", [0.0, 1.5])
@pytest.mark.parametrize("second_seed", [True, False])
def test_pairs_are_weighed_in_either_pearson(losses: dict[str, float], sharpness: float, second_seed: bool) -> None:
    block, unit = make_block(True, second_seed), embeddings()
    recipe = RecipeConfig(losses=losses, tail_sharpness=sharpness)
    scores, target, mask = seen(block, unit, recipe)
    weights = tail_weights(target, mask, sharpness)
    if block.second_target is not None:  # the deviation of what is learnt, not of the cosines
        weights = weights * pair_weights((target - signed_power(block.second_target, 0.5)).abs(), mask)
    expected = 0.5 * row_pearson_loss(scores, target, mask, weights) + 0.5 * block_pearson_loss(scores, target, mask, weights)
    expected = expected + (cka_loss(unit, block.coordinates) if losses else 0)
    torch.testing.assert_close(block_loss(unit, block, recipe), expected)
    if sharpness or second_seed:
        assert abs(expected - block_loss(unit, make_block(True), replace(recipe, tail_sharpness=0.0))) > 1e-4


def test_matryoshka_is_the_mean_over_renormalised_prefixes() -> None:
    block, unit, recipe = make_block(False), embeddings(), RecipeConfig(losses=EVERY)
    expected = []
    for width in (WIDTH, 3, 5):
        prefix = unit[:, :width] / unit[:, :width].norm(dim=1, keepdim=True)
        expected.append(sum(float(weight * direct(name, prefix, block, recipe)) for name, weight in EVERY.items()))
    assert block_loss(unit, block, replace(recipe, matryoshka=[3, 5])).item() == pytest.approx(np.mean(expected))


def gradient(recipe: RecipeConfig) -> Tensor:
    """Return that of a block's embeddings."""
    unit = embeddings().requires_grad_(True)
    (found,) = torch.autograd.grad(block_loss(unit, make_block(True), recipe), unit)
    return found


def test_the_whole_width_among_the_dimensions_changes_rounding_alone() -> None:
    plain, listed = RecipeConfig(losses=EVERY), RecipeConfig(losses=EVERY, matryoshka=[WIDTH])
    block, unit = make_block(True), embeddings()
    torch.testing.assert_close(block_loss(unit, block, listed), block_loss(unit, block, plain))
    radial = (gradient(plain) * unit).sum(1, keepdim=True) * unit  # a prefix is normalised once more, which takes out half of this
    torch.testing.assert_close(gradient(listed), gradient(plain) - radial / 2)


def test_the_first_dimensions_get_the_most_gradient() -> None:
    plain, listed = (gradient(RecipeConfig(matryoshka=widths)).norm(dim=0) for widths in ([], [2, 4]))
    shares = [(found[:2].mean() / found[4:].mean()).item() for found in (plain, listed)]
    assert shares[1] > 2 * shares[0], shares
    torch.testing.assert_close(listed[4:], plain[4:] / 3)  # the rest is in one of three losses


@pytest.mark.parametrize("matryoshka", [[], [4]])
@pytest.mark.parametrize("name", config.LOSSES)
def test_every_loss_falls(name: str, matryoshka: list[int]) -> None:
    block, free = make_block(True), embeddings().requires_grad_(True)
    recipe = RecipeConfig(losses={name: 1.0}, matryoshka=matryoshka)
    optimizer = torch.optim.Adam([free], lr=0.05)
    costs = []
    for _ in range(21):
        optimizer.zero_grad()
        cost = block_loss(normalize(free, dim=1), block, recipe)
        cost.backward()
        optimizer.step()
        costs.append(cost.item())
    assert costs[-1] < 0.7 * costs[0], costs


def test_more_dimensions_than_there_are_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"recipe\.matryoshka: \[4, 9\]; expected no more than the encoder's 8 dimensions"):
        block_loss(embeddings(), make_block(True), RecipeConfig(matryoshka=[4, 9]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"losses": {"ranknet": 1.0}}, rf"recipe\.losses: ranknet 1\.0; expected a positive weight for any of {', '.join(config.LOSSES)}$"),
        ({"losses": {"cka": 1.0, "rank_net": 0.0}}, r"recipe\.losses: rank_net 0\.0; expected a positive weight for any of row_pearson, "),
        ({"losses": {"cka": -1.0}}, r"recipe\.losses: cka -1\.0; expected"),
        ({"losses": {"cka": float("nan")}}, r"recipe\.losses: cka nan; expected"),
        ({"tail_sharpness": -0.5}, r"recipe: tail_sharpness -0\.5, matryoshka \[\]; expected 0 or more, 2 dimensions or more each"),
        ({"matryoshka": [64, 1]}, r"recipe: tail_sharpness 0\.0, matryoshka \[64, 1\]; expected"),
        ({"losses": {"cka": 1.0}, "uncertainty": True}, r"uncertainty True with losses cka; expected row_pearson or block_pearson among"),
        ({"losses": {"rank_net": 1.0}, "tail_sharpness": 2.0}, r"recipe: tail_sharpness 2\.0, uncertainty False with losses rank_net; "),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        RecipeConfig(**settings)
    assert "\n" not in str(caught.value)


def test_the_command_line_takes_losses_by_name() -> None:
    given = ["--output", "o", "--teacher", "t", "--encoder.path", "e", "--recipe.losses.rank_net", "1e-1", "--recipe.losses.cka", "2"]
    parsed, _ = parse_config(StudentConfig, [*given, "--recipe.matryoshka", "[64, 128]"], "student")
    assert weights_of(parsed.recipe) == {"rank_net": 0.1, "cka": 2.0} and parsed.recipe.matryoshka == [64, 128]
