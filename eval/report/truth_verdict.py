"""What retraining says: do scores predict it, does a step on the top rows help, does removing what is flagged undo a behaviour?

Pure rules on `truth.json`. The judge is the student where there is one, else the teacher.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eval.report.names import label, listing, sentence
from eval.report.standing import Figure, Floors, among_floors, of_intervals
from eval.report.verdict import MOST, Status, Verdict, against_floors
from eval.table import with_interval

Truth = Mapping[str, Any]
Methods = Mapping[str, Mapping[str, Any]]


def truth_verdicts(truth: Truth) -> list[Verdict]:
    """Return a verdict for each block that is there."""
    found = [judge(truth[block]) for block, judge in (("lds", predicts_retraining), ("tail_patch", moves_the_model)) if truth.get(block)]
    return [*found, *(removal_works(task, block) for task, block in (truth.get("removal") or {}).items())]


def judged_method(methods: Methods) -> str | None:
    """Return the student's name, else the teacher's; None without either."""
    names = [name for role in ("student", "teacher") for name, method in methods.items() if method["role"] == role]
    return next(iter(names), None)


def predicts_retraining(lds: Mapping[str, Any]) -> Verdict:
    """Judge the linear datamodelling score against floors and the agreement of retrained models with one another."""
    question = "Do scores predict what retraining without the rows does?"
    methods, ceiling = lds["methods"], lds.get("ceiling")
    name = judged_method(methods)
    if name is None:
        return Verdict(question, "unknown", "Not asked of the student or its teacher.")
    mine = methods[name]["lds"]
    floors = _floors(
        methods, "lds", mine, {other: method.get("student_minus") for other, method in methods.items()} if name == "student" else {}
    )
    teacher = next((other for other, method in methods.items() if method["role"] == "teacher" and other != name), None)
    reasons = [
        f"LDS (Spearman over {lds['subsets']} retrained subsets, {lds['seeds']} seeds): {label(name)} {with_interval(mine)}"
        + ("" if teacher is None else f", {label(teacher)} {with_interval(methods[teacher]['lds'])}")
        + f"; {_best(floors)}."
    ]
    if ceiling:
        reasons.append(f"Retrained models of two seeds agree with one another at {with_interval(ceiling)}: no score can have much more.")
    return Verdict(question, *(against_floors(floors) or _predicted(name, mine, ceiling, floors)), tuple(reasons))


def moves_the_model(patch: Mapping[str, Any]) -> Verdict:
    """Judge one step on the top rows against one on the bottom rows, and against the top rows of floors."""
    question = f"Does one step on the top {patch['k']} rows make the query's response likelier?"
    methods = patch["methods"]
    name = judged_method(methods)
    if name is None:
        return Verdict(question, "unknown", "Not asked of the student or its teacher.")
    top, bottom = methods[name]["top"], methods[name]["bottom"]
    floors = _floors(methods, "top", top, {})
    reasons = (
        f"Change of the log-probability of the response: top rows {signed(top)}, bottom rows {signed(bottom)}"
        + (f"; top rows of the best floor, {label(floors.best)}, {signed(floors.figures[floors.best])}." if floors.best else "."),
    )
    if top["low"] <= 0 or of_intervals(top, bottom) != "above":
        words = "the top rows are not apart from no change" if top["low"] <= 0 else "the top rows are not apart from the bottom rows"
        return Verdict(question, "no", f"Not shown: {words}.", reasons)
    if floors.above or floors.level:
        near = [*floors.above, *floors.level]
        return Verdict(question, "partly", f"Yes, and more than the bottom rows do; but not apart from or below {listing(near)}.", reasons)
    return Verdict(question, "yes", "Yes: more than the bottom rows and than the top rows of every floor.", reasons)


def removal_works(task: str, block: Mapping[str, Any]) -> Verdict:
    """Judge the behaviour after the largest budget: is it nearer to a model that never saw the rows than after any floor's removal?

    Without a clean model a lower behaviour counts as better, as a planted behaviour's margin is.
    """
    question = f"Does removing what it flags undo {task}?"
    methods, budgets, full, clean = block["methods"], block["budgets"], block["full"], block.get("clean")
    name = judged_method(methods)
    if name is None:
        return Verdict(question, "unknown", "Not asked of the student or its teacher.")
    sign = 1.0 if clean and clean["mean"] > full["mean"] else -1.0
    undone = {other: _turned(method["behaviour"][-1], sign) for other, method in methods.items()}
    mine, before = undone[name], _turned(full, sign)
    floors = among_floors(mine, {other: undone[other] for other in undone if methods[other]["role"] == "floor"}, {})
    after = methods[name]
    reasons = [
        f"{sentence(block['measure'])}: {with_interval(full)} before, {with_interval(after['behaviour'][-1])} after removing {budgets[-1]:,} rows"
        + (f", {with_interval(clean)} in a model that never saw them." if clean else "."),
        f"{after['found'][-1]:g} of the {block['positives']:,} planted rows were among them"
        + (f"; best floor {label(floors.best)}: {with_interval(methods[floors.best]['behaviour'][-1])}." if floors.best else "."),
    ]
    if of_intervals(mine, before) != "above":
        return Verdict(question, "no", "Not shown: the behaviour is not apart from what it was.", tuple(reasons))
    return Verdict(question, *_undone(name, mine, before, _turned(clean, sign) if clean else None, floors), tuple(reasons))


def signed(found: Figure) -> str:
    """Return a change with its interval, three digits that count."""
    return f"{found['mean']:+.3g} [{found['low']:+.3g}, {found['high']:+.3g}]"


def _undone(name: str, mine: Figure, before: Figure, clean: Figure | None, floors: Floors) -> tuple[Status, str]:
    share = "" if clean is None else f" ({100 * (mine['mean'] - before['mean']) / (clean['mean'] - before['mean']):.0f} % of the way)"
    if floors.above:
        return "no", f"Not better than without a teacher: removing what {listing(floors.above)} flags undoes more of it."
    if floors.level:
        return "partly", f"It goes{share}, yet it is not apart from what {listing(floors.level)} flags."
    return "yes", f"Yes: what the {label(name)} flags undoes more of it{share} than what any floor flags."


def _predicted(name: str, mine: Figure, ceiling: Figure | None, floors: Floors) -> tuple[Status, str]:
    over = f"the {label(name)} is above every floor" if floors.best else "no floor was asked"
    if mine["low"] <= 0:
        return "no", "Not shown: it is not apart from 0."
    if not ceiling or ceiling["mean"] <= 0:
        return "partly", f"In part: {over}; how much could be had is not known."
    share = mine["mean"] / ceiling["mean"]
    words = f"{over}, with {100 * share:.0f} % of the noise ceiling"
    return ("yes", f"Yes: {words}.") if share >= MOST else ("partly", f"In part: {words}.")


def _floors(methods: Methods, key: str, mine: Figure, gaps: Mapping[str, Any]) -> Floors:
    return among_floors(mine, {name: method[key] for name, method in methods.items() if method["role"] == "floor"}, gaps)


def _best(floors: Floors) -> str:
    return f"the best floor, {label(floors.best)}, {with_interval(floors.figures[floors.best])}" if floors.best else "no floor was asked"


def _turned(found: Figure, sign: float) -> Figure:
    """Return a figure so that more is better."""
    low, high = sorted((sign * found["low"], sign * found["high"]))
    return {"mean": sign * found["mean"], "low": low, "high": high}
