"""What a method of ranking gives: one score matrix a question. Larger = the row helps the query more.

Q fidelity queries, C candidates, T task queries, N = Q + C test rows, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from eval.judged import Judged

Array = NDArray[np.floating]
Role = Literal["ceiling", "teacher", "student", "reference", "floor"]


@dataclass(frozen=True, kw_only=True)
class MethodScores:
    """A method's answers."""

    fidelity: Array | None
    """(Q, C); None for the method that the others are measured against"""
    task: Array | None
    """(T, N); None without a task"""


@dataclass(frozen=True, kw_only=True)
class MethodGroup:
    """Methods that share their computation, hence their time."""

    name: str
    """for the progress bar"""
    role: Role
    compute: Callable[[], dict[str, MethodScores]]
    """method name -> scores"""


def from_vectors(judged: Judged, rows: Array, task_queries: Array | None) -> MethodScores:
    """Score by dot product: rows `(N, D)`, task queries `(T, D)` or None."""
    return MethodScores(
        fidelity=rows[: judged.num_queries] @ rows[judged.num_queries :].T,
        task=None if task_queries is None else task_queries @ rows.T,
    )


def from_row_values(judged: Judged, values: Array) -> MethodScores:
    """Give every query the same score of a row: values `(N,)`."""
    candidates = values[judged.num_queries :]
    return MethodScores(
        fidelity=np.broadcast_to(candidates, (judged.num_queries, len(candidates))),
        task=np.broadcast_to(values, (len(judged.task_queries), len(values))) if judged.task_queries else None,
    )


def unit(vectors: Array) -> NDArray[np.float32]:
    """Scale each row of `(N, D)` to length 1; a zero row stays zero."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    result: NDArray[np.float32] = (vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32)
    return result
