"""What the pictures show is what they are given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from influcoder.influence.f_influence import compose, trade_off
from influcoder.influence.f_influence_plot import (
    DRAWN,
    HARMFUL,
    HELPFUL,
    UNKNOWN,
    draw_intervals,
    draw_over_training,
    draw_seed_ranks,
    draw_trade_off,
    save_run_plot,
)


@pytest.fixture
def axes() -> Axes:
    return Figure().subplots()


def test_intervals_are_coloured_by_what_is_known(axes: Axes) -> None:
    contributions = np.array([[1.0, -1.0, 0.5], [1.1, -1.2, -0.6], [0.9, -1.1, 0.2]])
    draw_intervals(axes, ["up", "down", "?"], compose(contributions))
    drawn = {str(container[0].get_color()): container[0].get_xdata().tolist() for container in axes.containers}
    assert drawn[HELPFUL] == pytest.approx([3.0]) and drawn[HARMFUL] == pytest.approx([-3.3]) and drawn[UNKNOWN] == pytest.approx([0.1])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["up", "down", "?"]


def test_the_course_ends_at_mu(axes: Axes) -> None:
    draw_over_training(axes, [5, 10], {"a": np.array([1.0, 0.5]), "b": np.array([0.2, -0.9])})
    first, second = axes.lines[:2]
    assert np.asarray(first.get_ydata()).tolist() == pytest.approx([1, 1.5]) and first.get_color() == HELPFUL
    assert np.asarray(second.get_ydata()).tolist() == pytest.approx([0.2, -0.7]) and second.get_color() == HARMFUL


def test_a_harmful_group_is_told_apart_as_a_helpful_one(axes: Axes) -> None:
    draw_trade_off(axes, {"bad": -1.5, "good": 1.5})
    _, bad, good = axes.lines
    drawn = [np.asarray(line.get_ydata(), np.float64) for line in (bad, good)]
    np.testing.assert_allclose(drawn[0], trade_off(1.5, np.asarray(bad.get_xdata(), np.float64)))
    np.testing.assert_allclose(drawn[0], drawn[1])
    assert bad.get_color() == HARMFUL and "-1.50" in str(bad.get_label())


def test_ranks_are_of_rows(axes: Axes) -> None:
    draw_seed_ranks(axes, np.array([3.0, 1.0, 2.0]), np.array([0.1, 0.3, 0.2]), np.array([False, True, False]))
    rest, marked = axes.collections
    assert np.asarray(marked.get_offsets()).tolist() == [[1, 3]]
    assert np.asarray(rest.get_offsets()).tolist() == [[3, 1], [2, 2]]


@pytest.mark.parametrize("rows", [5, 50])
def test_a_runs_plot_shows_the_ends(rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[list[str]] = []
    monkeypatch.setattr("influcoder.influence.f_influence_plot.draw_intervals", lambda axes, names, influence: shown.append(list(names)))
    contributions = np.linspace(-1, 1, rows)[None].repeat(4, 0)
    save_run_plot(tmp_path / "plot.png", [f"row-{row}" for row in range(rows)], compose(contributions), contributions, [1, 2, 3, 4])
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    expected = range(rows) if rows <= 2 * DRAWN else [*range(DRAWN), *range(rows - DRAWN, rows)]
    assert shown == [[f"row-{row}" for row in expected]]
