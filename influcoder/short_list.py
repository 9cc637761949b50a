"""The short-list of an attribution: rows that the student put first or last for some query, their texts, and how they are ranked anew.

Q queries, N rows a query, S different rows, R rows of a piece. Every query ranks all rows of the list: what one query brings is scored for
the others at no further cost, and holds many of their best rows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from influcoder.errors import RunError
from influcoder.examples import Example
from influcoder.pool import PoolRow, shard_fingerprint
from influcoder.top_k import Side

Places = NDArray[np.int64]
Scores = NDArray[np.float32]


@dataclass(frozen=True)
class Ranked:
    """Rows of each query on one side, the most extreme first."""

    rows: Places
    """(Q, N) positions in the pool, usable rows counted"""
    scores: Scores
    """(Q, N) that they are ranked by"""
    student_scores: Scores | None = None
    """(Q, N) of the student; None where the scores are its own"""


def pick_rows(shards: Iterable[Sequence[PoolRow]], records: Sequence[Mapping[str, Any]], rows: Places) -> list[Example]:
    """Return the rows at these ascending positions out of a pool that is read once more; no more than they and a shard are held.

    Args:
        shards: of the pool, as the job made them.
        records: their commit records.
        rows: (S,) positions.

    Raises:
        RunError: when the pool is no longer what the shards were made of.
    """
    found: list[Example] = []
    first = 0
    for shard, record in zip(shards, records, strict=False):
        here, first = rows[(rows >= first) & (rows < first + record["rows"])] - first, first + record["rows"]
        if len(here):
            if shard_fingerprint(shard) != record["fingerprint"]:
                break
            usable = [row.example for row in shard if isinstance(row.example, Example)]
            found += [usable[place] for place in here]
        if len(found) == len(rows):
            return found
    raise RunError(
        f"pool: other rows than when it was ranked ({len(found)} of {len(rows)} rows of the short-list found again); expected it to stay as "
        "it is until the run is complete; bring it back, and run the same command again"
    )


def plan_pieces(shards: Sequence[int | None], new_rows: int) -> list[tuple[int | None, Places]]:
    """Return the pieces in which a short-list is scored: the teacher run's shard that holds their features, None where none does, and places.

    Args:
        shards: (S,) of the teacher run, of each row.
        new_rows: rows a piece of those that it does not hold.
    """
    by_shard: dict[int, list[int]] = defaultdict(list)
    for place, shard in enumerate(shards):
        if shard is not None:
            by_shard[shard].append(place)
    new = [place for place, shard in enumerate(shards) if shard is None]
    pieces: list[tuple[int | None, list[int]]] = [*sorted(by_shard.items())]
    pieces += [(None, new[start : start + new_rows]) for start in range(0, len(new), new_rows)]
    return [(shard, np.array(places, np.int64)) for shard, places in pieces]


def best_of(parts: Sequence[Ranked], k: int, side: Side) -> Ranked:
    """Return the `k` rows of each query by their scores, finite, over all parts; ties keep the row order."""
    rows, scores, of_student = (
        np.concatenate([getattr(part, name) for part in parts], axis=1) for name in ("rows", "scores", "student_scores")
    )
    order = np.lexsort((rows, -scores if side == "top" else scores))[:, :k]
    return Ranked(*(np.take_along_axis(values, order, axis=1) for values in (rows, scores, of_student)))
