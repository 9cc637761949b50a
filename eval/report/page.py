"""The page: one HTML file that needs no other, `page.html` filled in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path, PurePath
from string import Template
from typing import Any

from eval.report.cases import render_cases
from eval.report.evidence import Evidence
from eval.report.figures import Picture, cost_pictures, fidelity_pictures, task_pictures
from eval.report.names import label
from eval.report.tables import all_sections, to_html
from eval.report.truth import truth_pictures
from eval.report.truth_verdict import truth_verdicts
from eval.report.verdict import Verdict, eval_verdicts, gates_held

TEMPLATE = Path(__file__).with_name("page.html")
MARKS = {"yes": ("✓", "yes"), "partly": ("~", "in part"), "no": ("✕", "no"), "unknown": ("?", "not asked")}


def verdicts_of(evidence: Evidence) -> list[Verdict]:
    """Return all verdicts: fidelity, then what retraining says, then tasks, cost and gates."""
    fidelity, *others = eval_verdicts(evidence.summary)
    return [fidelity, *(truth_verdicts(evidence.truth) if evidence.truth else []), *others]


def render_page(evidence: Evidence) -> str:
    """Return the HTML of a report."""
    summary = evidence.summary
    first, *others = all_sections(evidence)
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        introduction=_introduction(summary),
        alarm=_alarm(summary),
        made=escape(_made(facts_of(evidence))),
        verdicts="".join(_verdict(verdict) for verdict in verdicts_of(evidence)),
        glance=to_html(first),
        sections="".join(_sections(evidence)),
        tables="".join(f"<details><summary>{escape(section.title)}</summary>{to_html(section)}</details>" for section in others),
        facts="".join(
            f"<tr><th scope='row'>{escape(name)}</th><td>{escape(words)}</td></tr>" for name, words in facts_of(evidence).items()
        ),
    )


def facts_of(evidence: Evidence) -> dict[str, str]:
    """Return what was measured on what, by which code, when."""
    summary, record, truth = evidence.summary, evidence.record, evidence.truth or {}
    counts, target, made = summary["counts"], summary["target"], summary.get("made_of", {})
    asked = summary.get("query_set", {})
    facts = {
        "Target": f"{target['method']}, seed {target.get('seed', 0)}",
        "Decoder": _joined(_short_path(made.get("decoder") or truth.get("decoder")), _named("fingerprint", target.get("decoder_fingerprint"))),
        "Rows": _joined(
            f"{counts['judged']:,} judged of {counts['rows']:,}, {summary['split']}",
            f"distilled from {counts['train']:,}, validated on {counts['validation']:,}" if "train" in counts else None,
            _named("fingerprint", asked.get("rows")),
        ),
        "Queries of fidelity": _joined(
            f"{counts['queries']:,} of these rows, {counts['candidates']:,} candidates each", _named("fingerprint", asked.get("fidelity"))
        ),
        "Queries of tasks": _joined(f"{counts.get('task_queries', 0):,}", _named("fingerprint", asked.get("task"))),
        "Student seeds": str(counts["student_seeds"]),
        "Commits": _joined(
            _named("eval", record.get("git_commit")), _named("teacher", made.get("teacher_commit")),
            _named("student", ", ".join(made.get("student_commits", []))), _named("truth", truth.get("git_commit")),
        ),
        "Finished": record.get("finished_utc", "").replace("T", " ").replace("+00:00", " UTC"),
        "Hardware": _hardware(record.get("hardware", {})),
    }  # fmt: skip
    return {name: words for name, words in facts.items() if words}


def _introduction(summary: dict[str, Any]) -> str:
    counts = summary["counts"]
    tasks = f" and {len(summary['tasks'])} task{'s' * (len(summary['tasks']) > 1)} with known answers" if summary["tasks"] else ""
    return (
        f"A student learnt to rank training rows by their influence on a language model, as its teacher "
        f"(<strong>{escape(summary['target']['method'])}</strong>) does from gradients. It is judged on <strong>{counts['judged']:,}</strong> rows "
        f"that it has not seen, by <strong>{counts['queries']:,}</strong> queries{tasks}, beside methods that need no teacher (floors)."
    )


def _made(facts: dict[str, str]) -> str:
    return " · ".join(f"{name.lower()} {facts[name]}" for name in ("Decoder", "Target", "Commits", "Finished") if name in facts)


def _alarm(summary: dict[str, Any]) -> str:
    held = gates_held(summary)
    return (
        f'<p class="alarm" role="alert"><strong>{escape(held.answer)}</strong> {escape(" ".join(held.reasons))}</p>'
        if held.status == "no"
        else ""
    )


def _verdict(verdict: Verdict) -> str:
    mark, word = MARKS[verdict.status]
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in verdict.reasons)
    return (
        f'<article class="card verdict {verdict.status}"><p class="status"><span aria-hidden="true">{mark}</span> {word}</p>'
        f"<h3>{escape(verdict.question)}</h3><p class='answer'>{escape(verdict.answer)}</p>{f'<ul>{reasons}</ul>' if reasons else ''}</article>"
    )


def _sections(evidence: Evidence) -> Iterable[str]:
    summary = evidence.summary
    if evidence.truth and (pictures := truth_pictures(evidence.truth)):
        yield _section("Held against retraining", "What models trained again without rows say, beside what scores said before.", pictures)
    yield _section(
        "Fidelity",
        f"How well each method's ranking of {summary['counts']['candidates']:,} rows follows the teacher's.",
        fidelity_pictures(evidence),
    )
    for name in summary["tasks"]:
        yield _section(f"Task: {label(name)}", _asked(summary["tasks"][name]), task_pictures(summary, name))
    if pictures := cost_pictures(summary):
        inside = f"<div class='split'>{''.join(map(_picture, pictures))}</div>"
        yield f"<section><h2>Cost against what tasks find</h2><details><summary>A picture for each task</summary>{inside}</details></section>"
    if evidence.cases and evidence.cases["cases"]:
        words = "Rank 1 is the row that helps the query most. Tags name tasks that want the row found. Texts are cut."
        yield f"<section><h2>Cases</h2><p class='note'>{words}</p>{render_cases(evidence.cases['cases'])}</section>"


def _section(title: str, words: str, pictures: Sequence[Picture]) -> str:
    if not pictures:
        return ""
    return f"<section><h2>{escape(title)}</h2><p class='note'>{escape(words)}</p><div class='split'>{''.join(map(_picture, pictures))}</div></section>"


def _picture(picture: Picture) -> str:
    key = "".join(
        f'<li><svg viewBox="0 0 22 8" aria-hidden="true"><path class="line {css}" d="M0 4L22 4"/></svg>{escape(words)}</li>'
        for css, words in picture.key
    )
    return (
        f"<figure class='card panel'><figcaption><h3>{escape(picture.title)}</h3><p>{escape(picture.note)}</p></figcaption>"
        f"{picture.svg}{f'<ul class=key>{key}</ul>' if key else ''}</figure>"
    )


def _asked(task: dict[str, Any]) -> str:
    if task["kind"] == "retrieval":
        return f"{task['answered_queries']:,} queries, each with its own rows among {task['candidates']:,}."
    asked = "by their influence on themselves" if task["kind"] == "mislabel" else f"by {task['queries']:,} queries"
    return f"{task['positives']:,} of {task['candidates']:,} rows are to be found {asked}."


def _hardware(hardware: dict[str, Any]) -> str | None:
    if not hardware:
        return None
    return _joined(*hardware.get("gpus", []), f"{hardware['cpus']} CPU cores, {hardware['machine']}", f"Python {hardware['python']}")


def _short_path(path: str | None) -> str | None:
    """Return the last two parts: the whole of a hub id, and of a folder what tells it from others."""
    return None if path is None else "/".join(PurePath(path).parts[-2:])


def _named(name: str, value: str | None) -> str | None:
    return f"{name} {value}" if value else None


def _joined(*parts: str | None) -> str:
    return "; ".join(part for part in parts if part)
