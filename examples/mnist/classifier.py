"""The classifier whose rows are attributed: a 784-64-64-10 ReLU network, trained on digits of which some have wrong labels.

As in the experiment of "Influence functions: why, what and how" (Panickssery 2023), with labels flipped so that there is something to find.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from examples.mnist.images import Digits
from influcoder.errors import ConfigError
from influcoder.influence.row_model import RowModel, Rows

CLASSES = 10


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """AdamW, its learning rate falling linearly to 0. Few epochs: a network that knows wrong labels by heart no longer stumbles over them."""

    width: int = 64
    """of both hidden layers"""
    epochs: int = 20
    batch_size: int = 128
    learning_rate: float = 2e-3
    """of the first step"""
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        if min(self.width, self.epochs, self.batch_size) < 1 or self.learning_rate <= 0 or self.weight_decay < 0:
            raise ConfigError(
                f"training: width {self.width}, epochs {self.epochs}, batch_size {self.batch_size}, learning_rate {self.learning_rate}, "
                f"weight_decay {self.weight_decay}; expected positive numbers, no negative decay"
            )


def flip_labels(labels: NDArray[np.uint8], share: float, seed: int) -> NDArray[np.uint8]:
    """Return labels of which `share` (0 to 1), drawn at random, are another digit."""
    random = np.random.default_rng([seed, 1])
    flipped = random.permutation(len(labels))[: round(share * len(labels))]
    given: NDArray[np.uint8] = labels.copy()
    given[flipped] = (labels[flipped] + random.integers(1, CLASSES, len(flipped))) % CLASSES
    return given


def as_rows(images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> Rows:
    """Return images as vectors of 0 (paper) to 1 (ink)."""
    return Rows(torch.from_numpy(images.reshape(len(images), -1) / np.float32(255)), torch.from_numpy(labels.astype(np.int64)))


def train_classifier(rows: Rows, config: TrainingConfig, seed: int, dtype: torch.dtype = torch.float32) -> RowModel:
    """Return a network trained on the rows; the seed draws its weights and the order of the batches."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        hidden = [nn.Linear(rows.inputs.shape[1], config.width), nn.ReLU(), nn.Linear(config.width, config.width), nn.ReLU()]
        network = nn.Sequential(*hidden, nn.Linear(config.width, CLASSES))
    optimizer = torch.optim.AdamW(network.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    batches = [batch for _ in range(config.epochs) for batch in torch.randperm(len(rows), generator=generator).split(config.batch_size)]
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, len(batches))
    for batch in tqdm(batches, desc="training", unit="step", disable=None, leave=False):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(rows.inputs[batch]), rows.targets[batch]).backward()
        optimizer.step()
        schedule.step()
    return RowModel(network, nn.functional.cross_entropy, dtype)


def margins(model: RowModel, digits: Digits) -> NDArray[np.float64]:
    """Return `log p / (1 - p)` with p the probability of each image's true digit, (N,): the smaller, the harder the image."""
    with torch.no_grad():
        outputs = model.outputs(model.theta, as_rows(digits.images, digits.labels).inputs).double()
    found: NDArray[np.float64] = -torch.stack(
        [negative_margin(*row) for row in zip(outputs, torch.from_numpy(digits.labels), strict=True)]
    ).numpy()
    return found


def negative_margin(outputs: Tensor, target: Tensor) -> Tensor:
    """Return `log (1 - p) / p` of the target's probability p, from the outputs (K,) of one row."""
    wanted = torch.arange(len(outputs)) == target
    return outputs.masked_fill(wanted, -torch.inf).logsumexp(0) - outputs.masked_fill(~wanted, 0).sum()
