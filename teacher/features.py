"""Projected gradients into stores: one shard after another, each committed before the next, all seeds from the same pass.

A shard is its own batch plan, so a resumed run repeats the batches of an uninterrupted one. When memory runs out, the shard is
taken again with half the tokens a batch; `budget-RANK.json` remembers it, so that a resumed run goes on with the same plan.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from influcoder.errors import RunError
from influcoder.examples import Example
from influcoder.features import Manifest, create_store, has_shard, write_shard
from influcoder.influence.gradients import GradientProjector
from influcoder.influence.tokens import TokenizedRow
from influcoder.runs import write_json_atomic
from teacher.processes import Processes

Result = TypeVar("Result")


@dataclass(frozen=True)
class Side:
    """The rows of one store."""

    name: str
    """rows, queries, or rows_as_queries"""
    examples: Sequence[Example]
    rows: Sequence[TokenizedRow]


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


def write_gradients(
    stores: Sequence[Path], manifest: Manifest, side: Side, projector: GradientProjector, budget: Budget, processes: Processes
) -> None:
    """Write one store a seed of the projector; committed shards are kept.

    Args:
        stores: folders, one a seed.
        manifest: of the stores, but for the seed.
        side: whose rows.
        projector: of one checkpoint.
        budget: of a batch.
        processes: which shards are taken here.
    """
    if processes.first:
        for seed, store in zip(projector.seeds, stores, strict=True):
            create_store(store, replace(manifest, seed=seed))
    processes.barrier()
    mine = [shard for shard in range(manifest.num_shards) if processes.takes(shard)]
    rows = sum(len(side.rows[manifest.rows_of(shard)]) for shard in mine)
    with tqdm(total=rows, desc=f"gradients of {side.name}", unit="row", disable=not processes.first) as progress:
        for shard in mine:
            part = side.rows[manifest.rows_of(shard)]
            if not all(has_shard(store, shard) for store in stores):
                gradients = project_rows(projector, part, budget)
                for store, gradient in zip(stores, gradients, strict=True):
                    write_shard(store, shard, gradient)
            progress.update(len(part))


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
