"""Make a contribution report: read, value, publish."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from influcoder.contributions.config import ContributionsConfig
from influcoder.contributions.publish import write_report
from influcoder.contributions.report import make_report
from influcoder.contributions.signing import load_private_key, public_hex
from influcoder.onnx_encoder import OnnxEncoder
from influcoder.runs import create_run


def contributions(config: ContributionsConfig, config_yaml: str | None = None) -> dict[str, Any]:
    """Make the report that `config` asks for; return what its run.json says of it.

    Args:
        config: what to value, by what, and where to write.
        config_yaml: its resolved YAML when it came from a file; None writes it out.

    Raises:
        RunError: when the attribution is of something else, the encoder is not usable, or the output exists.
        DataError: when a row has no contributor, or there are too few queries for an interval.
        ConfigError: when the key is not usable.
    """
    key = load_private_key(Path(config.key))
    with create_run(Path(config.output), "contributions", config_yaml or json.dumps(asdict(config), indent=2) + "\n") as run:
        encoder = OnnxEncoder(config.encoder, providers=config.providers)
        report = make_report(config, encoder)
        paid = sum(line.reward for line in report.lines)
        run.facts |= {
            "counts": {"rows": len(report.rows), "unique_rows": len(report.clusters.sizes), "contributors": len(report.lines)},
            "status": "paid" if paid else "nothing paid",
            "rank_stability": round(report.rank_stability, 3),
            "signer": public_hex(key),
        }
        write_report(run.folder, config, report, encoder.provider, key)
    return run.facts
