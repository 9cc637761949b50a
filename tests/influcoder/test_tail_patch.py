"""One step on one row, against a copy of the decoder that torch's own Adam steps."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from influcoder.influence.decoder import Decoder
from influcoder.influence.representations import losses
from influcoder.influence.tail_patch import patch_effects
from influcoder.influence.tokens import pad, pad_token_id, row_losses, tokenize
from tests.influcoder.tiny_decoders import DECODERS, ROWS, fresh_decoder

RATE, STEP = 1e-3, 7


def moments_of(decoder: Decoder) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    named = {name: parameter for name, parameter in decoder.model.named_parameters() if parameter.requires_grad}
    return {name: torch.rand(parameter.shape, generator=generator) * 1e-3 for name, parameter in named.items()}


def stepped(decoder: Decoder, moments: dict[str, torch.Tensor], row: int) -> Decoder:
    """Return a copy that torch's Adam, without momentum, has moved by one step on a row."""
    moved = Decoder(copy.deepcopy(decoder.model), decoder.tokenizer, decoder.max_tokens)
    moved.model.eval()
    optimizer = torch.optim.Adam(moved.model.parameters(), lr=RATE, betas=(0.0, 0.999), eps=1e-8)
    for name, parameter in moved.model.named_parameters():
        optimizer.state[parameter] = {
            "step": torch.tensor(float(STEP)),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": moments[name].clone(),
        }
    tokens = tokenize(ROWS, moved)
    row_losses(moved.model, *pad([tokens[row]], pad_token_id(moved.tokenizer), moved.device)).mean().backward()
    optimizer.step()
    return moved


@pytest.mark.parametrize("name", DECODERS)
def test_effects_are_those_of_torchs_adam(name: str) -> None:
    decoder = DECODERS[name]()
    decoder.model.eval()
    for parameter in decoder.model.parameters():
        parameter.requires_grad_(True)
    moments, tokens = moments_of(decoder), tokenize(ROWS, decoder)
    before = copy.deepcopy(decoder.model.state_dict())
    found = patch_effects(decoder, moments, STEP, tokens, tokens[:2], np.ones((2, len(ROWS)), bool), RATE)
    plain = losses(decoder, tokens[:2], 4096).numpy()
    for row in range(len(ROWS)):
        moved = stepped(decoder, moments, row)
        np.testing.assert_allclose(found[:, row], plain - losses(moved, tokens[:2], 4096).numpy(), atol=2e-5)
    assert np.abs(found).max() > 1e-3
    for key, value in decoder.model.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)


def test_a_step_on_the_query_itself_helps_it() -> None:
    decoder = fresh_decoder()
    tokens = tokenize(ROWS, decoder)
    found = patch_effects(decoder, moments_of(decoder), STEP, tokens, tokens, np.ones((len(ROWS), len(ROWS)), bool), 1e-4)
    assert (found.diagonal() > 0).all()


def test_only_wanted_pairs_are_measured() -> None:
    decoder = fresh_decoder()
    tokens = tokenize(ROWS, decoder)
    wanted = np.zeros((2, len(ROWS)), bool)
    wanted[1, 3] = wanted[0, 0] = True
    found = patch_effects(decoder, moments_of(decoder), STEP, tokens, tokens[:2], wanted, RATE)
    assert np.array_equal(np.isfinite(found), wanted)
