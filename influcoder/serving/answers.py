"""Answer several questions with one pass over an index.

Q queries of all questions, B rows of a block. A question is one request's queries: each has extreme rows of its own, and together
they rank the rows by `aggregation.py`, block by block, so that no score of a row that is not extreme is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from influcoder.aggregation import aggregate
from influcoder.calibration import MuScale
from influcoder.embed_batch import embed_rows
from influcoder.examples import Example
from influcoder.index import Index
from influcoder.index_search import score_blocks
from influcoder.onnx_encoder import OnnxEncoder
from influcoder.serving.occlusion import Highlight, Occlusion, occlude
from influcoder.top_k import Side, TopK

Extremes = tuple[NDArray[np.float32], NDArray[np.int64]]
"""scores and positions in the index, the most extreme first"""


@dataclass(frozen=True, kw_only=True)
class Question:
    """One request."""

    queries: tuple[Example, ...]
    """at least one"""
    k: int
    """rows at an end, at least 1"""
    sides: tuple[Side, ...]
    """which ends"""

    @property
    def size(self) -> int:
        """Texts to embed."""
        return len(self.queries)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Rows by side; each row is a mapping of rank, id, score, contributor, and mu with its interval where the encoder says it."""

    queries: list[dict[Side, list[dict[str, Any]]]]
    """of each query"""
    ranking: dict[Side, list[dict[str, Any]]]
    """of all queries together; a score of several queries has no mu"""


@dataclass(frozen=True, kw_only=True)
class Attributor:
    """An encoder and the index that it made."""

    encoder: OnnxEncoder
    index: Index
    mu_scale: MuScale | None
    """what a score says of mu; None when the encoder does not know"""
    top: int | None
    """see `aggregation.aggregate`"""

    def work(self, asked: Sequence[Question | Occlusion]) -> list[Answer | list[Highlight]]:
        """Answer questions and occlusions, those of a kind together, in the order of all.

        Raises:
            RunError: when a shard cannot be read, or an embedding is not finite.
        """
        questions = [each for each in asked if isinstance(each, Question)]
        occlusions = [each for each in asked if isinstance(each, Occlusion)]
        answers = iter(self.answer(questions) if questions else [])
        highlights = iter(occlude(self.encoder, occlusions) if occlusions else [])
        return [next(answers) if isinstance(each, Question) else next(highlights) for each in asked]

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        """Answer questions in their order.

        Raises:
            RunError: when a shard cannot be read, or an embedding is not finite.
        """
        vectors, _ = embed_rows(self.encoder, [query for question in questions for query in question.queries])
        found = search_questions(self.index, vectors, questions, self.top)
        positions = [rows for parts in found for sides in parts for _, rows in sides.values()]
        names = _Names(self.index.look_up(np.concatenate(positions)))
        return [
            Answer(
                queries=[{side: names.rows(scores, self.mu_scale) for side, (scores, _) in sides.items()} for sides in parts[:-1]],
                ranking={side: names.rows(scores, None) for side, (scores, _) in parts[-1].items()},
            )
            for parts in found
        ]


def search_questions(
    index: Index, vectors: NDArray[np.float32], questions: Sequence[Question], top: int | None
) -> list[list[dict[Side, Extremes]]]:
    """Return of each question the extremes of each query, and last those of all its queries together.

    Args:
        index: to search.
        vectors: `(Q, D)` unit embeddings of the queries of all questions, in order.
        questions: at least one.
        top: see `aggregation.aggregate`.

    Raises:
        RunError: when a shard cannot be read.
    """
    k = max(question.k for question in questions)
    each: dict[Side, TopK] = {"top": TopK(len(vectors), k), "bottom": TopK(len(vectors), k, "bottom")}
    places = list(_places(questions))
    weights = [np.array([query.weight for query in question.queries]) for question in questions]
    together: list[dict[Side, TopK]] = [{side: TopK(1, question.k, side) for side in question.sides} for question in questions]
    for shard in index.shards():
        for scores in score_blocks(shard, vectors):
            for best in each.values():
                best.add(scores)
            for place, weight, both in zip(places, weights, together, strict=True):
                if len(weight) > 1:
                    total = aggregate(scores[place], weight, top).astype(np.float32)[None]
                    for best in both.values():
                        best.add(total)
    kept: dict[Side, Extremes] = {side: (best.scores, best.rows) for side, best in each.items()}
    found = []
    for question, place, both in zip(questions, places, together, strict=True):
        parts = [{side: _cut(kept[side], query, question.k) for side in question.sides} for query in range(place.start, place.stop)]
        alone = len(question.queries) == 1
        ranking = {
            side: _of_one(kept, place.start, question, side) if alone else (best.scores[0], best.rows[0]) for side, best in both.items()
        }
        found.append([*parts, ranking])
    return found


def _places(questions: Sequence[Question]) -> Iterator[slice]:
    start = 0
    for question in questions:
        yield slice(start, start + len(question.queries))
        start += len(question.queries)


def _of_one(kept: dict[Side, Extremes], query: int, question: Question, side: Side) -> Extremes:
    """Return the ranking by one query, which is the query's own, upside down where it is to be looked away from."""
    if question.queries[0].weight > 0:
        return _cut(kept[side], query, question.k)
    scores, rows = _cut(kept["bottom" if side == "top" else "top"], query, question.k)
    return -scores, rows


def _cut(extremes: Extremes, query: int, k: int) -> Extremes:
    scores, rows = extremes
    return scores[query, :k], rows[query, :k]


class _Names:
    """Hands out ids and contributors in the order in which they were looked up."""

    def __init__(self, table: pa.Table) -> None:
        self._ids, self._contributors = table["id"].to_pylist(), table["contributor"].to_pylist()
        self._next = 0

    def rows(self, scores: NDArray[np.float32], mu_scale: MuScale | None) -> list[dict[str, Any]]:
        doubt = {} if mu_scale is None else {name: values.tolist() for name, values in mu_scale.intervals(scores).items()}
        found = [
            {"rank": place + 1, "id": self._ids[self._next + place], "score": score, "contributor": self._contributors[self._next + place]}
            | {name: values[place] for name, values in doubt.items()}
            for place, score in enumerate(scores.tolist())
        ]
        self._next += len(scores)
        return found
