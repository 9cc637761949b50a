"""The teacher's product: unit gradient features by row, in checksummed shards.

    FOLDER/manifest.json              ids in order, dim, rows a shard, how they were made
    FOLDER/shard-00000.safetensors    `features` float16 (rows, dim), each of length 1; `norms` float32 (rows,)
    FOLDER/shard-00000.json           commit record: checksum; written after the shard, so a shard without it does not count

`<phi_q, phi_d>` is the cosine of two projected gradients: larger = training on d lowers the loss on q more.
"""

from __future__ import annotations

import json
import os
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

    def select(self, ids: Sequence[str]) -> NDArray[np.float32]:
        """Return the vectors of `ids`, in that order.

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
        return self.vectors[[position[row_id] for row_id in ids]]


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
    save_file({"features": (gradients / norms[:, None]).astype(np.float16), "norms": norms.astype(np.float32)}, temporary)
    with temporary.open("rb") as stream:
        os.fsync(stream.fileno())
    os.replace(temporary, path)
    write_text_atomic(path.with_suffix(".json"), json.dumps({"sha256": sha256_of_file(path)}) + "\n")


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
        path, rows = _check_shard(folder, shard), manifest.rows_of(shard)
        try:
            content = load_file(path)
            vectors[rows], norms[rows] = content["features"], content["norms"]
        except (safetensors.SafetensorError, KeyError, ValueError) as error:
            raise RunError(
                f"{path}: not a shard of {rows.stop - rows.start} x {manifest.dim} features ({error}); run the teacher again"
            ) from error
    return Features(manifest, vectors, norms)


def _shard_path(folder: Path, shard: int) -> Path:
    return folder / f"shard-{shard:05d}.safetensors"


def _check_shard(folder: Path, shard: int) -> Path:
    path = _shard_path(folder, shard)
    try:
        expected = json.loads(path.with_suffix(".json").read_text())["sha256"]
        found = sha256_of_file(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{path}: missing or not committed ({error}); expected every shard of the store; run the teacher again to finish it"
        ) from error
    if found != expected:
        raise RunError(
            f"{path}: checksum {found[:12]}, expected {expected[:12]}; the shard is corrupt; remove it and run the teacher again"
        )
    return path
