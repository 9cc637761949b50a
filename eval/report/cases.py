"""The cases as HTML: what was asked, and what teacher and student hold to be its first rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from eval.report.names import label
from eval.table import short

PROMPT_CHARS, RESPONSE_CHARS = 140, 220
KINDS = {"most": "Where they agree most", "least": "Where they agree least"}


def render_cases(cases: Sequence[Mapping[str, Any]]) -> str:
    """Return the queries of most and of least agreement, under a heading each."""
    parts = []
    for kind, title in KINDS.items():
        found = [case for case in cases if case["agreement"] == kind]
        if found:
            parts.append(f"<h3>{title}</h3>{''.join(_case(case) for case in found)}")
    return "".join(parts)


def _case(case: Mapping[str, Any]) -> str:
    lists = "".join(
        f'<div><h5>First rows by the {ranker}</h5><ol class="rows">{"".join(_row(row, ranker, case["candidates"]) for row in case[ranker])}</ol></div>'
        for ranker in ("teacher", "student")
    )
    heading = f"Query {escape(case['query_id'])} <small>Spearman {short(case['spearman'])} over {case['candidates']:,} candidates</small>"
    return f'<article class="card case"><h4>{heading}</h4>{_text(case)}<div class="pair">{lists}</div></article>'


def _row(row: Mapping[str, Any], ranker: str, candidates: int) -> str:
    other = "student" if ranker == "teacher" else "teacher"
    tags = "".join(f' <span class="tag">{escape(label(task))}</span>' for task in row["positive"])
    ranks = f'<b>{row[f"{ranker}_rank"]}</b> <span class="other">{other}: {row[f"{other}_rank"]:,} of {candidates:,}</span>{tags}'
    return f'<li value="{row[f"{ranker}_rank"]}"><div class="ranks">{ranks}</div>{_text(row)}</li>'


def _text(texts: Mapping[str, Any]) -> str:
    prompt = f'<p class="prompt">{escape(_cut(texts["prompt"], PROMPT_CHARS))}</p>' if texts["prompt"] else ""
    return f'{prompt}<p class="response">{escape(_cut(texts["response"], RESPONSE_CHARS))}</p>'


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most].rstrip('…')}…"
