"""Rows out of files, as plain mappings: jsonl, jsonl.gz, csv, parquet, a `datasets` folder, or a Hugging Face hub id.

Every row comes with where it stands (file and row number), for the messages of whoever finds it malformed. A row that cannot be
read is handed on as the error that names it, and so is the rest of a file that breaks off: what that costs is the reader's choice.
"""

from __future__ import annotations

import csv
import glob
import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from influcoder.errors import DataError, require

Row = dict[str, Any]
MAX_ROW_BYTES = 8 << 20
"""a longer line of JSON or cell of a table is malformed: a file without line ends would fill the memory"""
PARQUET_ROWS = 1024
"""read at a time: as Python objects, rows take several times what they take in the file"""


class BrokenFile(DataError):
    """The rest of a file cannot be read, and how many rows that are nobody knows."""


def find_files(paths: Sequence[str]) -> list[str]:
    """Return the paths with patterns (`*`, `?`, `[...]`, `**`) replaced by the files they match, in the order of their names.

    Raises:
        DataError: when nothing is there, before any work: no file, no folder, no match, and no hub id.
    """
    found: list[str] = []
    for path in paths:
        if glob.has_magic(path) and not Path(path).exists():
            matches = sorted(glob.glob(path, recursive=True))
            if not matches:
                raise DataError(f"{path}: matches no file; expected at least one; check the pattern")
            found += matches
        else:
            found.append(path)
    for path in found:
        _check_kind(path)
    return found


def iterate_rows(path: str, split: str, subset: str | None) -> Iterator[tuple[str, Row | DataError]]:
    """Yield (where, row) in order; a malformed row is yielded as the error that names it, an unreadable rest as a `BrokenFile`.

    Args:
        path: file, `datasets` folder or hub id.
        split: of a `datasets` folder or hub id; files have none.
        subset: configuration of a hub id; None takes its default one, files and folders have none.

    Raises:
        DataError: when it is missing, of an unknown kind, or no dataset.
    """
    _check_kind(path)
    file = Path(path)
    if file.is_file():
        yield from next(reader for suffix, reader in FILE_READERS.items() if file.name.endswith(suffix))(file)
    else:
        yield from _read_dataset(path, split, subset)


def _check_kind(path: str) -> None:
    if Path(path).is_file():
        if not path.endswith(tuple(FILE_READERS)):
            raise DataError(f"{path}: unknown kind of file; expected one of {', '.join(FILE_READERS)}")
    elif not Path(path).is_dir() and not _looks_like_hub_id(path):
        raise DataError(f"{path}: no such file or folder; expected {', '.join(FILE_READERS)}, a `datasets` folder or a hub id")


def _looks_like_hub_id(path: str) -> bool:
    return path.count("/") == 1 and not path.startswith((".", "/", "~")) and not path.endswith(tuple(FILE_READERS))


def _read_jsonl(file: Path) -> Iterator[tuple[str, Row | DataError]]:
    try:
        with gzip.open(file) if file.name.endswith(".gz") else file.open("rb") as stream:
            for number, line in enumerate(_lines(stream), 1):
                where = f"{file}:{number}"
                if line is None:
                    yield where, _too_long(where)
                elif line.strip():
                    yield where, _parse_line(line, where)
    except (OSError, EOFError, zlib.error) as error:
        yield str(file), BrokenFile(f"{file}: cannot be read ({error}); expected UTF-8 JSON lines; write the file again")


def _lines(stream: BinaryIO | gzip.GzipFile) -> Iterator[bytes | None]:
    """Yield lines, None in place of one that is too long: it is passed over and never held."""
    first = True
    while line := stream.readline(MAX_ROW_BYTES + 1):
        if len(line) <= MAX_ROW_BYTES:
            yield line.removeprefix(b"\xef\xbb\xbf") if first else line  # some editors put a byte order mark first
        else:
            while line and not line.endswith(b"\n"):
                line = stream.readline(MAX_ROW_BYTES)
            yield None
        first = False


def _parse_line(line: bytes, where: str) -> Row | DataError:
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError as error:
        return DataError(f"{where}: cannot be read as UTF-8 ({error.reason}); expected UTF-8 JSON lines; mend or drop the line")
    except (ValueError, RecursionError) as error:  # ValueError: also a number of thousands of digits
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error).split(";")[0]
        return DataError(f"{where}: not JSON ({reason}); expected one object a line; mend or drop the line")
    return row if isinstance(row, dict) else DataError(f"{where}: a JSON {type(row).__name__}; expected one object a line")


def _read_csv(file: Path) -> Iterator[tuple[str, Row | DataError]]:
    csv.field_size_limit(MAX_ROW_BYTES)  # of the whole process; its default of 128 KiB is shorter than rows may be
    try:
        # -sig: spreadsheets put a byte order mark first; surrogates: bytes that are not UTF-8 cost their row, not the file
        with file.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as lines:
            rows, number = csv.DictReader(lines), 0
            while True:
                number += 1
                where = f"{file}: row {number}"
                try:
                    yield where, _check_cells(next(rows), where)
                except StopIteration:
                    return
                except csv.Error as error:
                    yield where, DataError(f"{where}: cannot be read as csv ({error}); mend or drop the row")
    except OSError as error:
        yield str(file), BrokenFile(f"{file}: cannot be read ({error}); expected UTF-8 csv with a header")


def _check_cells(row: Row, where: str) -> Row | DataError:
    if None in row or None in row.values():
        return DataError(f"{where}: its cells do not match the header; expected {len(row) - (None in row)} cells")
    try:
        "".join([*row, *row.values()]).encode()
    except UnicodeEncodeError:
        return DataError(f"{where}: cannot be read as UTF-8; expected UTF-8 csv with a header; mend or drop the row")
    return row


def _read_parquet(file: Path) -> Iterator[tuple[str, Row | DataError]]:
    try:
        number = 0
        with pq.ParquetFile(file) as table:
            for batch in table.iter_batches(PARQUET_ROWS):
                for row in _batch_rows(batch):
                    number += 1
                    where = f"{file}: row {number}"
                    yield where, row if isinstance(row, dict) else DataError(f"{where}: cannot be read ({row}); mend or drop the row")
    except (OSError, pa.ArrowException) as error:
        yield str(file), BrokenFile(f"{file}: cannot be read as parquet ({error}); write the file again")


def _batch_rows(batch: pa.RecordBatch) -> list[Row | Exception]:
    try:
        return list(batch.to_pylist())
    except (ValueError, OverflowError):  # strings that are not UTF-8, dates beyond Python's: find out whose
        rows: list[Row | Exception] = []
        for place in range(batch.num_rows):
            try:
                rows += batch.slice(place, 1).to_pylist()
            except (ValueError, OverflowError) as error:
                rows.append(error)
        return rows


def _too_long(where: str) -> DataError:
    return DataError(f"{where}: longer than {MAX_ROW_BYTES} bytes; expected a row of text; mend or drop the line")


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
