"""Export an encoder folder to ONNX graphs, each accepted only when it *ranks* as torch does.

A graph takes token ids and returns unit vectors: transformer, pooling, heads and normalisation are inside. All are made
in a temporary sub-folder, which becomes `onnx/` only after the rankings agree; a refused export leaves nothing.
"""

from __future__ import annotations

import inspect
import json
import logging
import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding

from influcoder.errors import DataError, RunError, require
from influcoder.onnx_encoder import OnnxEncoder
from influcoder.onnx_parity import VARIANT_OVERLAP, VARIANT_SPEARMAN, accept, compare_rankings, measure_slices
from influcoder.onnx_settings import GRAPH_FILES, GRAPH_FOLDER, GraphSettings, Variant, load_settings, save_settings
from influcoder.onnx_variants import write_fp16, write_int8
from influcoder.runs import sha256_of_file, write_text_atomic
from influcoder.sentence_encoder import load_sentence_encoder
from influcoder.text_format import load_text_format

PARITY_FILE = "parity.json"
TOKENIZER_FILE = "tokenizer.json"
OUTPUT_NAME = "sentence_embedding"
"""not `embedding`: the exporter gives that name to the token lookup inside"""
MIN_SAMPLE = 8
MAX_GRAPH_BYTES = 2_000_000_000
"""one ONNX file is one protobuf message, which ends at 2 GiB"""


def export_encoder(
    folder: str | Path, sample_texts: Sequence[str], *, variants: Sequence[Variant] = (), minimum_spearman: float = 0.999
) -> dict[str, Any]:
    """Write `folder/onnx/` and return its `parity.json`.

    Args:
        folder: a sentence-transformers folder with `text_format.json`.
        sample_texts: rendered texts of mixed lengths; the first half, at most 64, are queries, the others are ranked.
        variants: what to write beside float32.
        minimum_spearman: least mean per-query Spearman between torch and float32 on onnxruntime.

    Raises:
        RunError: when the folder is no encoder or was exported already, or rankings differ; then no `onnx/` is left.
        ConfigError: when the processor cannot run a variant.
        DataError: when the sample has too few different texts.
        MissingExtraError: when a runtime or the exporter is not installed.
    """
    folder = Path(folder)
    sample = _check_inputs(folder, sample_texts)
    partial = folder / f".{GRAPH_FOLDER}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        model = load_sentence_encoder(folder).float().eval()
        opset = _write_graph(model, partial, folder)
        # one text at a time: the truth has no padding, so that padding which leaks into the graph's batches shows
        truth = model.encode(sample, batch_size=1, normalize_embeddings=True, show_progress_bar=False)
        encoder = OnnxEncoder(folder, providers=["CPUExecutionProvider"], graph_folder=partial.name)
        parity = compare_rankings(encoder.encode(sample), truth) | {"provider": encoder.provider, "opset": opset}
        accept(folder, "fp32", parity, minimum_spearman, 0)
        parity["variants"] = {
            variant: _make_variant(variant, folder, partial, sample, truth) for variant in dict.fromkeys(variants) if variant != "fp32"
        }
        parity["slices"] = measure_slices(truth)
        parity |= {"onnxruntime": str(require("onnxruntime", "cpu").__version__), "torch": torch.__version__}
        write_text_atomic(partial / PARITY_FILE, json.dumps(parity, indent=2) + "\n")
        os.replace(partial, folder / GRAPH_FOLDER)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return parity


def _make_variant(variant: Variant, folder: Path, partial: Path, sample: Sequence[str], truth: NDArray[np.float32]) -> dict[str, Any]:
    """Write a variant's graph into `partial`; return how it ranks, when that is good enough."""
    source, target = partial / GRAPH_FILES["fp32"], partial / GRAPH_FILES[variant]

    def embed(texts: Sequence[str]) -> tuple[NDArray[np.float32], str]:
        settings = load_settings(folder, partial.name)
        save_settings(partial, replace(settings, variants=dict(settings.variants) | {variant: sha256_of_file(target)}))
        providers = None if variant == "bf16" else ["CPUExecutionProvider"]
        encoder = OnnxEncoder(folder, variant=variant, providers=providers, graph_folder=partial.name)
        return encoder.encode(texts), encoder.provider

    facts: dict[str, Any] = {}
    judged = slice(None)
    if variant == "fp16":
        write_fp16(source, target)
    elif variant == "int8":
        calibration, judged = slice(1, None, 2), slice(0, None, 2)  # layers are chosen on other texts than they are judged on
        texts, expected = sample[calibration], truth[calibration]
        facts["float32_layers"] = write_int8(source, target, lambda: compare_rankings(embed(texts)[0], expected)["spearman_mean"])
    found, provider = embed(sample[judged])
    parity = compare_rankings(found, truth[judged]) | facts | {"provider": provider, "bytes": target.stat().st_size}
    accept(folder, variant, parity, VARIANT_SPEARMAN, VARIANT_OVERLAP)
    return parity


