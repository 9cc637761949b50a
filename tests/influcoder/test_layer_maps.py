"""Whitened gradients in the projector; the truth is half the inverse of each layer's factors by numpy, on a backward pass a row."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from influcoder.influence.capture import gradient_layers
from influcoder.influence.decoder import Decoder
from influcoder.influence.ekfac import LayerFactors, Whitening, fit_ekfac
from influcoder.influence.ekfac_decoder import Draws, decoder_batches
from influcoder.influence.gradients import GradientConfig, GradientProjector
from influcoder.influence.tokens import TokenizedRow, tokenize
from tests.influcoder.tiny_decoders import ROWS, fresh_decoder, relative_error, row_gradients, trained_adapter

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # PEFT's own
DIM = 64
WHOLE = GradientConfig(rank=None, sketch="none")
Array = NDArray[np.float64]


def whitenings(decoder: Decoder, rows: list[TokenizedRow]) -> list[Whitening]:
    """Return two, of other labels."""
    batches = [decoder_batches(decoder, rows, Draws(count=1, seed=seed), 1000) for seed in (0, 1)]
    return [Whitening(fit_ekfac(gradient_layers(decoder.model), one)) for one in batches]


@pytest.mark.parametrize("unit_layers", [False, True])
@pytest.mark.parametrize("make", [fresh_decoder, lambda: trained_adapter(fresh_decoder())])
def test_whitened_gradients_of_each_seed_stand_side_by_side(make: Callable[[], Decoder], unit_layers: bool) -> None:
    decoder = make()
    rows = tokenize(ROWS, decoder)
    given = whitenings(decoder, rows)
    projector = GradientProjector(decoder, WHOLE, [0, 1], whitenings=given, unit_layers=unit_layers)
    found = projector.project(rows)
    gradients = [row_gradients(decoder, row) for row in rows]
    for vectors, whitening in zip(found, given, strict=True):
        blocks = [np.stack([half(whitening.factors[name], one[name]) for one in gradients]) for name in projector.layers]
        if unit_layers:
            blocks = [block / np.maximum(np.linalg.norm(block, axis=1, keepdims=True), 1e-15) for block in blocks]
        expected = np.concatenate(blocks, axis=1)
        if unit_layers:
            expected *= vectors.norm(dim=1).numpy()[:, None] / np.linalg.norm(expected, axis=1, keepdims=True)
        assert relative_error(vectors, expected) <= 1e-4
    assert relative_error(found[0], found[1]) > 0.05


def half(factors: LayerFactors, gradient: Array) -> Array:
    q_s, q_a, values = (side.double().numpy() for side in (factors.outputs, factors.inputs, factors.values))
    scale = 1 / np.sqrt(values + 0.1 * values.mean()) if values.any() else 0 * values
    result: Array = (q_s.T @ gradient @ q_a * scale).ravel()
    return result


@pytest.mark.parametrize("unit_layers", [False, True])
def test_the_strongest_whitened_coordinates_are_kept_as_they_are(unit_layers: bool) -> None:
    decoder = fresh_decoder()
    rows = tokenize(ROWS, decoder)
    given = whitenings(decoder, rows)
    config = GradientConfig(rank=None, dim=500)
    projector = GradientProjector(decoder, config, [0, 1], whitenings=given, unit_layers=unit_layers)
    found = projector.project(rows)
    assert projector.dim == sum(projector.blocks) == 500 == found.shape[2]
    for seed, whitening in enumerate(given):
        whole = GradientProjector(decoder, WHOLE, [seed], whitenings=[whitening]).project(rows)[0]
        starts = np.cumsum([0, *(layer.in_features * layer.out_features for layer in projector.layers.values())])
        kept = whitening.leading(500)
        blocks = [whole[:, start + kept[name]] for start, name in zip(starts, projector.layers, strict=False)]
        if unit_layers:
            lengths = torch.stack([block.square().sum(1) for block in blocks]).sum(0).sqrt()
            blocks = [torch.nn.functional.normalize(block, eps=1e-15) for block in blocks]
            expected = torch.nn.functional.normalize(torch.cat(blocks, 1)) * lengths[:, None]
        else:
            expected = torch.cat(blocks, 1)
        assert relative_error(found[seed], expected) <= 1e-5


def test_whitened_gradients_can_be_sketched() -> None:
    decoder = fresh_decoder()
    rows = tokenize(ROWS, decoder)
    given = whitenings(decoder, rows)
    config = GradientConfig(rank=None, dim=DIM, factors="random")
    found = GradientProjector(decoder, config, [0, 1], whitenings=given).project(rows)
    plain = GradientProjector(decoder, config, [0, 1])
    for seed, whitening in enumerate(given):
        expected = plain.transformed(whitening).project(rows)[seed]
        assert relative_error(found[seed], expected) <= 1e-4


@pytest.mark.parametrize("config", [GradientConfig(rank=None, dim=300), GradientConfig(rank=None, dim=DIM, factors="random")])
def test_project_dense_whitens_as_well(config: GradientConfig) -> None:
    decoder = fresh_decoder()
    rows = tokenize(ROWS, decoder)
    projector = GradientProjector(decoder, config, [0, 1], whitenings=whitenings(decoder, rows))
    gradients = [row_gradients(decoder, row) for row in rows]
    dense = {name: torch.from_numpy(np.stack([one[name] for one in gradients])).float() for name in projector.layers}
    assert relative_error(projector.project_dense(dense), projector.project(rows)) <= 1e-4
