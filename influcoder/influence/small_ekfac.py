"""EK-FAC of a small model, as a solve of flat vectors beside the exact ones.

Legend: B vectors, P parameters, O outputs, I inputs of a layer.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import vmap

from influcoder.errors import ConfigError
from influcoder.influence.capture import as_layer, capture
from influcoder.influence.damped_solve import Solve
from influcoder.influence.ekfac import DAMPING, LayerFactors, fit_ekfac, prepare
from influcoder.influence.influence_function import CHUNK_ROWS, by_block
from influcoder.influence.pseudo_gradients import Cotangents, output_batches, softmax_cotangents
from influcoder.influence.row_model import RowModel, Rows


def fit_small_ekfac(model: RowModel, rows: Rows, cotangents: Cotangents = softmax_cotangents) -> dict[str, LayerFactors]:
    """Return each layer's factors at the model's parameters; `cotangents` belong to its loss.

    Raises:
        ConfigError: when some parameters are not those of a Linear with a bias.
    """
    modules = {name: model.module.get_submodule(name) for name in model.blocks}
    for name, module in modules.items():
        if not isinstance(module, nn.Linear) or module.bias is None:
            raise ConfigError(
                f"ekfac: {name or 'the model'} is a {type(module).__name__}; expected every parameter in a Linear with a bias"
            )
    layers = {name: layer for name, module in modules.items() if (layer := as_layer(module))}
    return fit_ekfac(layers, output_batches(model.module, rows.inputs.to(model.dtype), cotangents), bias=True)


def ekfac_solve(model: RowModel, factors: Mapping[str, LayerFactors], damping: float = DAMPING) -> Solve:
    """Return the solve of flat vectors; damping in mean eigenvalues of each layer."""
    return by_block(model.blocks, {name: _flat(layer, damping) for name, layer in factors.items()})


def ekfac_self_influence(model: RowModel, factors: Mapping[str, LayerFactors], rows: Rows, damping: float = DAMPING) -> NDArray[np.float64]:
    """Return `g^T (G + l)^-1 g` of each row's gradient, (N,), which is never written out.

    A layer's gradient is an outer product, delta x^T, and so is its rotation: `sum_oi (Q_S^T delta)_o^2 (Q_A^T x)_i^2 / (Lambda + l)_oi`.
    """
    layers = {name: layer for name in factors if (layer := as_layer(model.module.get_submodule(name)))}
    found = []
    for chunk in rows.chunks(CHUNK_ROWS):
        sums = torch.zeros(len(chunk), dtype=torch.float64)

        def add(name: str, x: Tensor, delta: Tensor, sums: Tensor = sums) -> None:
            layer = factors[name]
            inputs, outputs = (side[:, 0] for side in prepare(x, delta, None, bias=True))
            rotated = (outputs @ layer.outputs).square(), (inputs @ layer.inputs).square()
            sums += ((rotated[0] @ layer.damped(damping).reciprocal()) * rotated[1]).sum(1).double()

        with capture(layers, add), torch.enable_grad():
            outputs = model.module(chunk.inputs.to(model.dtype).requires_grad_())
            torch.autograd.grad(vmap(model.loss)(outputs, chunk.targets).sum(), [outputs, *model.module.parameters()])
        found.append(sums)
    return torch.cat(found).numpy()


def _flat(layer: LayerFactors, damping: float) -> Solve:
    outputs, inputs = layer.values.shape

    def solve(vectors: Tensor) -> Tensor:
        weight, bias = vectors.split([outputs * (inputs - 1), outputs], dim=1)
        solved = layer.solve(torch.cat([weight.view(-1, outputs, inputs - 1), bias[..., None]], dim=2), damping)
        return torch.cat([solved[..., :-1].flatten(1), solved[..., -1]], dim=1)

    return solve
