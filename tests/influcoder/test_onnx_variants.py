"""Variants with smaller numbers: accepted by what they do to rankings, chosen and measured on different texts."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from influcoder import onnx_export, onnx_variants
from influcoder.attribution import AttributionConfig, attribute
from influcoder.errors import ConfigError, RunError
from influcoder.index import open_index
from influcoder.metrics import per_query_spearman, top_overlap
from influcoder.onnx_encoder import OnnxEncoder, first_numbers
from influcoder.onnx_export import export_encoder
from influcoder.onnx_parity import accept, compare_rankings, measure_slices
from influcoder.onnx_settings import Variant, load_settings, save_settings
from influcoder.onnx_variants import write_fp16, write_int8
from influcoder.readers import DataSource
from influcoder.runs import sha256_of_file
from tests.influcoder.test_attribution import make_rows, write_jsonl
from tests.influcoder.test_onnx import make_texts

openvino = pytest.importorskip("openvino", reason="the extra `openvino` is not installed")


@pytest.fixture(scope="module")
def folder(bert_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder with every variant."""
    copy = Path(shutil.copytree(bert_folder, tmp_path_factory.mktemp("variants") / "encoder"))
    export_encoder(copy, make_texts(80), variants=["int8", "bf16", "fp16", "fp32"])
    return copy


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["bf16", "fp16", "int8"])
def test_a_variant_ranks_as_its_record_says(variant: Variant, folder: Path) -> None:
    texts = make_texts(120, seed=5)
    truth = OnnxEncoder(folder).encode(texts)
    encoder = OnnxEncoder(folder, variant=variant)
    found = encoder.encode(texts)
    assert 0 < np.abs(found - truth).max() < 0.1, "other numbers, and not by much"
    assert per_query_spearman(found[:40] @ found[40:].T, truth[:40] @ truth[40:].T).mean() > 0.98
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=2e-3)
    parity = json.loads((folder / "onnx" / "parity.json").read_text())["variants"]
    assert list(parity) == ["int8", "bf16", "fp16"]
    assert parity[variant]["accepted"] and parity[variant]["spearman_mean"] >= 0.99
    assert parity[variant]["provider"] == encoder.provider == ("OpenVINO" if variant == "bf16" else "CPUExecutionProvider")
    sample = len(set(make_texts(80)))  # int8 is judged on the half that chose no layers
    assert parity[variant]["queries"] + parity[variant]["rows"] == (-(-sample // 2) if variant == "int8" else sample)
    assert encoder.fingerprint != OnnxEncoder(folder).fingerprint


def test_openvino_in_float32_is_onnxruntime_in_float32(folder: Path) -> None:
    texts = make_texts(30, seed=6)
    found = OnnxEncoder(folder, providers=["OpenVINO"], threads=2, batch_tokens=64)
    np.testing.assert_allclose(found.encode(texts), OnnxEncoder(folder).encode(texts), atol=1e-5)
    assert found.provider == "OpenVINO"
    with pytest.raises(ConfigError, match="variant: bf16 with providers CPUExecutionProvider; expected OpenVINO"):
        OnnxEncoder(folder, variant="bf16", providers=["CPUExecutionProvider"])


def test_a_processor_without_bfloat16_is_told_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    core = openvino.Core

    class Older:
        def __init__(self) -> None:
            self.core = core()

        def compile_model(self, *arguments: Any) -> Any:
            return self.core.compile_model(*arguments)

        def get_property(self, device: str, name: str) -> list[str]:
            return ["FP32", "INT8"]

    monkeypatch.setattr(openvino, "Core", Older)
    with pytest.raises(ConfigError, match="this processor has no bfloat16"):
        OnnxEncoder(folder, variant="bf16")


def test_a_variant_that_was_not_exported_is_refused(exported_folder: Path) -> None:
    with pytest.raises(RunError, match=r"variant int8 was not exported or not accepted; it has fp32; .* export again with --variants"):
        OnnxEncoder(exported_folder, variant="int8")


def test_a_tampered_variant_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "encoder"))
    shutil.copy(copy / "onnx" / "model.onnx", copy / "onnx" / "model_int8.onnx")
    with pytest.raises(RunError, match=r"model_int8\.onnx: checksum"):
        OnnxEncoder(copy, variant="int8")


@pytest.mark.slow
def test_a_variant_that_ranks_otherwise_is_refused_and_nothing_is_left(
    bert_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(bert_folder, tmp_path / "encoder"))

    def noisy(source: Path, target: Path) -> None:
        write_fp16(source, target)
        model, rng = onnx.load(target), np.random.default_rng(0)
        for tensor in model.graph.initializer:
            weights = onnx.numpy_helper.to_array(tensor)
            if weights.ndim == 2:
                tensor.CopyFrom(onnx.numpy_helper.from_array(rng.permutation(weights.ravel()).reshape(weights.shape), tensor.name))
        onnx.save(model, target)

    monkeypatch.setattr(onnx_export, "write_fp16", noisy)
    before = sorted(path.name for path in copy.iterdir())
    with pytest.raises(
        RunError, match=r"in fp16 ranks otherwise than torch: .* expected at least 0\.99, overlap .* leave it out of --variants"
    ):
        export_encoder(copy, make_texts(40), variants=["fp16"])
    assert sorted(path.name for path in copy.iterdir()) == before


def quantised_layers(path: Path) -> int:
    return sum(node.op_type == "MatMulInteger" for node in onnx.load(path).graph.node)


