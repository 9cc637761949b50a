"""A commitment to rows: salted leaves under one root, as in RFC 9162 (Certificate Transparency), section 2.1.1.

A leaf and an inner node are hashed under different prefixes, so that neither passes for the other. Each row has a salt of its own,
derived from the report's secret: who has the leaves alone cannot find a row by guessing its text, and showing one row with its salt
tells nothing of the others.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from influcoder.contributions.canonical_json import canonical_bytes, plain_decimal
from influcoder.examples import Example


def row_leaf(example: Example, secret: bytes) -> bytes:
    """Return the 32-byte leaf of a row or query: everything of it that counts, under its own salt."""
    salt = hmac.digest(secret, example.id.encode(), "sha256")
    turns = [[turn.role, turn.content] for turn in example.context]
    content = canonical_bytes([example.id, example.contributor, turns, example.response, plain_decimal(example.weight)])
    return hashlib.sha256(b"\0" + salt + content).digest()


def merkle_root(leaves: Sequence[bytes]) -> bytes:
    """Return the 32-byte root of at least one leaf: the left subtree holds the largest power of two below their number.

    Raises:
        ValueError: without leaves.
    """
    if not leaves:
        raise ValueError("no leaves; expected at least one")
    level = list(leaves)
    while len(level) > 1:  # pairing neighbours and lifting an odd last node gives the tree of the RFC
        paired = [hashlib.sha256(b"\1" + left + right).digest() for left, right in zip(level[::2], level[1::2], strict=False)]
        level = paired + level[len(paired) * 2 :]
    return level[0]
