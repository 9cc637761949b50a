"""Attribution made elsewhere: features of a Bergson index, scores of Kronfluence, and what either becomes here.

    INDEX/info.json        attribute_tokens, num_grads, grad_sizes {module: coordinates, in column order}, base_dtype   (Bergson 2.5)
    INDEX/gradients.bin    (num_grads, sum of grad_sizes), row-major, no header
    INDEX/data.hf/         state.json lists Arrow streams; row i belongs to row i of gradients.bin
    SCORES/pairwise_scores[_data_partitionI_module_partitionJ].safetensors   (queries, rows) a module, or `all_modules`   (Kronfluence)

Sign: Bergson keeps +dLoss/dw, and Kronfluence's scores with the loss as measurement are g_q' H^-1 g_d: both are positive where
training on the row lowers the query's loss, as ours. Scores alone become features by a thin SVD (`factorise`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from influcoder.array_files import NUMPY_TYPES, Matrix, check_matrix, read_json, read_safetensors, to_float32
from influcoder.errors import DataError

ALL_MODULES = "all_modules"


@dataclass(frozen=True, kw_only=True)
class ForeignFeatures:
    """Vectors whose inner products are scores, by row id."""

    files: tuple[Path, ...]
    """what was read; the first names the source in messages"""
    ids: tuple[str, ...]
    vectors: Matrix
    """(rows, dim)"""
    space: Any = None
    """what the coordinates are; only features of one space are multiplied"""

    def __post_init__(self) -> None:
        _check_ids(self.ids, len(self.vectors), "rows", self.files[0])

    def of(self, ids: Sequence[str]) -> Matrix:
        """Return `(ids, dim)` vectors in this order.

        Raises:
            DataError: when an id is not here, or its vector is zero or not finite.
        """
        vectors = self.vectors[_places(self.ids, ids, "rows", self.files[0])]
        _check_lengths(vectors, ids, "features", self.files[0])
        return vectors


@dataclass(frozen=True, kw_only=True)
class ForeignScores:
    """Dense scores with the ids of both sides; larger = the row helps the query more."""

    files: tuple[Path, ...]
    """what was read; the first names the source in messages"""
    query_ids: tuple[str, ...]
    row_ids: tuple[str, ...]
    values: Matrix
    """(queries, rows)"""

    def __post_init__(self) -> None:
        _check_ids(self.query_ids, self.values.shape[0], "queries", self.files[0])
        _check_ids(self.row_ids, self.values.shape[1], "rows", self.files[0])

    def of(self, query_ids: Sequence[str], row_ids: Sequence[str]) -> Matrix:
        """Return `(query_ids, row_ids)` scores in this order.

        Raises:
            DataError: when an id is not here, or all its scores are zero or one is not finite.
        """
        where = self.files[0]
        values = self.values[np.ix_(_places(self.query_ids, query_ids, "queries", where), _places(self.row_ids, row_ids, "rows", where))]
        _check_lengths(values, query_ids, "scores", where)
        _check_lengths(values.T, row_ids, "scores", where)
        return values


def read_bergson(folder: Path, *, id_column: str = "id", ids: Sequence[str] | None = None) -> ForeignFeatures:
    """Read an index that `bergson build` wrote, one gradient a row.

    Args:
        folder: the index.
        id_column: column of the index's `data.hf` that names the rows.
        ids: one a row in the index's order, instead of that column (Bergson drops it unless built with `--drop_columns false`).

    Raises:
        DataError: when it is unfinished, of tokens, aggregated, of an unknown type, or its parts do not fit together.
    """
    if folder.name.endswith(".part") or (not folder.exists() and folder.with_name(f"{folder.name}.part").exists()):
        raise DataError(f"{folder}: an unfinished index (.part); expected a complete one; let `bergson build` finish")
    info, file = read_json(folder / "info.json"), folder / "gradients.bin"
    try:
        of_tokens, rows, sizes, kind = (info[name] for name in ("attribute_tokens", "num_grads", "grad_sizes", "base_dtype"))
        width = sum(sizes.values())
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{folder / 'info.json'}: not as Bergson 2.5 writes it ({error!r}); build the index with that release") from error
    if of_tokens:
        raise DataError(f"{folder}: {rows} gradients of tokens; expected one gradient a row; build it without --attribute_tokens")
    if kind not in NUMPY_TYPES:
        raise DataError(f"{folder / 'info.json'}: base_dtype {kind!r}; expected one of {', '.join(NUMPY_TYPES)}; choose such a --precision")
    expected = rows * width * np.dtype(NUMPY_TYPES[kind]).itemsize
    found = file.stat().st_size if file.exists() else 0
    if found != expected:
        raise DataError(f"{file}: {found} bytes; expected {expected}, {rows} rows of {width} {kind}; the index is damaged; build it again")
    named = _read_names(folder / "data.hf", id_column if ids is None else None)
    projection = folder / "processor_config.yaml"
    return ForeignFeatures(
        files=(file, folder / "info.json"),
        ids=tuple(named if ids is None else ids),
        vectors=to_float32(np.fromfile(file, NUMPY_TYPES[kind]), kind).reshape(rows, width),
        space=(list(sizes.items()), projection.read_text() if projection.exists() else None),
    )


def read_kronfluence(path: Path) -> tuple[Matrix, tuple[Path, ...]]:
    """Read pairwise scores that Kronfluence saved: modules are summed, data partitions joined.

    Args:
        path: the folder `scores_NAME`, or one complete file of it.

    Returns:
        (queries, rows) in the order of its two data sets, and the files read.

    Raises:
        DataError: when a partition is missing, or scores are of tokens.
    """
    whole = path / "pairwise_scores.safetensors" if path.is_dir() else path
    grid = [[whole]]
    if path.is_dir() and not whole.exists():
        arguments = read_json(path / "score_arguments.json")
        # `data_partitions` in Kronfluence 1.0, `data_partition_size` before it
        data, modules = (arguments.get(f"{side}_partitions") or arguments.get(f"{side}_partition_size") or 1 for side in ("data", "module"))
        name = "pairwise_scores_data_partition{}_module_partition{}.safetensors"
        grid = [[path / name.format(part, module) for module in range(modules)] for part in range(data)]
    files = tuple(file for line in grid for file in line)
    absent = [file for file in files if not file.exists()]
    if absent:
        raise DataError(f"{absent[0]}: missing ({len(absent)} of {len(files)} score files are); expected all; let Kronfluence finish them")
    parts = [_sum_modules(line) for line in grid]
    counts = [len(part) for part in parts]
    if len(set(counts)) > 1:
        raise DataError(f"{path}: data partitions of {', '.join(map(str, counts))} queries; expected the same; score them again")
    return np.concatenate(parts, axis=1), files


def factorise(values: Matrix) -> tuple[Matrix, Matrix]:
    """Return query features `U sqrt(S)` and row features `V sqrt(S)` of scores `U S V'`: their inner products are the scores.

    The root of S goes to both sides, so that neither has to hold the whole range of the scores in float16.
    """
    left, strengths, right = np.linalg.svd(values, full_matrices=False)
    roots = np.sqrt(strengths)
    return left * roots, right.T * roots


def _read_names(folder: Path, column: str | None) -> list[str]:
    """Return a column of the index's data set as ids, or nothing for None; refuse an aggregated index in both cases."""
    if column is None and not folder.exists():
        return []
    state, names = read_json(folder / "state.json"), []
    if state.get("_indices_files"):
        raise DataError(f"{folder}: its rows are a selection of its files; expected all in order; save it after flatten_indices()")
    for file in (folder / part["filename"] for part in state.get("_data_files", ())):
        try:
            with pa.ipc.open_stream(file.read_bytes()) as stream:
                table = stream.read_all()
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{file}: cannot be read as an Arrow stream ({error}); build the index again") from error
        if "query_index" in table.column_names:  # stands for the rows when their gradients are aggregated
            raise DataError(f"{folder.parent}: one gradient of all rows; expected one a row; build it with --aggregation none")
        if column is not None and column not in table.column_names:
            raise DataError(
                f"{folder}: no column {column!r}, it has {', '.join(table.column_names)}; expected ids; build the index with "
                "--drop_columns false, or give an ids file, or say that its rows are in our order"
            )
        names += [str(value) for value in table.column(column).to_pylist()] if column is not None else []
    return names


