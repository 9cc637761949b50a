"""Small models, their rows, and slow truths about them: loops of backward passes, matrices of `torch.autograd.functional`."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from influcoder.influence.row_model import RowLoss, RowModel, Rows

Array = NDArray[np.float64]


def classifier(seed: int = 0) -> RowModel:
    """Return a tanh network of 5 inputs and 3 classes, 43 parameters."""
    torch.manual_seed(seed)
    return RowModel(nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3), nn.Identity()), nn.functional.cross_entropy)


def class_rows(count: int, seed: int = 0) -> Rows:
    source = torch.Generator().manual_seed(seed)
    return Rows(torch.randn(count, 5, generator=source, dtype=torch.float64), torch.randint(3, (count,), generator=source))


def half_square(outputs: Tensor, target: Tensor) -> Tensor:
    return (outputs[0] - target).square() / 2


def regression(rows: Rows, ridge: float) -> RowModel:
    """Return the linear model that minimises the mean loss plus `ridge / 2 |theta|^2`, solved in closed form."""
    module = nn.Linear(rows.inputs.shape[1], 1, bias=False).double()
    x, y = rows.inputs.numpy(), rows.targets.numpy()
    solution = np.linalg.solve(x.T @ x / len(x) + ridge * np.eye(x.shape[1]), x.T @ y / len(x))
    with torch.no_grad():
        module.weight[:] = torch.from_numpy(solution)
    return RowModel(module, half_square)


def regression_rows(count: int, seed: int = 0) -> Rows:
    source = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 4, generator=source, dtype=torch.float64) * torch.tensor([3.0, 2, 1, 0.5], dtype=torch.float64)
    return Rows(x, x.sum(1) + torch.randn(count, generator=source, dtype=torch.float64))


def slow_losses(model: RowModel, theta: Tensor, rows: Rows, loss: RowLoss | None = None) -> Tensor:
    """Return (N,), one row a call."""
    outputs = [functional_call(model.module, model.named(theta), (one[None],))[0] for one in rows.inputs]
    return torch.stack([(loss or model.loss)(found, target) for found, target in zip(outputs, rows.targets, strict=True)])


def slow_gradients(model: RowModel, rows: Rows, loss: RowLoss | None = None) -> Array:
    """Return (N, P), one backward pass a row."""
    theta = model.theta.clone().requires_grad_()
    gradients = [torch.autograd.grad(slow_losses(model, theta, rows[place : place + 1], loss)[0], theta)[0] for place in range(len(rows))]
    return torch.stack(gradients).numpy()


def slow_hessian(model: RowModel, rows: Rows) -> Array:
    """Return (P, P) of the mean loss, by double backward."""
    found = torch.autograd.functional.hessian(lambda theta: slow_losses(model, theta, rows).mean(), model.theta)
    assert isinstance(found, Tensor)
    return found.numpy()


def slow_gauss_newton(model: RowModel, rows: Rows) -> Array:
    """Return the mean of J^T H J, (P, P), of each row's Jacobian and the Hessian of its loss."""
    total = np.zeros((len(model.theta),) * 2)
    for one, target in zip(rows.inputs, rows.targets, strict=True):

        def outputs(theta: Tensor, one: Tensor = one) -> Tensor:
            found: Tensor = functional_call(model.module, model.named(theta), (one[None],))[0]
            return found

        jacobian = torch.autograd.functional.jacobian(outputs, model.theta)
        inner = torch.autograd.functional.hessian(lambda found, target=target: model.loss(found, target), outputs(model.theta))
        assert isinstance(jacobian, Tensor) and isinstance(inner, Tensor)
        total += (jacobian.T @ inner @ jacobian).numpy()
    return total / len(rows)
