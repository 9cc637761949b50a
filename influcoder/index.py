"""An index: the embeddings of a pool at a byte a number, on disk, with the ids of its rows.

    INDEX/manifest-00001.json         version 1: encoder, text format, and the shards that count, with their checksums
    INDEX/shard-00000.codes.npy       int8 (rows, dim)
    INDEX/shard-00000.scales.npy      float32 (2, dim): steps and centres of this shard (`quantisation.py`)
    INDEX/shard-00000.ids.parquet     id and contributor of each row, in order
    INDEX/shard-00000.json            commit record, written last

A version is its manifest, and is made by writing it: appending adds shards and then manifest n + 1, so that whoever reads version n
goes on reading the same rows. Scores are products with a query's float32 embedding (`index_search.py`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from influcoder.commits import Writer, check_files, commit, read_record
from influcoder.errors import DataError, RunError
from influcoder.onnx_encoder import OnnxEncoder
from influcoder.quantisation import Quantised, quantise
from influcoder.runs import sync_folder, write_text_atomic

SCHEMA_VERSION = 1
IDS_SCHEMA = pa.schema([("id", pa.string()), ("contributor", pa.string())])
ADVICE = "remove the index, and attribute the pool again"


@dataclass(frozen=True, kw_only=True)
class IndexManifest:
    """One version of an index."""

    version: int
    """from 1, each made by appending to the one before"""
    encoder_fingerprint: str
    """`OnnxEncoder.fingerprint` of what embedded the rows"""
    text_format: dict[str, Any]
    """how rows became text"""
    dim: int
    shard_rows: tuple[int, ...]
    """rows of each shard"""
    checksums: tuple[dict[str, str], ...]
    """SHA-256 of each shard's files, by name"""

    @property
    def num_rows(self) -> int:
        """Rows of all shards."""
        return sum(self.shard_rows)


@dataclass(frozen=True)
class Index:
    """One version of an index, opened for reading."""

    folder: Path
    manifest: IndexManifest

    def shards(self) -> Iterator[Quantised]:
        """Yield the shards in order; their codes are read from the disk as they are used."""
        for shard, num_rows in enumerate(self.manifest.shard_rows):
            name = self.folder / f"{_name(shard)}.codes.npy"
            try:
                codes = np.load(name, mmap_mode="r" if num_rows else None, allow_pickle=False)
                steps, centres = np.load(self.folder / f"{_name(shard)}.scales.npy", allow_pickle=False)
            except (OSError, ValueError) as error:
                raise RunError(f"{name}: cannot be read ({error}); expected {num_rows} rows of codes; {ADVICE}") from error
            if codes.dtype != np.int8 or codes.shape != (num_rows, self.manifest.dim):
                raise RunError(f"{name}: {codes.dtype} {codes.shape}; expected int8 {(num_rows, self.manifest.dim)}; {ADVICE}")
            yield Quantised(codes, steps, centres)

    def look_up(self, rows: NDArray[np.int64]) -> pa.Table:
        """Return id and contributor of `rows`, positions in the index, in that order; reads only the shards they lie in."""
        unique, places = np.unique(rows, return_inverse=True)
        ends = np.cumsum(self.manifest.shard_rows)
        shards = np.searchsorted(ends, unique, side="right")
        tables = [IDS_SCHEMA.empty_table()]
        for shard in np.unique(shards):
            first = ends[shard] - self.manifest.shard_rows[shard]
            table = pq.read_table(self.folder / f"{_name(shard)}.ids.parquet", schema=IDS_SCHEMA)
            tables.append(table.take(unique[shards == shard] - first))
        return pa.concat_tables(tables).take(places.ravel())


def open_index(folder: str | Path, encoder: OnnxEncoder | None = None, *, version: int | None = None, verify: bool = True) -> Index:
    """Open a version of an index.

    Args:
        folder: the index.
        encoder: what queries will be embedded with; one that did not make the index is refused. None checks nothing.
        version: which one; None takes the newest.
        verify: read every file once and compare its checksum, at the speed of the disk.

    Raises:
        RunError: when the folder holds no finished index, another encoder's, or a shard that is missing or corrupt, by name.
    """
    folder = Path(folder)
    manifest = _read_manifest(folder, _newest(folder) if version is None else version)
    if encoder is not None:
        _check_encoder(folder, manifest, encoder)
    for checksums in manifest.checksums if verify else ():
        check_files(folder, checksums, ADVICE)
    return Index(folder, manifest)


def write_shard(
    folder: Path, shard: int, vectors: NDArray[np.float32], ids: Sequence[str], contributors: Sequence[str | None]
) -> dict[str, Any]:
    """Quantise `(rows, dim)` embeddings and commit them with their ids, as `write_quantised` does."""
    return write_quantised(folder, shard, quantise(vectors), ids, contributors)


def write_quantised(
    folder: Path, shard: int, quantised: Quantised, ids: Sequence[str], contributors: Sequence[str | None]
) -> dict[str, Any]:
    """Commit rows with their ids; return the commit record. They count once published.

    Raises:
        RunError: when the disk does not take them.
    """
    table = pa.table([ids, contributors], schema=IDS_SCHEMA)
    files: dict[str, Writer] = {
        f"{_name(shard)}.codes.npy": lambda path: _save(path, quantised.codes),
        f"{_name(shard)}.scales.npy": lambda path: _save(path, np.stack([quantised.steps, quantised.centres])),
        f"{_name(shard)}.ids.parquet": lambda path: pq.write_table(table, path, compression="zstd"),
    }
    return commit(folder / f"{_name(shard)}.json", files, {"rows": len(quantised.codes)})


