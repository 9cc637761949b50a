"""Gradient caching: embeddings of a block of any size, and their gradients, in chunks of a bounded number of tokens.

The loss needs all embeddings of a block at once, their activations it does not. A chunk is embedded a first time for its embeddings
alone; when the loss has been taken and every embedding has its gradient, it is embedded again with what its backward pass needs
(GradCache, Gao et al. 2021, arXiv 2101.06983). Torch's checkpointing of a chunk is just that, the cached gradient being what autograd
holds for the chunk's embeddings, of their type: float32.

Several processes deal a block's texts out among themselves; each then has all embeddings, and drives back what its own texts get.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from influcoder.errors import ConfigError
from student.data import Tokens

Embed = Callable[[Tokens], Tensor]


def embed_block(embed: Embed, tokens: Tokens, max_batch_tokens: int, *, seed: Sequence[int], rank: int = 0, processes: int = 1) -> Tensor:
    """Return the embeddings of a block's texts (texts, dim), the same in every process.

    Args:
        embed: tokens to embeddings (rows, dim); a row must not depend on the others.
        tokens: what the encoder's forward takes, each (texts, tokens), with an `attention_mask`.
        max_batch_tokens: padded tokens of a chunk, at most, unless it is a single text. A block within it is embedded once, not twice.
        seed: of this block's dropout; no other random state is read or changed.
        rank: of this process.
        processes: that share the block; DDP has to take the mean of their gradients.

    Raises:
        ConfigError: when there are more processes than texts.
    """
    lengths = tokens["attention_mask"].sum(1).cpu()
    if processes > len(lengths):
        raise ConfigError(
            f"trainer.devices: {processes} processes for blocks of {len(lengths)} texts; expected at least one text each; use fewer"
        )
    chunks = cut_chunks(lengths, max_batch_tokens, rank, processes)
    found = []
    for number, places in enumerate(chunks):
        chunk = partial(_embed_chunk, embed, _select(tokens, places), [*seed, rank, number])
        found.append(chunk() if len(chunks) == 1 else checkpoint(chunk, use_reentrant=False, preserve_rng_state=False))
    return _gather(torch.cat(found), torch.cat(chunks), len(lengths), processes)


def cut_chunks(lengths: Tensor, max_batch_tokens: int, rank: int = 0, processes: int = 1) -> list[Tensor]:
    """Return the positions of a process's texts by chunk; longest first, so that padding is small and too little memory shows at once.

    Args:
        lengths: tokens of each text of the block (texts,).
        max_batch_tokens: padded tokens of a chunk, at most, unless it is a single text.
        rank: of this process, which takes every text whose place in the order of lengths is `rank` modulo `processes`.
        processes: that share the block.
    """
    order = lengths.argsort(descending=True, stable=True)[rank::processes]
    if len(order) * int(lengths[order[0]]) <= max_batch_tokens:
        return [order.sort().values]  # one chunk needs no order: the numbers of a block without caching, to the last bit
    chunks = []
    while len(order):
        size = max(1, max_batch_tokens // int(lengths[order[0]]))
        chunks.append(order[:size])
        order = order[size:]
    return chunks


def _select(tokens: Tokens, places: Tensor) -> Tokens:
    """Return the tokens of some texts, less the columns that are padding in all of them, on whichever side."""
    places = places.to(tokens["attention_mask"].device)
    read = tokens["attention_mask"][places].any(0)
    return {name: tensor[places][:, read] for name, tensor in tokens.items()}


def _embed_chunk(embed: Embed, tokens: Tokens, seed: Sequence[int]) -> Tensor:
    device = tokens["attention_mask"].device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(int(np.random.default_rng(seed).integers(2**63)))  # the same dropout in both passes
        return embed(tokens)


def _gather(own: Tensor, places: Tensor, total: int, processes: int) -> Tensor:
    """Return the embeddings of all processes (total, dim) in the order of the texts; gradients reach this process's own."""
    places = places.to(own.device)
    whole = own.new_zeros(total, own.shape[1])
    if processes > 1:
        dist.all_reduce(whole.index_copy_(0, places, own.detach()))  # zeros elsewhere: the sum is exact
        if own.requires_grad:
            own.register_hook(lambda gradient: gradient * processes)  # each has a part of one sum, of which DDP takes the mean
    return whole.index_copy(0, places, own)
