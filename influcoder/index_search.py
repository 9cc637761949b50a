"""The exact top and bottom of an index for float32 queries, block by block.

Q queries, D numbers a row, B rows of a block. Scales are folded into the queries, so that a block of codes is only cast before one
matrix product; blocks and their scores stay within a processor's cache, and no matrix of all scores ever exists. "Exact" is over the
codes: what the codes lose is `quantisation.py`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from influcoder.index import Index
from influcoder.quantisation import Quantised, fold_queries
from influcoder.top_k import TopK

BLOCK_BYTES = 2 << 20
"""of a block as float32 and its scores together: what a core's cache holds"""


@dataclass(frozen=True)
class Found:
    """The extreme rows of each query."""

    top_scores: NDArray[np.float32]
    """(Q, at most k), largest first"""
    top_rows: NDArray[np.int64]
    """(Q, at most k), positions in the index; ties in their order"""
    bottom_scores: NDArray[np.float32]
    """(Q, at most k), smallest first"""
    bottom_rows: NDArray[np.int64]
    """(Q, at most k); ties in the order of the index, too"""


def search(index: Index, queries: NDArray[np.float32], k: int) -> Found:
    """Return the `k` rows of largest and of smallest score for each of `(Q, D)` unit embeddings.

    Raises:
        RunError: when a shard cannot be read.
    """
    return search_shards(index.shards(), queries, k)


def search_shards(shards: Iterable[Quantised], queries: NDArray[np.float32], k: int) -> Found:
    """Search shards from wherever they come; positions count through all of them."""
    top, bottom = TopK(len(queries), k), TopK(len(queries), k, "bottom")
    for shard in shards:
        for scores in score_blocks(shard, queries):
            top.add(scores)
            bottom.add(scores)
    return Found(top.scores, top.rows, bottom.scores, bottom.rows)


def score_blocks(shard: Quantised, queries: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    """Yield `(Q, B)` scores of a shard's rows, in order."""
    folded, offsets = fold_queries(queries, shard.steps, shard.centres)
    num_rows, dim = shard.codes.shape
    block_rows = max(64, BLOCK_BYTES // (4 * (dim + len(queries))))
    block = np.empty((block_rows, dim), np.float32)
    for start in range(0, num_rows, block_rows):
        rows = block[: min(block_rows, num_rows - start)]
        rows[:] = shard.codes[start : start + len(rows)]
        scores = folded @ rows.T
        scores += offsets
        yield scores
