"""Rows as tokens: chat template, then the response, and a mask so that the loss is on the response alone.

Legend: B rows, T tokens. Batches are right-padded; padded positions never count.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from influcoder.errors import DataError
from influcoder.examples import Example
from influcoder.influence.decoder import Decoder


@dataclass(frozen=True, slots=True)
class TokenizedRow:
    """One row as the decoder reads it."""

    input_ids: tuple[int, ...]
    response_start: int
    """position of the first token of the response; the loss is on it and all after it"""


def tokenize(examples: Sequence[Example], decoder: Decoder) -> list[TokenizedRow]:
    """Return the tokens of truncated rows.

    Raises:
        DataError: when a row has no response, or overflows the decoder's context, naming the row.
    """
    rows = [_tokenize_one(example, decoder.tokenizer) for example in examples]
    for example, row in zip(examples, rows, strict=True):
        if row.response_start >= len(row.input_ids):
            raise DataError(
                f"row {example.id!r}: its response has no tokens; expected at least one, since the loss is on it; take the row out"
            )
        if len(row.input_ids) > decoder.max_tokens:
            raise DataError(
                f"row {example.id!r}: {len(row.input_ids)} tokens, expected at most the decoder's {decoder.max_tokens}; "
                "lower text.max_prompt_chars or text.max_response_chars"
            )
    return rows


def _tokenize_one(example: Example, tokenizer: PreTrainedTokenizerBase) -> TokenizedRow:
    prefix, response = _render_for_decoder(example, tokenizer)
    # the two are tokenised apart, so that no piece straddles the border of the loss
    prefix_ids: list[int] = tokenizer(prefix, add_special_tokens=False)["input_ids"] if prefix else []
    response_ids: list[int] = tokenizer(response, add_special_tokens=False)["input_ids"]
    if not prefix_ids:  # the first token has nothing before it to be predicted from
        start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        prefix_ids = [start] if start is not None else []
    return TokenizedRow((*prefix_ids, *response_ids), max(1, len(prefix_ids)))


def _render_for_decoder(example: Example, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    end = tokenizer.eos_token or ""
    if not example.context:
        return "", example.response + end
    if tokenizer.chat_template is None:
        return f"{example.prompt}\n", example.response + end
    messages: list[dict[str, Any]] = [{"role": turn.role, "content": turn.content} for turn in example.context]
    prefix = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    full = str(tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": example.response}], tokenize=False))
    # templates that rewrite earlier turns (as "thinking" ones do) are not prefixes of themselves
    return prefix, full[len(prefix) :] if full.startswith(prefix) else example.response + end


def pad(rows: Sequence[TokenizedRow], pad_token_id: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Right-pad rows; return `input_ids`, `attention_mask` and `response_mask`, each (B, T)."""
    length = max(len(row.input_ids) for row in rows)
    input_ids = torch.full((len(rows), length), pad_token_id)
    attention_mask, response_mask = torch.zeros(len(rows), length), torch.zeros(len(rows), length)
    for index, row in enumerate(rows):
        size = len(row.input_ids)
        input_ids[index, :size] = torch.tensor(row.input_ids)
        attention_mask[index, :size] = 1
        response_mask[index, row.response_start : size] = 1
    return input_ids.to(device), attention_mask.long().to(device), response_mask.to(device)


@dataclass(frozen=True)
class Predictions:
    """What a model says at the P positions of a batch that predict a response, row after row."""

    logits: Tensor
    """(P, V) float32"""
    targets: Tensor
    """(P,) the tokens that follow"""
    rows: Tensor
    """(P,) place in the batch of each position's row"""


def predict(model: torch.nn.Module, input_ids: Tensor, attention_mask: Tensor, response_mask: Tensor) -> Predictions:
    """Run the model forward; inputs are (B, T).

    Only positions that predict a response go through the output layer: the rest are nobody's loss, and a large vocabulary is dear.
    """
    kept = input_ids.shape[1] - int(response_mask.argmax(1).min()) + 1
    targets, mask = input_ids[:, 1 - kept :], response_mask[:, 1 - kept :].bool()
    asked = torch.nn.functional.pad(mask, (0, 1))  # the last position predicts nothing
    with _reading_only(model, asked):
        logits = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, logits_to_keep=kept).logits.float()
    if logits.ndim > 2:  # a model without a head of its own has read everything
        logits = logits[asked]
    return Predictions(logits, targets[mask].to(logits.device), mask.nonzero()[:, 0].to(logits.device))


def row_losses(model: torch.nn.Module, input_ids: Tensor, attention_mask: Tensor, response_mask: Tensor) -> Tensor:
    """Return each row's mean cross-entropy (nats) over its response tokens, `(B,)`; inputs are (B, T)."""
    predicted = predict(model, input_ids, attention_mask, response_mask)
    losses = torch.nn.functional.cross_entropy(predicted.logits, predicted.targets, reduction="none")
    sums = losses.new_zeros(len(input_ids)).index_add(0, predicted.rows, losses)
    return sums / predicted.rows.bincount(minlength=len(input_ids))


@contextmanager
def _reading_only(model: torch.nn.Module, positions: Tensor) -> Iterator[None]:
    """While it runs, the output layer is given the states of some positions alone, (B, T) to (positions, width)."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if head is None:
        yield
        return
    handle = head.register_forward_pre_hook(lambda module, inputs: (inputs[0][positions.to(inputs[0].device)],))
    try:
        yield
    finally:
        handle.remove()


def pad_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return a token to pad with; which one does not matter, it is masked everywhere."""
    return int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0)


def token_batches(rows: Sequence[TokenizedRow], max_tokens: int) -> list[list[int]]:
    """Return batches of row positions, similar lengths together, each within `max_tokens` padded tokens (one row at least)."""
    batches: list[list[int]] = []
    for position in sorted(range(len(rows)), key=lambda row: (len(rows[row].input_ids), row)):
        length = len(rows[position].input_ids)
        if batches and (len(batches[-1]) + 1) * length <= max_tokens:
            batches[-1].append(position)
        else:
            batches.append([position])
    return batches
