"""What a report is made of, read and checked alike by the report and by who verifies it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tqdm import tqdm

from influcoder.attribution_tables import ROWS_FILE
from influcoder.contributions.canonical_json import BILLION
from influcoder.contributions.values import Ints
from influcoder.errors import DataError, RunError
from influcoder.examples import Example, fingerprint
from influcoder.onnx_encoder import OnnxEncoder
from influcoder.onnx_settings import GRAPH_FOLDER, load_settings
from influcoder.readers import DataSource, iterate_examples, read_columns
from influcoder.runs import sha256_of_file
from influcoder.text_format import FILE_NAME, render

CHUNK_ROWS = 4096
SAME_SCORE = 1e-3
"""share of the largest score by which one provider's arithmetic may differ from another's"""


def read_pool(source: DataSource) -> list[Example]:
    """Read the rows as attribution does, malformed ones and second ids left out; every row says whose it is.

    Raises:
        DataError: when a row has no contributor, or there is no usable row.
    """
    name = ", ".join(source.paths)
    by_id: dict[str, Example] = {}
    for row in iterate_examples(source, "set_aside"):
        if isinstance(row, Example):
            by_id.setdefault(row.id, row)
    rows = list(by_id.values())
    if not rows:
        raise DataError(f"{name}: no usable row; expected at least one; run influcoder attribute to see why each was set aside")
    for row in rows:
        if not row.contributor:
            raise DataError(f"{name}: row {row.id!r} has no contributor; expected one a row; name their column in pool.columns.contributor")
    return rows


def precedence(source: DataSource, rows: Sequence[Example], column: str | None) -> Ints | None:
    """Return each row's place in the order of commits, (rows,), ties in the order of the rows; None without a column.

    Raises:
        DataError: when the column is missing, or its values cannot be ordered.
    """
    if column is None:
        return None
    found = read_columns(source, (column,))
    commits = [found[row.id][column] for row in rows]
    try:
        order = sorted(range(len(rows)), key=commits.__getitem__)
    except TypeError as error:
        raise DataError(
            f"{', '.join(source.paths)}: column {column!r}: {error}; expected numbers, or times as ISO 8601, in every row"
        ) from error
    places = np.empty(len(rows), np.int64)
    places[order] = np.arange(len(rows))
    return places


def embed(encoder: OnnxEncoder, examples: Sequence[Example], what: str) -> NDArray[np.float32]:
    """Return unit vectors, (examples, dim), in their order."""
    starts = tqdm(range(0, len(examples), CHUNK_ROWS), desc=what, disable=None, leave=False)
    chunks = [[render(example, encoder.text_format) for example in examples[start : start + CHUNK_ROWS]] for start in starts]
    return np.concatenate([encoder.encode(texts) for texts in chunks])


def encoder_hashes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file that a score depends on: the graph and its settings, the tokenizer, the text format.

    Raises:
        RunError: when the folder holds no exported encoder.
    """
    tokenizer = load_settings(folder).tokenizer
    names = sorted(f"{GRAPH_FOLDER}/{path.name}" for path in (folder / GRAPH_FOLDER).iterdir() if path.is_file())
    return {name: sha256_of_file(folder / name) for name in [*names, tokenizer, FILE_NAME] if (folder / name).is_file()}


def check_attribution(
    folder: Path, record: dict[str, Any], encoder: OnnxEncoder, queries: Sequence[Example], rows: Sequence[Example]
) -> NDArray[np.float64]:
    """Return the scores of an attribution run, (rows,), which must be of this encoder, these queries and these rows.

    Raises:
        RunError: naming what is another's.
    """
    for what, recorded, found in (
        ("encoder", record.get("encoder_fingerprint"), encoder.fingerprint),
        ("queries", record.get("queries_fingerprint"), fingerprint(queries)),
    ):
        if recorded != found:
            raise RunError(f"{folder}: made with other {what} ({str(recorded)[:16]}, here {found[:16]}); give those, or attribute again")
    if "top" not in record:
        raise RunError(f"{folder}: its run.json has no `top`; expected an attribution run of this release; attribute again")
    try:
        table = pq.read_table(folder / ROWS_FILE, columns=["id", "contributor", "score"])
    except (OSError, pa.ArrowException) as error:
        raise RunError(
            f"{folder / ROWS_FILE}: not readable ({error}); expected the scores of an attribution run; attribute again"
        ) from error
    theirs = list(zip(table["id"].to_pylist(), table["contributor"].to_pylist(), strict=True))
    ours = [(row.id, row.contributor) for row in rows]
    if theirs != ours:
        place = next(
            (place for place, pair in enumerate(zip(theirs, ours, strict=False)) if pair[0] != pair[1]), min(len(theirs), len(ours))
        )
        raise RunError(
            f"{folder}: {len(theirs)} rows, the pool has {len(ours)}; row {place + 1} is another; "
            "expected the pool that was attributed, with the same id and contributor columns"
        )
    scores: NDArray[np.float64] = table["score"].to_numpy()
    return scores


def check_same_scores(folder: Path, rows: Sequence[Example], recorded: NDArray[np.float64], found: Ints) -> None:
    """Refuse an attribution run whose scores, (rows,), are not those found here in billionths: a row's text may have changed since.

    Raises:
        RunError: naming the row.
    """
    gap = np.abs(recorded - found / BILLION)
    worst = int(gap.argmax())
    if gap[worst] > SAME_SCORE * np.abs(recorded).max():
        raise RunError(
            f"{folder}: row {rows[worst].id!r} has score {recorded[worst]:.6f}, here {found[worst] / BILLION:.6f}; "
            "expected the same pool, queries and encoder; attribute again"
        )
