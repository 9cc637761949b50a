"""Seeded random projections of gradients. The seed, not the device, decides: all draws are made on the CPU.

CountSketch (Charikar et al. 2002): coordinate p of a gradient goes to bucket h(p) with sign s(p),
`sketch[k] = sum over p with h(p) = k of s(p) g[p]`. Inner products are unbiased: E <sketch(a), sketch(b)> = <a, b>,
with variance at most (|a|^2 |b|^2 + <a, b>^2) / dim.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor


def generator(seed: int, name: str) -> torch.Generator:
    """Return a CPU generator that depends on the seed and the name alone, not on the order of calls."""
    digest = hashlib.sha256(f"{seed}\0{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def lora_a(in_features: int, rank: int, seed: int, name: str) -> Tensor:
    """Return the `(rank, in_features)` A matrix of a fresh LoRA: uniform(-1/sqrt(in), 1/sqrt(in)), as PEFT draws it."""
    bound = in_features**-0.5
    return torch.empty(rank, in_features).uniform_(-bound, bound, generator=generator(seed, f"lora_a:{name}"))


@dataclass(frozen=True)
class CountSketch:
    """The hash of one block of coordinates, as for one layer's gradient."""

    buckets: Tensor
    """(coordinates,) int64 in [0, dim)"""
    signs: Tensor
    """(coordinates,) float32, +1 or -1"""
    dim: int

    @staticmethod
    def draw(coordinates: int, dim: int, seed: int, name: str) -> CountSketch:
        """Draw buckets and signs for the block called `name`."""
        source = generator(seed, f"count_sketch:{name}")
        buckets = torch.randint(dim, (coordinates,), generator=source)
        signs = torch.randint(2, (coordinates,), generator=source).float() * 2 - 1
        return CountSketch(buckets, signs, dim)

    def to(self, device: torch.device) -> CountSketch:
        """Return the same sketch on another device."""
        return CountSketch(self.buckets.to(device), self.signs.to(device), self.dim)

    def add_to(self, sketch: Tensor, block: Tensor) -> None:
        """Add the sketch of `block` (coordinates, batch) to `sketch` (dim, batch), in place.

        Coordinates come first so that each addition is one contiguous run over the batch.
        """
        sketch.index_add_(0, self.buckets, block.float() * self.signs[:, None])
