from __future__ import annotations

import math

import numpy as np
import pytest

from eval.floors import bm25_scores, length_scores, random_scores
from eval.judged import Judged
from influcoder.examples import Example, Turn


def row(name: str, prompt: str, response: str) -> Example:
    return Example(id=name, context=(Turn(role="user", content=prompt),), response=response)


ROWS = (
    row("a", "What is the sum of 7 and 2?", "The sum is 9"),
    row("b", "Name a sea", "The North Sea"),
    row("c", "the the the", "a an the"),
    row("d", "Add 7 to 4", "It is 11"),
    row("e", "Zebra", "Stripes"),
)
JUDGED = Judged(
    rows=ROWS, num_queries=2, task_queries=(row("q", "the 7", "seven"), row("none", "Quux", "quuux")), positive=np.eye(5, dtype=bool)[0]
)


def lucene(query: list[str], document: list[str], corpus: list[list[str]]) -> float:
    """Return BM25 as Lucene defines it, one term at a time."""
    average, total = sum(map(len, corpus)) / len(corpus), 0.0
    for word in query:
        containing = sum(word in other for other in corpus)
        idf = math.log(1 + (len(corpus) - containing + 0.5) / (containing + 0.5))
        count = document.count(word)
        total += idf * count / (count + 1.5 * (1 - 0.75 + 0.75 * len(document) / average))
    return total


def test_bm25_equals_a_loop_over_words_with_stop_words_and_digits_kept() -> None:
    corpus = [f"{row.prompt} {row.response}".lower().replace("?", "").split() for row in ROWS]
    scores = bm25_scores(JUDGED)
    assert scores.task is not None and scores.fidelity is not None
    expected = [[lucene(["the", "7", "seven"], document, corpus) for document in corpus], [0.0] * 5]
    np.testing.assert_allclose(scores.task, expected, rtol=1e-5)
    np.testing.assert_allclose(scores.fidelity[0], [lucene(corpus[0], document, corpus) for document in corpus[2:]], rtol=1e-5)


def test_bm25_scores_every_row_those_without_a_common_word_by_zero() -> None:
    scores = bm25_scores(JUDGED)
    assert scores.fidelity is not None and scores.fidelity.shape == (2, 3)
    assert scores.fidelity[1, 2] == 0


def test_length_is_that_of_the_response_and_the_same_for_every_query() -> None:
    scores = length_scores(JUDGED)
    assert scores.fidelity is not None and scores.task is not None
    assert scores.fidelity.tolist() == [[8, 8, 7]] * 2
    assert scores.task.tolist() == [[12, 13, 8, 8, 7]] * 2


def test_random_is_seeded_and_differs_between_queries() -> None:
    first, again, other = (random_scores(JUDGED, seed) for seed in (0, 0, 1))
    assert first.fidelity is not None and again.fidelity is not None and other.fidelity is not None
    assert (first.fidelity == again.fidelity).all() and not (first.fidelity == other.fidelity).any()
    assert not (first.fidelity[0] == first.fidelity[1]).any()


@pytest.mark.parametrize("method", [bm25_scores, length_scores])
def test_without_a_task_there_are_no_task_scores(method: object) -> None:
    assert callable(method)
    assert method(Judged(rows=ROWS, num_queries=2)).task is None
