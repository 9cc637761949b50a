"""A causal LM as an encoder: its forward pass, its errors pooled, nothing trained but the head (influcoder.error_pooling)."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from torch import Tensor

from influcoder.error_pooling import STATISTICS, ErrorPooling
from influcoder.errors import ConfigError
from influcoder.influence.decoder import Decoder, DecoderConfig, load_decoder
from influcoder.text_format import TextFormat
from student.config import CausalLMEncoder

PROMPT, RESPONSE = "\ue000", "\ue001"
"""characters for private use, which stand for the texts while the template is looked at"""
TEXT_ONLY = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}
"""the text as it is: sentence-transformers wraps it in the tokenizer's chat template, where there is one, unless told so"""
AXES_TEXTS = 512
"""texts whose tokens give the leading directions"""
MOST_WITHOUT = 0.1
"""share of them in which the response's beginning may be missing"""
BATCH = 32


def load_causal_lm(config: CausalLMEncoder) -> Decoder:
    """Return model and tokenizer on the CPU.

    Raises:
        ConfigError: when they cannot be loaded, or the model is not what it must be.
    """
    lm = load_decoder(DecoderConfig(path=config.path, device="cpu", chat_template=config.chat_template), [], 0)
    head = lm.model.get_output_embeddings()
    if head is None or getattr(head, "bias", None) is not None:
        raise ConfigError(f"encoder.causal_lm {config.path!r}: its output layer has a bias, or is none; expected a plain matrix")
    if not _logits_are_products(lm, head.weight):
        raise ConfigError(
            f"encoder.causal_lm {config.path!r}: its logits are not the last states times the output matrix (capped or scaled, as in "
            "Gemma 2, Cohere, Granite); expected these, of which the errors are made; take another causal LM"
        )
    return lm


@torch.no_grad()
def _logits_are_products(lm: Decoder, output: Tensor) -> bool:
    ids = torch.arange(min(16, len(output)))[None]
    found = lm.model(input_ids=ids, output_hidden_states=True)
    plain = found.hidden_states[-1].float() @ output.float().T
    return bool((found.logits.float() - plain).norm() <= 0.02 * plain.norm())  # bfloat16 rounds by less


def with_markers(text_format: TextFormat, lm: Decoder) -> TextFormat:
    """Return the text format with the markers of the LM's chat template, so that it reads what it was trained on.

    Raises:
        ConfigError: when there is no template, or it puts nothing before the response.
    """
    tokenizer: Any = lm.tokenizer
    if tokenizer.chat_template is None:
        raise ConfigError("encoder.causal_lm: its tokenizer has no chat template, so where a response begins is unknown; set chat_template")
    asked = [{"role": "user", "content": PROMPT}]
    before = str(tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True))
    whole = str(tokenizer.apply_chat_template([*asked, {"role": "assistant", "content": RESPONSE}], tokenize=False))
    start, _, marker = before.partition(PROMPT)
    if not marker or not whole.startswith(before) or RESPONSE not in whole:
        raise ConfigError(
            "encoder.causal_lm: its chat template puts nothing fixed before the response; expected a marker; set chat_template"
        )
    end = whole.partition(RESPONSE)[2]
    first = tokenizer.bos_token or tokenizer.eos_token or ""  # what the teacher's tokens begin with where there is no context
    if tokenizer("x")["input_ids"][:1] == [tokenizer.bos_token_id]:  # the tokenizer puts it there itself
        start, first = start.removeprefix(first), ""
    return replace(text_format, prompt_marker=start, separator="", response_marker=marker, bare_marker=first, end_marker=end)


