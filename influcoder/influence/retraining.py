"""Training many copies of a small model at once, each on its own subset of the rows: the truth that attribution is held against.

All copies see the same batches in the same order, and a row that a copy is not to see has weight 0 there: what differs between two
copies is their rows and where they started, nothing else.

Legend: M copies, N rows, B rows of a batch, S seeds, Q queries, R rows left out, P parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import grad, vmap
from tqdm import tqdm

from influcoder.errors import ConfigError
from influcoder.influence.row_model import RowLoss, RowModel, Rows

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """SGD with momentum, its learning rate falling linearly to 0."""

    epochs: int = 60
    batch_size: int = 50
    learning_rate: float = 0.1
    """of the first step"""
    momentum: float = 0.9
    weight_decay: float = 1e-3
    """times the squared length of all parameters, halved, joins the loss"""

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch_size) < 1 or self.learning_rate <= 0 or not 0 <= self.momentum < 1 or self.weight_decay < 0:
            raise ConfigError(
                f"training: epochs {self.epochs}, batch_size {self.batch_size}, learning_rate {self.learning_rate}, momentum "
                f"{self.momentum}, weight_decay {self.weight_decay}; expected positive numbers, a momentum in [0, 1), no negative decay"
            )


def train(model: RowModel, start: Tensor, rows: Rows, masks: NDArray[np.bool_], config: TrainConfig, seed: int) -> Tensor:
    """Return the parameters of M trained copies, (M, P).

    Args:
        model: whose loss is trained; its own parameters are not used.
        start: (P,) of all copies, or (M, P).
        rows: N.
        masks: (M, N), True where a copy sees a row.
        config: the same for all.
        seed: order of the batches.
    """
    theta = start.expand(len(masks), -1).clone()
    velocity, weights = torch.zeros_like(theta), torch.from_numpy(masks).to(theta.dtype)
    gradients = vmap(grad(_weighted_loss(model)), in_dims=(0, None, None, 0))
    generator = torch.Generator().manual_seed(seed)
    batches = [batch for _ in range(config.epochs) for batch in torch.randperm(len(rows), generator=generator).split(config.batch_size)]
    for step, batch in enumerate(tqdm(batches, desc=f"training {len(masks)} models", unit="step", disable=None, leave=False)):
        picked = rows[batch]
        gradient = gradients(theta, picked.inputs, picked.targets, weights[:, batch]).add_(theta, alpha=config.weight_decay)
        velocity.mul_(config.momentum).add_(gradient)
        theta.sub_(velocity, alpha=config.learning_rate * (1 - step / len(batches)))
    return theta


def measure(model: RowModel, thetas: Tensor, queries: Rows, measurement: RowLoss | None = None) -> Array:
    """Return every copy's measurement of every query, (M, Q); the model's loss where none is given."""
    found: Array = vmap(lambda theta: model.losses(theta, queries, measurement))(thetas).double().numpy()
    return found


def leave_one_out(
    model: RowModel, starts: Tensor, rows: Rows, left_out: NDArray[np.integer], config: TrainConfig, ask: Callable[[Tensor], Array]
) -> Array:
    """Return what leaving each row out does to each query, retrained from scratch, (S, Q, R).

    The measurement without the row less that with it, same start and batches: above 0 where the row lowered it, as scores are.

    Args:
        model: whose loss is trained.
        starts: (S, P), one a seed; seed s orders the batches too.
        rows: N.
        left_out: R places.
        config: of the training.
        ask: `measure` of some queries: thetas (M, P) -> (M, Q).
    """
    masks = np.ones((1 + len(left_out), len(rows)), dtype=bool)
    masks[1 + np.arange(len(left_out)), left_out] = False
    effects = []
    for seed, start in enumerate(starts):
        found = ask(train(model, start, rows, masks, config, seed))
        effects.append((found[1:] - found[0]).T)
    return np.stack(effects)


def _weighted_loss(model: RowModel) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    def loss(theta: Tensor, inputs: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        total: Tensor = (model.losses(theta, Rows(inputs, targets)) * weights).sum()
        return total / weights.sum().clamp(min=1)

    return loss
