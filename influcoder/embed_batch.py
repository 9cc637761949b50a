"""The one step that an engine has to run: columns in, columns out.

Whatever spreads a pool over machines (a loop here; Ray Data's `map_batches`, Spark's `mapInPandas`, ...) calls this on batches of
rows, with an encoder that each worker loaded once. It reads nothing, writes nothing, and knows of no engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
