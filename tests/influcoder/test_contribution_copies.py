"""Copies by canonical text and near-copies: what is merged, what is not, and how often either goes wrong."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from influcoder.contributions.copies import alike, canonical_text, clusters, copies, near_pairs, torn
from influcoder.contributions.values import ValueSettings
from influcoder.examples import Example, Turn

WORDS = [
    f"{head}{tail}" for head in ("ba", "do", "ki", "lu", "me", "na", "po", "ru", "sa", "ti") for tail in ("lan", "mor", "ret", "sun", "vik")
]
ROW = Example(id="r", context=(Turn(role="user", content="Name a Sea."),), response="The North Sea, of course.")


@pytest.mark.parametrize(
    "response",
    [
        "the  north\tsea,\nof COURSE. ",
        "\uff34\uff48\uff45 North Sea, of course.",  # full-width letters
        "The No\u200brth Sea,\u00a0of\u00ad course.",  # a zero-width space, a no-break space, a soft hyphen
        "The North Sea, of cour\u017fe.",  # a long s
    ],
)
def test_disguised_copies_have_one_canonical_text(response: str) -> None:
    assert canonical_text(replace(ROW, response=response)) == canonical_text(ROW)
    whole = Example(id="w", context=(), response=f"Name a sea. {response}")
    assert canonical_text(whole) == canonical_text(ROW), "where the prompt ends does not make another text"


@pytest.mark.parametrize("response", ["The North Sea of course.", "The South Sea, of course.", "TheNorth Sea, of course."])
def test_other_words_are_another_text(response: str) -> None:
    assert canonical_text(replace(ROW, response=response)) != canonical_text(ROW)


def test_canonical_text_is_stable() -> None:
    for text in ("Straße ﬁn Å ϓ İ", "e\u0301 É", "① ㎏ ½"):
        once = canonical_text(Example(id="a", context=(), response=text))
        assert canonical_text(Example(id="a", context=(), response=once)) == once


def test_copies_name_their_first_row() -> None:
    assert copies(["a", "b", "a", "c", "b"]) == [0, 1, 0, 3, 1]
    assert clusters(["a", "b", "a", "c", "b"], [(3, 1)]).tolist() == [0, 1, 0, 1, 1]


def test_near_copies_need_words_and_embedding() -> None:
    pytest.importorskip("datasketch")
    text = " ".join(WORDS[:40])
    texts = [text, text, text.replace("kiret", "changed"), " ".join(WORDS[10:50])]
    pairs = near_pairs(texts, 0.7)
    assert pairs == [(2, 0)], "an exact copy stands for itself"
    vectors = np.array([[1, 0], [1, 0], [0.8, 0.6], [1, 0]], np.float32)
    assert alike(pairs, vectors, 0.75) == pairs and alike(pairs, vectors, 0.85) == []
    assert clusters(texts, pairs).tolist() == [0, 0, 0, 3]


def test_torn_rows_are_named() -> None:
    fine, coarse = np.array([0, 0, 2, 3]), np.array([0, 0, 2, 2])
    assert torn(fine, coarse).tolist() == [] and torn(coarse, fine).tolist() == [3]


def test_rates_of_false_merges_and_false_splits() -> None:
    """Rows with a long template in common, and copies with some words replaced; the embedding is that of the answer's words."""
    pytest.importorskip("datasketch")
    source, count = random.Random(0), 150
    template = [f"word{place}" for place in range(45)]
    answers = [source.choices(WORDS, k=source.choice([12, 30, 60])) for _ in range(count)]
    rates = {}
    for changed in (0.02, 0.05, 0.1, 0.2):
        near = [[source.choice(WORDS) if source.random() < changed else word for word in words] for words in answers]
        texts, vectors = [" ".join([*template, *words]) for words in [*answers, *near]], embeddings([*answers, *near])
        for jaccard in (0.5, 0.7, 0.9):
            pairs = near_pairs(texts, jaccard)
            for cosine in (-1.0, 0.9):
                found = clusters(texts, alike(pairs, vectors, cosine))
                split = sum(found[count + row] != found[row] for row in range(count)) / count
                merged = sum(len({int(row) % count for row in np.flatnonzero(found == head)}) > 1 for head in found) / (2 * count)
                rates[changed, jaccard, cosine] = (split, merged)
    default = ValueSettings()
    jaccard, cosine = default.near_duplicate_jaccard or 0, default.near_duplicate_cosine
    assert rates[0.02, jaccard, cosine][0] < 0.05 and rates[0.05, jaccard, cosine][0] < 0.15, "a word or two changed is found"
    assert rates[0.05, 0.5, cosine][0] < rates[0.05, 0.9, cosine][0], "a higher threshold misses more"
    assert rates[0.2, 0.9, cosine][0] > 0.9, "a paraphrase is not found"
    assert all(rates[changed, 0.5, -1.0][1] > 0.3 for changed in (0.02, 0.2)), "a template alone would merge strangers"
    assert all(rates[changed, jaccard, cosine][1] == 0 for changed in (0.02, 0.05, 0.1, 0.2)), "the embedding keeps them apart"


def embeddings(texts: list[list[str]]) -> NDArray[np.float32]:
    vectors = np.zeros((len(texts), len(WORDS)), np.float32)
    for row, words in enumerate(texts):
        for word in words:
            vectors[row, WORDS.index(word)] += 1
    unit: NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit
