"""The part of the README that quotes `make bench-truth`, and its picture: written by `python -m benchmarks.truth_table`, checked by a test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.readme_block import Block, line
from eval.table import with_interval
from eval.truth.plot import write_plot
from eval.truth.table import ordered

RESULT = Path("benchmarks/results/truth.json")
PICTURE = Path("docs/truth.png")
BLOCK = Block("<!-- bench-truth: written by python -m benchmarks.truth_table -->", "<!-- end of bench-truth -->")
REMOVED_BY = {
    "f_influence_layers": "f-influence, each layer at length 1",
    "teacher": "LoGra, each layer's cosine (teacher)",
    "student": "**its student**",
    "bm25": "BM25",
    "bm25_response": "BM25 of responses alone",
    "rep_sim_mean": "hidden states, mean (RepSim)",
    "random": "random",
}
SCORED_BY = {
    "teacher": "LoGra, each layer's cosine (teacher)",
    "teacher_second_seed": "teacher, second seed",
    "student": "**its student**",
    "logra": "LoGra, products",
    "influcoder": "influcoder, each layer's cosine",
    "ekfac": "EK-FAC, products",
    "tracin": "TracIn, 4 checkpoints",
    "less": "LESS, 4 checkpoints",
    "f_influence": "f-influence, 4 points",
    "bm25": "BM25",
    "bm25_response": "BM25 of responses alone",
    "rep_sim": "hidden states, last token (RepSim)",
    "rep_sim_mean": "hidden states, mean (RepSim)",
    "untrained_encoder": "student before its head is fitted",
    "length": "length of the row",
    "random": "random",
}


def tables(path: Path) -> str:
    """Return the markdown that stands between the marks."""
    figures = json.loads(path.read_text())
    return _removal(figures["removal"]["removal"]) + "\n" + _scores(figures["truth"])


def _removal(blocks: dict[str, Any]) -> str:
    """Behaviour and its price, one column a task and budget."""
    columns = [(task, place) for task, block in blocks.items() for place in range(len(block["budgets"]))]
    titles = [f"{task}: {blocks[task]['budgets'][place]} rows removed" for task, place in columns]
    lines = [line("removed by", *titles), "| --- " * (len(columns) + 1) + "|"]
    for kind, title in (("full", "nothing removed"), ("clean", "never saw them")):
        lines.append(line(title, *(with_interval(blocks[task][kind]) for task, _ in columns)))
    for method, title in REMOVED_BY.items():
        cells = [_removed(blocks[task], method, place) for task, place in columns]
        if any(cells):
            lines.append(line(title, *cells))
    return "\n".join(lines) + "\n"


def _removed(block: dict[str, Any], method: str, place: int) -> str:
    found = block["methods"].get(method)
    return "" if found is None else f"{with_interval(found['behaviour'][place])} ({found['found'][place]} of {block['positives']})"


def _scores(truth: dict[str, Any]) -> str:
    lds, patch = truth["lds"]["methods"], truth["tail_patch"]["methods"]
    lines = [line("scores of", "LDS", "student's lead", "step on its first 10", "on its last 10"), "| --- " * 5 + "|"]
    lines.append(line("a second training of the same rows", with_interval(truth["lds"]["ceiling"]), "", "", ""))
    for name in ordered(lds, "lds"):
        lead = lds[name]["student_minus"]
        steps = [f"{1e3 * patch[name][end]['mean']:.1f}" for end in ("top", "bottom")]
        lines.append(line(SCORED_BY[name], with_interval(lds[name]["lds"]), "" if lead is None else with_interval(lead, "value"), *steps))
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the tables into the README, and the picture."""
    BLOCK.write(tables(RESULT))
    figures = json.loads(RESULT.read_text())
    write_plot(PICTURE, figures["truth"] | {"removal": figures["removal"]["removal"]})


if __name__ == "__main__":
    main()
