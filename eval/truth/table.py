"""`truth.json` as tables: agreement with retraining, steps on single rows, and what removing does."""

from __future__ import annotations

from typing import Any

from eval.table import ROLES, Section, short, with_interval


def make_sections(truth: dict[str, Any]) -> list[Section]:
    """Return one section a block that was measured."""
    sections = []
    if "lds" in truth:
        sections.append(_lds(truth["lds"]))
    if "tail_patch" in truth:
        sections.append(_tail_patch(truth["tail_patch"]))
    return sections + [_removal(name, block) for name, block in truth.get("removal", {}).items()]


def ordered(methods: dict[str, Any], key: str) -> list[str]:
    """Return names by role, best first within a role."""
    return sorted(methods, key=lambda name: (ROLES.index(methods[name]["role"]), -methods[name][key]["mean"]))


def _lds(block: dict[str, Any]) -> Section:
    lines = [
        (name, block["methods"][name]["role"], with_interval(block["methods"][name]["lds"]), _gap(block["methods"][name]["student_minus"]))
        for name in ordered(block["methods"], "lds")
    ]
    if block["ceiling"] is not None:
        lines.insert(0, ("a second training of the same halves", "ceiling", with_interval(block["ceiling"]), "-"))
    title = f"Linear datamodelling score: {block['subsets']} random halves, {block['seeds']} training(s) each, mean over queries"
    return Section(title, ("method", "role", "LDS", "student -"), tuple(lines))


def _gap(value: dict[str, float] | None) -> str:
    return "-" if value is None else with_interval(value, "value")


def _tail_patch(block: dict[str, Any]) -> Section:
    methods = block["methods"]
    lines = [(name, methods[name]["role"], *(_milli(methods[name][end]) for end in ("top", "bottom"))) for name in ordered(methods, "top")]
    title = f"One step on one row: change of the query's log-probability, thousandths of a nat a token, mean over {block['k']} rows"
    return Section(title, ("method", "role", "first rows", "last rows"), tuple(lines))


def _milli(value: dict[str, float]) -> str:
    return f"{1e3 * value['mean']:.2f} [{1e3 * value['low']:.2f}, {1e3 * value['high']:.2f}]"


def _removal(name: str, block: dict[str, Any]) -> Section:
    lines = [
        ("nothing removed", "0", with_interval(block["full"]), short(block["full"]["benign_loss"]["mean"])),
        ("never saw them", f"{block['positives']} of {block['positives']}", with_interval(block["clean"]), short(block["clean"]["benign_loss"]["mean"])),
    ]  # fmt: skip
    for method, found in block["methods"].items():
        for place, budget in enumerate(block["budgets"]):
            among = f"{found['found'][place]} of {block['positives']}"
            lines.append(
                (f"{method}, {budget} rows", among, with_interval(found["behaviour"][place]), short(found["benign_loss"][place]["mean"]))
            )
    title = f"Removed and retrained, {name}: {block['measure']}, mean of {block['seeds']} trainings"
    return Section(title, ("removed by", "planted rows removed", "behaviour", "benign loss"), tuple(lines))
