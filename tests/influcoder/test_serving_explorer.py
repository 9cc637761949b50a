"""The explorer in a browser, against a real server: ask, read, filter, select, export."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.browser import CHROMIUM, Page, browser
from tests.influcoder.serving_process import JSON, ROWS, Server, base, make_served, rows_of, served

for module in ("fastapi", "uvicorn", "prometheus_client"):
    pytest.importorskip(module, reason="the server's packages are not installed; do: pip install 'influcoder[serve]'")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")

QUERY = {"prompt": "river bread", "response": "green tea prints seven stars"}
VISIBLE = "[...document.querySelectorAll('#top li, #bottom li')].filter(e => !e.hidden)"
STATUS = "document.getElementById('status').textContent"


@pytest.fixture(scope="module")
def folder(exported_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_served(exported_folder, tmp_path_factory.mktemp("explored"))


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with served(*base(folder), *rows_of(folder)) as running:
        yield running


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


def wait(tab: Page, condition: str) -> None:
    deadline = time.monotonic() + 30
    while not tab.evaluate(condition):
        assert time.monotonic() < deadline, (condition, tab.evaluate(STATUS), tab.complaints())
        time.sleep(0.05)


def put(tab: Page, field: str, value: str, event: str = "input") -> None:
    tab.evaluate(f"(e => {{ e.value = {json.dumps(value)}; e.dispatchEvent(new Event('{event}')) }})(document.getElementById('{field}'))")


def press(tab: Page, key: str, code: int, *, modifiers: int = 0, text: str = "") -> None:
    for kind in ("keyDown", "keyUp"):
        tab.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, modifiers=modifiers, text=text)


def ask(tab: Page, server: Server, width: int = 1280, *, dark: bool = False, **query: str) -> None:
    tab.open(server.address + "/", width, dark=dark)
    wait(tab, "document.getElementById('k').length > 0")
    for field, value in (QUERY | query).items():
        put(tab, field, value)
    tab.evaluate("document.getElementById('go').click()")
    wait(tab, f"{STATUS}.includes('shown')")


def texts_of(tab: Page, selector: str) -> list[str]:
    found: list[str] = tab.evaluate(f"{VISIBLE}.map(e => e.querySelector({selector!r}).textContent)")
    return found


def test_what_is_shown_is_what_the_server_answers(tab: Page, server: Server) -> None:
    ask(tab, server)
    answer = server.ask(QUERY, k=10).json["queries"][0]
    rows = answer["top"] + answer["bottom"]
    assert [name.startswith(row["id"]) for name, row in zip(texts_of(tab, ".name"), rows, strict=True)] == [True] * 20
    assert texts_of(tab, ".score") == [f"{row['score']:.4f}".replace("-", "\N{MINUS SIGN}") for row in rows]
    widths = tab.evaluate(f"{VISIBLE}.map(e => parseFloat(e.querySelector('.bar i').style.width))")
    largest = max(abs(row["score"]) for row in rows)
    assert widths == pytest.approx([50 * abs(row["score"]) / largest for row in rows], abs=1e-3)
    assert "by <b>bo</b>" in " ".join(texts_of(tab, "small")), "markup in a name is text"
    text = server.send("GET", "/rows/row%207%2F%C3%BC%3F%23%25").json
    assert tab.evaluate("fetchJson('rows/' + encodeURIComponent('row 7/ü?#%')).then(row => row.response)") == text["response"]
    assert str(ROWS) in tab.evaluate("document.getElementById('served').textContent")
    assert tab.complaints() == []
    assert all(address.startswith(server.address + "/") for address in tab.requests())


def most_carried(server: Server, sign: int) -> tuple[int, dict[str, Any], str]:
    """Return the place among the rows toward, the highlights and the response of the row that has the strongest words of a sign."""
    found = []
    for place, row in enumerate(server.ask(QUERY, k=10).json["queries"][0]["top"]):
        body = json.dumps({"row": row["id"], "queries": [QUERY]}).encode()
        highlights = server.send("POST", "/highlights", body, JSON).json["highlights"][0]
        changes = [span["change"] for span in highlights["row"] + highlights["query"]]
        found.append((max(sign * change for change in changes) / max(map(abs, changes)), place, highlights, row["id"]))
    strength, place, highlights, row_id = max(found, key=lambda each: each[0])
    assert strength > 0.25, "no row to show it on"
    return place, highlights, server.send("GET", f"/rows/{quote(row_id, safe='')}").json["response"]


@pytest.mark.parametrize(("width", "sign"), [(1280, 1), (390, -1)])
def test_an_open_row_shows_which_words_carry_its_score(tab: Page, server: Server, width: int, sign: int, tmp_path: Path) -> None:
    place, answer, response = most_carried(server, sign)
    ask(tab, server, width)
    details = f"document.querySelectorAll('#top details')[{place}]"
    tab.evaluate(f"{details}.querySelector('summary').focus()")
    press(tab, "Enter", 13, text="\r")
    wait(tab, f"{details}.querySelector('.key').textContent.includes('not the teacher')")
    shown = tab.evaluate(f"[...{details}.querySelectorAll('blockquote')].slice(-2).map(e => e.textContent)")
    assert shown == [f"Response{response}", f"What you asked about{QUERY['response']}"]
    marks = tab.evaluate(
        f"[...{details}.querySelectorAll('mark')].map(e => "
        "[e.textContent, e.className, +e.style.getPropertyValue('--strength'), getComputedStyle(e).backgroundColor, "
        "getComputedStyle(e).textDecorationLine, getComputedStyle(e).textDecorationStyle])"
    )
    spans = answer["row"] + answer["query"]
    largest = max(abs(span["change"]) for span in spans)
    assert len({mark[3] for mark in marks}) > 3, "the strength is seen"
    for (text, kind, strength, _, line, style), span in zip(marks, spans, strict=True):
        assert text == span["text"].rstrip() and kind.startswith("against" if span["change"] < 0 else "toward")
        assert strength == pytest.approx(abs(span["change"]) / largest, abs=2e-3)
        if strength > 0.21:
            assert (line, style) == ("underline", "dashed" if span["change"] < 0 else "solid"), "not by colour alone"
    strongest = max(answer["row"], key=lambda span: abs(span["change"]))
    said = tab.evaluate(f"{details}.querySelector('.key').textContent")
    assert f"{strongest['text'].strip()}\N{RIGHT DOUBLE QUOTATION MARK} {'' if strongest['change'] < 0 else '+'}" in said
    assert tab.evaluate("document.documentElement.scrollWidth") <= width and tab.complaints() == []
    before = len(tab.requests())
    press(tab, "Enter", 13, text="\r")
    press(tab, "Enter", 13, text="\r")
    wait(tab, f"{details}.open")
    assert len(tab.requests()) == before, "it is asked once"
    tab.screenshot(tmp_path / f"highlights-{width}.png", height=1600)


def test_filter_select_export(tab: Page, server: Server, tmp_path: Path) -> None:
    tab.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    ask(tab, server)
    before = len(tab.requests())
    assert tab.evaluate("document.getElementById('export').disabled")
    put(tab, "contributor", "=ada", "change")
    assert all("by ada" in name for name in texts_of(tab, "small")) and 0 < len(texts_of(tab, "small")) < 20
    put(tab, "contributor", "", "change")
    put(tab, "filter", "GARDEN")
    shown: int = tab.evaluate(f"{VISIBLE}.length")
    assert 0 < shown < 20 and all("garden" in text for text in texts_of(tab, "details"))
    tab.evaluate("document.getElementById('all').click()")
    put(tab, "filter", "nothing says this")
    assert tab.evaluate(f"{VISIBLE}.length") == 0 and tab.evaluate("document.getElementById('all').disabled")
    assert tab.evaluate(STATUS) == f"0 of 20 rows shown, {shown} selected."
    put(tab, "filter", "")
    assert tab.evaluate("document.getElementById('export').textContent") == f"Export {shown}"
    tab.evaluate("document.getElementById('export').click()")
    wait(tab, f"{STATUS}.includes('exported')")
    path, deadline = tmp_path / "selection.jsonl", time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < deadline, list(tmp_path.iterdir())
        time.sleep(0.05)
    exported: list[dict[str, Any]] = [json.loads(line) for line in path.read_text().splitlines()]
    answer = server.ask(QUERY, k=10).json["queries"][0]
    rows = {(side, row["id"]): row for side in ("top", "bottom") for row in answer[side]}
    assert len(exported) == shown
    for row in exported:
        assert "garden" in f"{row['id']} {row['prompt']} {row['response']}".lower()
        expected = rows[row["side"], row["id"]]
        assert set(row) == {*expected, "side", "prompt", "response"} and row["contributor"] == expected["contributor"]
        assert row["score"] == pytest.approx(expected["score"], abs=1e-6)
    assert [address for address in tab.requests()[before:] if not address.startswith("blob:")] == []
    assert tab.complaints() == []


def test_the_keyboard_is_enough_and_fields_have_names(tab: Page, server: Server) -> None:
    tab.open(server.address + "/", 1280)
    wait(tab, "document.getElementById('k').length > 0")
    put(tab, "response", QUERY["response"])
    tab.evaluate("document.getElementById('response').focus()")
    press(tab, "Enter", 13, modifiers=2)
    wait(tab, f"{STATUS}.includes('shown')")
    tab.evaluate("document.querySelector('#top input').focus()")
    press(tab, " ", 32, text=" ")
    assert tab.evaluate(STATUS) == "20 of 20 rows shown, 1 selected."
    press(tab, "Tab", 9)
    assert tab.evaluate("document.activeElement.tagName") == "SUMMARY"
    press(tab, "Enter", 13, text="\r")
    assert tab.evaluate("document.querySelector('#top details').open")
    unnamed = (
        "[...document.querySelectorAll('input, textarea, select')].filter(e => !e.labels.length || !e.labels[0].textContent.trim()).length"
    )
    assert tab.evaluate(unnamed) == 0
    assert tab.evaluate("document.getElementById('status').getAttribute('aria-live')") == "polite"
    assert tab.complaints() == []


def test_it_fits_both_widths_in_light_and_dark(tab: Page, server: Server, tmp_path: Path) -> None:
    for width in (1280, 390):
        for dark in (False, True):
            ask(tab, server, width, dark=dark)
            tab.evaluate("document.querySelector('#top details').open = true")
            assert tab.evaluate("document.documentElement.scrollWidth") <= width, "it scrolls sideways"
            outside = "[...document.querySelectorAll('main *')].filter(e => e.getBoundingClientRect().right > innerWidth + 0.5).length"
            assert tab.evaluate(outside) == 0
            ink = tab.evaluate("getComputedStyle(document.body).color.match(/\\d+/g).map(Number).reduce((a, b) => a + b)")
            assert (ink > 380) == dark
            assert tab.complaints() == []
            tab.screenshot(tmp_path / f"explorer-{width}-{'dark' if dark else 'light'}.png", height=1600)


def test_a_refusal_is_said_and_a_token_mends_it(tab: Page, folder: Path) -> None:
    with served(*base(folder), "--token_variable", "THE_TOKEN", THE_TOKEN="s3cret") as running:
        tab.open(running.address + "/", 390)
        wait(tab, "!document.getElementById('token-field').hidden")
        put(tab, "response", QUERY["response"])
        tab.evaluate("document.getElementById('go').click()")
        wait(tab, f"{STATUS}.startsWith('no valid token')")
        put(tab, "token", "s3cret")
        tab.evaluate("document.getElementById('go').click()")
        wait(tab, f"{STATUS}.includes('20 of 20 rows')")
        assert tab.evaluate("document.querySelectorAll('details').length") == 0, "this server has no texts"
        assert tab.evaluate("document.cookie + JSON.stringify(localStorage)") == "{}", "the token is not kept"


def test_a_page_with_other_scripts_would_not_run_them(tab: Page, server: Server) -> None:
    tab.open(server.address + "/", 390)
    tab.evaluate("document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.foreign = 1'}))")
    assert tab.evaluate("typeof window.foreign") == "undefined"
