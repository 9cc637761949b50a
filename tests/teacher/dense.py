"""Every gradient method written out with whole gradients, one row a backward pass, in float64: slow, and independent of the library.

It reads nothing of a run but its decoder, its checkpoints and its rows.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import nn

from influcoder.influence.decoder import Decoder
from influcoder.influence.tokens import TokenizedRow

Array = NDArray[np.float64]
Blocks = dict[str, Array]
"""(rows, coordinates) by weight"""
DAMPING = 0.1


def weights_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the adapter's weights, else every matrix of a layer but the output layer's and the embeddings'."""
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.ndim == 2}
    adapter = {name: parameter for name, parameter in named.items() if "lora_" in name}
    return adapter or {name: parameter for name, parameter in named.items() if "embed" not in name and "lm_head" not in name}


def gradients(decoder: Decoder, rows: Sequence[TokenizedRow]) -> Blocks:
    """Return each row's gradient of its own mean loss."""
    weights = weights_of(decoder.model)
    found: dict[str, list[Array]] = {name: [] for name in weights}
    for row in rows:
        ids = torch.tensor(row.input_ids)
        logits = decoder.model(input_ids=ids[None]).logits[0]
        loss = nn.functional.cross_entropy(logits[row.response_start - 1 : -1], ids[row.response_start :])
        for name, gradient in zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True):
            found[name].append(gradient.double().numpy().ravel())
    return {name: np.stack(values) for name, values in found.items()}


class Point:
    """A checkpoint of a run, its decoder set to it."""

    def __init__(self, decoder: Decoder, folder: Path) -> None:
        weights = load_file(folder / "weights.safetensors")
        with torch.no_grad():
            for name, parameter in decoder.model.named_parameters():
                if name in weights:
                    parameter.copy_(weights[name])
        self.adam = {name: value.double().numpy().ravel() for name, value in load_file(folder / "adam.safetensors").items()}
        self.learning_rate = json.loads((folder / "checkpoint.json").read_text())["learning_rate"]


def points(decoder: Decoder, run: Path) -> list[Path]:
    """Return the folders of a run's checkpoints, in order."""
    return sorted((path for path in (run / "checkpoints").iterdir() if path.is_dir()), key=lambda path: int(path.name))


def joined(blocks: Blocks) -> Array:
    """Return the blocks side by side."""
    return np.concatenate(list(blocks.values()), axis=1)


def unit(vectors: Array) -> Array:
    """Return rows of length 1."""
    result: Array = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return result


def layers(decoder: Decoder, run: Path, queries: Sequence[TokenizedRow], rows: Sequence[TokenizedRow]) -> Array:
    asking, asked = gradients(decoder, queries), gradients(decoder, rows)
    mean: Array = np.mean([unit(asking[name]) @ unit(asked[name]).T for name in asking], axis=0)
    return mean


def influcoder(decoder: Decoder, run: Path, queries: Sequence[TokenizedRow], rows: Sequence[TokenizedRow]) -> Array:
    cosines: Array = unit(joined(gradients(decoder, queries))) @ unit(joined(gradients(decoder, rows))).T
    return cosines


def tracin(decoder: Decoder, run: Path, queries: Sequence[TokenizedRow], rows: Sequence[TokenizedRow]) -> Array:
    total = np.zeros((len(queries), len(rows)))
    for folder in points(decoder, run):
        point = Point(decoder, folder)
        total += point.learning_rate * joined(gradients(decoder, queries)) @ joined(gradients(decoder, rows)).T
    return total


def less(decoder: Decoder, run: Path, queries: Sequence[TokenizedRow], rows: Sequence[TokenizedRow]) -> Array:
    total, rates = np.zeros((len(queries), len(rows))), 0.0
    for folder in points(decoder, run):
        point = Point(decoder, folder)
        gamma = {}
        for name, g in gradients(decoder, rows).items():
            m = 0.9 * point.adam[f"first.{name}"] + 0.1 * g
            v = 0.999 * point.adam[f"second.{name}"] + 0.001 * g**2
            gamma[name] = m / np.sqrt(v + 1e-8)
        total += point.learning_rate * unit(joined(gradients(decoder, queries))) @ unit(joined(gamma)).T
        rates += point.learning_rate
    return total / rates


def logra(decoder: Decoder, run: Path, queries: Sequence[TokenizedRow], rows: Sequence[TokenizedRow]) -> Array:
    asking, asked = gradients(decoder, queries), gradients(decoder, rows)
    total = np.zeros((len(queries), len(rows)))
    for name, g in asked.items():
        fisher = g.T @ g / len(rows)
        total += asking[name] @ np.linalg.solve(fisher + DAMPING * np.trace(fisher) / len(fisher) * np.eye(len(fisher)), g.T)
    return total


