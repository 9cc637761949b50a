"""Directions that Adam would take instead of the bare gradient, coordinate by coordinate.

m, v: Adam's first and second moments at a checkpoint. The maths of LESS (Xia et al., arXiv 2402.04333, section 2.3, and their
code: epsilon inside the root, no bias correction) and of TrackStar's optimiser correction (Chang et al., arXiv 2410.17413, section 3).

Legend: B rows, O outputs, I inputs of a layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from influcoder.influence.capture import Layer
from influcoder.influence.decoder import Decoder
from influcoder.influence.exact import whole_gradients
from influcoder.influence.tokens import TokenizedRow

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8


@dataclass(frozen=True)
class Moments:
    """Adam's state at a checkpoint, by layer, each (O, I)."""

    first: Mapping[str, Tensor]
    second: Mapping[str, Tensor]

    def step_direction(self, name: str, gradient: Tensor) -> Tensor:
        """Return LESS's Gamma of each row, (B, O, I): the step that Adam would take were the row the whole batch, over the learning rate.

        m' = b1 m + (1 - b1) g;  v' = b2 v + (1 - b2) g^2;  Gamma = m' / sqrt(v' + eps). A constant of the checkpoint, b1 m,
        is in every row's direction: rows are told apart by what they add to it.
        """
        first, second = (moment[name].to(gradient.device, torch.float32) for moment in (self.first, self.second))
        root = gradient.square().mul_(1 - BETA2).add_(BETA2 * second + EPSILON).sqrt_()  # in place: these are the largest arrays there are
        return torch.add(BETA1 * first, gradient, alpha=1 - BETA1).div_(root)

    def scaled(self, name: str, gradient: Tensor) -> Tensor:
        """Return TrackStar's g / (sqrt(v) + eps), (B, O, I)."""
        return gradient / (self.second[name].to(gradient.device, torch.float32).sqrt() + EPSILON)


def estimate_moments(decoder: Decoder, layers: Mapping[str, Layer], rows: Sequence[TokenizedRow], max_batch_tokens: int) -> Moments:
    """Return the mean gradient and the mean squared gradient over `rows`: what stands in for Adam's where no optimiser's state is known."""
    first: dict[str, Tensor] = {}
    second: dict[str, Tensor] = {}

    def add(positions: list[int], name: str, gradient: Tensor) -> None:
        for moments, values in ((first, gradient), (second, gradient.square())):
            moments[name] = moments.get(name, 0) + values.sum(0) / len(rows)

    for _ in whole_gradients(decoder, layers, rows, add, max_batch_tokens=max_batch_tokens):
        pass
    shaped = ({name: moment.view(layers[name].out_features, -1) for name, moment in moments.items()} for moments in (first, second))
    return Moments(*shaped)
