"""Contributors as results of a Vana proof of contribution (docs.vana.org, data validation; `results.json` of vana-satya-proof-template).

Influence speaks of quality, the clusters of copies of uniqueness. Whether the data are authentic and whose they are it cannot say: both are
0 here, and `assessed` says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from influcoder.contributions.ledger import Line
from influcoder.contributions.values import Clusters, Ints

WEI = 10**18


def vana_proofs(
    lines: Sequence[Line], contributors: Ints, clusters: Clusters, dlp_id: int, metadata: dict[str, str]
) -> list[dict[str, Any]]:
    """Return one result a contributor, the score relative to the best one's lower bound.

    Args:
        lines: the ledger.
        contributors: (rows,), places in `lines`.
        clusters: which rows are the same data.
        dlp_id: the data liquidity pool's number.
        metadata: goes on chain with every result; no row.
    """
    best = max((line.low for line in lines), default=0)
    uniqueness = np.bincount(contributors, 1 / clusters.sizes[clusters.number]) / np.bincount(contributors)
    return [_proof(line, max(0, line.low), best, float(unique), dlp_id, metadata) for line, unique in zip(lines, uniqueness, strict=True)]


def _proof(line: Line, paid_for: int, best: int, uniqueness: float, dlp_id: int, metadata: dict[str, str]) -> dict[str, Any]:
    # a score of 0 reverts on chain: such a result is not valid and stays off it
    score = paid_for / best if paid_for else 0.0
    return {
        "dlp_id": dlp_id,
        "valid": paid_for > 0,
        "score": score,
        "score_integer": str(paid_for * WEI // best if paid_for else 0),
        "authenticity": 0.0,
        "ownership": 0.0,
        "quality": score,
        "uniqueness": uniqueness,
        "attributes": line.canonical() | {"assessed": ["quality", "uniqueness"]},
        "metadata": {"contributor": line.contributor, **metadata},
    }
