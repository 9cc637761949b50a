"""A table of token vectors as an encoder, the cheapest student: no transformer, thousands of texts a second on one core.

An embedding is the mean of its tokens' vectors (as in model2vec), hence linear in the tokens' frequencies, and the best table is the
ridge regression of the teacher's principal coordinates on these (student.closed_form). Frequencies have the sum 1, so the bias goes
into every vector, and a token that training did not have is the bias alone. They are taken as they are: idf makes the table worse
(docs/LOG.md). A StaticEmbedding of sentence-transformers, which needs nothing of this package.

Legend: N texts, V seen tokens, K width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer, processors
from torch import Tensor
from transformers import AutoTokenizer

from influcoder.errors import ConfigError
from student.closed_form import Fitted, best_ridge
from student.config import StaticEncoder
from student.tokenizer import train_tokenizer


def make_table(config: StaticEncoder, texts: Sequence[str], width: int, max_tokens: int) -> StaticEmbedding:
    """Return a table of random vectors with its tokenizer, which cuts texts after `max_tokens` and adds nothing to them.

    Raises:
        ConfigError: when the tokenizer cannot be loaded.
    """
    tokenizer = _load_tokenizer(config.tokenizer) if config.tokenizer else train_tokenizer(texts, config.vocab_size)
    tokenizer.post_processor = processors.Sequence([])  # the module adds no special tokens; neither must who reads its tokenizer.json
    tokenizer.enable_truncation(max_tokens)
    size = max(tokenizer.get_vocab().values()) + 1  # a vocabulary may have gaps
    weights = torch.randn(size, width) / width**0.5
    return StaticEmbedding(tokenizer, embedding_weights=weights)


def fit_table(
    encoder: SentenceTransformer,
    texts: Sequence[str],
    coordinates: Tensor,
    validation: tuple[Sequence[str], Sequence[str], NDArray[np.floating]],
) -> Fitted:
    """Set the table to the ridge regression with the best per-query Spearman on validation rows; return it.

    Holds a matrix of N x V double-precision numbers, some times over.

    Args:
        encoder: [StaticEmbedding, Normalize].
        texts: N training texts.
        coordinates: (N, K) the teacher's.
        validation: texts that ask, texts that are ranked, the teacher's scores (asking, ranked).
    """
    table = encoder[0]
    assert isinstance(table, StaticEmbedding)
    read, asking, ranked = ([found.ids for found in table.tokenizer.encode_batch(list(part))] for part in (texts, *validation[:2]))
    seen = torch.tensor(sorted({token for text in read for token in text}))
    inputs, queries, rows = (frequencies(part, seen) for part in (read, asking, ranked))
    found = best_ridge(inputs, coordinates, (queries, rows, validation[2]))
    vectors = table.embedding.weight.data
    vectors.copy_(found.bias.expand_as(vectors))
    vectors[seen] += found.weight.T
    return found


def frequencies(texts: Sequence[Sequence[int]], tokens: Tensor) -> Tensor:
    """Return how large a share of a text's tokens each of `tokens` (V,) is: (N, V)."""
    counts = (torch.bincount(torch.tensor(text, dtype=torch.long), minlength=int(tokens.max()) + 1)[tokens] for text in texts)
    return torch.stack([count / max(1, len(text)) for count, text in zip(counts, texts, strict=True)])


def _load_tokenizer(path: str) -> Tokenizer:
    try:
        loaded = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"encoder.static.tokenizer {path!r}: cannot be loaded ({reason}); check the name and the network") from error
    backend = getattr(loaded, "backend_tokenizer", None)
    if backend is None:
        raise ConfigError(
            f"encoder.static.tokenizer {path!r}: a slow tokenizer; expected a fast one, with a tokenizer.json; choose another"
        )
    return Tokenizer.from_str(backend.to_str())  # a copy: it is changed
