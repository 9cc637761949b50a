"""The part of the README that quotes the teachers' benchmarks: written by `python -m benchmarks.teacher_tables`, checked by a test.

Three tables: projections against exact cosines (benchmarks.projections), every method on planted rows (benchmarks.bench_teachers),
speed beside plain training (benchmarks.teacher).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.readme_block import Block, line
from eval.table import with_interval

RESULTS = Path("benchmarks/results")
BLOCK = Block("<!-- teachers: written by python -m benchmarks.teacher_tables -->", "<!-- end of teachers -->")
TASKS = {
    "poison_auprc": "poison",
    "poison_hard_auprc": "poison, hard negatives",
    "toxicity_auprc": "toxicity",
    "toxicity_hard_auprc": "toxicity, hard negatives",
    "mislabel_auroc": "wrong responses (AUROC)",
}
TEACHERS = {
    "teacher": "**influcoder**: leading 16, each layer's cosine",
    "logra": "**LoGra, each layer's cosine**",
    "trackstar": "TrackStar",
    "less": "LESS, 2 checkpoints",
    "tracin": "TracIn, 2 checkpoints",
    "paper": "the paper: random 16, one cosine",
}
FLOORS = {
    "bm25": "BM25",
    "bm25_response": "BM25 of responses alone",
    "untrained_encoder": "untrained MiniLM",
    "rep_sim_mean": "hidden states, mean (RepSim)",
    "rep_sim": "hidden states, last token (RepSim)",
    "query_blind": "query-blind",
    "loss": "loss of the row",
    "random": "random",
}


def projections(figures: dict[str, Any]) -> list[str]:
    """Return the table of projections."""
    lines = ["| projection of a layer's gradient | seed to seed | with exact | two seeds with exact | s per 1 000 rows | bytes a row |"]
    lines.append("| --- " * 6 + "|")
    for name, found in figures["projections"].items():
        rhos = (f"{found[key]:.2f}".removeprefix("0") for key in ("seed_to_seed", "exact", "exact_of_mean"))
        lines.append(line(name, *rhos, f"{found['seconds_per_1000']:.0f}", f"{found['bytes_per_row']:,}"))
    return lines


def methods(figures: dict[str, Any]) -> list[str]:
    """Return the table of methods and floors."""
    judged, told = figures["summary"]["methods"], figures["teachers"]
    lines = [line("method", *TASKS.values(), "seed to seed", "s per 1 000 rows"), "| --- " * (len(TASKS) + 3) + "|"]
    for name, title in (TEACHERS | FLOORS).items():
        cells = [judged[name]["metrics"][task] for task in TASKS]
        noise = told.get(name if name == "teacher" else f"teacher-{name}", {}).get("seed_agreement")
        cost = judged[name]["cost"] if name in TEACHERS else None
        lines.append(
            line(
                title,
                *("" if cell is None else with_interval(cell) for cell in cells),
                "" if noise is None else f"{noise:.2f}".removeprefix("0"),
                "" if cost is None else f"{cost['seconds_per_1000']:.0f}",
            )
        )
    return lines


def load(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the results."""
    first, second = (json.loads((folder / name).read_text()) for name in ("projections.json", "bench_teachers.json"))
    return first, second


def tables(folder: Path) -> str:
    """Return the markdown that stands between the marks."""
    found, judged = load(folder)
    return "\n".join([*methods(judged), "", *projections(found)]) + "\n"


def main() -> None:
    """Write the tables into the README."""
    BLOCK.write(tables(RESULTS))


if __name__ == "__main__":
    main()
