"""The truth here: a linear model's response in closed form, SciPy's minimiser, KL divergences, and the damped Gauss-Newton response."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize

from influcoder.errors import RunError
from influcoder.influence import pbrf
from influcoder.influence.influence_function import CurvatureConfig, influence_function
from influcoder.influence.pbrf import proximal_response, responses
from influcoder.influence.retraining import measure
from tests.influcoder.small_models import (
    class_rows,
    classifier,
    regression,
    regression_rows,
    slow_gauss_newton,
    slow_gradients,
    slow_losses,
)

Array = NDArray[np.float64]
DAMPING = 0.05


@pytest.mark.parametrize("epsilon", [0.1, -0.1])
def test_the_response_of_a_linear_model_is_its_closed_form(epsilon: float) -> None:
    rows = regression_rows(10)
    model = regression(rows, 0.5)
    for place in range(3):
        x, gradient = rows.inputs[place].numpy(), slow_gradients(model, rows)[place]
        matrix = slow_gauss_newton(model, rows) + DAMPING * np.eye(4) - epsilon * np.outer(x, x)
        expected = epsilon * np.linalg.solve(matrix, gradient)
        found = proximal_response(model, rows, place, DAMPING, epsilon) - model.theta
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_it_minimises_the_divergences_from_the_trained_answers() -> None:
    model, rows, place, epsilon = classifier(), class_rows(12), 4, 1 / 12
    before = torch.log_softmax(model.outputs(model.theta, rows.inputs), 1)

    def objective(point: Array) -> float:
        theta = torch.from_numpy(point)
        after = torch.log_softmax(model.outputs(theta, rows.inputs), 1)
        divergence = (before.exp() * (before - after)).sum(1).mean()  # KL of the answers at theta_s from those at theta
        row = slow_losses(model, theta, rows[place : place + 1])[0]
        return float(divergence - epsilon * row + DAMPING / 2 * (theta - model.theta).square().sum())

    found = proximal_response(model, rows, place, DAMPING, epsilon)
    best = minimize(objective, model.theta.numpy(), method="BFGS", options={"gtol": 1e-6})
    assert objective(found.numpy()) <= best.fun + 1e-9
    np.testing.assert_allclose(found, best.x, atol=1e-4)


def test_small_responses_are_what_scores_say_in_size_and_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pbrf, "GRADIENT_TOLERANCE", 1e-9)
    model, rows, queries = classifier(), class_rows(12), class_rows(5, seed=3)
    many = rows[torch.arange(12).repeat(400)]  # the same mean; 1 / N is small
    config = CurvatureConfig(damping=DAMPING, relative=False)
    scores = influence_function(model, rows, config).scores(queries, rows[:3])
    for sign in (1, -1):
        found = responses(model, many, np.arange(3), DAMPING, partial(measure, model, queries=queries), sign=sign)
        np.testing.assert_allclose(found, scores, rtol=0.02, atol=0.005 * np.abs(scores).max())


@pytest.mark.parametrize("sign", [1, -1])
def test_responses_are_changes_over_epsilon_of_the_row_given_up_or_doubled(sign: int) -> None:
    model, rows, queries = classifier(), class_rows(12), class_rows(5, seed=3)
    ask = partial(measure, model, queries=queries)
    found = responses(model, rows, np.array([4, 1]), DAMPING, ask, sign=sign)
    for column, place in enumerate((4, 1)):
        after = slow_losses(model, proximal_response(model, rows, place, DAMPING, sign / 12), queries)
        expected = (after - slow_losses(model, model.theta, queries)) * 12 * sign
        np.testing.assert_allclose(found[:, column], expected, rtol=1e-9, atol=1e-12)
    assert not np.allclose(found, responses(model, rows, np.array([4, 1]), DAMPING, ask, sign=-sign), rtol=0.01)


def test_a_minimiser_that_is_not_found_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pbrf, "MAX_ITERATIONS", 2)
    with pytest.raises(RunError, match=r"response of row 3: gradient \d.* after at most 2 iterations; expected 1e-07; take float64"):
        proximal_response(classifier(), class_rows(12), 3, DAMPING, 1 / 12)
