"""The truth here is a backward pass a row, in float64 from there on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from influcoder.errors import ConfigError
from influcoder.influence.capture import gradient_layers
from influcoder.influence.decoder import Decoder
from influcoder.influence.exact import ExactProducts, exact_products, whole_gradients
from influcoder.influence.gradients import GradientConfig, GradientProjector
from influcoder.influence.tokens import TokenizedRow, tokenize
from tests.influcoder.tiny_decoders import DECODERS, ROWS, example, fresh_decoder, relative_error, row_gradients

ASKED = [example("bay", "Name a bay.", "Hudson Bay."), *ROWS, example("no", "Is fire cold?", "No, it is not.")]
Array = NDArray[np.float64]


def truth(decoder: Decoder, rows: list[TokenizedRow]) -> list[dict[str, Array]]:
    return [row_gradients(decoder, row) for row in rows]


def joined(gradients: list[dict[str, Array]]) -> Array:
    return np.stack([np.concatenate([part.ravel() for part in parts.values()]) for parts in gradients])


def same(found: ExactProducts, expected: ExactProducts) -> None:
    np.testing.assert_allclose(found.products, expected.products, rtol=1e-5, atol=1e-5 * np.abs(expected.products).max())
    np.testing.assert_allclose(found.query_norms, expected.query_norms, rtol=1e-5)
    np.testing.assert_allclose(found.row_norms, expected.row_norms, rtol=1e-5)


@pytest.mark.parametrize("name", DECODERS)
def test_products_lengths_and_cosines_equal_a_loop_over_rows(name: str) -> None:
    decoder = DECODERS[name]()
    queries, rows = tokenize(ROWS[:3], decoder), tokenize(ASKED, decoder)
    found = exact_products(decoder, gradient_layers(decoder.model), queries, rows, max_batch_tokens=64)
    asking, asked = joined(truth(decoder, queries)), joined(truth(decoder, rows))
    same(found, ExactProducts(asking @ asked.T, np.linalg.norm(asking, axis=1), np.linalg.norm(asked, axis=1)))
    unit = [vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in (asking, asked)]
    np.testing.assert_allclose(found.cosines, unit[0] @ unit[1].T, atol=1e-5)
    assert found.products.dtype == found.cosines.dtype == np.float64


@pytest.mark.parametrize("held", [1, 2, 3, 4])
@pytest.mark.parametrize("max_batch_tokens", [1, 64, 10_000])
def test_neither_blocks_of_queries_nor_batches_change_anything(held: int, max_batch_tokens: int) -> None:
    decoder = fresh_decoder()
    layers = gradient_layers(decoder.model)
    queries, rows = tokenize(ROWS, decoder), tokenize(ASKED, decoder)
    expected = exact_products(decoder, layers, queries, rows, max_batch_tokens=256)
    each = 4 * sum(layer.in_features * layer.out_features for layer in layers.values())
    same(exact_products(decoder, layers, queries, rows, max_batch_tokens=max_batch_tokens, max_bytes=held * each + 3), expected)


def test_a_query_that_does_not_fit_is_refused_in_one_line() -> None:
    decoder = fresh_decoder()
    rows = tokenize(ROWS, decoder)
    each = 4 * 2 * (4 * 16 * 16 + 3 * 16 * 24)
    with pytest.raises(ConfigError, match=f"a gradient takes {each:,} bytes; expected at most {each - 1:,}; allow more") as caught:
        exact_products(decoder, gradient_layers(decoder.model), rows, rows, max_batch_tokens=64, max_bytes=each - 1)
    assert "\n" not in str(caught.value)


def test_a_transform_is_of_its_own_side_by_layer() -> None:
    decoder = fresh_decoder()
    queries, rows = tokenize(ROWS[:3], decoder), tokenize(ASKED, decoder)

    def cube(name: str, gradient: Tensor) -> Tensor:
        assert gradient.ndim == 3
        return gradient**3 * (2 if "down_proj" in name else 1)

    def clip(name: str, gradient: Tensor) -> Tensor:
        return gradient.clamp(-0.1, 0.1)

    layers = gradient_layers(decoder.model)
    found = exact_products(decoder, layers, queries, rows, max_batch_tokens=64, query_transform=cube, row_transform=clip)
    cubed = joined([{name: g**3 * (2 if "down_proj" in name else 1) for name, g in parts.items()} for parts in truth(decoder, queries)])
    clipped = joined([{name: g.clip(-0.1, 0.1) for name, g in parts.items()} for parts in truth(decoder, rows)])
    same(found, ExactProducts(cubed @ clipped.T, np.linalg.norm(cubed, axis=1), np.linalg.norm(clipped, axis=1)))


@pytest.mark.parametrize("transform", [None, lambda name, gradient: gradient.abs()])
def test_unit_layers_sum_up_the_layers_cosines(transform: None) -> None:
    decoder = fresh_decoder()
    queries, rows = tokenize(ROWS[:3], decoder), tokenize(ASKED, decoder)
    layers = gradient_layers(decoder.model)
    found = exact_products(
        decoder, layers, queries, rows, max_batch_tokens=64, unit_layers=True, query_transform=transform, row_transform=transform
    )
    asking, asked = truth(decoder, queries), truth(decoder, rows)
    expected = np.zeros((len(queries), len(rows)))
    for one, first in enumerate(asking):
        for two, second in enumerate(asked):
            for name in layers:
                a, b = (np.abs(part[name]) if transform else part[name] for part in (first, second))
                expected[one, two] += np.sum(a * b) / np.linalg.norm(a) / np.linalg.norm(b)
    np.testing.assert_allclose(found.products, expected, atol=1e-5)
    np.testing.assert_allclose(found.cosines, expected / len(layers), atol=1e-6)
    np.testing.assert_allclose([*found.query_norms, *found.row_norms], len(layers) ** 0.5, rtol=1e-6)


@pytest.mark.parametrize("unit_layers", [False, True])
def test_a_projection_that_loses_nothing_gives_the_same_cosines(unit_layers: bool) -> None:
    decoder = fresh_decoder()
    rows = tokenize(ROWS, decoder)
    vectors = GradientProjector(decoder, GradientConfig(rank=None, sketch="none"), [0], unit_layers=unit_layers).project(rows)[0].double()
    unit = torch.nn.functional.normalize(vectors)
    found = exact_products(decoder, gradient_layers(decoder.model), rows, rows, max_batch_tokens=64, unit_layers=unit_layers)
    np.testing.assert_allclose(found.cosines, unit @ unit.T, atol=1e-5)


def test_whole_gradients_hand_over_every_row_of_every_layer_once() -> None:
    decoder = fresh_decoder()
    rows = tokenize(ASKED, decoder)
    layers = gradient_layers(decoder.model)
    found: dict[tuple[int, str], Tensor] = {}

    def use(positions: list[int], name: str, gradient: Tensor) -> None:
        assert gradient.dtype == torch.float32
        for position, row in zip(positions, gradient, strict=True):
            assert (position, name) not in found
            found[position, name] = row

    batches = list(whole_gradients(decoder, layers, rows, use, max_batch_tokens=64))
    assert len(batches) > 1 and sorted(position for batch in batches for position in batch) == list(range(len(rows)))
    assert found.keys() == {(position, name) for position in range(len(rows)) for name in layers}
    for position, row in enumerate(rows):
        for name, gradient in row_gradients(decoder, row).items():
            assert relative_error(found[position, name], gradient.ravel()) <= 1e-5
    assert all(parameter.grad is None for parameter in decoder.model.parameters())
