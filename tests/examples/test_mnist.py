"""The MNIST example on scikit-learn's digits, tiny: its figures against slow ones, its files, its page in a browser."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from examples.mnist.__main__ import main
from examples.mnist.classifier import TrainingConfig, as_rows, flip_labels, margins, train_classifier
from examples.mnist.config import MnistConfig
from examples.mnist.images import load_digits
from examples.mnist.page import render_page
from examples.mnist.study import Study, figures, found_at, make_study, top, with_interval
from influcoder.errors import ConfigError
from influcoder.influence.agreement import MEANING
from influcoder.influence.row_model import Rows
from influcoder.runs import open_run
from tests.browser import CHROMIUM, browser

CONFIG = MnistConfig(
    rows=400, queries=24, curvature_rows=200, training=TrainingConfig(width=16, epochs=20, batch_size=32, learning_rate=0.01)
)


@pytest.fixture(scope="module")
def study() -> Study:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INFLUCODER_DATA", "nowhere")
        return make_study(CONFIG, *load_digits(None)[1:])


@pytest.fixture(scope="module")
def page(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "index.html"
    path.write_text(render_page(study, CONFIG, {"data": "some <digits>", "method": "ekfac", **figures(study)}), encoding="utf-8")
    return path


def test_labels_are_flipped_to_another_digit() -> None:
    labels = np.arange(1000, dtype=np.uint8) % 10
    given = flip_labels(labels, 0.137, seed=0)
    assert (given != labels).sum() == 137 and given.dtype == np.uint8 and given.max() == 9
    assert len({(int(old), int(new)) for old, new in zip(labels, given, strict=True) if old != new}) > 60, "to any other digit"
    np.testing.assert_array_equal(given, flip_labels(labels, 0.137, seed=0))
    assert (given != flip_labels(labels, 0.137, seed=1)).any()


def test_training_follows_its_seed_and_lowers_the_loss() -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
    rows = as_rows(images, np.arange(40, dtype=np.uint8) % 10)
    assert rows.inputs.dtype == torch.float32 and (float(rows.inputs.min()), float(rows.inputs.max())) == (0, 1)
    models = [
        train_classifier(rows, TrainingConfig(width=32, epochs=epochs, batch_size=8), seed)
        for epochs, seed in ((30, 0), (30, 0), (30, 1), (1, 0))
    ]
    assert torch.equal(models[0].theta, models[1].theta) and not torch.equal(models[0].theta, models[2].theta)
    losses = [float(model.losses(model.theta, rows).mean()) for model in models]
    assert losses[0] < losses[3] - 0.1


def test_margins_are_log_odds_of_the_true_digit(study: Study) -> None:
    model = train_classifier(as_rows(study.train.images, study.given), CONFIG.training, CONFIG.seed)
    probabilities = model.module(as_rows(study.train.images, study.given).inputs).double().softmax(1).detach().numpy()
    of_true = probabilities[np.arange(400), study.train.labels]
    np.testing.assert_allclose(margins(model, study.train), np.log(of_true / (1 - of_true)), atol=1e-4)
    np.testing.assert_array_equal(margins(model, study.train), study.margins)


def test_scores_say_which_digits_help(study: Study) -> None:
    """Train on from the final weights with one digit more: the loss on the test digit goes the way of the score's sign."""
    rows, queries = as_rows(study.train.images, study.given), as_rows(study.test.images, study.test.labels)
    model = train_classifier(rows, CONFIG.training, CONFIG.seed)
    as_it_is, right = _descend(model.theta, model, rows), 0
    for query in range(12):
        for sign, places in ((1, top(study.scores[[query]], 5)[0]), (-1, top(-study.scores[[query]], 5)[0])):
            more = Rows(
                torch.cat([rows.inputs, rows.inputs[places].repeat(4, 1)]), torch.cat([rows.targets, rows.targets[places].repeat(4)])
            )
            asked = queries[torch.tensor([query])]
            with_more, without = (float(model.losses(theta, asked)[0]) for theta in (_descend(model.theta, model, more), as_it_is))
            right += (without > with_more) == (sign > 0)
    assert right >= 22, f"{right} of 24"


