"""Attribution on Spark: Spark reads, spreads and writes the rows; embeddings and scores come from the functions of `influcoder attribute`.

    spark-submit examples/spark_attribution.py ENCODER ROWS QUERIES.jsonl OUTPUT

ROWS is parquet or JSON lines with string columns id, prompt, response; OUTPUT is parquet with id, score, embedding, truncated. Executors
need `pip install 'influcoder[cpu]'` and ENCODER at the same path. Ids, bad rows, the index and commits are left to Spark and to you:
`influcoder attribute --engine ray` has them. Spark chooses which texts are batched together, so last digits may differ from other runs.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from influcoder.aggregation import aggregate
from influcoder.embed_batch import embed_batch, embed_rows
from influcoder.examples import Example, Turn
from influcoder.onnx_encoder import OnnxEncoder
from influcoder.readers import DataSource, read_examples
from influcoder.text_format import render

SCHEMA = pa.schema([("id", pa.string()), ("score", pa.float64()), ("embedding", pa.list_(pa.float32())), ("truncated", pa.bool_())])
SPARK_SCHEMA = "id string, score double, embedding array<float>, truncated boolean"


@cache
def load(folder: str) -> OnnxEncoder:
    """Load an encoder once in a Python worker, which Spark keeps from task to task; a worker a core, hence one thread."""
    return OnnxEncoder(folder, threads=1)


def rank_batches(
    batches: Iterable[pa.RecordBatch], folder: str, queries: NDArray[np.float32], weights: NDArray[np.float64]
) -> Iterator[pa.RecordBatch]:
    """Yield for batches with columns id, prompt, response those of `SCHEMA`; `queries` are (Q, dim) embeddings, `weights` (Q,)."""
    encoder = load(folder)
    for batch in batches:
        texts = []
        for row in batch.to_pylist():
            context = (Turn(role="user", content=row["prompt"]),) if row["prompt"] else ()
            texts.append(render(Example(id=row["id"], context=context, response=row["response"]), encoder.text_format))
        columns = embed_batch(encoder, {"text": np.array(texts, object), "id": np.array(batch["id"].to_pylist(), object)})
        scores = aggregate(queries @ columns["embedding"].T, weights)
        made: dict[str, Any] = {name: list(column) for name, column in columns.items()} | {"score": scores}
        yield pa.RecordBatch.from_pydict(made, SCHEMA)


def main() -> None:
    """Rank the rows that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("encoder", "rows", "queries", "output"):
        parser.add_argument(name)
    given = parser.parse_args()
    from pyspark.sql import SparkSession

    queries = read_examples(DataSource(paths=(given.queries,)))
    vectors, weights = embed_rows(load(given.encoder), queries)[0], np.array([query.weight for query in queries])
    spark = SparkSession.builder.appName("influcoder").config("spark.sql.execution.arrow.maxRecordsPerBatch", 1024).getOrCreate()
    spark.sparkContext.addPyFile(__file__)
    shipped = importlib.import_module(Path(__file__).stem)  # by its name: workers import it as well, and so keep what it caches

    def rank(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        found: Iterator[pa.RecordBatch] = shipped.rank_batches(batches, given.encoder, vectors, weights)
        return found

    rows = spark.read.schema("id string, prompt string, response string")
    read = rows.parquet(given.rows) if given.rows.endswith(".parquet") else rows.json(given.rows)
    read.mapInArrow(rank, SPARK_SCHEMA).write.parquet(given.output)
    spark.stop()


if __name__ == "__main__":
    main()
