"""What an index costs and loses: its search beside float32 brute force (and FAISS where it is installed), its rankings beside theirs.

    python -m benchmarks.index [--rows 1000000] [--queries 100] [--real 1500]     some minutes, 2.5 GB of memory at a million rows

Two sets of unit vectors of 384 numbers. *real*: MiniLM's embeddings of instructions and passages of INFLUCODER_DATA, shuffled; queries are further
rows. *made*: normal with the mean and the covariance of the real ones, as many as wanted: the spectrum of real embeddings, without their
clusters. All contenders find the top and the bottom 100 of the made set in turns, after a warm-up; ratios are taken turn by turn, and
their medians written to benchmarks/results/index.json. Memory is what a search holds beyond its queries, counted from array
sizes. Spearman and binary codes are measured on the first 20 queries.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import trange

from benchmarks.bench_eval import find_data, minilm
from influcoder.errors import MissingExtraError, require
from influcoder.index_search import BLOCK_BYTES, score_blocks, search_shards
from influcoder.metrics import per_query_spearman
from influcoder.quantisation import Quantised, binary_codes, fold_queries, hamming_distances, quantise
from influcoder.runs import git_commit, write_text_atomic

RESULT = Path("benchmarks/results/index.json")
K, SHARD_ROWS, MULTIPLIERS, FEW_QUERIES = 100, 16384, (1, 2, 4, 8, 16, 32), 20
Vectors = NDArray[np.float32]
Rows = NDArray[np.int64]


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.index", description=main.__doc__)
    for name, default in (("rows", 1_000_000), ("queries", 100), ("real", 1500), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    data = find_data()
    if data is None:
        return 2
    embedded = embed(data, options.real + options.queries)
    queries, real = embedded[: options.queries], embedded[options.queries :]
    figures: dict[str, Any] = vars(options) | {"git_commit": git_commit(), "threads": os.environ.get("OMP_NUM_THREADS")}
    figures["real"] = losses(real, queries)
    print("real", json.dumps(figures["real"]), flush=True)
    made = make_vectors(real, options.rows)
    figures["made"] = losses(made, queries)
    print("made", json.dumps(figures["made"]), flush=True)
    figures["speed"] = race(made, queries, options.repeats)
    write_text_atomic(RESULT, json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures["speed"], indent=1))
    return 0


def embed(data: Path, count: int) -> Vectors:
    """Return MiniLM's unit embeddings of `count` rows of several sources, cut to 300 characters, in random order."""
    from sentence_transformers import SentenceTransformer

    texts = []
    for name in ("poison", "toxicity", "factual"):
        with gzip.open(data / name / "pool.jsonl.gz", "rt", encoding="utf-8") as lines:
            texts += [f"{row['prompt']}\n{row['response']}"[:300] for row in map(json.loads, lines)]
    order = np.random.default_rng(0).permutation(len(texts))[:count]
    encoder = SentenceTransformer(minilm(), device="cpu")
    return np.asarray(encoder.encode([texts[place] for place in order], normalize_embeddings=True, show_progress_bar=True), np.float32)


def make_vectors(real: Vectors, count: int) -> Vectors:
    """Return unit vectors, normal before they are scaled, with the mean and the covariance of `real`."""
    rng, mean = np.random.default_rng(1), real.mean(axis=0)
    _, spread, directions = np.linalg.svd((real - mean) / np.sqrt(len(real)), full_matrices=False)
    colour = (spread[:, None] * directions).astype(np.float32)
    made = np.empty((count, real.shape[1]), np.float32)
    for start in trange(0, count, SHARD_ROWS, desc="make vectors", leave=False, disable=None):
        part = made[start : start + SHARD_ROWS]
        part[:] = rng.standard_normal((len(part), len(colour)), np.float32) @ colour + mean
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return made


def as_shards(vectors: Vectors) -> list[Quantised]:
    """Quantise as an index does."""
    return [quantise(vectors[start : start + SHARD_ROWS]) for start in range(0, len(vectors), SHARD_ROWS)]


def losses(vectors: Vectors, queries: Vectors) -> dict[str, Any]:
    """Return what int8 and binary codes lose, against float32 scores of the same rows."""
    shards, few = as_shards(vectors), queries[:FEW_QUERIES]
    exact, found = brute_force(vectors, queries), search_shards(shards, queries, K)
    correlations = [_spearman(vectors, shards, few[start : start + 10]) for start in range(0, len(few), 10)]
    binary = [binary_codes(shard.codes) for shard in shards]
    rescored = {multiplier: _recall(rescore(shards, binary, few, multiplier), exact[0][: len(few)]) for multiplier in MULTIPLIERS}
    stored = sum(shard.codes.nbytes + shard.steps.nbytes + shard.centres.nbytes for shard in shards)
    return {
        "rows": len(vectors),
        "bytes_per_dimension": stored / vectors.size,
        "spearman_loss": 1 - float(np.concatenate(correlations).mean()),
        "spearman_loss_worst_query": 1 - float(np.concatenate(correlations).min()),
        "recall_top": _recall(found.top_rows, exact[0]),
        "recall_bottom": _recall(found.bottom_rows, exact[1]),
        "recall_top_binary_by_multiplier": rescored,
    }


