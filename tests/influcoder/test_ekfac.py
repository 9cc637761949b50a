"""The truth here: Gauss-Newton matrices made densely of Jacobians, inverted by numpy; moments and eigenvectors by numpy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from influcoder.influence import ekfac as module
from influcoder.influence.capture import Layer, gradient_layers
from influcoder.influence.ekfac import LayerFactors, PseudoBatch, Whitening, factor_bytes, fit_ekfac
from influcoder.influence.pseudo_gradients import Cotangents, output_batches, sampled_cotangents, softmax_cotangents, square_cotangents

Array = NDArray[np.float64]
DAMPING = 0.1


def linear_net(bias: bool = False) -> nn.Sequential:
    """Return three layers without anything between them: what is downstream of a layer depends on no input."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5, bias), nn.Linear(5, 7, bias), nn.Linear(7, 3, bias)).double()


def tanh_net(bias: bool = True) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 5, bias), nn.Tanh(), nn.Linear(5, 4, bias)).double()


def inputs(rows: int, seed: int = 0) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 6, generator=source).double() * torch.tensor([3.0, 2, 1, 1, 0.5, 0.2]) + 1


def jacobians(model: nn.Module, rows: Tensor, name: str, bias: bool) -> Array:
    """Return (N, C, O * I): every output of every row by every weight of one layer, its bias as a last column."""
    parameters = dict(model.named_parameters())
    found = vmap(jacrev(lambda given, row: functional_call(model, given, (row[None],))[0]), (None, 0))(parameters, rows)
    weight = found[f"{name}.weight"]
    whole = torch.cat([weight, found[f"{name}.bias"][..., None]], 3) if bias else weight
    flat: Array = whole.flatten(2).detach().numpy()
    return flat


def hessians(model: nn.Module, rows: Tensor, loss: str) -> Array:
    """Return (N, C, C), of the loss by the outputs."""
    logits = model(rows).detach().numpy()
    if loss == "squares":
        return np.tile(np.eye(logits.shape[1]), (len(rows), 1, 1))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return np.stack([np.diag(one) - np.outer(one, one) for one in p])


def gauss_newton(model: nn.Module, rows: Tensor, name: str, loss: str, bias: bool) -> Array:
    j = jacobians(model, rows, name, bias)
    mean: Array = np.einsum("nca,ncd,ndb->ab", j, hessians(model, rows, loss), j) / len(rows)
    return mean


def damped(matrix: Array, damping: float = DAMPING) -> Array:
    result: Array = matrix + damping * np.trace(matrix) / len(matrix) * np.eye(len(matrix))
    return result


def random_gradients(factors: LayerFactors, count: int) -> Tensor:
    return torch.randn(count, *factors.values.shape, generator=torch.Generator().manual_seed(9)).double()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("batch_size", [1, 40])
def test_equals_the_dense_damped_block_where_it_is_exact(bias: bool, batch_size: int) -> None:
    model, rows = linear_net(bias), inputs(40)
    fitted = fit_ekfac(gradient_layers(model), output_batches(model, rows, square_cotangents, batch_size), bias=bias)
    assert list(fitted) == ["0", "1", "2"]
    for name, factors in fitted.items():
        dense = gauss_newton(model, rows, name, "squares", bias)
        gradients = random_gradients(factors, 5)
        flat = gradients.flatten(1).numpy()
        expected = np.linalg.solve(damped(dense), flat.T).T
        np.testing.assert_allclose(factors.solve(gradients).flatten(1), expected, rtol=0, atol=1e-6 * np.abs(expected).max())
        halves = factors.half(gradients).flatten(1).numpy()
        np.testing.assert_allclose(halves @ halves.T, flat @ expected.T, rtol=1e-6)