def _check_inputs(folder: Path, sample_texts: Sequence[str]) -> list[str]:
    require("onnxscript", "train")
    if not (folder / "modules.json").is_file() or not (folder / TOKENIZER_FILE).is_file():
        raise RunError(f"{folder}: no modules.json and {TOKENIZER_FILE}; expected a sentence-transformers folder with a fast tokenizer")
    if (folder / GRAPH_FOLDER).exists():
        raise RunError(f"{folder / GRAPH_FOLDER}: exists already; remove it to export again")
    load_text_format(folder)
    # copies tie in truth, and rounding would order them at random
    sample = list(dict.fromkeys(sample_texts))
    if len(sample) < MIN_SAMPLE:
        raise DataError(f"sample: {len(sample)} different texts; expected at least {MIN_SAMPLE} to compare rankings on; give more rows")
    return sample


class _PaddedTable(torch.nn.Module):
    """A StaticEmbedding that takes a padded batch, as every graph here does, where the module itself takes one long row of tokens."""

    def __init__(self, table: StaticEmbedding) -> None:
        super().__init__()
        self.vectors = table.embedding.weight

    def forward(self, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        mask = features["attention_mask"][..., None].to(self.vectors.dtype)
        return {"sentence_embedding": (self.vectors[features["input_ids"]] * mask).sum(1) / mask.sum(1).clamp_min(1)}


class _Graph(torch.nn.Module):
    """Token ids in, unit vectors out."""

    def __init__(self, model: SentenceTransformer, inputs: Sequence[str]) -> None:
        super().__init__()
        first, *others = model
        self.model = torch.nn.Sequential(_PaddedTable(first), *others) if isinstance(first, StaticEmbedding) else model
        self.inputs = inputs

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        features = {"modality": "text", **dict(zip(self.inputs, tensors, strict=True))}
        embedding: torch.Tensor = self.model(features)["sentence_embedding"]
        return torch.nn.functional.normalize(embedding, dim=-1)


def _write_graph(model: SentenceTransformer, partial: Path, folder: Path) -> int:
    """Write `model.onnx` and `encoder.json` into `partial`; return the opset."""
    num_bytes = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    if num_bytes > MAX_GRAPH_BYTES:
        raise RunError(f"{folder}: {num_bytes / 1e9:.1f} GB of float32 weights; one ONNX file holds 2 GB; distil into a smaller encoder")
    inputs = _graph_inputs(model, folder)
    if model.transformers_model is not None:  # fewer nodes than the fused attention's decomposition, which guards rows of no token
        model.transformers_model.set_attn_implementation("eager")
    # two texts of eight tokens: 0 and 1 would be taken for constants
    example = tuple(torch.ones(2, 8, dtype=torch.long) for _ in inputs)
    dynamic = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    with _quiet_exporter(), torch.no_grad():
        program = torch.onnx.export(
            _Graph(model, inputs), example, input_names=inputs, output_names=[OUTPUT_NAME],
            dynamo=True, dynamic_shapes={"tensors": tuple(dynamic for _ in inputs)}, verbose=False,
        )  # fmt: skip
    assert program is not None  # dynamo=True
    program.save(partial / GRAPH_FILES["fp32"], external_data=False)
    settings = GraphSettings(
        max_seq_length=_max_seq_length(model, folder),
        dim=int(model.get_embedding_dimension() or 0),
        inputs=tuple(inputs),
        pad_token_id=int(getattr(model.tokenizer, "pad_token_id", None) or 0),
        tokenizer=TOKENIZER_FILE,
        special_tokens=not isinstance(model[0], StaticEmbedding),
        sha256=sha256_of_file(partial / GRAPH_FILES["fp32"]),
    )
    save_settings(partial, settings)
    return int(program.model.opset_imports[""])


def _graph_inputs(model: SentenceTransformer, folder: Path) -> list[str]:
    if isinstance(model[0], StaticEmbedding):
        return ["input_ids", "attention_mask"]
    transformer = model.transformers_model
    if transformer is None:
        raise RunError(f"{folder}: no transformer or token table inside; expected an encoder with either; distil into one of those")
    taken = inspect.signature(transformer.forward).parameters
    return [
        name for name in ("input_ids", "attention_mask", "token_type_ids") if name in model.tokenizer.model_input_names and name in taken
    ]


def _max_seq_length(model: SentenceTransformer, folder: Path) -> int:
    length = model.max_seq_length
    if isinstance(model[0], StaticEmbedding):  # its tokenizer cuts, or nothing does
        length = (model.tokenizer.truncation or {}).get("max_length")
    if length is None or length > 1_000_000:  # transformers writes 1e30 for "not known"
        raise RunError(
            f"{folder}: no max_seq_length; expected one in sentence_bert_config.json, of a token table as truncation in {TOKENIZER_FILE}; "
            "set it on the model and save it again"
        )
    return int(length)


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Mute the exporter: it names absent packages that no text encoder needs, and torch's own deprecations."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
