"""Which words carry a score, by leaving them out: the encoder is asked again without them, and the score's change is theirs.

What this shows is the encoder's view, which needs no torch, and not the teacher's: `influence/ekfac_scores.py` has scores by token for who has
the decoder. A change is the score less the score without the words: above 0, they push the row toward the query.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from influcoder.examples import Example
from influcoder.onnx_encoder import OnnxEncoder
from influcoder.text_format import render, truncate

WORD = re.compile(r"\S+\s*")
"""with the blanks after it"""


@dataclass(frozen=True, kw_only=True)
class Occlusion:
    """One request: a row, and queries that it is scored by."""

    row: Example
    """cut to the encoder's budgets"""
    queries: tuple[Example, ...]
    """at least one"""
    spans: int
    """parts that the row's response is cut into at most, and the queries' responses together"""

    @property
    def size(self) -> int:
        """Texts to embed, at most."""
        return 1 + len(self.queries) + self.spans + max(self.spans, len(self.queries))


@dataclass(frozen=True, kw_only=True)
class Span:
    """A part of a response."""

    text: str
    change: float
    """the score less the score without it"""


@dataclass(frozen=True, kw_only=True)
class Highlight:
    """A query's score for the row, and what of either response carries it; the spans of a side make up what the encoder read of it."""

    score: float
    row: list[Span]
    query: list[Span]


def cut_into_spans(text: str, limit: int) -> list[str]:
    """Return at most `limit` consecutive parts of like many whole words, which together are `text`."""
    ends = [match.end() for match in WORD.finditer(text)]
    each = -(-len(ends) // limit) if ends else 1
    cuts = [0, *ends[each - 1 : -1 : each], len(text)]
    return [text[start:end] for start, end in pairwise(cuts)]


def occlude(encoder: OnnxEncoder, asked: Sequence[Occlusion]) -> list[list[Highlight]]:
    """Return the highlights of each query of each request, all texts embedded together.

    Raises:
        RunError: when the graph returns numbers that are not finite.
    """
    sides = [_sides(encoder, each) for each in asked]
    vectors = encoder.encode([text for parts in sides for side in parts for text in side.texts])
    found, start = [], 0
    for row, *queries in sides:
        rows = vectors[start : start + len(row.texts)]
        start += len(row.texts)
        highlights = []
        for query in queries:
            own = vectors[start : start + len(query.texts)]
            start += len(query.texts)
            score = float(rows[0] @ own[0])
            highlights.append(Highlight(score=score, row=_changes(row, score, rows @ own[0]), query=_changes(query, score, own @ rows[0])))
        found.append(highlights)
    return found


@dataclass(frozen=True)
class _Side:
    spans: list[str]
    texts: list[str]
    """the whole, then without each span"""


def _sides(encoder: OnnxEncoder, asked: Occlusion) -> list[_Side]:
    limit = max(1, asked.spans // len(asked.queries))
    queries = [truncate(query, encoder.text_format) for query in asked.queries]
    return [_side(encoder, asked.row, asked.spans), *(_side(encoder, query, limit) for query in queries)]


def _side(encoder: OnnxEncoder, example: Example, limit: int) -> _Side:
    uncut = replace(
        encoder.text_format, max_prompt_chars=sys.maxsize, max_response_chars=sys.maxsize
    )  # it was cut: what is left out brings in nothing
    spans = cut_into_spans(example.response, limit)
    responses = [example.response, *("".join(spans[:place] + spans[place + 1 :]) for place in range(len(spans)))]
    return _Side(spans, [render(replace(example, response=response), uncut) for response in responses])


def _changes(side: _Side, score: float, scores: NDArray[np.float32]) -> list[Span]:
    return [Span(text=text, change=score - float(without)) for text, without in zip(side.spans, scores[1:], strict=True)]
