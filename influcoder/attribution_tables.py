"""From committed shards to the files of an attribution: one pass over the shards in order, one of them in memory at a time."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import load_file

from influcoder.attribution_shards import ROWS_SCHEMA, Ranking, shard_file
from influcoder.index import open_index, publish, remove_shards_from
from influcoder.top_k import Side, TopK

TOP_K_FILE = "topk.parquet"
ROWS_FILE = "rows.parquet"
REJECTED_FILE = "rejected.jsonl"
KEPT_FILE, REMOVED_FILE = "kept.jsonl", "removed.jsonl"


def write_tables(folder: Path, records: Sequence[Mapping[str, Any]], ranking: Ranking) -> None:
    """Write the products of a run whose shards are all committed, and publish its index; killed and called again, it writes the same."""
    with pq.ParquetWriter(folder / ROWS_FILE, ROWS_SCHEMA) as writer:
        for number, record in enumerate(records):
            if record["rows"]:
                writer.write_table(pq.read_table(shard_file(folder, number, "rows.parquet"), schema=ROWS_SCHEMA))
    for name in (REJECTED_FILE, KEPT_FILE, REMOVED_FILE) if ranking.filters else (REJECTED_FILE,):
        with (folder / name).open("wb") as whole:
            for number in range(len(records)):
                with shard_file(folder, number, name).open("rb") as part:
                    shutil.copyfileobj(part, whole)
    remove_shards_from(folder / "index", len(records))
    publish(folder / "index", ranking.encoder, len(records))
    _write_top_k(folder, records, ranking)


def _write_top_k(folder: Path, records: Sequence[Mapping[str, Any]], ranking: Ranking) -> None:
    sides: tuple[Side, ...] = ("top", "bottom")
    best = {side: TopK(len(ranking.queries), ranking.top_k, side) for side in sides}
    for number, record in enumerate(records):
        tensors = load_file(shard_file(folder, number, "best.safetensors"))
        for side, kept in best.items():
            kept.merge(tensors[f"{side}_scores"], tensors[f"{side}_rows"], record["rows"])
    index = open_index(folder / "index", verify=False)
    tables = [_side_table(side, kept, ranking, index.look_up(kept.rows.ravel())) for side, kept in best.items()]
    pq.write_table(pa.concat_tables(tables), folder / TOP_K_FILE)


def _side_table(side: Side, kept: TopK, ranking: Ranking, rows: pa.Table) -> pa.Table:
    scores, queries = kept.scores, ranking.queries
    num_kept = scores.shape[1]
    doubt = {} if ranking.mu_scale is None else ranking.mu_scale.intervals(scores.ravel())
    return pa.table(
        {
            "query_id": np.repeat([query.id for query in queries], num_kept),
            "side": pa.array([side] * scores.size, pa.string()),
            "rank": np.tile(np.arange(1, num_kept + 1), len(queries)),
            "id": rows["id"],
            "score": scores.ravel(),
            "contributor": rows["contributor"],
            **doubt,
        }
    )
