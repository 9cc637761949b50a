"""EK-FAC: the Gauss-Newton matrix of each layer in a Kronecker eigenbasis, with eigenvalues measured there, and its damped inverse.

With x a layer's inputs and delta the gradients at its outputs for labels *drawn from the model*, the layer's Gauss-Newton is near
A (x) S with A = E[x x^T], S = E[delta delta^T] (K-FAC, Martens & Grosse 2015). Its eigenbasis Q_A, Q_S is kept and its eigenvalues are
replaced by the second moments of rotated per-row pseudo-gradients g = sum_t delta_t x_t^T (George et al. 2018, arXiv 1806.03884):

    Lambda = E[(Q_S^T g Q_A)^2]        (G + l)^-1 v = Q_S [(Q_S^T v Q_A) / (Lambda + l)] Q_A^T        l = damping * mean(Lambda)

as in Grosse et al. (arXiv 2308.03296, equations 16 to 20), whose damping is .1. Eigenvectors are columns. A and S are over positions
and only give directions; Lambda is over rows.

Legend: B rows, T positions, I inputs (one more with a bias), O outputs, N all rows, C classes or output coordinates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from influcoder.influence.capture import Layer, capture, layer_groups

DAMPING = 0.1
HELD_BYTES = 2 << 30
"""of moments at once; more layers take other passes over the rows"""


@dataclass(frozen=True)
class LayerFactors:
    """One layer's Gauss-Newton matrix, `(Q_S (x) Q_A) diag(Lambda) (Q_S (x) Q_A)^T`."""

    inputs: Tensor
    """Q_A (I, I), eigenvectors as columns"""
    outputs: Tensor
    """Q_S (O, O), eigenvectors as columns"""
    values: Tensor
    """Lambda (O, I), at least 0"""

    def damped(self, damping: float = DAMPING) -> Tensor:
        """Return `Lambda + damping * mean(Lambda)`, (O, I); infinite in a layer without gradients, so that it counts for nothing."""
        mean = self.values.mean()
        return self.values + damping * mean if mean > 0 else torch.full_like(self.values, torch.inf)

    def rotate(self, gradient: Tensor) -> Tensor:
        """Return `Q_S^T g Q_A` of each gradient, (B, O, I)."""
        return self.outputs.T.to(gradient.dtype) @ gradient @ self.inputs.to(gradient.dtype)

    def solve(self, gradient: Tensor, damping: float = DAMPING) -> Tensor:
        """Return `(G + l)^-1 g` of each gradient, (B, O, I); damping in (0, inf), in mean eigenvalues."""
        return self.solve_rotated(self.rotate(gradient), damping)

    def solve_rotated(self, rotated: Tensor, damping: float = DAMPING) -> Tensor:
        """Return `(G + l)^-1 g`, (B, O, I), of gradients that are rotated already."""
        shrunk = rotated / self.damped(damping).to(rotated.dtype)
        return self.outputs.to(rotated.dtype) @ shrunk @ self.inputs.T.to(rotated.dtype)

    def half(self, gradient: Tensor, damping: float = DAMPING) -> Tensor:
        """Return `(Q_S^T g Q_A) / sqrt(Lambda + l)`, (B, O, I), whose inner products are `g^T (G + l)^-1 g'`."""
        return self.rotate(gradient) * self.damped(damping).rsqrt().to(gradient.dtype)


