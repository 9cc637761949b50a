"""Floors that know no gradients: words in common, length, chance, and what the decoder's forward pass tells."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import bm25s
import numpy as np
from numpy.typing import NDArray

from eval.judged import Judged
from eval.methods import Cost, MethodScores, ask, ask_blindly, unit
from influcoder.examples import Example
from influcoder.influence.decoder import Decoder
from influcoder.influence.representations import hidden_states, losses
from influcoder.influence.tokens import tokenize

WORD = r"(?u)\b\w+\b"
"""bm25s would drop words of one letter, hence digits"""
MAX_BATCH_TOKENS = 4096
RANDOM_DRAWS = 5
Value = TypeVar("Value")


def bm25_scores(judged: Judged, *, response_only: bool = False) -> MethodScores:
    """Score by BM25 of prompt and response, or of responses alone; document frequencies from the judged rows, no stop words taken out."""
    ranker = bm25s.BM25()
    _, seconds = _timed(lambda: ranker.index(_words(judged.rows, response_only), show_progress=False))
    queries = [*(judged.rows[place] for place in judged.fidelity_queries), *judged.task_queries]
    size = sum(ranker.scores[name].nbytes for name in ("data", "indices", "indptr"))
    return MethodScores(
        asked=_bm25_matrix(ranker, _words(queries, response_only), len(judged.rows))[None],
        cost=Cost(seconds_per_1000=1000 * seconds / len(judged.rows), bytes_per_row=size / len(judged.rows)),
    )


def length_scores(judged: Judged) -> MethodScores:
    """Score by the number of characters of the response."""
    values = judged.lengths.astype(np.float64)
    return MethodScores(asked=ask_blindly(judged, values), own=values[None], cost=Cost(seconds_per_1000=0.0, bytes_per_row=8.0))


def random_scores(judged: Judged, seed: int) -> MethodScores:
    """Score by chance, anew for each pair; several draws, since one may be lucky."""
    draw = np.random.default_rng([seed, 1])  # apart from the draw that chose the queries
    return MethodScores(
        asked=draw.standard_normal((RANDOM_DRAWS, judged.num_asking, len(judged.rows)), np.float32),
        own=draw.standard_normal((RANDOM_DRAWS, len(judged.rows))),
        cost=Cost(seconds_per_1000=0.0, bytes_per_row=0.0),
    )


def decoder_scores(load: Callable[[], Decoder], judged: Judged) -> dict[str, MethodScores]:
    """Score by what one forward pass of the decoder tells of a row.

    rep_sim, rep_sim_mean: cosine of last-layer states, at the last token and as their mean. loss: the row's own mean loss on
    its response; a row that is hard to predict stands high.
    """
    decoder = load()
    tokens = tokenize([*judged.rows, *judged.task_queries], decoder)
    hidden_states(decoder, tokens[:1], MAX_BATCH_TOKENS)
    (last, mean), seconds = _timed(lambda: hidden_states(decoder, tokens, MAX_BATCH_TOKENS))
    per_1000, count = 1000 * seconds / len(tokens), len(judged.rows)
    found = {}
    for name, states in (("rep_sim", last), ("rep_sim_mean", mean)):
        rows, queries = np.split(unit(states.numpy()), [count])
        cost = Cost(seconds_per_1000=per_1000, bytes_per_row=4.0 * rows.shape[1])
        found[name] = MethodScores(asked=ask(judged, rows, queries), cost=cost)
    values, seconds = _timed(lambda: losses(decoder, tokens[:count], MAX_BATCH_TOKENS).numpy().astype(np.float64))
    cost = Cost(seconds_per_1000=1000 * seconds / count, bytes_per_row=4.0)
    return found | {"loss": MethodScores(asked=ask_blindly(judged, values), own=values[None], cost=cost)}


def _timed(work: Callable[[], Value]) -> tuple[Value, float]:
    started = time.perf_counter()
    result = work()
    return result, time.perf_counter() - started


def _words(rows: Sequence[Example], response_only: bool) -> list[list[str]]:
    texts = [row.response if response_only else f"{row.prompt}\n{row.response}" for row in rows]
    words: list[list[str]] = bm25s.tokenize(texts, token_pattern=WORD, stopwords=None, return_ids=False, show_progress=False)
    return words


def _bm25_matrix(ranker: Any, queries: Sequence[Sequence[str]], num_rows: int) -> NDArray[np.float32]:
    scores = np.zeros((len(queries), num_rows), np.float32)
    for place, words in enumerate(queries):
        known = [word for word in words if word in ranker.vocab_dict]
        if known:  # bm25s refuses an empty query; no word in common is a score of 0 everywhere
            scores[place] = ranker.get_scores(known)
    return scores
