from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from eval.report.bars import Bar, Strip, bars, strips
from eval.report.lines import Level, Line, recall_curves, removal_curves
from eval.report.points import Priced, cost_and_quality, scatter
from eval.report.svg import Axis, apart, decades, dots, picture, polyline, text, ticks


def elements(svg: str, tag: str, css: str) -> list[ElementTree.Element]:
    """Return the elements of a tag that have this class; fails where the picture is not well-formed."""
    return [found for found in ElementTree.fromstring(svg).iter(tag) if css in found.get("class", "").split()]


def numbers(found: ElementTree.Element) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d+\.?\d*", found.get("d", ""))]


def words(svg: str) -> list[str]:
    return [found.text or "" for found in ElementTree.fromstring(svg).iter("text")]


def test_an_axis_places_values() -> None:
    assert [Axis(0, 2, 10, 30).at(value) for value in (0, 1, 2, 5, -1)] == [10, 20, 30, 30, 10]
    assert Axis(0, 1, 100, 0).at(0.25) == 75
    assert Axis(0.01, 100, 0, 40, "log").at(1) == pytest.approx(20)
    assert Axis(0, 1, 0, 100, "root").at(0.25) == 50


@pytest.mark.parametrize(
    ("ends", "most", "expected"),
    [
        ((0, 1), 6, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        ((-0.07, 0.21), 5, [0, 0.1, 0.2]),
        ((0, 0.03), 6, [0, 0.01, 0.02, 0.03]),
        ((3, 17), 6, [5, 10, 15]),
        ((1, 4002), 3, [2000, 4000]),
    ],
)
def test_ticks_are_round(ends: tuple[float, float], most: int, expected: list[float]) -> None:
    assert ticks(*ends, most) == pytest.approx(expected)
    assert decades(0.02, 150) == [0.1, 1, 10, 100]


@given(low=st.floats(-100, 100), size=st.floats(1e-4, 1e4), most=st.integers(3, 8))
def test_ticks_are_within_and_few(low: float, size: float, most: int) -> None:
    found = ticks(low, low + size, most)
    assert 0 < len(found) <= most
    assert all(low - 1e-6 * size - 1e-9 <= value <= low + size + 1e-6 * size + 1e-9 for value in found)


@pytest.mark.parametrize("places", [[10.0, 50.0, 90.0], [50.0, 50.0, 50.0], [0.0, 1.0, 99.0, 100.0, 100.0], [70.0, 20.0, 22.0, 69.0]])
def test_labels_move_as_little_as_can_be(places: list[float]) -> None:
    moved = apart(places, 12, 0, 100)
    order = np.argsort(places, kind="stable")
    assert (np.diff(np.array(moved)[order]) >= 12 - 1e-9).all() and min(moved) >= 0 and max(moved) <= 100
    wanted = np.array(places)[order]
    limits = [{"type": "ineq", "fun": lambda x: np.diff(x) - 12}, {"type": "ineq", "fun": lambda x: np.concatenate([x, 100 - x])}]
    best = minimize(lambda x: ((x - wanted) ** 2).sum(), np.linspace(5, 95, len(places)), constraints=limits, method="SLSQP").x
    assert np.array(moved)[order] == pytest.approx(best, abs=1e-3)


def test_marks_are_short_and_words_are_escaped() -> None:
    assert dots([(1, 2.04), (3.55, 4)], "student") == '<path class="dots student" d="M1 2h0M3.5 4h0"/>'
    assert polyline([(0, 1), (2, 3)], "a") == '<path class="line a" d="M0 1L2 3"/>'
    (found,) = words(picture(10, 'a "quote" & <tag>', [text(1, 2, "<b>&")]))
    assert found == "<b>&"


def test_bars_begin_at_zero_and_carry_their_intervals() -> None:
    svg = bars([Bar("one", "student", 0.5, 0.4, 0.7), Bar("two", "floor", -0.1, -0.2, 0.0)], "figure", "words", (0.8, "ceiling"))
    (one,), (two,) = elements(svg, "rect", "student"), elements(svg, "rect", "floor")
    (zero,), (mark,) = elements(svg, "path", "zero"), elements(svg, "path", "mark")
    at_zero, at_mark = numbers(zero)[0], numbers(mark)[0]
    unit = (at_mark - at_zero) / 0.8
    assert float(one.get("x", 0)) == pytest.approx(at_zero, abs=0.11) and float(one.get("width", 0)) == pytest.approx(0.5 * unit, abs=0.11)
    assert float(two.get("x", 0)) + float(two.get("width", 0)) == pytest.approx(at_zero, abs=0.11)
    first = numbers(elements(svg, "path", "interval")[0])
    assert [(first[0] - at_zero) / unit, (first[2] - at_zero) / unit] == pytest.approx([0.4, 0.7], abs=0.01)
    assert {"one", "two", ".50", "-.10", "ceiling .80"} <= set(words(svg))


def test_a_bar_of_nothing_is_drawn() -> None:
    assert ".00" in words(bars([Bar("x" * 40, "floor", 0.0, 0.0, 0.0)], "figure", "words"))


def test_strips_have_a_tick_a_query_the_middle_half_and_the_mean() -> None:
    svg = strips([Strip("one", "student", np.array([0.0, 0.2, 0.4, 0.6, 1.0]))], "figure", "words")
    (rug,), (half,), (mean,) = elements(svg, "path", "rug"), elements(svg, "rect", "bar"), elements(svg, "path", "mean")
    xs = numbers(rug)[::3]
    assert len(xs) == 5

    def at(value: float) -> float:
        return xs[0] + value * (xs[-1] - xs[0])

    assert float(half.get("x", 0)) == pytest.approx(at(0.2), abs=0.11) and float(half.get("width", 0)) == pytest.approx(
        at(0.6) - at(0.2), abs=0.11
    )
    assert numbers(mean)[0] == pytest.approx(at(0.44), abs=0.11)


def test_curves_go_through_their_points() -> None:
    svg = recall_curves([Line("student", [0, 0.25, 1], [0, 0.5, 1])], 0.1, "words")
    (found,) = elements(svg, "path", "student")
    (x0, y0), (x1, y1), (x2, y2) = np.reshape(numbers(found), (3, 2))
    assert (x1 - x0) / (x2 - x0) == pytest.approx(0.5, abs=0.01), "a quarter stands at half: roots"
    assert (y1 - y0) / (y2 - y0) == pytest.approx(0.5, abs=0.01) and y2 < y0, "up is more"


def test_removal_has_bands_and_levels() -> None:
    line = Line("student", [0, 10, 20], [0.5, 0.3, 0.1], [0.4, 0.2, 0.0], [0.6, 0.4, 0.2])
    svg = removal_curves([line], [Level("clean", -0.1, -0.2, 0.0)], "rows", "words")
    bands = [found for found in elements(svg, "path", "band") if "student" in found.get("class", "")]
    corners = np.reshape(numbers(bands[0]), (6, 2))
    (curve,) = [found for found in elements(svg, "path", "line") if "student" in found.get("class", "")]
    ys = np.reshape(numbers(curve), (3, 2))[:, 1]
    assert (corners[:3, 1] < ys).all() and (corners[:2:-1, 1] > ys).all()
    (mark,) = elements(svg, "path", "mark")
    per_unit = (ys[1] - ys[0]) / 0.2
    assert numbers(mark)[1] == pytest.approx(ys[0] + 0.6 * per_unit, abs=0.3)
    assert {"clean", "0", "10", "20"} <= set(words(svg))


def test_points_of_a_scatter_stand_in_the_square() -> None:
    svg = scatter([0, 1, 0.5], [0, 1, 0.25], "a", "b", "words")
    (found,) = elements(svg, "path", "dots")
    (x0, y0, _), (x1, y1, _), (x2, y2, _) = np.reshape(numbers(found), (3, 3))
    assert x1 - x0 == y0 - y1 == 238
    assert (x2 - x0, y0 - y2) == pytest.approx((119, 59.5), abs=0.11)
    assert numbers(elements(svg, "path", "mark")[0]) == [x0, y0, x1, y1]


def test_costs_are_logarithmic_and_nothing_stands_at_the_left() -> None:
    points = [
        Priced(name, name, seconds, mean, mean - 0.1, mean + 0.1)
        for name, seconds, mean in (("a", 0.1, 0.2), ("b", 10, 0.5), ("c", 1, 0.5), ("d", 0, 0.1))
    ]
    svg = cost_and_quality(points, "figure", "words")
    at = {name: numbers(elements(svg, "path", "dots")[place])[:2] for place, name in enumerate("abcd")}
    assert at["b"][0] - at["c"][0] == pytest.approx(at["c"][0] - at["a"][0], abs=0.11)
    assert at["d"][0] == 44 and at["b"][1] == at["c"][1] < at["a"][1] < at["d"][1]
    names = {found.text: float(found.get("y", 0)) for found in ElementTree.fromstring(svg).iter("text") if found.text in tuple("abcd")}
    assert min(np.diff(sorted(names.values()))) >= 13.9
