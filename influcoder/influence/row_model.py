"""A small model as a function of one flat vector of parameters, with a loss a row: what curvature and retraining differentiate.

The module is copied in eval mode and never changed; every function takes the parameters it is to be evaluated at, so that many models
are one `torch.vmap` over their vectors.

Legend: B rows, K outputs of a row, P parameters.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from influcoder.errors import DataError

RowLoss = Callable[[Tensor, Tensor], Tensor]
"""(outputs (K,), target) of one row -> a scalar, the lower the better; made of operations that `torch.func` differentiates twice"""


@dataclass(frozen=True)
class Rows:
    """Inputs with what the model should say to them."""

    inputs: Tensor
    """(N, ...)"""
    targets: Tensor
    """(N, ...)"""

    def __post_init__(self) -> None:
        if len(self.inputs) != len(self.targets) or not len(self.inputs):
            raise DataError(f"rows: {len(self.inputs)} inputs, {len(self.targets)} targets; expected as many of each, and at least one")

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, places: slice | Tensor) -> Rows:
        return Rows(self.inputs[places], self.targets[places])

    def chunks(self, size: int) -> Iterator[Rows]:
        """Yield the rows in order, `size` at a time."""
        for start in range(0, len(self), size):
            yield self[start : start + size]


class RowModel:
    """A module and the loss of a row."""

    def __init__(self, module: nn.Module, loss: RowLoss, dtype: torch.dtype = torch.float64) -> None:
        """Copy a module.

        Args:
            module: inputs (B, ...) to outputs (B, K), each row by itself.
            loss: of one row.
            dtype: of the copy, and of every floating input; in float32 a solve reaches about 1e-3 of its right side.
        """
        self.module, self.loss, self.dtype = copy.deepcopy(module).to(dtype).eval(), loss, dtype
        named = dict(self.module.named_parameters())
        self._names, self._shapes = list(named), [parameter.shape for parameter in named.values()]
        self.theta = torch.cat([parameter.detach().flatten() for parameter in named.values()])
        """the module's own parameters, (P,)"""

    def at(self, theta: Tensor) -> RowModel:
        """Return the model with other parameters, (P,)."""
        moved = RowModel(self.module, self.loss, self.dtype)
        moved.module.load_state_dict(self.named(theta), strict=False)
        moved.theta = theta.detach().clone()
        return moved

    @property
    def blocks(self) -> dict[str, slice]:
        """Where each module's own parameters, its bias among them, stand in the vector; by the module's name."""
        blocks: dict[str, slice] = {}
        start = 0
        for name, shape in zip(self._names, self._shapes, strict=True):
            owner, stop = name.rpartition(".")[0], start + shape.numel()
            blocks[owner] = slice(blocks[owner].start if owner in blocks else start, stop)
            start = stop
        return blocks

    def named(self, theta: Tensor) -> dict[str, Tensor]:
        """Return the vector's parts, each in its parameter's shape."""
        parts = theta.split([shape.numel() for shape in self._shapes])
        return {name: part.view(shape) for name, part, shape in zip(self._names, parts, self._shapes, strict=True)}

    def outputs(self, theta: Tensor, inputs: Tensor) -> Tensor:
        """Return (B, K)."""
        cast = inputs.to(self.dtype) if inputs.is_floating_point() else inputs
        outputs: Tensor = functional_call(self.module, self.named(theta), (cast,))
        return outputs

    def losses(self, theta: Tensor, rows: Rows, loss: RowLoss | None = None) -> Tensor:
        """Return the loss of each row, (B,); `loss` takes the place of the model's own."""
        losses: Tensor = vmap(loss or self.loss)(self.outputs(theta, rows.inputs), rows.targets)
        return losses

    def gradients(self, theta: Tensor, rows: Rows, loss: RowLoss | None = None) -> Tensor:
        """Return the gradient of each row's loss, (B, P)."""

        def row_loss(theta: Tensor, one: Tensor, target: Tensor) -> Tensor:
            return (loss or self.loss)(self.outputs(theta, one[None])[0], target)

        gradients: Tensor = vmap(grad(row_loss), in_dims=(None, 0, 0))(theta, rows.inputs, rows.targets)
        return gradients
