"""The truth here: one model after the other, trained by torch's own SGD on its own rows."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from influcoder.errors import ConfigError
from influcoder.influence.retraining import TrainConfig, leave_one_out, measure, train
from influcoder.influence.row_model import RowModel, Rows
from tests.influcoder.small_models import class_rows, classifier, slow_losses

CONFIG = TrainConfig(epochs=3, batch_size=4, learning_rate=0.2, momentum=0.9, weight_decay=0.01)
QUERIES = class_rows(5, seed=8)


def slow_train(model: RowModel, start: Tensor, rows: Rows, mask: NDArray[np.bool_], seed: int) -> Tensor:
    """Return (P,): SGD by torch, each batch without the rows that the mask leaves out."""
    theta = start.clone().requires_grad_()
    optimizer = torch.optim.SGD([theta], lr=CONFIG.learning_rate, momentum=CONFIG.momentum, weight_decay=CONFIG.weight_decay)
    generator = torch.Generator().manual_seed(seed)
    batches = [batch for _ in range(CONFIG.epochs) for batch in torch.randperm(len(rows), generator=generator).split(CONFIG.batch_size)]
    for step, batch in enumerate(batches):
        optimizer.param_groups[0]["lr"] = CONFIG.learning_rate * (1 - step / len(batches))
        optimizer.zero_grad()
        seen = batch[torch.from_numpy(mask)[batch]]
        loss = slow_losses(model, theta, rows[seen]).mean() if len(seen) else theta.sum() * 0
        loss.backward()
        optimizer.step()
    return theta.detach()


def starts(count: int) -> Tensor:
    return torch.stack([classifier(seed).theta for seed in range(count)])


def test_many_at_once_are_trained_as_each_by_itself() -> None:
    model, rows = classifier(), class_rows(10)
    masks = np.random.default_rng(0).random((6, 10)) < 0.5
    masks[0], masks[1] = True, False
    found = train(model, starts(6), rows, masks, CONFIG, seed=2)
    for place, mask in enumerate(masks):
        np.testing.assert_allclose(found[place], slow_train(model, starts(6)[place], rows, mask, 2), rtol=1e-9, atol=1e-12)


def test_one_start_serves_all_and_is_left_alone() -> None:
    model, rows, start = classifier(), class_rows(10), starts(1)[0]
    masks = np.ones((2, 10), dtype=bool)
    masks[1, 3] = False
    found = train(model, start, rows, masks, CONFIG, seed=0)
    assert torch.equal(start, classifier().theta)
    assert not torch.allclose(found[0], found[1])
    assert torch.equal(found[0], train(model, start, rows, masks[:1], CONFIG, seed=0)[0])
    assert not torch.equal(found[0], train(model, start, rows, masks[:1], CONFIG, seed=1)[0])


def test_measurements_are_the_losses_of_each_copy() -> None:
    model, thetas = classifier(), starts(3)
    found = measure(model, thetas, QUERIES)
    assert found.shape == (3, 5)
    for place, theta in enumerate(thetas):
        np.testing.assert_allclose(found[place], slow_losses(model, theta, QUERIES), rtol=1e-12)
    np.testing.assert_allclose(
        measure(model, thetas, QUERIES, lambda outputs, target: -outputs[0])[1], -model.outputs(thetas[1], QUERIES.inputs)[:, 0]
    )


def test_a_row_left_out_is_compared_with_the_same_seed_that_saw_it() -> None:
    model, rows, left_out = classifier(), class_rows(10), np.array([7, 2])
    found = leave_one_out(model, starts(2), rows, left_out, CONFIG, partial(measure, model, queries=QUERIES))
    assert found.shape == (2, 5, 2)
    for seed in range(2):
        trained = []
        for place in (None, 7, 2):
            mask = np.ones(10, dtype=bool)
            mask[[] if place is None else [place]] = False
            trained.append(slow_losses(model, slow_train(model, starts(2)[seed], rows, mask, seed), QUERIES).numpy())
        np.testing.assert_allclose(found[seed], np.stack([trained[1] - trained[0], trained[2] - trained[0]], axis=1), rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"batch_size": 0}, {"learning_rate": 0.0}, {"momentum": 1.0}, {"weight_decay": -1.0}])
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"training: epochs .* expected positive numbers"):
        TrainConfig(**wrong)
