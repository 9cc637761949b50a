"""Records a training of transformers' Trainer for influence: `Trainer(..., callbacks=[TransformersRecorder("runs/record")])`.

Ids of rows: the Trainer drops columns that the model does not know, and a batch has no other way to say what it is made of. To have ids
in the points, keep a column of whole numbers, and tell the Trainer not to drop it:

    dataset = dataset.add_column("row_id", range(len(dataset)))
    TrainingArguments(..., remove_unused_columns=False)

Collators of transformers pad what they know and turn numbers into a tensor; the recorder takes the column out of each batch before the
model sees it. Without the column points are saved without ids: the estimator asks every row at every point and needs none.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from influcoder.callbacks.recorder import QueryLoss, Recorder, count_rows


class TransformersRecorder(TrainerCallback):
    """Saves points of the training at equal distances; the agreement with a query set goes to the Trainer's log history and to W&B."""

    def __init__(
        self,
        folder: str | Path,
        *,
        row_ids: str = "row_id",
        count: int = 10,
        max_bytes: int | None = None,
        query_loss: QueryLoss | None = None,
        agreement_every: int = 10,
    ) -> None:
        """Plan a recording.

        Args:
            folder: to make.
            row_ids: column of the batches that holds their rows' ids; taken out before the model sees it.
            count: `Recorder`'s, as all that follow.
            max_bytes: of all points.
            query_loss: of the model.
            agreement_every: steps.
        """
        self.recorder = Recorder(folder, count=count, max_bytes=max_bytes, query_loss=query_loss, agreement_every=agreement_every)
        self.row_ids = row_ids

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Begin, or go on at the step of the loaded checkpoint.

        Raises:
            ConfigError: as `Recorder.begin` says.
        """
        model: nn.Module = kwargs["model"]
        self.handle = model.register_forward_pre_hook(self._look, with_kwargs=True)
        self.recorder.begin(
            model, kwargs["optimizer"], done=state.global_step, total=state.max_steps, writes=state.is_world_process_zero,
            processes=args.world_size,
        )  # fmt: skip

    def on_pre_optimizer_step(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Note the learning rate, measure the agreement."""
        agreement = self.recorder.before_step(float(kwargs["optimizer"].param_groups[0]["lr"]))
        if agreement is not None:
            state.log_history.append({"influence_agreement": agreement, "step": state.global_step, "epoch": state.epoch})
            wandb = sys.modules.get("wandb")  # the Trainer's loggers hear of nothing but its own figures
            if wandb is not None and wandb.run is not None:
                wandb.log({"train/influence_agreement": agreement, "train/global_step": state.global_step})

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Note the step."""
        self.recorder.step()

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Say what it cost."""
        self.handle.remove()
        if cost := self.recorder.end():
            print(cost)

    def _look(self, model: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Take the ids out of what the model is given, and count its rows while it trains."""
        ids = named.pop(self.row_ids, None)
        if model.training:
            self.recorder.batch(count_rows(named or inputs), ids.tolist() if isinstance(ids, Tensor) else ids)
        return inputs, named
