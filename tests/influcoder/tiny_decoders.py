"""Tiny random decoders, and rows that they can read."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from influcoder.examples import Example, Turn
from influcoder.influence.decoder import Decoder, FreshDecoder, make_fresh_decoder
from influcoder.influence.tokens import TokenizedRow

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


def gpt2_decoder() -> Decoder:
    """Return a GPT-2: Conv1D layers with biases, learned positions, tied embeddings, dropout when it trains."""
    fresh = make_fresh_decoder(SMALL, ROWS, 0)
    torch.manual_seed(1)
    config = GPT2Config(
        vocab_size=len(fresh.tokenizer),
        n_positions=128,
        n_embd=16,
        n_inner=24,
        n_layer=2,
        n_head=4,
        bos_token_id=None,
        eos_token_id=fresh.tokenizer.eos_token_id,
    )
    return _enlarge(Decoder(GPT2LMHeadModel(config), fresh.tokenizer, 128))


DECODERS: dict[str, Callable[[], Decoder]] = {
    "as many key heads": fresh_decoder,
    "grouped query, tied": lambda: grouped_decoder(tied=True),
    "grouped query, untied": lambda: grouped_decoder(tied=False),
    "GPT-2": gpt2_decoder,
}


def with_adapter(decoder: Decoder, rank: int = 3, alpha: int = 6) -> Decoder:
    """Wrap the decoder in a PEFT LoRA on every layer but the head; B = 0 as PEFT makes it."""
    torch.manual_seed(0)
    kinds = (nn.Linear, Conv1D)
    names = [name for name, module in decoder.model.named_modules() if isinstance(module, kinds) and "lm_head" not in name]
    fan_in_fan_out = isinstance(decoder.model, GPT2LMHeadModel)
    settings = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=names, fan_in_fan_out=fan_in_fan_out)
    return Decoder(cast(PreTrainedModel, get_peft_model(decoder.model, settings)), decoder.tokenizer, decoder.max_tokens)


def trained_adapter(decoder: Decoder) -> Decoder:
    """Return `with_adapter`, B no longer zero."""
    adapted = with_adapter(decoder)
    source = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in adapted.model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=source))
    return adapted


def row_gradients(decoder: Decoder, row: TokenizedRow) -> dict[str, NDArray[np.float64]]:
    """Return one row's gradients (O, I) by layer, alone in its batch, its loss by torch's own cross-entropy; no dropout."""
    model = decoder.model.eval()
    model.zero_grad()
    ids = torch.tensor(row.input_ids)
    logits = model(input_ids=ids[None]).logits[0]
    nn.functional.cross_entropy(logits[row.response_start - 1 : -1], ids[row.response_start :]).backward()
    found: dict[str, NDArray[np.float64]] = {}
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, Conv1D)) and not name.endswith("lm_head") and module.weight.grad is not None:
            gradient = module.weight.grad.double().numpy().copy()
            found[name] = gradient.T if isinstance(module, Conv1D) else gradient
    model.zero_grad()
    return found


def relative_error(found: object, expected: object) -> float:
    """Return ||found - expected|| / ||expected||."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def _enlarge(decoder: Decoder) -> Decoder:
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in decoder.model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return decoder
