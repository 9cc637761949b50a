"""A small attributed pool with copies, and reports of it, for the tests of contributions."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from influcoder.attribution import AttributionConfig, attribute
from influcoder.contributions.config import ContributionsConfig, VerifyConfig
from influcoder.contributions.job import contributions
from influcoder.contributions.signing import make_key
from influcoder.contributions.values import ValueSettings
from influcoder.readers import Columns, DataSource

WORDS = "river bread code stars green tea garden slowly music seven bakes prints because never über naïve the of a Lumora".split()
CONTRIBUTORS = ("0xada", "0xbo", "0xcy <b>", "0xdee")


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def pool_rows(count: int = 120) -> list[dict[str, Any]]:
    """Rows of four contributors; the last one copies every tenth row of the others, in capitals, and changes one word of some."""
    random = np.random.default_rng(0)
    rows: list[dict[str, Any]] = [
        {
            "id": f"r{row}",
            "prompt": f"{WORDS[row % 20]} {WORDS[row % 7]}",
            "response": " ".join(random.choice(WORDS, random.integers(12, 30))),
            "who": CONTRIBUTORS[row % 3],
            "when": f"2026-01-{1 + row % 28:02d}",
        }
        for row in range(count)
    ]
    for row in range(0, count, 10):
        rows.append(
            rows[row] | {"id": f"copy{row}", "response": rows[row]["response"].upper(), "who": CONTRIBUTORS[3], "when": "2025-12-01"}
        )
    for row in range(5, count, 30):
        response = rows[row]["response"].split()
        rows.append(rows[row] | {"id": f"near{row}", "response": " ".join([*response[:-1], "changed"]), "who": CONTRIBUTORS[3]})
    return rows


def query_rows(count: int = 8) -> list[dict[str, Any]]:
    """Queries of which the last two are contrast."""
    random = np.random.default_rng(1)
    return [
        {"id": f"q{row}", "prompt": WORDS[row], "response": " ".join(random.choice(WORDS, 12)), "w": 1 if row < count - 2 else -1}
        for row in range(count)
    ]


def make_inputs(folder: Path, encoder: Path) -> ContributionsConfig:
    """Write pool, queries and key, attribute the pool, and return the settings of a report of it in `folder/report`."""
    pool = DataSource(paths=(write_jsonl(folder / "pool.jsonl", pool_rows()),), columns=Columns(contributor="who"))
    queries = DataSource(paths=(write_jsonl(folder / "queries.jsonl", query_rows()),), columns=Columns(weight="w"))
    attribute(AttributionConfig(encoder=str(encoder), pool=pool, queries=queries, output=str(folder / "attribution"), top=3))
    make_key(folder / "key.pem")
    return ContributionsConfig(
        attribution=str(folder / "attribution"),
        encoder=str(encoder),
        pool=pool,
        queries=queries,
        key=str(folder / "key.pem"),
        output=str(folder / "report"),
        budget=10_000,
        valuation=ValueSettings(draws=40),
        kinds=4,
        dlp_id=7,
    )


def make_report_folder(folder: Path, encoder: Path) -> ContributionsConfig:
    """Make the inputs and the report of them; return its settings."""
    config = make_inputs(folder, encoder)
    contributions(config)
    return config


def copied(config: ContributionsConfig, folder: Path) -> tuple[ContributionsConfig, VerifyConfig]:
    """Return a copy of a report with all its inputs, to be spoilt, and how it is verified."""
    source = Path(config.output).parent
    shutil.copytree(source, folder)
    encoder = folder / "encoder"
    shutil.copytree(config.encoder, encoder)
    pool = replace(config.pool, paths=(str(folder / "pool.jsonl"),))
    queries = replace(config.queries, paths=(str(folder / "queries.jsonl"),))
    moved = replace(
        config,
        attribution=str(folder / "attribution"),
        encoder=str(encoder),
        pool=pool,
        queries=queries,
        key=str(folder / "key.pem"),
        output=str(folder / "report"),
    )
    return moved, VerifyConfig(report=moved.output, encoder=moved.encoder, pool=pool, queries=queries, audit_rows=30, audit_seed=0)
