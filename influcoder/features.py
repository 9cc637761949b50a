"""The teacher's product: unit gradient features by row, in checksummed shards.

    FOLDER/manifest.json              ids in order, dim, rows a shard, how they were made
    FOLDER/shard-00000.safetensors    `features` float16 or float32 (rows, dim), each of length 1; `norms` float32 (rows,)
    FOLDER/shard-00000.json           commit record: checksum, store, number; written after the shard: without it, it does not count

The score of row d for query q is the inner product of a query vector and a row vector, larger = training on d lowers the loss on q
more. `normalise` says whether the vectors are the unit ones (a cosine) or have their lengths. Where a row as a query has other
features than as a row, these lie beside it in a store of their own, `rows_as_queries`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from influcoder.errors import RunError
from influcoder.runs import sha256_of_file, write_text_atomic


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a feature store holds and how it was made."""

    ids: tuple[str, ...]
    dim: int
    shard_rows: int
    method: str
    seed: int
    rows_fingerprint: str
    """`examples.fingerprint` of the rows"""
    decoder_fingerprint: str
    normalise: str = "unit"
    """unit, layers: scores are products of unit vectors; none: both sides have their lengths; relatif: queries alone have theirs"""
    dtype: str = "float16"
    """of the unit vectors: float16, or float32 for gradients that are to be worked on"""

    @property
    def num_shards(self) -> int:
        """Number of shards of `shard_rows` rows, the last one possibly shorter."""
        return -(-len(self.ids) // self.shard_rows)

    def rows_of(self, shard: int) -> slice:
        """Return which rows `shard` holds."""
        return slice(shard * self.shard_rows, min((shard + 1) * self.shard_rows, len(self.ids)))


@dataclass(frozen=True)
class Features:
    """A loaded feature store."""

    manifest: Manifest
    vectors: NDArray[np.float32]
    """(rows, dim), each of length 1 up to float16 rounding"""
    norms: NDArray[np.float32]
    """(rows,) length of each projected gradient before normalisation"""

    @property
    def as_rows(self) -> NDArray[np.float32]:
        """(rows, dim) what a query's vector is multiplied with."""
        return at_length(self.vectors, self.norms, self.manifest.normalise, asking=False)

    @property
    def as_queries(self) -> NDArray[np.float32]:
        """(rows, dim) what asks."""
        return at_length(self.vectors, self.norms, self.manifest.normalise, asking=True)

    def places(self, ids: Sequence[str]) -> list[int]:
        """Return where `ids` stand, in that order.

        Raises:
            RunError: when an id is not here.
        """
        position = {row_id: row for row, row_id in enumerate(self.manifest.ids)}
        missing = [row_id for row_id in ids if row_id not in position]
        if missing:
            raise RunError(
                f"features: no row {missing[0]!r} ({len(missing)} of {len(ids)} ids are unknown); "
                "expected features of these rows; run the teacher on them"
            )
        return [position[row_id] for row_id in ids]


def at_length(vectors: NDArray[np.float32], norms: NDArray[np.float32], normalise: str, *, asking: bool) -> NDArray[np.float32]:
    """Return what is multiplied: unit vectors (rows, dim), or at their lengths (rows,) where `normalise` leaves these to that side."""
    return vectors * norms[:, None] if normalise == "none" or (asking and normalise == "relatif") else vectors


def create_store(folder: Path, manifest: Manifest) -> None:
    """Make an empty store, or accept an unfinished one of the same manifest.

    Raises:
        RunError: when the folder holds a store of other rows or another teacher.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "manifest.json"
    if path.exists():
        found = read_manifest(folder)
        for name, value in asdict(found).items():
            if value != getattr(manifest, name) and name != "ids":
                raise RunError(
                    f"{path}: {name} is {value!r}, expected {getattr(manifest, name)!r}; it belongs to another job; remove {folder}"
                )
        return
    write_text_atomic(path, json.dumps(asdict(manifest)) + "\n")


def has_shard(folder: Path, shard: int) -> bool:
    """Return whether a shard is committed and whole."""
    try:
        _check_shard(folder, shard)
    except RunError:
        return False
    return True


def write_shard(folder: Path, shard: int, gradients: NDArray[np.float32]) -> None:
    """Normalise `(rows, dim)` projected gradients and commit them: data, fsync, rename, then the record.

    Raises:
        RunError: when a gradient is zero or not finite, naming the row.
    """
    manifest = read_manifest(folder)
    norms = np.linalg.norm(gradients, axis=1)
    if not np.all(np.isfinite(norms) & (norms > 0)):
        row = int(np.flatnonzero(~(np.isfinite(norms) & (norms > 0)))[0])
        row_id = manifest.ids[manifest.rows_of(shard)][row]
        raise RunError(
            f"row {row_id!r}: its gradient has length {norms[row]}; expected a positive number; "
            "check the row, or use fp32 and a smaller learning rate"
        )
    path = _shard_path(folder, shard)
    temporary = path.with_name(f".{path.name}.writing")
    try:
        unit = np.ascontiguousarray((gradients / norms[:, None]).astype(manifest.dtype))  # save_file writes another order wrongly
        save_file({"features": unit, "norms": norms.astype(np.float32)}, temporary)
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, path)
        record = {"sha256": sha256_of_file(path), "store": _store_fingerprint(folder), "shard": shard}
        write_text_atomic(path.with_suffix(".json"), json.dumps(record) + "\n")
    except (OSError, safetensors.SafetensorError) as error:
        for unfinished in folder.glob(f".{path.stem}.*.writing"):
            unfinished.unlink(missing_ok=True)
        raise RunError(
            f"{path}: cannot be written ({error}); the shards before it are kept; mend that and run the same command again"
        ) from error


def remove_store(folder: Path) -> None:
    """Remove a store that has served."""
    shutil.rmtree(folder, ignore_errors=True)


def read_manifest(folder: Path) -> Manifest:
    """Read a store's manifest.

    Raises:
        RunError: when it is missing or unreadable.
    """
    path = folder / "manifest.json"
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        return Manifest(**(content | {"ids": tuple(content["ids"])}))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{path}: not a readable manifest of features ({error}); expected a folder that the teacher wrote; run the teacher again"
        ) from error


def load_features(folder: Path) -> Features:
    """Read a complete store, checking every shard against its checksum.

    Raises:
        RunError: naming the shard that is missing, unfinished or corrupt.
    """
    manifest = read_manifest(folder)
    vectors = np.empty((len(manifest.ids), manifest.dim), np.float32)
    norms = np.empty(len(manifest.ids), np.float32)
    for shard in range(manifest.num_shards):
        rows = manifest.rows_of(shard)
        vectors[rows], norms[rows] = load_shard(folder, manifest, shard)
    return Features(manifest, vectors, norms)


def load_row_vectors(folder: Path) -> tuple[Manifest, NDArray[np.float32], NDArray[np.float32]]:
    """Read the rows' features of one seed, `features/seed-S`: manifest, vectors as queries, vectors as rows.

    Raises:
        RunError: naming the shard that is missing, unfinished or corrupt, or the store of other rows.
    """
    rows = load_features(folder / "rows")
    if not (folder / "rows_as_queries").exists():
        return rows.manifest, rows.as_queries, rows.as_rows
    asking = load_features(folder / "rows_as_queries")
    if asking.manifest.rows_fingerprint != rows.manifest.rows_fingerprint:
        raise RunError(f"{folder / 'rows_as_queries'}: of other rows than {folder / 'rows'}; expected the same; run the teacher again")
    return rows.manifest, asking.as_queries, rows.as_rows


def load_shard(folder: Path, manifest: Manifest, shard: int) -> tuple[NDArray[np.floating], NDArray[np.float32]]:
    """Read one shard, `(rows, dim)` unit vectors and `(rows,)` lengths, checking it against its checksum.

    Raises:
        RunError: when it is missing, unfinished, corrupt, or of another store.
    """
    path, rows = _check_shard(folder, shard), manifest.rows_of(shard)
    shape = (rows.stop - rows.start, manifest.dim)
    try:
        content = load_file(path)
        vectors, norms = content["features"], content["norms"]
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise RunError(f"{path}: not a shard of {shape[0]} x {shape[1]} features ({error}); run the teacher again") from error
    if vectors.shape != shape or norms.shape != shape[:1]:
        raise RunError(f"{path}: not a shard of {shape[0]} x {shape[1]} features (shape {vectors.shape}); run the teacher again")
    return vectors, norms


def _shard_path(folder: Path, shard: int) -> Path:
    return folder / f"shard-{shard:05d}.safetensors"


def _store_fingerprint(folder: Path) -> str:
    return sha256_of_file(folder / "manifest.json")[:16]


def _check_shard(folder: Path, shard: int) -> Path:
    path = _shard_path(folder, shard)
    try:
        record = json.loads(path.with_suffix(".json").read_text())
        expected, whose = record["sha256"], (record.get("store"), record.get("shard"))
        found, ours = sha256_of_file(path), (_store_fingerprint(folder), shard)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{path}: missing or not committed ({error}); expected every shard of the store; run the teacher again to finish it"
        ) from error
    if found != expected:
        raise RunError(
            f"{path}: checksum {found[:12]}, expected {expected[:12]}; the shard is corrupt; remove it and run the teacher again"
        )
    if whose not in (ours, (None, None)):  # older runs recorded the checksum alone
        raise RunError(
            f"{path}: shard {whose[1]} of store {whose[0]}, expected shard {ours[1]} of {ours[0]}; "
            "it was put here from elsewhere; remove it and run the teacher again"
        )
    return path