def relatif(decoder: Decoder, run: Path, queries: Sequence[TokenizedRow], rows: Sequence[TokenizedRow]) -> Array:
    return logra(decoder, run, queries, rows) / np.sqrt(np.diag(logra(decoder, run, rows, rows)))


def ekfac(decoder: Decoder, run: Path, queries: Sequence[TokenizedRow], rows: Sequence[TokenizedRow]) -> Array:
    """Of the run's factors, since their labels are drawn; the curvature of every layer is one matrix, which is solved."""
    factors: Blocks = {}
    for path in (run / "ekfac" / "seed-0").glob("*.safetensors"):
        factors |= {name: value.double().numpy() for name, value in load_file(path).items()}
    asking, asked = gradients(decoder, queries), gradients(decoder, rows)
    total = np.zeros((len(queries), len(rows)))
    for name, g in asked.items():
        layer = name.removesuffix(".weight")
        basis = np.kron(factors[f"outputs.{layer}"], factors[f"inputs.{layer}"])
        curvature = basis @ np.diag(factors[f"values.{layer}"].ravel()) @ basis.T
        total += asking[name] @ np.linalg.solve(curvature + DAMPING * np.trace(curvature) / len(curvature) * np.eye(len(curvature)), g.T)
    return total


def ekfac_relatif(decoder: Decoder, run: Path, queries: Sequence[TokenizedRow], rows: Sequence[TokenizedRow]) -> Array:
    return ekfac(decoder, run, queries, rows) / np.sqrt(np.diag(ekfac(decoder, run, rows, rows)))


def trackstar(decoder: Decoder, run: Path, queries: Sequence[TokenizedRow], rows: Sequence[TokenizedRow]) -> Array:
    point = Point(decoder, points(decoder, run)[-1])
    sides = [
        {name: g / (np.sqrt(point.adam[f"second.{name}"]) + 1e-8) for name, g in gradients(decoder, side).items()}
        for side in (queries, rows)
    ]
    moments = [{name: g.T @ g / len(g) for name, g in side.items()} for side in sides]
    spectra = [np.sort(np.concatenate([np.linalg.eigvalsh(moment) for moment in side.values()]))[::-1] for side in moments]
    k = int(1000 / 65536 * len(spectra[0]))
    weight = spectra[1][k] / (spectra[0][k] + spectra[1][k])
    asking, asked = {}, {}
    for name in sides[0]:
        mixed = weight * moments[0][name] + (1 - weight) * moments[1][name]
        values, vectors = np.linalg.eigh(mixed + DAMPING * np.trace(mixed) / len(mixed) * np.eye(len(mixed)))
        root = vectors @ np.diag(values**-0.5) @ vectors.T
        asking[name], asked[name] = sides[0][name] @ root, sides[1][name] @ root
    cosines: Array = unit(joined(asking)) @ unit(joined(asked)).T
    return cosines


def f_influence(decoder: Decoder, run: Path, queries: Sequence[TokenizedRow], rows: Sequence[TokenizedRow]) -> Array:
    contributions: Array = f_influence_steps(decoder, run, queries, rows).sum(0)
    return contributions


def f_influence_steps(
    decoder: Decoder,
    run: Path,
    queries: Sequence[TokenizedRow],
    rows: Sequence[TokenizedRow],
    weights: Array | None = None,
    unit_layers: bool = False,
) -> Array:
    """Return what each point adds to mu, (T, Q, N); with weights (Q,) the target is the weighted mean of the queries' gradients, (T, 1, N)."""
    found, records = [], [json.loads((folder / "checkpoint.json").read_text()) for folder in points(decoder, run)]
    last, before, batch_rows = records[-1]["step"], 0, 0.0
    for record in records:
        batch_rows += record["batch_size"] * (record["step"] - before)
        before = record["step"]
    for folder in points(decoder, run):
        Point(decoder, folder)
        asking, asked = (
            joined({name: unit(layer) if unit_layers else layer for name, layer in gradients(decoder, side).items()})
            for side in (queries, rows)
        )
        if weights is not None:
            asking = (weights[:, None] * asking).mean(0, keepdims=True)
        products = asking @ asked.T
        shift = (products - products.mean(1, keepdims=True)) / len(rows)
        noise = products.std(1, keepdims=True) / np.sqrt(batch_rows / last)
        found.append(np.sqrt(last / len(records)) * shift / noise / np.sqrt(len(records)))
    return np.stack(found)
