"""The benchmark measures what it says: its stacked networks are torch's, its null rows are null, a flipped group is harmful."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from benchmarks import f_influence, f_influence_measures, f_influence_table, stacked_mlp
from benchmarks.f_influence import World
from benchmarks.f_influence_measures import Recorded, against_retraining, calibration, coverage, estimators, finding, make_groups
from benchmarks.stacked_mlp import Moments, Task, Training, Weights
from influcoder.influence.f_influence import Composition

SMALL = World(source="digits", rows=300, target_rows=100, how=Training(hidden=8, batch_size=20, steps=60), every=2, runs=(12, 8))


@pytest.fixture
def double() -> Iterator[None]:
    """Stacked and single networks in float64: Adam makes much of the last bits of a gradient."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def make_task(rows: int = 12, inputs: int = 5, classes: int = 3) -> Task:
    source = torch.Generator().manual_seed(0)
    return Task(
        torch.randn(rows, inputs, generator=source), torch.arange(rows) % classes, torch.randn(7, inputs, generator=source), torch.arange(7) % classes
    )  # fmt: skip


def network(weights: Weights, run: int) -> nn.Sequential:
    """Return one of the stacked networks as torch's modules."""
    hidden, output = weights.hidden[run], weights.output[run]
    made = nn.Sequential(nn.Linear(len(hidden) - 1, hidden.shape[1]), nn.ReLU(), nn.Linear(len(output) - 1, output.shape[1]))
    for layer, stacked in ((made[0], hidden), (made[2], output)):
        assert isinstance(layer, nn.Linear)
        layer.weight.data, layer.bias.data = stacked[:-1].T.clone(), stacked[-1].clone()
    return made


def flat(model: nn.Module) -> Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])


