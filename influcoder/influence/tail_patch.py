"""Tail-patch: one training step on a row from the final weights; does a query's response become likelier?

Chang et al., arXiv 2410.17413 (TrackStar), section 4. The step is Adam's with its second moment at the end of the training and the row
as the whole batch, without momentum, which would be the same for every row:

    v' = b2 v + (1 - b2) g^2;   theta' = theta - lr g / (sqrt(v' / (1 - b2^(t + 1))) + eps)

Legend: Q queries, N rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from influcoder.influence.adam import BETA2, EPSILON
from influcoder.influence.decoder import Decoder
from influcoder.influence.representations import losses
from influcoder.influence.tokens import TokenizedRow, pad, pad_token_id, row_losses


def patch_effects(
    decoder: Decoder,
    second_moments: Mapping[str, Tensor],
    step: int,
    rows: Sequence[TokenizedRow],
    queries: Sequence[TokenizedRow],
    wanted: NDArray[np.bool_],
    learning_rate: float,
    max_batch_tokens: int = 2048,
) -> NDArray[np.float32]:
    """Return by how much a step on a row raises a query's mean log-probability (nats a token), (Q, N); NaN where not wanted.

    Args:
        decoder: at its final weights, which it has again afterwards.
        second_moments: Adam's, of every trained parameter by name.
        step: t, optimiser steps done so far; corrects their bias.
        rows: N.
        queries: Q.
        wanted: (Q, N) pairs to measure; a row that no query wants costs nothing.
        learning_rate: of the step.
        max_batch_tokens: padded tokens a batch when queries are asked.
    """
    trained = {name: parameter for name, parameter in decoder.model.named_parameters() if name in second_moments}
    before = {name: parameter.detach().clone() for name, parameter in trained.items()}
    losses_before = losses(decoder, queries, max_batch_tokens).numpy()
    effects = np.full(wanted.shape, np.nan, np.float32)
    for row in tqdm(np.flatnonzero(wanted.any(axis=0)).tolist(), desc="tail patch", unit="row", disable=None, leave=False):
        asking = np.flatnonzero(wanted[:, row])
        _take_step(decoder, trained, second_moments, step, rows[int(row)], learning_rate)
        after = losses(decoder, [queries[query] for query in asking.tolist()], max_batch_tokens).numpy()
        effects[asking, row] = losses_before[asking] - after
        with torch.no_grad():
            for name, parameter in trained.items():
                parameter.copy_(before[name])
    return effects


def _take_step(
    decoder: Decoder, trained: Mapping[str, torch.nn.Parameter], moments: Mapping[str, Tensor], step: int, row: TokenizedRow, rate: float
) -> None:
    loss = row_losses(decoder.model, *pad([row], pad_token_id(decoder.tokenizer), decoder.device)).mean()
    gradients = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
    correction = 1 - BETA2 ** (step + 1)
    with torch.no_grad():
        for (name, parameter), gradient in zip(trained.items(), gradients, strict=True):
            if gradient is not None:
                moment = BETA2 * moments[name].to(gradient.device) + (1 - BETA2) * gradient.square()
                parameter.sub_(gradient / ((moment / correction).sqrt() + EPSILON), alpha=rate)