@dataclass(frozen=True)
class Whitening:
    """`(G + l)^(-1/2) g` of a model's layers, in their eigenbases: a transform of whole gradients."""

    factors: Mapping[str, LayerFactors]
    damping: float = DAMPING

    def __call__(self, name: str, gradient: Tensor) -> Tensor:
        """Return the whitened gradients of one layer, (B, O, I)."""
        return self.factors[name].half(gradient, self.damping)

    def outer_sum(self, name: str, x: Tensor, delta: Tensor) -> Tensor:
        """Return the same of `sum_t delta x^T`, (B, O, I) float32, of x (B, T, I) and delta (B, T, O).

        Rows are mostly shorter than layers are wide, and their positions fewer to rotate than their gradients' rows and columns.
        """
        factors = self.factors[name]
        rotated = rotated_outer_sum(x.float(), delta.float(), factors.inputs.float(), factors.outputs.float())
        return rotated.mul_(factors.damped(self.damping).rsqrt().float())

    def leading(self, count: int) -> dict[str, Tensor]:
        """Return the places in each layer's flat (O * I) of the `count` coordinates whose Lambda is largest beside l; all when fewer.

        Whitened gradients are nearly isotropic: a random sketch of them is mostly noise, while these carry the largest terms of products.
        """
        shares = {name: (layer.values / layer.damped(self.damping)).flatten().cpu() for name, layer in self.factors.items()}
        joined = torch.cat(list(shares.values()))
        chosen = torch.zeros_like(joined, dtype=torch.bool)
        chosen[joined.topk(min(count, len(joined))).indices] = True
        parts = chosen.split([len(share) for share in shares.values()])
        return {name: part.nonzero()[:, 0] for name, part in zip(shares, parts, strict=True)}


@dataclass(frozen=True)
class PseudoBatch:
    """Rows whose losses have labels that the model itself would give.

    `backward` runs one backward pass a draw, each over the sum of the rows' losses, scaled so that a row's gradients g_1, g_2, ...
    have `E sum_d g_d g_d^T` = its Gauss-Newton matrix: 1 / sqrt(draws) of sampled labels, sqrt(p_c) where every class c is gone through.
    """

    rows: int
    backward: Callable[[], None]
    mask: Tensor | None = None
    """(B, T): 1 at real positions, 0 at padding; None where a layer sees one position a row, (B, I)"""


Batches = Callable[[int], Iterable[PseudoBatch]]
"""of a pass, `FOR_VECTORS` or `FOR_VALUES`: the same rows each time; labels that are drawn are others in each pass, since eigenvalues in a basis
that their own labels gave come out too far apart, and other labels then give other scores"""
FOR_VECTORS, FOR_VALUES = 0, 1
Vectors = tuple[Tensor, Tensor]
"""Q_A (I, I) and Q_S (O, O), float32 (float64 of a float64 layer)"""


def fit_ekfac(layers: Mapping[str, Layer], batches: Batches, *, bias: bool = False, max_bytes: int = HELD_BYTES) -> dict[str, LayerFactors]:
    """Return each layer's factors: two passes over the rows a group of layers.

    Args:
        layers: as of `capture.gradient_layers`.
        batches: gives the rows anew for every pass.
        bias: append a homogeneous 1 to each input, so that the last column of a gradient is the bias's.
        max_bytes: of moments in memory at once.
    """
    factors: dict[str, LayerFactors] = {}
    for group in layer_groups(layers, lambda layer: factor_bytes(layer, bias=bias), max_bytes):
        vectors = fit_vectors(group, batches, bias=bias)
        factors |= fit_values(group, batches, vectors, bias=bias)
    return factors


def factor_bytes(layer: Layer, *, bias: bool = False) -> int:
    """Return the memory that fitting one layer takes: float64 sums of each side and of Lambda."""
    inputs, outputs = layer.in_features + bias, layer.out_features
    return 8 * (inputs**2 + outputs**2 + inputs * outputs)


