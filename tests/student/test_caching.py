from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from torch import Tensor

from influcoder.errors import ConfigError
from student import caching
from student.caching import cut_chunks, embed_block
from student.config import EncoderConfig, FreshEncoder, OptimizerConfig, RecipeConfig
from student.data import Tokens
from student.encoder import load_encoder, tokenize
from student.module import Distillation

SMALL = FreshEncoder(hidden_size=16, layers=2, heads=2, intermediate_size=16, vocab_size=280)
TEXTS = [" ".join("bark dutt kish lork".split()[place % 4 :] * (1 + place % 5)) for place in range(13)]


def make_encoder(dropout: float = 0.0) -> SentenceTransformer:
    encoder = load_encoder(EncoderConfig(fresh=SMALL, max_tokens=32), TEXTS, seed=0).train()
    for module in encoder.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = dropout
    return encoder


def gradients(
    encoder: SentenceTransformer, tokens: Tokens, max_batch_tokens: int, seed: int = 0, bfloat16: bool = False
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the embeddings, and the gradients of a loss in which every pair of texts meets."""
    embed = Distillation(encoder, RecipeConfig(), OptimizerConfig(), seed=0).embed
    encoder.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):  # around the first pass alone, as Lightning has it
        embeddings = embed_block(embed, tokens, max_batch_tokens, seed=(seed, 0))
    ((embeddings @ embeddings.T).exp() * torch.arange(len(TEXTS))).sum().backward()
    return embeddings.detach(), {name: value.grad.clone() for name, value in encoder.named_parameters() if value.grad is not None}


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Compare as a share of the whole gradient's length."""
    assert set(found) == set(expected)
    length = sum(float(value.square().sum()) for value in expected.values()) ** 0.5
    for name, value in expected.items():
        assert float((found[name] - value).norm()) <= tolerance * length, name


@given(st.lists(st.integers(1, 60), min_size=4, max_size=40), st.integers(1, 200), st.integers(1, 4))
def test_every_text_is_in_one_chunk_of_one_process(lengths: list[int], max_batch_tokens: int, processes: int) -> None:
    shares = [cut_chunks(torch.tensor(lengths), max_batch_tokens, rank, processes) for rank in range(processes)]
    assert sorted(int(place) for share in shares for chunk in share for place in chunk) == list(range(len(lengths)))
    sizes = [sum(map(len, share)) for share in shares]
    assert max(sizes) - min(sizes) <= 1
    for share in shares:
        for chunk in share:
            longest = max(lengths[int(place)] for place in chunk)
            assert len(chunk) == 1 or len(chunk) * longest <= max_batch_tokens


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_chunk_is_what_its_texts_alone_would_be(side: str) -> None:
    encoder = make_encoder()
    encoder.tokenizer.padding_side = side
    tokens, chunks = tokenize(encoder, TEXTS), []

    def embed(chunk: Tokens) -> Tensor:
        chunks.append(chunk)
        return torch.zeros(len(chunk["input_ids"]), 1)

    embed_block(embed, tokens, 60, seed=(0,))
    shares = cut_chunks(tokens["attention_mask"].sum(1), 60)
    assert len(chunks) == len(shares) > 2
    for chunk, places in zip(chunks, shares, strict=True):
        alone = tokenize(encoder, [TEXTS[int(place)] for place in places])
        assert set(chunk) == set(alone) and all(torch.equal(chunk[name], alone[name]) for name in alone)


@pytest.mark.parametrize("max_batch_tokens", [1, 20, 100])
def test_chunks_have_the_gradient_of_the_whole_block(max_batch_tokens: int) -> None:
    encoder = make_encoder()
    tokens = tokenize(encoder, TEXTS)
    whole, expected = gradients(encoder, tokens, 10**6)
    found, actual = gradients(encoder, tokens, max_batch_tokens)
    np.testing.assert_allclose(found.numpy(), whole.numpy(), atol=1e-5)
    assert_close(actual, expected, 1e-5)


def test_what_fits_is_embedded_once_and_what_does_not_twice() -> None:
    encoder, calls = make_encoder(), []
    tokens = tokenize(encoder, TEXTS)

    def embed(chunk: Tokens) -> Tensor:
        calls.append(chunk["input_ids"].numel())
        found: Tensor = encoder(dict(chunk))["sentence_embedding"]
        return found

    embed_block(embed, tokens, tokens["input_ids"].numel(), seed=(0,)).sum().backward()
    assert calls == [tokens["input_ids"].numel()]
    calls.clear()
    embed_block(embed, tokens, 50, seed=(0,)).sum().backward()
    forward = calls[: len(calls) // 2]
    assert sorted(calls[len(calls) // 2 :]) == sorted(forward) and len(forward) > 2
    assert max(calls) <= 50


def test_dropout_is_a_function_of_the_seed_and_the_same_in_both_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = make_encoder(dropout=0.3)
    tokens = tokenize(encoder, TEXTS)
    before = torch.get_rng_state()
    first = gradients(encoder, tokens, 50)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(7)
    again, other = gradients(encoder, tokens, 50), gradients(encoder, tokens, 50, seed=1)
    assert torch.equal(again[0], first[0]) and not torch.equal(other[0], first[0])
    assert all(torch.equal(again[1][name], value) for name, value in first[1].items())

    def only_once(chunk: Callable[[], Tensor], **settings: bool) -> Tensor:
        return chunk()

    monkeypatch.setattr(caching, "checkpoint", only_once)  # chunks whose activations are kept: nothing is embedded again
    kept = gradients(encoder, tokens, 50)
    assert torch.equal(kept[0], first[0])
    assert_close(first[1], kept[1], 1e-6)


def test_bfloat16_activations_have_float32_embeddings() -> None:
    encoder = make_encoder()
    tokens = tokenize(encoder, TEXTS)
    (embeddings, found), (_, whole) = (gradients(encoder, tokens, size, bfloat16=True) for size in (50, 10**6))
    assert embeddings.dtype == torch.float32  # and so has what autograd keeps as their gradient
    assert_close(found, whole, 0.02)
    assert_close(found, gradients(encoder, tokens, 10**6)[1], 0.1)


def test_more_processes_than_texts_are_refused() -> None:
    tokens = {"attention_mask": torch.ones(3, 2)}
    with pytest.raises(ConfigError, match=r"trainer\.devices: 4 processes for blocks of 3 texts; expected at least one text each"):
        embed_block(lambda chunk: chunk["attention_mask"], tokens, 10, seed=(0,), processes=4)
