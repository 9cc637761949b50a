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

from influcoder.attribution_shards import Ranking, shard_file
from influcoder.index import open_index, publish, remove_shards_from
from influcoder.rescoring import Rescoring
from influcoder.short_list import Ranked
from influcoder.top_k import Side, TopK

TOP_K_FILE = "topk.parquet"
ROWS_FILE = "rows.parquet"
REJECTED_FILE = "rejected.jsonl"
KEPT_FILE, REMOVED_FILE = "kept.jsonl", "removed.jsonl"


def write_tables(folder: Path, records: Sequence[Mapping[str, Any]], ranking: Ranking, rescoring: Rescoring | None = None) -> None:
    """Write the products of a run whose shards are all committed, and publish its index; killed and called again, it writes the same."""
    with pq.ParquetWriter(folder / ROWS_FILE, ranking.rows_schema) as writer:
        for number, record in enumerate(records):
            if record["rows"]:
                writer.write_table(pq.read_table(shard_file(folder, number, "rows.parquet"), schema=ranking.rows_schema))
    for name in (REJECTED_FILE, KEPT_FILE, REMOVED_FILE) if ranking.filters else (REJECTED_FILE,):
        with (folder / name).open("wb") as whole:
            for number in range(len(records)):
                with shard_file(folder, number, name).open("rb") as part:
                    shutil.copyfileobj(part, whole)
    remove_shards_from(folder / "index", len(records))
    publish(folder / "index", ranking.encoder, len(records))
    _write_top_k(folder, records, ranking, rescoring)


def _write_top_k(folder: Path, records: Sequence[Mapping[str, Any]], ranking: Ranking, rescoring: Rescoring | None) -> None:
    sides: tuple[Side, ...] = ("top", "bottom")
    best = {side: TopK(len(ranking.queries), ranking.top_k, side) for side in sides}
    for number, record in enumerate(records):
        tensors = load_file(shard_file(folder, number, "best.safetensors"))
        for side, kept in best.items():
            kept.merge(tensors[f"{side}_scores"], tensors[f"{side}_rows"], record["rows"])
    ranked = {side: Ranked(kept.rows, kept.scores) for side, kept in best.items()}
    if rescoring is not None:
        ranked = rescoring.rank(folder / "work", ranked, records)
    index = open_index(folder / "index", verify=False)
    looked_up = {side: index.look_up(kept.rows.ravel()) for side, kept in ranked.items()}
    if ranking.distribution is not None:
        far = pq.read_table(folder / ROWS_FILE, columns=["far"])["far"]  # a bit a row
        looked_up = {side: rows.append_column("far", far.take(ranked[side].rows.ravel())) for side, rows in looked_up.items()}
    tables = [_side_table(side, kept, ranking, looked_up[side]) for side, kept in ranked.items()]
    pq.write_table(pa.concat_tables(tables), folder / TOP_K_FILE)


def _side_table(side: Side, kept: Ranked, ranking: Ranking, rows: pa.Table) -> pa.Table:
    scores, queries = kept.scores, ranking.queries
    num_kept = scores.shape[1]
    of_student = scores if kept.student_scores is None else kept.student_scores
    doubt = {} if ranking.mu_scale is None else ranking.mu_scale.intervals(of_student.ravel())
    return pa.table(
        {
            "query_id": np.repeat([query.id for query in queries], num_kept),
            "side": pa.array([side] * scores.size, pa.string()),
            "rank": np.tile(np.arange(1, num_kept + 1), len(queries)),
            "id": rows["id"],
            "score": pa.array(scores.ravel(), from_pandas=True),  # NaN, what the teacher cannot score, becomes null
            "contributor": rows["contributor"],
            **({} if kept.student_scores is None else {"student_score": of_student.ravel()}),
            **doubt,
            **({} if ranking.distribution is None else {"far": rows["far"]}),
        }
    )
