"""Features that a teacher run holds of its own rows, found by content: a row with the same text has the same gradient, whatever its id.

Legend: R rows, D coordinates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from influcoder.examples import Example, content_hash, load_examples
from influcoder.features import Manifest, at_length, load_shard, read_manifest

Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class RunFeatures:
    """The row features of a run's first seed."""

    store: Path
    manifest: Manifest
    rows: Sequence[Example]
    """in feature order"""
    places: dict[str, int]
    """content hash -> where it stands, the first of equal ones"""

    def shard_of(self, row: Example) -> int | None:
        """Return the shard that holds a truncated row's features; None when the run has never seen it."""
        place = self.places.get(content_hash(row.context, row.response))
        return None if place is None else place // self.manifest.shard_rows

    def vectors(self, shard: int, rows: Sequence[Example]) -> Vectors:
        """Return what is asked, (R, D), of rows that `shard_of` finds in this shard.

        Raises:
            RunError: when the shard is missing or corrupt.
        """
        unit, norms = load_shard(self.store, self.manifest, shard)
        here = [self.places[content_hash(row.context, row.response)] - shard * self.manifest.shard_rows for row in rows]
        return at_length(unit[here].astype(np.float32), norms[here], self.manifest.normalise, asking=False)


def load_run_features(run: Path, seed: int) -> RunFeatures:
    """Open a teacher run's row features of one seed.

    Raises:
        RunError: when its rows or the store's manifest are missing or unreadable.
    """
    store, rows = run / "features" / f"seed-{seed}" / "rows", load_examples(run / "rows.parquet")
    places = {content_hash(row.context, row.response): place for place, row in reversed(list(enumerate(rows)))}
    return RunFeatures(store, read_manifest(store), rows, places)
