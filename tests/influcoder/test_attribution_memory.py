"""Ten times the rows take the same memory: peaks of two processes, as a ratio."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")]
CODE = """
import json, sys
from types import SimpleNamespace
import numpy as np
from influcoder import attribution
from influcoder.readers import DataSource
from influcoder.text_format import TextFormat

class Stub:
    fingerprint, provider, text_format, settings = "f", "none", TextFormat(), SimpleNamespace(dim=64)
    def __init__(self, folder, **settings): pass
    def tokenize(self, texts): return [SimpleNamespace(overflowing=[])] * len(texts)
    def embed(self, encodings):
        vectors = np.random.default_rng(len(encodings)).standard_normal((len(encodings), 64)).astype(np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

attribution.OnnxEncoder = Stub
pool, output = sys.argv[1:]
config = attribution.AttributionConfig(
    encoder="stub", pool=DataSource(paths=(pool,)), queries=DataSource(paths=(pool,), limit=20), output=output, keep_above=0.1, shard_rows=4096
)
facts = attribution.attribute(config)
# not ru_maxrss, which counts the memory of whoever started this process
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps([facts["counts"]["rows"], int(peak)]))
"""


def peak(folder: Path, count: int, repository: Path) -> float:
    pool = folder / f"{count}.jsonl"
    with pool.open("w") as stream:  # without ids: rows are named by their content, which is kept twice
        stream.writelines(f'{{"prompt": "question {row}", "response": "{"an answer " * 8}"}}\n' for row in range(count))
    command = [sys.executable, "-c", CODE, str(pool), str(folder / f"run-{count}")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=repository, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False)
    assert done.returncode == 0, done.stderr
    rows, peak_kib = json.loads(done.stdout)
    assert rows == count
    return float(peak_kib)


def test_memory_does_not_grow_with_the_rows(tmp_path: Path, repository: Path) -> None:
    assert peak(tmp_path, 120_000, repository) <= 1.1 * peak(tmp_path, 12_000, repository)