def _descend(theta: torch.Tensor, model: Any, rows: Rows) -> torch.Tensor:
    for _ in range(20):
        theta = theta - 0.1 * torch.func.grad(lambda theta: model.losses(theta, rows).mean())(theta)
    return theta


def test_figures_equal_slow_ones(study: Study) -> None:
    found = figures(study)
    assert (found["rows"], found["flipped"], found["queries"]) == (400, 40, 24)
    flipped = study.given != study.train.labels
    for name, suspicion in study.suspicion.items():
        tenth = sorted(range(400), key=lambda place: -suspicion[place])[:40]
        assert found["flips_in_top_10_percent"][name] == pytest.approx(sum(flipped[tenth]) / 40)
        assert found_at(study, name, 1.0) == 1
    for name, scores in (("influence", study.scores), ("relatif", study.scores / np.sqrt(study.suspicion["self_influence"]))):
        same, wrong = [], []
        for query in range(24):
            order = sorted(range(400), key=lambda place: -scores[query, place])
            same += [study.given[place] == study.test.labels[query] for place in order[:10]]
            wrong += [flipped[place] for place in order[::-1][:10]]
        assert found["top_10"][name]["helpful_of_the_same_class"]["mean"] == pytest.approx(np.mean(same))
        assert found["top_10"][name]["harmful_that_are_flipped"]["mean"] == pytest.approx(np.mean(wrong))
    clean = [place for place in sorted(range(400), key=lambda place: -study.suspicion["self_influence"][place]) if not flipped[place]]
    assert study.edge_cases().tolist() == clean[:20]
    difference = study.margins[clean[:20]].mean() - study.margins[clean].mean()
    assert found["edge_cases"]["difference"]["mean"] == pytest.approx(difference)


def test_it_finds_what_it_is_to_find_on_the_small_digits_too(study: Study) -> None:
    found = figures(study)
    assert found["flips_in_top_10_percent"]["self_influence"] > 0.6
    assert found["top_10"]["relatif"]["helpful_of_the_same_class"]["mean"] > 0.9
    assert found["edge_cases"]["difference"]["high"] < 0


def test_an_interval_holds_the_mean_and_narrows_with_the_root_of_the_number() -> None:
    values = np.random.default_rng(0).normal(3, 1, 400)
    found = with_interval(values)
    assert found["mean"] == pytest.approx(values.mean())
    assert found["low"] < found["mean"] < found["high"]
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.15)
    apart = with_interval(values, values[:100] - 1)
    assert apart["mean"] == pytest.approx(values.mean() - values[:100].mean() + 1)
    assert apart["high"] - apart["low"] == pytest.approx(2 * 1.96 * np.hypot(values.std() / 20, values[:100].std() / 10), rel=0.15)


def test_the_exact_method_goes_along_with_ekfac(study: Study) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INFLUCODER_DATA", "nowhere")
        settings = {**vars(CONFIG), "method": "exact", "queries": 3}
        exact = make_study(MnistConfig(**settings), *load_digits(None)[1:])
    asked = [
        int(np.flatnonzero((study.test.images == image).all((1, 2)))[0]) for image in exact.test.images if _among(image, study.test.images)
    ]
    assert exact.scores.shape == (3, 400) and np.array_equal(exact.suspicion["self_influence"], study.suspicion["self_influence"])
    for query, place in zip(range(3), asked, strict=False):
        assert 0.4 < np.corrcoef(exact.scores[query], study.scores[place])[0, 1] < 0.9999


def _among(image: NDArray[np.uint8], images: NDArray[np.uint8]) -> bool:
    return bool((images == image).all((1, 2)).any())


