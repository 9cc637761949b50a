"""Attribute a pool: for each query the rows that influence it most, and one score for every row.

The pool streams by in chunks, so only ids are held; needs no torch. Score = dot product of unit embeddings, larger =
training on the row lowers the query's loss more; rank 1 is best; ties keep the row order.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tqdm import tqdm

from influcoder.aggregation import DEFAULT_TOP, aggregate
from influcoder.errors import ConfigError, DataError
from influcoder.examples import Example, fingerprint
from influcoder.onnx_encoder import OnnxEncoder
from influcoder.readers import DataSource, OnBadRow, Rejected, iterate_examples, read_examples
from influcoder.runs import create_run
from influcoder.text_format import render
from influcoder.top_k import TopK

TOP_K_FILE = "topk.parquet"
ROWS_FILE = "rows.parquet"
REJECTED_FILE = "rejected.jsonl"
ROWS_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("contributor", pa.string()),
        ("score", pa.float64()),
        ("best_query_id", pa.string()),
        ("best_score", pa.float32()),
    ]
)


@dataclass(frozen=True, kw_only=True)
class AttributionConfig:
    """Find the rows of a pool that influence the queries most: `topk.parquet` by query, `rows.parquet` by row."""

    encoder: str
    """encoder folder with `onnx/`, as a student run or `influcoder export` left it"""
    pool: DataSource
    """rows to rank"""
    queries: DataSource
    """behaviour to explain; a malformed query is always refused"""
    output: str
    """run directory to make; must not exist"""
    top_k: int = 100
    """rows kept for each query"""
    top: int | None = DEFAULT_TOP
    """a row's score is the mean over so many of its best queries; null takes all"""
    on_bad_row: OnBadRow = "set_aside"
    """set_aside writes malformed and duplicate rows of the pool to rejected.jsonl and goes on; refuse stops"""
    chunk_rows: int = 4096
    """rows in memory at a time"""
    providers: tuple[str, ...] = ()
    """onnxruntime's execution providers, best first; empty takes CUDA when there, else CPU"""

    def __post_init__(self) -> None:
        for name in ("top_k", "top", "chunk_rows"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}: {value}; expected at least 1")


def attribute(config: AttributionConfig, config_yaml: str | None = None) -> dict[str, Any]:
    """Make the attribution run that `config` asks for; return what its run.json says of it.

    Args:
        config: what to rank, by what, and where to write.
        config_yaml: its resolved YAML when it came from a file; None writes it out.

    Raises:
        RunError: when the encoder is not usable, or the output exists.
        DataError: when a query is malformed, or a row is and `on_bad_row` is `refuse`.
    """
    with create_run(Path(config.output), "attribution", config_yaml or json.dumps(asdict(config), indent=2) + "\n") as run:
        encoder = OnnxEncoder(config.encoder, providers=config.providers or None)
        queries = read_examples(config.queries)
        name = ", ".join(config.pool.paths)
        pool = unique_rows(iterate_examples(config.pool, config.on_bad_row), config.on_bad_row, name)
        chunks = in_chunks(pool, config.chunk_rows)
        run.facts |= {
            "encoder_fingerprint": encoder.fingerprint,
            "queries_fingerprint": fingerprint(queries),
            "provider": encoder.provider,
            "top": config.top,
            **attribute_rows(encoder, chunks, queries, folder=run.folder, top_k=config.top_k, top=config.top),
        }
    return run.facts


