"""Encode text without torch: `tokenizers` and a runtime on the folder that `influcoder export` completed.

Embeddings are float32 unit rows, in the order of the texts, so a score is a dot product. The graph holds pooling, heads
and normalisation; this file only tokenises, batches by length, and feeds it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from influcoder.errors import ConfigError, RunError
from influcoder.onnx_sessions import load_session
from influcoder.onnx_settings import GRAPH_FOLDER, GraphSettings, Variant, graph_file, load_settings
from influcoder.text_format import load_text_format

CPU_BATCH_TOKENS, GPU_BATCH_TOKENS = 1024, 16384
"""a batch that stays in a core's cache; one that fills a GPU"""


class OnnxEncoder:
    """An exported encoder."""

    def __init__(
        self,
        folder: str | Path,
        *,
        variant: Variant = "fp32",
        dim: int | None = None,
        providers: Sequence[str] | None = None,
        batch_tokens: int | None = None,
        threads: int | None = None,
        graph_folder: str = GRAPH_FOLDER,
    ) -> None:
        """Load an encoder folder.

        Args:
            folder: sentence-transformers folder with `onnx/` and `text_format.json`.
            variant: fp32; int8, on a CPU; bf16, on a CPU that has it, by OpenVINO; fp16, on a GPU. Each was accepted at the export.
            dim: take the first so many numbers of an embedding, at length 1 again (Matryoshka); None takes all.
            providers: onnxruntime's execution providers, best first, or OpenVINO; None takes CUDA when onnxruntime offers it, else CPU.
            batch_tokens: tokens in a batch, padding included; None takes 1024 a core, on a GPU 16384.
            threads: batches that are worked on at a time; None takes the cores that this process may use, on a GPU 1.
            graph_folder: sub-folder that holds the graph.
            threads: CPU threads of the graph; 0 takes one a core. Their number changes no embedding.

        Raises:
            RunError: when a file is missing, unreadable, hostile, or not what its record says, or the variant was not exported.
            ConfigError: when a provider is not offered, or a number is out of range.
            MissingExtraError: when the runtime is not installed.
        """
        folder = Path(folder)
        for name, value in (("batch_tokens", batch_tokens), ("threads", threads), ("dim", dim)):
            if value is not None and value < 1:
                raise ConfigError(f"{name}: {value}; expected at least 1")
        settings = load_settings(folder, graph_folder)
        if dim is not None and dim > settings.dim:
            raise ConfigError(f"dim: {dim}; expected at most the {settings.dim} numbers of {folder}")
        self.settings = replace(settings, dim=dim or settings.dim)
        self.text_format = load_text_format(folder)
        self._tokenizer = _load_tokenizer(folder / settings.tokenizer, settings.max_seq_length)
        path, checksum = graph_file(folder / graph_folder, settings, variant)
        marks = [*(["bf16"] if variant == "bf16" else []), *([f"first {dim}"] if dim not in (None, settings.dim) else [])]
        self.fingerprint = hashlib.sha256(" ".join([checksum, *marks]).encode()).hexdigest() if marks else checksum
        """what embeds: SHA-256 of the graph, and of what is done otherwise with it"""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        names = None if providers is None else list(providers)
        self._session = load_session(path, names, threads or cores, bfloat16=variant == "bf16")
        on_cpu = self.provider in ("CPUExecutionProvider", "OpenVINO")
        self._threads = threads or (cores if on_cpu else 1)
        self._batch_tokens = batch_tokens or (CPU_BATCH_TOKENS if on_cpu else GPU_BATCH_TOKENS)

    @property
    def provider(self) -> str:
        """The execution provider that was really taken."""
        return self._session.provider

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return unit rows `(texts, dim)`, in the order of the texts."""
        return self.embed(self.tokenize(texts))

    def tokenize(self, texts: Sequence[str]) -> list[Encoding]:
        """Return token ids, cut to `max_seq_length`; a text that was cut has `overflowing` parts."""
        return list(self._tokenizer.encode_batch(list(texts), add_special_tokens=self.settings.special_tokens))

    def embed(self, encodings: Sequence[Encoding]) -> NDArray[np.float32]:
        """Return unit rows `(encodings, dim)`.

        Raises:
            RunError: when the graph returns numbers that are not finite.
        """
        embeddings = np.empty((len(encodings), self.settings.dim), np.float32)

        def run(batch: list[int]) -> None:
            embeddings[batch] = self._sliced(self._session.run(_padded_batch([encodings[place] for place in batch], self.settings)))

        batches = list(length_batches([len(encoding.ids) for encoding in encodings], self._batch_tokens))
        if self._threads == 1 or len(batches) < 2:
            for batch in batches:
                run(batch)
        else:
            with ThreadPoolExecutor(min(self._threads, len(batches))) as pool:
                list(pool.map(run, batches))
        if not np.isfinite(embeddings).all():
            text = int(np.flatnonzero(~np.isfinite(embeddings).all(axis=1))[0])
            raise RunError(f"encoder: text {text + 1} of {len(encodings)} has an embedding that is not finite; train or export it again")
        return embeddings

    def _sliced(self, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        return embeddings if embeddings.shape[1] == self.settings.dim else first_numbers(embeddings, self.settings.dim)


def first_numbers(embeddings: NDArray[np.float32], dim: int) -> NDArray[np.float32]:
    """Return the first `dim` numbers of unit rows, at length 1 again; a row that has none of its length there stays 0."""
    part = embeddings[:, :dim]
    lengths = np.sqrt(np.square(part).sum(axis=1, keepdims=True))
    unit: NDArray[np.float32] = part / np.where(lengths > 0, lengths, np.float32(1))
    return unit


def length_batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Yield positions in batches of like length, longest first: at most `batch_tokens` with padding, at least one text."""
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > batch_tokens:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def _load_tokenizer(path: Path, max_seq_length: int) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust side raises plain Exception
        raise RunError(f"{path}: cannot be read as a fast tokenizer ({error}); expected the tokenizer.json of the encoder") from error
    # tokenizer.json may carry settings of its own, often a shorter length than the encoder was trained with
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_seq_length)
    return tokenizer


def _padded_batch(encodings: Sequence[Encoding], settings: GraphSettings) -> dict[str, NDArray[np.int64]]:
    shape = (len(encodings), max(len(encoding.ids) for encoding in encodings))
    batch = {
        "input_ids": np.full(shape, settings.pad_token_id, np.int64),
        "attention_mask": np.zeros(shape, np.int64),
        "token_type_ids": np.zeros(shape, np.int64),
    }
    for row, encoding in enumerate(encodings):
        length = len(encoding.ids)
        batch["input_ids"][row, :length] = encoding.ids
        batch["attention_mask"][row, :length] = 1
        batch["token_type_ids"][row, :length] = encoding.type_ids
    return {name: batch[name] for name in settings.inputs}
