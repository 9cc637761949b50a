"""Encode text without torch: `tokenizers` and `onnxruntime` on the folder that `influcoder export` completed.

Embeddings are float32 unit rows, in the order of the texts, so a score is a dot product. The graph holds pooling, heads
and normalisation; this file only tokenises, batches by length, and feeds it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from influcoder.errors import ConfigError, MissingExtraError, RunError, require
from influcoder.runs import sha256_of_file, write_text_atomic
from influcoder.text_format import load_text_format

GRAPH_FOLDER = "onnx"
GRAPH_FILE = "model.onnx"
SETTINGS_FILE = "encoder.json"
SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class GraphSettings:
    """`encoder.json`: what feeding the graph takes."""

    max_seq_length: int
    """longer texts are cut to so many tokens, special ones included"""
    dim: int
    """numbers in an embedding"""
    inputs: tuple[str, ...]
    """the graph's inputs, in order"""
    pad_token_id: int
    tokenizer: str
    """file name of the fast tokenizer, in the encoder folder"""
    sha256: str
    """of model.onnx: the encoder's fingerprint"""


class OnnxEncoder:
    """An exported encoder on onnxruntime."""

    def __init__(
        self, folder: str | Path, *, providers: Sequence[str] | None = None, batch_tokens: int = 8192, graph_folder: str = GRAPH_FOLDER
    ) -> None:
        """Load an encoder folder.

        Args:
            folder: sentence-transformers folder with `onnx/` and `text_format.json`.
            providers: onnxruntime's execution providers, best first; None takes CUDA when onnxruntime offers it, else CPU.
            batch_tokens: tokens in a batch, padding included; lower it when memory is short.
            graph_folder: sub-folder that holds the graph.

        Raises:
            RunError: when a file is missing, unreadable, or not what its record says.
            ConfigError: when onnxruntime does not offer a provider.
            MissingExtraError: when onnxruntime is not installed.
        """
        folder = Path(folder)
        if batch_tokens < 1:
            raise ConfigError(f"batch_tokens: {batch_tokens}; expected at least 1")
        self.settings = load_settings(folder, graph_folder)
        self.text_format = load_text_format(folder)
        self._tokenizer = _load_tokenizer(folder / self.settings.tokenizer, self.settings.max_seq_length)
        self._session = _load_session(folder / graph_folder / GRAPH_FILE, self.settings.sha256, providers)
        self._batch_tokens = batch_tokens

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the graph."""
        return self.settings.sha256

    @property
    def provider(self) -> str:
        """The execution provider that onnxruntime really took."""
        return str(self._session.get_providers()[0])

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return unit rows `(texts, dim)`, in the order of the texts."""
        return self.embed(self.tokenize(texts))

    def tokenize(self, texts: Sequence[str]) -> list[Encoding]:
        """Return token ids with special tokens, cut to `max_seq_length`; a text that was cut has `overflowing` parts."""
        return list(self._tokenizer.encode_batch(list(texts)))

    def embed(self, encodings: Sequence[Encoding]) -> NDArray[np.float32]:
        """Return unit rows `(encodings, dim)`.

        Raises:
            RunError: when the graph returns numbers that are not finite.
        """
        embeddings = np.empty((len(encodings), self.settings.dim), np.float32)
        for batch in length_batches([len(encoding.ids) for encoding in encodings], self._batch_tokens):
            feed = _padded_batch([encodings[place] for place in batch], self.settings)
            embeddings[batch] = self._session.run(None, feed)[0]
        if not np.isfinite(embeddings).all():
            text = int(np.flatnonzero(~np.isfinite(embeddings).all(axis=1))[0])
            raise RunError(f"encoder: text {text + 1} of {len(encodings)} has an embedding that is not finite; train or export it again")
        return embeddings


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


def save_settings(folder: Path, settings: GraphSettings) -> None:
    """Write `encoder.json` into the graph's folder."""
    write_text_atomic(folder / SETTINGS_FILE, json.dumps({"schema_version": SCHEMA_VERSION, **asdict(settings)}, indent=2) + "\n")


def load_settings(folder: Path, graph_folder: str = GRAPH_FOLDER) -> GraphSettings:
    """Read `encoder.json` of an encoder folder.

    Raises:
        RunError: when the encoder was not exported, or the file is unreadable or of another version.
    """
    path = folder / graph_folder / SETTINGS_FILE
    if not folder.is_dir():
        raise RunError(f"{folder}: no such folder; expected an encoder, as a student run holds it; check the path")
    if not path.is_file():
        raise RunError(
            f"{folder}: no {graph_folder}/{SETTINGS_FILE}; expected an exported encoder; run: influcoder export --encoder {folder}"
        )
    try:
        content = json.loads(path.read_text())
        version = content.pop("schema_version")
        if version != SCHEMA_VERSION:
            raise RunError(
                f"{path}: schema {version!r}, expected {SCHEMA_VERSION}; use the influcoder release that wrote it, or export again"
            )
        return GraphSettings(**content | {"inputs": tuple(content["inputs"])})
    except (OSError, json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{path}: not readable ({error}); expected the record of an exported encoder; export it again") from error


def _load_tokenizer(path: Path, max_seq_length: int) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust side raises plain Exception
        raise RunError(f"{path}: cannot be read as a fast tokenizer ({error}); expected the tokenizer.json of the encoder") from error
    # tokenizer.json may carry settings of its own, often a shorter length than the encoder was trained with
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_seq_length)
    return tokenizer


def _load_session(path: Path, sha256: str, providers: Sequence[str] | None) -> Any:
    onnxruntime = _require_onnxruntime()
    offered = onnxruntime.get_available_providers()
    providers = providers or [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in offered]
    unknown = [name for name in providers if name not in offered]
    if unknown:
        raise ConfigError(f"providers: onnxruntime does not offer {unknown[0]!r}; it has {', '.join(offered)}; name one of those")
    if not path.is_file():
        raise RunError(f"{path}: missing; expected the exported graph; export the encoder again")
    found = sha256_of_file(path)
    if found != sha256:
        raise RunError(
            f"{path}: checksum {found[:12]}, expected {sha256[:12]}; the graph is corrupt or another's; export the encoder again"
        )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    options.enable_mem_pattern = False  # a plan of the memory for every shape, kept for good: lengths vary, and it would grow
    return onnxruntime.InferenceSession(str(path), options, providers=list(providers))


def _require_onnxruntime() -> ModuleType:
    try:
        return require("onnxruntime", "cpu")
    except MissingExtraError as error:
        raise MissingExtraError(f"{error} (or 'influcoder[gpu]' for NVIDIA; never both)") from error


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
