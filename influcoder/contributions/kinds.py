"""Which kinds of data are worth most: k-means clusters of the rows' embeddings, with their mean value and telling words.

A description, not a promise: the mean of what is there says which way to look for more, first order, and not how much the next row adds.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import log

import numpy as np
from numpy.typing import NDArray

from influcoder.contributions.values import Ints
from influcoder.errors import require

WORDS_SHOWN = 6
LEAST_ROWS = 3
"""a word of fewer rows says more of a row than of a kind"""


@dataclass(frozen=True)
class Kind:
    """Rows that are alike."""

    rows: int
    """clusters of copies, each counted once"""
    mean: int
    """value of one, in billionths"""
    positive_share: float
    """of them, 0 to 1"""
    words: tuple[str, ...]
    """that stand in more of its rows than of others, the most telling first"""


def find_kinds(vectors: NDArray[np.float32], texts: Sequence[str], values: Ints, count: int) -> list[Kind]:
    """Return at most `count` kinds, the most valuable first.

    Args:
        vectors: (rows, dim), one row a cluster of copies.
        texts: (rows,), canonical.
        values: (rows,), of the clusters, in billionths.
        count: kinds to look for.

    Raises:
        MissingExtraError: when scikit-learn is not installed.
    """
    means = require("sklearn.cluster", "contributions").KMeans(
        n_clusters=min(count, len(np.unique(vectors, axis=0))), n_init=3, random_state=0
    )
    labels = means.fit_predict(vectors)
    words = [set(re.findall(r"[^\W\d_]{3,}", text)) for text in texts]
    everywhere = Counter(word for found in words for word in found)
    kinds = []
    for label in np.unique(labels):
        places = np.flatnonzero(labels == label)
        kinds.append(
            Kind(
                rows=len(places),
                mean=int(values[places].sum()) // len(places),
                positive_share=float((values[places] > 0).mean()),
                words=_telling([words[place] for place in places], everywhere, len(texts)),
            )
        )
    return sorted(kinds, key=lambda kind: -kind.mean)


def _telling(words: Sequence[set[str]], everywhere: Counter[str], rows: int) -> tuple[str, ...]:
    here = Counter(word for found in words for word in found)
    # the word's part of the Kullback-Leibler divergence: often here, seldom elsewhere
    weight = {
        word: found / len(words) * log(found / len(words) / (everywhere[word] / rows))
        for word, found in here.items()
        if found >= LEAST_ROWS
    }
    telling = sorted((word for word in weight if weight[word] > 0), key=lambda word: (-weight[word], word))
    return tuple(telling[:WORDS_SHOWN])
