"""One shard of an attribution: embedded, scored, quantised, and committed; a killed job loses the shard that it was at.

    RUN/index/shard-00000.*             codes, scales and ids (`index.py`)
    RUN/work/shard-00000.rows.parquet   id, contributor, score, best query of each usable row
    RUN/work/shard-00000.best.safetensors        its top and bottom rows by query
    RUN/work/shard-00000.rejected.jsonl          what was set aside
    RUN/work/shard-00000.kept.jsonl, .removed.jsonl   where a threshold is set
    RUN/work/shard-00000.json           commit record, written last: counts, checksums, and what the shard was made of

A shard depends on nothing but its rows, the queries and the encoder, so made again it is the same. `rank_shard` makes it wherever an
engine likes and touches no file; `commit_shard` is called by the one process that writes the run.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from safetensors.numpy import save_file

from influcoder.aggregation import aggregate
from influcoder.calibration import MuScale
from influcoder.commits import Writer, commit, read_record
from influcoder.distribution import Distribution
from influcoder.embed_batch import embed_chunks
from influcoder.errors import RunError
from influcoder.examples import Example
from influcoder.index import has_shard, write_quantised
from influcoder.onnx_encoder import OnnxEncoder
from influcoder.pool import PoolRow, json_line, shard_fingerprint
from influcoder.quantisation import Quantised, quantise
from influcoder.readers import Rejected
from influcoder.text_format import render
from influcoder.top_k import TopK

ROWS_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("contributor", pa.string()),
        ("score", pa.float64()),
        ("best_query_id", pa.string()),
        ("best_score", pa.float32()),
    ]
)

Shard = Sequence[PoolRow]
Made = Generator[tuple[int, dict[str, Any], float], None, None]
"""what an engine yields as it commits shards: number, commit record, seconds"""


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """What every shard of a job is scored by."""

    encoder: OnnxEncoder
    queries: Sequence[Example]
    query_vectors: NDArray[np.float32]
    """(Q, dim)"""
    top_k: int
    top: int | None
    """a row's score is the mean over so many of its best queries"""
    chunk_rows: int
    """rows embedded and scored at a time"""
    keep_above: float | None = None
    keep_below: float | None = None
    mu_scale: MuScale | None = None
    """of an encoder whose teacher was f-influence: what its scores say of mu"""
    distribution: Distribution | None = None
    """of an encoder that says what it was distilled on: marks rows that are far from that"""

    @property
    def rows_schema(self) -> pa.Schema:
        """Columns of `rows.parquet`."""
        return ROWS_SCHEMA if self.distribution is None else ROWS_SCHEMA.append(pa.field("far", pa.bool_()))

    @property
    def filters(self) -> bool:
        """Whether rows are kept and removed by their score."""
        return self.keep_above is not None or self.keep_below is not None

    def keeps(self, scores: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return which rows of these scores are kept."""
        kept = np.ones(len(scores), bool)
        if self.keep_above is not None:
            kept &= scores > self.keep_above
        if self.keep_below is not None:
            kept &= scores < self.keep_below
        return kept


@dataclass(frozen=True, kw_only=True)
class RankedShard:
    """What a shard's rows came to, not yet on the disk."""

    quantised: Quantised
    """embeddings of the usable rows"""
    table: pa.Table
    """`ROWS_SCHEMA`, a row for each"""
    best: dict[str, NDArray[Any]]
    """scores and rows of its top and bottom by query"""
    lines: dict[str, list[str]]
    """`rejected`, and `kept` and `removed` where a threshold is set: lines of those files"""
    facts: dict[str, Any]
    """counts and fingerprint, for the commit record"""


def shard_file(folder: Path, number: int, name: str) -> Path:
    """Return where a shard's file `name` (`json`, `rows.parquet`, ...) lies in a run's folder."""
    return folder / "work" / f"shard-{number:05d}.{name}"


def finished_shard(folder: Path, number: int, shard: Shard) -> dict[str, Any] | None:
    """Return the commit record of a shard that was made before; None when it has to be made.

    Raises:
        RunError: when it was made of other rows.
    """
    path = shard_file(folder, number, "json")
    record = read_record(path)
    if record is None or not has_shard(folder / "index", number):
        return None
    if record["fingerprint"] != shard_fingerprint(shard):
        raise RunError(
            f"{path}: made of other rows than the pool has now; expected the pool to stay as it is while a job is unfinished; "
            f"bring it back, or remove {folder} to begin anew"
        )
    return record


def rank_shard(shard: Shard, ranking: Ranking, advance: Callable[[int], object] = lambda rows: None) -> RankedShard:
    """Embed, score and quantise a shard of the pool; neither reads nor writes a file. `advance` is told of rows as they are scored.

    Raises:
        RunError: when the encoder fails.
    """
    rows = [row.example for row in shard if isinstance(row.example, Example)]
    rejected = [row.example for row in shard if isinstance(row.example, Rejected)]
    best = {side: TopK(len(ranking.queries), ranking.top_k, side) for side in ("top", "bottom")}
    vectors, tables, num_truncated = [np.empty((0, ranking.query_vectors.shape[1]), np.float32)], [ranking.rows_schema.empty_table()], 0
    for chunk, embedded, truncated in embed_chunks(ranking.encoder, rows, ranking.chunk_rows):
        scores = ranking.query_vectors @ embedded.T
        for kept in best.values():
            kept.add(scores)
        tables.append(_row_table(chunk, scores, embedded, ranking))
        vectors.append(embedded)
        num_truncated += int(truncated.sum())
        advance(len(chunk))
    table = pa.concat_tables(tables).combine_chunks()
    lines = {"rejected": [json_line(asdict(row)) for row in rejected]}
    facts = {
        "rows": len(rows),
        "rejected": len(rejected),
        "broken_files": sum(row.rest_of_file for row in rejected),
        "truncated": num_truncated,
        "fingerprint": shard_fingerprint(shard),
    }
    if ranking.distribution is not None:
        facts["far"] = sum(table["far"].to_pylist())
    if ranking.filters:
        keeps = ranking.keeps(table["score"].to_numpy())
        read = [row.line for row in shard if row.line is not None]
        for name, chosen in (("kept", keeps), ("removed", ~keeps)):
            facts[name] = int(chosen.sum())
            lines[name] = [read[place] for place in np.flatnonzero(chosen)]
    tensors = {f"{side}_{name}": np.ascontiguousarray(getattr(kept, name)) for side, kept in best.items() for name in ("scores", "rows")}
    return RankedShard(quantised=quantise(np.concatenate(vectors)), table=table, best=tensors, lines=lines, facts=facts)


def commit_shard(folder: Path, number: int, shard: RankedShard) -> dict[str, Any]:
    """Write a shard and commit it; return its commit record.

    Raises:
        RunError: when the disk does not take the files.
    """
    ids, contributors = (shard.table[name].to_pylist() for name in ("id", "contributor"))
    write_quantised(folder / "index", number, shard.quantised, ids, contributors)
    files: dict[str, Writer] = {
        "rows.parquet": lambda path: pq.write_table(shard.table, path, compression="zstd"),
        "best.safetensors": lambda path: save_file(shard.best, path),
    }
    files |= {f"{name}.jsonl": partial(_write_lines, lines=lines) for name, lines in shard.lines.items()}
    named = {shard_file(folder, number, name).name: write for name, write in files.items()}
    return commit(shard_file(folder, number, "json"), named, shard.facts)


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    with path.open("w", encoding="utf-8") as stream:
        stream.writelines(lines)


def _row_table(rows: Sequence[Example], scores: NDArray[np.float32], vectors: NDArray[np.float32], ranking: Ranking) -> pa.Table:
    weights = np.array([query.weight for query in ranking.queries])
    # the best query is one of the wanted behaviour: a contrast query explains nothing
    wanted = np.flatnonzero(weights > 0) if (weights > 0).any() else np.arange(len(weights))
    best = scores[wanted].argmax(axis=0)
    columns = [
        [row.id for row in rows],
        [row.contributor for row in rows],
        aggregate(scores, weights, ranking.top),
        [ranking.queries[wanted[place]].id for place in best],
        scores[wanted].max(axis=0),
    ]
    if ranking.distribution is not None:
        columns.append(ranking.distribution.far(vectors, [render(row, ranking.encoder.text_format) for row in rows]))
    return pa.table(columns, schema=ranking.rows_schema)