def test_the_layers_that_cost_most_stay_in_float32(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = folder / "onnx" / "model.onnx", tmp_path / "int8.onnx"
    layers = onnx_variants._layers(source)
    kept: list[tuple[str, ...]] = []
    quantise = onnx_variants._quantise

    def watched(source: Path, target: Path, left_out: list[str]) -> None:
        kept.append(tuple(left_out))
        quantise(source, target, left_out)

    monkeypatch.setattr(onnx_variants, "_quantise", watched)
    bad = {layers[1]: 0.02, layers[4]: 0.01}

    def agreement() -> float:
        return 1 - sum(cost for layer, cost in bad.items() if layer not in kept[-1])

    assert write_int8(source, target, agreement) == [layers[1], layers[4]]
    assert quantised_layers(target) == len(layers) - 2
    with pytest.raises(RunError, match="ranks otherwise in int8 even where half of its layers stay in float32"):
        write_int8(source, target, lambda: 0.5)
    assert write_int8(source, target, lambda: 1.0) == [] and quantised_layers(target) == len(layers)


def test_a_graph_without_multiplications_has_no_int8(table_folder: Path) -> None:
    with pytest.raises(RunError, match="multiplies with no weights; int8 would change nothing"):
        export_encoder(table_folder, make_texts(40), variants=["int8"])
    assert not (table_folder / "onnx").exists()


def test_the_gate_measures_spearman_and_overlap() -> None:
    rng = np.random.default_rng(0)
    truth, found = rng.standard_normal((2, 50, 8)).astype(np.float32)
    parity = compare_rankings(found, truth)
    scores, expected = found[:25] @ found[25:].T, truth[:25] @ truth[25:].T
    assert parity["queries"] == parity["rows"] == 25
    assert parity["spearman_mean"] == pytest.approx(per_query_spearman(scores, expected).mean())
    by_hand = [len(set(np.argsort(-a)[:10]) & set(np.argsort(-b)[:10])) / 10 for a, b in zip(scores, expected, strict=True)]
    assert parity["top_overlap"] == pytest.approx(np.mean(by_hand)) == pytest.approx(top_overlap(scores, expected, 10).mean())


def test_the_gate_refuses_for_either() -> None:
    good = {"spearman_mean": 0.99, "top_overlap": 0.9}
    accepted = dict(good)
    accept(Path("encoder"), "int8", accepted, 0.99, 0.9)
    assert accepted["accepted"]
    for worse in ({"spearman_mean": 0.9899}, {"top_overlap": 0.89}):
        with pytest.raises(RunError, match=r"in int8 ranks otherwise than torch: .*overlap of the first 10 0\.\d+, expected at least 0\.9"):
            accept(Path("encoder"), "int8", good | worse, 0.99, 0.9)


def test_the_first_numbers_are_unit_rows_of_their_own(folder: Path) -> None:
    texts = make_texts(20, seed=2)
    whole, half = OnnxEncoder(folder), OnnxEncoder(folder, dim=16)
    expected = whole.encode(texts)[:, :16]
    np.testing.assert_allclose(half.encode(texts), expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-6)
    assert half.settings.dim == 16 and half.fingerprint not in (whole.fingerprint, OnnxEncoder(folder, dim=8).fingerprint)
    assert OnnxEncoder(folder, dim=32).fingerprint == whole.fingerprint, "all numbers are no slice"
    with pytest.raises(ConfigError, match="dim: 33; expected at most the 32 numbers"):
        OnnxEncoder(folder, dim=33)
    assert not first_numbers(np.zeros((1, 4), np.float32), 2).any()


def test_what_a_slice_loses_is_stated(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    truth = (rng.standard_normal((60, 128)) * np.geomspace(1, 0.01, 128)).astype(np.float32)
    truth /= np.linalg.norm(truth, axis=1, keepdims=True)
    found = measure_slices(truth)
    assert list(found) == ["64", "32"] and 0.8 < found["32"]["spearman_mean"] < found["64"]["spearman_mean"] < 1


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_change_no_number(threads: int, folder: Path) -> None:
    texts = make_texts(60, seed=8)
    assert (OnnxEncoder(folder, threads=threads, batch_tokens=96).encode(texts) == OnnxEncoder(folder, batch_tokens=96).encode(texts)).all()


def test_a_variant_and_a_slice_attribute_and_an_index_knows_them(folder: Path, tmp_path: Path) -> None:
    config = AttributionConfig(
        encoder=str(folder),
        pool=DataSource(paths=(write_jsonl(tmp_path / "pool.jsonl", make_rows(90, seed=0)),)),
        queries=DataSource(paths=(write_jsonl(tmp_path / "queries.jsonl", make_rows(5, seed=1)),)),
        output=str(tmp_path / "run"),
        variant="int8",
        dim=16,
        top_k=5,
    )
    attribute(config)
    index = tmp_path / "run" / "index"
    assert open_index(index, OnnxEncoder(folder, variant="int8", dim=16)).manifest.dim == 16
    for other in ({"variant": "fp32", "dim": 16}, {"variant": "int8", "dim": 8}, {"variant": "int8"}):
        with pytest.raises(RunError, match="made by encoder"):
            open_index(index, OnnxEncoder(folder, **other))
    with pytest.raises(RunError, match="bf16 was not exported"):
        attribute(replace(config, encoder=str(_without_variants(folder, tmp_path)), variant="bf16", output=str(tmp_path / "other")))


def _without_variants(folder: Path, tmp_path: Path) -> Path:
    copy = Path(shutil.copytree(folder, tmp_path / "plain"))
    settings = load_settings(copy)
    assert settings.sha256 == sha256_of_file(copy / "onnx" / "model.onnx")
    save_settings(copy / "onnx", replace(settings, variants={}))
    return copy
