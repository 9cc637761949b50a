"""The page of a report: what it says, and a browser that opens it."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from influcoder.contributions.canonical_json import BILLION
from influcoder.contributions.kinds import Kind
from influcoder.contributions.ledger import Line
from influcoder.contributions.manifest import describe, outcome
from influcoder.contributions.page import SHOWN, render_page
from influcoder.contributions.rewards import largest_remainder
from influcoder.contributions.values import ValueSettings
from tests.browser import CHROMIUM, browser

VOID = {"meta", "link", "br", "img", "input", "hr"}


def make_lines(count: int) -> list[Line]:
    random = np.random.default_rng(0)
    totals = (random.normal(4, 6, count) * BILLION).astype(np.int64)
    spread = (random.uniform(0.5, 4, count) * BILLION).astype(np.int64)
    rewards = largest_remainder([max(0, int(total - wide)) for total, wide in zip(totals, spread, strict=True)], 1_000_000)
    lines = []
    for place in range(count):
        total, wide = int(totals[place]), int(spread[place])
        name = "0x" + random.bytes(20).hex() if place % 2 else f"Contributor <{place}> & sons"
        status = "paid" if rewards[place] else ("negative" if total < 0 else "uncertain")
        values = {
            "positive": max(total, 0) + BILLION,
            "negative": total - max(total, 0) - BILLION,
            "low": total - wide,
            "high": total + wide,
        }
        lines.append(Line(contributor=name, rows=40 + place, unique_rows=30, total=total, reward=rewards[place], status=status, **values))
    return lines


def make_page(lines: list[Line], kinds: list[Kind]) -> str:
    manifest: dict[str, Any] = {
        **describe(
            made_utc="2026-11-26T18:00:00+00:00",
            model={"onnx/model.onnx": "ab" * 32, "tokenizer.json": "cd" * 32},
            data={"rows": 12345, "merkle_root": "12" * 32},
            queries={"queries": 60, "merkle_root": "34" * 32},
            settings=ValueSettings(),
            top=5,
            provider="CPUExecutionProvider",
        ),
        **outcome(lines, 1_000_000, 412_345_678),
        "signer": "56" * 32,
    }
    return render_page(manifest, lines, kinds, 0.94)


KINDS = [
    Kind(rows=312, mean=41_200_000, positive_share=0.93, words=("translate", "french", "sentence", "into", "phrase", "word")),
    Kind(rows=1204, mean=8_300_000, positive_share=0.61, words=("python", "function", "list", "returns", "string", "loop")),
    Kind(rows=77, mean=-19_900_000, positive_share=0.12, words=()),
]


class Words(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def words_of(page: str) -> str:
    parser = Words()
    parser.feed(page)
    assert parser.open == []
    return " ".join(" ".join(parser.words).split())


def test_the_page_lists_everybody_and_says_what_a_value_means() -> None:
    lines = make_lines(14)
    page = make_page(lines, KINDS)
    words = words_of(page)
    assert "$" not in page and "<0> & sons" not in page
    for line in lines:
        assert line.contributor in words and f"{line.reward:,}" in words
        assert f"{line.total / BILLION:+,.2f}".replace("-", "\N{MINUS SIGN}") in words
    negative = [line.contributor for line in lines if line.status == "negative"]
    unpaid = words[words.index("Who is not paid") : words.index("What would add most next")]
    assert negative and all(name in unpaid for name in negative)
    assert (
        "translate, french" in words
        and "no telling word" in words
        and "93\N{NO-BREAK SPACE}% above zero" in page.replace("&nbsp;", "\N{NO-BREAK SPACE}")
    )
    for promise in ("relative to the queries", "first order", "not that the score is right", "influcoder verify", "exit code 2"):
        assert promise in words


def test_bars_and_intervals_stand_where_the_values_are() -> None:
    line = Line(
        contributor="a", rows=1, unique_rows=1, total=2 * BILLION, positive=2 * BILLION, negative=0, low=BILLION, high=3 * BILLION, reward=7, status="paid"
    )  # fmt: skip
    other = Line(
        contributor="b", rows=1, unique_rows=1, total=-BILLION // 2, positive=0, negative=-BILLION // 2, low=-BILLION, high=0, reward=0, status="negative"
    )  # fmt: skip
    page = make_page([line, other], [])
    assert 'fill helpful" style="left:25.00%;width:50.00%' in page and 'interval" style="left:50.00%;width:50.00%' in page
    assert 'fill harmful" style="left:12.50%;width:12.50%' in page and 'interval" style="left:0.00%;width:25.00%' in page
    assert "What would add most next" not in page


def test_many_contributors_and_nothing_paid() -> None:
    page = make_page(make_lines(SHOWN + 30), KINDS)
    assert page.count('class="who"') == SHOWN and "the other 30 are in contributions.parquet" in page
    nothing = [line for line in make_lines(30) if line.reward == 0]
    assert "Nothing is paid" in make_page(nothing, []) and "Nothing is paid" not in page


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_a_browser_opens_the_page_without_complaint_at_both_widths(tmp_path: Path) -> None:
    path = tmp_path / "contributions.html"
    path.write_text(make_page(make_lines(14), KINDS), encoding="utf-8")
    with browser(tmp_path / "profile") as tab:
        for width in (1280, 390):
            for dark in (False, True):
                tab.open(path, width, dark=dark)
                assert tab.complaints() == []
                assert tab.requests() == [path.resolve().as_uri()]
                assert tab.evaluate("document.documentElement.scrollWidth") <= width, "it scrolls sideways"
                outside = "[...document.querySelectorAll('main *')].filter(e => e.getBoundingClientRect().right > innerWidth).length"
                assert tab.evaluate(outside) == 0
                ink = tab.evaluate("getComputedStyle(document.body).color.match(/\\d+/g).map(Number).reduce((a, b) => a + b)")
                assert (ink > 380) == dark
            tab.screenshot(tmp_path / f"page-{width}.png")
            assert (tmp_path / f"page-{width}.png").stat().st_size > 10_000
