"""The part of the README that quotes `make bench-planted`: written by `python -m benchmarks.planted_table`, checked by a test."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.readme_block import Block, line
from benchmarks.teacher_tables import TASKS
from eval.table import with_interval

RESULT = Path("benchmarks/results/bench_planted.json")
BLOCK = Block("<!-- bench-planted: written by python -m benchmarks.planted_table -->", "<!-- end of bench-planted -->")
COLUMNS = {task: title for task, title in TASKS.items() if task.endswith("auprc")}
METHODS = {
    "teacher": "LoGra, each layer's cosine (teacher)",
    "student": "**its student**",
    "influcoder": "influcoder (another teacher)",
    "ekfac": "EK-FAC, each layer's cosine (another teacher)",
    "f_influence": "f-influence (another teacher)",
    "f_influence_layers": "f-influence, each layer at length 1 (another teacher)",
    "bm25": "BM25",
    "bm25_response": "BM25 of responses alone",
    "rep_sim_mean": "hidden states, mean (RepSim)",
    "untrained_encoder": "student before its head is fitted",
    "random": "random",
}


def table(path: Path) -> str:
    """Return the markdown that stands between the marks."""
    summary = json.loads(path.read_text())["summary"]
    lines = [line("AUPRC", *COLUMNS.values()), "| --- " * (len(COLUMNS) + 1) + "|"]
    lines += [
        line(title, *(with_interval(summary["methods"][name]["metrics"][task]) for task in COLUMNS)) for name, title in METHODS.items()
    ]
    lines.append(line("student - teacher", *(with_interval(summary["student_minus"]["teacher"][task], "value") for task in COLUMNS)))
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the table into the README."""
    BLOCK.write(table(RESULT))


if __name__ == "__main__":
    main()
