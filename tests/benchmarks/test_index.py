"""The benchmark of the index, tiny: it runs from data to figures, and its contenders are what a dense product and a sort say."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import index
from benchmarks.index import K, Vectors, as_shards, brute_force, losses, make_vectors, rescore
from influcoder.quantisation import binary_codes
from influcoder.runs import git_commit
from tests.influcoder.conftest import make_texts, save_bert

ROWS, DIM = 700, 32


def unit_rows(count: int, seed: int) -> Vectors:
    drawn = np.random.default_rng(seed).standard_normal((count, DIM)).astype(np.float32) + 0.3
    return np.asarray(drawn / np.linalg.norm(drawn, axis=1, keepdims=True), np.float32)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "SHARD_ROWS", 256)


def test_it_runs_from_data_to_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("poison", "toxicity", "factual"):
        (tmp_path / name).mkdir()
        with gzip.open(tmp_path / name / "pool.jsonl.gz", "wt", encoding="utf-8") as lines:
            lines.writelines(json.dumps({"prompt": text, "response": text[::-1]}) + "\n" for text in make_texts(80, seed=len(name)))
    save_bert(tmp_path / "encoder")
    monkeypatch.setenv("INFLUCODER_DATA", str(tmp_path))
    monkeypatch.setenv("MINILM", str(tmp_path / "encoder"))
    monkeypatch.setattr(index, "RESULT", tmp_path / "index.json")
    monkeypatch.setattr(sys, "argv", ["index", "--rows", str(ROWS), "--queries", "12", "--real", "150", "--repeats", "1"])
    assert index.main() == 0
    figures: dict[str, Any] = json.loads((tmp_path / "index.json").read_text())
    assert (figures["real"]["rows"], figures["made"]["rows"], figures["git_commit"]) == (150, ROWS, git_commit())
    for found in (figures["real"], figures["made"]):
        assert found["recall_top"] > 0.95 and found["recall_bottom"] > 0.95 and found["spearman_loss"] < 1e-3
        recalls = list(found["recall_top_binary_by_multiplier"].values())
        assert recalls == sorted(recalls) and recalls[-1] > 0.95, "more candidates lose less, all of them what int8 loses"
    for name, found in figures["speed"].items():
        assert found["seconds"] > 0 and found["of_numpy"] > 0, name
    assert figures["speed"]["numpy_float32"]["of_numpy"] == 1
    assert figures["speed"]["index_int8"]["bytes_of_numpy"] > 0


def test_contenders_agree_with_a_sort() -> None:
    vectors, queries = unit_rows(ROWS, 0), unit_rows(5, 1)
    order = np.argsort(-(queries @ vectors.T), axis=1, kind="stable")
    top, bottom = brute_force(vectors, queries)
    np.testing.assert_array_equal(top, order[:, :K])
    np.testing.assert_array_equal(bottom, order[:, ::-1][:, :K])
    shards = as_shards(vectors)
    restored = np.concatenate([shard.restored() for shard in shards])
    all_candidates = rescore(shards, [binary_codes(shard.codes) for shard in shards], queries, ROWS)
    scores = np.take_along_axis(queries @ restored.T, all_candidates, axis=1)
    np.testing.assert_allclose(scores, np.sort(queries @ restored.T, axis=1)[:, ::-1][:, :K], atol=1e-5)
    exact = [len(np.intersect1d(*pair)) / K for pair in zip(np.argsort(-(queries @ restored.T), axis=1)[:, :K], order[:, :K], strict=True)]
    assert losses(vectors, queries)["recall_top"] == pytest.approx(np.mean(exact))


def test_made_vectors_have_mean_and_covariance_of_the_real_ones() -> None:
    real = unit_rows(400, 3) * np.linspace(0.2, 2, DIM, dtype=np.float32)
    real /= np.linalg.norm(real, axis=1, keepdims=True)
    made = make_vectors(real, 20_000)
    np.testing.assert_allclose(np.linalg.norm(made, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(made.mean(axis=0), real.mean(axis=0), atol=0.02)
    np.testing.assert_allclose(np.cov(made.T), np.cov(real.T), atol=0.015)
