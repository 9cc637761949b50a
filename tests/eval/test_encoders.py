from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from eval import encoders
from eval.data import StudentRun
from eval.encoders import Embedder, encoder_scores, query_blind_scores, student_scores
from eval.judged import Fold, Judged
from eval.students import Student
from influcoder.examples import Example
from influcoder.text_format import save_text_format
from tests.eval.fake_runs import FOLDS, SEEDS, TEXT, make_rows

TRAIN, TEST = make_rows(60, "train", seed=3), make_rows(20, "test", seed=4)
QUERIES = make_rows(3, "query", seed=5)
ONE_FOLD = (Fold(queries=np.arange(5), candidates=np.arange(5, 20)),)
TWO_FOLDS = (
    Fold(queries=np.array([1, 8]), candidates=np.array([0, 2, 5, 9, 11, 19])),
    Fold(queries=np.array([3, 4, 18]), candidates=np.array([6, 7, 10, 12, 13, 14, 15, 16, 17])),
)
JUDGED = Judged(rows=TEST, folds=ONE_FOLD, task_queries=QUERIES)
IN_FOLDS = Judged(rows=TEST, folds=TWO_FOLDS, task_queries=QUERIES)


@pytest.fixture(scope="module")
def encoder(student: Student) -> Path:
    return student.first[0].folder / "encoder"


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder("cpu")


def test_scores_are_cosines_of_rendered_rows(embedder: Embedder, encoder: Path) -> None:
    scores = encoder_scores(embedder, encoder, JUDGED)
    rows, queries = embedder.embed(encoder, TEST), embedder.embed(encoder, QUERIES)
    texts = [f"Prompt: {row.prompt}\nResponse: {row.response}" for row in TEST]
    np.testing.assert_allclose(rows, SentenceTransformer(str(encoder), device="cpu").encode(texts), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    assert scores.asked.shape == (1, 8, 20)
    np.testing.assert_allclose(scores.asked[0], np.concatenate([rows[:5], queries]) @ rows.T, atol=1e-6)
    assert scores.own is None and scores.cost is not None and scores.cost.bytes_per_row == 4 * 8


def test_a_text_is_embedded_and_timed_once_a_folder(encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embedder = Embedder("cpu")
    first = embedder.embed(encoder, [*TEST, *TEST[:4]])
    cost = embedder.cost(8)
    assert embedder.count == 20 and cost.seconds_per_1000 == pytest.approx(1000 * embedder.seconds / 20)
    monkeypatch.setattr(encoders, "load_sentence_encoder", None)  # any further use of it fails
    np.testing.assert_array_equal(embedder.embed(encoder, TEST[::-1]), first[:20][::-1])
    assert embedder.cost(8) == cost


def test_a_folder_renders_rows_with_its_own_markers(embedder: Embedder, encoder: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(encoder, tmp_path / "encoder"))
    save_text_format(other, replace(TEXT, prompt_marker="bark ", separator=" dun ", response_marker="kitt ", end_marker=" lox"))
    texts = [f"bark {row.prompt} dun kitt {row.response} lox" for row in TEST]
    found = embedder.embed(other, TEST)
    np.testing.assert_allclose(found, SentenceTransformer(str(encoder), device="cpu").encode(texts), atol=1e-5)
    assert np.abs(found - embedder.embed(encoder, TEST)).max() > 0.01


def test_a_student_of_one_split_scores_as_its_encoder_does(embedder: Embedder, student: Student, encoder: Path) -> None:
    scores = student_scores(embedder, student, JUDGED, 7.0)
    np.testing.assert_allclose(scores.asked, encoder_scores(embedder, encoder, JUDGED).asked, atol=1e-6)
    assert scores.folds is None and scores.cost is not None and scores.cost.setup_seconds == 7.0


def test_rows_of_a_fold_are_scored_by_the_encoder_of_that_fold_and_seed_alone(embedder: Embedder, fitted_across: Student) -> None:
    scores = student_scores(embedder, fitted_across, IN_FOLDS, 0.0)
    assert scores.asked.shape == (SEEDS, 5 + 3, 20) and scores.folds is None
    expected = np.full(scores.asked.shape, np.nan)
    asking = ([0, 1], [2, 3, 4])  # the first fold's queries, then the second's
    for seed in range(SEEDS):
        for number, fold in enumerate(TWO_FOLDS):
            model = SentenceTransformer(str(fitted_across.runs[seed][number].folder / "encoder"), device="cpu")
            encoded = model.encode([f"Prompt: {row.prompt}\nResponse: {row.response}" for row in [*TEST, *QUERIES]])
            for row in (*fold.queries, *fold.candidates):
                for asker, query in zip(asking[number], fold.queries, strict=True):
                    expected[seed, asker, row] = encoded[query] @ encoded[row]
                expected[seed, 5:, row] = encoded[20:] @ encoded[row]
    np.testing.assert_allclose(scores.asked, expected, atol=1e-5)  # NaN where a fold's queries meet the other's rows
    assert np.isnan(scores.asked).sum() == SEEDS * (2 * 12 + 3 * 8)


def test_a_student_of_the_first_fold_is_asked_about_no_other(embedder: Embedder, fitted_across: Student) -> None:
    first = Student(runs=tuple(seed[:1] for seed in fitted_across.runs))
    scores = student_scores(embedder, first, IN_FOLDS, 0.0)
    whole = student_scores(embedder, fitted_across, IN_FOLDS, 0.0).asked
    assert scores.folds == (0,)
    rows = TWO_FOLDS[0].rows
    np.testing.assert_array_equal(scores.asked[:, :, rows], whole[:, :, rows])
    assert np.isnan(np.delete(scores.asked, rows, axis=2)).all()


def test_query_blind_learns_what_a_row_says_by_itself(embedder: Embedder, student: Student, encoder: Path) -> None:
    def bias(rows: np.ndarray, examples: tuple[Example, ...]) -> np.ndarray:
        log_lengths = np.log1p([len(row.response) for row in examples])
        return np.asarray(rows[:, 0] - 2 * rows[:, 3] + 0.1 * log_lengths, dtype=np.float32)

    train, test = (bias(embedder.embed(encoder, rows), rows) for rows in (TRAIN, TEST))
    scores = query_blind_scores(embedder, student, JUDGED, lambda run: (TRAIN, train))
    assert (scores.asked == scores.asked[0, 0]).all(), "every query gets the same scores"
    assert scores.asked.shape == (1, 8, 20)
    assert np.corrcoef(scores.asked[0, 0], test)[0, 1] > 0.99


def test_query_blind_is_fitted_for_each_fold_on_its_own_runs_rows(embedder: Embedder, fitted_across: Student) -> None:
    def train(run: StudentRun) -> tuple[tuple[Example, ...], np.ndarray]:
        return TRAIN, np.full(len(TRAIN), 10.0 * (1 + run.record["fold"]), np.float32)

    scores = query_blind_scores(embedder, fitted_across, IN_FOLDS, train)
    for number, fold in enumerate(TWO_FOLDS):
        np.testing.assert_allclose(scores.asked[0][:, fold.rows], 10.0 * (1 + number), rtol=1e-6)
    assert len(TWO_FOLDS) == FOLDS
