"""What an eval's figures say, in words: does the student follow its teacher, find the rows, pay, and did the gates hold?

Pure rules on `summary.json`; nothing is known of any run beforehand. Status: yes, partly, no, or unknown where it was not asked. A
floor is what needs no distillation: where one is above, the verdict says so, and where one is not apart, nothing is claimed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from eval.report.names import label, listing, sentence, stands
from eval.report.standing import Figure, Floors, Gap, among_floors, of_intervals, relation, share_of_the_way
from eval.table import TASK, short, with_interval

Status = Literal["yes", "partly", "no", "unknown"]
Summary = Mapping[str, Any]
MOST, LITTLE = 0.5, 0.1
"""shares of the way from the best floor to the ceiling: a student goes most of it, in part, or hardly any"""
WORTH, HARDLY = 2.0, 1.1
"""times as fast as its teacher: a student is cheaper, somewhat cheaper, or hardly"""
GATES = ("trained", "randomised", "cardinality", "shuffled")
FIDELITY, SECOND_SEED = "per_query_spearman", "teacher_second_seed"


@dataclass(frozen=True)
class Verdict:
    """One question and its answer."""

    question: str
    status: Status
    answer: str
    """one sentence"""
    reasons: tuple[str, ...] = ()
    """the figures it was read off, a sentence each"""


def eval_verdicts(summary: Summary) -> list[Verdict]:
    """Return the verdicts of a summary: fidelity, each task, cost, gates."""
    tasks = [finds_rows(summary, name) for name in summary["tasks"]]
    return [follows_teacher(summary), *tasks, pays(summary), gates_held(summary)]


def follows_teacher(summary: Summary) -> Verdict:
    """Judge the student's per-query Spearman between the best floor and the teacher's own second seed."""
    question = f"Does the student rank rows as its teacher ({summary['target']['method']}) does?"
    student, ceiling = figure(summary, "student", FIDELITY), figure(summary, SECOND_SEED, FIDELITY)
    if student is None:
        return Verdict(question, "unknown", "Not measured: the student has no such figure.")
    floors = floors_of(summary, student, FIDELITY)
    reasons = [
        f"Spearman per query {with_interval(student)} over {student['n']} queries; {_beside(floors, FIDELITY, summary)}"
        + ("." if ceiling is None else f"; the teacher's second seed {with_interval(ceiling)}, the most that could be had.")
    ]
    status, answer = against_floors(floors) or _against_ceiling(student, ceiling, gap_to(summary, SECOND_SEED, FIDELITY), floors)
    if (residual := figure(summary, "student", "residual_spearman")) is not None:
        reasons.append(f"What it says of a query beyond each row's own average (residual): {with_interval(residual)}.")
    if len(student.get("seeds", ())) > 1:
        reasons.append(f"Seed by seed: {', '.join(short(value) for value in student['seeds'])}.")
    return Verdict(question, status, answer, tuple(reasons))


def finds_rows(summary: Summary, task: str) -> Verdict:
    """Judge the student's primary figure of a task, against every floor first and its teacher next."""
    facts = summary["tasks"][task]
    metric = f"{task}_{facts['primary']}"
    what = {"detection": "the rows", "retrieval": "each query's own rows", "mislabel": "the wrong responses"}[facts["kind"]]
    question = f"Does it find {what} of {task}?"
    student, teacher = figure(summary, "student", metric), figure(summary, "teacher", metric)
    if student is None:
        return Verdict(question, "unknown", "Not asked of the student: it says nothing of a row without a query.", _claim(summary, metric))
    floors = floors_of(summary, student, metric)
    chance = f"; base rate {facts['base_rate']:.3f}" if "base_rate" in facts else ""
    reasons = [
        f"{TASK.get(facts['primary'], facts['primary'])} {with_interval(student)}"
        + ("" if teacher is None else f"; its teacher {with_interval(teacher)}")
        + f"; {_beside(floors, metric, summary)}{chance}."
    ]
    status, answer = _found(floors, student, teacher, gap_to(summary, "teacher", metric))
    return Verdict(question, status, answer, (*reasons, *_claim(summary, metric)))


def pays(summary: Summary) -> Verdict:
    """Judge what scoring costs, and from how many rows on the student has won back its set-up."""
    question = "Is it cheaper than its teacher?"
    costs = {name: method["cost"] for name, method in summary["methods"].items() if method.get("cost")}
    student, teacher = costs.get("student"), costs.get("teacher")
    if student is None or teacher is None or not student["seconds_per_1000"]:
        return Verdict(question, "unknown", "Not known: the cost of one of the two was not measured.")
    times = teacher["seconds_per_1000"] / student["seconds_per_1000"]
    reasons = (
        f"{student['seconds_per_1000']:,.2f} s for 1 000 rows, the teacher {teacher['seconds_per_1000']:,.2f} s, on this machine; "
        f"set-up {student['setup_seconds']:,.0f} s (gradients of the rows to distil, and the distillation).",
        f"{student['bytes_per_row']:,.0f} bytes a row to keep; the teacher's index {teacher['bytes_per_row']:,.0f}.",
    )
    even = student["break_even_rows"]
    if even is None:
        return Verdict(question, "no", f"No: it takes {1 / times:.1f} times as long a row, so that it never pays.", reasons)
    pay = f"{times:,.{0 if times >= 10 else 2}f} times as fast a row; pays from {even:,.0f} rows on"
    found: tuple[Status, str] = ("yes", "Yes") if times >= WORTH else ("partly", "Somewhat") if times >= HARDLY else ("no", "Hardly")
    return Verdict(question, found[0], f"{found[1]}: {pay}.", reasons)


