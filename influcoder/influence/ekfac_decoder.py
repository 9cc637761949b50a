"""EK-FAC of a causal LM's rows, whose loss is the *mean* over their T response tokens.

The Gauss-Newton matrix of that mean is `(1 / T) sum_t J_t^T (diag(p_t) - p_t p_t^T) J_t`, J_t the derivative of the logits at position
t. With a label drawn from p_t at each position, on the row's own text before it, the errors `p_t - e_label` have mean zero and are
independent of each other, so that

    g = (1 / sqrt(T)) sum_t J_t^T (p_t - e_label)        E[g g^T] = the row's Gauss-Newton matrix

and not 1 / T, as in the gradient of the row itself.

Legend: B rows, T positions, P positions that predict a response, V vocabulary.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from influcoder.influence.capture import Layer, frozen
from influcoder.influence.decoder import Decoder, fingerprint_model
from influcoder.influence.ekfac import Batches, PseudoBatch
from influcoder.influence.ekfac_files import fit_ekfac_into
from influcoder.influence.pseudo_gradients import label_errors, row_uniforms, sample_labels
from influcoder.influence.tokens import Predictions, TokenizedRow, pad, pad_token_id, predict, token_batches


@dataclass(frozen=True, kw_only=True)
class Draws:
    """Labels drawn from the model; a row's depend on the seed, its place and the pass alone."""

    count: int = 2
    """of each row's labels"""
    seed: int = 0


def decoder_batches(decoder: Decoder, rows: Sequence[TokenizedRow], draws: Draws, max_batch_tokens: int) -> Batches:
    """Return the rows' pseudo-gradients, for `ekfac.fit_ekfac`.

    Args:
        decoder: whose rows.
        rows: their places are those of their labels.
        draws: of labels.
        max_batch_tokens: padded tokens a batch.
    """

    def batches(step: int) -> Iterator[PseudoBatch]:
        drawn = range(step * draws.count, (step + 1) * draws.count)
        for places in token_batches(rows, max_batch_tokens):
            batch = pad([rows[place] for place in places], pad_token_id(decoder.tokenizer), decoder.device)
            yield PseudoBatch(len(places), partial(_backward, decoder, batch, places, draws, drawn), batch[1])

    return batches


def _backward(decoder: Decoder, batch: tuple[Tensor, Tensor, Tensor], places: Sequence[int], draws: Draws, drawn: range) -> None:
    with frozen(decoder.model):
        predicted = predict(decoder.model, *batch)
        for draw in drawn:
            errors = sampled_errors(predicted, places, draws, draw)
            predicted.logits.backward(errors, retain_graph=draw != drawn[-1])


@torch.no_grad()
def sampled_errors(predicted: Predictions, places: Sequence[int], draws: Draws, draw: int) -> Tensor:
    """Return the gradients at the logits (P, V) of one draw, `(p_t - e_label) / sqrt(T * draws)`."""
    lengths = predicted.rows.bincount(minlength=len(places))
    probabilities = predicted.logits.softmax(1)
    uniforms = [row_uniforms(draws.seed, place, draw, length) for place, length in zip(places, lengths.tolist(), strict=True)]
    labels = sample_labels(probabilities, torch.cat(uniforms).to(probabilities.device))
    return label_errors(probabilities, labels) / (lengths[predicted.rows, None] * draws.count).sqrt()


def fit_decoder_ekfac(
    decoder: Decoder, layers: Mapping[str, Layer], rows: Sequence[TokenizedRow], folder: Path, draws: Draws, max_batch_tokens: int,
    takes: Callable[[int], bool] = lambda group: True,
) -> None:  # fmt: skip
    """Fit the factors of a decoder's layers into `folder`, for `ekfac_files.load_ekfac`; what is committed there already is kept.

    Args:
        decoder: whose layers.
        layers: `self_check.usable_layers`.
        rows: over which curvature is averaged.
        folder: to write.
        draws: of labels.
        max_batch_tokens: padded tokens a batch.
        takes: whether a group of layers is this process's.

    Raises:
        RunError: when the folder cannot be written, or holds changed files or factors of something else.
    """
    content = json.dumps([fingerprint_model(decoder.model), asdict(draws), [(row.input_ids, row.response_start) for row in rows]])
    fit_ekfac_into(
        folder,
        layers,
        decoder_batches(decoder, rows, draws, max_batch_tokens),
        of=hashlib.sha256(content.encode()).hexdigest()[:16],
        num_rows=len(rows),
        takes=takes,
    )
