"""f-influence on digits and MNIST with flipped labels: beside TracIn on the same steps, between seeds, and against retraining.

    python -m benchmarks.f_influence [--world "digits"] ...     about 5 minutes on one core; MNIST from INFLUCODER_DATA, left out without it

A tenth of the labels is flipped; the target is the loss on clean rows, so flipped rows are to have the lowest influence. All estimators see
the same recorded steps of the same trainings, SPLITS draws of rows and flips by SEEDS trainings each. Writes benchmarks/results/f_influence.json
and docs/f_influence.png.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from benchmarks.f_influence_measures import Array, Recorded, against_retraining, calibration, coverage, finding, make_groups
from benchmarks.f_influence_picture import draw
from benchmarks.stacked_mlp import Moments, Task, Training, Weights, adam_products, row_products, target_gradients, target_losses, train
from influcoder.runs import git_commit, write_text_atomic

RESULT, PICTURE = Path("benchmarks/results/f_influence.json"), Path("docs/f_influence.png")
SPLITS, SEEDS = (0, 1, 2), tuple(range(6))
FLIPPED = 0.1
GROUP = 40
DRAWN = "digits"
"""the world of the picture"""


@dataclass(frozen=True, kw_only=True)
class World:
    """Rows, a network and how it is measured."""

    source: str
    """digits or mnist"""
    rows: int = 1000
    target_rows: int = 400
    raw: bool = False
    """inputs in [0, 1] as they are, all positive; else each centred and scaled"""
    how: Training = field(default_factory=Training)
    every: int = 1
    """steps from one recorded to the next"""
    runs: tuple[int, int] = (96, 48)
    """trainings with every row, and without each group; 0: none"""


WORLDS = {
    "digits": World(source="digits"),
    "digits, raw pixels": World(source="digits", raw=True),
    "digits, Adam": World(source="digits", how=Training(learning_rate=0.003, adam=True), every=10, runs=(0, 0)),
    "MNIST": World(source="mnist", rows=2000, target_rows=1000, how=Training(hidden=64, learning_rate=0.1), every=5, runs=(96, 24)),
}


def main() -> int:
    """Measure every world, write, draw."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.f_influence", description=main.__doc__)
    parser.add_argument("--world", nargs="+", default=list(WORLDS), choices=list(WORLDS))
    found = {}
    for name in parser.parse_args().world:
        if WORLDS[name].source == "mnist" and not mnist_folder().is_dir():
            print(f"{mnist_folder()}: not there; MNIST is left out; set INFLUCODER_DATA")
            continue
        started = time.perf_counter()
        found[name] = measure(WORLDS[name], PICTURE if name == DRAWN else None)
        found[name]["seconds"] = round(time.perf_counter() - started, 1)
        print(name, json.dumps(found[name]["finding"], indent=1), flush=True)
    figures = {"git_commit": git_commit(), "hardware": f"{os.cpu_count()} CPU cores", "worlds": found}
    write_text_atomic(RESULT, json.dumps(figures, indent=1) + "\n")
    return 0


