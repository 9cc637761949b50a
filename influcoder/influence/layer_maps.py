"""What becomes of one layer's gradients before they are sketched or laid side by side: reduced by factors, or whitened and picked from.

Legend: B rows, T tokens, I inputs, O outputs, K coordinates that are left.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from influcoder.influence.basis import Basis
from influcoder.influence.capture import Layer, outer_sum
from influcoder.influence.ekfac import Whitening
from influcoder.influence.projection import factor


class LayerMap(Protocol):
    """One layer's map under one seed."""

    @property
    def size(self) -> int:
        """K."""

    @property
    def held_bytes(self) -> int:
        """Memory that it holds of its own."""

    def of_pairs(self, x: Tensor, delta: Tensor) -> Tensor:
        """Return (B, K) of x (B, T, I) and delta (B, T, O)."""

    def of_gradients(self, gradient: Tensor) -> Tensor:
        """Return the same of whole gradients (B, O, I): the slow way."""


@dataclass
class FactorMap:
    """Inputs and outputs reduced by a matrix each, or left whole."""

    input: Tensor | None
    """(rank, I)"""
    output: Tensor | None
    """(output_rank, O)"""
    size: int

    @staticmethod
    def draw(name: str, layer: Layer, ranks: tuple[int | None, int | None], seed: int, basis: Basis | None) -> FactorMap:
        """Take the leading rows of the basis, or draw random ones; `ranks` of inputs and of outputs, None leaves a side whole."""
        inputs, outputs = layer.in_features, layer.out_features
        first = _factor(ranks[0], inputs, seed, f"input:{name}", basis.inputs.get(name) if basis else None)
        last = _factor(ranks[1], outputs, seed, f"output:{name}", basis.outputs.get(name) if basis else None)
        made = FactorMap(first, last, (inputs if first is None else len(first)) * (outputs if last is None else len(last)))
        made._to(layer.weight.device)
        return made

    @property
    def held_bytes(self) -> int:
        """Memory of both matrices."""
        return sum(4 * matrix.numel() for matrix in (self.input, self.output) if matrix is not None)

    def of_pairs(self, x: Tensor, delta: Tensor) -> Tensor:
        """Reduce both before the outer product."""
        self._to(delta.device)
        return outer_sum(self._reduce_input(x), self._reduce_output(delta)).flatten(1)

    def of_gradients(self, gradient: Tensor) -> Tensor:
        """Reduce both sides of whole gradients."""
        self._to(gradient.device)
        return self._reduce_output(self._reduce_input(gradient).transpose(1, 2)).transpose(1, 2).flatten(1)

    def _to(self, device: torch.device) -> None:
        """Bring it to where the layer's gradients are; nothing when it is there."""
        self.input = None if self.input is None else self.input.to(device)
        self.output = None if self.output is None else self.output.to(device)

    def _reduce_input(self, x: Tensor) -> Tensor:
        return x if self.input is None else x @ self.input.T.to(x.dtype)

    def _reduce_output(self, delta: Tensor) -> Tensor:
        return delta if self.output is None else delta @ self.output.T.to(delta.dtype)


@dataclass(frozen=True)
class WhitenedMap:
    """EK-FAC's whitening, and its strongest coordinates, or all."""

    name: str
    whitening: Whitening
    size: int
    kept: Tensor | None
    """(K,) places among O * I; None keeps all"""

    @property
    def held_bytes(self) -> int:
        """Memory of the places; the factors are the caller's."""
        return 0 if self.kept is None else 8 * self.kept.numel()

    def of_pairs(self, x: Tensor, delta: Tensor) -> Tensor:
        """Rotate both before the outer product, where that is less work."""
        return self._pick(self.whitening.outer_sum(self.name, x, delta))

    def of_gradients(self, gradient: Tensor) -> Tensor:
        """Whiten whole gradients."""
        return self._pick(self.whitening(self.name, gradient))

    def _pick(self, gradient: Tensor) -> Tensor:
        flat = gradient.flatten(1)
        return flat if self.kept is None else flat[:, self.kept]


def whitened_maps(whitening: Whitening, layers: Mapping[str, Layer], count: int | None) -> dict[str, LayerMap]:
    """Return each layer's map under one whitening that keeps the `count` strongest coordinates of all; None keeps them all."""
    leading = {name: kept.to(layers[name].weight.device) for name, kept in (whitening.leading(count) if count else {}).items()}
    sizes = {name: layer.out_features * layer.in_features for name, layer in layers.items()}
    return {name: WhitenedMap(name, whitening, len(leading[name]) if count else sizes[name], leading.get(name)) for name in layers}


def _factor(rank: int | None, features: int, seed: int, name: str, leading: Tensor | None) -> Tensor | None:
    """Return the matrix of one side of one layer; None where it would not reduce anything."""
    if rank is None or rank >= features:
        return None
    return factor(rank, features, seed, name) if leading is None else leading[:rank]
