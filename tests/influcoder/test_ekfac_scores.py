"""The truth here: a backward pass a row, each layer's Gauss-Newton inverted densely in the factors' basis, numpy's singular values."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import Tensor

from influcoder.errors import ConfigError
from influcoder.influence import ekfac_scores as module
from influcoder.influence.capture import Layer, capture, frozen, gradient_layers
from influcoder.influence.decoder import Decoder, DecoderConfig, load_decoder
from influcoder.influence.ekfac import LayerFactors, fit_ekfac
from influcoder.influence.ekfac_decoder import Draws, decoder_batches
from influcoder.influence.ekfac_scores import LayerQueries, StreamedScores, compress, precondition_queries, stream_scores
from influcoder.influence.exact import exact_products
from influcoder.influence.self_check import usable_layers
from influcoder.influence.tokens import TokenizedRow, pad, pad_token_id, row_losses, tokenize
from influcoder.readers import DataSource, read_examples
from influcoder.text_format import TextFormat, truncate_all
from tests.influcoder.tiny_decoders import ROWS, example, fresh_decoder, gpt2_decoder, row_gradients

Array = NDArray[np.float64]
POOL = [example("bay", "Name a bay.", "Hudson Bay, which is a bay."), *ROWS, example("no", "Is fire cold?", "No, it is not.")]


def fitted(decoder: Decoder) -> tuple[dict[str, Layer], dict[str, LayerFactors], list[TokenizedRow], list[TokenizedRow]]:
    layers, rows = gradient_layers(decoder.model), tokenize(POOL, decoder)
    return layers, fit_ekfac(layers, decoder_batches(decoder, rows, Draws(), 1000)), tokenize(ROWS[:3], decoder), rows


def dense_solve(factors: LayerFactors, gradients: Array, damping: float) -> Array:
    """Return (Q, O * I): the Gauss-Newton as one matrix, inverted."""
    rotation = np.kron(factors.outputs.double().numpy(), factors.inputs.double().numpy())
    values = factors.values.double().numpy().ravel()
    matrix = rotation @ np.diag(values) @ rotation.T + damping * values.mean() * np.eye(len(values))
    solved: Array = np.linalg.solve(matrix, gradients.T).T
    return solved


def flat(decoder: Decoder, rows: list[TokenizedRow], name: str) -> Array:
    return np.stack([row_gradients(decoder, row)[name].ravel() for row in rows])


def close(found: Array, expected: Array, tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("damping", [0.1, 1.0])
@pytest.mark.parametrize("make", [fresh_decoder, gpt2_decoder])
def test_scores_equal_dense_solves_by_layer_and_in_sum(make: Callable[[], Decoder], damping: float) -> None:
    decoder = make()
    layers, factors, queries, rows = fitted(decoder)
    held = precondition_queries(decoder, factors, layers, queries, max_batch_tokens=64, damping=damping)
    found = stream_scores(decoder, layers, held, rows, max_batch_tokens=64)
    assert found.layers == tuple(layers) and found.by_token is None
    expected = []
    for place, (name, layer_factors) in enumerate(factors.items()):
        expected.append(dense_solve(layer_factors, flat(decoder, queries, name), damping) @ flat(decoder, rows, name).T)
        close(found.by_layer[place], expected[-1], 1e-4)
    close(found.values, np.sum(expected, axis=0), 1e-4)
    whole = exact_products(
        decoder, layers, queries, rows, max_batch_tokens=64, query_transform=lambda name, g: factors[name].solve(g, damping)
    )
    close(found.values, whole.products)


@pytest.mark.parametrize("rank", [None, 3])
def test_tokens_and_layers_sum_to_the_total(rank: int | None) -> None:
    decoder = fresh_decoder()
    layers, factors, queries, rows = fitted(decoder)
    held = precondition_queries(decoder, factors, layers, queries, max_batch_tokens=64, rank=rank)
    total = stream_scores(decoder, layers, held, rows, max_batch_tokens=64).values
    found = stream_scores(decoder, layers, held, rows, max_batch_tokens=64, by_token=True)
    assert found.by_token is not None
    assert [tokens.shape for tokens in found.by_token] == [(3, len(row.input_ids)) for row in rows]
    close(np.stack([tokens.sum(1) for tokens in found.by_token], axis=1), total)
    close(found.by_layer.sum(0), total)
    assert all(np.abs(tokens[:, -1]).max() == 0 for tokens in found.by_token), "the last token predicts nothing"


def test_a_tokens_score_is_what_goes_through_its_position() -> None:
    decoder = fresh_decoder()
    layers, factors, queries, rows = fitted(decoder)
    held = precondition_queries(decoder, factors, layers, queries, max_batch_tokens=64)
    found = stream_scores(decoder, layers, held, rows, max_batch_tokens=1000, by_token=True).by_token
    assert found is not None
    for row, tokens in zip(rows, found, strict=True):
        expected = np.zeros_like(tokens)

        def add(name: str, x: Tensor, delta: Tensor, expected: Array = expected) -> None:
            solved = dense_solve(factors[name], flat(decoder, queries, name), 0.1).reshape(3, *factors[name].values.shape)
            expected += np.einsum("to,qoi,ti->qt", delta[0].double().numpy(), solved, x[0].double().numpy())

        seen: list[tuple[str, Tensor, Tensor]] = []
        with frozen(decoder.model), capture(layers, lambda *given: seen.append(given)), torch.enable_grad():  # noqa: B023
            row_losses(decoder.model, *pad([row], pad_token_id(decoder.tokenizer), decoder.device)).sum().backward()
        for given in seen:
            add(*given)
        close(tokens, expected, 1e-4)


def same(found: StreamedScores, expected: StreamedScores) -> None:
    close(found.by_layer, expected.by_layer)
    for mine, others in zip(found.by_token or (), expected.by_token or (), strict=True):
        close(mine, others)


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("by_token", [False, True])
def test_batches_and_padding_change_nothing(rank: int | None, by_token: bool) -> None:
    decoder = fresh_decoder()
    layers, factors, queries, rows = fitted(decoder)
    found = []
    for max_batch_tokens in (1, 40, 10_000):
        held = precondition_queries(decoder, factors, layers, queries, max_batch_tokens=max_batch_tokens, rank=rank)
        found.append(stream_scores(decoder, layers, held, rows, max_batch_tokens=max_batch_tokens, by_token=by_token))
    for other in found[1:]:
        same(other, found[0])
    alone = [stream_scores(decoder, layers, held, [row], max_batch_tokens=1) for row in rows]
    close(np.concatenate([one.values for one in alone], axis=1), found[0].values)


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (6, 6)])
def test_compression_is_the_nearest_of_its_rank(shape: tuple[int, int]) -> None:
    matrices = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0))
    left, right = compress(matrices, 3)
    assert left.shape == (4, shape[0], 3) and right.shape == (4, 3, shape[1])
    for matrix, nearest in zip(matrices.double().numpy(), (left @ right).double().numpy(), strict=True):
        u, values, v = np.linalg.svd(matrix, full_matrices=False)
        close(nearest, u[:, :3] * values[:3] @ v[:3])


def test_a_rank_that_saves_nothing_keeps_a_layer_whole() -> None:
    """16 x 16 at rank 8 and 16 x 24 at rank 9.6 take as many numbers as they have."""
    decoder = fresh_decoder()
    layers, factors, queries, rows = fitted(decoder)
    held = precondition_queries(decoder, factors, layers, queries, max_batch_tokens=64, rank=9)
    for name, block in held.items():
        square = layers[name].in_features == layers[name].out_features
        assert (block.right is None) == square
        assert block.left.shape == ((3, 16, 16) if square else (3, layers[name].out_features, 9))
    whole = precondition_queries(decoder, factors, layers, queries, max_batch_tokens=64)
    found = stream_scores(decoder, layers, held, rows, max_batch_tokens=64)
    expected = stream_scores(decoder, layers, whole, rows, max_batch_tokens=64)
    agreement = [spearmanr(*pair).statistic for pair in zip(found.values, expected.values, strict=True)]
    assert min(agreement) > 0.9 and not np.array_equal(found.values, expected.values)


def test_a_layers_scores_are_of_left_times_right() -> None:
    source = torch.Generator().manual_seed(3)
    left, right, x, delta = (torch.randn(*shape, generator=source) for shape in ((2, 5, 3), (2, 3, 4), (6, 7, 4), (6, 7, 5)))
    expected = torch.einsum("bto,qoi,bti->qbt", delta, left @ right, x)
    for block in (LayerQueries(left, right), LayerQueries(left @ right, None)):
        torch.testing.assert_close(block.token_scores(x, delta), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(block.row_scores(x, delta), expected.sum(2), rtol=1e-4, atol=1e-4)


def test_queries_too_many_to_hold_are_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = fresh_decoder()
    layers, factors, queries, _ = fitted(decoder)
    each = 4 * 2 * (4 * 16 * 16 + 3 * 16 * 24)
    monkeypatch.setattr(module, "HELD_BYTES", 3 * each - 1)
    with pytest.raises(ConfigError, match=f"3 queries take {3 * each:,} bytes; expected at most {3 * each - 1:,}; ask fewer") as caught:
        precondition_queries(decoder, factors, layers, queries, max_batch_tokens=64)
    assert "\n" not in str(caught.value)
    precondition_queries(decoder, factors, layers, queries, max_batch_tokens=64, rank=2)


def test_rank_32_keeps_the_ranks_of_a_real_decoder(data_folder: Path) -> None:
    source = DataSource(paths=(str(data_folder / "poison" / "pool.jsonl.gz"),), limit=36)
    decoder = load_decoder(DecoderConfig(path=str(data_folder / "models" / "small-lm"), device="cpu"), [], 0)
    rows = tokenize(truncate_all(read_examples(source), TextFormat(max_prompt_chars=80, max_response_chars=80)), decoder)
    queries, pool = rows[:4], rows[4:]
    layers, _ = usable_layers(decoder, rows[:2])
    factors = fit_ekfac(layers, decoder_batches(decoder, pool, Draws(count=1), 1024))
    exact, compressed = (
        stream_scores(
            decoder,
            layers,
            precondition_queries(decoder, factors, layers, queries, max_batch_tokens=1024, rank=rank),
            pool,
            max_batch_tokens=1024,
        ).values
        for rank in (None, 32)
    )
    agreement = [float(spearmanr(*pair).statistic) for pair in zip(compressed, exact, strict=True)]
    print(f"rank 32 against whole queries: {np.mean(agreement):.3f} Spearman, the lowest {min(agreement):.3f}")  # noqa: T201
    assert np.mean(agreement) >= 0.95
