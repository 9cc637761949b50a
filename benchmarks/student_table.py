"""The part of the README that quotes `make bench-student`: written by `python -m benchmarks.student_table`, checked by a test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.readme_block import Block, line
from eval.table import short

RESULTS = Path("benchmarks/results")
BLOCK = Block("<!-- bench-student: written by python -m benchmarks.student_table -->", "<!-- end of bench-student -->")
BENCHES = ("mixed", "plain", "ekfac")
MEASURES = {"per_query_spearman": "per query", "residual_spearman": "residual"}


def table(folder: Path) -> str:
    """Return the markdown that stands between the marks."""
    figures = json.loads((folder / "bench_student.json").read_text())
    benches = [bench for bench in BENCHES if bench in figures]
    columns = [f"{bench}: {name}" for bench in benches for name in MEASURES.values()]
    lines = [line("method", "role", *columns, "top 10 of 1 000", "bytes a row", "seconds to make")]
    lines.append("| --- " * (len(columns) + 5) + "|")
    for name, first in figures[benches[0]]["methods"].items():
        cells = [_cell(figures[bench]["methods"].get(name, {}).get(measure)) for bench in benches for measure in MEASURES]
        size, seconds = first.get("bytes_per_row"), first.get("seconds")
        title = f"**{name}**" if name == "ours" else name
        overlap = short(first["top10_overlap"]["value"])
        lines.append(line(title, first["role"], *cells, overlap, f"{size:,}" if size else "", f"{seconds:.0f}" if seconds else ""))
    return "\n".join(lines) + "\n"


def _cell(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    low, high = found["interval"]
    seeds = f" ({len(found['seeds'])} seeds)" if len(found["seeds"]) > 1 else ""
    return f"{short(found['value'])} [{short(low)}, {short(high)}]{seeds}"


def main() -> None:
    """Write the table into the README."""
    BLOCK.write(table(RESULTS))


if __name__ == "__main__":
    main()
