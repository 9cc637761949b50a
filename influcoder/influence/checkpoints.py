"""Points of a fine-tuning at which influence can be asked: trained weights and Adam's moments, in safetensors.

FOLDER/0/weights.safetensors     the trained parameters by name
FOLDER/0/adam.safetensors        `first.NAME` and `second.NAME`: Adam's moments; not there when another optimiser was used
FOLDER/0/checkpoint.json         step; mean learning rate and rows a step since the checkpoint before; ids of the last batch

`influcoder.callbacks` write them along a training. A point is made as `.0.writing` and renamed: it is whole or not there.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from influcoder.errors import RunError
from influcoder.influence.adam import Moments
from influcoder.influence.capture import Layer
from influcoder.runs import write_json_atomic


@dataclass(frozen=True)
class Checkpoint:
    """A saved point."""

    folder: Path
    step: int
    """optimiser steps done"""
    learning_rate: float
    """mean over the steps since the checkpoint before"""
    batch_size: float | None = None
    """rows a step, mean over the same steps; None where it was not recorded"""
    row_ids: tuple[str, ...] | None = None
    """of the batch of that step; None where the batches do not say"""

    @torch.no_grad()
    def load_weights(self, model: nn.Module) -> None:
        """Give the model this point's weights, in place.

        Raises:
            RunError: when the file is unreadable or of another model.
        """
        path = self.folder / "weights.safetensors"
        weights, parameters = _read(path), dict(model.named_parameters())
        unknown = next((name for name in weights if name not in parameters), None)
        if unknown is not None:
            raise RunError(f"{path}: parameter {unknown!r} is not the decoder's; expected a checkpoint of its own fine-tuning")
        for name, value in weights.items():
            if value.shape != parameters[name].shape:
                raise RunError(
                    f"{path}: {name!r} has shape {tuple(value.shape)}, expected {tuple(parameters[name].shape)}; of another decoder"
                )
            parameters[name].copy_(value)

    def moments(self, model: nn.Module, layers: Mapping[str, Layer]) -> Moments:
        """Return Adam's moments of these layers, each (O, I).

        Raises:
            RunError: when the file is unreadable or lacks a layer.
        """
        path = self.folder / "adam.safetensors"
        state, names = _read(path), {id(parameter): name for name, parameter in model.named_parameters()}
        found: dict[str, dict[str, Tensor]] = {"first": {}, "second": {}}
        for name, layer in layers.items():
            for kind, moments in found.items():
                key = f"{kind}.{names[id(layer.weight)]}"
                if key not in state:
                    raise RunError(f"{path}: no {key!r}; expected Adam's moments of every layer whose gradients are taken; fine-tune anew")
                moments[name] = layer.oriented(state[key])
        return Moments(**found)

    def second_moments(self) -> dict[str, Tensor]:
        """Return Adam's second moment of every trained parameter, by name.

        Raises:
            RunError: when the file is unreadable, or another optimiser was used.
        """
        path = self.folder / "adam.safetensors"
        found = {name.removeprefix("second."): moment for name, moment in _read(path).items() if name.startswith("second.")}
        if not found:
            raise RunError(f"{path}: no second moments; expected those of Adam or AdamW; fine-tune with one of them")
        return found


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    step: int,
    learning_rate: float,
    batch_size: float | None = None,
    row_ids: Sequence[str] | None = None,
) -> None:
    """Write one point of a training; Adam's and AdamW's moments too. Arguments are `Checkpoint`'s."""
    writing = folder.with_name(f".{folder.name}.writing")
    shutil.rmtree(writing, ignore_errors=True)
    writing.mkdir(parents=True)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    save_file({name: parameter.detach().contiguous() for name, parameter in trained.items()}, writing / "weights.safetensors")
    moments = _adam_moments(trained, optimizer)
    if moments:
        save_file(moments, writing / "adam.safetensors")
    record = {"step": step, "learning_rate": learning_rate, "batch_size": batch_size, "row_ids": list(row_ids) if row_ids else None}
    write_json_atomic(writing / "checkpoint.json", record)
    os.replace(writing, folder)


def _adam_moments(trained: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return `first.NAME` and `second.NAME`, 0 where a parameter was not stepped yet; nothing of an optimiser without them."""
    states = {name: optimizer.state[parameter] for name, parameter in trained.items() if parameter in optimizer.state}
    if not all({"exp_avg", "exp_avg_sq"} <= state.keys() for state in states.values() if state):
        return {}
    found: dict[str, Tensor] = {}
    for name, parameter in trained.items():
        state = states.get(name) or {"exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}
        found |= {f"first.{name}": state["exp_avg"].contiguous(), f"second.{name}": state["exp_avg_sq"].contiguous()}
    return found


def load_checkpoints(folder: Path) -> list[Checkpoint]:
    """Return the points in order of their steps.

    Raises:
        RunError: when there is none, or one is unfinished.
    """
    found = []
    for place in point_folders(folder):
        path = place / "checkpoint.json"
        try:
            record = json.loads(path.read_text())
            size, ids = record.get("batch_size"), record.get("row_ids")
            found.append(
                Checkpoint(
                    place,
                    int(record["step"]),
                    float(record["learning_rate"]),
                    None if size is None else float(size),
                    None if ids is None else tuple(ids),
                )
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(f"{path}: not the record of a checkpoint ({error}); remove {place} or fine-tune anew") from error
    if not found:
        raise RunError(f"{folder}: no checkpoints; expected what a fine-tuning saves; give a finetune block")
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def point_folders(folder: Path) -> list[Path]:
    """Return the folders of a recording's points, finished or not, those being written apart."""
    return [place for place in folder.iterdir() if place.is_dir() and place.name.isdigit()] if folder.is_dir() else []


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise RunError(f"{path}: not readable ({error}); expected part of a checkpoint; fine-tune anew") from error