@pytest.mark.parametrize("damping", [1e-4, 0.1, 3.0])
def test_damping_is_in_mean_eigenvalues_of_the_layer(damping: float) -> None:
    model, rows = linear_net(), inputs(30)
    factors = fit_ekfac(gradient_layers(model), output_batches(model, rows, square_cotangents))["1"]
    gradients = random_gradients(factors, 3)
    expected = np.linalg.solve(damped(gauss_newton(model, rows, "1", "squares", False), damping), gradients.flatten(1).numpy().T).T
    np.testing.assert_allclose(factors.solve(gradients, damping).flatten(1), expected, rtol=0, atol=1e-6 * np.abs(expected).max())
    halves = factors.half(gradients, damping).flatten(1).numpy()
    np.testing.assert_allclose(halves @ halves.T, gradients.flatten(1).numpy() @ expected.T, rtol=1e-6)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("loss", "cotangents"), [("softmax", softmax_cotangents), ("squares", square_cotangents)])
def test_factors_are_eigenvectors_of_both_moments_and_the_gauss_newton_seen_from_there(
    loss: str, cotangents: Cotangents, bias: bool
) -> None:
    """The moments by numpy: of activations and of Jacobians at a layer's output, all rows one by one."""
    model, rows = tanh_net(bias), inputs(50)
    fitted = fit_ekfac(gradient_layers(model), output_batches(model, rows, cotangents, 7), bias=bias)
    hidden = torch.tanh(model[0](rows)).detach()
    taken = {"0": rows.numpy(), "2": hidden.numpy()}
    slope = model.get_parameter("2.weight").detach().numpy() * (1 - hidden.numpy()[:, None] ** 2)  # (N, C, hidden)
    output = {"0": slope, "2": np.tile(np.eye(4), (50, 1, 1))}
    for name, factors in fitted.items():
        x = np.concatenate([taken[name], np.ones((50, 1))], 1) if bias else taken[name]
        s = np.einsum("nca,ncd,ndb->ab", output[name], hessians(model, rows, loss), output[name])
        for vectors, moment in ((factors.inputs.numpy(), x.T @ x), (factors.outputs.numpy(), s)):
            np.testing.assert_allclose(vectors.T @ vectors, np.eye(len(moment)), atol=1e-12)
            rotated = vectors.T @ moment @ vectors
            np.testing.assert_allclose(rotated, np.diag(np.linalg.eigvalsh(moment)), rtol=0, atol=1e-9 * np.trace(moment))
        rotation = np.kron(factors.outputs.numpy(), factors.inputs.numpy())
        seen = np.diag(rotation.T @ gauss_newton(model, rows, name, loss, bias) @ rotation).reshape(factors.values.shape)
        np.testing.assert_allclose(factors.values, seen, rtol=0, atol=1e-12 * seen.max())


def decaying(size: int, source: np.random.Generator) -> Array:
    vectors = np.linalg.qr(source.normal(size=(size, size)))[0]
    moment: Array = vectors * np.exp(-np.linspace(0, 6, size)) @ vectors.T
    return moment


def fit_pairs(x: Array, delta: Array, batch_size: int = 50) -> LayerFactors:
    """Fit one layer to given inputs (N, T, I) and output gradients (N, T, O)."""
    layer = nn.Linear(x.shape[2], delta.shape[2], bias=False).double()

    def backward(rows: slice) -> None:
        given = torch.from_numpy(x[rows]).requires_grad_(True)
        torch.autograd.grad(layer(given), given, torch.from_numpy(delta[rows]))

    parts = [slice(start, min(start + batch_size, len(x))) for start in range(0, len(x), batch_size)]
    layers = {"only": Layer(layer, x.shape[2], delta.shape[2])}
    return fit_ekfac(layers, lambda step: [PseudoBatch(part.stop - part.start, partial(backward, part)) for part in parts])["only"]


@pytest.mark.parametrize("tokens", [1, 40])
def test_ranks_as_the_exact_solve_on_random_kronecker_factors(tokens: int) -> None:
    """Scores of 30 new gradients for 30 of the fitted ones. With Q transposed the correlation is .3 to .5, with the damped
    eigenvalues multiplied instead of divided by .2 to .3, without a Hessian .4 to .5."""
    source = np.random.default_rng(0)
    found = []
    for _ in range(5):
        roots = [np.linalg.cholesky(decaying(size, source)) for size in (10, 8)]
        x, delta = (source.normal(size=(2030, tokens, len(root))) @ root.T for root in roots)
        g = np.einsum("nto,nti->noi", delta, x)
        flat, fitted = g[:2000].reshape(2000, -1), fit_pairs(x[:2000], delta[:2000])
        asked = np.concatenate([g[2000:], g[:30]])
        exact = asked[:30].reshape(30, -1) @ np.linalg.solve(damped(flat.T @ flat / 2000), asked[30:].reshape(30, -1).T)
        halves = fitted.half(torch.from_numpy(asked)).flatten(1).numpy()
        found.append(np.mean([spearmanr(*pair).statistic for pair in zip(halves[:30] @ halves[30:].T, exact, strict=True)]))
    assert min(found) >= 0.95, found


