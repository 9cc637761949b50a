"""Which rows are the same data: copies by canonical text, near-copies by shared word triples and by embedding.

A cluster is worth what one of its rows is worth, so whoever copies rows makes no more value. Near-copies need both: a Jaccard overlap
of word 3-shingles (proposed by MinHash), and a cosine of their embeddings, since a long common template is no copy.
A paraphrase in other words is not found.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from influcoder.examples import Example
from influcoder.splits import connected, near_duplicate_pairs

Pair = tuple[int, int]


def canonical_text(example: Example) -> str:
    """Return a row's text with Unicode (NFKC), case and white space folded and invisible format characters gone; roles do not count."""
    text = " ".join([*(turn.content for turn in example.context), example.response])
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join("".join(letter for letter in folded if unicodedata.category(letter) != "Cf").split())


def copies(texts: Sequence[str]) -> list[int]:
    """Return for each text the position of the first one that equals it."""
    first: dict[str, int] = {}
    return [first.setdefault(text, place) for place, text in enumerate(texts)]


def near_pairs(texts: Sequence[str], jaccard: float) -> list[Pair]:
    """Return the positions of pairs of different texts whose overlap is at least `jaccard`, 0 to 1; equal ones stand for their first.

    Raises:
        MissingExtraError: when datasketch is not installed.
    """
    places = sorted(set(copies(texts)))
    pairs = near_duplicate_pairs([texts[place] for place in places], jaccard, "contributions")
    return [(places[first], places[second]) for first, second in pairs]


def alike(pairs: Iterable[Pair], vectors: NDArray[np.float32], cosine: float) -> list[Pair]:
    """Return those pairs whose unit `vectors`, (rows, dim), have an inner product of at least `cosine`."""
    return [(first, second) for first, second in pairs if float(vectors[first] @ vectors[second]) >= cosine]


def clusters(texts: Sequence[str], pairs: Iterable[Pair]) -> NDArray[np.int64]:
    """Return for each text the position of the first one of its cluster: copies and `pairs`, and what they connect."""
    same = copies(texts)
    merged = connected(len(texts), [*enumerate(same), *pairs])
    return np.array(merged, np.int64)


def torn(fine: NDArray[np.int64], coarse: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the rows that `coarse` does not keep with the first row of their cluster in `fine`; both name clusters by their first row."""
    return np.flatnonzero(coarse[fine] != coarse)
