"""Leading directions of each layer's inputs and outputs, found on a sample of rows: what a projection had better keep exactly.

A row's gradient is `sum_t delta_t x_t^T`, so its energy lies where `sum_t |delta_t|^2 x_t x_t^T` (inputs) and
`sum_t |x_t|^2 delta_t delta_t^T` (outputs) have theirs: a few dozen directions of several hundred. LoGra can be initialised with
such directions (arXiv 2405.13954, section 3.2). Dropping the others biases inner products a little, where a random factor of as
many rows is unbiased and noisy: docs/LOG.md has the comparison, a mixture of both (worse than either end) with it.

Legend: I inputs, O outputs, K leading directions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from influcoder.errors import RunError
from influcoder.influence.capture import Layer, capture, frozen, layer_groups
from influcoder.influence.decoder import Decoder
from influcoder.influence.tokens import TokenizedRow, pad, pad_token_id, row_losses, token_batches

HELD_BYTES = 2 << 30
"""of second moments at once; more layers take another pass over the sample"""
EXACT_SIZE = 512
"""features up to which all eigenvectors are computed; above, the leading ones alone, by subspace iteration: hundreds of times faster"""


@dataclass(frozen=True)
class Basis:
    """Orthonormal rows by layer, strongest first."""

    inputs: Mapping[str, Tensor]
    """(K, I)"""
    outputs: Mapping[str, Tensor]
    """(K, O)"""

    def save(self, path: Path) -> None:
        """Write one safetensors file."""
        sides = {"inputs": self.inputs, "outputs": self.outputs}
        save_file({f"{side}.{name}": rows.contiguous().cpu() for side, found in sides.items() for name, rows in found.items()}, path)

    @staticmethod
    def load(path: Path) -> Basis:
        """Read what `save` wrote.

        Raises:
            RunError: when it is missing or unreadable.
        """
        try:
            content = load_file(path)
        except (OSError, safetensors.SafetensorError) as error:
            raise RunError(f"{path}: not readable ({error}); expected the basis of a teacher run; run the teacher again") from error
        sides: dict[str, dict[str, Tensor]] = {"inputs": {}, "outputs": {}}
        for key, rows in content.items():
            side, _, name = key.partition(".")
            sides[side][name] = rows
        return Basis(**sides)


def fit_basis(
    decoder: Decoder, layers: Mapping[str, Layer], rows: Sequence[TokenizedRow], *, inputs: int, outputs: int, max_batch_tokens: int
) -> Basis:
    """Return the leading directions over `rows`.

    Args:
        decoder: whose layers.
        layers: `self_check.usable_layers`.
        rows: a sample of the pool.
        inputs: K of the inputs; 0 for none.
        outputs: K of the outputs; 0 for none.
        max_batch_tokens: padded tokens a batch.
    """
    found: dict[str, dict[str, Tensor]] = {"inputs": {}, "outputs": {}}
    counts = {"inputs": inputs, "outputs": outputs}
    for group in _groups(layers, inputs, outputs):
        for (side, name), moment in _second_moments(decoder, group, rows, counts, max_batch_tokens).items():
            found[side][name] = leading_directions(moment, counts[side]).cpu()
    return Basis(**found)


def _second_moments(
    decoder: Decoder, layers: Mapping[str, Layer], rows: Sequence[TokenizedRow], counts: Mapping[str, int], max_batch_tokens: int
) -> dict[tuple[str, str], Tensor]:
    """Return the weighted second moments by side and layer, (F, F), of the sides whose count is above 0."""
    moments: dict[tuple[str, str], Tensor] = {}

    def consume(name: str, x: Tensor, delta: Tensor) -> None:
        x, delta = x.flatten(0, 1).float(), delta.flatten(0, 1).float()
        for side, mine, other in (("inputs", x, delta), ("outputs", delta, x)):
            if counts[side]:
                weighted = mine * other.square().sum(1, keepdim=True)
                moments[side, name] = moments.get((side, name), 0) + weighted.T @ mine

    for positions in token_batches(rows, max_batch_tokens):
        batch = pad([rows[position] for position in positions], pad_token_id(decoder.tokenizer), decoder.device)
        with frozen(decoder.model), capture(layers, consume), torch.enable_grad():
            row_losses(decoder.model, *batch).sum().backward()
    return moments


def leading_directions(moment: Tensor, count: int) -> Tensor:
    """Return the `count` eigenvectors of largest eigenvalue as rows, of a symmetric `(F, F)`."""
    if len(moment) <= EXACT_SIZE:
        vectors: Tensor = torch.linalg.eigh(moment.double())[1]
        return vectors.flip(1)[:, :count].T.float()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torch.svd_lowrank(moment, q=min(len(moment), count + 16), niter=4)[0][:, :count].T.float()


def _groups(layers: Mapping[str, Layer], inputs: int, outputs: int) -> list[dict[str, Layer]]:
    def size(layer: Layer) -> int:
        return 4 * (layer.in_features**2 * bool(inputs) + layer.out_features**2 * bool(outputs))

    return layer_groups(layers, size, HELD_BYTES)