def gates_held(summary: Summary) -> Verdict:
    """Say which gates failed, and which were not asked."""
    gates = summary["gates"]
    failed = [name for name, gate in gates.items() if not gate["passed"]]
    silent = [name for name in GATES if name not in gates]
    reasons = [f"{name}: {gates[name]['value']:.3f}, limit {gates[name]['limit']:.3f}; {gates[name]['meaning']}." for name in failed]
    reasons += [f"Not asked: {', '.join(silent)}."] if silent else []
    question = "Are the figures to be believed?"
    if failed:
        return Verdict(question, "no", f"No: {', '.join(failed)} failed; nothing else on this page is to be believed.", tuple(reasons))
    asked = f"{', '.join(gates)} and leakage held" if gates else "no leakage; no other gate was asked"
    return Verdict(question, "yes" if gates else "partly", f"{'Yes' if gates else 'In part'}: {asked}.", tuple(reasons))


def figure(summary: Summary, method: str, metric: str) -> Figure | None:
    """Return a figure, or None where the method or its figure is not there."""
    found: Figure | None = summary["methods"].get(method, {"metrics": {}})["metrics"].get(metric)
    return found


def gap_to(summary: Summary, method: str, metric: str) -> Gap | None:
    """Return the student's paired lead over a method, where there is one."""
    found: Gap | None = summary["student_minus"].get(method, {}).get(metric)
    return found


def floors_of(summary: Summary, mine: Figure, metric: str) -> Floors:
    """Place the student's figure among all floors that have one."""
    names = [name for name, method in summary["methods"].items() if method["role"] == "floor"]
    floors = {name: found for name in names if (found := figure(summary, name, metric)) is not None}
    return among_floors(mine, floors, {name: gap_to(summary, name, metric) for name in floors})


def against_floors(floors: Floors) -> tuple[Status, str] | None:
    """Return the answer of a figure that is not above all floors; None for one that is."""
    if floors.above:
        return "no", f"No: {listing(floors.above)} {stands(floors.above)} above it, without having been taught."
    if floors.level:
        return "no", f"Not shown: it is not apart from {listing(floors.level)}."
    return None


def _against_ceiling(mine: Figure, ceiling: Figure | None, gap: Gap | None, floors: Floors) -> tuple[Status, str]:
    over = "above every floor" if floors.best else "with no floor beside it"
    if ceiling is None:
        return "partly", f"It is {over}; how much could be had is not known, for lack of a second seed."
    if relation(mine, ceiling, gap) != "below":
        return "yes", f"Yes: {over}, and as well as the teacher's own second seed does."
    if floors.best is None:
        return "partly", f"In part: below the teacher's own second seed, {over}."
    share = share_of_the_way(mine["mean"], floors.figures[floors.best]["mean"], ceiling["mean"])
    way = f"{100 * share:.0f} % of the way from the best of them ({label(floors.best)}) to the teacher's own second seed"
    if share >= MOST:
        return "yes", f"Yes, most of the way: {over}, {way}."
    return ("no", f"Hardly: {over}, but only {way}.") if share < LITTLE else ("partly", f"In part: {over}, but only {way}.")


def _found(floors: Floors, student: Figure, teacher: Figure | None, gap: Gap | None) -> tuple[Status, str]:
    if floors.above:
        return "no", f"Not better than what needs no teacher: {listing(floors.above)} {stands(floors.above)} above it."
    if "random" in floors.level:
        return "no", f"Not shown: it is not apart from {listing(floors.level)}."
    if teacher is None:
        beside = ""
    else:
        beside = {
            "above": ", and better than its teacher",
            "level": ", as well as its teacher",
            "below": ", but less well than its teacher",
        }[relation(student, teacher, gap)]
    if floors.level:
        need = "needs" if len(floors.level) == 1 else "need"
        return "partly", f"It finds them{beside}; yet it is not apart from {listing(floors.level)}, which {need} no teacher."
    return "yes", f"Yes: above every floor{beside}." if floors.best else f"It finds them{beside}; no floor was asked."


def _claim(summary: Summary, metric: str) -> tuple[str, ...]:
    """Return a warning where a floor has more than the teacher itself: influence is then not what the task needs."""
    teacher = figure(summary, "teacher", metric)
    if teacher is None:
        return ()
    floors = floors_of(summary, teacher, metric).figures
    more = [name for name, found in floors.items() if found["mean"] > teacher["mean"]]
    if not more:
        return ()
    others = f"and {len(more) - 1} more stand" if more[1:] else "stands"
    apart = "intervals apart" if of_intervals(floors[more[0]], teacher) == "above" else "intervals touch"
    return (
        f"{sentence(label(more[0]))}, {with_interval(floors[more[0]])}, {others} above the teacher itself, {with_interval(teacher)} ({apart}): "
        "this task makes no case for influence.",
    )


def _beside(floors: Floors, metric: str, summary: Summary) -> str:
    if floors.best is None:
        return "no floor was asked"
    gap = gap_to(summary, floors.best, metric)
    lead = "" if gap is None else f" (lead {with_interval(gap, 'value')})"
    return f"the best floor, {label(floors.best)}, {with_interval(floors.figures[floors.best])}{lead}"