def test_rows_are_summed_over_positions_before_they_are_squared() -> None:
    """Both orders of the rotation: many positions, where the sum comes first, and few."""
    source = np.random.default_rng(1)
    for tokens in (2, 200):
        x, delta = source.normal(size=(30, tokens, 4)), source.normal(size=(30, tokens, 3))
        fitted = fit_pairs(x, delta, 7)
        g = np.einsum("nto,nti->noi", delta, x)
        rotated = fitted.outputs.numpy().T @ g @ fitted.inputs.numpy()
        np.testing.assert_allclose(fitted.values, (rotated**2).mean(0), rtol=1e-10)
        np.testing.assert_allclose(fitted.rotate(torch.from_numpy(g)), rotated, rtol=1e-10)


def test_padding_counts_for_nothing() -> None:
    source = np.random.default_rng(2)
    x, delta = source.normal(size=(20, 9, 4)), source.normal(size=(20, 9, 3))
    lengths = source.integers(1, 9, size=20)
    mask = np.arange(9) < lengths[:, None]
    layer = nn.Linear(4, 3, bias=False).double()

    def backward(places: list[int], width: int) -> None:
        given = torch.from_numpy(x[places, :width]).requires_grad_(True)
        torch.autograd.grad(layer(given), given, torch.from_numpy((delta * mask[..., None])[places, :width]))

    def one_by_one(step: int) -> list[PseudoBatch]:
        return [PseudoBatch(1, partial(backward, [place], int(lengths[place]))) for place in range(20)]

    def together(step: int) -> list[PseudoBatch]:
        return [PseudoBatch(20, partial(backward, list(range(20)), 9), torch.from_numpy(mask))]

    layers = {"only": Layer(layer, 4, 3)}
    for bias in (False, True):
        alone, padded = (fit_ekfac(layers, batches, bias=bias)["only"] for batches in (one_by_one, together))
        same(alone, padded)


def same(found: LayerFactors, expected: LayerFactors, tolerance: float = 1e-9) -> None:
    """Assert equality up to the signs of the eigenvectors."""
    for side in ("inputs", "outputs"):
        overlap = (getattr(found, side).T @ getattr(expected, side)).abs()
        torch.testing.assert_close(overlap, torch.eye(len(overlap), dtype=overlap.dtype), rtol=0, atol=tolerance)
    torch.testing.assert_close(found.values, expected.values, rtol=tolerance, atol=tolerance * float(expected.values.max()))


@pytest.mark.parametrize("cotangents", [softmax_cotangents, sampled_cotangents(3, seed=5)])
@pytest.mark.parametrize("held", [1, 8 * (7 * 7 + 5 * 5 + 5 * 7), 1 << 30])
@pytest.mark.parametrize("batch_size", [1, 8])
def test_neither_groups_of_layers_nor_batches_change_anything(cotangents: Cotangents, held: int, batch_size: int) -> None:
    model, rows = tanh_net(), inputs(20)
    layers = gradient_layers(model)
    expected = fit_ekfac(layers, output_batches(model, rows, cotangents), bias=True)
    batches = Mock(wraps=output_batches(model, rows, cotangents, batch_size))
    found = fit_ekfac(layers, batches, bias=True, max_bytes=held)
    for name in layers:
        same(found[name], expected[name])
    assert batches.call_count == (2 if held == 1 << 30 else 4)
    assert factor_bytes(layers["0"], bias=True) == 8 * (7 * 7 + 5 * 5 + 5 * 7)


