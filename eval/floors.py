"""Floors that know neither encoder nor gradients: words in common, length, chance, the decoder's hidden states."""

from __future__ import annotations

from collections.abc import Sequence

import bm25s
import numpy as np
from numpy.typing import NDArray

from eval.judged import Judged
from eval.methods import MethodScores, from_row_values, from_vectors, unit
from influcoder.examples import Example
from influcoder.influence.decoder import Decoder, DecoderConfig, load_decoder
from influcoder.influence.representations import hidden_states
from influcoder.influence.tokens import tokenize

WORD = r"(?u)\b\w+\b"
"""bm25s would drop words of one letter, hence digits"""
MAX_BATCH_TOKENS = 4096


def bm25_scores(judged: Judged) -> MethodScores:
    """Score by BM25 of prompt and response, document frequencies from the test rows, no stop words taken out."""
    ranker = bm25s.BM25()
    ranker.index(_words(judged.rows), show_progress=False)
    fidelity = _bm25_matrix(ranker, judged.queries, len(judged.rows))[:, judged.num_queries :]
    task = _bm25_matrix(ranker, judged.task_queries, len(judged.rows)) if judged.task_queries else None
    return MethodScores(fidelity=fidelity, task=task)


def length_scores(judged: Judged) -> MethodScores:
    """Score by the number of characters of the response."""
    return from_row_values(judged, np.array([len(row.response) for row in judged.rows], dtype=np.float64))


def random_scores(judged: Judged, seed: int) -> MethodScores:
    """Score by chance, anew for each pair."""
    draw = np.random.default_rng([seed, 1])  # apart from the draw that chose the queries
    return MethodScores(
        fidelity=draw.standard_normal((judged.num_queries, len(judged.candidates))),
        task=draw.standard_normal((len(judged.task_queries), len(judged.rows))) if judged.task_queries else None,
    )


def rep_sim_scores(config: DecoderConfig, judged: Judged) -> dict[str, MethodScores]:
    """Score by the cosine of the decoder's last-layer states: at the last token, and as their mean."""
    decoder = load_decoder(config, judged.rows, seed=0)
    rows = _representations(decoder, judged.rows)
    queries = _representations(decoder, judged.task_queries) if judged.task_queries else (None, None)
    return {"rep_sim": from_vectors(judged, rows[0], queries[0]), "rep_sim_mean": from_vectors(judged, rows[1], queries[1])}


def _representations(decoder: Decoder, rows: Sequence[Example]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    last, mean = hidden_states(decoder, tokenize(rows, decoder), MAX_BATCH_TOKENS)
    return unit(last.numpy()), unit(mean.numpy())


def _words(rows: Sequence[Example]) -> list[list[str]]:
    texts = [f"{row.prompt}\n{row.response}" for row in rows]
    words: list[list[str]] = bm25s.tokenize(texts, token_pattern=WORD, stopwords=None, return_ids=False, show_progress=False)
    return words


def _bm25_matrix(ranker: bm25s.BM25, queries: Sequence[Example], num_rows: int) -> NDArray[np.float32]:
    scores = np.zeros((len(queries), num_rows), np.float32)
    for place, words in enumerate(_words(queries)):
        known = [word for word in words if word in ranker.vocab_dict]
        if known:  # bm25s refuses an empty query; no word in common is a score of 0 everywhere
            scores[place] = ranker.get_scores(known)
    return scores
