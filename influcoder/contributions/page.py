"""The page of a report: one HTML file that needs no other, `page.html` filled in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from influcoder.contributions.canonical_json import BILLION
from influcoder.contributions.kinds import Kind
from influcoder.contributions.ledger import STATUSES, Line

PAGE_FILE = "contributions.html"
TEMPLATE = Path(__file__).with_name("page.html")
SHOWN = 100
"""contributors in the table; the others are in contributions.parquet"""


def render_page(manifest: dict[str, Any], lines: Sequence[Line], kinds: Sequence[Kind], rank_stability: float) -> str:
    """Return the HTML of a report.

    Args:
        manifest: what is signed, the hashes of files apart.
        lines: the ledger.
        kinds: kinds of data, the most valuable first; may be empty.
        rank_stability: mean Spearman of the contributors' order over resampled queries, -1 to 1.
    """
    ordered = sorted(lines, key=lambda line: (-line.total, line.contributor))
    unpaid = [line for line in ordered if line.status != "paid"]
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        introduction=_introduction(manifest, lines),
        tiles="\n".join(_tiles(manifest, lines, rank_stability)),
        verdict=_verdict(manifest),
        contributors=_table(ordered),
        unpaid="\n".join(_unpaid(unpaid)),
        kinds=_kinds(kinds),
        settings=_settings(manifest),
    )


def _introduction(manifest: dict[str, Any], lines: Sequence[Line]) -> str:
    return (
        f"{_count(len(lines), 'contributor')} gave {_count(manifest['data']['rows'], 'row')}. How much did each one's rows teach a model of what "
        f"{_count(manifest['queries']['queries'], 'query', 'queries')} ask for, and how sure is that?"
    )


def _tiles(manifest: dict[str, Any], lines: Sequence[Line], rank_stability: float) -> Iterable[str]:
    paid = sum(line.status == "paid" for line in lines)
    yield _tile(f"{paid} of {len(lines)}", "contributors are paid: their value is above zero whichever queries one happens to ask")
    yield _tile(_grouped(manifest["paid"]), f"units of {_grouped(manifest['budget'])} are shared out")
    yield _tile(f"{sum(line.status == 'negative' for line in lines)}", "contributors' rows rather work against the queries")
    yield _tile(
        f"{rank_stability:.2f}".replace("-", "\N{MINUS SIGN}"),
        "rank correlation of the contributors' order with that under resampled queries; 1 is no luck at all",
    )


def _tile(value: str, words: str) -> str:
    return f'<div class="card tile"><b>{value}</b><span>{words}</span></div>'


def _verdict(manifest: dict[str, Any]) -> str:
    if manifest["status"] == "nothing paid":
        return '<p class="card warning">Nothing is paid: no contributor\'s interval lies above zero. Ask more queries, or others.</p>'
    return ""


def _table(lines: Sequence[Line]) -> str:
    if len(lines) > SHOWN:
        half = SHOWN // 2
        shown, left = [*lines[:half], *lines[-half:]], len(lines) - SHOWN
        note = f'<p class="note">The first and last {half}; the other {left} are in contributions.parquet.</p>'
    else:
        shown, note = list(lines), ""
    least = min(0, *(line.low for line in lines), *(line.total for line in lines))
    most = max(0, *(line.high for line in lines), *(line.total for line in lines))
    return f'<div class="card ledger">{"".join(_line(line, least, max(most - least, 1)) for line in shown)}</div>{note}'


def _line(line: Line, least: int, span: int) -> str:
    def place(value: int) -> float:
        return 100 * (value - least) / span

    zero, end = place(0), place(line.total)
    low, high = place(line.low), place(line.high)
    side = "harmful" if line.total < 0 else "helpful"
    words = f"{_value(line.total)}, between {_value(line.low)} and {_value(line.high)}"
    return (
        f'<div class="line {line.status.replace(" ", "-")}"><div class="who"><b>{escape(line.contributor)}</b>'
        f"<small>{_count(line.rows, 'row')}, {line.unique_rows:,} different</small></div>"
        f'<div class="bar" role="img" aria-label="{words}"><i class="zero" style="left:{zero:.2f}%"></i>'
        f'<i class="fill {side}" style="left:{min(zero, end):.2f}%;width:{abs(end - zero):.2f}%"></i>'
        f'<i class="interval" style="left:{low:.2f}%;width:{high - low:.2f}%"></i></div>'
        f'<div class="worth"><b>{_value(line.total)}</b><small>{_value(line.low)} to {_value(line.high)}</small></div>'
        f'<div class="reward"><b>{line.reward:,}</b><small>{escape(line.status)}</small></div></div>'
    )


def _unpaid(lines: Sequence[Line]) -> Iterable[str]:
    if not lines:
        yield "<p>Everybody is paid.</p>"
    for status, meaning in STATUSES.items():
        found = [line for line in lines if line.status == status]
        if found:
            names = ", ".join(f"{escape(line.contributor)}&nbsp;({_value(line.total)})" for line in found[:SHOWN])
            more = f" and {len(found) - SHOWN:,} more" if len(found) > SHOWN else ""
            yield f'<p><strong class="{"harmful" if status == "negative" else ""}">{status.capitalize()}</strong>, {meaning}: {names}{more}.</p>'


def _kinds(kinds: Sequence[Kind]) -> str:
    if not kinds:
        return ""
    most = max(1, *(abs(kind.mean) for kind in kinds))
    lines = "".join(
        f'<div class="kind"><div class="words">{escape(", ".join(kind.words)) or "<em>no telling word</em>"}'
        f"<small>{_count(kind.rows, 'different row')}, {100 * kind.positive_share:.0f}&nbsp;% above zero</small></div>"
        f'<div class="bar"><i class="fill {"harmful" if kind.mean < 0 else "helpful"}" style="left:0;width:{100 * abs(kind.mean) / most:.2f}%"></i></div>'
        f"<b>{_value(kind.mean, 4)}</b></div>"
        for kind in kinds
    )
    return (
        "<section><h2>What would add most next</h2><p>Rows that are alike, by the mean value of one row. More like the first kinds is the best "
        "guess for what to look for; the last ones can be left out. First order: it does not see that the tenth row of a kind teaches less "
        f'than the first.</p><div class="card kinds">{lines}</div></section>'
    )


def _settings(manifest: dict[str, Any]) -> str:
    settings, code, data = manifest["settings"], manifest["code"], manifest["data"]
    top = "all queries" if settings["top"] is None else f"its {settings['top']} best queries"
    near = settings["near_duplicate_jaccard"]
    alike = (
        "the same text up to case, white space and Unicode forms"
        if near is None
        else f"the same text, or word triples that overlap by {near} with an embedding's cosine of {settings['near_duplicate_cosine']}"
    )
    sharing = {"equal": "every row gets the same part of their mean", "first": "the first row gets all, which is its own value"}[
        settings["copies"]
    ]
    words = {
        "Score of a row": f"mean over {top}, less the same over queries of negative weight",
        "Copies": f"{alike}: valued once, {sharing}",
        "Odd rows": f"values above the {settings['cap_quantile']} quantile are cut to {manifest['cap']}: a very long or odd row earns no more. "
        "Low values are not cut",
        "Intervals": f"{settings['confidence']} of {settings['draws']} resamples of the queries; paid for is the lower end",
        "Rewards": "proportional to the lower end, whole units, largest remainders",
        "Rows": f"{data['rows']:,}, Merkle root {data['merkle_root']}",
        "Queries": f"{manifest['queries']['queries']:,}, Merkle root {manifest['queries']['merkle_root']}",
        "Encoder": next((f"{name} {digest}" for name, digest in manifest["model"].items() if name.endswith(".onnx")), ""),
        "Made": f"{manifest['made_utc']} by influcoder {code['influcoder']} {code['git_commit'] or ''}",
        "Signer": manifest["signer"],
    }
    return "".join(f"<tr><td>{escape(name)}</td><td>{escape(text)}</td></tr>" for name, text in words.items())


def _value(billionths: int, places: int = 2) -> str:
    return f"{billionths / BILLION:+,.{places}f}".replace("-", "\N{MINUS SIGN}")


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def _grouped(digits: str) -> str:
    return f"{int(digits):,}"
