"""Inner products of whole gradients, nothing projected: the ground truth for up to a few thousand rows.

Query gradients of one block are held layer by layer; rows stream past them. Memory is `max_bytes`, whatever the number of rows;
time is one pass over the rows a block of queries.

Legend: Q queries, N rows, B rows of a batch, O outputs, I inputs of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from influcoder.errors import ConfigError
from influcoder.influence.capture import Layer, capture, frozen, outer_sum
from influcoder.influence.decoder import Decoder
from influcoder.influence.gradients import Transform
from influcoder.influence.tokens import TokenizedRow, pad, pad_token_id, row_losses, token_batches

Use = Callable[[list[int], str, Tensor], None]
Take = Callable[..., Iterator[list[int]]]
"""`whole_gradients` of one decoder"""


@dataclass(frozen=True)
class ExactProducts:
    """What the whole gradients say."""

    products: NDArray[np.float64]
    """(Q, N) inner products"""
    query_norms: NDArray[np.float64]
    """(Q,) lengths"""
    row_norms: NDArray[np.float64]
    """(N,) lengths"""

    @property
    def cosines(self) -> NDArray[np.float64]:
        """(Q, N)."""
        cosines: NDArray[np.float64] = self.products / self.query_norms[:, None] / self.row_norms
        return cosines


def exact_products(
    decoder: Decoder,
    layers: Mapping[str, Layer],
    queries: Sequence[TokenizedRow],
    rows: Sequence[TokenizedRow],
    *,
    max_batch_tokens: int,
    max_bytes: int = 2 << 30,
    query_transform: Transform | None = None,
    row_transform: Transform | None = None,
    unit_layers: bool = False,
) -> ExactProducts:
    """Return the inner products of every query's gradient with every row's.

    Args:
        decoder: whose gradients.
        layers: `self_check.usable_layers`.
        queries: Q.
        rows: N.
        max_batch_tokens: padded tokens a batch.
        max_bytes: of query gradients in memory at once.
        query_transform: of a query's whole gradient before the product, if any.
        row_transform: the same for rows.
        unit_layers: scale each layer's gradient to length 1 first.

    Raises:
        ConfigError: when one query's gradient is larger than `max_bytes`.
    """
    bytes_each = 4 * sum(layer.in_features * layer.out_features for layer in layers.values())
    size = max_bytes // bytes_each
    if size < 1:
        raise ConfigError(
            f"exact products: a gradient takes {bytes_each:,} bytes; expected at most {max_bytes:,}; allow more, or go without"
        )
    take = partial(whole_gradients, decoder, layers, max_batch_tokens=max_batch_tokens, unit_layers=unit_layers)
    products, row_squares = torch.zeros(len(queries), len(rows), dtype=torch.float64), torch.zeros(len(rows), dtype=torch.float64)
    query_squares = torch.zeros(len(queries), dtype=torch.float64)
    starts = range(0, len(queries), size)
    with tqdm(total=len(starts) * len(rows), desc="exact products", unit="row", disable=None, leave=False) as progress:
        for start in starts:
            block = slice(start, start + size)
            held, query_squares[block] = _hold(take, queries[block], query_transform)
            for positions in _multiply(take, held, rows, row_transform, products[block], row_squares if start == 0 else None):
                progress.update(len(positions))
    return ExactProducts(products.numpy(), query_squares.sqrt().numpy(), row_squares.sqrt().numpy())


def whole_gradients(
    decoder: Decoder,
    layers: Mapping[str, Layer],
    rows: Sequence[TokenizedRow],
    use: Use,
    transform: Transform | None = None,
    *,
    max_batch_tokens: int,
    unit_layers: bool = False,
) -> Iterator[list[int]]:
    """Call `use(positions, layer, gradients (B, O * I) float32)` for every batch and layer; yield the positions of each finished batch."""

    def take(positions: list[int], name: str, x: Tensor, delta: Tensor) -> None:
        gradient = outer_sum(x, delta)
        flat = (gradient if transform is None else transform(name, gradient)).flatten(1)
        use(positions, name, torch.nn.functional.normalize(flat) if unit_layers else flat)

    return backward_rows(decoder, layers, rows, take, max_batch_tokens)


def backward_rows(
    decoder: Decoder,
    layers: Mapping[str, Layer],
    rows: Sequence[TokenizedRow],
    use: Callable[[list[int], str, Tensor, Tensor], None],
    max_batch_tokens: int,
) -> Iterator[list[int]]:
    """Call `use(positions, layer, x (B, T, I), delta (B, T, O))` for every batch and layer; yield the positions of each finished batch."""
    for positions in token_batches(rows, max_batch_tokens):
        batch = pad([rows[position] for position in positions], pad_token_id(decoder.tokenizer), decoder.device)
        with frozen(decoder.model), capture(layers, partial(use, positions)), torch.enable_grad():
            row_losses(decoder.model, *batch).sum().backward()
        yield positions


def _hold(take: Take, queries: Sequence[TokenizedRow], transform: Transform | None) -> tuple[dict[str, Tensor], Tensor]:
    """Return the queries' gradients by layer, each (Q, O * I), and their squared lengths."""
    held: dict[str, Tensor] = {}
    squares = torch.zeros(len(queries), dtype=torch.float64)

    def hold(positions: list[int], name: str, gradient: Tensor) -> None:
        held.setdefault(name, gradient.new_zeros(len(queries), gradient.shape[1]))[positions] = gradient
        squares[positions] += _squares(gradient)

    for _ in take(queries, hold, transform):
        pass
    return held, squares


def _multiply(
    take: Take,
    held: Mapping[str, Tensor],
    rows: Sequence[TokenizedRow],
    transform: Transform | None,
    products: Tensor,
    squares: Tensor | None,
) -> Iterator[list[int]]:
    """Add the held gradients' products with every row to `products`, and the rows' squared lengths to `squares`, batch by batch."""

    def multiply(positions: list[int], name: str, gradient: Tensor) -> None:
        products[:, positions] += (held[name] @ gradient.T).double().cpu()
        if squares is not None:
            squares[positions] += _squares(gradient)

    yield from take(rows, multiply, transform)


def _squares(gradient: Tensor) -> Tensor:
    return gradient.square().sum(1).double().cpu()
