from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.utils.data import DataLoader

from influcoder.errors import ConfigError
from influcoder.training import make_trainer, silence_hints

QUIET = {"enable_progress_bar": False, "accelerator": "cpu"}


class OneWeight(LightningModule):
    """Pulls one number to zero."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def training_step(self, batch: Tensor, batch_index: int) -> Tensor:
        loss = (self.weight * batch).square().mean()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(folder: Path, settings: dict[str, Any]) -> None:
    silence_hints()
    data: DataLoader[Tensor] = DataLoader(torch.ones(6, 1))  # type: ignore[arg-type]  # any sequence is a dataset
    make_trainer(settings, folder, max_epochs=1, log_every_n_steps=1).fit(OneWeight(), data)


@pytest.mark.parametrize("logger", [None, False])
def test_csv_is_always_written_in_a_folder_of_its_own(tmp_path: Path, logger: object) -> None:
    fit(tmp_path, QUIET | {"logger": logger})
    lines = (tmp_path / "log" / "metrics.csv").read_text().splitlines()
    assert "loss" in lines[0] and len(lines) == 7
    assert {path.name for path in tmp_path.iterdir()} == {"log"}  # no checkpoint, hence no pickle


def test_a_logger_by_class_path_comes_beside_the_csv(tmp_path: Path) -> None:
    extra = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": str(tmp_path / "extra")}}
    fit(tmp_path / "run", QUIET | {"logger": extra})
    assert (tmp_path / "run" / "log" / "metrics.csv").exists()
    assert len(list((tmp_path / "extra").rglob("metrics.csv"))) == 1


def test_settings_win_over_defaults_and_callbacks_add_up(tmp_path: Path) -> None:
    ours = Timer()
    named = [{"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {"monitor": "loss"}}]
    trainer = make_trainer(QUIET | {"max_epochs": 3, "callbacks": named}, tmp_path, [ours], max_epochs=9, gradient_clip_val=0.5)
    assert (trainer.max_epochs, trainer.gradient_clip_val) == (3, 0.5)
    kinds = [type(callback).__name__ for callback in trainer.callbacks]  # type: ignore[attr-defined]
    assert {"Timer", "EarlyStopping"} <= set(kinds)
    assert isinstance(trainer.logger, CSVLogger)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_epoch": 3}, r"trainer: .*max_epoch"),
        ({"accelerator": "abacus"}, r"trainer: .*abacus"),
        ({"logger": {"class_path": "no_such_package.Logger"}}, r"trainer\.logger: no_such_package\.Logger cannot be made"),
        ({"logger": {"class_path": "lightning.pytorch.loggers.NoLogger"}}, r"trainer\.logger: .*NoLogger cannot be made"),
        ({"logger": [{"class_path": "lightning.pytorch.loggers.CSVLogger"}]}, r"trainer\.logger: .*CSVLogger cannot be made .*save_dir"),
        ({"callbacks": ["Timer"]}, r"trainer\.callbacks: 'Timer'; expected a mapping with class_path"),
    ],
)
def test_what_cannot_be_made_is_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        make_trainer(QUIET | settings, tmp_path)
    assert "\n" not in str(caught.value)


def test_hints_are_silent_and_other_warnings_are_not() -> None:
    silence_hints()
    with warnings.catch_warnings(record=True) as caught:
        warnings.warn("The 'train_dataloader' does not have many workers which may be a bottleneck.", stacklevel=1)
        with pytest.raises(UserWarning, match="loss is nan"):
            warnings.warn("loss is nan", stacklevel=1)
    assert not caught


@pytest.mark.parametrize(
    "settings",
    [{"enable_checkpointing": True}, {"callbacks": {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint"}}],
)
def test_pickled_checkpoints_are_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="checkpoint") as caught:
        make_trainer(QUIET | settings, tmp_path)
    assert "\n" not in str(caught.value)
