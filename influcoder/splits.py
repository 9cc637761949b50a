"""The distillation split: train, validation and test by near-duplicate group.

The split hashes the *group*, so that a row and its near-copy never stand on two sides. It binds the student and its
judges, not the decoder. Groups are connected components of pairs whose word 3-shingles overlap (Jaccard >= threshold);
`datasketch` proposes pairs by MinHash LSH, the exact Jaccard decides.

With `folds` the test part is one of K folds of groups: K students, one a fold, score every row out of its fold.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from influcoder.errors import ConfigError, require

Part = Literal["train", "validation", "test"]
SHINGLE_WORDS = 3
NUM_PERMUTATIONS = 64


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """How the rows are split."""

    validation: float = 0.1
    """share of groups for early stopping; with `folds`, of the groups that are not test"""
    test: float = 0.25
    """share of groups that only eval sees; unused with `folds`, but positive all the same"""
    folds: int | None = None
    """cross-fitting: the near-duplicate groups fall into so many folds, and `fold` is the test part instead of `test`;
    one student a fold, and every row is scored by a student that did not train on it; null: one split by `test`"""
    fold: int = 0
    """which fold is the test part, from 0"""
    near_duplicate_jaccard: float = 0.7
    """rows whose word 3-shingles overlap at least so much share a side, 0 to 1"""
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.validation > 0 and self.test > 0 and self.validation + self.test < 1):
            raise ConfigError(f"split: validation {self.validation} and test {self.test}; expected positive shares with a sum below 1")
        if not 0 < self.near_duplicate_jaccard <= 1:
            raise ConfigError(f"split: near_duplicate_jaccard {self.near_duplicate_jaccard}; expected a number in (0, 1]")
        if self.folds is not None and self.folds < 2:
            raise ConfigError(f"split: folds {self.folds}; expected at least 2; give null for one split by `test`")
        if not 0 <= self.fold < (self.folds or 1):
            among = f"0 to {self.folds - 1}" if self.folds else "0, as folds is null; give `folds` for cross-fitting"
            raise ConfigError(f"split: fold {self.fold}; expected {among}")


def shingles(text: str) -> frozenset[str]:
    """Return the lower-cased word 3-shingles of a text; shorter texts are one shingle."""
    words = text.lower().split()
    return frozenset(" ".join(words[i : i + SHINGLE_WORDS]) for i in range(max(1, len(words) - SHINGLE_WORDS + 1)))


def near_duplicate_groups(texts: Sequence[str], threshold: float) -> list[int]:
    """Return one group number a text, the same for near-copies: the position of the group's first text."""
    return connected(len(texts), near_duplicate_pairs(texts, threshold))


def near_duplicate_pairs(texts: Sequence[str], threshold: float, extra: str = "train") -> Iterator[tuple[int, int]]:
    """Yield the positions of every pair that MinHash proposes and whose Jaccard overlap is at least `threshold`, the later text first.

    Raises:
        MissingExtraError: naming `extra`, when datasketch is not installed.
    """
    datasketch = require("datasketch", extra)
    sets = [shingles(text) for text in texts]
    lsh = datasketch.MinHashLSH(threshold=max(0.1, threshold - 0.15), num_perm=NUM_PERMUTATIONS)
    hashes = datasketch.MinHash.bulk([[shingle.encode() for shingle in sorted(found)] for found in sets], num_perm=NUM_PERMUTATIONS, seed=1)
    for row, minhash in enumerate(hashes):
        for other in lsh.query(minhash):
            if _jaccard(sets[row], sets[other]) >= threshold:
                yield row, other
        lsh.insert(row, minhash)


def connected(count: int, pairs: Iterable[tuple[int, int]]) -> list[int]:
    """Return the connected component of each of `count` positions, named by its first position."""
    leader = list(range(count))

    def find(row: int) -> int:
        while leader[row] != row:
            leader[row] = leader[leader[row]]
            row = leader[row]
        return row

    for pair in pairs:
        first, second = sorted(map(find, pair))
        leader[second] = first
    return [find(row) for row in range(count)]


def assign_split(texts: Sequence[str], config: SplitConfig) -> list[Part]:
    """Return the side of each text: a hash of (seed, least text of its group), so that row order does not matter."""
    groups = near_duplicate_groups(texts, config.near_duplicate_jaccard)
    least: dict[int, str] = {}
    for group, text in zip(groups, texts, strict=True):
        least[group] = min(least.get(group, text), text)
    return [_side(least[group], config) for group in groups]


def _jaccard(first: frozenset[str], second: frozenset[str]) -> float:
    return len(first & second) / len(first | second)


def _side(key: str, config: SplitConfig) -> Part:
    digest = hashlib.sha256(f"{config.seed}\0{key}".encode()).digest()
    head = int.from_bytes(digest[:8], "big")
    if config.folds is not None:
        if head * config.folds >> 64 == config.fold:  # floor(place * folds) in integers: a place rounded up to 1 would have no fold
            return "test"
        # other bits of the digest, as `head` within the other folds is no longer uniform; they do not depend on the fold
        return "validation" if int.from_bytes(digest[8:16], "big") / 2**64 < config.validation else "train"
    place = head / 2**64
    if place < config.test:
        return "test"
    return "validation" if place < config.test + config.validation else "train"