def has_shard(folder: Path, shard: int) -> bool:
    """Return whether a shard is committed and whole."""
    return read_record(folder / f"{_name(shard)}.json") is not None


def remove_shards_from(folder: Path, first: int) -> None:
    """Remove shard number `first` and those after it, which no version may count."""
    for path in folder.glob("shard-*"):
        if int(path.name.removeprefix("shard-").split(".")[0]) >= first:
            path.unlink()


def remove_manifests(folder: Path) -> None:
    """Remove all versions, while nobody else knows of the index."""
    for path in folder.glob("manifest-*.json"):
        path.unlink()


def publish(folder: Path, encoder: OnnxEncoder, num_shards: int) -> IndexManifest:
    """Make the next version of an index, of its first `num_shards` committed shards.

    Raises:
        RunError: when a shard is not committed, the index is another encoder's, or someone else made that version meanwhile.
    """
    version, records = 1, [read_record(folder / f"{_name(shard)}.json", verify=False) for shard in range(num_shards)]
    if list(folder.glob("manifest-*.json")):
        before = _read_manifest(folder, _newest(folder))
        _check_encoder(folder, before, encoder)
        version = before.version + 1
    if None in records:
        raise RunError(f"{folder}: {_name(records.index(None))} is not committed; expected {num_shards} shards; write it first")
    manifest = IndexManifest(
        version=version,
        encoder_fingerprint=encoder.fingerprint,
        text_format=asdict(encoder.text_format),
        dim=encoder.settings.dim,
        shard_rows=tuple(record["rows"] for record in records if record),
        checksums=tuple(record["files"] for record in records if record),
    )
    _write_once(folder / f"manifest-{version:05d}.json", json.dumps({"schema_version": SCHEMA_VERSION, **asdict(manifest)}) + "\n")
    return manifest


def append(
    folder: Path, encoder: OnnxEncoder, vectors: NDArray[np.float32], ids: Sequence[str], contributors: Sequence[str | None]
) -> IndexManifest:
    """Add rows that `encoder` embedded, `(rows, dim)`, as one more shard and a new version; an empty folder becomes version 1.

    Raises:
        RunError: when the index is another encoder's or corrupt, or someone else appended meanwhile.
        DataError: when an id is there already, or stands twice.
    """
    folder.mkdir(parents=True, exist_ok=True)
    num_shards = 0
    wanted = pa.array(ids, pa.string())
    if len(pc.unique(wanted)) < len(wanted):
        raise DataError(f"{folder}: an id stands twice among the {len(wanted)} rows to append; expected every id once; rename or drop one")
    if list(folder.glob("manifest-*.json")):
        index = open_index(folder, encoder)
        num_shards = len(index.manifest.shard_rows)
        for shard in range(num_shards):
            there = pq.read_table(folder / f"{_name(shard)}.ids.parquet", schema=IDS_SCHEMA)["id"]
            known = there.filter(pc.is_in(there, value_set=wanted))
            if len(known):
                raise DataError(f"{folder}: id {known[0].as_py()!r} is in the index already; expected new ids; rename or drop it")
    write_shard(folder, num_shards, vectors, ids, contributors)
    return publish(folder, encoder, num_shards + 1)


def _name(shard: int) -> str:
    return f"shard-{shard:05d}"


def _save(path: Path, array: NDArray[Any]) -> None:
    with path.open("wb") as stream:  # np.save would add a suffix to the name
        np.save(stream, array, allow_pickle=False)


def _newest(folder: Path) -> int:
    found = sorted(folder.glob("manifest-*.json"))
    if not found:
        what = "is unfinished (no manifest)" if folder.is_dir() else "does not exist"
        raise RunError(f"{folder}: {what}; expected an index; attribute a pool to make one, or finish the job that was making it")
    return int(found[-1].stem.removeprefix("manifest-"))


def _read_manifest(folder: Path, version: int) -> IndexManifest:
    path = folder / f"manifest-{version:05d}.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        schema = content.pop("schema_version")
        if schema != SCHEMA_VERSION:
            raise RunError(f"{path}: schema {schema!r}, expected {SCHEMA_VERSION}; use the influcoder release that wrote it")
        lists = {name: tuple(content[name]) for name in ("shard_rows", "checksums")}
        return IndexManifest(**content | lists)
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{path}: not a readable manifest of an index ({error}); {ADVICE}") from error


def _check_encoder(folder: Path, manifest: IndexManifest, encoder: OnnxEncoder) -> None:
    ours, theirs = encoder.fingerprint, manifest.encoder_fingerprint
    if ours != theirs:
        raise RunError(
            f"{folder}: made by encoder {theirs[:12]}, asked with {ours[:12]}; scores of two encoders mean nothing; "
            "use the encoder that made it, or attribute the pool again"
        )
    if asdict(encoder.text_format) != manifest.text_format:
        raise RunError(f"{folder}: its rows were made text in another format than this encoder's text_format.json says; {ADVICE}")


def _write_once(path: Path, text: str) -> None:
    """Write a file that must not be there yet: of two writers, one wins and the other is told."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.writing")
    write_text_atomic(temporary, text)
    try:
        os.link(temporary, path)  # unlike a rename, it does not replace
    except FileExistsError as error:
        raise RunError(f"{path}: written by someone else meanwhile; expected one writer at a time; run it again") from error
    finally:
        temporary.unlink()
    sync_folder(path.parent)
