from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from examples.spark_attribution import SCHEMA, load, rank_batches
from influcoder.embed_batch import embed_rows
from influcoder.examples import Example
from influcoder.onnx_encoder import OnnxEncoder
from influcoder.readers import DataSource, read_examples
from tests.influcoder.test_attribution import make_rows, write_jsonl


def write_pool(folder: Path) -> tuple[Path, list[Example]]:
    rows: list[Any] = make_rows(200, seed=0)
    for row in rows[::7]:
        row["prompt"] = ""
    path = folder / "pool.jsonl"
    write_jsonl(path, rows)
    return path, read_examples(DataSource(paths=(str(path),)))


def best_two_thirds(scores: np.ndarray[Any, Any]) -> list[float]:
    """Of six queries, the last two contrast: the mean of a row's five best of four, less that of the two."""
    return [float(np.mean(column[:4]) - np.mean(column[4:])) for column in scores.T.astype(np.float64)]


def test_a_partition_is_what_the_library_makes_of_its_rows(exported_folder: Path, tmp_path: Path) -> None:
    _, rows = write_pool(tmp_path)
    encoder = OnnxEncoder(exported_folder)
    queries = read_examples(DataSource(paths=(write_jsonl(tmp_path / "queries.jsonl", make_rows(6, seed=1)),)))
    vectors, weights = embed_rows(encoder, queries)[0], np.array([1.0, 1, 1, 1, -1, -1])
    parts = [rows[:50], rows[50:51], rows[51:]]
    batches = [
        pa.RecordBatch.from_pylist([{"id": row.id, "prompt": row.prompt or None, "response": row.response} for row in part])
        for part in parts
    ]
    load.cache_clear()
    for _ in range(2):  # two partitions of one worker
        made = list(rank_batches(iter(batches), str(exported_folder), vectors, weights))
        for part, batch in zip(parts, made, strict=True):
            embedded, truncated = embed_rows(encoder, part)
            assert batch.schema == SCHEMA and batch["id"].to_pylist() == [row.id for row in part]
            np.testing.assert_array_equal(np.array(batch["embedding"].to_pylist(), np.float32), embedded)
            assert batch["truncated"].to_pylist() == truncated.tolist()
            np.testing.assert_allclose(batch["score"].to_pylist(), best_two_thirds(vectors @ embedded.T), atol=1e-6)
    assert any(any(batch["truncated"].to_pylist()) for batch in made)
    assert load.cache_info().misses == 1


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("pyspark") is None, reason="pyspark is not installed (pip install pyspark, and Java 17)")
def test_spark_ranks_as_the_library(exported_folder: Path, tmp_path: Path, repository: Path) -> None:
    pool, rows = write_pool(tmp_path)
    queries = write_jsonl(tmp_path / "queries.jsonl", make_rows(4, seed=1))
    script = str(repository / "examples" / "spark_attribution.py")
    search = f"{repository}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    environment = os.environ | {"PYTHONPATH": search, "PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1"}
    environment["PYSPARK_SUBMIT_ARGS"] = "--master local[2] pyspark-shell"
    command = [sys.executable, script, str(exported_folder), str(pool), queries, str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    found = pq.read_table(tmp_path / "out").sort_by("id").to_pydict()
    encoder = OnnxEncoder(exported_folder)
    rows = sorted(rows, key=lambda row: row.id)
    embedded, _ = embed_rows(encoder, rows)
    vectors, _ = embed_rows(encoder, read_examples(DataSource(paths=(queries,))))
    assert found["id"] == [row.id for row in rows]
    np.testing.assert_allclose(found["embedding"], embedded, atol=1e-6)
    np.testing.assert_allclose(found["score"], (vectors @ embedded.T).mean(axis=0), atol=1e-6)
