"""The load test runs, and counts what it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.serve import make_index, measure
from influcoder.onnx_export import export_encoder
from tests.influcoder.conftest import make_texts, save_bert

for module in ("fastapi", "uvicorn", "prometheus_client"):
    pytest.importorskip(module, reason="the server's packages are not installed; do: pip install 'influcoder[serve]'")


def test_a_short_load(tmp_path: Path) -> None:
    encoder = tmp_path / "encoder"
    save_bert(encoder)
    export_encoder(encoder, make_texts(60))
    make_index(tmp_path / "index", encoder, 20_000)
    figures = measure(encoder, tmp_path / "index", clients=8, seconds=2)
    assert figures["failed"] == 0 and figures["requests"] >= 8 and figures["rows"] == 20_000
    assert 0 < figures["p50_seconds"] <= figures["p99_seconds"] and 1 <= figures["queries_a_batch"] <= 8
    scanned = figures["rows_scanned_per_second"] * figures["seconds"]
    assert scanned == pytest.approx(20_000 * figures["requests"], rel=0.01)
    assert figures["memory_after_bytes"] < figures["memory_before_bytes"] + (32 << 20)
