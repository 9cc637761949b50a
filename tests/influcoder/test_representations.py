from __future__ import annotations

import pytest
import torch

from influcoder.examples import Example, Turn
from influcoder.influence.decoder import Decoder, FreshDecoder, make_fresh_decoder
from influcoder.influence.representations import hidden_states, losses
from influcoder.influence.tokens import pad, row_losses, tokenize

ROWS = [
    Example(id=str(size), context=(Turn(role="user", content="Count to " + str(size)),), response=" ".join(map(str, range(1, size))))
    for size in (9, 3, 20, 5)
]


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    config = FreshDecoder(hidden_size=16, layers=2, heads=2, intermediate_size=32, vocab_size=280, max_tokens=128)
    return make_fresh_decoder(config, ROWS, seed=0)


def test_a_row_does_not_depend_on_its_batch(decoder: Decoder) -> None:
    rows = tokenize(ROWS, decoder)
    batched, alone = hidden_states(decoder, rows, 10_000), hidden_states(decoder, rows, 1)
    for together, single in zip(batched, alone, strict=True):
        torch.testing.assert_close(together, single, rtol=1e-5, atol=1e-6)


def test_states_are_the_last_layer_at_the_last_token_and_their_mean(decoder: Decoder) -> None:
    rows = tokenize(ROWS, decoder)
    last, mean = hidden_states(decoder, rows, 10_000)
    assert last.shape == mean.shape == (4, 16)
    assert last.dtype == mean.dtype == torch.float32
    for place, row in enumerate(rows):
        with torch.no_grad():
            expected = decoder.model(torch.tensor([row.input_ids]), output_hidden_states=True).hidden_states[-1][0]
        torch.testing.assert_close(last[place], expected[-1], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(mean[place], expected.mean(0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("max_batch_tokens", [1, 60, 10_000])
def test_losses_are_those_of_one_row_at_a_time_in_the_order_of_the_rows(decoder: Decoder, max_batch_tokens: int) -> None:
    rows = tokenize(ROWS, decoder)
    with torch.no_grad():
        expected = torch.cat([row_losses(decoder.model.eval(), *pad([row], 0, torch.device("cpu"))) for row in rows])
    assert (expected[:, None] != expected).sum() == 4 * 3, "rows of different losses, lest their order does not show"
    found = losses(decoder, rows, max_batch_tokens)
    assert found.dtype == torch.float32 and not found.requires_grad
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_leaves_the_decoder_in_its_mode(decoder: Decoder, training: bool) -> None:
    for work in (hidden_states, losses):
        decoder.model.train(training)
        work(decoder, tokenize(ROWS, decoder), 64)
        assert decoder.model.training == training
