"""The closed form against a dense ridge regression, and what it recovers of influence that is really there."""

from __future__ import annotations

import numpy as np
import pytest

from influcoder.behavioural import PENALTIES, _path, fit_behaviour
from influcoder.errors import DataError
from influcoder.lds import half_masks, lds


def problem(noise: float, subsets: int = 60) -> tuple[np.ndarray, ...]:
    random = np.random.default_rng(0)
    queries, rows = random.normal(size=(12, 5)), random.normal(size=(40, 5))
    truth = random.normal(size=(5, 5))
    masks = half_masks(subsets, 40, 0)
    outputs = (queries @ truth @ rows.T @ masks.T).T
    outputs = outputs + noise * outputs.std() * random.normal(size=outputs.shape) + 3.0 * random.normal(size=12)
    return queries, rows, truth, masks, outputs


def test_the_closed_form_is_the_dense_ridge_regression() -> None:
    queries, rows, _, masks, outputs = problem(0.5, subsets=15)
    groups = masks @ rows
    centred, y = groups - groups.mean(0), outputs - outputs.mean(0)
    design = np.einsum("md,qe->mqed", centred, queries).reshape(15 * 12, 25)
    scale = (np.linalg.norm(centred, 2) * np.linalg.norm(queries, 2)) ** 2
    for weights, penalty in zip(_path(queries, groups, outputs), PENALTIES, strict=True):
        dense = np.linalg.solve(design.T @ design + penalty * scale * np.eye(25), design.T @ y.reshape(-1))
        np.testing.assert_allclose(weights, dense.reshape(5, 5), rtol=1e-6, atol=1e-9)


def test_influence_that_is_bilinear_is_found() -> None:
    queries, rows, truth, masks, outputs = problem(0.0)
    fit = fit_behaviour(queries, rows, masks, outputs)
    wanted = queries @ truth @ rows.T
    found = fit.scores(queries, rows)
    # what all rows share is not seen, since every subset has half of them
    centred = [scores - scores.mean(1, keepdims=True) for scores in (wanted, found)]
    assert np.corrcoef(centred[0].ravel(), centred[1].ravel())[0, 1] > 0.99
    assert fit.held_out_lds > 0.95
    other = np.random.default_rng(1).normal(size=(7, 5))
    assert lds(fit.scores(other, rows).astype(float), masks, (other @ truth @ rows.T @ masks.T).T).mean() > 0.95


def test_noise_is_answered_by_a_penalty_and_said() -> None:
    queries, rows, _, masks, outputs = problem(3.0)
    noisy, clean = fit_behaviour(queries, rows, masks, outputs), fit_behaviour(queries, rows, masks, problem(0.0)[4])
    assert noisy.penalty > clean.penalty
    assert noisy.held_out_lds < clean.held_out_lds
    random = np.random.default_rng(2).normal(size=outputs.shape)
    assert abs(fit_behaviour(queries, rows, masks, random).held_out_lds) < 0.2


def test_shapes_that_do_not_fit_are_refused() -> None:
    queries, rows, _, masks, outputs = problem(0.0)
    with pytest.raises(DataError, match="expected"):
        fit_behaviour(queries[:-1], rows, masks, outputs)
    with pytest.raises(DataError, match="at least 15 subsets"):
        fit_behaviour(queries, rows, masks[:10], outputs[:10])
