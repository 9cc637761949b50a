"""The part of the README that quotes benchmarks/f_influence.py: written by `python -m benchmarks.f_influence_table`, checked by a test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.readme_block import Block, line
from eval.table import short

RESULTS = Path("benchmarks/results")
BLOCK = Block("<!-- f-influence: written by python -m benchmarks.f_influence_table -->", "<!-- end of f-influence -->")
COMPOSITIONS = ("pooled", "standardised", "signed_squares")


def table(folder: Path) -> str:
    """Return the markdown that stands between the marks."""
    worlds = json.loads((folder / "f_influence.json").read_text())["worlds"]
    lines = [line("estimator", *worlds), "| --- " * (len(worlds) + 1) + "|"]
    names = dict.fromkeys(name for world in worlds.values() for name in world["finding"])
    lines += [line(name, *(_finding(world["finding"].get(name)) for world in worlds.values())) for name in names]
    judged = {name: world for name, world in worlds.items() if "groups" in world}
    lines += ["", line("groups against retraining", *judged), "| --- " * (len(judged) + 1) + "|"]
    for name in names:
        if all(name in world["groups"]["spearman"] for world in judged.values()):
            lines.append(line(name, *(_groups(world, name) for world in judged.values())))
    lines += ["", line("95 % intervals that hold what they should", *worlds), "| --- " * (len(worlds) + 1) + "|"]
    return "\n".join([*lines, *(line(name, *(_coverage(world, name) for world in worlds.values())) for name in COMPOSITIONS)]) + "\n"


def _finding(found: dict[str, float] | None) -> str:
    return "" if found is None else " / ".join(short(found[key]) for key in ("auc", "recall", "seed_spearman"))


def _groups(world: dict[str, Any], name: str) -> str:
    rank, factors = short(world["groups"]["spearman"][name]), world["calibration"].get(name)
    return rank if factors is None else f"{rank}; scale {short(factors['factor'])}, held out {factors['held_out']:.2f}"


def _coverage(world: dict[str, Any], name: str) -> str:
    found = world["coverage"][name][str(world["coverage"]["blocks"])]
    return " / ".join(short(found[key]) for key in ("null_rows", "null_groups", "other_seeds"))


def main() -> None:
    """Write the tables into the README."""
    BLOCK.write(table(RESULTS))


if __name__ == "__main__":
    main()
