"""The load test runs, and counts what it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.serve import STEPS, make_index, measure
from influcoder.onnx_export import export_encoder
from tests.influcoder.conftest import make_texts, save_bert

for module in ("fastapi", "uvicorn", "prometheus_client"):
    pytest.importorskip(module, reason="the server's packages are not installed; do: pip install 'influcoder[serve]'")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("load")
    save_bert(made / "encoder")
    export_encoder(made / "encoder", make_texts(60))
    make_index(made / "index", made / "encoder", 20_000)
    return made


def test_a_short_load(folder: Path) -> None:
    figures = measure(folder / "encoder", folder / "index", clients=8, seconds=2)
    assert figures["failed"] == {} and figures["requests"] >= 8 and figures["rows"] == 20_000
    assert 0 < figures["p50_seconds"] <= figures["p99_seconds"] and 1 <= figures["queries_a_batch"] <= 8
    scanned = figures["rows_scanned_per_second"] * figures["seconds"]
    assert scanned == pytest.approx(20_000 * figures["requests"], rel=0.01)
    own = figures["anonymous_bytes"]
    assert len(own) == len(figures["file_bytes"]) == STEPS + 1 and min(own) > 10 << 20
    assert figures["growth"] == pytest.approx(own[-1] / own[STEPS // 2] - 1, abs=1e-4)


@pytest.mark.slow
def test_memory_does_not_grow_under_load(folder: Path) -> None:
    figures = measure(folder / "encoder", folder / "index", clients=16, seconds=30)
    assert figures["failed"] == {} and figures["growth"] < 0.15, figures["anonymous_bytes"]
