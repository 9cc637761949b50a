"""The page of galleries: one HTML file that needs no other, `page.html` filled in."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from numpy.typing import NDArray

from examples.mnist.config import MnistConfig
from examples.mnist.png import data_uri
from examples.mnist.study import Study, found_curve, top
from influcoder.influence.agreement import MEANING
from influcoder.runs import git_commit

TEMPLATE = Path(__file__).with_name("page.html")
SUSPICIONS = {"self_influence": "self-influence", "gradient_length": "length of the gradient", "loss": "loss"}
GALLERY, LOOKED_AT = 40, 0.3
METHODS = {
    "ekfac": "EK-FAC on the Gauss-Newton matrix (Grosse et al. 2023)",
    "exact": "conjugate gradients on the whole Gauss-Newton matrix (Koh & Liang 2017)",
}


def render_page(study: Study, config: MnistConfig, figures: dict[str, Any]) -> str:
    """Return the HTML of a study; `figures` are those of `study.figures`, with `data` and `method`."""
    flips, edge = figures["flips_in_top_10_percent"], study.edge_cases()
    suspects = np.argsort(-study.suspicion["self_influence"], kind="stable")[:GALLERY]
    clean = np.flatnonzero(~study.flipped)
    drawn = np.random.default_rng(config.seed).permutation(clean)[:GALLERY]
    shown = _one_of_each(study.test.labels)
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        introduction=_introduction(figures),
        tiles="\n".join(_tiles(figures)),
        queries_note=_queries_note(figures),
        queries="\n".join(_query(study, query) for query in shown),
        flips_self=_percent(flips["self_influence"]),
        flips_note=f"The length of the gradient finds {_percent(flips['gradient_length'])}, the digit's plain loss "
        f"{_percent(flips['loss'])}, chance 10&nbsp;%.",
        chart=_chart(study),
        suspects=_gallery(study, suspects),
        edge_text=_edge_text(figures["edge_cases"]),
        edge=_gallery(study, edge[:GALLERY]),
        random=_gallery(study, drawn),
        meaning=escape(MEANING),
        settings=_settings(config, figures),
    )


def _introduction(figures: dict[str, Any]) -> str:
    return (
        f"A small network learnt to read handwritten digits from {figures['rows']:,} examples, of which {figures['flipped']:,} carried a "
        "wrong label. Influence functions ask of every answer it gives: <strong>which of those examples pushed it there, and which held it "
        "back?</strong>"
    )


def _tiles(figures: dict[str, Any]) -> Iterable[str]:
    edge, ends, flips = figures["edge_cases"], figures["top_10"]["relatif"], figures["flips_in_top_10_percent"]
    helpful = ends["helpful_of_the_same_class"]
    yield _tile(_percent(helpful["mean"]), "of the ten most helpful digits have the test digit's class, one in ten by chance")
    yield _tile(_percent(flips["self_influence"]), "of the wrong labels are among the tenth of the digits with the highest self-influence")
    yield _tile(
        _percent(ends["harmful_that_are_flipped"]["mean"]),
        f"of the ten most harmful digits have a wrong label, {_percent(figures['flipped'] / figures['rows'])} of all digits",
    )
    yield _tile(
        _signed(edge["difference"]["mean"]),
        "margin (log-odds) of the rightly labelled digits of the highest self-influence against the average: edge cases",
    )


def _tile(value: str, words: str) -> str:
    return f'<div class="card tile"><b>{value}</b><span>{words}</span></div>'


def _queries_note(figures: dict[str, Any]) -> str:
    relative, plain = (figures["top_10"][kind] for kind in ("relatif", "influence"))
    other = relative["harmful_of_another_class"]
    return (
        "Ranked by influence over the root of the digit's influence on itself (RelatIF): otherwise wrong labels, which move everything, stand "
        f"in {_percent(plain['helpful_that_are_flipped']['mean'])} of the helpful places, and only "
        f"{_percent(plain['helpful_of_the_same_class']['mean'])} of those digits have the test digit's class. Of the ten most harmful, "
        f"{_percent(other['mean'])} {_interval(other)} were trained as another digit. The network reads "
        f"{_percent(figures['test_accuracy'])} of all test digits rightly."
    )


def _query(study: Study, query: int) -> str:
    label, read = study.test.labels[query], study.predicted[query]
    rows = []
    for kind, places in (("helpful", top(study.relative[[query]])[0]), ("harmful", top(-study.relative[[query]])[0])):
        rows.append(
            f'<div><h3 class="{kind}">Most {kind}</h3><div class="digits">{_gallery(study, places, study.relative[query])}</div></div>'
        )
    verdict = f"read as {read}" if read == label else f'<span class="harmful">read as {read}, wrongly</span>'
    return (
        f'<article class="card query"><div class="asked"><figure class="digit"><span class="frame">'
        f'<img alt="test digit: a handwritten {label}" src="{data_uri(study.test.images[query])}"></span>'
        f'<figcaption>A test {label}<small>{verdict}</small></figcaption></figure></div><div class="rows">{"".join(rows)}</div></article>'
    )


def _gallery(study: Study, places: NDArray[np.integer], scores: NDArray[np.float64] | None = None) -> str:
    return "".join(_digit(study, int(place), None if scores is None else float(scores[place])) for place in places)


def _digit(study: Study, place: int, score: float | None) -> str:
    true, given, flipped = study.train.labels[place], study.given[place], study.flipped[place]
    words = f"a handwritten {true}" + (f", wrongly labelled {given}" if flipped else "")
    title = f' title="score {score:+.3g}"' if score is not None else ""
    return (
        f'<figure class="digit{" flipped" if flipped else ""}"{title}><span class="frame"><img alt="{words}" src="{data_uri(study.train.images[place])}">'
        f"</span><figcaption>{f'{true} → {given}' if flipped else given}</figcaption></figure>"
    )


def _edge_text(edge: dict[str, Any]) -> str:
    difference = edge["difference"]
    return (
        f"The {edge['digits']} rightly labelled digits of the highest self-influence have a margin of {_signed(edge['margin'])}, all rightly "
        f"labelled ones {_signed(edge['margin_of_all_rightly_labelled'])}: a difference of <strong>{_signed(difference['mean'])}</strong> "
        f"[{_signed(difference['low'])}, {_signed(difference['high'])}]. The margin is the log-odds of the true digit; below zero the network "
        "would rather say something else."
    )


def _chart(study: Study) -> str:
    """Return the share of wrong labels found by the share looked at, as SVG."""
    left, right, upper, lower = 44, 390, 12, 250

    def point(looked: float, found: float) -> str:
        return f"{left + (right - left) * looked / LOOKED_AT:.1f},{lower - (lower - upper) * found:.1f}"

    parts = []
    for share in (0, 0.25, 0.5, 0.75, 1):
        y = point(0, share).split(",")[1]
        parts.append(
            f'<line class="axis" x1="{left}" x2="{right}" y1="{y}" y2="{y}"/><text x="{left - 8}" y="{y}" dy="4" text-anchor="end">{_percent(share)}</text>'
        )
    for share in (0, 0.1, 0.2, 0.3):
        parts.append(f'<text x="{point(share, 0).split(",")[0]}" y="{lower + 20}" text-anchor="middle">{_percent(share)}</text>')
    tenth = point(0.1, 0).split(",")[0]
    parts.append(f'<line class="mark" x1="{tenth}" x2="{tenth}" y1="{upper}" y2="{lower}"/>')
    parts.append(f'<polyline class="chance" points="{point(0, 0)} {point(LOOKED_AT, LOOKED_AT)}"/>')
    steps = np.unique(np.linspace(1, round(LOOKED_AT * len(study.train)), 120).round().astype(int))
    for name in reversed(SUSPICIONS):
        curve = found_curve(study, name)
        points = " ".join(point(step / len(curve), curve[step - 1]) for step in steps)
        parts.append(f'<polyline class="{name}" points="{point(0, 0)} {points}"/>')
    key = "".join(
        f'<li><svg viewBox="0 0 22 8" aria-hidden="true"><line class="{name}" x1="0" x2="22" y1="4" y2="4"/></svg>{words}</li>'
        for name, words in {**SUSPICIONS, "chance": "chance"}.items()
    )
    label = "Share of the wrong labels found against the share of digits looked at, by self-influence, length of the gradient, and loss"
    return f'<svg class="chart" viewBox="0 0 400 280" role="img" aria-label="{label}">{"".join(parts)}</svg><ul class="key">{key}</ul>'


def _settings(config: MnistConfig, figures: dict[str, Any]) -> str:
    training = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in asdict(config.training).items())
    lines = {
        "Digits": f"{figures['data']}, {figures['rows']:,} to train on, {figures['queries']} asked about",
        "Network": f"two hidden layers of {config.training.width} ReLUs, cross-entropy, AdamW ({training}), seed {config.seed}",
        "Curvature": f"{METHODS[config.method]}, of {min(config.curvature_rows, figures['rows']):,} training digits; damping {config.damping:g} "
        "mean eigenvalues; labels in expectation over the network's own answers",
        "Self-influence": METHODS["ekfac"],
        "Made by": f"influcoder {git_commit() or ''}: python -m examples.mnist",
    }
    return "".join(f"<tr><td>{escape(name)}</td><td>{escape(words)}</td></tr>" for name, words in lines.items())


def _one_of_each(labels: NDArray[np.uint8]) -> list[int]:
    """Return the first test digit of each class that was asked about."""
    return [int(np.flatnonzero(labels == label)[0]) for label in np.unique(labels)]


def _signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "\N{MINUS SIGN}")


def _percent(share: float) -> str:
    return f"{100 * share:.0f}&nbsp;%"


def _interval(found: dict[str, float]) -> str:
    return f"[{100 * found['low']:.0f}, {100 * found['high']:.0f}]"
