"""Texts of a pool's rows by id, in a temporary SQLite database: memory does not grow, and the file is gone with the process."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator

import numpy as np
from tqdm import tqdm

from influcoder.errors import DataError
from influcoder.examples import Example
from influcoder.index import Index
from influcoder.pool import CACHE_KIB, estimate_rows, iterate_pool
from influcoder.readers import DataSource
from influcoder.text_format import TextFormat

SAMPLE = 100
"""of the index: if none of these rows has a text, it is another pool"""


class RowTexts:
    """Prompt, response and contributor of rows, each cut as the encoder read it. May be asked from any thread."""

    def __init__(self, source: DataSource, text_format: TextFormat) -> None:
        """Read a pool once, as `influcoder attribute` does, so that rows without an id have the same one here.

        Raises:
            DataError: when a source is missing.
        """
        self._lock = threading.Lock()
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)  # "": a file of its own
        for setting in (f"cache_size=-{CACHE_KIB}", "journal_mode=OFF", "synchronous=OFF"):
            self._database.execute(f"PRAGMA {setting}")
        self._database.execute("CREATE TABLE rows (id TEXT PRIMARY KEY, prompt TEXT, response TEXT, contributor TEXT) WITHOUT ROWID")
        self._database.execute("BEGIN")
        self._database.executemany("INSERT INTO rows VALUES (?, ?, ?, ?)", _records(source, text_format))
        self._database.execute("COMMIT")

    def find(self, row_id: str) -> dict[str, str | None] | None:
        """Return id, prompt, response and contributor; None when there is no such row."""
        with self._lock:
            try:
                found = self._database.execute("SELECT * FROM rows WHERE id = ?", (row_id,)).fetchone()
            except UnicodeEncodeError:  # half of a character: no row is called that
                return None
        return None if found is None else dict(zip(("id", "prompt", "response", "contributor"), found, strict=True))

    def check_pool(self, index: Index, name: str) -> None:
        """Refuse texts of another pool.

        Raises:
            DataError: when none of the first rows of the index has a text.
        """
        sample = index.look_up(np.arange(min(SAMPLE, index.manifest.num_rows)))["id"].to_pylist()
        if sample and not any(self.find(row_id) for row_id in sample):
            raise DataError(
                f"{name}: no row has the id {sample[0]!r}, nor that of another of the first {len(sample)} rows of the index; "
                "expected the pool that was indexed; check rows.paths and rows.columns"
            )


def _records(source: DataSource, text_format: TextFormat) -> Iterator[tuple[str, str, str, str | None]]:
    pool = iterate_pool(source, "set_aside", text_format, keep_lines=False)
    for row in tqdm(pool, desc="rows", unit=" rows", total=estimate_rows(source), leave=False, disable=None):
        if isinstance(row.example, Example):
            yield row.example.id, row.example.prompt, row.example.response, row.example.contributor
