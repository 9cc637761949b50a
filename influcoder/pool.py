"""A pool as a stream of numbered rows: every id once, cut to the encoder's budgets, and nothing held but a shard.

Which ids came before is the one thing that grows with the pool. It is kept by SQLite in a temporary database of its own, whose pages
spill to the disk, so that memory does not grow: exact, and gone with the process however that ends.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pyarrow.parquet as pq

from influcoder.errors import DataError
from influcoder.examples import Example
from influcoder.file_formats import Row, find_files
from influcoder.readers import DataSource, OnBadRow, Rejected, iterate_records
from influcoder.text_format import TextFormat, truncate

SAMPLE_BYTES = 1 << 20
"""of a file: what its number of rows is guessed from"""
CACHE_KIB = 8192
"""of the temporary database in memory"""


@dataclass(frozen=True, slots=True)
class PoolRow:
    """A row of the pool, usable or not."""

    example: Example | Rejected
    line: str | None
    """the record as it was read, as a line of JSON; None where it could not be read, or nobody needs it"""


class SeenIds:
    """Ids and contents that came before, in memory that does not grow."""

    def __init__(self) -> None:
        self._database = sqlite3.connect("", isolation_level=None)  # "": a file of its own, removed by the system
        for setting in (f"cache_size=-{CACHE_KIB}", "journal_mode=OFF", "synchronous=OFF"):
            self._database.execute(f"PRAGMA {setting}")
        self._database.execute("CREATE TABLE ids (id TEXT PRIMARY KEY, row INTEGER) WITHOUT ROWID")
        self._database.execute("CREATE TABLE contents (hash TEXT PRIMARY KEY, copies INTEGER) WITHOUT ROWID")
        self._database.execute("BEGIN")  # never committed: nobody reads it again

    def first(self, row_id: str, row: int) -> int:
        """Return the row in which an id came first: `row` itself when it is new."""
        if self._database.execute("INSERT OR IGNORE INTO ids VALUES (?, ?)", (row_id, row)).rowcount:
            return row
        return int(self._database.execute("SELECT row FROM ids WHERE id = ?", (row_id,)).fetchone()[0])

    def copies(self, content: str) -> int:
        """Return how often a content hash came, this time included."""
        if self._database.execute("INSERT OR IGNORE INTO contents VALUES (?, 1)", (content,)).rowcount:
            return 1
        self._database.execute("UPDATE contents SET copies = copies + 1 WHERE hash = ?", (content,))
        return int(self._database.execute("SELECT copies FROM contents WHERE hash = ?", (content,)).fetchone()[0])


def iterate_pool(source: DataSource, on_bad_row: OnBadRow, text_format: TextFormat, *, keep_lines: bool) -> Iterator[PoolRow]:
    """Yield the rows of a pool in order, each cut to its budgets; a row whose id came before is set aside or refused.

    Args:
        source: where they come from.
        on_bad_row: what becomes of a row that is malformed or has the id of another.
        text_format: of the encoder.
        keep_lines: hand on the records as they were read, too.

    Raises:
        DataError: when a source is missing, or `on_bad_row` is `refuse` and a row is not usable.
    """
    seen, name = SeenIds(), ", ".join(source.paths)
    for number, (example, record) in enumerate(iterate_records(source, on_bad_row, seen.copies), 1):
        if isinstance(example, Example):
            first = seen.first(example.id, number)
            if first == number:
                yield PoolRow(truncate(example, text_format), json_line(record) if keep_lines and record is not None else None)
                continue
            reason = f"id {example.id!r} stands in row {first} already; expected every id once; rename or drop one"
            if on_bad_row == "refuse":
                raise DataError(f"{name}: row {number}: {reason}")
            example = Rejected(where=f"{name}: row {number}", reason=reason)
        yield PoolRow(example, None)


def in_shards(pool: Iterable[PoolRow], shard_rows: int) -> Iterator[list[PoolRow]]:
    """Yield rows in order, `shard_rows` at a time, malformed ones counted."""
    rows = iter(pool)
    while shard := list(islice(rows, shard_rows)):
        yield shard


def shard_fingerprint(shard: Sequence[PoolRow]) -> str:
    """Return 16 hex digits that identify what a shard was made of: rows, records where they are kept, and what was set aside."""
    digest = hashlib.sha256()
    for row in shard:
        example = row.example
        if isinstance(example, Example):
            parts: tuple[object, ...] = (example.id, example.contributor, example.prompt, example.response, row.line)
        else:
            parts = (example.where, example.reason)
        digest.update("\0".join(map(str, parts)).encode(errors="replace"))
        digest.update(b"\n")
    return digest.hexdigest()[:16]


def json_line(record: Row) -> str:
    """Return a record as a line of JSON; what JSON has no form for is written as text."""
    line = json.dumps(record, ensure_ascii=False, default=str)
    try:
        line.encode()
    except UnicodeEncodeError:  # half of a character, in a column that nobody reads
        line = json.dumps(record, default=str)
    return line + "\n"


def estimate_rows(source: DataSource) -> int | None:
    """Guess how many rows a pool has: parquet says, other files by the size of their first rows; None where that cannot be had."""
    total = 0.0
    for path in map(Path, find_files(source.paths)):
        if not path.is_file():
            return None
        found = _rows_of_file(path)
        if found is None:
            return None
        total += found
    return round(total if source.limit is None else min(total, source.limit))


def _rows_of_file(path: Path) -> float | None:
    try:
        if path.suffix == ".parquet":
            return float(pq.read_metadata(path).num_rows)
        with path.open("rb") as raw:
            sample = (gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw).read(SAMPLE_BYTES)
            share = raw.tell() / max(path.stat().st_size, 1)
        return sample.count(b"\n") / share if sample else 0.0
    except (OSError, EOFError, ValueError):  # an unreadable file is the reader's to report; ValueError: Arrow's
        return None
