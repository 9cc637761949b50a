"""The one step that an engine has to run: columns in, columns out.

Whatever spreads a pool over machines (a loop here; Ray Data's `map_batches`, Spark's `mapInPandas`, ...) calls this on batches of
rows, with an encoder that each worker loaded once. It reads nothing, writes nothing, and knows of no engine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding

from influcoder.examples import Example
from influcoder.onnx_encoder import OnnxEncoder
from influcoder.text_format import render

Columns = Mapping[str, NDArray[Any]]


def embed_batch(encoder: OnnxEncoder, batch: Columns) -> dict[str, NDArray[Any]]:
    """Embed a batch of texts.

    Args:
        encoder: loaded once a worker.
        batch: column `text`, `(B,)` strings as `text_format.render` made them; other columns are passed on.

    Returns:
        The columns of `batch` except `text`, `embedding`: float32 `(B, dim)` unit rows, and `truncated`: bool `(B,)`, whether the
        encoder cut the text to its length. An embedding may differ in its last digits with the texts that it is batched with.

    Raises:
        RunError: when the graph returns numbers that are not finite.
    """
    encodings = encoder.tokenize([str(text) for text in batch["text"]])
    truncated = np.array([bool(encoding.overflowing) for encoding in encodings], bool)
    passed_on = {name: column for name, column in batch.items() if name != "text"}
    return passed_on | {"embedding": encoder.embed(encodings), "truncated": truncated}


def embed_rows(encoder: OnnxEncoder, rows: Sequence[Example]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return the embeddings of rows or queries, `(rows, dim)`, and which of them the encoder cut, `(rows,)`."""
    columns = embed_batch(encoder, {"text": np.array([render(row, encoder.text_format) for row in rows], object)})
    return columns["embedding"], columns["truncated"]


def embed_chunks(
    encoder: OnnxEncoder, rows: Sequence[Example], chunk_rows: int
) -> Iterator[tuple[Sequence[Example], NDArray[np.float32], NDArray[np.bool_]]]:
    """Yield rows `chunk_rows` at a time, with their embeddings and which of them the encoder cut.

    A chunk is tokenised while the one before it is embedded: tokenisers leave Python's lock alone, and a small encoder takes no longer.
    """
    chunks = [rows[start : start + chunk_rows] for start in range(0, len(rows), chunk_rows)]

    def tokenize(chunk: Sequence[Example]) -> list[Encoding]:
        return encoder.tokenize([render(row, encoder.text_format) for row in chunk])

    with ThreadPoolExecutor(1) as ahead:
        waiting = ahead.submit(tokenize, chunks[0]) if chunks else None
        for number, chunk in enumerate(chunks, 1):
            assert waiting is not None
            encodings = waiting.result()
            if number < len(chunks):
                waiting = ahead.submit(tokenize, chunks[number])
            yield chunk, encoder.embed(encodings), np.array([bool(encoding.overflowing) for encoding in encodings], bool)
