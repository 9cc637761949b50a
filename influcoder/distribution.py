"""What rows an encoder was distilled on, in half a megabyte or two: rows far from those are marked, since of them its scores are a guess.

    ENCODER/distribution.safetensors   `mean` (D,), `root` (D, D) of embeddings; `seen`, a bit for each four characters that training rows had;
                                       `numbers`: share of unseen ones in validation rows, and both limits

Two measures, since neither tells everything (docs/LOG.md): the Mahalanobis distance of the embedding from those of training rows, blind where
an encoder maps unlike rows alike, and how many more of a text's four characters in a row are new than in validation rows (other scripts,
other languages, code). A row is far when either is beyond what all but 1 in 200 validation rows have, so that 1 in 100 of like rows are marked.

N rows, D numbers of an embedding, B bits.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from influcoder.errors import RunError

FILE_NAME = "distribution.safetensors"
BITS = 1 << 22
"""of hashed characters: a language has some tens of thousands of fours, so that few share a bit"""
MARKED = 0.005
"""share of validation rows beyond either limit"""
SHRINKAGE = 0.01
"""of a mean eigenvalue, added to each: directions in which training rows hardly differ are not to decide alone"""
Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Distribution:
    """Training rows, summed up."""

    mean: Vectors
    """(D,)"""
    root: Vectors
    """(D, D): `(v - mean) root` has the covariance 1"""
    seen: NDArray[np.uint8]
    """(B / 8,)"""
    new_share: float
    """of four characters in validation rows, 0 to 1"""
    limits: tuple[float, float] = (np.inf, np.inf)
    """of distance and strangeness"""

    def distances(self, vectors: Vectors) -> NDArray[np.float64]:
        """Return how far embeddings (N, D) lie from those of training rows, (N,)."""
        found: NDArray[np.float64] = np.linalg.norm((vectors - self.mean) @ self.root, axis=1).astype(np.float64)
        return found

    def strangeness(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Return how many more new fours than expected texts have, in roots of their number, so that long and short compare, (N,)."""
        found = np.zeros(len(texts))
        for place, text in enumerate(texts):
            hashed = _fours(text)
            new = len(hashed) - int((self.seen[hashed >> 3] >> (hashed & 7) & 1).sum())
            found[place] = (new - self.new_share * len(hashed)) / max(1, len(hashed)) ** 0.5
        return found

    def far(self, vectors: Vectors, texts: Sequence[str]) -> NDArray[np.bool_]:
        """Return which rows are unlike those of the training, (N,); embeddings of another width, as cut ones, are not looked at."""
        strange = self.strangeness(texts) > self.limits[1]
        return strange | (self.distances(vectors) > self.limits[0]) if vectors.shape[1] == len(self.mean) else strange


def fit_distribution(training: tuple[Vectors, Sequence[str]], validation: tuple[Vectors, Sequence[str]]) -> Distribution:
    """Sum up the training rows, and set the limits on validation rows.

    Args:
        training: embeddings (N, D), of some rows at least, and texts of all.
        validation: embeddings and texts.
    """
    vectors, texts = training
    centred = vectors.astype(np.float64) - vectors.mean(axis=0)
    values, axes = np.linalg.eigh(centred.T @ centred / len(vectors))
    scale = np.maximum(np.maximum(values, 0) + SHRINKAGE * values.mean(), 1e-12) ** -0.5
    bits = np.zeros(BITS, bool)
    for text in texts:
        bits[_fours(text)] = True
    fours = [_fours(text) for text in validation[1]]
    new = [int((~bits[hashed]).sum()) for hashed in fours]
    share = sum(new) / max(1, sum(map(len, fours)))
    packed = np.packbits(bits, bitorder="little")
    found = Distribution(vectors.mean(axis=0), (axes * scale).astype(np.float32), packed, share)
    measures = found.distances(validation[0]), found.strangeness(validation[1])
    limits = [float(np.quantile(measure, 1 - MARKED, method="higher")) for measure in measures]
    return Distribution(found.mean, found.root, packed, share, (limits[0], limits[1]))


def save_distribution(folder: Path, distribution: Distribution) -> None:
    """Write `distribution.safetensors` into an encoder folder."""
    path = folder / FILE_NAME
    writing = path.with_name(f".{path.name}.writing")
    numbers = np.array([distribution.new_share, *distribution.limits], np.float64)
    tensors = {"mean": distribution.mean, "root": distribution.root, "seen": distribution.seen, "numbers": numbers}
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, writing)
    os.replace(writing, path)


def load_distribution(folder: Path) -> Distribution | None:
    """Return what `save_distribution` wrote; None for an encoder that has none.

    Raises:
        RunError: when it is not readable.
    """
    path = folder / FILE_NAME
    if not path.exists():
        return None
    try:
        content = load_file(path)
        share, *limits = (float(number) for number in content["numbers"])
        return Distribution(content["mean"], content["root"], content["seen"], share, (limits[0], limits[1]))
    except (OSError, safetensors.SafetensorError, KeyError, ValueError, IndexError) as error:
        raise RunError(f"{path}: not readable ({error}); expected what a student run wrote; distil again, or remove it") from error


def _fours(text: str) -> NDArray[np.int64]:
    """Return a hash below `BITS` of each four characters in a row."""
    codes = np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), "<u4").astype(np.uint64)
    mixed = np.zeros(max(0, len(codes) - 3), np.uint64)
    for place in range(4):
        mixed = mixed * np.uint64(0x9E3779B97F4A7C15) + codes[place : len(codes) - 3 + place] if len(mixed) else mixed
    hashed: NDArray[np.int64] = (mixed * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(64 - BITS.bit_length() + 1)).astype(np.int64)
    return hashed
