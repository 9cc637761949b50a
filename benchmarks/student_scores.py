"""Who gives which scores to the questions of `make bench-student`: floors, ceilings, students.

Q queries, N candidates.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bm25s
import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sklearn.linear_model import RidgeCV

from influcoder.examples import Example
from influcoder.features import load_row_vectors
from influcoder.influence.decoder import DecoderConfig, load_decoder
from influcoder.influence.representations import hidden_states
from influcoder.influence.tokens import tokenize
from influcoder.sentence_encoder import load_sentence_encoder
from influcoder.text_format import load_text_format, render
from student.coordinates import principal_coordinates, projected

Kernel = NDArray[np.float32]
Method = tuple[str, str, list[Kernel], dict[str, Any]]
"""name, role, (Q, N) scores by seed, facts"""
WIDTHS = (64, 384)


@dataclass(frozen=True)
class Question:
    """What is asked of every method."""

    examples: Sequence[Example]
    """the whole pool"""
    parts: NDArray[np.str_]
    """train, validation or test of each"""
    queries: list[int]
    """Q places"""
    rows: list[int]
    """N places"""
    truth: NDArray[np.float64]
    """(Q, N) exact cosines"""

    def kernel(self, vectors: NDArray[np.floating]) -> Kernel:
        """Return the products of vectors in the order of `queries + rows`."""
        found: Kernel = (vectors[: len(self.queries)] @ vectors[len(self.queries) :].T).astype(np.float32)
        return found

    @property
    def asked(self) -> list[Example]:
        """Queries, then candidates."""
        return [self.examples[place] for place in [*self.queries, *self.rows]]


def floors(question: Question, root: Path, data: Path, encoder: str) -> list[Method]:
    """Return BM25, hidden states, the untrained encoder, a query-blind ridge on it, and chance."""
    words = [
        bm25s.tokenize([f"{row.prompt}\n{row.response}" for row in question.asked], stopwords=None, return_ids=False, show_progress=False)
    ][0]
    ranker = bm25s.BM25()
    ranker.index(words[len(question.queries) :], show_progress=False)
    known = [[word for word in query if word in ranker.vocab_dict] for query in words[: len(question.queries)]]
    bm25 = np.stack([ranker.get_scores(query) if query else np.zeros(len(question.rows)) for query in known])
    decoder = load_decoder(DecoderConfig(path=str(data / "models" / "small-lm")), [], 0)
    states = hidden_states(decoder, tokenize(question.asked, decoder), 1024)[1].numpy()
    states /= np.linalg.norm(states, axis=1, keepdims=True)
    text_format = load_text_format(root / "teacher")
    untrained = SentenceTransformer(encoder, device="cpu")
    vectors = untrained.encode([render(row, text_format) for row in question.asked], normalize_embeddings=True, show_progress_bar=False)
    chance = np.random.default_rng(1).standard_normal(question.truth.shape).astype(np.float32)
    return [
        ("BM25", "floor", [bm25.astype(np.float32)], {}),
        ("hidden states, mean (RepSim)", "floor", [question.kernel(states)], {}),
        ("untrained MiniLM", "floor", [question.kernel(vectors)], {"bytes_per_row": 4 * vectors.shape[1]}),
        ("query-blind", "floor", [_query_blind(question, root, untrained)], {}),
        ("random", "floor", [chance], {}),
    ]


def _query_blind(question: Question, root: Path, encoder: SentenceTransformer) -> Kernel:
    """Predict each row's mean score from its text alone: ridge on the untrained embedding, fitted on training rows."""
    _, asking, features = load_row_vectors(root / "teacher" / "features" / "seed-0")
    train = np.flatnonzero(question.parts == "train")[:1000]
    level = features[train] @ asking[train].mean(0)
    text_format = load_text_format(root / "teacher")
    texts = [render(question.examples[place], text_format) for place in [*train, *question.rows]]
    vectors = encoder.encode(texts, normalize_embeddings=True, show_progress_bar=False)
    values = RidgeCV(np.logspace(-2, 3, 11)).fit(vectors[: len(train)], level).predict(vectors[len(train) :])
    return np.tile(values.astype(np.float32), (len(question.queries), 1))


def teacher_kernels(question: Question, teacher: Path, seeds: Sequence[int] = (0, 1)) -> list[Method]:
    """Return the projected teacher's seeds against the truth, and the best kernels of some ranks, fitted on training rows."""
    found: list[Method] = []
    for seed in seeds:
        _, asking, features = load_row_vectors(teacher / "features" / f"seed-{seed}")
        queries, rows = torch.from_numpy(asking[question.queries]), torch.from_numpy(features[question.rows])
        name = "teacher, second seed" if seed else "teacher, projected"
        found.append((name, "ceiling", [(queries @ rows.T).numpy()], {"bytes_per_row": 2 * features.shape[1]}))
        if seed == 0:
            axes = principal_coordinates(torch.from_numpy(features[question.parts != "test"]), max(WIDTHS)).axes
            for width in WIDTHS:
                kernel = projected(queries, axes[:, :width]) @ projected(rows, axes[:, :width]).T
                found.append((f"oracle of rank {width}", "oracle", [kernel.numpy()], {"bytes_per_row": 4 * width}))
    return found


def student_kernel(question: Question, run: Path) -> tuple[Kernel, dict[str, Any]]:
    """Return a student's scores and what it cost."""
    encoder, text_format = load_sentence_encoder(run / "encoder"), load_text_format(run / "encoder")
    texts = [render(row, text_format) for row in question.asked]
    vectors = encoder.encode(texts, normalize_embeddings=True, show_progress_bar=False, batch_size=32)
    record = json.loads((run / "run.json").read_text())
    facts = {"bytes_per_row": 4 * vectors.shape[1], "seconds": record["seconds"], "validation": record["validation"]["per_query_spearman"]}
    return question.kernel(vectors), facts
