"""The benchmark of curvature, tiny; the figures it published; the README's quotation of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.curvature import RESULT, Plan, choose_rows, fresh, linear_datamodelling, make_data, negative_margin, run
from benchmarks.curvature_table import BLOCK, METHODS, table
from influcoder.influence.retraining import TrainConfig
from influcoder.lds import half_masks, lds

TINY = Plan(
    rows=120,
    queries=9,
    models=2,
    subsets=6,
    subset_seeds=2,
    suspicious=2,
    random=1,
    loo_seeds=2,
    brittle_queries=3,
    budgets=(5, 20),
    damping=20.0,
    training=TrainConfig(epochs=6, batch_size=20, learning_rate=0.3),
)


@pytest.fixture(scope="module")
def figures() -> dict[str, Any]:
    return run(TINY)


def test_every_figure_is_there_and_can_be_written(figures: dict[str, Any], tmp_path: Path) -> None:
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    names = {"identity", "diagonal", "block", "full", "ekfac"}
    assert set(figures["lds"]) == set(figures["agreement"]["pbrf"]) == names == set(METHODS)
    assert set(figures["agreement"]["loo"]) == names | {"pbrf"} and set(figures["flips_in_top_10_percent"]) == names | {"loss"}
    assert set(figures["brittleness"]) == names | {"same class"}
    assert all(len(found) == 2 and min(found) >= 0 and max(found) <= 1 for found in figures["brittleness"].values())
    assert len(figures["lds"]["full"]["by_model"]) == len(figures["agreement"]["pbrf"]["full"]["by_model"]) == 2
    assert figures["agreement"]["pbrf"]["full"]["spearman"] > 0.8
    (tmp_path / "curvature.json").write_text(json.dumps(figures))
    assert len(table(tmp_path / "curvature.json").splitlines()) == 2 + 5 + 4


def test_the_data_are_those_of_the_plan() -> None:
    rows, queries, flipped = make_data(Plan())
    clean = make_data(Plan(flipped=0.0))[0]
    assert (len(rows), len(queries), flipped.sum()) == (1000, 100, 100)
    np.testing.assert_array_equal((rows.targets != clean.targets).numpy(), flipped)
    assert torch.equal(rows.inputs, clean.inputs) and float(rows.inputs.max()) == 1
    assert len(fresh(0).theta) == 1210


def test_a_measurement_is_minus_the_log_odds() -> None:
    outputs = torch.tensor([0.3, -1.0, 2.0, 0.5], dtype=torch.float64)
    p = float(outputs.softmax(0)[2])
    assert float(negative_margin(outputs, torch.tensor(2))) == pytest.approx(-np.log(p / (1 - p)))


def test_rows_asked_about_come_from_both_ends() -> None:
    influence = np.random.default_rng(0).random(1000)
    asked = choose_rows(Plan(), influence)
    top = set(np.argsort(-influence)[:300].tolist())
    assert len(set(asked.tolist())) == 26
    assert [place in top for place in asked.tolist()] == [True] * 18 + [False] * 8


def test_leads_and_ratios_are_paired() -> None:
    random = np.random.default_rng(0)
    masks, truth = half_masks(30, 40, 0), random.normal(size=(12, 40))
    outputs = masks @ truth.T + random.normal(size=(30, 12))
    scores = {"block": truth, "identity": truth + 2 * random.normal(size=truth.shape), "other": truth + random.normal(size=truth.shape)}
    found = linear_datamodelling([scores, scores], masks, outputs)
    means = {name: lds(one, masks, outputs).mean() for name, one in scores.items()}
    for name, one in found.items():
        assert one["value"] == pytest.approx(means[name]) and one["by_model"] == pytest.approx([means[name]] * 2)
        assert one["interval"][0] < one["value"] < one["interval"][1]
        assert one["lead_over_identity"]["value"] == pytest.approx(means[name] - means["identity"])
        assert one["ratio_to_block"]["value"] == pytest.approx(means[name] / means["block"])
    assert found["identity"]["lead_over_identity"]["interval"] == [0, 0] and found["block"]["ratio_to_block"]["interval"] == [1, 1]


def test_published_figures_keep_the_order_and_the_margins_asked_for(repository: Path) -> None:
    figures = json.loads((repository / RESULT).read_text())
    pbrf, found = figures["agreement"]["pbrf"], figures["lds"]
    for model in range(figures["plan"]["models"]):
        by_method = [pbrf[name]["by_model"][model] for name in ("full", "block", "ekfac", "identity")]
        assert by_method == sorted(by_method, reverse=True) and by_method[0] >= 0.8
    assert (figures["plan"]["subsets"], figures["plan"]["subset_seeds"]) == (80, 3)
    assert found["ekfac"]["lead_over_identity"]["interval"][0] >= 0.15
    assert found["ekfac"]["value"] >= 0.9 * found["block"]["value"]


def test_the_readme_quotes_the_published_figures(repository: Path) -> None:
    assert BLOCK.quoted((repository / "README.md").read_text()) == table(repository / RESULT)