def gradient(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    model.zero_grad()
    nn.functional.cross_entropy(model(inputs), labels).backward()
    return flat(model).clone()


def flattened(weights: Weights, run: int) -> Tensor:
    """Return stacked directions in the order of a network's parameters."""
    return torch.cat([part for layer in (weights.hidden[run], weights.output[run]) for part in (layer[:-1].T.flatten(), layer[-1])])


def test_products_are_those_of_gradients_taken_row_by_row(double: None) -> None:
    task, how = make_task(), Training(hidden=4, batch_size=3, steps=5, adam=True, learning_rate=0.05)
    seen: list[tuple[Weights, Moments]] = []
    weights = stacked_mlp.train(task, how, [0, 1], watch=lambda step, w, m: seen.append((w, m)) if m is not None else None)
    target, moments = stacked_mlp.target_gradients(weights, task), seen[-1][1]
    plain, adam = stacked_mlp.row_products(weights, task, target), stacked_mlp.adam_products(weights, task, target, moments)
    for run in range(2):
        model = network(weights, run)
        direction = gradient(model, task.target_inputs, task.target_labels)
        torch.testing.assert_close(flattened(target, run), direction)
        m, v = (flattened(moment, run) for moment in moments)
        for row in range(12):
            g = gradient(model, task.inputs[row : row + 1], task.labels[row : row + 1])
            assert float(plain[run, row]) == pytest.approx(float(g @ direction), rel=1e-9, abs=1e-12)
            step = (0.9 * m + 0.1 * g) / torch.sqrt(0.999 * v + 0.001 * g**2 + 1e-8)
            assert float(adam[run, row]) == pytest.approx(float(step @ direction), rel=1e-9, abs=1e-9)
        expected = nn.functional.cross_entropy(model(task.target_inputs), task.target_labels).detach()
        assert stacked_mlp.target_losses(weights, task)[run] == pytest.approx(float(expected))


@pytest.mark.parametrize("adam", [False, True])
def test_stacked_trainings_are_single_ones(adam: bool, double: None) -> None:
    task, how = make_task(), Training(hidden=4, batch_size=3, steps=9, adam=adam, learning_rate=0.05)
    kept = np.array([0, 1, 2, 4, 5, 7, 8, 10, 11])
    starts: list[Weights] = []
    weights = stacked_mlp.train(task, how, [3, 8], kept, watch=lambda step, w, m: starts.append(w))
    assert len(starts) == 9 and not torch.equal(starts[0].hidden[0], starts[0].hidden[1])
    for run, seed in enumerate((3, 8)):
        source = np.random.default_rng([1, seed])
        order = np.concatenate([source.permutation(kept) for _ in range(3)])
        assert all(set(order[start : start + 9]) == set(kept) for start in (0, 9, 18)), "each epoch has every row once"
        model = network(starts[0], run)
        optimizer: torch.optim.Optimizer = (torch.optim.Adam if adam else torch.optim.SGD)(model.parameters(), lr=0.05)
        for step in range(9):
            rows = torch.from_numpy(order[3 * step : 3 * step + 3])
            gradient(model, task.inputs[rows], task.labels[rows])
            optimizer.step()
        torch.testing.assert_close(flattened(weights, run), torch.cat([p.detach().flatten() for p in model.parameters()]))


@pytest.fixture(scope="module")
def recorded() -> Recorded:
    return f_influence.record(SMALL, 0)


def test_a_tenth_of_the_labels_is_flipped_and_the_target_is_clean() -> None:
    task, flipped = f_influence.load(SMALL, 1)
    clean, none = f_influence.load(replace(SMALL, raw=True), 1)
    assert flipped.sum() == 30 and np.array_equal(flipped, none)
    assert float(clean.inputs.min()) == 0 and abs(float(task.inputs.mean())) < 1e-6
    inputs, labels = load_digits(return_X_y=True)
    known = {tuple(row): label for row, label in zip((inputs / 16).astype(np.float32), labels, strict=True)}
    true = np.array([known[tuple(row)] for row in clean.inputs.numpy()])
    assert np.array_equal(true != clean.labels.numpy(), flipped)
    assert all(known[tuple(row)] == label for row, label in zip(clean.target_inputs.numpy(), clean.target_labels.numpy(), strict=True))


def test_flipped_rows_are_found_and_pooled_mu_ranks_as_tracin(recorded: Recorded) -> None:
    assert recorded.products.shape == (30, 6, 300) and recorded.accuracy > 0.65
    found = finding([recorded])
    assert found["pooled"] == pytest.approx(found["tracin"])
    for name in get_args(Composition):
        assert found[name]["auc"] > 0.75 and found[name]["seed_spearman"] > found["last checkpoint"]["seed_spearman"]
    np.testing.assert_allclose(estimators(recorded)["tracin, 15 checkpoints"], recorded.products[1::2].sum(0))


def test_null_rows_are_held_and_null_groups_too(recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f_influence_measures, "NULLS", 200)
    monkeypatch.setattr(f_influence_measures, "BLOCK_COUNTS", (4,))
    found = coverage(recorded, epoch=7)["standardised"][4]
    assert 0.88 < found["null_rows"] <= 1 and 0.9 < found["null_groups"] <= 1
    assert found["distinguishable_rows"] > 0.1, "of rows that are somebody, some are"
    moved = replace(recorded, products=recorded.products - 0.02 * np.arange(300))  # a row's own level is what a null row has not
    assert coverage(moved, epoch=7)["standardised"][4]["distinguishable_rows"] > 0.8
    assert coverage(moved, epoch=7)["standardised"][4]["null_groups"] > 0.85


def test_groups_are_judged_by_retraining(recorded: Recorded) -> None:
    task, flipped = f_influence.load(SMALL, 0)
    groups = make_groups(task.labels.numpy(), flipped, 12)
    assert len(groups) == 24 and all(len(group) == len(set(group)) == 12 for group in groups.values())
    assert flipped[groups["100% flipped"]].all() and flipped[groups["50% flipped"]].sum() == 6
    assert not flipped[groups["class 3"]].any() and (task.labels.numpy()[groups["class 3"]] == 3).all()
    chosen = {name: groups[name] for name in ("100% flipped", "75% flipped", "class 2", "random 0")}
    lost = f_influence.retrain(task, SMALL, list(chosen.values()))
    assert lost[0].shape == (12,) and lost[1].shape == (4, 8)
    found = against_retraining(recorded, chosen, *lost)
    assert found["moment"]["100% flipped"] < -0.5 and found["all_flipped"]["upper"] < 0
    assert found["spearman"]["pooled"] == pytest.approx(found["spearman"]["tracin"])
    factor = calibration(recorded, chosen, *lost)["standardised"]
    assert 0.1 < factor["factor"] < 10 and 1 <= factor["held_out"] <= factor["held_out_worst"]


def test_the_table_has_the_figures(tmp_path: Path, recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f_influence, "SPLITS", (0,))
    monkeypatch.setattr(f_influence, "WORLDS", {"digits": SMALL})
    monkeypatch.setattr(f_influence, "GROUP", 10)
    monkeypatch.setattr(f_influence, "RESULT", tmp_path / "f_influence.json")
    monkeypatch.setattr(f_influence, "PICTURE", tmp_path / "picture.png")
    monkeypatch.setattr(f_influence_measures, "NULLS", 20)
    monkeypatch.setattr(f_influence_measures, "BLOCK_COUNTS", (4,))
    monkeypatch.setattr("sys.argv", ["f_influence", "--world", "digits"])
    assert f_influence.main() == 0
    world = json.loads((tmp_path / "f_influence.json").read_text())["worlds"]["digits"]
    lines = f_influence_table.table(tmp_path).splitlines()
    assert lines[2].startswith("| tracin | ." + f"{world['finding']['tracin']['auc']:.2f}"[2:])
    found = {cells[1].strip(): cells[2] for line in lines if len(cells := line.split("|")) == 4}
    assert f"held out {world['calibration']['pooled']['held_out']:.2f}" in "".join(lines) and len(found) > 6
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_the_published_figures_are_tabulated(repository: Path) -> None:
    written = f_influence_table.table(repository / "benchmarks" / "results")
    assert written.count("| signed_squares |") == 3 and "MNIST" in written
