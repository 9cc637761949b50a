"""One byte sequence for one content: the JSON that is hashed and signed.

Keys sorted by code point, no blanks, UTF-8, no floats: a float has several spellings, so numbers that are not whole are
decimal strings, and so are whole numbers that may be large.
"""

from __future__ import annotations

import hashlib
import json
from decimal import Decimal
from typing import Any

DIGITS = 9
BILLION = 10**DIGITS


def canonical_bytes(content: Any) -> bytes:
    """Return the canonical JSON of mappings with string keys, lists, strings, ints, booleans and None.

    Raises:
        TypeError: on a float or anything else.
    """
    _check(content)
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def canonical_sha256(content: Any) -> str:
    """Return the hex SHA-256 of the canonical JSON."""
    return hashlib.sha256(canonical_bytes(content)).hexdigest()


def fixed_decimal(billionths: int) -> str:
    """Return a number of billionths with nine places, as `-0.250000000`."""
    whole, rest = divmod(abs(billionths), BILLION)
    return f"{'-' if billionths < 0 else ''}{whole}.{rest:0{DIGITS}d}"


def plain_decimal(number: float) -> str:
    """Return a finite float in its shortest plain decimal form; `float` gives it back."""
    return f"{Decimal(repr(float(number))):f}"


def _check(content: Any) -> None:
    if isinstance(content, dict):
        for key, value in content.items():
            if not isinstance(key, str):
                raise TypeError(f"key {key!r}: expected a string")
            _check(value)
    elif isinstance(content, list):
        for value in content:
            _check(value)
    elif content is not None and not isinstance(content, (str, int)):
        raise TypeError(f"{content!r}: {type(content).__name__} has no canonical form; write it as a decimal string")
