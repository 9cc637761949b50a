"""Rows out of files, as plain mappings: jsonl, jsonl.gz, csv, parquet, a `datasets` folder, or a Hugging Face hub id.

Every row comes with where it stands (file and row number), for the messages of whoever finds it malformed.
"""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from influcoder.errors import DataError, require

Row = dict[str, Any]


def iterate_rows(path: str, split: str, subset: str | None) -> Iterator[tuple[str, Row | DataError]]:
    """Yield (where, row) in order; a malformed row is yielded as the error that names it.

    Args:
        path: file, `datasets` folder or hub id.
        split: of a `datasets` folder or hub id; files have none.
        subset: configuration of a hub id; None takes its default one, files and folders have none.

    Raises:
        DataError: when the file cannot be read at all, or is of an unknown kind.
    """
    file = Path(path)
    if file.is_file():
        for suffix, reader in FILE_READERS.items():
            if file.name.endswith(suffix):
                yield from reader(file)
                return
        raise DataError(f"{path}: unknown kind of file; expected one of {', '.join(FILE_READERS)}")
    if file.is_dir() or _looks_like_hub_id(path):
        yield from _read_dataset(path, split, subset)
        return
    raise DataError(f"{path}: no such file or folder; expected {', '.join(FILE_READERS)}, a `datasets` folder or a hub id")


def _looks_like_hub_id(path: str) -> bool:
    return path.count("/") == 1 and not path.startswith((".", "/", "~")) and not path.endswith(tuple(FILE_READERS))


def _read_jsonl(file: Path) -> Iterator[tuple[str, Row | DataError]]:
    opener = gzip.open if file.name.endswith(".gz") else open
    try:
        with opener(file, "rt", encoding="utf-8-sig") as lines:  # -sig: some editors put a byte order mark first
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                where = f"{file}:{number}"
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    yield where, DataError(f"{where}: not JSON ({error.msg}); expected one object a line; mend or drop the line")
                    continue
                if isinstance(row, dict):
                    yield where, row
                else:
                    yield where, DataError(f"{where}: a JSON {type(row).__name__}; expected one object a line")
    except (OSError, UnicodeDecodeError, EOFError, zlib.error) as error:
        raise DataError(f"{file}: cannot be read ({error}); expected UTF-8 JSON lines; write the file again") from error


def _read_csv(file: Path) -> Iterator[tuple[str, Row | DataError]]:
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:  # -sig: spreadsheets put a byte order mark first
            for number, row in enumerate(csv.DictReader(lines), 1):
                where = f"{file}: row {number}"
                if None in row or None in row.values():
                    yield where, DataError(f"{where}: its cells do not match the header; expected {len(row) - (None in row)} cells")
                else:
                    yield where, row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file}: cannot be read ({error}); expected UTF-8 csv with a header") from error


def _read_parquet(file: Path) -> Iterator[tuple[str, Row | DataError]]:
    try:
        number = 0
        with pq.ParquetFile(file) as table:
            for batch in table.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield f"{file}: row {number}", row
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{file}: cannot be read as parquet ({error}); write the file again") from error


def _read_dataset(path: str, split: str, subset: str | None) -> Iterator[tuple[str, Row | DataError]]:
    datasets = require("datasets", "train")
    try:
        loaded = datasets.load_from_disk(path) if Path(path).is_dir() else datasets.load_dataset(path, subset, split=split)
    except Exception as error:  # the hub client raises many kinds; all mean: not to be had
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        asked = f"split {split!r}" if subset is None else f"subset {subset!r}, split {split!r}"
        raise DataError(f"{path}: cannot be loaded as a dataset, {asked} ({reason}); check the names and the network") from error
    if isinstance(loaded, dict):
        if split not in loaded:
            raise DataError(f"{path}: no split {split!r}; it has {', '.join(loaded)}; set `split` to one of those")
        loaded = loaded[split]
    for number, row in enumerate(loaded, 1):
        yield f"{path}[{split if subset is None else f'{subset}, {split}'}]: row {number}", row


FILE_READERS = {".jsonl": _read_jsonl, ".jsonl.gz": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}
