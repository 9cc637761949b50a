"""What a truth run adds to the report: pictures and tables of `truth.json`, any block of which may be missing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eval.report.bars import bars
from eval.report.figures import Picture, bar_of, told
from eval.report.lines import Level, Line, removal_curves
from eval.report.names import css, label, sentence
from eval.report.truth_verdict import signed
from eval.table import ROLES, Section, short, with_interval

Truth = Mapping[str, Any]
Methods = Mapping[str, Mapping[str, Any]]


def truth_pictures(truth: Truth) -> list[Picture]:
    """Return LDS, the step on the top rows, and each removal."""
    found = []
    if lds := truth.get("lds"):
        rows = [bar_of(name, method["role"], method["lds"]) for name, method in _ordered(lds["methods"], "lds")]
        ceiling = lds.get("ceiling")
        svg = bars(rows, "LDS", f"Linear datamodelling score: {told(rows)}", (ceiling["mean"], "ceiling") if ceiling else None)
        note = f"Spearman of predicted and true outputs over {lds['subsets']} retrained subsets, {lds['seeds']} seeds; 95 % intervals."
        found.append(Picture("Do scores predict retraining (LDS)?", note, svg))
    if patch := truth.get("tail_patch"):
        rows = [bar_of(name, method["role"], method["top"]) for name, method in _ordered(patch["methods"], "top")]
        svg = bars(
            rows,
            "change of the log-probability",
            f"Change after a step on the top {patch['k']} rows: {told(rows)}",
            write=lambda value: f"{value:.2g}",
        )
        note = f"Log-probability of the query's response, nats, after one step on its top {patch['k']} rows; 95 % intervals."
        found.append(Picture("One step on the top rows", note, svg))
    return [*found, *(_removal(task, block) for task, block in (truth.get("removal") or {}).items())]


def truth_sections(truth: Truth) -> list[Section]:
    """Return the tables of each block."""
    found = []
    if lds := truth.get("lds"):
        lines = [
            (name, method["role"], with_interval(method["lds"]), with_interval(method.get("student_minus"), "value"))
            for name, method in _ordered(lds["methods"], "lds")
        ]
        ceiling = f", noise ceiling {with_interval(lds['ceiling'])}" if lds.get("ceiling") else ""
        title = f"LDS: {lds['subsets']} retrained subsets, {lds['seeds']} seeds{ceiling}"
        found.append(Section(title, ("method", "role", "LDS", "student -"), tuple(lines)))
    if patch := truth.get("tail_patch"):
        steps = [
            (name, method["role"], signed(method["top"]), signed(method["bottom"])) for name, method in _ordered(patch["methods"], "top")
        ]
        header = ("method", "role", f"top {patch['k']}", f"bottom {patch['k']}")
        found.append(Section("Tail patch: change of the log-probability of the response, nats", header, tuple(steps)))
    return [*found, *(_removal_section(task, block) for task, block in (truth.get("removal") or {}).items())]


def _removal(task: str, block: Mapping[str, Any]) -> Picture:
    methods = _in_roles(block["methods"])
    start, budgets = block["full"], [0, *block["budgets"]]
    lines = []
    for name, method in methods:
        found = [start, *method["behaviour"]]
        means, lows, highs = ([figure[end] for figure in found] for end in ("mean", "low", "high"))
        lines.append(Line(css(name, method["role"]), budgets, means, lows, highs))
    levels = [Level("never saw the rows", *(block["clean"][end] for end in ("mean", "low", "high")))] if block.get("clean") else []
    words = "; ".join(f"{label(name)} {with_interval(method['behaviour'][-1])}" for name, method in methods)
    svg = removal_curves(
        lines[::-1], levels, "rows removed before training again",
        f"Behaviour after removing {budgets[-1]} rows, {task}: {words}; before {with_interval(start)}",
    )  # fmt: skip
    key = tuple((css(name, method["role"]), label(name)) for name, method in methods)
    note = f"{sentence(block['measure'])}; bands are 95 % intervals; {block['positives']} rows were planted."
    return Picture(f"{task}: what is left after removal", note, svg, key)


def _removal_section(task: str, block: Mapping[str, Any]) -> Section:
    header = ["method", "role"]
    for budget in block["budgets"]:
        header += [f"behaviour, {budget:,} removed", "planted among them", "benign loss"]
    lines = []
    for name, method in _in_roles(block["methods"]):
        cells = [name, method["role"]]
        for place, behaviour in enumerate(method["behaviour"]):
            benign = method["benign_loss"][place] if method.get("benign_loss") else None
            cells += [with_interval(behaviour), f"{method['found'][place]:g}" if method.get("found") else "-", with_interval(benign)]
        lines.append(tuple(cells))
    clean = f", {short(block['clean']['mean'])} without the planted rows" if block.get("clean") else ""
    title = f"Removal, {task}: {block['measure']}; {short(block['full']['mean'])} with all rows{clean}"
    return Section(title, tuple(header), tuple(lines))


def _ordered(methods: Methods, key: str) -> list[tuple[str, Mapping[str, Any]]]:
    """Return methods by role, best first within a role."""
    return sorted(methods.items(), key=lambda item: (ROLES.index(item[1]["role"]), -item[1][key]["mean"]))


def _in_roles(methods: Methods) -> list[tuple[str, Mapping[str, Any]]]:
    return sorted(methods.items(), key=lambda item: ROLES.index(item[1]["role"]))
