"""Projected gradients into stores: one shard after another, each committed before the next, all seeds from the same pass.

A shard is its own batch plan, so a resumed run repeats the batches of an uninterrupted one. When memory runs out, the shard is
taken again with half the tokens a batch; `budget-RANK.json` remembers it, so that a resumed run goes on with the same plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from influcoder.examples import Example
from influcoder.features import Manifest, create_store, has_shard, write_shard
from influcoder.influence.batch_budget import Budget, project_rows
from influcoder.influence.gradients import GradientProjector
from influcoder.influence.tokens import TokenizedRow
from teacher.processes import Processes


@dataclass(frozen=True)
class Side:
    """The rows of one store."""

    name: str
    """rows, queries, or rows_as_queries"""
    examples: Sequence[Example]
    rows: Sequence[TokenizedRow]


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
