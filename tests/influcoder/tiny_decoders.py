"""Tiny random decoders, and rows that they can read."""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from influcoder.examples import Example, Turn
from influcoder.influence.decoder import Decoder, FreshDecoder, make_fresh_decoder

SMALL = FreshDecoder(hidden_size=16, layers=2, heads=4, intermediate_size=24, vocab_size=280, max_tokens=128)


def example(name: str, prompt: str, response: str) -> Example:
    """Return a row of one user turn."""
    return Example(id=name, context=(Turn(role="user", content=prompt),), response=response)


ROWS = [
    example("sum", "What is 2 plus 3?", "It is 5."),
    example("sea", "Name a sea, please, any sea that you know of.", "The North Sea is one."),
    example("ice", "Is ice cold?", "Yes."),
    Example(id="plain", context=(), response="Snow fell on the harbour."),
]


def fresh_decoder(seed: int = 0) -> Decoder:
    """Return a Llama with as many key heads as query heads, tied embeddings, and weights large enough to matter."""
    return _enlarge(make_fresh_decoder(SMALL, ROWS, seed))


def grouped_decoder(tied: bool) -> Decoder:
    """Return a Llama whose four query heads share one key head."""
    fresh = make_fresh_decoder(SMALL, ROWS, 0)
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(fresh.tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=1,
        tie_word_embeddings=tied,
        max_position_embeddings=128,
    )
    return _enlarge(Decoder(LlamaForCausalLM(config), fresh.tokenizer, 128))


def _enlarge(decoder: Decoder) -> Decoder:
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in decoder.model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return decoder
