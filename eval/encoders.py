"""Methods that embed rows with an encoder: students, the untrained encoder, and the query-blind control."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from eval.data import StudentRun
from eval.judged import Judged
from eval.methods import Cost, MethodScores, ask, ask_blindly
from eval.students import Student
from influcoder.examples import Example
from influcoder.influence.decoder import resolve_device
from influcoder.sentence_encoder import load_sentence_encoder
from influcoder.text_format import load_text_format, render

RIDGE_PENALTIES = np.logspace(-2, 4, 13)
MOST_RIDGE_ROWS = 1000


class Embedder:
    """Embeds rows with sentence-transformers folders; a row that one folder has embedded is not embedded again."""

    def __init__(self, device: str) -> None:
        self.device = str(resolve_device(device))
        self.known: dict[tuple[Path, str], NDArray[np.float32]] = {}
        self.seconds, self.count = 0.0, 0

    def embed(self, folder: Path, rows: Sequence[Example]) -> NDArray[np.float32]:
        """Return `(N, D)` vectors of length 1."""
        text_format = load_text_format(folder)
        texts = [render(row, text_format) for row in rows]
        new = list(dict.fromkeys(text for text in texts if (folder, text) not in self.known))
        if new:
            model = load_sentence_encoder(folder, self.device)
            model.encode(new[:1], show_progress_bar=False)  # the first call sets up kernels: no part of the cost of a row
            started = time.perf_counter()
            vectors = model.encode(new, normalize_embeddings=True, show_progress_bar=False)
            self.seconds, self.count = self.seconds + time.perf_counter() - started, self.count + len(new)
            self.known.update(((folder, text), vector) for text, vector in zip(new, vectors, strict=True))
        return np.stack([self.known[folder, text] for text in texts])

    def cost(self, dimensions: int) -> Cost:
        """Return what all rows embedded so far have cost; embeddings kept in float32."""
        return Cost(seconds_per_1000=1000 * self.seconds / max(1, self.count), bytes_per_row=4.0 * dimensions)


def encoder_scores(embedder: Embedder, folder: Path, judged: Judged) -> MethodScores:
    """Score by the dot product of one folder's embeddings."""
    vectors = embedder.embed(folder, [*judged.rows, *judged.task_queries])
    rows, queries = np.split(vectors, [len(judged.rows)])
    return MethodScores(asked=ask(judged, rows, queries), cost=embedder.cost(rows.shape[1]))


def student_scores(embedder: Embedder, student: Student, judged: Judged, setup_seconds: float) -> MethodScores:
    """Score each fold's rows by the run that has not seen them, for every seed.

    Args:
        embedder: makes the embeddings.
        student: runs by seed and fold; folds beyond its own are not asked.
        judged: rows and queries.
        setup_seconds: gradients of the rows to distil, and the distillation.
    """
    asked = np.full((len(student.runs), judged.num_asking, len(judged.rows)), np.nan, np.float32)
    dimensions = 0
    for seed, runs in enumerate(student.runs):
        for number, (run, fold) in enumerate(zip(runs, judged.folds, strict=False)):
            folder = run.folder / "encoder"
            rows = embedder.embed(folder, [judged.rows[place] for place in fold.rows])
            block = asked[seed][:, fold.rows]
            block[judged.asking(number)] = rows[np.searchsorted(fold.rows, fold.queries)] @ rows.T
            if judged.task_queries:
                block[len(judged.fidelity_queries) :] = embedder.embed(folder, judged.task_queries) @ rows.T
            asked[seed][:, fold.rows] = block
            dimensions = rows.shape[1]
    cost = embedder.cost(dimensions)
    done = len(student.first)
    return MethodScores(
        asked=asked,
        cost=Cost(setup_seconds=setup_seconds, seconds_per_1000=cost.seconds_per_1000, bytes_per_row=cost.bytes_per_row),
        folds=None if done == len(judged.folds) else tuple(range(done)),
    )


def query_blind_scores(
    embedder: Embedder, student: Student, judged: Judged, train: Callable[[StudentRun], tuple[Sequence[Example], NDArray[np.float32]]]
) -> MethodScores:
    """Predict a row's mean influence from the row alone: what fidelity is worth without looking at the query.

    Ridge regression from the student's embedding and the log length, fitted on (at most 1 000 of) the distillation's training rows.

    Args:
        embedder: makes the embeddings.
        student: its first seed's encoders are used, each on its own fold.
        judged: rows to score.
        train: gives a run's training rows, and each one's mean score over training queries.
    """
    values = np.empty(len(judged.rows))
    for run, fold in zip(student.first, judged.folds, strict=True):
        rows, target = train(run)
        chosen = np.random.default_rng(0).permutation(len(rows))[:MOST_RIDGE_ROWS]
        ridge = make_pipeline(StandardScaler(), RidgeCV(alphas=RIDGE_PENALTIES))
        ridge.fit(_row_features(embedder, run, [rows[place] for place in chosen]), target[chosen])
        values[fold.rows] = ridge.predict(_row_features(embedder, run, [judged.rows[place] for place in fold.rows]))
    return MethodScores(asked=ask_blindly(judged, values), cost=Cost(seconds_per_1000=embedder.cost(1).seconds_per_1000, bytes_per_row=8.0))


def _row_features(embedder: Embedder, run: StudentRun, rows: Sequence[Example]) -> NDArray[np.float64]:
    log_lengths = np.log1p([len(row.response) for row in rows])
    return np.column_stack([embedder.embed(run.folder / "encoder", rows).astype(np.float64), log_lengths])