class Tags(HTMLParser):
    """What a page is made of."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img", "line", "polyline"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()


def test_the_page_needs_nothing_else_and_names_every_image(page: Path, study: Study) -> None:
    text = page.read_text(encoding="utf-8")
    tags = Tags()
    tags.feed(re.sub(r"<(line|polyline)([^>]*)/>", r"<\1\2>", text))
    assert not tags.open
    images = [attributes for tag, attributes in tags.found if tag == "img"]
    assert all((attributes["src"] or "").startswith("data:image/png;base64,") and attributes["alt"] for attributes in images)
    classes = len(set(study.test.labels))
    assert len(images) == 21 * classes + 40 + 20 + 40
    assert not [tag for tag, _ in tags.found if tag in ("script", "iframe", "object")]
    assert "http" not in text and "url(" not in text and "@import" not in text and "$" not in text
    assert "prefers-color-scheme: dark" in text and MEANING.replace("'", "&#x27;") in text
    assert "some &lt;digits&gt;" in text


def test_the_curves_are_those_of_the_figures(page: Path, study: Study) -> None:
    text = page.read_text(encoding="utf-8")
    marks = {
        name: [tuple(map(float, point.split(","))) for point in found.split()]
        for name, found in re.findall(r'class="(\w+)" points="([^"]+)"', text)
    }
    assert set(marks) == {*study.suspicion, "chance"}
    (left, lower), (right, upper) = marks["chance"][0], (390.0, 12.0)
    for name in study.suspicion:
        for x, y in marks[name][1:]:
            share = 0.3 * (x - left) / (right - left)
            assert (lower - y) / (lower - upper) == pytest.approx(found_at(study, name, share), abs=0.03)
    assert marks["chance"][1] == pytest.approx((right, lower - 0.3 * (lower - upper)), abs=0.1)


def test_flipped_digits_are_framed_and_said(page: Path, study: Study) -> None:
    text = page.read_text(encoding="utf-8")
    shown = np.argsort(-study.suspicion["self_influence"], kind="stable")[:40]
    gallery = text.split("The highest self-influence of all")[1].split("</section>")[0]
    assert gallery.count('class="digit flipped"') == study.flipped[shown].sum() > 0
    first = next(int(place) for place in shown if study.flipped[place])
    true, given = study.train.labels[first], study.given[first]
    assert f'alt="a handwritten {true}, wrongly labelled {given}"' in gallery and f"<figcaption>{true} → {given}</figcaption>" in gallery


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: the page is not opened")
def test_a_browser_opens_the_page_without_complaint_at_both_widths(page: Path, tmp_path: Path) -> None:
    with browser(tmp_path / "profile") as tab:
        for width in (1280, 390):
            for dark in (False, True):
                tab.open(page, width, dark=dark)
                assert tab.complaints() == []
                assert tab.requests() == [page.resolve().as_uri()]
                assert tab.evaluate("innerWidth") == width
                assert tab.evaluate("document.documentElement.scrollWidth") <= width, "it scrolls sideways"
                assert tab.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)") is True
                ink = tab.evaluate("getComputedStyle(document.body).color.match(/\\d+/g).map(Number).reduce((a, b) => a + b)")
                assert (ink > 380) == dark
        tab.screenshot(tmp_path / "page.png", height=900)
        assert (tmp_path / "page.png").stat().st_size > 10_000


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_the_browser_would_complain(tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text("<div style='width: 2000px'>wide</div><script>console.error('no'); missing()</script><img src='gone.png'>")
    with browser(tmp_path / "profile") as tab:
        tab.open(bad, 390)
        assert len(tab.complaints()) >= 2 and any(address.endswith("gone.png") for address in tab.requests())
        assert tab.evaluate("document.documentElement.scrollWidth") >= 2000


def test_the_command_writes_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("INFLUCODER_DATA", str(tmp_path))
    settings = "--rows 200 --queries 10 --curvature_rows 50 --training.width 8 --training.epochs 2".split()
    main(["--output", str(tmp_path / "run"), *settings])
    assert open_run(tmp_path / "run", "mnist")["data"] == "scikit-learn's digits"
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["rows"] == 200 and summary["method"] == "ekfac"
    assert "of the wrong labels in the top 10 % by self-influence" in capsys.readouterr().out
    assert (tmp_path / "run" / "index.html").stat().st_size > 20_000


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rows": 10}, "rows 10, .* expected at least 100 rows"),
        ({"flipped": 1.0}, r"flipped 1\.0, .* a share in \(0, 1\)"),
        ({"damping": 0.0}, r"damping 0\.0; expected"),
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MnistConfig(**wrong)
    with pytest.raises(ConfigError, match="training: width 0"):
        TrainingConfig(width=0)


def test_more_queries_than_test_digits_are_refused() -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ConfigError, match="queries: 500; expected at most 397, the test digits"):
        patch.setenv("INFLUCODER_DATA", "nowhere")
        make_study(MnistConfig(queries=500), *load_digits(None)[1:])
