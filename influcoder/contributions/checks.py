"""What a report claims against what was found: each difference as words that name it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from influcoder.contributions.canonical_json import canonical_bytes
from influcoder.contributions.copies import torn
from influcoder.contributions.manifest import MANIFEST_FILE, SIGNATURE_FILE
from influcoder.contributions.signing import is_signed
from influcoder.contributions.values import Ints
from influcoder.examples import Example


def signature_differences(content: bytes, record: Any, manifest: Any, trusted: str | None) -> Iterator[str]:
    """Compare a manifest's bytes with its signature record, and the key with the one trusted, 64 hex digits or None."""
    if not is_signed(content, record):
        yield f"{SIGNATURE_FILE}: not a signature of {MANIFEST_FILE} as it is now"
    named = record.get("public_key") if isinstance(record, dict) else None
    if named != manifest.get("signer"):
        yield f"{SIGNATURE_FILE}: signed by {named}, {MANIFEST_FILE}: signer {manifest.get('signer')}"
    if trusted is not None and named != trusted:
        yield f"{SIGNATURE_FILE}: signed by {named}, expected {trusted}"
    try:
        canonical = canonical_bytes(manifest) == content
    except TypeError:
        canonical = False
    if not canonical:
        yield f"{MANIFEST_FILE}: not canonical JSON"


def differing(claimed: Any, found: Any, path: str = "") -> Iterator[str]:
    """Yield where two JSON contents differ, by dotted path, with both sides."""
    if isinstance(claimed, dict) and isinstance(found, dict):
        for key in sorted(claimed.keys() | found.keys()):
            yield from differing(claimed.get(key, "nothing"), found.get(key, "nothing"), f"{path}.{key}".removeprefix("."))
    elif isinstance(claimed, list) and isinstance(found, list) and len(claimed) == len(found):
        for place, (mine, theirs) in enumerate(zip(claimed, found, strict=True)):
            yield from differing(mine, theirs, f"{path}.{_label(theirs, place)}")
    elif claimed != found or type(claimed) is not type(found):
        yield f"{MANIFEST_FILE}: {path}: {_short(claimed)}, recomputed {_short(found)}"


def table_differences(name: str, claimed: pa.Table, found: pa.Table) -> Iterator[str]:
    """Yield each column in which two tables differ, with the first row that does; the first column names the rows."""
    if claimed.schema.names != found.schema.names or claimed.num_rows != found.num_rows:
        yield (
            f"{name}: {claimed.num_rows} rows of {', '.join(claimed.schema.names)}; recomputed {found.num_rows} of {', '.join(found.schema.names)}"
        )
        return
    names = found.column(0).to_pylist()
    for column in found.schema.names:
        theirs, ours = claimed[column].to_pylist(), found[column].to_pylist()
        places = [place for place, (mine, other) in enumerate(zip(theirs, ours, strict=True)) if mine != other]
        if places:
            first = places[0]
            others = f" (and {len(places) - 1} more)" if len(places) > 1 else ""
            yield f"{name}: {names[first]!r}: {column} {_short(theirs[first])}, recomputed {_short(ours[first])}{others}"


def example_differences(what: str, claimed: pa.Table, examples: Sequence[Example], leaves: Sequence[bytes]) -> Iterator[str]:
    """Compare rows or queries with the leaves that were signed; `what` is row or query."""
    ids = claimed["id"].to_pylist()
    if ids != [example.id for example in examples]:
        place = next(
            (place for place, (one, other) in enumerate(zip(ids, examples, strict=False)) if one != other.id), min(len(ids), len(examples))
        )
        here = repr(examples[place].id) if place < len(examples) else "nothing"
        signed = repr(ids[place]) if place < len(ids) else "nothing"
        yield f"{what} {place + 1}: {here}, signed was {signed} ({len(examples)} here, {len(ids)} signed)"
        return
    signed_leaves = claimed["leaf"].to_pylist()
    changed = [example.id for example, leaf, signed in zip(examples, leaves, signed_leaves, strict=True) if leaf.hex() != signed]
    if changed:
        yield f"{what} {changed[0]!r}: its content is not the one that was signed" + (
            f" (and {len(changed) - 1} more)" if changed[1:] else ""
        )


def cluster_differences(reported: Ints, strict: Ints, loose: Ints, ids: Sequence[str]) -> Iterator[str]:
    """Compare clusters with those found with a cosine a little above (`strict`) and below (`loose`) the threshold; all (rows,)."""
    for row in torn(strict, reported)[:1]:
        yield f"rows.parquet: row {ids[row]!r} is a copy of {ids[strict[row]]!r} and stands in another cluster"
    for row in torn(reported, loose)[:1]:
        yield f"rows.parquet: row {ids[row]!r} stands in the cluster of {ids[reported[row]]!r} and is no copy of it"


def audit_differences(
    claimed: NDArray[np.float32], found: NDArray[np.float32], row_ids: Sequence[str], query_ids: Sequence[str], tolerance: float
) -> Iterator[str]:
    """Compare scores, (queries, rows), with those of the encoder; `tolerance` is relative to each query's largest score."""
    gap = np.abs(claimed.astype(np.float64) - found)
    wrong = ~(gap <= tolerance * np.abs(found).max(axis=1, keepdims=True))  # so that NaN is wrong
    if wrong.any():
        query, row = divmod(int(np.where(wrong, gap, -1).argmax()), gap.shape[1])
        yield (
            f"query_scores.npy: row {row_ids[row]!r} and query {query_ids[query]!r}: {claimed[query, row]:.6f}, the encoder gives "
            f"{found[query, row]:.6f} ({int(wrong.any(axis=0).sum())} of {len(row_ids)} audited rows differ)"
        )


def _label(entry: Any, place: int) -> str:
    return str(entry["contributor"]) if isinstance(entry, dict) and "contributor" in entry else str(place)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, (dict, list)) or value is None else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
