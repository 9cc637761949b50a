"""Leaving out a query's best rows: against models trained one by one, on rows of two kinds of which a query needs its own."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from influcoder.errors import DataError
from influcoder.influence.brittleness import margins_without_best
from influcoder.influence.retraining import TrainConfig, measure, train
from influcoder.influence.row_model import RowModel, Rows

CONFIG = TrainConfig(epochs=20, batch_size=4, learning_rate=0.2)


def margin(outputs: Tensor, target: Tensor) -> Tensor:
    wanted = torch.arange(len(outputs)) == target
    return outputs.masked_fill(~wanted, 0).sum() - outputs.masked_fill(wanted, -torch.inf).logsumexp(0)


def problem() -> tuple[RowModel, Tensor, Rows, Rows]:
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(20) % 2
    inputs = 1 + 0.1 * torch.randn(20, 3, generator=generator, dtype=torch.float64) + 0.5 * targets[:, None]
    torch.manual_seed(0)
    model = RowModel(nn.Linear(3, 2).double(), nn.functional.cross_entropy)
    starts = torch.stack([model.theta, -model.theta])
    return model, starts, Rows(inputs[4:], targets[4:]), Rows(inputs[:4], targets[:4])


def test_margins_are_those_of_models_trained_one_by_one() -> None:
    model, starts, rows, queries = problem()
    scores = np.random.default_rng(0).normal(size=(4, 16))
    ask = partial(measure, model, queries=queries, measurement=margin)
    found = margins_without_best(model, starts, rows, scores, [0, 3, 7], CONFIG, ask)
    for query in range(4):
        for place, budget in enumerate((0, 3, 7)):
            mask = np.ones((1, 16), bool)
            mask[0, np.argsort(-scores[query])[:budget]] = False
            alone = [ask(train(model, start, rows, mask, CONFIG, seed))[0, query] for seed, start in enumerate(starts)]
            assert found[query, place] == pytest.approx(np.mean(alone), rel=1e-6)


def test_without_all_rows_of_its_kind_a_query_is_got_wrong() -> None:
    model, starts, rows, queries = problem()
    same = (queries.targets[:, None] == rows.targets[None]).numpy().astype(np.float64)
    ask = partial(measure, model, queries=queries, measurement=margin)
    found = margins_without_best(model, starts[:1], rows, same, [0, 8], CONFIG, ask)
    assert (found[:, 1] < 0).all() and (found[:, 0] > 0).sum() >= 3


def test_budgets_that_leave_no_row_are_refused() -> None:
    model, starts, rows, queries = problem()
    ask = partial(measure, model, queries=queries, measurement=margin)
    for scores, budgets in ((np.zeros((4, 16)), [16]), (np.zeros((4, 15)), [1]), (np.zeros((4, 16)), [])):
        with pytest.raises(DataError, match="brittleness"):
            margins_without_best(model, starts, rows, scores, budgets, CONFIG, ask)
