from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from influcoder.errors import DataError
from influcoder.influence.row_model import RowModel, Rows
from tests.influcoder.small_models import class_rows, classifier, slow_gradients, slow_losses


def largest_output(outputs: Tensor, target: Tensor) -> Tensor:
    return outputs.square().sum() * (target + 1)


@pytest.mark.parametrize("loss", [None, largest_output])
def test_losses_and_gradients_equal_a_loop_over_rows(loss: None) -> None:
    model, rows = classifier(), class_rows(7)
    np.testing.assert_allclose(model.losses(model.theta, rows, loss), slow_losses(model, model.theta, rows, loss), rtol=1e-12)
    np.testing.assert_allclose(model.gradients(model.theta, rows, loss), slow_gradients(model, rows, loss), rtol=1e-10, atol=1e-14)


def test_parameters_stand_in_the_vector_module_by_module() -> None:
    model = classifier()
    assert model.blocks == {"0": slice(0, 24), "2": slice(24, 39)}
    first, second = model.module.get_submodule("0"), model.module.get_submodule("2")
    assert isinstance(first, nn.Linear) and isinstance(second, nn.Linear)
    parts = [first.weight, first.bias, second.weight, second.bias]
    assert torch.equal(model.theta, torch.cat([part.detach().flatten() for part in parts]))
    assert torch.equal(model.named(model.theta)["2.weight"], second.weight)


def test_other_parameters_are_those_of_the_module_too() -> None:
    model, rows = classifier(), class_rows(4)
    moved = model.at(model.theta + 1)
    assert torch.equal(moved.theta, model.theta + 1)
    with torch.no_grad():
        assert torch.equal(moved.module(rows.inputs), model.outputs(model.theta + 1, rows.inputs))
    assert not torch.equal(moved.module(rows.inputs), model.module(rows.inputs))


def test_the_users_module_is_left_alone_and_evaluated_without_dropout() -> None:
    module = nn.Sequential(nn.Dropout(0.5), nn.Linear(5, 3))
    model, rows = RowModel(module, nn.functional.cross_entropy), class_rows(6)
    assert module.training and module[1].weight.dtype == torch.float32
    assert torch.equal(model.losses(model.theta, rows), model.losses(model.theta, rows))
    model.theta.add_(1)
    assert torch.equal(RowModel(module, nn.functional.cross_entropy).theta + 1, model.theta)


def test_integers_stay_integers() -> None:
    model = RowModel(nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(8, 3)), nn.functional.cross_entropy)
    rows = Rows(torch.tensor([[1, 2], [8, 0]]), torch.tensor([0, 2]))
    assert model.gradients(model.theta, rows).shape == (2, 36 + 27)


def test_rows_are_cut_in_order() -> None:
    rows = class_rows(7)
    chunks = list(rows.chunks(3))
    assert [len(chunk) for chunk in chunks] == [3, 3, 1]
    assert torch.equal(torch.cat([chunk.inputs for chunk in chunks]), rows.inputs)
    assert torch.equal(torch.cat([chunk.targets for chunk in chunks]), rows.targets)
    picked = rows[torch.tensor([5, 0])]
    assert torch.equal(picked.inputs, rows.inputs[[5, 0]]) and torch.equal(picked.targets, rows.targets[[5, 0]])


@pytest.mark.parametrize("sizes", [(3, 4), (0, 0)])
def test_rows_that_do_not_match_are_refused(sizes: tuple[int, int]) -> None:
    with pytest.raises(DataError, match=f"{sizes[0]} inputs, {sizes[1]} targets; expected as many of each, and at least one"):
        Rows(torch.zeros(sizes[0], 2), torch.zeros(sizes[1]))
