"""A Lightning Trainer from the `trainer:` block of a config.

`logger` and `callbacks` name classes by path, so any Lightning logger or callback can be used and is imported only then:

    trainer:
      max_epochs: 20
      logger: {class_path: lightning.pytorch.loggers.WandbLogger, init_args: {project: influcoder, offline: true}}

A CSV logger is always there, whatever else is named: `FOLDER/log/metrics.csv`.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.cli import instantiate_class
from lightning.pytorch.loggers import CSVLogger
from transformers.utils.logging import disable_progress_bar

from influcoder.errors import ConfigError, InflucoderError

HINTS = (
    r".*isinstance\(treespec, LeafSpec\)",  # Lightning's own use of torch
    r"`is_gradient_checkpointing` is deprecated",  # PEFT's use of transformers
    r".*does not have many workers",  # tokenising a block is nothing beside its backward pass
    r"The number of training batches .* is smaller than the logging interval",
    r"You're resuming from a checkpoint that ended before the epoch ended",  # a student's blocks follow from their place in the epoch
    r"Experiment logs directory .* exists and is not empty",  # an interrupted run begins its log anew, or gives it its rows back
)


def silence_hints() -> None:
    """Hide what Lightning and transformers say at every start; Lightning's progress bar and other warnings stay."""
    disable_progress_bar()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in HINTS:
        warnings.filterwarnings("ignore", message)


def make_trainer(settings: Mapping[str, Any], folder: Path, callbacks: Sequence[Callback] = (), **defaults: Any) -> Trainer:
    """Return a Trainer that logs to `folder/log/metrics.csv` and to what `settings` names.

    Args:
        settings: keyword arguments of `lightning.pytorch.Trainer`; they win over `defaults`.
        folder: where the CSV logger writes.
        callbacks: ours, put before those of the settings.
        **defaults: keyword arguments used unless the settings name them.

    Raises:
        ConfigError: on an unknown argument or a class that cannot be made.
    """
    chosen: dict[str, Any] = defaults | dict(settings)
    loggers = [CSVLogger(folder, name="log", version=""), *_instances(chosen.pop("logger", None), "logger")]
    every = [*callbacks, *_instances(chosen.pop("callbacks", None), "callbacks")]
    if chosen.get("enable_checkpointing"):
        raise ConfigError("trainer.enable_checkpointing: true would write pickles; expected false or nothing, the stages save safetensors")
    ours: dict[str, Any] = {"enable_checkpointing": False, "enable_model_summary": False, "default_root_dir": folder}
    try:
        return Trainer(logger=loggers, callbacks=every, **(ours | chosen))
    except (TypeError, ValueError, MisconfigurationException) as error:
        raise ConfigError(f"trainer: {error}; expected arguments of lightning.pytorch.Trainer") from error


def _instances(named: Any, key: str) -> list[Any]:
    if named is None or named is False:
        return []
    made = []
    for entry in named if isinstance(named, list) else [named]:
        if not isinstance(entry, Mapping) or "class_path" not in entry:
            raise ConfigError(f"trainer.{key}: {entry!r}; expected a mapping with class_path and init_args")
        try:
            made.append(instantiate_class((), {"class_path": entry["class_path"], "init_args": dict(entry.get("init_args", {}))}))
        except InflucoderError:
            raise
        except (ImportError, AttributeError, TypeError, ValueError) as error:
            raise ConfigError(
                f"trainer.{key}: {entry['class_path']} cannot be made ({error}); check its name, arguments and extra"
            ) from error
    return made
