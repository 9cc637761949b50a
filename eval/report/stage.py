"""Writes a report: `report.html`, the same as `report.json`, and each table as CSV in `tables/`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from eval.report.evidence import Evidence, load_evidence
from eval.report.page import facts_of, render_page, verdicts_of
from eval.report.tables import all_sections, file_name, to_csv
from influcoder.runs import write_json_atomic, write_text_atomic

SCHEMA_VERSION = 1
FILES = ("report.html", "report.json")
"""in the run, unless they are wanted elsewhere"""


def write_report(eval_run: Path, truth_run: Path | None = None, output: Path | None = None) -> Path:
    """Make the report of a complete eval run; an older one is replaced.

    Args:
        eval_run: the run.
        truth_run: a run of `python -m eval.truth` beside it; None leaves out what retraining says.
        output: the page; None writes `report.html` into the run. The other files stand beside it.

    Returns:
        Where the page is.

    Raises:
        RunError: when a run is unfinished or a file unreadable.
    """
    evidence = load_evidence(eval_run, truth_run)
    page = eval_run / FILES[0] if output is None else output
    tables = page.parent / "tables"
    tables.mkdir(parents=True, exist_ok=True)
    for section in all_sections(evidence):
        write_text_atomic(tables / f"{file_name(section)}.csv", to_csv(section))
    write_json_atomic(page.with_suffix(".json"), _content(evidence))
    write_text_atomic(page, render_page(evidence))
    return page


def _content(evidence: Evidence) -> dict[str, object]:
    return {
        "schema_version": SCHEMA_VERSION,
        "facts": facts_of(evidence),
        "verdicts": [asdict(verdict) for verdict in verdicts_of(evidence)],
        "tables": [asdict(section) for section in all_sections(evidence)],
    }
