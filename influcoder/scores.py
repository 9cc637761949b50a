"""Dense influence scores: float32 `(queries, rows)` with the ids of both sides.

Sign, once for all: larger = training on the row lowers the query's loss more. Rank 1 is best; ties keep the row order.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from influcoder.errors import RunError
from influcoder.runs import write_text_atomic


@dataclass(frozen=True, kw_only=True)
class Scores:
    """A score matrix and whose it is."""

    values: NDArray[np.float32]
    """(queries, rows)"""
    query_ids: tuple[str, ...]
    row_ids: tuple[str, ...]
    method: str
    seed: int
    decoder_fingerprint: str

    def __post_init__(self) -> None:
        expected = (len(self.query_ids), len(self.row_ids))
        if self.values.shape != expected:
            raise RunError(f"scores: shape {self.values.shape}, expected {expected} from the id lists; they belong to other rows")
        if not np.isfinite(self.values).all():
            query, row = (int(index) for index in np.argwhere(~np.isfinite(self.values))[0])
            raise RunError(f"scores: not finite for query {self.query_ids[query]!r}, row {self.row_ids[row]!r}; expected numbers")

    def select(self, query_ids: Sequence[str], row_ids: Sequence[str]) -> NDArray[np.float32]:
        """Return the scores of these queries and rows, in that order; every id must be here."""
        queries = {query_id: place for place, query_id in enumerate(self.query_ids)}
        rows = {row_id: place for place, row_id in enumerate(self.row_ids)}
        return self.values[np.ix_([queries[query_id] for query_id in query_ids], [rows[row_id] for row_id in row_ids])]

    def check_ids(self, query_ids: Sequence[str], row_ids: Sequence[str], where: str) -> None:
        """Refuse scores that belong to other queries or rows.

        Raises:
            RunError: naming the first id that differs and both counts.
        """
        for side, found, expected in (("query", self.query_ids, query_ids), ("row", self.row_ids, row_ids)):
            if list(found) != list(expected):
                pairs = enumerate(itertools.zip_longest(found, expected), 1)
                place, here, there = next((place, here, there) for place, (here, there) in pairs if here != there)
                raise RunError(
                    f"{where}: scores belong to other rows: {side} {place} is {here!r}, expected {there!r} "
                    f"({len(found)} against {len(expected)} ids); use the scores of the same data"
                )


def save_scores(folder: Path, scores: Scores) -> None:
    """Write `scores.npy` and `scores.json` into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "scores.npy", scores.values.astype(np.float32), allow_pickle=False)
    record = {key: value for key, value in asdict(scores).items() if key != "values"}
    write_text_atomic(folder / "scores.json", json.dumps(record) + "\n")


def load_scores(folder: Path) -> Scores:
    """Read what `save_scores` wrote.

    Raises:
        RunError: when a file is missing or unreadable, or shape and ids do not match.
    """
    try:
        record = json.loads((folder / "scores.json").read_text())
        values = np.load(folder / "scores.npy", allow_pickle=False)
        record |= {"query_ids": tuple(record["query_ids"]), "row_ids": tuple(record["row_ids"])}
        return Scores(values=values, **record)
    except RunError:
        raise
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{folder}: not readable scores ({error}); expected scores.npy and scores.json; run the teacher again") from error
