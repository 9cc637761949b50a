"""Methods that embed rows with an encoder: the students, the untrained encoder, and the query-blind control."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from eval.judged import Judged
from eval.methods import MethodScores, from_row_values, from_vectors
from influcoder.examples import Example
from influcoder.influence.decoder import resolve_device
from influcoder.text_format import TextFormat, render

RIDGE_PENALTIES = np.logspace(-2, 4, 13)


class Embedder:
    """Embeds rows with sentence-transformers folders; a row that one folder has embedded is not embedded again."""

    def __init__(self, text_format: TextFormat, device: str) -> None:
        self.text_format, self.device = text_format, str(resolve_device(device))
        self.known: dict[tuple[Path, str], NDArray[np.float32]] = {}

    def embed(self, folder: Path, rows: Sequence[Example]) -> NDArray[np.float32]:
        """Return `(N, D)` vectors of length 1."""
        texts = [render(row, self.text_format) for row in rows]
        new = list(dict.fromkeys(text for text in texts if (folder, text) not in self.known))
        if new:
            model = SentenceTransformer(str(folder), device=self.device)
            vectors = model.encode(new, normalize_embeddings=True, show_progress_bar=False)
            self.known.update(((folder, text), vector) for text, vector in zip(new, vectors, strict=True))
        return np.stack([self.known[folder, text] for text in texts])


def encoder_scores(embedder: Embedder, folder: Path, judged: Judged) -> MethodScores:
    """Score by the dot product of the folder's embeddings."""
    vectors = embedder.embed(folder, [*judged.rows, *judged.task_queries])
    rows, queries = np.split(vectors, [len(judged.rows)])
    return from_vectors(judged, rows, queries if judged.task_queries else None)


def query_blind_scores(
    embedder: Embedder, folder: Path, judged: Judged, train: Sequence[Example], mean_target: Callable[[], NDArray[np.float32]]
) -> MethodScores:
    """Predict a row's mean influence from the row alone: what fidelity is worth without looking at the query.

    Ridge regression from the student's embedding and the log length, fitted on the distillation's training rows.

    Args:
        embedder: makes the embeddings.
        folder: the student's encoder.
        judged: rows to score.
        train: the distillation's training rows.
        mean_target: gives each training row's mean score over training queries.
    """
    ridge = make_pipeline(StandardScaler(), RidgeCV(alphas=RIDGE_PENALTIES))
    ridge.fit(_row_features(embedder, folder, train), mean_target())
    return from_row_values(judged, ridge.predict(_row_features(embedder, folder, judged.rows)))


def _row_features(embedder: Embedder, folder: Path, rows: Sequence[Example]) -> NDArray[np.float64]:
    log_lengths = np.log1p([len(row.response) for row in rows])
    return np.column_stack([embedder.embed(folder, rows).astype(np.float64), log_lengths])
