"""Records a Lightning training for influence: `Trainer(callbacks=[LightningRecorder("runs/record")])`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from influcoder.callbacks.recorder import QueryLoss, Recorder, count_rows
from influcoder.errors import ConfigError


class LightningRecorder(Callback):
    """Saves points of the training at equal distances, and logs the batches' agreement with a query set to every logger."""

    def __init__(
        self,
        folder: str | Path,
        *,
        model: str = "model",
        row_ids: str | Callable[[Any], Sequence[Any]] = "row_id",
        count: int = 10,
        max_bytes: int | None = None,
        query_loss: QueryLoss | None = None,
        agreement_every: int = 10,
    ) -> None:
        """Plan a recording.

        Args:
            folder: to make.
            model: attribute of the LightningModule that holds the decoder: parameters are saved under their names in it.
            row_ids: key of a batch (a mapping) that holds its rows' ids, or a function of the batch; where a batch has no such key,
                points are saved without ids.
            count: `Recorder`'s, as all that follow.
            max_bytes: of all points.
            query_loss: of the decoder.
            agreement_every: steps.
        """
        self.recorder = Recorder(folder, count=count, max_bytes=max_bytes, query_loss=query_loss, agreement_every=agreement_every)
        self.name, self.row_ids = model, row_ids

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin, or go on at the step of the loaded checkpoint.

        Raises:
            ConfigError: when the module has no such decoder, or as `Recorder.begin` says.
        """
        decoder = getattr(pl_module, self.name, None)
        if not isinstance(decoder, nn.Module):
            raise ConfigError(
                f"recorder: {type(pl_module).__name__} has no module {self.name!r}; expected the decoder there; name its attribute in `model`"
            )
        total = float(trainer.estimated_stepping_batches)
        self.recorder.begin(
            decoder,
            trainer.optimizers[0],
            done=trainer.global_step,
            total=total,
            writes=trainer.is_global_zero,
            processes=trainer.world_size,
        )

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Note the learning rate, measure the agreement."""
        agreement = self.recorder.before_step(float(optimizer.param_groups[0]["lr"]))
        if agreement is not None:
            for logger in trainer.loggers:
                logger.log_metrics({"influence_agreement": agreement}, step=trainer.global_step)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Note the batch, and the step when it is done."""
        self.recorder.batch(count_rows(batch), self._ids(batch))
        if trainer.global_step > self.recorder.done:
            self.recorder.step()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what it cost."""
        if cost := self.recorder.end():
            print(cost)

    def _ids(self, batch: Any) -> Sequence[Any] | None:
        if callable(self.row_ids):
            return self.row_ids(batch)
        found = batch.get(self.row_ids) if isinstance(batch, Mapping) else None
        return found.tolist() if isinstance(found, Tensor) else found
