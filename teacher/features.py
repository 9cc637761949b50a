"""Writing feature stores: one shard after another, each committed before the next, all seeds from the same pass."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from influcoder.examples import Example, fingerprint
from influcoder.features import Manifest, create_store, has_shard, write_shard
from influcoder.influence.gradients import GradientProjector
from influcoder.influence.tokens import TokenizedRow


@dataclass(frozen=True)
class Side:
    """The rows of one store."""

    name: str
    """rows or queries"""
    examples: list[Example]
    rows: list[TokenizedRow]
    method: str
    decoder_fingerprint: str


def write_features(folder: Path, side: Side, projector: GradientProjector) -> None:
    """Write `folder/seed-S/NAME/` for every seed of the projector; committed shards are kept.

    A shard is its own batch plan, so a resumed run repeats the batches of an uninterrupted one.
    """
    config, seeds = projector.config, projector.seeds
    stores = [folder / f"seed-{seed}" / side.name for seed in seeds]
    manifest = Manifest(
        ids=tuple(example.id for example in side.examples),
        dim=config.dim,
        shard_rows=config.shard_rows,
        method=side.method,
        seed=seeds[0],
        rows_fingerprint=fingerprint(side.examples),
        decoder_fingerprint=side.decoder_fingerprint,
    )
    for seed, store in zip(seeds, stores, strict=True):
        create_store(store, Manifest(**(vars(manifest) | {"seed": seed})))
    _announce(side, projector)
    with tqdm(total=len(side.rows), desc=f"gradients of {side.name}", unit="row") as progress:
        for shard in range(manifest.num_shards):
            rows = side.rows[manifest.rows_of(shard)]
            if not all(has_shard(store, shard) for store in stores):
                sketches = np.empty((len(seeds), len(rows), config.dim), np.float32)
                for positions, projected in projector.project_all(rows):
                    sketches[:, positions] = projected.cpu().numpy()
                    progress.update(len(positions))
                for store, sketch in zip(stores, sketches, strict=True):
                    write_shard(store, shard, sketch)
            else:
                progress.update(len(rows))


def _announce(side: Side, projector: GradientProjector) -> None:
    tokens = sum(len(row.input_ids) for row in side.rows)
    disk = len(side.rows) * (2 * projector.config.dim + 4) * len(projector.seeds)
    held = sum(a.numel() * 4 for a in projector.a.values()) + sum(
        sketch.buckets.numel() * 12 for sketches in projector.sketches.values() for sketch in sketches
    )
    print(
        f"gradients of {side.name}: {len(side.rows)} rows, {tokens:,} tokens, {len(projector.layers)} linear layers, "
        f"{len(projector.seeds)} x {projector.config.dim} coordinates; {disk / 1e6:,.0f} MB on disk, {held / 1e6:,.0f} MB of projections in memory"
    )
