"""Embeddings in one byte a number, or one bit.

**int8.** Each number is rounded to one of 255 equal steps between the least and the largest of its dimension among the rows that
are quantised together (D of them, two floats each): `x ~ centre + step * code`, off by at most `step / 2`. A score is then
`q . x ~ (q * step) . code + q . centre`: the scales are folded into the query, and codes are only cast. Its error is at most
`sum_d |q_d| step_d / 2`; rounding errors being independent, its deviation is near `sqrt(sum_d (q_d step_d)^2 / 12)`.

**Binary.** The signs of the codes, eight to a byte: on which side of the centre a number lies. The share of equal signs orders rows
roughly, for a short-list that int8 scores again (Hamming distance, Charikar 2002).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LARGEST_CODE = 127


@dataclass(frozen=True)
class Quantised:
    """Rows as codes, with the scales that they share."""

    codes: NDArray[np.int8]
    """(rows, D), from -127 to 127"""
    steps: NDArray[np.float32]
    """(D,) what a code of 1 is worth; positive"""
    centres: NDArray[np.float32]
    """(D,) what a code of 0 stands for"""

    def restored(self) -> NDArray[np.float32]:
        """Return `(rows, D)` numbers, each within `steps / 2` of the one that was quantised, up to float32 rounding."""
        return self.codes * self.steps + self.centres


def quantise(vectors: NDArray[np.float32]) -> Quantised:
    """Return int8 codes of `(rows, D)` finite numbers; the scales are those of these rows. No row gives steps of 1."""
    if not len(vectors):
        return Quantised(np.empty(vectors.shape, np.int8), np.ones(vectors.shape[1], np.float32), np.zeros(vectors.shape[1], np.float32))
    low, high = vectors.min(axis=0), vectors.max(axis=0)
    steps = (high - low) / np.float32(2 * LARGEST_CODE)
    steps[steps < np.finfo(np.float32).tiny] = 1.0  # a constant dimension: all codes are 0, and the centre says it all
    centres = low + (high - low) / np.float32(2)
    codes = np.clip(np.rint((vectors - centres) / steps), -LARGEST_CODE, LARGEST_CODE).astype(np.int8)
    return Quantised(codes, steps, centres)


def fold_queries(
    queries: NDArray[np.float32], steps: NDArray[np.float32], centres: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return `(Q, D)` queries that multiply codes, and `(Q, 1)` what to add to the products."""
    return queries * steps, (queries @ centres)[:, None]


def binary_codes(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Return `(rows, ceil(D / 8))` bytes: bit d of a row says whether its code d is above 0."""
    return np.packbits(codes > 0, axis=1)


def hamming_distances(query: NDArray[np.uint8], codes: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return in how many bits each row of `(rows, bytes)` differs from `(bytes,)`."""
    different = np.bitwise_xor(codes, query)
    if hasattr(np, "bitwise_count"):  # numpy 2
        words = np.ascontiguousarray(different).view(np.uint64) if different.shape[1] % 8 == 0 else different
        bits = np.bitwise_count(words)
    else:
        bits = np.unpackbits(different, axis=1)
    distances: NDArray[np.int64] = bits.sum(axis=1, dtype=np.int64)
    return distances
