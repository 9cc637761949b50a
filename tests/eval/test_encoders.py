from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from eval import encoders
from eval.encoders import Embedder, encoder_scores, query_blind_scores
from eval.judged import Judged
from tests.eval.fake_runs import TEXT, Runs, make_rows

TRAIN, TEST = make_rows(60, "train", seed=3), make_rows(20, "test", seed=4)
JUDGED = Judged(rows=TEST, num_queries=5, task_queries=make_rows(3, "query", seed=5), positive=np.arange(20) < 4)


@pytest.fixture(scope="module")
def encoder(finished_runs: Runs) -> Path:
    return finished_runs.folder / "student" / "encoder"


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder(TEXT, "cpu")


def test_scores_are_cosines_of_rendered_rows(embedder: Embedder, encoder: Path) -> None:
    scores = encoder_scores(embedder, encoder, JUDGED)
    rows, queries = embedder.embed(encoder, TEST), embedder.embed(encoder, JUDGED.task_queries)
    texts = [f"Prompt: {row.prompt}\nResponse: {row.response}" for row in TEST]
    np.testing.assert_allclose(rows, SentenceTransformer(str(encoder), device="cpu").encode(texts), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    assert scores.fidelity is not None and scores.task is not None
    np.testing.assert_allclose(scores.fidelity, rows[:5] @ rows[5:].T, atol=1e-6)
    np.testing.assert_allclose(scores.task, queries @ rows.T, atol=1e-6)


def test_a_text_is_embedded_once_a_folder(encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embedder = Embedder(TEXT, "cpu")
    first = embedder.embed(encoder, TEST)
    monkeypatch.setattr(encoders, "SentenceTransformer", None)  # any further use of it fails
    np.testing.assert_array_equal(embedder.embed(encoder, TEST[::-1]), first[::-1])


def test_query_blind_learns_what_a_row_says_by_itself(embedder: Embedder, encoder: Path) -> None:
    def bias(rows: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        return np.asarray(rows[:, 0] - 2 * rows[:, 3] + 0.1 * np.log1p(lengths), dtype=np.float32)

    train, test = (embedder.embed(encoder, rows) for rows in (TRAIN, TEST))
    train_lengths, lengths = (np.array([len(row.response) for row in rows]) for rows in (TRAIN, TEST))
    scores = query_blind_scores(embedder, encoder, JUDGED, TRAIN, lambda: bias(train, train_lengths))
    assert scores.fidelity is not None and scores.task is not None
    assert (scores.fidelity == scores.fidelity[0]).all(), "every query gets the same scores"
    assert np.corrcoef(scores.task[0], bias(test, lengths))[0, 1] > 0.99
