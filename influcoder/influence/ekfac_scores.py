"""EK-FAC scores of a few queries over a pool that streams past, by layer and by token, nothing projected.

A query's gradient is preconditioned once, V = (G + l)^-1 g_q, layer by layer; a row's score is `<V, sum_t delta_t x_t^T>`, summed over
layers, and token t's part of it `delta_t^T V x_t`: all that goes through position t, losses at later tokens included. V can be kept as
its r largest singular directions, `V ~ L R`, which takes r (O + I) numbers instead of O I (query batching, Grosse et al.,
arXiv 2308.03296), and no row's gradient is formed. Larger = training on the row lowers the query's loss more.

Legend: Q queries, N rows, B rows of a batch, T tokens, O outputs and I inputs of a layer, R rank, L layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from influcoder.errors import ConfigError
from influcoder.influence.capture import Layer, outer_sum
from influcoder.influence.decoder import Decoder
from influcoder.influence.ekfac import DAMPING, LayerFactors, eigenvectors, rotated_outer_sum
from influcoder.influence.exact import backward_rows
from influcoder.influence.tokens import TokenizedRow

HELD_BYTES = 2 << 30
"""of preconditioned queries"""


@dataclass(frozen=True)
class LayerQueries:
    """Preconditioned gradients of Q queries in one layer: V, or `left @ right`."""

    left: Tensor
    """(Q, O, R), or V (Q, O, I)"""
    right: Tensor | None
    """(Q, R, I); None where V is whole"""

    def row_scores(self, x: Tensor, delta: Tensor) -> Tensor:
        """Return (Q, B) of a layer's inputs (B, T, I) and output gradients (B, T, O)."""
        if self.right is None:
            return self.left.flatten(1) @ outer_sum(x, delta).flatten(1).T
        return self.token_scores(x, delta).sum(2)

    def token_scores(self, x: Tensor, delta: Tensor) -> Tensor:
        """Return (Q, B, T), whose sum over tokens are the rows' scores."""
        x, delta = x.float(), delta.float()
        rights = [x] * len(self.left) if self.right is None else x @ self.right.transpose(1, 2)[:, None]
        return torch.stack([(delta @ left * right).sum(2) for left, right in zip(self.left, rights, strict=True)])


@dataclass(frozen=True)
class StreamedScores:
    """Scores of Q queries for N rows."""

    layers: tuple[str, ...]
    """L names"""
    by_layer: NDArray[np.float64]
    """(L, Q, N)"""
    by_token: list[NDArray[np.float64]] | None
    """of each row (Q, T), over its own tokens; None where it was not asked for"""

    @property
    def values(self) -> NDArray[np.float64]:
        """(Q, N)."""
        values: NDArray[np.float64] = self.by_layer.sum(0)
        return values


def precondition_queries(
    decoder: Decoder,
    factors: Mapping[str, LayerFactors],
    layers: Mapping[str, Layer],
    queries: Sequence[TokenizedRow],
    *,
    max_batch_tokens: int,
    damping: float = DAMPING,
    rank: int | None = None,
) -> dict[str, LayerQueries]:
    """Return what `stream_scores` asks with, by layer.

    Args:
        decoder: whose gradients.
        factors: `ekfac_files.load_ekfac`.
        layers: of the factors.
        queries: Q, few: they are held together.
        max_batch_tokens: padded tokens a batch.
        damping: in mean eigenvalues of each layer.
        rank: of the compression; None keeps whole matrices. A layer that it would not make smaller stays whole.

    Raises:
        ConfigError: when the queries are too many to hold.
    """
    held = {name: _empty(layer, len(queries), rank) for name, layer in layers.items()}
    held_bytes = sum(4 * (block.left.numel() + (0 if block.right is None else block.right.numel())) for block in held.values())
    if held_bytes > HELD_BYTES:
        raise ConfigError(
            f"EK-FAC scores: {len(queries)} queries take {held_bytes:,} bytes; expected at most {HELD_BYTES:,}; "
            "ask fewer at a time, or with a rank"
        )

    def hold(positions: list[int], name: str, x: Tensor, delta: Tensor) -> None:
        block, layer = held[name], factors[name]
        solved = layer.solve_rotated(rotated_outer_sum(x.float(), delta.float(), layer.inputs, layer.outputs), damping)
        if block.right is None:
            block.left[positions] = solved
        else:
            block.left[positions], block.right[positions] = compress(solved, block.left.shape[2])

    for _ in backward_rows(decoder, layers, queries, hold, max_batch_tokens):
        pass
    return held


def compress(matrices: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the nearest matrices of `rank` to (Q, O, I), as (Q, O, R) and (Q, R, I): the leading singular directions of the shorter side."""
    if matrices.shape[1] > matrices.shape[2]:
        right, left = compress(matrices.mT, rank)
        return left.mT, right.mT
    wide = matrices.double()
    directions = eigenvectors(wide @ wide.mT)[..., -rank:]
    return directions.to(matrices), (directions.mT @ wide).to(matrices)


def stream_scores(
    decoder: Decoder,
    layers: Mapping[str, Layer],
    queries: Mapping[str, LayerQueries],
    rows: Sequence[TokenizedRow],
    *,
    max_batch_tokens: int,
    by_token: bool = False,
) -> StreamedScores:
    """Return every query's score of every row, from one pass over the rows.

    Args:
        decoder: whose gradients.
        layers: of the queries.
        queries: `precondition_queries`.
        rows: N.
        max_batch_tokens: padded tokens a batch.
        by_token: whether tokens have scores of their own, too.
    """
    count = len(next(iter(queries.values())).left)
    by_layer = np.zeros((len(layers), count, len(rows)))
    tokens = [np.zeros((count, len(row.input_ids))) for row in rows] if by_token else None
    places = {name: place for place, name in enumerate(layers)}

    def score(positions: list[int], name: str, x: Tensor, delta: Tensor) -> None:
        if tokens is None:
            by_layer[places[name]][:, positions] = queries[name].row_scores(x, delta).double().cpu().numpy()
            return
        found = queries[name].token_scores(x, delta).double().cpu().numpy()
        by_layer[places[name]][:, positions] = found.sum(2)
        for place, position in enumerate(positions):
            tokens[position] += found[:, place, : tokens[position].shape[1]]

    with tqdm(total=len(rows), desc="EK-FAC scores", unit="row", disable=None, leave=False) as progress:
        for positions in backward_rows(decoder, layers, rows, score, max_batch_tokens):
            progress.update(len(positions))
    return StreamedScores(tuple(layers), by_layer, tokens)


def _empty(layer: Layer, count: int, rank: int | None) -> LayerQueries:
    outputs, inputs = layer.out_features, layer.in_features
    new = layer.weight.new_zeros
    if rank is None or rank * (outputs + inputs) >= outputs * inputs:
        return LayerQueries(new(count, outputs, inputs, dtype=torch.float32), None)
    return LayerQueries(new(count, outputs, rank, dtype=torch.float32), new(count, rank, inputs, dtype=torch.float32))
