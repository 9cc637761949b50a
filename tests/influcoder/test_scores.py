from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from influcoder.errors import RunError
from influcoder.scores import Scores, load_scores, save_scores

SCORES = Scores(
    values=np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32),
    query_ids=("q1", "q2"),
    row_ids=("a", "b", "c"),
    method="influcoder",
    seed=5,
    decoder_fingerprint="def",
)


def refusal(folder: Path) -> str:
    with pytest.raises(RunError) as caught:
        load_scores(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_scores_come_back_as_they_were(tmp_path: Path) -> None:
    save_scores(tmp_path / "scores", SCORES)
    found = load_scores(tmp_path / "scores")
    np.testing.assert_array_equal(found.values, SCORES.values)
    assert found.values.dtype == np.float32
    assert replace(found, values=SCORES.values) == SCORES


def test_scores_of_the_same_rows_pass() -> None:
    SCORES.check_ids(["q1", "q2"], ["a", "b", "c"], "runs/teacher/scores")


@pytest.mark.parametrize(
    ("queries", "rows", "words"),
    [
        (["q1", "q2"], ["a", "c", "b"], r"row 2 is 'b', expected 'c' \(3 against 3 ids\)"),
        (["q1", "q2"], ["a", "b"], r"row 3 is 'c', expected None \(3 against 2 ids\)"),
        (["q1", "q2"], ["a", "b", "c", "d"], r"row 4 is None, expected 'd' \(3 against 4 ids\)"),
        (["q2", "q1"], ["a", "b", "c"], r"query 1 is 'q1', expected 'q2' \(2 against 2 ids\)"),
    ],
)
def test_scores_of_other_rows_are_refused(queries: list[str], rows: list[str], words: str) -> None:
    with pytest.raises(RunError, match=f"runs/teacher/scores: scores belong to other rows: {words}; use the scores of the same data"):
        SCORES.check_ids(queries, rows, "runs/teacher/scores")


def test_shape_and_ids_must_agree(tmp_path: Path) -> None:
    message = r"scores: shape \(3, 2\), expected \(2, 3\) from the id lists; they belong to other rows"
    with pytest.raises(RunError, match=message):
        replace(SCORES, values=SCORES.values.T)
    save_scores(tmp_path, SCORES)
    np.save(tmp_path / "scores.npy", SCORES.values.T, allow_pickle=False)
    with pytest.raises(RunError, match=message):
        load_scores(tmp_path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_no_number_is_named(value: float) -> None:
    values = SCORES.values.copy()
    values[1, 2] = value
    with pytest.raises(RunError, match="scores: not finite for query 'q2', row 'c'; expected numbers"):
        replace(SCORES, values=values)


@pytest.mark.parametrize("name", ["scores.npy", "scores.json"])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "binary"])
def test_broken_files_are_refused(name: str, damage: str, tmp_path: Path) -> None:
    save_scores(tmp_path, SCORES)
    path = tmp_path / name
    whole = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"empty": b"", "cut": whole[:-3], "binary": b"\xff\xfe\x80"}[damage])
    assert refusal(tmp_path).startswith(f"{tmp_path}: not readable scores")


def test_pickled_arrays_are_refused(tmp_path: Path) -> None:
    save_scores(tmp_path, SCORES)
    np.save(tmp_path / "scores.npy", np.array([[{"a": 1}]], dtype=object), allow_pickle=True)
    assert refusal(tmp_path).startswith(f"{tmp_path}: not readable scores")


def test_select_takes_queries_and_rows_in_the_order_asked() -> None:
    np.testing.assert_array_equal(SCORES.select(["q2"], ["c", "a"]), SCORES.values[[1]][:, [2, 0]])
