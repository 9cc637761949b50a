"""The truth here: moments of captured inputs and gradients by loops in float64, and numpy's eigenvectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from influcoder.errors import RunError
from influcoder.influence import basis as module
from influcoder.influence.basis import Basis, fit_basis, leading_directions
from influcoder.influence.capture import gradient_layers
from influcoder.influence.decoder import Decoder
from influcoder.influence.tokens import TokenizedRow, tokenize
from tests.influcoder.tiny_decoders import DECODERS, ROWS, fresh_decoder, gpt2_decoder

Array = NDArray[np.float64]


def moments(decoder: Decoder, rows: list[TokenizedRow]) -> tuple[dict[str, Array], dict[str, Array]]:
    """Return `sum |delta|^2 x x^T` and `sum |x|^2 delta delta^T` by layer, a row and a token at a time."""
    model = decoder.model.eval()
    layers = gradient_layers(model)
    inputs = {name: np.zeros((layer.in_features, layer.in_features)) for name, layer in layers.items()}
    outputs = {name: np.zeros((layer.out_features, layer.out_features)) for name, layer in layers.items()}
    for row in rows:
        seen: dict[str, tuple[Tensor, Tensor]] = {}

        def note(name: str) -> object:
            def hook(layer: nn.Module, taken: tuple[Tensor, ...], made: Tensor) -> None:
                made.retain_grad()
                seen[name] = taken[0].detach(), made  # noqa: B023

            return layers[name].module.register_forward_hook(hook)

        handles = [note(name) for name in layers]
        ids = torch.tensor(row.input_ids)
        logits = model(input_ids=ids[None]).logits[0]
        nn.functional.cross_entropy(logits[row.response_start - 1 : -1], ids[row.response_start :]).backward()
        for handle in handles:
            handle.remove()  # type: ignore[attr-defined]
        for name, (given, output) in seen.items():
            assert output.grad is not None
            for x, delta in zip(given[0].double().numpy(), output.grad[0].double().numpy(), strict=True):
                inputs[name] += np.sum(delta**2) * np.outer(x, x)
                outputs[name] += np.sum(x**2) * np.outer(delta, delta)
    model.zero_grad()
    return inputs, outputs


def leading(moment: Array, count: int) -> Array:
    values, vectors = np.linalg.eigh(moment)
    found: Array = vectors[:, np.argsort(-values)][:, :count].T
    return found


def same_up_to_sign(found: Tensor, expected: Array, tolerance: float = 1e-3) -> None:
    assert found.shape == expected.shape and found.dtype == torch.float32
    products = np.abs(np.sum(found.double().numpy() * expected, axis=1))
    assert np.abs(products - 1).max() <= tolerance


def decaying(size: int, seed: int = 0) -> Tensor:
    """Return a symmetric matrix with the eigenvalues 1, 1/2, 1/4, ..."""
    vectors = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)))[0]
    symmetric: Tensor = (vectors * 0.5 ** torch.arange(size)) @ vectors.T
    return symmetric


@pytest.mark.parametrize("name", DECODERS)
def test_directions_are_those_of_the_weighted_moments(name: str) -> None:
    decoder = DECODERS[name]()
    rows = tokenize(ROWS, decoder)
    layers = gradient_layers(decoder.model)
    found = fit_basis(decoder, layers, rows, inputs=3, outputs=2, max_batch_tokens=64)
    inputs, outputs = moments(decoder, rows)
    assert found.inputs.keys() == found.outputs.keys() == layers.keys()
    for layer in layers:
        same_up_to_sign(found.inputs[layer], leading(inputs[layer], 3))
        same_up_to_sign(found.outputs[layer], leading(outputs[layer], 2))


@pytest.mark.parametrize(("inputs", "outputs"), [(3, 0), (0, 2)])
def test_a_side_that_is_not_asked_for_is_not_found(inputs: int, outputs: int) -> None:
    decoder = fresh_decoder()
    rows = tokenize(ROWS, decoder)
    layers = gradient_layers(decoder.model)
    found = fit_basis(decoder, layers, rows, inputs=inputs, outputs=outputs, max_batch_tokens=64)
    both = fit_basis(decoder, layers, rows, inputs=3, outputs=2, max_batch_tokens=64)
    assert bool(found.inputs) is bool(inputs) and bool(found.outputs) is bool(outputs)
    for side, other in ((found.inputs, both.inputs), (found.outputs, both.outputs)):
        assert all(torch.equal(side[name], other[name]) for name in side)


def test_no_more_directions_than_features() -> None:
    decoder = fresh_decoder()
    layers = gradient_layers(decoder.model)
    found = fit_basis(decoder, layers, tokenize(ROWS, decoder), inputs=20, outputs=0, max_batch_tokens=64)
    assert {name: len(rows) for name, rows in found.inputs.items()} == {name: min(20, layer.in_features) for name, layer in layers.items()}


@pytest.mark.parametrize("held", [1, 4 * (16**2 + 24**2) * 3, 1 << 30])
@pytest.mark.parametrize("max_batch_tokens", [1, 64])
def test_neither_groups_of_layers_nor_batches_change_anything(held: int, max_batch_tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = gpt2_decoder()
    rows = tokenize(ROWS, decoder)
    layers = gradient_layers(decoder.model)
    expected = fit_basis(decoder, layers, rows, inputs=3, outputs=2, max_batch_tokens=256)
    monkeypatch.setattr(module, "HELD_BYTES", held)
    groups = module._groups(layers, 3, 2)
    assert [name for group in groups for name in group] == list(layers)
    sizes = [sum(4 * (layer.in_features**2 + layer.out_features**2) for layer in group.values()) for group in groups]
    assert all(size <= held or len(group) == 1 for size, group in zip(sizes, groups, strict=True))
    assert (len(groups) == 8) == (held == 1) and (len(groups) == 1) == (held == 1 << 30)
    found = fit_basis(decoder, layers, rows, inputs=3, outputs=2, max_batch_tokens=max_batch_tokens)
    for name in layers:
        same_up_to_sign(found.inputs[name], expected.inputs[name].double().numpy())
        same_up_to_sign(found.outputs[name], expected.outputs[name].double().numpy())


def test_groups_count_the_sides_that_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = {name: layer for name, layer in gradient_layers(gpt2_decoder().model).items() if "c_attn" in name}  # 16 in, 48 out
    for asked, each in (((1, 0), 16**2), ((0, 1), 48**2), ((1, 1), 16**2 + 48**2)):
        for held, groups in ((2 * 4 * each, 1), (2 * 4 * each - 1, 2)):
            monkeypatch.setattr(module, "HELD_BYTES", held)
            assert len(module._groups(layers, *asked)) == groups


def test_leading_directions_are_numpys_eigenvectors_strongest_first() -> None:
    moment = decaying(12)
    found = leading_directions(moment.float(), 4)
    same_up_to_sign(found, leading(moment.numpy(), 4), 1e-5)
    torch.testing.assert_close(found @ found.T, torch.eye(4), rtol=0, atol=1e-6)


def test_large_moments_give_the_same_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    moment = decaying(40)
    monkeypatch.setattr(module, "EXACT_SIZE", 39)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    found = leading_directions(moment.float(), 4)
    assert torch.equal(torch.rand(3), expected), "the caller's random state is left alone"
    same_up_to_sign(found, leading(moment.numpy(), 4), 1e-4)
    torch.manual_seed(8)
    assert torch.equal(leading_directions(moment.float(), 4), found), "and decides nothing"
    assert len(leading_directions(moment.float(), 40)) == 40, "more than there is oversampling for"


def test_a_basis_is_read_as_it_was_written(tmp_path: Path) -> None:
    decoder = gpt2_decoder()
    basis = fit_basis(decoder, gradient_layers(decoder.model), tokenize(ROWS, decoder), inputs=3, outputs=2, max_batch_tokens=64)
    basis.save(tmp_path / "basis.safetensors")
    found = Basis.load(tmp_path / "basis.safetensors")
    for side, other in ((found.inputs, basis.inputs), (found.outputs, basis.outputs)):
        assert side.keys() == other.keys() and all(torch.equal(side[name], other[name]) for name in side)


@pytest.mark.parametrize("content", [None, b"nothing of the kind"])
def test_an_unreadable_basis_is_refused_in_one_line(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "basis.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RunError, match=r"basis\.safetensors: not readable \(.*\); expected the basis of a teacher run") as caught:
        Basis.load(path)
    assert "\n" not in str(caught.value)
