"""The saved state of an unfinished training: one safetensors file, no pickle.

    .NAME.partial/state.safetensors   every tensor (weights, average, AdamW's moments, best weights) by its path in Lightning's
                                      checkpoint; as metadata the rest of it in JSON, and a checksum of both

It is replaced as a whole, so that a kill leaves the one before. Lightning restores from it the place in the epoch, the schedule, the
time used and what callbacks keep.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from safetensors.torch import save_file
from torch import Tensor

from influcoder.errors import ConfigError, RunError
from influcoder.runs import sha256_of_file


def state_file(folder: Path) -> Path:
    """Return where the state of a run lies."""
    return folder / "state.safetensors"


class SafetensorsIO(CheckpointIO):
    """How Lightning writes and reads a checkpoint here."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint, data and fsync before the rename.

        Raises:
            ConfigError: when a callback keeps what is neither a tensor nor JSON.
            RunError: when it cannot be written.
        """
        tensors: dict[str, Tensor] = {}
        try:
            rest = json.dumps(_take_tensors(checkpoint, "", tensors))
        except TypeError as error:
            raise ConfigError(
                f"trainer.callbacks: one keeps what is neither a tensor nor JSON ({error}) and cannot be saved; leave it out"
            ) from error
        path = Path(path)
        writing = path.with_name(f".{path.name}.writing")
        try:
            save_file(tensors, writing, metadata={"rest": rest, "sha256": _digest(rest, tensors)})
            with writing.open("rb") as stream:
                os.fsync(stream.fileno())
            os.replace(writing, path)
        except (OSError, safetensors.SafetensorError) as error:
            writing.unlink(missing_ok=True)
            raise RunError(
                f"{path}: cannot be written ({error}); the state before is kept; mend that and run the same command again"
            ) from error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint.

        Raises:
            RunError: when it is unreadable or damaged.
        """
        try:
            with safetensors.safe_open(path, "pt") as content:
                tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118  # no mapping
                rest, expected = (content.metadata()[key] for key in ("rest", "sha256"))
        except (OSError, safetensors.SafetensorError, KeyError, TypeError) as error:
            raise RunError(f"{path}: not a readable state of a training ({error}); remove it to begin the training anew") from error
        found = _digest(rest, tensors)
        if found != expected:
            raise RunError(f"{path}: checksum {found[:12]}, expected {expected[:12]}; it is damaged; remove it to begin the training anew")
        checkpoint: dict[str, Any] = _put_tensors(json.loads(rest), tensors)
        return checkpoint

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a checkpoint."""
        Path(path).unlink()


class SaveState(Callback):
    """Saves the state when enough seconds have passed since the last time: a kill costs no more than these."""

    def __init__(self, folder: Path, every_seconds: float, teacher: Path) -> None:
        self.path, self.every_seconds = state_file(folder), every_seconds
        self.teacher, self.teacher_sha256 = teacher, sha256_of_file(teacher / "run.json")
        self.started = self.saved = time.monotonic()
        self.seconds_before = 0.0
        self.logged = ""

    @property
    def seconds(self) -> float:
        """Seconds of this training, those of processes that were killed included."""
        return self.seconds_before + time.monotonic() - self.started

    def state_dict(self) -> dict[str, Any]:
        """Return the time used, the log, and whose features are learnt."""
        return {"seconds": self.seconds, "logged": self.logged, "teacher_sha256": self.teacher_sha256}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up time and log.

        Raises:
            RunError: when the teacher's run has been made anew since.
        """
        if state_dict["teacher_sha256"] != self.teacher_sha256:
            raise RunError(
                f"{self.path}: began with a teacher whose run.json had checksum {state_dict['teacher_sha256'][:12]}, that of {self.teacher} "
                f"has {self.teacher_sha256[:12]}; expected the same; remove {self.path.parent} to begin anew"
            )
        self.seconds_before, self.logged = state_dict["seconds"], state_dict["logged"]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the CSV log its rows back: its logger begins a file anew, and what was logged after the state comes once more."""
        logger = _csv_logger(trainer)
        if self.logged and trainer.is_global_zero:
            logger.experiment.metrics[:0] = csv.DictReader(self.logged.splitlines())
            logger.save()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Save, but not between an epoch's last block and its validation, which would be left out."""
        if not trainer.is_last_batch and trainer.global_step != trainer.max_steps:
            self._save_when_due(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what the validation found, too; with `max_steps` Lightning would end the epoch a second time."""
        if trainer.max_steps == -1:
            self._save_when_due(trainer)

    def _save_when_due(self, trainer: Trainer) -> None:
        if not trainer.strategy.broadcast(time.monotonic() - self.saved >= self.every_seconds):
            return
        logger = _csv_logger(trainer)
        if trainer.is_global_zero:
            logger.save()
            written = Path(logger.log_dir) / "metrics.csv"
            self.logged = written.read_text() if written.exists() else ""
        trainer.save_checkpoint(self.path)
        self.saved = time.monotonic()


def _csv_logger(trainer: Trainer) -> CSVLogger:
    logger = trainer.loggers[0]
    assert isinstance(logger, CSVLogger)  # influcoder.training.make_trainer
    return logger


def _take_tensors(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Return `value` as JSON; its tensors go to `tensors`, copied, since two of them may share memory."""
    if isinstance(value, Tensor):
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
        return {"tensor": name}
    if isinstance(value, Mapping):  # as pairs: a key of AdamW's state is a number
        return {"items": [[key, _take_tensors(item, f"{name}/{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        return [_take_tensors(item, f"{name}/{place}", tensors) for place, item in enumerate(value)]
    return value


def _put_tensors(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, dict):
        return tensors[value["tensor"]] if "tensor" in value else {key: _put_tensors(item, tensors) for key, item in value["items"]}
    return [_put_tensors(item, tensors) for item in value] if isinstance(value, list) else value


def _digest(rest: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(rest.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
