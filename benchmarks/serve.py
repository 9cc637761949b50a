"""What a server of an index bears: clients that ask one query after another, on this machine.

    python -m benchmarks.serve [--seconds 180] [--clients 32] [--rows 100000] [--encoder DIR]     four minutes

Clients and server share the machine's cores, so that seconds are those of a busy machine, and more so where others work on it: `load` says
how many processes wanted a core before. The encoder is the packaged MiniLM, exported first, unless another is named; rows are random unit
vectors, since an exact search takes as long for any. Memory is read in equal steps from after a warm-up to the end: the server's own
(anonymous), which must not grow, and apart from it pages of files, such as the index, which the system keeps while it has room. `growth` is
that of the second half. Rows scanned count a row once for each query. Written to benchmarks/results/serve.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import trange

from benchmarks.bench_eval import minilm
from influcoder.index import publish, write_shard
from influcoder.onnx_encoder import OnnxEncoder
from influcoder.runs import git_commit, write_text_atomic

RESULT = Path("benchmarks/results/serve.json")
SHARD_ROWS, K, WARM_UP, STEPS = 16384, 10, 2.0, 18
WORDS = "the a of river bakes bread code prints seven stars green tea garden slowly because never music model answer question".split()


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serve", description=main.__doc__)
    parser.add_argument("--encoder", help="exported encoder; MiniLM is exported when none is named")
    for name, default in (("seconds", 180), ("clients", 32), ("rows", 100_000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        encoder = Path(options.encoder) if options.encoder else export_minilm(folder / "encoder")
        make_index(folder / "index", encoder, options.rows)
        found = measure(encoder, folder / "index", clients=options.clients, seconds=options.seconds)
    figures = found | {"encoder": options.encoder or "all-MiniLM-L6-v2", "cpus": os.cpu_count(), "load": load, "git_commit": git_commit()}
    write_text_atomic(RESULT, json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures, indent=1))


def export_minilm(folder: Path) -> Path:
    """Save MiniLM as an encoder folder with its graph."""
    from sentence_transformers import SentenceTransformer

    from influcoder.onnx_export import export_encoder
    from influcoder.text_format import TextFormat, save_text_format

    SentenceTransformer(minilm(), device="cpu").save(str(folder), create_model_card=False)
    save_text_format(folder, TextFormat())
    export_encoder(folder, [make_text(random.Random(seed)) for seed in range(50)])
    return folder


def make_index(folder: Path, encoder_folder: Path, rows: int) -> None:
    """Write an index of random unit vectors."""
    encoder, rng = OnnxEncoder(encoder_folder), np.random.default_rng(0)
    folder.mkdir()
    for shard in trange(-(-rows // SHARD_ROWS), desc="make index", leave=False, disable=None):
        start = shard * SHARD_ROWS
        vectors = rng.standard_normal((min(SHARD_ROWS, rows - start), encoder.settings.dim), np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        write_shard(folder, shard, vectors, [f"row-{start + row}" for row in range(len(vectors))], [None] * len(vectors))
    publish(folder, encoder, -(-rows // SHARD_ROWS))


def make_text(source: random.Random) -> str:
    """Return a text of some ten to sixty words."""
    return " ".join(source.choices(WORDS, k=source.randint(10, 60)))


def measure(encoder: Path, index: Path, *, clients: int, seconds: float) -> dict[str, Any]:
    """Start a server, let the clients ask it for so long after a warm-up, and return what became of it."""
    with _server(encoder, index) as (process, port):
        _load(port, clients, min(WARM_UP, seconds))
        before, memory = _metrics(port), [_memory(process.pid)]
        watcher = threading.Thread(target=_watch, args=(process.pid, seconds, memory))
        started = time.monotonic()
        watcher.start()
        latencies, failures = _load(port, clients, seconds)
        took = time.monotonic() - started
        watcher.join()
        rows = json.loads(_get(port, "/health"))["rows"]
        after = _metrics(port)
    counts = {name: after[name] - before[name] for name in before}
    anonymous = [step["RssAnon"] for step in memory]
    return {
        "clients": clients,
        "seconds": round(took, 2),
        "requests": len(latencies),
        "failed": dict(Counter(failures)),
        "requests_per_second": round(len(latencies) / took, 1),
        "p50_seconds": round(float(np.percentile(latencies, 50)), 4),
        "p99_seconds": round(float(np.percentile(latencies, 99)), 4),
        "rows": rows,
        "rows_scanned_per_second": round(counts["influcoder_rows_scanned_total"] / took),
        "queries_a_batch": round(counts["influcoder_batch_queries_sum"] / max(counts["influcoder_batch_queries_count"], 1), 2),
        "anonymous_bytes": anonymous,
        "file_bytes": [step["RssFile"] for step in memory],
        "growth": round(anonymous[-1] / anonymous[len(anonymous) // 2] - 1, 4),
    }


@contextlib.contextmanager
def _server(encoder: Path, index: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    command = [sys.executable, "-m", "influcoder", "serve", "--encoder", str(encoder), "--index", str(index), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        if not said.startswith("http://"):
            raise SystemExit("the server did not start")
        yield process, int(said.split(": ")[0].rpartition(":")[2])
    finally:
        process.terminate()
        process.communicate(timeout=60)


def _load(port: int, clients: int, seconds: float) -> tuple[list[float], list[str]]:
    """Return the seconds of each answer, and what each request got that got none."""
    latencies: list[float] = []
    failures: list[str] = []
    end = time.monotonic() + seconds
    threads = [threading.Thread(target=_client, args=(port, seed, end, latencies, failures)) for seed in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return latencies, failures


def _client(port: int, seed: int, end: float, latencies: list[float], failures: list[str]) -> None:
    source, connection = random.Random(seed), HTTPConnection("127.0.0.1", port, timeout=60)
    while time.monotonic() < end:
        query = {"prompt": make_text(source), "response": make_text(source)}
        started = time.monotonic()
        try:
            connection.request("POST", "/attribute", json.dumps({"queries": [query], "k": K}), {"content-type": "application/json"})
            answer = connection.getresponse()
            content = answer.read()
            said = str(answer.status) if answer.status != 200 else "" if len(json.loads(content)["queries"][0]["top"]) == K else "cut"
        except (OSError, HTTPException) as error:
            said = type(error).__name__
            connection.close()
        if said:
            failures.append(said)
        else:
            latencies.append(time.monotonic() - started)
    connection.close()


def _get(port: int, path: str) -> str:
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", path)
    text = connection.getresponse().read().decode()
    connection.close()
    return text


def _metrics(port: int) -> dict[str, float]:
    lines = [
        line for line in _get(port, "/metrics").splitlines() if line.startswith(("influcoder_rows", "influcoder_batch")) and "{" not in line
    ]
    return {name: float(value) for name, value in (line.split(" ") for line in lines)}


def _watch(process: int, seconds: float, memory: list[dict[str, int]]) -> None:
    for _ in range(STEPS):
        time.sleep(seconds / STEPS)
        memory.append(_memory(process))


def _memory(process: int) -> dict[str, int]:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return {name: int(size.split()[0]) << 10 for name, _, size in (line.partition(":") for line in lines) if name in ("RssAnon", "RssFile")}


if __name__ == "__main__":
    main()
