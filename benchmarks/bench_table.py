"""The part of the README that quotes `make bench-eval`: written by `python -m benchmarks.bench_table`, checked by a test.

The first results are the run whose figures stand in the tables; those of other machines give only what their methods cost there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.readme_block import Block, line
from eval.table import ROLES, with_interval

RESULTS = Path("benchmarks/results")
MAIN, OTHERS = "bench_eval.json", ("bench_eval_h200.json",)
BLOCK = Block("<!-- bench-eval: written by python -m benchmarks.bench_table -->", "<!-- end of bench-eval -->")
TASKS = {
    "poison_auprc": "poison",
    "poison_hard_auprc": "poison, hard negatives",
    "toxicity_auprc": "toxicity",
    "toxicity_hard_auprc": "toxicity, hard negatives",
    "facts_map": "facts (MAP)",
    "mislabel_auroc": "wrong responses (AUROC)",
}
FIDELITY = {"per_query_spearman": "per query", "residual_spearman": "residual", "within_group_spearman": "within a source"}
NAMES = {
    "teacher_second_seed": "teacher, second seed",
    "student": "**student**",
    "shuffled_target": "student of shuffled targets",
    "untrained_encoder": "untrained encoder",
    "query_blind": "query-blind",
    "bm25": "BM25",
    "rep_sim": "hidden states, last token (RepSim)",
    "rep_sim_mean": "hidden states, mean (RepSim)",
    "loss": "loss of the row",
    "length": "length of the row",
    "reference_recipe": "authors' recipe",
}


def tables(main: dict[str, Any], others: list[dict[str, Any]]) -> str:
    """Return the markdown of fidelity, tasks and cost."""
    summary = main["summary"]
    methods = summary["methods"]
    names = sorted(methods, key=lambda name: (ROLES.index(methods[name]["role"]), -_value(methods[name], "poison_hard_auprc")))
    judged = [name for name in names if name != "shuffled_target"]
    lines = ["| method | role | " + " | ".join(FIDELITY.values()) + " | student's lead, per query |", "| --- " * (len(FIDELITY) + 3) + "|"]
    for name in sorted(names, key=lambda name: (ROLES.index(methods[name]["role"]), -_value(methods[name], "per_query_spearman"))):
        if name != "teacher":
            gap = summary["student_minus"].get(name, {}).get("per_query_spearman")
            cells = [with_interval(methods[name]["metrics"][metric]) for metric in FIDELITY]
            lines.append(line(NAMES.get(name, name), methods[name]["role"], *cells, "" if gap is None else with_interval(gap, "value")))
    lines += ["", "| method | " + " | ".join(TASKS.values()) + " |", "| --- " * (len(TASKS) + 1) + "|"]
    for name in judged:
        figures = (methods[name]["metrics"][metric] for metric in TASKS)
        lines.append(line(NAMES.get(name, name), *("" if figure is None else with_interval(figure) for figure in figures)))
    lines += ["", *_costs([main, *others], judged)]
    return "\n".join(lines) + "\n"


def _costs(runs: list[dict[str, Any]], names: list[str]) -> list[str]:
    header = ["method", "bytes a row"]
    for run in runs:
        where = " ".join(run["hardware"]["gpus"]) or f"{run['hardware']['cpus']} CPU cores"
        header += [f"{where}: set-up, s", "s per 1 000 rows", "break-even, rows"]
    lines = [line(*header), "| --- " * len(header) + "|"]
    for name in ("teacher", "student", "bm25", "rep_sim_mean"):
        if name in names:
            costs = [run["summary"]["methods"][name]["cost"] for run in runs]
            cells = [
                cell
                for cost in costs
                for cell in (_number(cost["setup_seconds"]), f"{cost['seconds_per_1000']:.2f}", _number(cost["break_even_rows"]))
            ]
            lines.append(line(NAMES.get(name, name), f"{costs[0]['bytes_per_row']:,.0f}", *cells))
    return lines


def _number(value: float | None) -> str:
    return f"{value:,.0f}" if value else ""


def _value(method: dict[str, Any], metric: str) -> float:
    figure = method["metrics"][metric]
    return -1.0 if figure is None else float(figure["mean"])


def load(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Read the results of the main run and of other machines."""
    main, *others = [json.loads((folder / name).read_text()) for name in (MAIN, *OTHERS)]
    return main, others


def main() -> None:
    """Write the tables into the README."""
    BLOCK.write(tables(*load(RESULTS)))


if __name__ == "__main__":
    main()
