"""Many trainings of a small network at once: R runs of a two-layer ReLU MLP as stacked weights, and inner products of row gradients.

What hundreds of runs with and without a group need on a CPU: one batched matrix product a layer instead of R small ones. The gradients
are written out; tests compare them with autograd, a row at a time.

Legend: R runs, N rows, B rows of a batch, I inputs, H hidden units, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8


class Weights(NamedTuple):
    """Of R networks; biases are the last row of each matrix."""

    hidden: Tensor
    """(R, I + 1, H)"""
    output: Tensor
    """(R, H + 1, C)"""


@dataclass(frozen=True)
class Task:
    """Rows to train on and a target to be influenced."""

    inputs: Tensor
    """(N, I) float32"""
    labels: Tensor
    """(N,) as trained on"""
    target_inputs: Tensor
    target_labels: Tensor

    @property
    def classes(self) -> int:
        """Their number, C."""
        return int(max(self.labels.max(), self.target_labels.max())) + 1


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a network is trained: steps of batches without replacement within an epoch."""

    hidden: int = 32
    learning_rate: float = 0.2
    batch_size: int = 50
    steps: int = 300
    adam: bool = False
    """Adam instead of plain SGD"""


class Moments(NamedTuple):
    """Adam's, each of the weights' shapes."""

    first: Weights
    second: Weights


Watch = Callable[[int, Weights, Moments | None], None]
"""called before each step with its number, the weights and Adam's moments"""


def train(task: Task, how: Training, seeds: Sequence[int], rows: NDArray[np.int64] | None = None, watch: Watch | None = None) -> Weights:
    """Return the weights after training one network a seed; a seed fixes its weights at the start and the order of its rows.

    Args:
        task: rows.
        how: optimiser and steps.
        seeds: R.
        rows: those that are trained on, by position; all by default. Batch size and steps stay, whatever their number.
        watch: looks on.
    """
    kept = np.arange(len(task.inputs)) if rows is None else rows
    epochs = -(-how.steps * how.batch_size // len(kept))
    orders = [
        np.concatenate([source.permutation(kept) for _ in range(epochs)]) for source in (np.random.default_rng([1, s]) for s in seeds)
    ]
    batches = torch.from_numpy(np.stack(orders)[:, : how.steps * how.batch_size].reshape(len(seeds), how.steps, how.batch_size))
    weights = _initial(task, how.hidden, seeds)
    moments = Moments(*(Weights(*map(torch.zeros_like, weights)) for _ in range(2))) if how.adam else None
    for step in range(how.steps):
        if watch is not None:
            watch(step, weights, moments)
        drawn = batches[:, step]
        gradients = mean_gradients(weights, task.inputs[drawn], task.labels[drawn])
        weights, moments = _step(weights, gradients, moments, how.learning_rate, step)
    return weights


def target_losses(weights: Weights, task: Task) -> NDArray[np.float64]:
    """Return each network's mean cross-entropy (nats) on the target, (R,)."""
    logits = _logits(weights, task.target_inputs.expand(len(weights.hidden), -1, -1))[1]
    labels = task.target_labels.expand(len(logits), -1)
    losses: NDArray[np.float64] = (
        torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none").mean(1).double().numpy()
    )
    return losses


def mean_gradients(weights: Weights, inputs: Tensor, labels: Tensor) -> Weights:
    """Return the gradients of the mean loss of each network's own rows, inputs (R, B, I), labels (R, B)."""
    x, hidden, first, second = _factors(weights, inputs, labels)
    return Weights(x.transpose(1, 2) @ first / inputs.shape[1], hidden.transpose(1, 2) @ second / inputs.shape[1])


def target_gradients(weights: Weights, task: Task) -> Weights:
    """Return the gradients of `target_losses`."""
    runs = len(weights.hidden)
    return mean_gradients(weights, task.target_inputs.expand(runs, -1, -1), task.target_labels.expand(runs, -1))


def row_products(weights: Weights, task: Task, directions: Weights) -> Tensor:
    """Return <gradient of each row's loss, direction>, (R, N): `x^T V delta` a layer, no gradient is held."""
    runs = len(weights.hidden)
    x, hidden, first, second = _factors(weights, task.inputs.expand(runs, -1, -1), task.labels.expand(runs, -1))
    return ((x @ directions.hidden) * first).sum(2) + ((hidden @ directions.output) * second).sum(2)


def adam_products(weights: Weights, task: Task, directions: Weights, moments: Moments) -> Tensor:
    """Return <step that Adam would take were the row the batch, direction>, (R, N): LESS (arXiv 2402.04333), epsilon in the root."""
    runs = len(weights.hidden)
    total = torch.zeros(runs, len(task.inputs))
    x, hidden, first, second = _factors(weights, task.inputs.expand(runs, -1, -1), task.labels.expand(runs, -1))
    for left, right, direction, m, v in zip((x, hidden), (first, second), directions, *moments, strict=True):
        gradient = left[..., None] * right[:, :, None, :]  # (R, N, I, H): small networks only
        taken = (BETA1 * m[:, None] + (1 - BETA1) * gradient) / (BETA2 * v[:, None] + (1 - BETA2) * gradient**2 + EPSILON).sqrt()
        total = total + (taken * direction[:, None]).sum((2, 3))
    return total


def _initial(task: Task, width: int, seeds: Sequence[int]) -> Weights:
    """Uniform in +-1 / sqrt(inputs), as torch's Linear."""
    shapes = ((task.inputs.shape[1], width), (width, task.classes))
    sources = [torch.Generator().manual_seed(seed) for seed in seeds]
    drawn = [[(2 * torch.rand(fan + 1, out, generator=source) - 1) / fan**0.5 for fan, out in shapes] for source in sources]
    return Weights(*(torch.stack(layer) for layer in zip(*drawn, strict=True)))


def _logits(weights: Weights, inputs: Tensor) -> tuple[Tensor, Tensor]:
    hidden = torch.relu(inputs @ weights.hidden[:, :-1] + weights.hidden[:, -1:])
    return hidden, hidden @ weights.output[:, :-1] + weights.output[:, -1:]


def _factors(weights: Weights, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return each layer's inputs with a 1 for the bias, and the gradients at its outputs: x, hidden, first, second."""
    hidden, logits = _logits(weights, inputs)
    second = torch.softmax(logits, 2) - torch.nn.functional.one_hot(labels, logits.shape[2])
    first = (second @ weights.output[:, :-1].transpose(1, 2)) * (hidden > 0)
    one = inputs.new_ones(*inputs.shape[:2], 1)
    return torch.cat([inputs, one], 2), torch.cat([hidden, one], 2), first, second


def _step(weights: Weights, gradients: Weights, moments: Moments | None, rate: float, step: int) -> tuple[Weights, Moments | None]:
    if moments is None:
        return Weights(*(w - rate * g for w, g in zip(weights, gradients, strict=True))), None
    first = Weights(*(BETA1 * m + (1 - BETA1) * g for m, g in zip(moments.first, gradients, strict=True)))
    second = Weights(*(BETA2 * v + (1 - BETA2) * g**2 for v, g in zip(moments.second, gradients, strict=True)))
    first_share, second_share = 1 - BETA1 ** (step + 1), 1 - BETA2 ** (step + 1)  # Adam's correction of a start at 0
    steps = (rate * m / first_share / ((v / second_share).sqrt() + EPSILON) for m, v in zip(first, second, strict=True))
    moved = Weights(*(w - taken for w, taken in zip(weights, steps, strict=True)))
    return moved, Moments(first, second)
