"""What a block costs: the losses that a recipe names, weighed and added.

A recipe without names has its objective's:

    full_block  row_weight * row_pearson + (1 - row_weight) * block_pearson: each query's order, and the levels between queries
    reference   (1 - kl_weight) * block_pearson + kl_weight * list_net: Influcoder, arXiv 2606.13668, section 3

The objective also says what is learnt: full_block the teacher's scores t as sign(t) |t|^target_exponent, reference as they are.
Legend: Q queries, N candidates, D dimensions of an embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from influcoder.errors import ConfigError
from student.config import RecipeConfig
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

LEAST_GAP = 0.1
"""standard deviations between two targets of a row from which rank_net compares them (AirRep, arXiv 2505.18513)"""
SOFT_RANK_TEMPERATURE = 0.1
"""of soft_spearman: standard deviations of a row's scores, not a cosine as the recipe's temperature is"""


class View(NamedTuple):
    """A block as its losses see it, at one width of the embeddings."""

    embeddings: Tensor
    """(N, D) of the candidates, of length 1"""
    coordinates: Tensor
    """(N, D) the teacher's; (N, 0) where no loss asks for them"""
    scores: Tensor
    """(Q, N)"""
    target: Tensor
    """(Q, N)"""
    mask: Tensor
    """(Q, N)"""
    weights: Tensor | None
    """(Q, N) of pairs"""


LOSSES: dict[str, Callable[[View, float], Tensor]] = {
    "row_pearson": lambda view, _: row_pearson_loss(view.scores, view.target, view.mask, view.weights),
    "block_pearson": lambda view, _: block_pearson_loss(view.scores, view.target, view.mask, view.weights),
    "list_net": lambda view, temperature: list_net_loss(view.scores, view.target, view.mask, temperature),
    "rank_net": lambda view, temperature: rank_net_loss(view.scores, view.target, view.mask, temperature, LEAST_GAP),
    "soft_spearman": lambda view, _: soft_spearman_loss(view.scores, view.target, view.mask, SOFT_RANK_TEMPERATURE),
    "cka": lambda view, _: cka_loss(view.embeddings, view.coordinates),
    "coordinates": lambda view, _: coordinate_loss(view.embeddings, view.coordinates),
}
"""by the recipe's names; functions of a view and the recipe's temperature"""


def block_loss(embeddings: Tensor, block: Block, recipe: RecipeConfig) -> Tensor:
    """Return what a block's unit embeddings (texts, D) cost: the mean over D and the widths of `matryoshka`, first dimensions alone.

    Kusupati et al. 2022, arXiv 2205.13147: the prefixes of one embedding are trained together, each of length 1.

    Raises:
        ConfigError: when one of these widths is larger than D.
    """
    width = embeddings.shape[1]
    if max(recipe.matryoshka, default=0) > width:
        raise ConfigError(f"recipe.matryoshka: {recipe.matryoshka}; expected no more than the encoder's {width} dimensions; leave out more")
    units = [embeddings, *(torch.nn.functional.normalize(embeddings[:, :narrow], dim=1) for narrow in recipe.matryoshka)]
    views = [_view(unit, block, recipe) for unit in units]
    weights = weights_of(recipe)
    costs = [weight * LOSSES[name](view, recipe.temperature) for view in views for name, weight in weights.items()]
    return torch.stack(costs).sum() / len(views)


def weights_of(recipe: RecipeConfig) -> dict[str, float]:
    """Return the weights of the losses by name."""
    if recipe.losses:
        return recipe.losses
    if recipe.objective == "full_block":
        return {"row_pearson": recipe.row_weight, "block_pearson": 1 - recipe.row_weight}
    return {"list_net": recipe.kl_weight, "block_pearson": 1 - recipe.kl_weight}  # a gradient's last bits depend on the order


def _view(embeddings: Tensor, block: Block, recipe: RecipeConfig) -> View:
    device, candidates = embeddings.device, embeddings[block.candidates]

    def learnt(scores: Tensor) -> Tensor:
        scores = scores.to(device)
        return signed_power(scores, recipe.target_exponent) if recipe.objective == "full_block" else scores

    target, mask, weights = learnt(block.target), block.mask.to(device), None
    if recipe.tail_sharpness > 0:
        weights = tail_weights(target, mask, recipe.tail_sharpness)
    if block.second_target is not None:
        certainty = pair_weights((target - learnt(block.second_target)).abs(), mask)
        weights = certainty if weights is None else weights * certainty
    return View(
        embeddings=candidates,
        coordinates=block.coordinates[:, : embeddings.shape[1]].to(device),  # the first are the best of that width
        scores=embeddings[block.queries] @ candidates.T,
        target=target,
        mask=mask,
        weights=weights,
    )
