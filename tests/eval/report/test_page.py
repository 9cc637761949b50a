from __future__ import annotations

import csv
import io
import itertools
import json
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eval.report.__main__ import main
from eval.report.evidence import Evidence, load_evidence
from eval.report.page import facts_of, render_page, verdicts_of
from eval.report.stage import write_report
from eval.report.tables import ABOVE, all_sections, file_name, glance, to_csv, to_html
from influcoder.errors import RunError
from influcoder.runs import create_run, write_json_atomic
from tests.browser import CHROMIUM, browser
from tests.eval.report.worlds import gap, gate, make_summary, make_truth

HOSTILE = "<script>document.title = 'taken'</script><img src=x onerror=alert(1)>\"' & $introduction ${verdicts}"
FIGURES: dict[str, float | None] = {"teacher": None, "teacher_second_seed": 0.8, "student": 0.4, "bm25": 0.2, "random": 0.0, HOSTILE: 0.3}
FOUND: dict[str, float | None] = {"teacher": 0.9, "teacher_second_seed": 0.9, "student": 0.7, "bm25": 0.8, "random": 0.1, HOSTILE: 0.6}
VOID = {"meta", "link", "img", "br", "hr", "input"}


class Page(HTMLParser):
    """What a page is made of; fails on a tag that is not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("h1", "h2"):
            self.headings.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def row(place: int, text: str = "a row") -> dict[str, Any]:
    texts = {"prompt": text, "response": text * 40}
    return {"row_id": f"row{place}", "teacher_rank": place, "student_rank": 20 - place, "positive": ["poison"] * (place == 1), **texts}


def make_cases() -> dict[str, Any]:
    cases = [
        {"query_id": HOSTILE, "fold": 0, "agreement": kind, "spearman": rho, "candidates": 16, "prompt": "", "response": HOSTILE,
         "teacher": [row(1, HOSTILE), row(2, "x" * 300)], "student": [row(3), row(4)]}
        for kind, rho in (("most", 0.91), ("least", -0.2))
    ]  # fmt: skip
    return {"schema_version": 1, "cases": cases, "ranks": {"teacher": [0.1, 0.9], "student": [0.2, 0.8], "teacher_second_seed": None}}


def make_evidence(**changes: Any) -> Evidence:
    """Everything there is, hostile where a text comes from outside."""
    summary = make_summary(FIGURES, {"poison": FOUND, "facts": FOUND}, {"facts": "retrieval"})
    summary["methods"][HOSTILE]["role"] = "reference"
    summary["made_of"]["decoder"] = f"folder/{HOSTILE.replace('/', '')}"
    lines = [
        {"query_id": f"q{query}", "method": name, "seed": seed, "spearman": (value or 0) + 0.01 * query - 0.1 * seed}
        for name, value in FIGURES.items() for query in range(8) for seed in range(2) if value is not None
    ]  # fmt: skip
    truth = make_truth({"student": 0.4, "teacher": 0.5, "bm25": 0.1}, {"student": 0.1, "bm25": 0.4})
    truth["tail_patch"] = {"k": 5, "methods": {name: {"role": method["role"], "top": method["lds"], "bottom": method["lds"]}
                                              for name, method in truth["lds"]["methods"].items()}}  # fmt: skip
    record = {
        "git_commit": "4" * 12, "finished_utc": "2026-11-26T07:59:52+00:00",
        "hardware": {"machine": "x86_64", "cpus": 2, "gpus": ["H100"], "python": "3.11.7"},
    }  # fmt: skip
    return Evidence(**({"summary": summary, "record": record, "per_query": lines, "cases": make_cases(), "truth": truth} | changes))


@pytest.fixture(scope="module")
def text() -> str:
    return render_page(make_evidence())


def test_the_page_needs_nothing_else_and_takes_no_orders(text: str) -> None:
    page = Page(text)
    assert not {tag for tag, _ in page.found} & {"script", "iframe", "object", "img", "base"}
    assert [attributes["href"] for attributes in page.all("link")] == ["data:,"]
    assert [attributes["href"] for attributes in page.all("a")] == ["#facts"]
    assert not [name for _, attributes in page.found for name in attributes if name.startswith("on")]
    assert "http" not in text and "url(" not in text and "@import" not in text
    assert "&lt;script&gt;" in text and "$introduction" in text, "hostile words stand there as words, and are no placeholders"
    assert not [value for _, attributes in page.found for value in (attributes.get("class") or "").split() if "script" in value]


def test_a_reader_without_eyes_finds_everything(text: str) -> None:
    page = Page(text)
    assert page.headings == [
        "Does the student rank like its teacher?", "Verdict", "Figures", "Held against retraining", "Fidelity", "Task: poison",
        "Task: facts", "Cost against what tasks find", "Cases", "All tables", "What was measured",
    ]  # fmt: skip
    pictures = [attributes for attributes in page.all("svg") if attributes.get("class") == "chart"]
    assert len(pictures) >= 9 and all(attributes["role"] == "img" and attributes["aria-label"] for attributes in pictures)
    assert all("role" in attributes or attributes.get("aria-hidden") == "true" for attributes in page.all("svg"))
    assert len(page.all("caption")) == len(page.all("table")) == len(all_sections(make_evidence())) + 1
    assert all(attributes["scope"] in ("row", "col") for attributes in page.all("th"))
    levels = [int(tag[1]) for tag, _ in page.found if tag in ("h1", "h2", "h3", "h4", "h5")]
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels)), "no level of headings is left out"
    regions = [attributes for attributes in page.all("div") if attributes.get("role") == "region"]
    assert all(attributes["tabindex"] == "0" and attributes["aria-label"] for attributes in regions), "wide tables scroll by keyboard"


def test_verdicts_of_all_kinds_stand_there_in_order(text: str) -> None:
    evidence = make_evidence()
    verdicts = verdicts_of(evidence)
    assert len(verdicts) == 8 and text.count('<article class="card verdict ') == 8
    places = [text.index(f"<h3>{escape(verdict.question)}") for verdict in verdicts]
    assert places == sorted(places)
    assert "BM25 stands above it" in text and "✕" in text


def test_cases_show_both_rankings_side_by_side(text: str) -> None:
    cases = text.split("<h2>Cases</h2>")[1]
    assert cases.index("Where they agree most") < cases.index("Where they agree least")
    assert "Spearman .91 over 16 candidates" in cases and "Spearman -.20" in cases
    assert "First rows by the teacher" in cases and '<span class="other">student: 19 of 16</span> <span class="tag">poison</span>' in cases
    assert f"{'x' * 140}…" in cases and "x" * 141 not in cases.split("response")[0]


def test_facts_say_what_was_measured_on_what() -> None:
    facts = facts_of(make_evidence(summary=make_summary(FIGURES)))
    assert facts["Target"] == "influcoder, seed 0" and facts["Decoder"] == f"folder/small-lm; fingerprint {'d' * 16}"
    assert facts["Rows"] == f"24 judged of 40, test; distilled from 12, validated on 4; fingerprint {'c' * 16}"
    assert facts["Queries of fidelity"] == f"8 of these rows, 16 candidates each; fingerprint {'a' * 16}"
    assert facts["Commits"] == f"eval {'4' * 12}; teacher {'1' * 12}; student {'2' * 12}; truth {'3' * 12}"
    assert facts["Finished"] == "2026-11-26 07:59:52 UTC" and facts["Hardware"] == "H100; 2 CPU cores, x86_64; Python 3.11.7"


def test_a_failed_gate_is_cried_at_the_top() -> None:
    summary = make_summary(FIGURES)
    assert 'role="alert"' not in render_page(Evidence(summary=summary))
    summary["gates"]["shuffled"] = gate(False)
    text = render_page(Evidence(summary=summary))
    assert text.index('role="alert"') < text.index("<h2>Verdict</h2>") and "shuffled failed" in text


@pytest.mark.parametrize(
    "missing",
    [{"truth": None}, {"cases": None}, {"per_query": []}, {"truth": make_truth()}, {"truth": make_truth({"student": 0.4})},
     {"cases": {"cases": [], "ranks": {}}}, {"record": {}},
     {"summary": make_summary({"teacher": None, "student": 0.4, "bm25": 0.2})},
     {"summary": make_summary({"student": 0.4}, {"wrong": {"student": None, "teacher": 0.6, "loss": 0.7}}, {"wrong": "mislabel"})},
     {"summary": make_summary(FIGURES, {"facts": FOUND}, {"facts": "retrieval"}), "cases": None, "truth": None, "per_query": []}],
)  # fmt: skip
def test_what_is_missing_is_left_out(missing: dict[str, Any]) -> None:
    page = Page(render_page(make_evidence(**missing)))
    truth = missing.get("truth", make_evidence().truth)
    assert ("Held against retraining" in page.headings) == bool(truth and ("lds" in truth or "removal" in truth))
    cases = missing.get("cases", make_cases())
    assert ("Cases" in page.headings) == bool(cases and cases["cases"])
    assert len(page.headings) == len(set(page.headings))


def test_the_table_at_a_glance_marks_what_stands_above_the_student() -> None:
    summary = make_summary(FIGURES, {"poison": FOUND})
    summary["student_minus"]["teacher"]["poison_auprc"] = gap(-0.01)
    lines = {line[0]: line for line in glance(summary).lines}
    assert glance(summary).header == ("method", "role", "Spearman per query", "poison, AUPRC", "s per 1,000 rows")
    assert lines["bm25"] == ("bm25", "floor", ".20 [.18, .22]", f".80 [.78, .82] {ABOVE}", "30.00")
    assert ABOVE not in " ".join(lines["teacher"] + lines["teacher_second_seed"] + lines["random"]), "not apart, the ceiling, below"
    assert [line[0] for line in glance(summary).lines][:3] == ["teacher_second_seed", "teacher", "student"]


def test_tables_are_the_same_as_csv() -> None:
    sections = all_sections(make_evidence())
    assert len({file_name(section) for section in sections}) == len(sections), "one file a table"
    for section in sections:
        assert [tuple(line) for line in csv.reader(io.StringIO(to_csv(section)))] == [section.header, *section.lines]
        assert file_name(section).replace("_", "").isalnum()
        Page(to_html(section))


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """An eval run by hand."""
    evidence = make_evidence()
    with create_run(tmp_path / "eval", "eval", "") as made:
        write_json_atomic(made.folder / "summary.json", evidence.summary)
        write_json_atomic(made.folder / "cases.json", evidence.cases)
        pq.write_table(pa.Table.from_pylist(evidence.per_query), made.folder / "per_query.parquet")
    (tmp_path / "truth").mkdir()
    write_json_atomic(tmp_path / "truth" / "truth.json", evidence.truth)
    return tmp_path / "eval"


def test_the_command_makes_the_report_again(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--eval", str(run_folder)])
    assert capsys.readouterr().out == f"{run_folder / 'report.html'}\n"
    first = (run_folder / "report.html").read_text()
    assert "Held against retraining" not in first
    elsewhere = run_folder.parent / "new" / "page.html"
    main(["--eval", str(run_folder), "--truth", str(run_folder.parent / "truth"), "--output", str(elsewhere)])
    assert "Held against retraining" in elsewhere.read_text() and (run_folder / "report.html").read_text() == first
    content = json.loads(elsewhere.with_suffix(".json").read_text())
    evidence = load_evidence(run_folder, run_folder.parent / "truth")
    assert [found["answer"] for found in content["verdicts"]] == [verdict.answer for verdict in verdicts_of(evidence)]
    assert [table["title"] for table in content["tables"]] == [section.title for section in all_sections(evidence)]
    assert {path.name for path in (elsewhere.parent / "tables").iterdir()} == {f"{file_name(each)}.csv" for each in all_sections(evidence)}


def test_what_cannot_be_read_is_said_in_one_line(run_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"truth\.json: not readable .*; expected what python -m eval\.truth writes"):
        write_report(run_folder, tmp_path / "nowhere")
    write_json_atomic(tmp_path / "truth" / "truth.json", {"schema_version": 9})
    with pytest.raises(RunError, match=r"truth\.json: schema 9; expected 1"):
        write_report(run_folder, tmp_path / "truth")
    (run_folder / "per_query.parquet").write_text("nothing")
    with pytest.raises(RunError, match=r"per_query\.parquet: cannot be read"):
        write_report(run_folder)
    with pytest.raises(RunError, match="does not exist"):
        write_report(tmp_path / "no_run")


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: the page is not opened")
def test_a_browser_opens_the_page_without_complaint_at_both_widths(text: str, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text(text, encoding="utf-8")
    with browser(tmp_path / "profile") as tab:
        for width in (1280, 390):
            for dark in (False, True):
                tab.open(page, width, dark=dark)
                tab.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
                assert tab.complaints() == []
                assert tab.requests() == [page.resolve().as_uri()]
                assert tab.evaluate("innerWidth") == width
                assert tab.evaluate("document.documentElement.scrollWidth") <= width, "it scrolls sideways"
                assert tab.evaluate("document.title") == "Does the student rank like its teacher? · influcoder"
                assert tab.evaluate(OUTSIDE) == [], "words that a picture cuts off"
                ink = tab.evaluate("getComputedStyle(document.body).color.match(/\\d+/g).map(Number).reduce((a, b) => a + b)")
                assert (ink > 380) == dark
        tab.screenshot(tmp_path / "page.png", height=900)
        assert (tmp_path / "page.png").stat().st_size > 10_000


OUTSIDE = """[...document.querySelectorAll('svg.chart')].flatMap(chart => [...chart.querySelectorAll('text')].filter(word => {
  const [box, inside] = [chart.getBoundingClientRect(), word.getBoundingClientRect()];
  return inside.left < box.left - 1 || inside.right > box.right + 1 || inside.top < box.top - 1 || inside.bottom > box.bottom + 1;
}).map(word => word.textContent))"""