def test_sampled_labels_have_the_closed_form_as_their_mean() -> None:
    model, rows = tanh_net(), inputs(10)
    layers = gradient_layers(model)
    exact, sampled, other = (
        fit_ekfac(layers, output_batches(model, rows, cotangents), bias=True)
        for cotangents in (softmax_cotangents, sampled_cotangents(1500, 0), sampled_cotangents(1500, 1))
    )
    for name in layers:
        error = float((sampled[name].values.sum() / exact[name].values.sum() - 1).abs())
        assert 0 < error < 0.03, error
        assert not torch.equal(sampled[name].values, other[name].values)


def test_a_layer_without_gradients_counts_for_nothing() -> None:
    model, rows = linear_net(), inputs(5)
    with torch.no_grad():
        model.get_parameter("2.weight").zero_()
    fitted = fit_ekfac(gradient_layers(model), output_batches(model, rows, square_cotangents))
    assert float(fitted["0"].values.abs().max()) == 0
    ones = torch.ones(2, *fitted["0"].values.shape, dtype=torch.float64)
    assert float(fitted["0"].solve(ones).abs().max()) == float(fitted["0"].half(ones).abs().max()) == 0
    assert float(fitted["2"].solve(torch.ones(1, 3, 7).double()).abs().max()) > 0


def test_weights_gather_no_gradients_and_the_model_stays_as_it_was() -> None:
    model = tanh_net().train()
    fit_ekfac(gradient_layers(model), output_batches(model, inputs(6), softmax_cotangents), bias=True)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters()) and model.training
    assert all(not layer._forward_hooks for layer in model)


@pytest.mark.parametrize("make", [linear_net, tanh_net])
def test_half_precision_layers_have_float32_factors(make: Callable[[], nn.Sequential]) -> None:
    exact, half = make(), make().bfloat16()
    expected = fit_ekfac(gradient_layers(exact), output_batches(exact, inputs(40), square_cotangents))
    found = fit_ekfac(gradient_layers(half), output_batches(half, inputs(40).bfloat16(), square_cotangents))
    for name, factors in found.items():
        assert factors.inputs.dtype == factors.outputs.dtype == factors.values.dtype == torch.float32
        torch.testing.assert_close(factors.values.sum(), expected[name].values.sum().float(), rtol=0.05, atol=0)


def test_default_damping_is_that_of_the_paper() -> None:
    assert module.DAMPING == 0.1


def whitening_of(model: nn.Module, rows: Tensor) -> Whitening:
    return Whitening(fit_ekfac(gradient_layers(model), output_batches(model, rows, softmax_cotangents)))


@pytest.mark.parametrize("tokens", [2, 200])
def test_whitening_of_pairs_is_that_of_their_gradient(tokens: int) -> None:
    model = tanh_net(bias=False)
    whitening = whitening_of(model, inputs(30))
    source = torch.Generator().manual_seed(0)
    x, delta = torch.randn(4, tokens, 6, generator=source), torch.randn(4, tokens, 5, generator=source)
    gradient = torch.bmm(delta.mT, x)
    expected = whitening.factors["0"].half(gradient.double(), 0.1).float()
    torch.testing.assert_close(whitening.outer_sum("0", x, delta), expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(whitening("0", gradient), expected, rtol=1e-3, atol=1e-3)


def test_leading_coordinates_are_the_largest_beside_their_layers_damping() -> None:
    fitted = whitening_of(tanh_net(bias=False), inputs(30)).factors
    larger = replace(fitted["2"], values=1000 * fitted["2"].values)
    whitening = Whitening({"0": fitted["0"], "2": larger}, 0.5)
    shares = {name: (layer.values / (layer.values + 0.5 * layer.values.mean())).flatten() for name, layer in whitening.factors.items()}
    found = whitening.leading(12)
    assert list(found) == list(shares) == ["0", "2"] and sum(len(kept) for kept in found.values()) == 12
    floor = torch.cat(list(shares.values())).sort(descending=True).values[11]
    assert min(len(kept) for kept in found.values()) > 0
    for name, kept in found.items():
        assert torch.equal(kept, (shares[name] >= floor).nonzero()[:, 0])
    assert {name: len(kept) for name, kept in whitening.leading(10**6).items()} == {"0": 30, "2": 20}
