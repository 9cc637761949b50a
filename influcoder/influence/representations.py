"""What one forward pass of the decoder tells of a row: hidden states and loss, all that methods without gradients have to go by.

Legend: N rows, T tokens, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from influcoder.influence.decoder import Decoder
from influcoder.influence.tokens import TokenizedRow, pad, pad_token_id, row_losses, token_batches


@torch.no_grad()
def hidden_states(decoder: Decoder, rows: Sequence[TokenizedRow], max_batch_tokens: int) -> tuple[Tensor, Tensor]:
    """Return the last layer's state at each row's last token, and its mean over the row's tokens: both `(N, H)` float32 on the CPU."""
    model: nn.Module = decoder.model
    body: nn.Module = decoder.model.get_decoder()  # the layers without the head: no (B, T, vocabulary)
    training = model.training
    model.eval()
    lasts, means, order = [], [], []
    for positions in token_batches(rows, max_batch_tokens):
        input_ids, attention_mask, _ = pad([rows[position] for position in positions], pad_token_id(decoder.tokenizer), decoder.device)
        states = body(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state.float()  # (B, T, H)
        lengths = attention_mask.sum(1)
        lasts.append(states[torch.arange(len(positions)), lengths - 1].cpu())
        means.append(((states * attention_mask[..., None]).sum(1) / lengths[:, None]).cpu())
        order += positions
    model.train(training)
    back = torch.argsort(torch.tensor(order))
    return torch.cat(lasts)[back], torch.cat(means)[back]


@torch.no_grad()
def losses(decoder: Decoder, rows: Sequence[TokenizedRow], max_batch_tokens: int) -> Tensor:
    """Return each row's mean cross-entropy (nats) on its response, `(N,)` float32 on the CPU."""
    model: nn.Module = decoder.model
    training = model.training
    model.eval()
    found = torch.empty(len(rows))
    for positions in token_batches(rows, max_batch_tokens):
        batch = pad([rows[position] for position in positions], pad_token_id(decoder.tokenizer), decoder.device)
        found[positions] = row_losses(model, *batch).cpu()
    model.train(training)
    return found
