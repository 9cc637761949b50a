"""Curvature in the projected space, one block a layer: second moments of projected gradients, and their inverse square roots.

With R = mean of g g^T over rows and l = damping * mean eigenvalue, `(R + l)^(-1/2) g` on both sides makes the plain inner product
`g_q^T (R + l)^-1 g_d`: LoGra's damped Fisher (arXiv 2405.13954, section 3.1); normalised afterwards, TrackStar
(arXiv 2410.17413, section 3.1), which mixes the queries' R into the rows' so that what all queries share, their template, counts less.

Legend: B rows, D coordinates, K those of a block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import safetensors
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from influcoder.errors import RunError

Array = NDArray[np.float64]
Roots = Sequence[NDArray[np.float32]]
"""inverse roots of the Fisher, one a block"""
DOWNWEIGHTED = 1000 / 65536
"""share of the leading directions in which TrackStar lets queries and rows weigh alike"""


class SecondMoment:
    """Sums up g g^T by block as rows stream by."""

    def __init__(self, blocks: Sequence[int]) -> None:
        self.blocks, self.count = tuple(blocks), 0
        self.sums: list[Array] = [np.zeros((size, size)) for size in self.blocks]

    def add(self, gradients: NDArray[np.floating]) -> None:
        """Add rows `(B, D)`."""
        for total, block in zip(self.sums, split(gradients, self.blocks), strict=True):
            total += (block.T @ block).astype(np.float64)
        self.count += len(gradients)

    def means(self) -> list[Array]:
        """Return each block's second moment, `(K, K)`."""
        return [total / self.count for total in self.sums]


def split(gradients: NDArray[np.floating], blocks: Sequence[int]) -> Iterator[NDArray[np.floating]]:
    """Yield the blocks of `(B, D)`, each `(B, K)`."""
    start = 0
    for size in blocks:
        yield gradients[:, start : start + size]
        start += size


def inverse_root(moment: Array, damping: float) -> Array:
    """Return `(R + l)^(-1/2)`, `(K, K)`, with l = damping * mean eigenvalue; damping in (0, inf)."""
    values, vectors = np.linalg.eigh(moment)
    values = np.maximum(values, 0)
    damped = values + damping * values.mean()
    scale = np.where(damped > 0, np.maximum(damped, np.finfo(np.float64).tiny) ** -0.5, 0.0)  # a layer without gradients: nothing
    result: Array = (vectors * scale) @ vectors.T
    return result


def mixing_weight(rows: Sequence[Array], queries: Sequence[Array]) -> float:
    """Return TrackStar's weight of the queries' moments, 0 to 1.

    It solves `w s_queries[k] = (1 - w) s_rows[k]` for the k-th largest singular values of all blocks, k the share `DOWNWEIGHTED` of them.
    """
    spectra = [np.sort(np.concatenate([np.linalg.eigvalsh(moment) for moment in side]))[::-1] for side in (rows, queries)]
    k = int(DOWNWEIGHTED * len(spectra[0]))
    of_rows, of_queries = (max(float(spectrum[k]), 0.0) for spectrum in spectra)
    return of_rows / (of_rows + of_queries) if of_rows + of_queries > 0 else 0.0


def mix(rows: Sequence[Array], queries: Sequence[Array]) -> tuple[list[Array], float]:
    """Return `w R_queries + (1 - w) R_rows` by block, and w."""
    weight = mixing_weight(rows, queries)
    return [weight * query + (1 - weight) * row for row, query in zip(rows, queries, strict=True)], weight


def save_roots(path: Path, roots: Roots) -> None:
    """Write one safetensors file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({f"{place:04d}": root for place, root in enumerate(roots)}, path)


def load_roots(path: Path) -> Roots:
    """Read what `save_roots` wrote.

    Raises:
        RunError: when it is missing or unreadable.
    """
    try:
        content = load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise RunError(f"{path}: not readable ({error}); expected the Fisher of a teacher run; run the teacher again") from error
    return [content[name] for name in sorted(content)]


def precondition(gradients: NDArray[np.floating], roots: Sequence[NDArray[np.floating]]) -> NDArray[np.float32]:
    """Return `(B, D)` gradients with each block multiplied by its root."""
    blocks = split(gradients, [len(root) for root in roots])
    return np.concatenate([block @ root for block, root in zip(blocks, roots, strict=True)], axis=1).astype(np.float32)


def unit_blocks(gradients: NDArray[np.floating], blocks: Sequence[int]) -> NDArray[np.float32]:
    """Return `(B, D)` with each block of a row at length 1 and the row at its own length."""
    parts = [block / np.maximum(np.linalg.norm(block, axis=1, keepdims=True), 1e-30) for block in split(gradients, blocks)]
    joined = np.concatenate(parts, axis=1)
    joined /= np.maximum(np.linalg.norm(joined, axis=1, keepdims=True), 1e-30)
    scaled: NDArray[np.float32] = (joined * np.linalg.norm(gradients, axis=1, keepdims=True)).astype(np.float32)
    return scaled
