"""The encoder that is trained: a SentenceTransformer that ends in unit-norm embeddings, which any embedding server can serve."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Transformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, StaticEmbedding
from tokenizers import Tokenizer, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from influcoder.errors import ConfigError
from influcoder.influence.decoder import Decoder
from student.causal_lm import make_causal_lm
from student.config import EncoderConfig, FreshEncoder
from student.static import make_table
from student.tokenizer import train_tokenizer

FITTED_WIDTH = 384
"""of a head that is fitted, at most, when no width is asked for"""


def load_encoder(config: EncoderConfig, texts: Sequence[str], seed: int, lm: Decoder | None = None) -> SentenceTransformer:
    """Load an encoder, or make one whose tokenizer or directions are those of `texts`; head and normalisation are added.

    A table has no head: it is what is fitted.

    Args:
        config: which.
        texts: of the training side, rendered.
        seed: of random weights.
        lm: for `causal_lm`, what `load_causal_lm` returned.

    Raises:
        ConfigError: when the path cannot be loaded.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if config.static is not None:
            table = make_table(config.static, texts, config.embedding_dim or FITTED_WIDTH, config.max_tokens)
            return SentenceTransformer(modules=[table, Normalize()], device="cpu")
        if config.fresh is not None:
            encoder = make_fresh_encoder(config.fresh, texts, config.max_tokens)
        elif config.causal_lm is not None:
            assert lm is not None  # the stage has loaded it
            encoder = make_causal_lm(config.causal_lm, lm, texts, config.max_tokens, seed)
        else:
            assert config.path is not None  # EncoderConfig.__post_init__
            try:
                encoder = SentenceTransformer(config.path, device="cpu", trust_remote_code=config.trust_remote_code)
            except (OSError, ValueError, KeyError) as error:
                reason = str(error).splitlines()[0]
                raise ConfigError(f"encoder {config.path!r}: cannot be loaded ({reason}); check the name and the network") from error
        modules = [module for module in encoder if not isinstance(module, Normalize)]
        width = encoder.get_embedding_dimension()
        assert width is not None  # only encoders without pooling have none
        if config.fitted or config.embedding_dim is not None:
            wanted = config.embedding_dim or min(width, FITTED_WIDTH)
            modules.append(Dense(width, wanted, bias=config.fitted, activation_function=torch.nn.Identity()))
        finished = SentenceTransformer(modules=[*modules, Normalize()], device="cpu")
    finished.max_seq_length = config.max_tokens if finished.max_seq_length is None else min(config.max_tokens, finished.max_seq_length)
    return finished


def make_fresh_encoder(config: FreshEncoder, texts: Sequence[str], max_tokens: int) -> SentenceTransformer:
    """Return a randomly initialised BERT with mean pooling, read back from a folder as any other encoder is."""
    tokenizer = _with_markers(train_tokenizer(texts, config.vocab_size))
    model = BertModel(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden_size,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            intermediate_size=config.intermediate_size,
            max_position_embeddings=max_tokens,
            type_vocab_size=1,
            pad_token_id=tokenizer.pad_token_id,
            # targets are dense and noise is the teacher's: dropout only slows so small a model
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        transformer = Transformer(folder, max_seq_length=max_tokens)
    return SentenceTransformer(modules=[transformer, Pooling(config.hidden_size)], device="cpu")


def _with_markers(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """Return the tokenizer as BERT has it: with a token before every text and one after it."""
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]"
    )


def tokenize(encoder: SentenceTransformer, texts: list[str]) -> dict[str, torch.Tensor]:
    """Return the padded tensors that the encoder's forward takes."""
    return {name: value for name, value in encoder.preprocess(texts).items() if isinstance(value, torch.Tensor)}


def longest(encoder: SentenceTransformer) -> int | None:
    """Return the tokens that the encoder reads of a text at most; None where there is no end."""
    if isinstance(encoder[0], StaticEmbedding):  # it knows no end itself: its tokenizer cuts
        truncation: dict[str, Any] = encoder.tokenizer.truncation or {}
        return truncation.get("max_length")
    return encoder.max_seq_length


def truncated_share(encoder: SentenceTransformer, texts: Sequence[str]) -> float:
    """Return the share of texts that the encoder cuts."""
    if isinstance(encoder[0], StaticEmbedding):
        return sum(bool(found.overflowing) for found in encoder.tokenizer.encode_batch(list(texts))) / len(texts)
    lengths = [len(ids) for ids in encoder.tokenizer(list(texts), truncation=False, padding=False, verbose=False)["input_ids"]]
    return sum(length > (encoder.max_seq_length or length) for length in lengths) / len(lengths)


def save_encoder(encoder: SentenceTransformer, folder: Path) -> None:
    """Write a sentence-transformers folder."""
    tokenize(encoder, [""])  # a tokenizer saves how it was called last: here as in training, whatever came before
    encoder.save_pretrained(str(folder), create_model_card=False)
