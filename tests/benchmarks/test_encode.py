"""The benchmark's race is fair, and README says what it found."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import encode
from benchmarks.encode import BASE, BLOCK, RESULT, race, table
from influcoder.onnx_export import export_encoder
from tests.influcoder.conftest import make_texts, save_bert

pytest.importorskip("openvino", reason="the extra `openvino` is not installed")


def test_readme_quotes_the_result(repository: Path) -> None:
    found = json.loads((repository / RESULT).read_text())
    assert BLOCK.quoted((repository / "README.md").read_text()) == table(found)
    assert next(iter(found["methods"])) == BASE and found["methods"][BASE]["ratio"] == 1.0


def test_a_race_takes_ratios_turn_by_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, truth = [0.0], np.random.default_rng(0).standard_normal((40, 8)).astype(np.float32)
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    def method(seconds: Sequence[float]) -> Any:
        left = iter([0.0, *seconds])  # the warm-up first

        def embed(texts: Sequence[str]) -> Any:
            clock[0] += next(left)
            return truth

        return embed

    found = race({BASE: method([4, 2, 8]), "ours": method([1, 1, 2])}, ["text"] * 40, repeats=3)
    assert found["ours"]["ratio"] == 4.0 and (found["ours"]["lowest_ratio"], found["ours"]["highest_ratio"]) == (2.0, 4.0)
    assert found["ours"]["rows_per_second"] == 40.0 and found["ours"]["spearman"] == 1.0


@pytest.mark.slow
def test_the_contenders_encode_the_same_texts(tmp_path: Path) -> None:
    save_bert(tmp_path / "encoder")
    export_encoder(tmp_path / "encoder", make_texts(80), variants=["int8", "bf16"])
    texts = [f"Prompt: {word}\nResponse: {word} tea" for word in "river bread code stars green garden slowly music".split()] * 3
    found = {name: method(texts) for name, method in encode.contenders(tmp_path / "encoder", "cpu").items()}
    assert len(found) == 6
    for embeddings in found.values():
        np.testing.assert_allclose((embeddings * found[BASE]).sum(1), 1, atol=0.02)
