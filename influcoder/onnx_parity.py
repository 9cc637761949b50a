"""Does a graph *rank* as the encoder it was made of? Two graphs that differ in every number may, and are then as good as each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from influcoder.errors import RunError
from influcoder.metrics import per_query_spearman, top_overlap
from influcoder.onnx_encoder import first_numbers

MAX_QUERIES = 64
TOP = 10
"""rows of a query whose overlap is stated"""
VARIANT_SPEARMAN, VARIANT_OVERLAP = 0.99, 0.9
"""least mean per-query Spearman, and overlap of the first ten rows, of the variants with smaller numbers; .99 of overlap would refuse every int8
graph of MiniLM that was tried, the slowest included (docs/LOG.md)"""
MIN_SLICE = 32


def compare_rankings(found: NDArray[np.float32], truth: NDArray[np.float32]) -> dict[str, Any]:
    """Compare how two sets of unit rows of the same texts rank: the first half, at most 64, are queries, the others are ranked."""
    queries = min(MAX_QUERIES, len(truth) // 2)
    scores, expected = (vectors[:queries] @ vectors[queries:].T for vectors in (found, truth))
    rhos = per_query_spearman(scores, expected)
    return {
        "spearman_mean": float(rhos.mean()),
        "spearman_min": float(rhos.min()),
        "top_overlap": float(top_overlap(scores, expected, min(TOP, expected.shape[1])).mean()),
        "max_abs_difference": float(np.abs(found - truth[:, : found.shape[1]]).max()),
        "queries": queries,
        "rows": len(truth) - queries,
    }


def measure_slices(truth: NDArray[np.float32]) -> dict[str, Any]:
    """Return what the first half, quarter, ... of an embedding's numbers say of its rankings, while at least 32 are left."""
    dims, dim = [], truth.shape[1] // 2
    while dim >= MIN_SLICE:
        dims.append(dim)
        dim //= 2
    found = {dim: compare_rankings(first_numbers(truth, dim), truth) for dim in dims}
    return {str(dim): {name: each[name] for name in ("spearman_mean", "top_overlap")} for dim, each in found.items()}


def accept(folder: Path, variant: str, parity: dict[str, Any], minimum_spearman: float, minimum_overlap: float) -> None:
    """Write into what `compare_rankings` found whether it is good enough.

    Raises:
        RunError: when it is not.
    """
    parity |= {"minimum_spearman": minimum_spearman, "minimum_overlap": minimum_overlap}
    parity["accepted"] = bool(parity["spearman_mean"] >= minimum_spearman and parity["top_overlap"] >= minimum_overlap)
    if not parity["accepted"]:
        overlap = (
            f", overlap of the first {TOP} {parity['top_overlap']:.3f}, expected at least {minimum_overlap}" if minimum_overlap else ""
        )
        raise RunError(
            f"{folder}: the ONNX graph in {variant} ranks otherwise than torch: mean per-query Spearman {parity['spearman_mean']:.6f}, "
            f"expected at least {minimum_spearman}{overlap}; the export was thrown away; "
            f"{'report the architecture' if variant == 'fp32' else 'leave it out of --variants'}"
        )
