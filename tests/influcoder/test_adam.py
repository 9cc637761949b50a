"""The truth here is torch's own Adam, and a backward pass a row."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from influcoder.influence.adam import EPSILON, Moments, estimate_moments
from influcoder.influence.capture import gradient_layers
from influcoder.influence.gradients import GradientConfig, GradientProjector
from influcoder.influence.tokens import tokenize
from tests.influcoder.tiny_decoders import DECODERS, ROWS, fresh_decoder, relative_error, row_gradients


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_step_by_hand() -> None:
    """m' = .9 * 2 + .1 * 1 = 1.9; v' = .999 * 4 + .001 * 1 = 3.997."""
    moments = Moments({"a": torch.tensor([[2.0]])}, {"a": torch.tensor([[4.0]])})
    assert float(moments.step_direction("a", torch.tensor([[[1.0]]]))) == pytest.approx(1.9 / 3.997**0.5, rel=1e-6)
    assert float(moments.scaled("a", torch.tensor([[[1.0]]]))) == pytest.approx(1 / 2, rel=1e-6)


def test_epsilon_is_inside_the_root_of_a_step_and_beside_the_root_of_the_scale() -> None:
    moments = Moments({"a": torch.zeros(1, 1)}, {"a": torch.zeros(1, 1)})
    tiny = torch.full((1, 1, 1), 1e-10)
    assert float(moments.step_direction("a", tiny)) == pytest.approx(0.1 * 1e-10 / (0.001 * 1e-20 + EPSILON) ** 0.5, rel=1e-5)
    assert float(moments.scaled("a", tiny)) == pytest.approx(1e-10 / EPSILON, rel=1e-5)


def test_the_step_direction_is_the_step_that_torchs_adam_takes() -> None:
    """Its moments after a step on one row's gradient, and its update but for the bias corrections and the place of epsilon."""
    weight = torch.nn.Parameter(random(3, 5))
    optimizer = torch.optim.Adam([weight], lr=0.1, betas=(0.9, 0.999), eps=1e-12)
    for seed in range(1, 6):
        weight.grad = random(3, 5, seed=seed)
        optimizer.step()
    state = optimizer.state[weight]
    moments = Moments({"layer": state["exp_avg"].clone()}, {"layer": state["exp_avg_sq"].clone()})
    gradients = random(2, 3, 5, seed=9)
    found = moments.step_direction("layer", gradients)
    before, weight.grad = weight.detach().clone(), gradients[1].clone()
    optimizer.step()
    torch.testing.assert_close(found[1], state["exp_avg"] / (state["exp_avg_sq"] + EPSILON).sqrt())
    update = (before - weight.detach()) / 0.1
    torch.testing.assert_close(found[1], update * (1 - 0.9**6) / (1 - 0.999**6) ** 0.5, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found[0], found[1])


def test_scaled_is_the_gradient_over_the_root_of_the_second_moment() -> None:
    second = random(3, 5).square()
    gradients = random(2, 3, 5, seed=1)
    found = Moments({}, {"layer": second}).scaled("layer", gradients)
    for row in range(2):
        for out in range(3):
            for into in range(5):
                expected = float(gradients[row, out, into]) / (float(second[out, into]) ** 0.5 + 1e-8)
                assert float(found[row, out, into]) == pytest.approx(expected, rel=1e-5)


def test_moments_of_half_precision_give_directions_of_single_precision() -> None:
    moments = Moments({"a": torch.ones(1, 1, dtype=torch.bfloat16)}, {"a": torch.ones(1, 1, dtype=torch.bfloat16)})
    for found in (moments.step_direction("a", torch.ones(1, 1, 1)), moments.scaled("a", torch.ones(1, 1, 1))):
        assert found.dtype == torch.float32
        assert float(found) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("max_batch_tokens", [1, 64, 10_000])
@pytest.mark.parametrize("name", DECODERS)
def test_estimated_moments_are_means_over_rows(name: str, max_batch_tokens: int) -> None:
    decoder = DECODERS[name]()
    rows = tokenize(ROWS, decoder)
    layers = gradient_layers(decoder.model)
    found = estimate_moments(decoder, layers, rows, max_batch_tokens)
    gradients = [row_gradients(decoder, row) for row in rows]
    assert found.first.keys() == found.second.keys() == layers.keys()
    for layer in layers:
        stacked = np.stack([parts[layer] for parts in gradients])
        assert relative_error(found.first[layer], stacked.mean(0)) <= 1e-5
        assert relative_error(found.second[layer], (stacked**2).mean(0)) <= 1e-5


@pytest.mark.parametrize("kind", ["step_direction", "scaled"])
def test_directions_are_projected_in_place_of_gradients(kind: str) -> None:
    decoder = fresh_decoder()
    rows = tokenize(ROWS, decoder)
    moments = estimate_moments(decoder, gradient_layers(decoder.model), rows, 64)
    config = GradientConfig(rank=None, sketch="none")
    found = GradientProjector(decoder, config, [0], transform=getattr(moments, kind)).project(rows)[0]
    for place, row in enumerate(rows):
        parts = []
        for layer, gradient in row_gradients(decoder, row).items():
            m, v = (moment[layer].double().numpy() for moment in (moments.first, moments.second))
            step = (0.9 * m + 0.1 * gradient) / np.sqrt(0.999 * v + 0.001 * gradient**2 + 1e-8)
            parts.append(step if kind == "step_direction" else gradient / (np.sqrt(v) + 1e-8))
        assert relative_error(found[place], np.concatenate([part.ravel() for part in parts])) <= 1e-4
