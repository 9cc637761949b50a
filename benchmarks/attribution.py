"""The attribution job from end to end at two sizes: does its memory stay, does its time grow as the rows do.

    python -m benchmarks.attribution [--rows 100000 1000000] [--queries 100]     twenty minutes, 3 GB of disk

The student is a table of token vectors (MiniLM's own, 384 numbers), the cheapest kind there is, so that everything that is *not* the
encoder shows: reading, names and duplicates, tokenising, scoring, quantising, committing, putting files together. Rows are made of Zipf-distributed
words without ids, 20 to 60 words each. Every size is a process of its own through the command line; its peak memory is VmHWM of
/proc (Linux alone), pages of mapped files included. Written to benchmarks/results/attribution.json, with what a row costs.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import trange

from benchmarks.bench_eval import minilm
from influcoder.onnx_export import export_encoder
from influcoder.runs import git_commit, write_text_atomic
from influcoder.text_format import TextFormat, save_text_format

RESULT = Path("benchmarks/results/attribution.json")
LETTERS = np.array(list("abcdefghijklmnopqrstuvwxyz"))
RUN = """
import os, sys
from influcoder.cli import main
try:
    main()
finally:
    open(os.environ["STATUS_FILE"], "w").write(open("/proc/self/status").read())
"""
BLOCK_ROWS = 10_000


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attribution", description=main.__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--queries", type=int, default=100)
    options = parser.parse_args()
    found: dict[str, Any] = {"git_commit": git_commit(), "cpus": os.cpu_count(), "queries": options.queries, "sizes": {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_student(folder / "encoder")
        write_rows(folder / "queries.jsonl", options.queries, seed=1)
        for rows in options.rows:
            found["sizes"][str(rows)] = attribute(folder, rows)
            print(rows, json.dumps(found["sizes"][str(rows)]), flush=True)
    first, last = (found["sizes"][str(rows)] for rows in (options.rows[0], options.rows[-1]))
    found["peak_ratio"] = round(last["peak_bytes"] / first["peak_bytes"], 3)
    found["seconds_a_row_ratio"] = round(last["seconds_a_million"] / first["seconds_a_million"], 3)
    found["cpu_seconds_a_row_ratio"] = round(last["cpu_seconds_a_million"] / first["cpu_seconds_a_million"], 3)
    write_text_atomic(RESULT, json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


def make_student(folder: Path) -> None:
    """Save and export a table of MiniLM's token vectors."""
    from safetensors.torch import load_file
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer

    weights = load_file(Path(minilm()) / "model.safetensors")["embeddings.word_embeddings.weight"]
    tokenizer = Tokenizer.from_file(str(Path(minilm()) / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(256)
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=weights)], device="cpu").save(
        str(folder), create_model_card=False
    )
    save_text_format(folder, TextFormat())
    source = np.random.default_rng(2)
    words = make_words()
    export_encoder(folder, [" ".join(source.choice(words, source.integers(5, 60))) for _ in range(80)])


def make_words(count: int = 20_000) -> list[str]:
    """Return different made words of three to nine letters."""
    source = np.random.default_rng(0)
    found: dict[str, None] = {}
    while len(found) < count:
        found["".join(source.choice(LETTERS, source.integers(3, 10)))] = None
    return list(found)


def write_rows(path: Path, count: int, seed: int) -> None:
    """Write rows of words that are the rarer the later they stand in the list."""
    source, words = np.random.default_rng(seed), np.array(make_words(), object)
    with path.open("w", encoding="utf-8") as stream:
        for start in trange(0, count, BLOCK_ROWS, desc=f"write {path.name}", leave=False, disable=None):
            rows = min(BLOCK_ROWS, count - start)
            lengths = source.integers(20, 61, rows)
            drawn = words[np.minimum(source.zipf(1.3, int(lengths.sum())), len(words)) - 1]
            for row, part in enumerate(np.split(drawn, np.cumsum(lengths)[:-1])):
                who = f"contributor {(start + row) % 97}"
                stream.write(json.dumps({"prompt": " ".join(part[:8]), "response": " ".join(part[8:]), "who": who}) + "\n")


def attribute(folder: Path, rows: int) -> dict[str, Any]:
    """Run the command over so many rows in a process of its own; return what it took."""
    pool, output = folder / f"pool-{rows}.jsonl", folder / f"run-{rows}"
    write_rows(pool, rows, seed=0)
    settings = {
        "encoder": folder / "encoder", "pool.paths": f"[{pool}]", "pool.columns.contributor": "who",
        "queries.paths": f"[{folder / 'queries.jsonl'}]", "output": output,
    }  # fmt: skip
    command = [sys.executable, "-c", RUN, "attribute", *(part for name, value in settings.items() for part in (f"--{name}", str(value)))]
    pool_bytes, started = pool.stat().st_size, time.monotonic()
    status_file = folder / "status"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, env=os.environ | {"PYTHONPATH": os.getcwd(), "STATUS_FILE": str(status_file)}, check=True)
    seconds, usage = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    sizes = {path.name: _size(path) for path in output.iterdir()}
    record = json.loads((output / "run.json").read_text())
    pool.unlink()
    # not usage.ru_maxrss: that counts the memory of whoever started the process
    peak = next(line for line in status_file.read_text().splitlines() if line.startswith("VmHWM"))
    cpu = usage.ru_utime + usage.ru_stime - before.ru_utime - before.ru_stime
    return {
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),
        "seconds_a_million": round(seconds / rows * 1e6, 1),
        "cpu_seconds_a_million": round(cpu / rows * 1e6, 1),
        "peak_bytes": int(peak.split()[1]) * 1024,
        "estimate": record["estimate"],
        "pool_bytes_a_row": round(pool_bytes / rows, 1),
        "bytes_a_row": {name: round(size / rows, 2) for name, size in sorted(sizes.items()) if size > rows},
    }


def _size(path: Path) -> int:
    return sum(each.stat().st_size for each in path.rglob("*") if each.is_file()) if path.is_dir() else path.stat().st_size


if __name__ == "__main__":
    main()
