"""Verify a report: the signature, every hash, every number from the stored scores on, and the scores themselves on a sample of rows.

What a report says is made again from the pool, the queries and the encoder, and compared piece by piece: everything below the scores to the
last digit, the scores within a tolerance. Rows are audited at random, and those of the highest scores besides: k random rows find a
falsified share f with probability 1 - (1 - f)^k.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from influcoder.contributions.checks import (
    audit_differences,
    cluster_differences,
    differing,
    example_differences,
    signature_differences,
    table_differences,
)  # fmt: skip
from influcoder.contributions.config import VerifyConfig
from influcoder.contributions.copies import alike, canonical_text, clusters, near_pairs
from influcoder.contributions.inputs import embed, encoder_hashes, precedence, read_pool
from influcoder.contributions.ledger import ledger
from influcoder.contributions.manifest import (
    MANIFEST_FILE,
    SCHEMA_VERSION,
    SECRET_FILE,
    SIGNATURE_FILE,
    file_hashes,
    outcome,
    read_settings,
)  # fmt: skip
from influcoder.contributions.merkle import merkle_root, row_leaf
from influcoder.contributions.page import PAGE_FILE
from influcoder.contributions.publish import KINDS_FILE, VANA_FILE
from influcoder.contributions.report import number_contributors
from influcoder.contributions.signing import read_public_key
from influcoder.contributions.tables import (
    LEDGER_FILE,
    QUERIES_FILE,
    ROWS_FILE,
    SCORES_FILE,
    ledger_table,
    queries_table,
    rows_table,
)  # fmt: skip
from influcoder.contributions.values import Clusters, Ints, ValueSettings, evaluate
from influcoder.errors import GateError, RunError
from influcoder.examples import Example
from influcoder.onnx_encoder import OnnxEncoder
from influcoder.readers import DataSource, read_examples
from influcoder.runs import open_run

FILES = (SCORES_FILE, ROWS_FILE, QUERIES_FILE, LEDGER_FILE, KINDS_FILE, PAGE_FILE)
SHOWN = 8


@dataclass(frozen=True)
class Claim:
    """A report as it lies in its folder."""

    manifest: dict[str, Any]
    settings: ValueSettings
    top: int | None
    budget: int
    secret: bytes
    rows: pa.Table
    queries: pa.Table
    ledger: pa.Table
    scores: NDArray[np.float32]


def verify(config: VerifyConfig) -> dict[str, Any]:
    """Verify a report; return what was looked at.

    Raises:
        GateError: when anything differs, naming it.
        RunError: when the report is no complete run, or the encoder is not usable.
        DataError: when pool or queries cannot be read.
        ConfigError: when the public key is not usable.
    """
    folder = Path(config.report)
    open_run(folder, "contributions")
    manifest, found = _check_signature(folder, None if config.public_key is None else read_public_key(Path(config.public_key)))
    found += _check_files(folder, manifest)
    model = encoder_hashes(Path(config.encoder))
    found += differing({"model": manifest.get("model")}, {"model": model})
    claim = _load(folder, manifest, found)
    rows, queries = read_pool(config.pool), read_examples(config.queries)
    found += _check_data(claim, rows, queries)
    if claim.rows["id"].to_pylist() == [row.id for row in rows] and claim.scores.shape == (len(queries), len(rows)):
        first_rows = _first_rows(claim.rows["cluster"].to_pylist())
        if manifest.get("model") == model:  # another encoder's scores would differ for that reason
            encoder = OnnxEncoder(config.encoder, providers=["CPUExecutionProvider"])
            found += _check_clusters(claim, encoder, rows, first_rows, config.tolerance)
            found += _audit(claim, encoder, rows, queries, config)
        found += _check_values(claim, config.pool, rows, queries, first_rows)  # last: whatever differs above makes many values differ
    _refuse(folder, found)
    audited = min(config.audit_rows, len(rows))
    return {
        "signer": manifest["signer"],
        "pinned": config.public_key is not None,
        "rows": len(rows),
        "audited": audited,
        "found_share": 0.0 if audited == len(rows) else 1 - 0.05 ** (1 / audited),
    }


def _refuse(folder: Path, found: list[str]) -> None:
    if found:
        more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise GateError(f"{folder}: not verified: {'; '.join(found[:SHOWN])}{more}")


def _check_signature(folder: Path, trusted: str | None) -> tuple[dict[str, Any], list[str]]:
    try:
        content = (folder / MANIFEST_FILE).read_bytes()
        manifest = json.loads(content)
        record = json.loads((folder / SIGNATURE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise GateError(f"{folder}: not verified: {MANIFEST_FILE} or {SIGNATURE_FILE} cannot be read ({error})") from error
    if not isinstance(manifest, dict) or manifest.get("schema_version") != SCHEMA_VERSION:
        raise GateError(f"{folder}: not verified: {MANIFEST_FILE}: not a manifest of schema {SCHEMA_VERSION}")
    return manifest, list(signature_differences(content, record, manifest, trusted))


def _check_files(folder: Path, manifest: dict[str, Any]) -> list[str]:
    claimed = manifest.get("files")
    names = [*FILES, VANA_FILE] if isinstance(claimed, dict) and VANA_FILE in claimed else [*FILES]
    here = [name for name in names if (folder / name).is_file()]
    found = dict.fromkeys(names, "missing") | file_hashes(folder, here)
    return list(differing({"files": claimed}, {"files": found}))


def _load(folder: Path, manifest: dict[str, Any], found: list[str]) -> Claim:
    try:
        settings, top = read_settings(manifest["settings"])
        rows, queries, lines = (pq.read_table(folder / name) for name in (ROWS_FILE, QUERIES_FILE, LEDGER_FILE))
        scores = np.load(folder / SCORES_FILE, allow_pickle=False)
        secret = bytes.fromhex((folder / SECRET_FILE).read_text(encoding="utf-8"))
        rows.select(["id", "cluster", "leaf"]), queries.select(["id", "leaf"])  # what the checks read before they compare
        if int(manifest["budget"]) < 1:
            raise ValueError(f"budget: {manifest['budget']}; expected at least 1")
        if scores.ndim != 2 or scores.dtype != np.float32 or not np.isfinite(scores).all():
            raise ValueError(f"{SCORES_FILE}: {scores.dtype} of shape {scores.shape}; expected finite float32 (queries, rows)")
        return Claim(manifest, settings, top, int(manifest["budget"]), secret, rows, queries, lines, scores)
    except (OSError, EOFError, KeyError, TypeError, ValueError, AttributeError, pa.ArrowException) as error:
        _refuse(folder, [*found, f"it cannot be read on ({' '.join(str(error).split())})"])
        raise RunError(f"{folder}: cannot be read ({error}); expected a contribution report with its {SECRET_FILE}") from error


def _check_data(claim: Claim, rows: list[Example], queries: list[Example]) -> list[str]:
    found: list[str] = []
    for what, part, table, examples, count in (
        ("row", "data", claim.rows, rows, "rows"),
        ("query", "queries", claim.queries, queries, "queries"),
    ):
        leaves = [row_leaf(example, claim.secret) for example in examples]
        found += example_differences(what, table, examples, leaves)
        found += differing({part: claim.manifest.get(part)}, {part: {count: len(examples), "merkle_root": merkle_root(leaves).hex()}})
    return found


def _check_values(claim: Claim, pool: DataSource, rows: list[Example], queries: list[Example], first_rows: Ints) -> list[str]:
    settings = claim.settings
    grouped = Clusters.of(first_rows, settings.copies, precedence(pool, rows, settings.commit_column))
    names, contributors = number_contributors(rows)
    weights = np.array([query.weight for query in queries])
    valuation = evaluate(claim.scores, weights, contributors, grouped, top=claim.top, settings=settings)
    lines = ledger(names, contributors, grouped, valuation, claim.budget)
    row_leaves, query_leaves = ([row_leaf(example, claim.secret) for example in found] for found in (rows, queries))
    paid = outcome(lines, claim.budget, valuation.cap)
    return [
        *table_differences(ROWS_FILE, claim.rows, rows_table(rows, row_leaves, first_rows, grouped, valuation)),
        *table_differences(QUERIES_FILE, claim.queries, queries_table(queries, query_leaves)),
        *table_differences(LEDGER_FILE, claim.ledger, ledger_table(lines)),
        *differing({name: claim.manifest.get(name) for name in paid}, paid),
    ]


def _check_clusters(claim: Claim, encoder: OnnxEncoder, rows: list[Example], first_rows: Ints, tolerance: float) -> list[str]:
    texts, settings = [canonical_text(row) for row in rows], claim.settings
    pairs = [] if settings.near_duplicate_jaccard is None else near_pairs(texts, settings.near_duplicate_jaccard)
    places = sorted({place for pair in pairs for place in pair})
    vectors = np.zeros((len(rows), encoder.settings.dim), np.float32)
    if places:
        vectors[places] = embed(encoder, [rows[place] for place in places], "near-copies")
    strict, loose = (clusters(texts, alike(pairs, vectors, settings.near_duplicate_cosine + sign * tolerance)) for sign in (1, -1))
    return list(cluster_differences(first_rows, strict, loose, [row.id for row in rows]))


def _audit(claim: Claim, encoder: OnnxEncoder, rows: list[Example], queries: list[Example], config: VerifyConfig) -> list[str]:
    random = np.random.default_rng(config.audit_seed).permutation(len(rows))[: config.audit_rows]
    highest = np.argsort(-claim.scores.max(axis=0), kind="stable")[: config.audit_rows]
    places = np.union1d(random, highest)
    found = embed(encoder, queries, "queries") @ embed(encoder, [rows[place] for place in places], "audit").T
    ids = [rows[place].id for place in places]
    return list(audit_differences(claim.scores[:, places], found, ids, [query.id for query in queries], config.tolerance))


def _first_rows(names: list[str]) -> Ints:
    first: dict[str, int] = {}
    return np.array([first.setdefault(name, place) for place, name in enumerate(names)], np.int64)
