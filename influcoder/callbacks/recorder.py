"""What is recorded of a training, whatever loop drives it: points at equal distances, a line a step, and agreement with a query set.

    FOLDER/0/ 1/ ...      points, as influence/checkpoints.py writes them
    FOLDER/steps.csv      step, learning_rate, rows, agreement: a line a step, appended
    FOLDER/recording.json when the training has ended: steps, points, rows a step

All that the points need of the steps before them is in steps.csv, so that a killed and resumed training records what an uninterrupted
one does: on resuming at a step, later lines and points are dropped.
"""

from __future__ import annotations

import csv
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from influcoder.errors import ConfigError
from influcoder.influence.checkpoints import load_checkpoints, point_folders, save_checkpoint
from influcoder.runs import write_json_atomic, write_text_atomic

QueryLoss = Callable[[nn.Module], Tensor]
"""of the model: mean loss of the query set, a scalar"""
COLUMNS = ("step", "learning_rate", "rows", "agreement")


class Recorder:
    """Records one training; a callback tells it what happens."""

    def __init__(
        self,
        folder: str | Path,
        *,
        count: int = 10,
        max_bytes: int | None = None,
        query_loss: QueryLoss | None = None,
        agreement_every: int = 10,
    ) -> None:
        """Plan a recording.

        Args:
            folder: to make; a finished recording in it is not overwritten.
            count: points, at equal distances over the run, the last step among them.
            max_bytes: of all points together; fewer points are saved when they need more.
            query_loss: mean loss of a query set under the model; its agreement with the batch's gradient is then logged.
            agreement_every: steps from one such measurement to the next; each costs a forward and backward pass of the query set.

        Raises:
            ConfigError: on numbers below 1.
        """
        if min(count, agreement_every, max_bytes or 1) < 1:
            raise ConfigError(
                f"recorder: count {count}, agreement_every {agreement_every}, max_bytes {max_bytes}; expected at least 1 each"
            )
        self.folder, self.count, self.max_bytes = Path(folder), count, max_bytes
        self.query_loss, self.agreement_every = query_loss, agreement_every
        self.done = 0
        self.seconds = 0.0

    def begin(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, *, done: int, total: float, writes: bool = True, processes: int = 1
    ) -> None:
        """Begin, or go on where a resumed training does.

        Args:
            model: whose trained parameters are saved.
            optimizer: of these.
            done: optimiser steps before this moment, above 0 when a training is resumed.
            total: optimiser steps when it will have ended.
            writes: whether this process is the one that writes.
            processes: that train together; there may be others, which do not.

        Raises:
            ConfigError: when the folder holds something else or a finished recording, the parameters are sharded, no end of the training is
                known, or `max_bytes` is less than a point.
        """
        self.started = time.perf_counter()
        with self._clock():
            self.model, self.optimizer, self.writes, self.done, self.processes = model, optimizer, writes, done, processes
            trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
            if any(isinstance(parameter, DTensor) or parameter.numel() == 0 for parameter in trained):
                raise ConfigError(
                    "recorder: the parameters are sharded over processes; expected whole ones in each; use DDP, or an adapter"
                )
            if not math.isfinite(total) or total < 1:
                raise ConfigError(
                    f"recorder: the training is to take {total} steps; expected a number that is known; give the Trainer max_steps"
                )
            saved = self._from_first(self._take_up(done) if writes else 0)
            self.steps = remaining_steps(int(total), self._affordable(trained), done, saved)
            self.saved, self.rows = saved, 0
            self.ids: list[str | None] = []
            self.learning_rate, self.agreement = math.nan, math.nan

    def batch(self, rows: int, ids: Sequence[Any] | None) -> None:
        """Note one batch on the way to the next step; with accumulation there are several."""
        self.rows += rows
        self.ids += [None] * rows if ids is None else [str(row_id) for row_id in ids]

    def before_step(self, learning_rate: float) -> float | None:
        """Note the step's learning rate while the gradients are there; return the agreement with the query set when it is measured."""
        self.learning_rate, self.agreement = learning_rate, math.nan
        if self.query_loss is None or not self.writes or self.done % self.agreement_every:
            return None
        with self._clock():
            self.agreement = gradient_agreement(self.model, self.query_loss)
        return self.agreement

    def step(self) -> None:
        """Note that a step is done; save a point when it is one of the chosen."""
        with self._clock():
            self.done += 1
            ids, rows = self.ids, self.rows
            self.rows, self.ids = 0, []
            chosen = bool(self.steps) and self.done == self.steps[0]
            if self.processes > 1:  # each has its own part of the batch
                rows *= self.processes
                ids = self._gathered(ids) if chosen else ids
            if self.writes:
                measured = "" if math.isnan(self.agreement) else repr(self.agreement)
                with (self.folder / "steps.csv").open("a", encoding="utf-8") as log:
                    log.write(f"{self.done},{self.learning_rate!r},{rows},{measured}\n")
            if chosen:
                self.steps.pop(0)
                self._save(ids)

    def end(self) -> str | None:
        """Finish: the last step is a point even when the training stopped early. Return what the recording cost, to be printed."""
        with self._clock():
            if self.steps and self.done and self.writes and not self._saved_at(self.done):
                self._save(())
            if not self.writes:
                return None
            points = load_checkpoints(self.folder) if self.saved else []
            record = {"steps": self.done, "points": [point.step for point in points]}
            write_json_atomic(self.folder / "recording.json", record)
        total = time.perf_counter() - self.started
        size = sum(path.stat().st_size for point in points for path in point.folder.iterdir())
        return (
            f"{self.folder}: {len(points)} points of {self.done} steps recorded, {size / 1e6:.1f} MB; "
            f"{self.seconds:.1f} s, {self.seconds / total:.1%} of the training"
        )

    def _save(self, ids: Sequence[str | None]) -> None:
        if self.writes:
            rates, rows = self._since_last_point()
            known = [row_id for row_id in ids if row_id is not None]
            place = self.folder / str(self.saved)
            save_checkpoint(place, self.model, self.optimizer, self.done, sum(rates) / len(rates), sum(rows) / len(rows), known or None)
        self.saved += 1

    def _since_last_point(self) -> tuple[list[float], list[int]]:
        """Return learning rates and rows of the steps that no point speaks for yet."""
        before = max((point.step for point in load_checkpoints(self.folder)), default=0) if self.saved else 0
        lines = [line for line in _read_lines(self.folder / "steps.csv") if before < int(line["step"]) <= self.done]
        return [float(line["learning_rate"]) for line in lines], [int(line["rows"]) for line in lines]

    def _saved_at(self, step: int) -> bool:
        return bool(self.saved) and load_checkpoints(self.folder)[-1].step == step

    def _affordable(self, trained: Sequence[nn.Parameter]) -> int:
        """Return how many points there may be."""
        if self.max_bytes is None:
            return self.count
        each = 3 * sum(parameter.numel() * parameter.element_size() for parameter in trained)  # with Adam's two moments
        if each > self.max_bytes:
            raise ConfigError(f"recorder: a point takes {each:,} bytes, max_bytes is {self.max_bytes:,}; expected room for one; allow more")
        return min(self.count, self.max_bytes // each)

    def _take_up(self, done: int) -> int:
        """Make the folder ready, keep what was recorded up to step `done`; return the number of points kept."""
        if done == 0 and (self.folder / "recording.json").exists():
            raise ConfigError(f"{self.folder}: holds a finished recording; expected a new place; choose another folder, or remove it")
        if self.folder.exists() and any(self.folder.iterdir()) and not (self.folder / "steps.csv").exists():
            raise ConfigError(f"{self.folder}: holds something else than a recording; expected an empty or new folder; choose another")
        self.folder.mkdir(parents=True, exist_ok=True)
        lines = [line for line in _read_lines(self.folder / "steps.csv") if int(line["step"]) <= done]
        places = point_folders(self.folder)
        kept = {point.folder for point in load_checkpoints(self.folder) if point.step <= done} if done and places else set()
        for place in (*places, *self.folder.glob(".*.writing")):
            if place not in kept and place.is_dir():
                shutil.rmtree(place)
        (self.folder / "recording.json").unlink(missing_ok=True)
        text = "".join(",".join(values) + "\n" for values in (COLUMNS, *(tuple(line.values()) for line in lines)))
        write_text_atomic(self.folder / "steps.csv", text)
        return len(kept)

    def _from_first(self, number: int) -> int:
        """Return the first process's number in every process."""
        told = [number]
        if self.processes > 1:
            dist.broadcast_object_list(told)
        return told[0]

    def _gathered(self, ids: Sequence[str | None]) -> list[str | None]:
        parts: list[list[str | None]] = [[] for _ in range(self.processes)]
        dist.all_gather_object(parts, list(ids))
        return [row_id for part in parts for row_id in part]

    @contextmanager
    def _clock(self) -> Iterator[None]:
        """Count the time of the block as the recording's."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - started


def remaining_steps(total: int, count: int, done: int, saved: int) -> list[int]:
    """Return the steps, 1 to `total`, after which points are saved: the ends of `count` equal parts, less what lies before `done`.

    Where the plan was another before a resumption, so that more are left than `count - saved`, the last of them are taken.
    """
    later = [step for step in sorted({max(1, total * (part + 1) // count) for part in range(count)}) if step > done]
    return later[max(0, len(later) - max(0, count - saved)) :]


def gradient_agreement(model: nn.Module, query_loss: QueryLoss) -> float:
    """Return the cosine, -1 to 1, of the gradients that the trained parameters hold and the gradient of the query set's loss.

    Positive: the coming step lowers the queries' loss, to first order of plain descent. Gradients, modes and random state stay as they are
    (dropout is off); 0 where either gradient is 0.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad and parameter.grad is not None]
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.enable_grad():
            wanted = torch.autograd.grad(query_loss(model), trained, allow_unused=True)
    finally:
        for module, mode in modes.items():
            module.training = mode
    product = ours = theirs = 0.0
    for parameter, gradient in zip(trained, wanted, strict=True):
        assert parameter.grad is not None  # chosen so
        held = parameter.grad.float()
        ours += float(held.square().sum())
        if gradient is not None:
            product, theirs = product + float((held * gradient.float()).sum()), theirs + float(gradient.float().square().sum())
    return product / math.sqrt(ours * theirs) if ours * theirs > 0 else 0.0


def count_rows(batch: Any) -> int:
    """Return the length of the first tensor in a batch, however it is nested; 0 when there is none."""
    if isinstance(batch, Tensor):
        return len(batch) if batch.ndim else 1
    parts = batch.values() if hasattr(batch, "values") else batch if isinstance(batch, (list, tuple)) else ()
    return next((found for part in parts if (found := count_rows(part))), 0)


def _read_lines(path: Path) -> list[dict[str, str]]:
    """Return the whole lines of steps.csv; a kill may have cut the last one."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as stream:
        whole = [line for line in stream if line.endswith("\n")]
    return list(csv.DictReader(whole))