def make_causal_lm(config: CausalLMEncoder, lm: Decoder, texts: Sequence[str], max_tokens: int, seed: int) -> SentenceTransformer:
    """Return [Transformer, ErrorPooling], its directions and centres fitted on rendered texts; no teacher is looked at."""
    tokenizer: Any = lm.tokenizer
    marker = with_markers(TextFormat(), lm).response_marker
    depth, model_config = int(lm.model.config.num_hidden_layers), lm.model.config
    layers = sorted({round(depth * place / max(1, config.layers - 1)) for place in range(config.layers)})
    output = lm.model.get_output_embeddings().weight.detach().float()
    model_config.output_hidden_states = True
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side, tokenizer.model_input_names = "right", ["input_ids", "attention_mask"]  # learned positions count from the left
    with tempfile.TemporaryDirectory() as folder:
        lm.model.base_model.save_pretrained(folder)  # type: ignore[operator]  # a model
        tokenizer.save_pretrained(folder)
        transformer = Transformer(folder, max_seq_length=max_tokens, modality_config=TEXT_ONLY, module_output_name="token_embeddings")
    marker_ids = tokenizer(marker, add_special_tokens=False)["input_ids"]
    pooling = ErrorPooling(marker_ids, layers, min(config.rank, output.shape[1]), output.shape[1], output.shape[0])
    pooling.output_weight.copy_(output)
    encoder = SentenceTransformer(modules=[transformer, pooling], device="cpu").eval()
    _check(encoder, pooling, [text for text in texts if marker in text][:AXES_TEXTS])
    _fit(encoder, pooling, texts, seed)
    return encoder


def _check(encoder: SentenceTransformer, pooling: ErrorPooling, texts: Sequence[str]) -> None:
    """Refuse an encoder that does not find the beginning of the response in texts that have its marker."""
    batches = (encoder.preprocess([text]) for text in texts)
    without = sum(not bool(pooling.marker_ends(batch["input_ids"], batch["attention_mask"]).any()) for batch in batches)
    if without > MOST_WITHOUT * len(texts):
        raise ConfigError(
            f"encoder.causal_lm: {without} of {len(texts)} texts show no beginning of a response within encoder.max_tokens "
            f"{encoder.max_seq_length}; expected nearly all; raise max_tokens, or set a chat_template whose marker is a token of its own"
        )


@torch.no_grad()
def _fit(encoder: SentenceTransformer, pooling: ErrorPooling, texts: Sequence[str], seed: int) -> None:
    """Set directions, then centres and spread."""
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed)).tolist()
    errors: list[Tensor] = []
    states: list[list[Tensor]] = [[] for _ in pooling.layers]
    for features in _features(encoder, [texts[place] for place in order[:AXES_TEXTS]]):
        every, found, _, weights = pooling.tokens(features)
        chosen = weights > 0
        errors.append(found[chosen])
        for held, layer in zip(states, pooling.layers, strict=True):
            held.append(torch.nn.functional.normalize(every[layer][chosen], dim=1))
    pooling.error_axes.copy_(_leading(errors, pooling.rank))
    pooling.state_axes.copy_(torch.stack([_leading(held, pooling.rank) for held in states]))
    raw = torch.cat([pooling.raw(features) for features in _features(encoder, texts)])
    pooling.centre.copy_(raw.mean(0))
    pooling.spread.copy_(raw[:, -STATISTICS:].std(0).clamp_min(1e-3))


def _features(encoder: SentenceTransformer, texts: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield what the transformer makes of the texts, batch by batch, similar lengths together."""
    ordered = sorted(texts, key=len)
    for start in range(0, len(ordered), BATCH):
        yield encoder[0](encoder.preprocess(ordered[start : start + BATCH]))


def _leading(tokens: Sequence[Tensor], rank: int) -> Tensor:
    """Return the leading directions of token vectors as columns (D, R), each with its largest entry positive."""
    stacked = torch.cat(list(tokens)).double()
    axes = torch.linalg.eigh(stacked.T @ stacked).eigenvectors.flip(1)[:, :rank]
    largest = axes.gather(0, axes.abs().argmax(0, keepdim=True))
    leading: Tensor = (axes * largest.sign()).float()
    return leading