def _sum_modules(files: Sequence[Path]) -> Matrix:
    total: Matrix | None = None
    for file in files:
        tensors = read_safetensors(file)
        for name in [ALL_MODULES] if ALL_MODULES in tensors else tensors:
            scores = check_matrix(tensors[name], file, f"{name} (three axes are scores of tokens)")
            if total is not None and scores.shape != total.shape:
                raise DataError(
                    f"{file}: {name} has shape {scores.shape}, the modules before it {total.shape}; expected the same; score again"
                )
            total = scores if total is None else total + scores
    if total is None:
        raise DataError(f"{files[0]}: no scores in it; expected {ALL_MODULES!r} or one tensor a module; score again")
    return total


def _check_ids(ids: Sequence[str], count: int, side: str, where: Path) -> None:
    if len(ids) != count:
        raise DataError(f"{where}: {count} {side}, but {len(ids)} ids; expected one each; give the ids of exactly these {side}")
    seen: set[str] = set()
    for row_id in ids:
        if row_id in seen:
            raise DataError(f"{where}: id {row_id!r} stands twice among its {side}; expected every id once; drop one")
        seen.add(row_id)


def _places(ids: Sequence[str], wanted: Sequence[str], side: str, where: Path) -> list[int]:
    place = {row_id: number for number, row_id in enumerate(ids)}
    missing = [row_id for row_id in wanted if row_id not in place]
    if missing:
        raise DataError(
            f"{where}: no {missing[0]!r} in it ({len(missing)} of {len(wanted)} {side} are missing, its own ids begin with {ids[0]!r}); "
            "expected all; attribute them too, or drop them"
        )
    return [place[row_id] for row_id in wanted]


def _check_lengths(vectors: Matrix, ids: Sequence[str], what: str, where: Path) -> None:
    lengths = np.linalg.norm(vectors, axis=1)
    bad = np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0)))
    if len(bad):
        raise DataError(
            f"{where}: the {what} of {ids[bad[0]]!r} have length {lengths[bad[0]]} ({len(bad)} such rows); expected finite numbers that are "
            "not all 0; drop the row (Bergson leaves rows of fewer than 2 tokens at 0)"
        )
