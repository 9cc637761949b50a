"""From projected gradients to features and scores: precondition, combine checkpoints, normalise; then how noisy the target is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from influcoder.features import (
    Features,
    Manifest,
    create_store,
    has_shard,
    load_features,
    load_row_vectors,
    load_shard,
    read_manifest,
    write_shard,
)
from influcoder.influence.fisher import Roots, SecondMoment, inverse_root, mix, save_roots
from influcoder.influence.methods import Method, finish
from influcoder.metrics import per_query_spearman
from influcoder.scores import Scores, save_scores


def fit_fisher(stores: dict[str, Path], blocks: Sequence[int], method: Method, damping: float, keep: Path) -> tuple[Roots, float | None]:
    """Return the inverse roots of one seed's second moments, and the queries' weight in them; written to `keep` for rows to come.

    Args:
        stores: projected gradients by side, of one checkpoint and seed.
        blocks: coordinates a layer.
        method: says whose moments.
        damping: share of the mean eigenvalue.
        keep: safetensors file.
    """
    moments = {}
    for side in ("rows", "queries")[: 2 if method.fisher == "both" else 1]:
        moments[side] = SecondMoment(blocks)
        for _, gradients in stream(stores[side]):
            moments[side].add(gradients)
    mixed, weight = moments["rows"].means(), None
    if "queries" in moments:
        mixed, weight = mix(mixed, moments["queries"].means())
    progress = tqdm(mixed, desc="inverse roots of the Fisher", unit="layer", disable=None, leave=False)
    roots = [inverse_root(moment, damping).astype(np.float32) for moment in progress]
    save_roots(keep, roots)
    return roots, weight


def finish_store(
    parts: Sequence[Path],
    target: Path,
    manifest: Manifest,
    method: Method,
    learning_rates: Sequence[float],
    roots: Roots | None,
    blocks: Sequence[int] | None,
) -> None:
    """Write the features of one side and seed from its projected gradients at each checkpoint, shard by shard.

    Args:
        parts: stores of projected gradients, one a checkpoint.
        target: store to write.
        manifest: of the target, but for its dimension.
        method: how checkpoints are combined.
        learning_rates: of each checkpoint.
        roots: of the Fisher, if it preconditions.
        blocks: coordinates of each layer, where each is to have length 1 after the Fisher.
    """
    streams = [stream(part) for part in parts]
    dim = None
    for shards in zip(*streams, strict=True):
        shard = shards[0][0]
        vectors = finish(method, [part for _, part in shards], learning_rates, roots, blocks)
        if dim is None:
            dim = vectors.shape[1]
            create_store(target, replace(manifest, dim=dim))
        if not has_shard(target, shard):
            write_shard(target, shard, vectors)


def stream(store: Path) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Yield `(shard, (rows, dim))` projected gradients at their lengths.

    Raises:
        RunError: when a shard is corrupt, naming it.
    """
    manifest = read_manifest(store)
    for shard in range(manifest.num_shards):
        vectors, norms = load_shard(store, manifest, shard)
        yield shard, vectors.astype(np.float32) * norms[:, None]


def write_scores(folder: Path, seed: int) -> None:
    """Write the task queries' scores of all rows under one seed."""
    place = folder / "features" / f"seed-{seed}"
    queries, rows = load_features(place / "queries"), load_features(place / "rows")
    save_scores(folder / "scores" / f"seed-{seed}", score(queries, rows))


def score(queries: Features, rows: Features) -> Scores:
    """Return every query's score of every row."""
    return Scores(
        values=queries.as_queries @ rows.as_rows.T,
        query_ids=queries.manifest.ids,
        row_ids=rows.manifest.ids,
        method=rows.manifest.method,
        seed=rows.manifest.seed,
        decoder_fingerprint=rows.manifest.decoder_fingerprint,
    )


def seed_agreement(folder: Path, seeds: Sequence[int]) -> float | None:
    """Return the mean per-query Spearman between the first two seeds' scores of a sample of rows; None with one seed, or under four rows."""
    kernels = [_sample_kernel(folder / "features" / f"seed-{seed}") for seed in seeds[:2]]
    if len(kernels) < 2 or kernels[0].shape[1] < 3:
        return None
    return float(per_query_spearman(kernels[1], kernels[0]).mean())


def _sample_kernel(folder: Path) -> NDArray[np.float32]:
    """Return the scores between two disjoint seeded samples of rows, at most 100 x 500."""
    _, asking, rows = load_row_vectors(folder)
    order = np.random.default_rng(0).permutation(len(rows))
    num_queries = min(100, max(1, len(order) // 4))
    kernel: NDArray[np.float32] = asking[order[:num_queries]] @ rows[order[num_queries : num_queries + 500]].T
    return kernel
