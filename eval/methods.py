"""What a method of ranking gives: scores of every judged row for every query that asks. Larger = the row helps the query more.

S seeds (of students, of projections, of chance; 1 for all other methods), A queries that ask (fidelity queries first, then the task queries), N judged rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from eval.judged import Judged

Array = NDArray[np.floating]
Role = Literal["ceiling", "teacher", "student", "reference", "floor", "control"]


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a method asks for."""

    setup_seconds: float = 0.0
    """before the first row: gradients of the rows to distil and the distillation itself; loading a model is not counted"""
    seconds_per_1000: float
    """to score 1 000 rows, measured here"""
    bytes_per_row: float
    """of an index that answers any later query"""


@dataclass(frozen=True, kw_only=True)
class MethodScores:
    """A method's answers."""

    asked: Array
    """(S, A, N); NaN where a cross-fitted student is not asked: rows of a fold for fidelity queries of another"""
    own: Array | None = None
    """(S, N) influence of each row on itself, or what stands in for it; None for a method that has none"""
    cost: Cost | None = None
    folds: tuple[int, ...] | None = None
    """folds it was asked about; None: all"""

    def asked_folds(self, judged: Judged) -> tuple[int, ...]:
        """Return the numbers of the folds that it was asked about."""
        return tuple(range(len(judged.folds))) if self.folds is None else self.folds


@dataclass(frozen=True, kw_only=True)
class MethodGroup:
    """Methods that share their computation."""

    name: str
    """for the progress bar"""
    role: Role
    compute: Callable[[], dict[str, MethodScores]]
    """method name -> scores"""


def ask(judged: Judged, rows: Array, queries: Array) -> NDArray[np.float32]:
    """Score by dot product, `(1, A, N)`: rows `(N, D)`, task queries `(T, D)`."""
    asking = np.concatenate([rows[judged.fidelity_queries], queries]) if len(queries) else rows[judged.fidelity_queries]
    scores: NDArray[np.float32] = (asking @ rows.T)[None].astype(np.float32)
    return scores


def ask_blindly(judged: Judged, values: Array) -> Array:
    """Give every query the same score of a row, `(1, A, N)`: values `(N,)`."""
    return np.broadcast_to(values, (1, judged.num_asking, len(values)))


def unit(vectors: Array) -> NDArray[np.float32]:
    """Scale each row of `(N, D)` to length 1; a zero row stays zero."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    result: NDArray[np.float32] = (vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32)
    return result
