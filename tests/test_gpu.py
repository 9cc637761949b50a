"""On a GPU; skipped where there is none. What the device may change is rounding, never a ranking."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from eval.encoders import Embedder
from influcoder.influence.capture import gradient_layers
from influcoder.influence.decoder import Decoder, FreshDecoder, make_fresh_decoder
from influcoder.influence.ekfac import Whitening, fit_ekfac
from influcoder.influence.ekfac_decoder import Draws, decoder_batches
from influcoder.influence.ekfac_scores import precondition_queries, stream_scores
from influcoder.influence.gradients import GradientConfig, GradientProjector
from influcoder.influence.representations import hidden_states, losses
from influcoder.influence.tokens import tokenize
from influcoder.metrics import per_query_spearman
from influcoder.onnx_encoder import OnnxEncoder
from influcoder.onnx_export import export_encoder
from influcoder.onnx_settings import Variant
from influcoder.text_format import render, save_text_format
from tests.eval.fake_runs import TEXT, make_encoder, make_rows

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")

ROWS = make_rows(60, "row", seed=0)
TINY = FreshDecoder(hidden_size=32, layers=2, heads=2, intermediate_size=64, vocab_size=300, max_tokens=256)


def decoders() -> tuple[Decoder, Decoder]:
    """Return the same decoder on the CPU and on the GPU."""
    on_cpu, on_gpu = (make_fresh_decoder(TINY, ROWS, seed=0) for _ in range(2))
    on_gpu.model.to("cuda")  # type: ignore[arg-type]  # transformers' stub of `to`
    return on_cpu, on_gpu


def test_sketched_gradients_are_the_same_on_both_devices() -> None:
    found = []
    for decoder in decoders():
        projector = GradientProjector(decoder, GradientConfig(rank=8, factors="random", dim=2048, max_batch_tokens=512), seeds=(0, 1))
        vectors = np.empty((2, len(ROWS), 2048), np.float32)
        for positions, sketches in projector.project_all(tokenize(ROWS, decoder)):
            vectors[:, positions] = sketches.cpu().numpy()
        found.append(vectors)
    error = np.linalg.norm(found[0] - found[1], axis=2) / np.linalg.norm(found[0], axis=2)
    assert error.max() < 1e-3, "float32 sums in another order; a wrong seed or a wrong row would give about 1"
    kernels = [vectors[0, :20] @ vectors[0, 20:].T for vectors in found]
    assert per_query_spearman(kernels[1], kernels[0]).min() > 0.999


def test_whitened_gradients_rank_the_same_on_both_devices() -> None:
    kernels = []
    for decoder in decoders():
        layers, rows = gradient_layers(decoder.model), tokenize(ROWS, decoder)
        whitening = Whitening(fit_ekfac(layers, decoder_batches(decoder, rows, Draws(), 512)))
        config = GradientConfig(rank=None, dim=4096, max_batch_tokens=512)
        projector = GradientProjector(decoder, config, seeds=(0,), whitenings=[whitening])
        vectors = np.empty((len(ROWS), 4096), np.float32)
        for positions, whitened in projector.project_all(rows):
            vectors[positions] = whitened[0].cpu().numpy()
        held = precondition_queries(decoder, whitening.factors, layers, rows[:20], max_batch_tokens=512, rank=8)
        exact = stream_scores(decoder, layers, held, rows[20:], max_batch_tokens=512, by_token=True).values
        kernels.append((vectors[:20] @ vectors[20:].T, exact))
    for cpu, gpu in zip(*kernels, strict=True):
        assert per_query_spearman(gpu, cpu).min() > 0.99, "a label may be another where a sum rounds otherwise; not many"


def test_losses_and_states_are_the_same_on_both_devices() -> None:
    cpu, gpu = (
        (losses(decoder, tokenize(ROWS, decoder), 512), *hidden_states(decoder, tokenize(ROWS, decoder), 512)) for decoder in decoders()
    )
    for mine, theirs in zip(cpu, gpu, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-3)


def test_embeddings_rank_the_same_on_both_devices(tmp_path: Path) -> None:
    make_encoder(tmp_path / "encoder", tmp_path / "scratch", seed=0)
    save_text_format(tmp_path / "encoder", TEXT)
    cpu, gpu = (Embedder(device).embed(tmp_path / "encoder", ROWS) for device in ("cpu", "cuda"))
    assert per_query_spearman(gpu @ gpu.T, cpu @ cpu.T).min() > 0.999


@pytest.mark.skipif("CUDAExecutionProvider" not in onnxruntime.get_available_providers(), reason="onnxruntime-gpu is not installed")
def test_an_exported_encoder_ranks_the_same_on_both_devices(tmp_path: Path) -> None:
    make_encoder(tmp_path / "encoder", tmp_path / "scratch", seed=0)
    save_text_format(tmp_path / "encoder", TEXT)
    texts = [render(row, TEXT) for row in ROWS]
    export_encoder(tmp_path / "encoder", texts, variants=["fp16"])
    cpu = OnnxEncoder(tmp_path / "encoder", providers=["CPUExecutionProvider"]).encode(texts)
    variants: dict[Variant, float] = {"fp32": 0.999, "fp16": 0.99}
    for variant, least in variants.items():
        encoder = OnnxEncoder(tmp_path / "encoder", variant=variant, providers=["CUDAExecutionProvider"])
        assert encoder.provider == "CUDAExecutionProvider"
        gpu = encoder.encode(texts)
        assert per_query_spearman(gpu @ gpu.T, cpu @ cpu.T).mean() > least
