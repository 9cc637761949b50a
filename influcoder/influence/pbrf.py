"""Proximal Bregman response: what a small model becomes when one row is given up, while its other answers and its weights are held.

    Q(theta) = 1/N sum_i D_i(f(theta, x_i), f(theta_s, x_i)) - epsilon L_m(theta) + l/2 |theta - theta_s|^2
    D_i(y, y_s) = L_i(y) - L_i(y_s) - grad L_i(y_s)^T (y - y_s)         (for cross-entropy: KL of the answers at theta_s from those at theta)

Its minimiser responds to epsilon, in first order, by (G + l)^-1 grad L_m with the Gauss-Newton matrix G: influence functions of
deep nets approximate this, and not retraining (Bae et al., arXiv 2209.05364, sections 3 and 4). epsilon = 1/N gives the row up.

Legend: N rows, Q queries, R rows asked about, P parameters.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import grad, vmap
from tqdm import tqdm

from influcoder.errors import RunError
from influcoder.influence.row_model import RowModel, Rows

Array = NDArray[np.float64]
MAX_ITERATIONS = 500
GRADIENT_TOLERANCE = 1e-7
"""of the objective's largest coordinate, where epsilon grad L_m has about 1e-3"""


def responses(
    model: RowModel, rows: Rows, asked: NDArray[np.integer], damping: float, ask: Callable[[Tensor], Array], *, sign: int = 1
) -> Array:
    """Return what giving up each row does to each query, times N: in the units of scores, (Q, R).

    Args:
        model: trained, float64.
        rows: N that it was trained on.
        asked: R places.
        damping: l, absolute.
        ask: measurement of the queries: thetas (M, P) -> (M, Q), as `retraining.measure` gives.
        sign: -1 doubles the row instead of giving it up. The negative of the same where the response is linear, as scores suppose.

    Raises:
        RunError: when a minimiser is not found.
    """
    epsilon = sign / len(rows)
    found = [proximal_response(model, rows, place, damping, epsilon) for place in tqdm(asked, desc="PBRF", disable=None, leave=False)]
    before = ask(model.theta[None])
    effects: Array = ((ask(torch.stack(found)) - before) / epsilon).T
    return effects


def proximal_response(model: RowModel, rows: Rows, place: int, damping: float, epsilon: float) -> Tensor:
    """Return the minimiser of Q for the row at `place`, (P,), by LBFGS with strong-Wolfe steps from the trained parameters.

    Raises:
        RunError: when the gradient is not 0 at the end, up to rounding.
    """
    objective = _objective(model, rows, rows[place : place + 1], damping, epsilon)
    theta = model.theta.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [theta], max_iter=MAX_ITERATIONS, max_eval=4 * MAX_ITERATIONS, history_size=50, tolerance_grad=GRADIENT_TOLERANCE,
        tolerance_change=0.0, line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = objective(theta)
        loss.backward()
        return loss

    optimizer.step(closure)
    left = float(torch.func.grad(objective)(theta.detach()).abs().max())
    if not left <= 100 * GRADIENT_TOLERANCE:
        raise RunError(
            f"proximal response of row {place}: gradient {left:.1e} after at most {MAX_ITERATIONS} iterations; "
            f"expected {GRADIENT_TOLERANCE:.0e}; take float64 and a larger damping"
        )
    return theta.detach()


def _objective(model: RowModel, rows: Rows, row: Rows, damping: float, epsilon: float) -> Callable[[Tensor], Tensor]:
    """Return Q, up to a constant."""
    trained = model.theta
    answers = model.outputs(trained, rows.inputs)
    slopes = vmap(grad(model.loss))(answers, rows.targets)  # (N, K)

    def objective(theta: Tensor) -> Tensor:
        outputs = model.outputs(theta, rows.inputs)
        bregman = vmap(model.loss)(outputs, rows.targets) - (slopes * outputs).sum(1)
        proximity: Tensor = bregman.mean() + damping / 2 * (theta - trained).square().sum()
        return proximity - epsilon * model.losses(theta, row)[0]

    return objective
