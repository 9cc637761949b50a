"""Seeded random projections of gradients. The seed, not the device, decides: all draws are made on the CPU.

Every one keeps inner products in expectation, E <sketch(a), sketch(b)> = <a, b>:

- CountSketch (Charikar et al. 2002): coordinate p goes to bucket h(p) with sign s(p). Variance at most (|a|^2 |b|^2 + <a, b>^2) / dim.
- SJLT (Kane & Nelson 2014): s buckets a coordinate, each with its own sign and 1 / sqrt(s); CountSketch is s = 1.
- Rademacher (+-1 / sqrt(dim)) and Gaussian: dense; `coordinates * dim` numbers are drawn anew at each use, so that memory stays flat.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

SketchKind = Literal["count_sketch", "sjlt", "rademacher", "gaussian"]
SJLT_BUCKETS = 4
"""buckets a coordinate: beyond a few the variance hardly falls"""
DENSE_CHUNK = 1 << 24
"""numbers of a dense projection that are in memory at once; Gaussian projections depend on it"""


def generator(seed: int, name: str) -> torch.Generator:
    """Return a CPU generator that depends on the seed and the name alone, not on the order of calls."""
    digest = hashlib.sha256(f"{seed}\0{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def signs(source: torch.Generator, *shape: int) -> Tensor:
    """Draw float32 +1 and -1."""
    return torch.randint(2, shape, generator=source, dtype=torch.int8).float() * 2 - 1


def factor(rank: int, features: int, seed: int, name: str) -> Tensor:
    """Return the `(rank, features)` matrix that reduces one side of an outer product: +-1 / sqrt(rank), so that E P^T P = I.

    On the input side it is the A of a fresh LoRA up to its distribution; PEFT draws uniform numbers whose variance,
    1 / (3 features), would weigh a layer the less the wider it is.
    """
    return signs(generator(seed, f"factor:{name}"), rank, features) / math.sqrt(rank)


@dataclass(frozen=True)
class SparseSketch:
    """CountSketch or SJLT of one block of coordinates, as of one layer's gradient."""

    buckets: Tensor
    """(s, coordinates) int64 in [0, dim)"""
    signs: Tensor
    """(s, coordinates) float32, +-1 / sqrt(s)"""

    @staticmethod
    def draw(coordinates: int, dim: int, seed: int, name: str, per_coordinate: int = 1) -> SparseSketch:
        """Draw buckets and signs for the block called `name`."""
        source = generator(seed, f"sketch:{name}")
        buckets = torch.randint(dim, (per_coordinate, coordinates), generator=source)
        return SparseSketch(buckets, signs(source, per_coordinate, coordinates) * per_coordinate**-0.5)

    @property
    def held_bytes(self) -> int:
        """Memory of buckets and signs."""
        return 12 * self.buckets.numel()

    def to(self, device: torch.device) -> SparseSketch:
        """Return the same sketch on another device."""
        return SparseSketch(self.buckets.to(device), self.signs.to(device))

    def add_to(self, sketch: Tensor, block: Tensor) -> None:
        """Add the sketch of `block` (B, coordinates) to `sketch` (B, dim), in place."""
        for buckets, sign in zip(self.buckets, self.signs, strict=True):
            sketch.index_add_(1, buckets, block * sign)


@dataclass(frozen=True)
class DenseSketch:
    """A dense random matrix, never held: the same chunks are drawn at each use."""

    coordinates: int
    seed: int
    name: str
    kind: Literal["rademacher", "gaussian"]
    held_bytes = 0

    def add_to(self, sketch: Tensor, block: Tensor) -> None:
        """Add the sketch of `block` (B, coordinates) to `sketch` (B, dim), in place."""
        start, dim = 0, sketch.shape[1]
        for matrix in self._chunks(dim):
            sketch.addmm_(block[:, start : start + len(matrix)].to(sketch.dtype), matrix.to(block.device), alpha=dim**-0.5)
            start += len(matrix)

    def _chunks(self, dim: int) -> Iterator[Tensor]:
        source, rows = generator(self.seed, f"{self.kind}:{self.name}"), max(1, DENSE_CHUNK // dim)
        for start in range(0, self.coordinates, rows):
            shape = (min(rows, self.coordinates - start), dim)
            yield signs(source, *shape) if self.kind == "rademacher" else torch.randn(shape, generator=source)


@dataclass(frozen=True)
class Slot:
    """No sketch: a block has coordinates of its own."""

    start: int
    size: int
    held_bytes = 0

    def add_to(self, sketch: Tensor, block: Tensor) -> None:
        """Add `block` (B, size) to its coordinates of `sketch` (B, dim), in place."""
        sketch[:, self.start : self.start + self.size] += block


Sketch = SparseSketch | DenseSketch | Slot


def draw_sketch(kind: SketchKind, coordinates: int, dim: int, seed: int, name: str, device: torch.device) -> Sketch:
    """Return the sketch of the block called `name`, on `device`."""
    if kind in ("rademacher", "gaussian"):
        return DenseSketch(coordinates, seed, name, kind)
    return SparseSketch.draw(coordinates, dim, seed, name, SJLT_BUCKETS if kind == "sjlt" else 1).to(device)
