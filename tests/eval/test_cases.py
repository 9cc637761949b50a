from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import spearmanr

from eval.cases import CASES, PAIRS, ROWS, cut, make_cases, ranks_of
from eval.judged import Fold, Judged
from eval.tasks import Task
from influcoder.examples import Example, Turn

FOLDS, QUERIES, CANDIDATES = 2, 5, 30


@pytest.fixture(scope="module")
def judged() -> Judged:
    """Two folds, each row after the other; every seventh row is poisoned."""
    size = QUERIES + CANDIDATES
    rows = [
        Example(id=f"row{place}", context=(Turn(role="user", content=f"ask {place}"),), response=f"say {place}" + "x" * 500 * (place == 0))
        for place in range(FOLDS * size)
    ]
    folds = tuple(
        Fold(queries=np.arange(size * fold, size * fold + QUERIES), candidates=np.arange(size * fold + QUERIES, size * (fold + 1)))
        for fold in range(FOLDS)
    )
    everyone = np.ones(len(rows), bool)
    poison = Task(
        kind="detection",
        queries=np.arange(0),
        weights=np.ones(0),
        candidates=everyone,
        positive=np.arange(len(rows)) % 7 == 0,
        linked=np.zeros((0, len(rows)), bool),
    )
    return Judged(rows=rows, folds=folds, tasks={"poison": poison})


def blocks(seed: int, noise: float = 0.0) -> list[NDArray[np.float64]]:
    base, other = np.random.default_rng(0), np.random.default_rng(seed)
    shape = (QUERIES, CANDIDATES)
    return [base.normal(size=shape) + noise * np.arange(1, QUERIES + 1)[:, None] * other.normal(size=shape) for _ in range(FOLDS)]


def rank_by_hand(scores: Sequence[float], place: int) -> int:
    return 1 + sum(score > scores[place] or (score == scores[place] and other < place) for other, score in enumerate(scores))


def test_ranks_begin_at_one_and_ties_keep_the_order() -> None:
    scores = np.array([[0.2, 0.5, 0.5, -1.0, 0.2]])
    assert ranks_of(scores).tolist() == [[3, 1, 2, 5, 4]]
    assert [rank_by_hand(scores[0].tolist(), place) for place in range(5)] == [3, 1, 2, 5, 4]


def test_cases_are_the_queries_of_most_and_of_least_agreement(judged: Judged) -> None:
    teacher, student = blocks(1), blocks(2, noise=0.4)
    content = make_cases(judged, teacher, student, None, seed=0)
    rhos = {
        judged.rows[fold.queries[query]].id: spearmanr(student[number][query], teacher[number][query]).statistic
        for number, fold in enumerate(judged.folds)
        for query in range(QUERIES)
    }
    ordered = sorted(rhos, key=lambda name: -rhos[name])
    found = {kind: [case for case in content["cases"] if case["agreement"] == kind] for kind in ("most", "least")}
    assert [case["query_id"] for case in found["most"]] == ordered[:CASES]
    assert [case["query_id"] for case in found["least"]] == ordered[::-1][:CASES]
    for case in content["cases"]:
        assert case["spearman"] == pytest.approx(rhos[case["query_id"]]) and case["candidates"] == CANDIDATES
    json.dumps(content, allow_nan=False)


def test_rows_carry_their_ranks_by_both_and_their_tasks(judged: Judged) -> None:
    teacher, student = blocks(1), blocks(2, noise=0.4)
    for case in make_cases(judged, teacher, student, None, seed=0)["cases"]:
        fold = judged.folds[case["fold"]]
        (query,) = [place for place, row in enumerate(fold.queries) if judged.rows[row].id == case["query_id"]]
        scores = {"teacher": teacher[case["fold"]][query].tolist(), "student": student[case["fold"]][query].tolist()}
        for ranker in ("teacher", "student"):
            assert [row[f"{ranker}_rank"] for row in case[ranker]] == list(range(1, ROWS + 1))
            for row in case[ranker]:
                (place,) = [place for place, number in enumerate(fold.candidates) if judged.rows[number].id == row["row_id"]]
                for name, found in scores.items():
                    assert row[f"{name}_rank"] == rank_by_hand(found, place)
                number = int(row["row_id"].removeprefix("row"))
                assert row["positive"] == ["poison"] * (number % 7 == 0)
                assert (row["prompt"], row["response"]) == (f"ask {number}", f"say {number}")


def test_few_queries_are_not_shown_twice(judged: Judged) -> None:
    few = Judged(rows=judged.rows, folds=(Fold(queries=np.arange(3), candidates=np.arange(3, 20)),), tasks=judged.tasks)
    scores = [np.random.default_rng(0).normal(size=(3, 17))]
    cases = make_cases(few, scores, scores, None, seed=0)["cases"]
    assert len(cases) == len({case["query_id"] for case in cases}) == 2


def test_ranks_to_draw_are_of_the_same_pairs(judged: Judged) -> None:
    teacher = blocks(1)
    ranks = make_cases(judged, teacher, teacher, [-block for block in teacher], seed=0)["ranks"]
    assert len(ranks["teacher"]) == min(PAIRS, FOLDS * QUERIES * CANDIDATES)
    assert ranks["student"] == ranks["teacher"], "the same scores have the same ranks"
    assert np.add(ranks["teacher"], ranks["teacher_second_seed"]) == pytest.approx((CANDIDATES - 1) / CANDIDATES, abs=2e-4), "turned round"
    assert min(ranks["teacher"]) == 0 and max(ranks["teacher"]) == pytest.approx(1 - 1 / CANDIDATES, abs=1e-4)
    assert make_cases(judged, teacher, teacher, None, seed=0)["ranks"]["teacher_second_seed"] is None
    assert make_cases(judged, teacher, teacher, None, seed=0)["ranks"]["teacher"] == ranks["teacher"]


def test_long_texts_are_cut() -> None:
    assert cut("a" * 400) == "a" * 400 and cut("a" * 401) == "a" * 400 + "…"
