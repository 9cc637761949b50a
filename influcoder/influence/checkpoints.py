"""Points of a fine-tuning at which influence can be asked: trained weights and Adam's moments, in safetensors.

FOLDER/0/weights.safetensors     the trained parameters by name
FOLDER/0/adam.safetensors        `first.NAME` and `second.NAME`: Adam's moments
FOLDER/0/checkpoint.json         step; mean learning rate since the checkpoint before; written last
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
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


class SaveCheckpoints(Callback):
    """Saves a point after each of `count` equal parts of the training."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self.count = folder, count
        self.rates: list[float] = []
        self.saved = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew: a killed training does."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.saved, self.rates = 0, []
        self.steps = int(trainer.estimated_stepping_batches)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Note the step's learning rate."""
        self.rates.append(float(trainer.optimizers[0].param_groups[0]["lr"]))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Save when a part is done."""
        if self.saved < self.count and trainer.global_step >= max(self.saved + 1, self.steps * (self.saved + 1) // self.count):
            model = pl_module.model
            assert isinstance(model, nn.Module)
            save_checkpoint(
                self.folder / str(self.saved), model, trainer.optimizers[0], trainer.global_step, sum(self.rates) / len(self.rates)
            )
            self.saved, self.rates = self.saved + 1, []


def save_checkpoint(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int, learning_rate: float) -> None:
    """Write one point of an Adam or AdamW training."""
    folder.mkdir(parents=True)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    save_file({name: parameter.detach().contiguous() for name, parameter in trained.items()}, folder / "weights.safetensors")
    state: dict[str, Tensor] = {}
    for name, parameter in trained.items():
        moments = optimizer.state[parameter] or {"exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}
        state |= {f"first.{name}": moments["exp_avg"].contiguous(), f"second.{name}": moments["exp_avg_sq"].contiguous()}
    save_file(state, folder / "adam.safetensors")
    write_json_atomic(folder / "checkpoint.json", {"step": step, "learning_rate": learning_rate})


def load_checkpoints(folder: Path) -> list[Checkpoint]:
    """Return the points in order of their steps.

    Raises:
        RunError: when there is none, or one is unfinished.
    """
    found = []
    for place in folder.iterdir() if folder.is_dir() else ():
        path = place / "checkpoint.json"
        try:
            record = json.loads(path.read_text())
            found.append(Checkpoint(place, int(record["step"]), float(record["learning_rate"])))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"{path}: not the record of a checkpoint ({error}); remove {place} or fine-tune anew") from error
    if not found:
        raise RunError(f"{folder}: no checkpoints; expected what a fine-tuning saves; give a finetune block")
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise RunError(f"{path}: not readable ({error}); expected part of a checkpoint; fine-tune anew") from error
