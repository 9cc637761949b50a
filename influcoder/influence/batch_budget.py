"""Projected gradients within the memory there is: batches of as many padded tokens as fit, halved when memory runs out."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from influcoder.errors import RunError
from influcoder.influence.gradients import GradientProjector
from influcoder.influence.tokens import TokenizedRow
from influcoder.runs import write_json_atomic

Result = TypeVar("Result")


@dataclass
class Budget:
    """Padded tokens a batch, remembered in the unfinished run."""

    path: Path | None
    """None: not remembered"""
    max_batch_tokens: int

    @staticmethod
    def of(folder: Path, rank: int, configured: int) -> Budget:
        """Take up the budget that an interrupted run was left with."""
        path = folder / f"budget-{rank}.json"
        known = int(json.loads(path.read_text())["max_batch_tokens"]) if path.exists() else configured
        return Budget(path, min(known, configured))

    def halve(self, longest: int) -> None:
        """Take half of it from now on.

        Raises:
            RunError: when one row alone is too much.
        """
        if self.max_batch_tokens <= longest:
            raise RunError(
                f"memory ran out with one row of up to {longest} tokens a batch; expected room for one; set gradients.checkpointing, "
                "lower the text budgets or gradients.dim, or take a smaller dtype"
            )
        self.max_batch_tokens //= 2
        if self.path is not None:
            write_json_atomic(self.path, {"max_batch_tokens": self.max_batch_tokens})


def project_rows(projector: GradientProjector, rows: Sequence[TokenizedRow], budget: Budget) -> NDArray[np.float32]:
    """Return `(seeds, rows, dim)`."""

    def project(max_batch_tokens: int) -> NDArray[np.float32]:
        found = np.empty((len(projector.seeds), len(rows), projector.dim), np.float32)
        for positions, gradients in projector.project_all(rows, max_batch_tokens):
            found[:, positions] = gradients.cpu().numpy()
        return found

    return within_memory(budget, rows, project)


def within_memory(budget: Budget, rows: Sequence[TokenizedRow], compute: Callable[[int], Result]) -> Result:
    """Return `compute(max_batch_tokens)` of `rows`, halving the budget whenever memory runs out.

    Raises:
        RunError: when one row alone is too much.
    """
    while (found := _attempt(compute, budget.max_batch_tokens)) is None:
        budget.halve(max(len(row.input_ids) for row in rows))
        tqdm.write(f"memory ran out; going on with {budget.max_batch_tokens} tokens a batch")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return found


def _attempt(compute: Callable[[int], Result], max_batch_tokens: int) -> Result | None:
    """Return None when memory ran out. The error is let go of here, since its traceback holds the batch."""
    try:
        return compute(max_batch_tokens)
    except (torch.OutOfMemoryError, MemoryError):
        return None
    except RuntimeError as error:
        if "DefaultCPUAllocator" not in str(error):  # torch has no class of its own for a CPU's memory
            raise
        return None
