"""A report's files: tables, page, the manifest over all of them, and the signature over the manifest."""

from __future__ import annotations

import datetime
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from influcoder.contributions.canonical_json import canonical_bytes, fixed_decimal
from influcoder.contributions.config import ContributionsConfig
from influcoder.contributions.inputs import encoder_hashes
from influcoder.contributions.manifest import MANIFEST_FILE, SECRET_FILE, SIGNATURE_FILE, describe, file_hashes, outcome
from influcoder.contributions.merkle import merkle_root, row_leaf
from influcoder.contributions.page import PAGE_FILE, render_page
from influcoder.contributions.report import Report
from influcoder.contributions.signing import public_hex, sign
from influcoder.contributions.tables import (
    LEDGER_FILE,
    QUERIES_FILE,
    ROWS_FILE,
    SCORES_FILE,
    ledger_table,
    queries_table,
    rows_table,
    write_table,
)
from influcoder.contributions.vana import vana_proofs
from influcoder.runs import write_json_atomic, write_text_atomic

VANA_FILE = "vana.json"
KINDS_FILE = "kinds.json"


def write_report(folder: Path, config: ContributionsConfig, report: Report, provider: str, key: Any) -> None:
    """Write the tables, the page, the manifest over all of them, and the signature over the manifest."""
    rows, queries, secret = report.rows, report.queries, report.secret
    row_leaves, query_leaves = ([row_leaf(example, secret) for example in found] for found in (rows, queries))
    manifest = {
        **describe(
            made_utc=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            model=encoder_hashes(Path(config.encoder)),
            data={"rows": len(rows), "merkle_root": merkle_root(row_leaves).hex()},
            queries={"queries": len(queries), "merkle_root": merkle_root(query_leaves).hex()},
            settings=config.valuation,
            top=report.top,
            provider=provider,
        ),
        **outcome(report.lines, config.budget, report.valuation.cap),
        "signer": public_hex(key),
    }
    np.save(folder / SCORES_FILE, report.scores, allow_pickle=False)
    write_table(folder, ROWS_FILE, rows_table(rows, row_leaves, report.first_rows, report.clusters, report.valuation))
    write_table(folder, QUERIES_FILE, queries_table(queries, query_leaves))
    write_table(folder, LEDGER_FILE, ledger_table(report.lines))
    write_json_atomic(folder / KINDS_FILE, [asdict(kind) | {"mean": fixed_decimal(kind.mean)} for kind in report.kinds])
    names = [SCORES_FILE, ROWS_FILE, QUERIES_FILE, LEDGER_FILE, KINDS_FILE, PAGE_FILE]
    if config.dlp_id is not None:
        metadata = {"rows": manifest["data"]["merkle_root"], "queries": manifest["queries"]["merkle_root"], "signer": manifest["signer"]}
        write_json_atomic(folder / VANA_FILE, vana_proofs(report.lines, report.contributors, report.clusters, config.dlp_id, metadata))
        names.append(VANA_FILE)
    write_text_atomic(folder / PAGE_FILE, render_page(manifest, report.lines, report.kinds, report.rank_stability))
    content = canonical_bytes(manifest | {"files": file_hashes(folder, names)})
    (folder / MANIFEST_FILE).write_bytes(content)
    write_json_atomic(folder / SIGNATURE_FILE, sign(content, key))
    descriptor = os.open(folder / SECRET_FILE, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        stream.write(secret.hex() + "\n")