def attribute_rows(
    encoder: OnnxEncoder,
    chunks: Iterable[Sequence[Example | Rejected]],
    queries: Sequence[Example],
    *,
    folder: Path,
    top_k: int = 100,
    top: int | None = DEFAULT_TOP,
) -> dict[str, Any]:
    """Rank rows that arrive in chunks; write the three files into `folder`; return counts and speed.

    Raises:
        DataError: when not one row is usable.
    """
    query_vectors = encoder.encode([render(query, encoder.text_format) for query in queries])
    best, rejected, num_truncated = TopK(len(queries), top_k), 0, 0
    started = time.monotonic()
    with (
        pq.ParquetWriter(folder / ROWS_FILE, ROWS_SCHEMA) as writer,
        (folder / REJECTED_FILE).open("w", encoding="utf-8") as rejected_file,
        tqdm(desc="attribute", unit=" rows") as progress,
    ):
        for chunk in chunks:
            rejected += _write_rejected(rejected_file, chunk)
            rows = [row for row in chunk if isinstance(row, Example)]
            if rows:
                encodings = encoder.tokenize([render(row, encoder.text_format) for row in rows])
                num_truncated += sum(bool(encoding.overflowing) for encoding in encodings)
                scores = query_vectors @ encoder.embed(encodings).T
                best.add(scores)
                writer.write_table(_row_table(rows, scores, queries, top))
            progress.update(len(chunk))
    if not best.num_rows:
        raise DataError(f"pool: no usable row; expected at least one; {_first_reason(folder)}")
    _write_top_k(folder, best, queries)
    return {
        "counts": {"rows": best.num_rows, "rejected": rejected, "queries": len(queries)},
        "truncated_share": num_truncated / best.num_rows,
        "rows_per_second": round(best.num_rows / (time.monotonic() - started), 1),
    }


def unique_rows(pool: Iterable[Example | Rejected], on_bad_row: OnBadRow, name: str) -> Iterator[Example | Rejected]:
    """Pass rows on; a row whose id came before is set aside or refused.

    Raises:
        DataError: naming the id and both rows, when `on_bad_row` is `refuse`.
    """
    first: dict[str, int] = {}
    for number, row in enumerate(pool, 1):
        if isinstance(row, Example) and first.setdefault(row.id, number) != number:
            reason = f"id {row.id!r} stands in row {first[row.id]} already; expected every id once; rename or drop one"
            if on_bad_row == "refuse":
                raise DataError(f"{name}: row {number}: {reason}")
            yield Rejected(where=f"{name}: row {number}", reason=reason)
        else:
            yield row


def in_chunks(pool: Iterable[Example | Rejected], chunk_rows: int) -> Iterator[list[Example | Rejected]]:
    """Yield rows in order, `chunk_rows` at a time."""
    rows = iter(pool)
    while chunk := list(islice(rows, chunk_rows)):
        yield chunk


def _write_rejected(file: TextIO, chunk: Sequence[Example | Rejected]) -> int:
    rejected = [row for row in chunk if isinstance(row, Rejected)]
    file.writelines(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rejected)
    return len(rejected)


def _first_reason(folder: Path) -> str:
    with (folder / REJECTED_FILE).open(encoding="utf-8") as lines:
        first = next(lines, None)
    return "the pool is empty" if first is None else "the first was set aside: {where}: {reason}".format(**json.loads(first))


def _row_table(rows: Sequence[Example], scores: NDArray[np.float32], queries: Sequence[Example], top: int | None) -> pa.Table:
    weights = np.array([query.weight for query in queries])
    # the best query is one of the wanted behaviour: a contrast query explains nothing
    wanted = np.flatnonzero(weights > 0) if (weights > 0).any() else np.arange(len(queries))
    best = scores[wanted].argmax(axis=0)
    columns = [
        [row.id for row in rows],
        [row.contributor for row in rows],
        aggregate(scores, weights, top),
        [queries[wanted[place]].id for place in best],
        scores[wanted].max(axis=0),
    ]
    return pa.table(columns, schema=ROWS_SCHEMA)


def _write_top_k(folder: Path, best: TopK, queries: Sequence[Example]) -> None:
    kept = pq.read_table(folder / ROWS_FILE, columns=["id", "contributor"]).take(best.rows.ravel())
    num_kept = best.rows.shape[1]
    table = pa.table(
        {
            "query_id": np.repeat([query.id for query in queries], num_kept),
            "rank": np.tile(np.arange(1, num_kept + 1), len(queries)),
            "id": kept["id"],
            "score": best.scores.ravel(),
            "contributor": kept["contributor"],
        }
    )
    pq.write_table(table, folder / TOP_K_FILE)