def brute_force(vectors: Vectors, queries: Vectors) -> tuple[Rows, Rows]:
    """Return the top and the bottom rows, (Q, K), in order, as NumPy finds them: all scores, a partition a side, a sort of what it gives."""
    scores, sides = queries @ vectors.T, []
    k = min(K, scores.shape[1])
    for part in (slice(scores.shape[1] - k, None), slice(0, k)):
        rows = np.argpartition(scores, (part.start or 0) if part.stop is None else k - 1, axis=1)[:, part]
        kept = np.take_along_axis(scores, rows, axis=1)
        order = np.argsort(-kept if part.stop is None else kept, axis=1)
        sides.append(np.take_along_axis(rows, order, axis=1))
    return sides[0], sides[1]


def rescore(shards: Sequence[Quantised], binary: Sequence[NDArray[np.uint8]], queries: Vectors, multiplier: int) -> Rows:
    """Return the top rows, (Q, K): the `multiplier * K` of most equal signs, scored again by their int8 codes."""
    codes, signs, centres = np.concatenate([shard.codes for shard in shards]), np.concatenate(binary), shards[0].centres
    firsts, found = np.cumsum([0, *(len(shard.codes) for shard in shards)]), []
    for query, bits in zip(queries, np.packbits(queries > centres, axis=1), strict=True):
        distances = hamming_distances(bits, signs)
        count = min(multiplier * K, len(distances))
        rows = np.sort(np.argpartition(distances, count - 1)[:count])
        scores = np.empty(count, np.float32)
        for shard, first, last in zip(shards, firsts, firsts[1:], strict=False):
            inside = (rows >= first) & (rows < last)
            folded, offset = fold_queries(query[None], shard.steps, shard.centres)
            scores[inside] = codes[rows[inside]].astype(np.float32) @ folded[0] + offset[0]
        found.append(rows[np.argsort(-scores, kind="stable")[:K]])
    return np.stack(found)


def race(vectors: Vectors, queries: Vectors, repeats: int) -> dict[str, Any]:
    """Let all contenders find top and bottom in turns; return median seconds, ratios to brute force, and bytes held."""
    shards = as_shards(vectors)
    scores = len(queries) * len(vectors)
    contenders: dict[str, tuple[Callable[[], object], int]] = {
        "numpy_float32": (lambda: brute_force(vectors, queries), vectors.nbytes + 4 * scores + 8 * scores),
        "index_int8": (lambda: search_shards(shards, queries, K), sum(shard.codes.nbytes for shard in shards) + BLOCK_BYTES),
        "index_scores_alone": (lambda: [None for shard in shards for _ in score_blocks(shard, queries)], 0),
    }
    contenders |= _faiss(vectors, queries)
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(repeats + 1):
        for name, (contend, _) in contenders.items():
            started = time.perf_counter()
            contend()
            if turn:  # the first one is the warm-up
                seconds[name].append(time.perf_counter() - started)
    base, base_bytes = seconds["numpy_float32"], contenders["numpy_float32"][1]
    return {
        name: {
            "seconds": median(taken),
            "of_numpy": median(own / other for own, other in zip(taken, base, strict=True)),
            "bytes": contenders[name][1],
            "bytes_of_numpy": contenders[name][1] / base_bytes,
            "bytes_of_float32": contenders[name][1] / vectors.nbytes,
        }
        for name, taken in seconds.items()
    }


def _faiss(vectors: Vectors, queries: Vectors) -> dict[str, tuple[Callable[[], object], int]]:
    try:
        faiss = require("faiss", "faiss-cpu")
    except MissingExtraError:
        return {}
    flat, scalar = faiss.IndexFlatIP(vectors.shape[1]), faiss.IndexScalarQuantizer(vectors.shape[1], faiss.ScalarQuantizer.QT_8bit, 0)
    flat.add(vectors)
    scalar.train(vectors[:100_000])
    scalar.add(vectors)

    def both(index: Any) -> Callable[[], object]:
        return lambda: (index.search(queries, K), index.search(-queries, K))

    return {"faiss_flat": (both(flat), vectors.nbytes), "faiss_int8": (both(scalar), vectors.size)}


def _spearman(vectors: Vectors, shards: Sequence[Quantised], queries: Vectors) -> NDArray[np.float64]:
    scores = np.concatenate([block for shard in shards for block in score_blocks(shard, queries)], axis=1)
    return np.asarray(per_query_spearman(scores, queries @ vectors.T), np.float64)


def _recall(found: Rows, exact: Rows) -> float:
    return float(np.mean([len(np.intersect1d(ours, theirs)) / len(theirs) for ours, theirs in zip(found, exact, strict=True)]))


if __name__ == "__main__":
    raise SystemExit(main())
