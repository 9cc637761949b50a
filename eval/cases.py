"""`cases.json`: queries on which the student agrees with its teacher most and least, with both rankings' first rows; and ranks to draw.

    {"schema_version": 1,
     "cases": [{"query_id", "fold", "agreement": "most" | "least", "spearman", "candidates", "prompt", "response",
                "teacher": [row, ...], "student": [row, ...]}, ...],
     "ranks": {"teacher": [...], "student": [...], "teacher_second_seed": [...] or null}}

A row is {"row_id", "teacher_rank", "student_rank", "prompt", "response", "positive": [names of tasks that want it found]}; rank 1 is best,
ties keep the row order, texts are cut. `ranks` are of the same pairs of a query and a candidate, drawn at random, as shares of the
candidates: 0 best, below 1. All is of the first seed, each query within its fold.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.judged import Judged
from eval.methods import Array
from influcoder.examples import Example
from influcoder.metrics import per_query_spearman

SCHEMA_VERSION = 1
CASES, ROWS, PAIRS = 3, 5, 600
"""queries of either kind, rows of either ranking, pairs to draw"""
MAX_CHARS = 400

Blocks = Sequence[Array]
"""by fold (Q, C) scores"""


def make_cases(judged: Judged, teacher: Blocks, student: Blocks, second: Blocks | None, seed: int) -> dict[str, Any]:
    """Return the content of `cases.json`.

    Args:
        judged: folds, rows, tasks.
        teacher: scores of the first seed.
        student: of its first seed.
        second: of the teacher's second seed; None without one.
        seed: of the choice of pairs.
    """
    rhos = [per_query_spearman(mine, theirs) for mine, theirs in zip(student, teacher, strict=True)]
    places = [(number, query) for number, found in enumerate(rhos) for query in range(len(found))]
    ordered = sorted(places, key=lambda place: -rhos[place[0]][place[1]])
    count = min(CASES, len(ordered) // 2)
    chosen = [("most", place) for place in ordered[:count]] + [("least", place) for place in ordered[::-1][:count]]
    return {
        "schema_version": SCHEMA_VERSION,
        "cases": [
            _case(judged, number, query, teacher[number][query], student[number][query])
            | {"agreement": agreement, "spearman": float(rhos[number][query])}
            for agreement, (number, query) in chosen
        ],
        "ranks": _ranks({"teacher": teacher, "student": student, "teacher_second_seed": second}, seed),
    }


def ranks_of(scores: Array) -> NDArray[np.int64]:
    """Return the rank of each score along the last axis, 1 for the highest; ties keep the order."""
    return np.argsort(np.argsort(-scores, axis=-1, kind="stable"), axis=-1) + 1


def cut(text: str) -> str:
    """Return the beginning of a text, a mark where it goes on."""
    return text if len(text) <= MAX_CHARS else f"{text[:MAX_CHARS]}…"


def _case(judged: Judged, number: int, query: int, teacher: Array, student: Array) -> dict[str, Any]:
    fold = judged.folds[number]
    asking = judged.rows[fold.queries[query]]
    ranks = ranks_of(np.stack([teacher, student]))

    def row(place: int) -> dict[str, Any]:
        judged_place = int(fold.candidates[place])
        example = judged.rows[judged_place]
        positive = [name for name, task in judged.tasks.items() if task.positive[judged_place]]
        mine = {"row_id": example.id, "teacher_rank": int(ranks[0, place]), "student_rank": int(ranks[1, place]), "positive": positive}
        return mine | _texts(example)

    tops = [[row(int(place)) for place in np.argsort(found)[:ROWS]] for found in ranks]
    facts = {"query_id": asking.id, "fold": number, "candidates": len(fold.candidates), **_texts(asking)}
    return facts | {"teacher": tops[0], "student": tops[1]}


def _texts(example: Example) -> dict[str, str]:
    return {"prompt": cut(example.prompt), "response": cut(example.response)}


def _ranks(methods: dict[str, Blocks | None], seed: int) -> dict[str, list[float] | None]:
    """Return ranks of the same pairs by method, the folds in proportion to their pairs."""
    random = np.random.default_rng([seed, 1])
    teacher = methods["teacher"] or ()
    sizes = np.array([block.size for block in teacher])
    found: dict[str, list[float] | None] = {name: None if blocks is None else [] for name, blocks in methods.items()}
    for number, share in enumerate(sizes / sizes.sum()):
        pairs = random.choice(sizes[number], min(sizes[number], round(PAIRS * share)), replace=False)
        for name, blocks in methods.items():
            if blocks is not None:
                ranks = ranks_of(blocks[number])
                shares = (ranks - 1) / ranks.shape[1]
                found[name] = [*(found[name] or ()), *(round(float(value), 4) for value in shares.ravel()[pairs])]
    return found