def fit_vectors(layers: Mapping[str, Layer], batches: Batches, *, bias: bool = False) -> dict[str, Vectors]:
    """Return the eigenvectors of sum x x^T and sum delta delta^T over real positions, by layer: one pass over the rows."""
    moments: dict[str, list[Tensor]] = {}
    seen: set[str] = set()  # layers of this batch whose inputs are counted: they are the same in every draw

    def consume(name: str, x: Tensor, delta: Tensor, mask: Tensor | None) -> None:
        x, delta = (positions.flatten(0, 1) for positions in prepare(x, delta, mask, bias=bias))
        if name not in moments:
            moments[name] = [x.new_zeros(size, size, dtype=torch.float64) for size in (x.shape[1], delta.shape[1])]
        if name not in seen:
            moments[name][0] += x.T @ x
        moments[name][1] += delta.T @ delta
        seen.add(name)

    for _ in _run(layers, batches(FOR_VECTORS), consume):
        seen.clear()
    return {
        name: (_kept(layer, eigenvectors(moments[name][0])), _kept(layer, eigenvectors(moments[name][1]))) for name, layer in layers.items()
    }


def fit_values(
    layers: Mapping[str, Layer], batches: Batches, vectors: Mapping[str, Vectors], *, bias: bool = False
) -> dict[str, LayerFactors]:
    """Return the factors with Lambda = mean over rows of (Q_S^T g Q_A)^2, summed over a row's draws: one pass over the rows."""
    values: dict[str, Tensor] = {}
    rows = 0

    def consume(name: str, x: Tensor, delta: Tensor, mask: Tensor | None) -> None:
        x, delta = prepare(x, delta, mask, bias=bias)
        rotated = rotated_outer_sum(x, delta, *(side.to(x) for side in vectors[name]))
        values[name] = values.get(name, 0) + rotated.square_().sum(0).double()

    for batch in _run(layers, batches(FOR_VALUES), consume):
        rows += batch.rows
    return {name: LayerFactors(*vectors[name], _kept(layer, values[name] / rows)) for name, layer in layers.items()}


def eigenvectors(moment: Tensor) -> Tensor:
    """Return the orthonormal eigenvectors of symmetric (..., F, F) as columns, the strongest last, float64."""
    moment = moment.double()
    vectors: Tensor = torch.linalg.eigh((moment + moment.mT) / 2)[1]
    return vectors.contiguous()  # as they are read from a file: products then agree to the last bit


def prepare(x: Tensor, delta: Tensor, mask: Tensor | None, *, bias: bool = False) -> tuple[Tensor, Tensor]:
    """Return x (B, T, I) and delta (B, T, O) in float32 (float64 stays): padding zeroed, a 1 appended to x for the bias."""
    wide = x.dtype if x.dtype == torch.float64 else torch.float32
    if x.ndim == 2:
        x, delta = x[:, None], delta[:, None]
    if bias:
        x = torch.cat([x, torch.ones_like(x[..., :1])], dim=-1)
    x, delta = x.to(wide), delta.to(wide)
    return (x, delta) if mask is None else (x * mask[..., None].to(x), delta)


def _kept(layer: Layer, tensor: Tensor) -> Tensor:
    return tensor if layer.weight.dtype == torch.float64 else tensor.float()


def rotated_outer_sum(x: Tensor, delta: Tensor, inputs: Tensor, outputs: Tensor) -> Tensor:
    """Return `Q_S^T (sum_t delta_t x_t^T) Q_A`, (B, O, I), by the cheaper order."""
    positions, width, height = x.shape[1], x.shape[2], delta.shape[2]
    if positions * (width**2 + height**2) <= width * height * (width + height):
        return torch.bmm((delta @ outputs).transpose(1, 2), x @ inputs)
    return outputs.T @ torch.bmm(delta.transpose(1, 2), x) @ inputs


def _run(
    layers: Mapping[str, Layer], batches: Iterable[PseudoBatch], consume: Callable[[str, Tensor, Tensor, Tensor | None], None]
) -> Iterable[PseudoBatch]:
    """Hand every draw's (name, x, delta, mask) to `consume`; yield each finished batch."""
    for batch in batches:
        with capture(layers, lambda name, x, delta, mask=batch.mask: consume(name, x, delta, mask)), torch.enable_grad():  # type: ignore[misc]
            batch.backward()
        yield batch