def measure(world: World, picture: Path | None = None) -> dict[str, Any]:
    """Return all figures of a world; groups, coverage and picture are of its first split."""
    recorded = [record(world, split) for split in SPLITS]
    found: dict[str, Any] = {
        "rows": world.rows, "recorded_steps": len(recorded[0].products), "steps": world.how.steps,
        "finding": finding(recorded), "coverage": coverage(recorded[0], epoch=max(1, world.rows // world.how.batch_size // world.every)),
    }  # fmt: skip
    if world.runs[0]:
        task, flipped = load(world, SPLITS[0])
        groups = make_groups(task.labels.numpy(), flipped, GROUP)
        lost = retrain(task, world, list(groups.values()))
        found["groups"] = against_retraining(recorded[0], groups, *lost)
        found["calibration"] = calibration(recorded[0], groups, *lost)
        if picture is not None:
            draw(picture, recorded[0], groups, found)
    return found


def record(world: World, split: int) -> Recorded:
    """Train one network a seed and take every row's products with the target at each recorded step."""
    task, flipped = load(world, split)
    taken: dict[str, list[torch.Tensor]] = {"gradient": [], "adam_step": []}

    def watch(step: int, weights: Weights, moments: Moments | None) -> None:
        if step % world.every:
            return
        target = target_gradients(weights, task)
        taken["gradient"].append(row_products(weights, task, target))
        if moments is not None:
            one_by_one = [
                adam_products(_run(weights, r), task, _run(target, r), Moments(*(_run(m, r) for m in moments))) for r in range(len(SEEDS))
            ]
            taken["adam_step"].append(torch.cat(one_by_one))

    weights = train(task, world.how, SEEDS, watch=watch)
    accuracy = 1 - float(np.mean(target_errors(weights, task)))
    products = {name: torch.stack(steps).double().numpy() for name, steps in taken.items() if steps}
    return Recorded(products["gradient"], products.get("adam_step"), flipped, world.how, world.every, accuracy)


def retrain(task: Task, world: World, groups: list[NDArray[np.int64]]) -> tuple[Array, Array]:
    """Return the target's losses after trainings on all rows, (K,), and without each group, (G, K')."""
    everyone, seeds = np.arange(len(task.inputs)), range(1000, 1000 + world.runs[0])
    whole = target_losses(train(task, world.how, seeds), task)
    others = range(5000, 5000 + world.runs[1])
    return whole, np.stack([target_losses(train(task, world.how, others, np.setdiff1d(everyone, group)), task) for group in groups])


def target_errors(weights: Weights, task: Task) -> Array:
    """Return each network's share of wrong target rows, (R,)."""
    hidden = torch.relu(task.target_inputs @ weights.hidden[:, :-1] + weights.hidden[:, -1:])
    logits = hidden @ weights.output[:, :-1] + weights.output[:, -1:]
    errors: Array = (logits.argmax(2) != task.target_labels).double().mean(1).numpy()
    return errors


def load(world: World, split: int) -> tuple[Task, NDArray[np.bool_]]:
    """Return the rows of a split, and which of the trained ones have a flipped label."""
    inputs, labels = load_digits(return_X_y=True) if world.source == "digits" else read_mnist(10 * (world.rows + world.target_rows))
    inputs = inputs / inputs.max()
    source = np.random.default_rng(split)
    order = source.permutation(len(inputs))
    trained, target = order[: world.rows], order[world.rows : world.rows + world.target_rows]
    given, flipped = labels[trained].copy(), np.zeros(world.rows, bool)
    flipped[source.choice(world.rows, int(FLIPPED * world.rows), replace=False)] = True
    given[flipped] = (given[flipped] + source.integers(1, 10, flipped.sum())) % 10
    if not world.raw:
        inputs = (inputs - inputs[trained].mean(0)) / (inputs[trained].std(0) + 0.1)
    as_tensor = torch.from_numpy
    return Task(
        as_tensor(inputs[trained]).float(), as_tensor(given).long(), as_tensor(inputs[target]).float(), as_tensor(labels[target]).long()
    ), flipped


def mnist_folder() -> Path:
    """Return where MNIST's files are looked for."""
    return Path(os.environ.get("INFLUCODER_DATA", "../shared/data")) / "mnist"


def read_mnist(count: int) -> tuple[Array, NDArray[np.int64]]:
    """Return the first training images, (count, 784), and their labels."""
    with gzip.open(mnist_folder() / "train-images-idx3-ubyte.gz") as stream:
        images = np.frombuffer(stream.read(16 + count * 784), np.uint8, offset=16).reshape(count, 784)
    with gzip.open(mnist_folder() / "train-labels-idx1-ubyte.gz") as stream:
        labels = np.frombuffer(stream.read(8 + count), np.uint8, offset=8)
    return images.astype(np.float64), labels.astype(np.int64)


def _run(weights: Weights, number: int) -> Weights:
    return Weights(*(layer[number : number + 1] for layer in weights))


if __name__ == "__main__":
    raise SystemExit(main())
