"""Tiny random encoders for the tests of export and attribution: built in a second, saved as sentence-transformers folders."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, StaticEmbedding, Transformer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, ModernBertConfig, ModernBertModel, PreTrainedTokenizerFast

from influcoder.error_pooling import ErrorPooling
from influcoder.onnx_export import export_encoder
from influcoder.text_format import TextFormat, save_text_format
from tests.influcoder.tiny_decoders import fresh_decoder

WORDS = "the a of river bakes bread code prints seven stars green tea Lumora garden slowly because never music über naïve 東京".split()
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
MAX_SEQ_LENGTH = 48
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}


def make_texts(count: int, seed: int = 0) -> list[str]:
    """Return texts of mixed lengths, one in ten longer than the tiny encoders read."""
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(60, 90) if place % 10 == 9 else rng.randint(1, 30))) for place in range(count)]


def save_tokenizer(folder: Path) -> int:
    """Save a WordPiece tokenizer of words and letters, as transformers does, and return its vocabulary's size: not trained, which ends otherwise
    in every process.
    """
    normalizer = normalizers.BertNormalizer()
    words = sorted({part for word in WORDS for part in normalizer.normalize_str(word).split()})
    letters = sorted(set("".join(words)))
    vocabulary = [*SPECIAL, *words, *letters, *(f"##{letter}" for letter in letters)]
    tokenizer = Tokenizer(models.WordPiece({token: number for number, token in enumerate(dict.fromkeys(vocabulary))}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=MAX_SEQ_LENGTH, **names)
    fast.save_pretrained(folder)
    return int(tokenizer.get_vocab_size())


def save_bert(folder: Path) -> None:
    """Save a random BERT with mean pooling; weights large enough that texts differ."""
    torch.manual_seed(0)
    config = BertConfig(vocab_size=save_tokenizer(folder / "bert"), initializer_range=0.3, **SIZES)
    BertModel(config).save_pretrained(folder / "bert")
    _save(folder, "bert", Pooling(32, "mean"))


def save_modern_bert(folder: Path) -> None:
    """Save a random ModernBERT: rotary positions, local attention, no token types; CLS pooling, a dense head, no normalisation."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 2, "cls_token_id": 2, "eos_token_id": 3, "sep_token_id": 3}
    settings |= {"local_attention": 8, "global_attn_every_n_layers": 2}
    config = ModernBertConfig(vocab_size=save_tokenizer(folder / "modern"), initializer_range=0.3, **settings, **SIZES)
    ModernBertModel(config).save_pretrained(folder / "modern")
    _save(folder, "modern", Pooling(32, "cls"), Dense(32, 16, activation_function=torch.nn.Tanh()))


def save_causal_lm(folder: Path) -> SentenceTransformer:
    """Save and return a random Llama whose errors are pooled, with a head: nothing in it was fitted."""
    decoder = fresh_decoder()
    decoder.model.config.output_hidden_states = True
    decoder.model.base_model.save_pretrained(folder / "lm")  # type: ignore[operator]  # a model
    decoder.tokenizer.save_pretrained(folder / "lm")
    text_only: Any = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}
    transformer = Transformer(
        str(folder / "lm"), max_seq_length=MAX_SEQ_LENGTH, modality_config=text_only, module_output_name="token_embeddings"
    )
    pooling = ErrorPooling(decoder.tokenizer("<assistant>")["input_ids"], [0, 1, 2], 4, *reversed(decoder.model.lm_head.weight.shape))
    source = torch.Generator().manual_seed(0)
    for name, values in pooling.named_buffers():
        values.copy_(torch.rand(values.shape, generator=source) + 0.5 * (name == "spread"))
    pooling.output_weight.copy_(decoder.model.lm_head.weight.detach())
    head = Dense(pooling.get_embedding_dimension(), 12, activation_function=torch.nn.Identity())
    encoder = SentenceTransformer(modules=[transformer, pooling, head, Normalize()], device="cpu")
    encoder.save(str(folder), create_model_card=False)
    shutil.rmtree(folder / "lm")
    markers = {"prompt_marker": "<user>", "separator": "", "response_marker": "<assistant>", "end_marker": "<eos>"}
    save_text_format(folder, TextFormat(max_prompt_chars=120, max_response_chars=400, **markers))
    return encoder


def save_table(folder: Path, max_tokens: int | None = MAX_SEQ_LENGTH) -> None:
    """Save a random token table without normalisation, whose tokenizer cuts texts and would add special tokens that a table does not take."""
    save_tokenizer(folder / "table")
    tokenizer = Tokenizer.from_file(str(folder / "table" / "tokenizer.json"))
    if max_tokens is not None:
        tokenizer.enable_truncation(max_tokens)
    weights = torch.randn(tokenizer.get_vocab_size(), 16, generator=torch.Generator().manual_seed(0))
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=weights)], device="cpu").save(
        str(folder), create_model_card=False
    )
    shutil.rmtree(folder / "table")
    save_text_format(folder, TextFormat(max_prompt_chars=120, max_response_chars=400))


def _save(folder: Path, part: str, *heads: torch.nn.Module) -> None:
    transformer = Transformer(str(folder / part), max_seq_length=MAX_SEQ_LENGTH)
    SentenceTransformer(modules=[transformer, *heads], device="cpu").save(str(folder), create_model_card=False)
    shutil.rmtree(folder / part)
    save_text_format(folder, TextFormat(max_prompt_chars=120, max_response_chars=400))


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT encoder folder that was not exported; copy it before changing it."""
    folder = tmp_path_factory.mktemp("encoders") / "bert"
    save_bert(folder)
    return folder


@pytest.fixture
def modern_bert_folder(tmp_path: Path) -> Path:
    """A tiny ModernBERT encoder folder that was not exported."""
    save_modern_bert(tmp_path / "modern")
    return tmp_path / "modern"


@pytest.fixture
def causal_lm_folder(tmp_path: Path) -> Path:
    """A tiny encoder folder of a causal LM that was not exported."""
    save_causal_lm(tmp_path / "causal_lm")
    return tmp_path / "causal_lm"


@pytest.fixture
def table_folder(tmp_path: Path) -> Path:
    """A token table's encoder folder that was not exported."""
    save_table(tmp_path / "table")
    return tmp_path / "table"


@pytest.fixture(scope="session")
def exported_folder(bert_folder: Path) -> Path:
    """The tiny BERT encoder folder with `onnx/`; copy it before changing it."""
    folder = bert_folder.with_name("exported")
    shutil.copytree(bert_folder, folder)
    export_encoder(folder, make_texts(60))
    return folder
