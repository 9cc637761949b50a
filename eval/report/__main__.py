"""`python -m eval.report --eval RUN [--truth RUN] [--output FILE]`: the report of an eval run again, with retraining beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.report.stage import write_report
from influcoder.program import parse_config, run_program


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Make the report of a complete eval run (python -m eval.report)."""

    eval: str
    """folder of an eval run"""
    truth: str | None = None
    """folder of a truth run of the same teacher; null leaves out what retraining says"""
    output: str | None = None
    """the page, report.json and tables/ beside it; null writes report.html into the eval run"""


def main(arguments: Sequence[str]) -> None:
    """Write the report and say where."""
    config, _ = parse_config(ReportConfig, arguments, "python -m eval.report")
    truth, output = (None if given is None else Path(given) for given in (config.truth, config.output))
    print(write_report(Path(config.eval), truth, output))


if __name__ == "__main__":
    run_program(main)
