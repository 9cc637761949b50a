"""Matrices and ids out of files that others wrote, as float32 and strings: .npy, .safetensors, raw bytes; .txt, .json, tables.

Nothing is unpickled, and bfloat16 needs no package that knows it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from numpy.typing import NDArray

from influcoder.errors import DataError
from influcoder.file_formats import iterate_rows

Matrix = NDArray[np.float32]
NUMPY_TYPES = {"float64": "<f8", "float32": "<f4", "float16": "<f2", "bfloat16": "<u2"}
SAFETENSORS_TYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        DataError: when it is missing or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: cannot be read as JSON ({error}); expected a file that the source's program wrote; check the path"
        ) from error


def read_ids(path: Path, column: str) -> tuple[str, ...]:
    """Read ids: .txt one a line, .json a list, or `column` of .jsonl, .csv or .parquet.

    Raises:
        DataError: when the file cannot be read, or a place has no id.
    """
    found: Any
    if path.suffix == ".json":
        found = read_json(path)
        if not isinstance(found, list):
            raise DataError(f"{path}: a JSON {type(found).__name__}; expected a list of ids")
    elif path.suffix == ".txt":
        try:
            found = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: cannot be read ({error}); expected one id a line") from error
    else:
        found = _read_column(path, column)
    empty = [place for place, value in enumerate(found, 1) if value in (None, "")]
    if empty:
        raise DataError(f"{path}: no id in place {empty[0]} of {len(found)}; expected one a row; fill it in")
    return tuple(str(value) for value in found)


def read_matrix(path: Path, key: str | None = None) -> Matrix:
    """Read a matrix of floats from .npy or .safetensors; `key` names the tensor when there are several.

    Raises:
        DataError: when the file holds no such matrix.
    """
    if path.suffix == ".npy":
        try:
            return check_matrix(np.load(path, allow_pickle=False), path, "the array")
        except (OSError, EOFError, ValueError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{path}: cannot be read ({error}); expected an array of numbers") from error
    if path.suffix != ".safetensors":
        raise DataError(f"{path}: unknown kind of array; expected .npy or .safetensors")
    tensors = read_safetensors(path)
    if key is None and len(tensors) == 1:
        key = next(iter(tensors))
    if key not in tensors:
        raise DataError(f"{path}: no tensor {key!r}; it has {', '.join(tensors) or 'none'}; set `key` to one of those")
    return check_matrix(tensors[key], path, key)


def read_safetensors(path: Path) -> dict[str, Matrix]:
    """Read all tensors of a file, of any shape, as float32.

    Raises:
        DataError: when it cannot be read, or a tensor is not of floats.
    """
    try:
        content = safetensors.deserialize(path.read_bytes())  # type: ignore[no-untyped-call]  # unlike its numpy reader, it knows bfloat16
    except (OSError, safetensors.SafetensorError) as error:
        raise DataError(f"{path}: cannot be read as safetensors ({error}); write the file again") from error
    found = {}
    for name, tensor in sorted(content, key=lambda pair: str(pair[0])):  # they come in any order, and sums should not depend on it
        kind = SAFETENSORS_TYPES.get(tensor["dtype"])
        if kind is None:
            raise DataError(f"{path}: {name} is of type {tensor['dtype']}; expected one of {', '.join(SAFETENSORS_TYPES)}; convert it")
        found[name] = to_float32(np.frombuffer(tensor["data"], NUMPY_TYPES[kind]), kind).reshape(tensor["shape"])
    return found


def to_float32(raw: NDArray[Any], kind: str) -> Matrix:
    """Return the numbers that were stored as `kind` and read as `NUMPY_TYPES[kind]`."""
    if kind == "bfloat16":  # the upper half of a float32
        return (raw.astype("<u4") << 16).view("<f4")
    return raw.astype(np.float32, copy=False)


def check_matrix(array: NDArray[Any], path: Path, what: str) -> Matrix:
    """Return `array` as float32.

    Raises:
        DataError: when it is not of floats with two axes.
    """
    if array.ndim != 2 or not np.issubdtype(array.dtype, np.floating):
        raise DataError(f"{path}: {what} has shape {array.shape} and type {array.dtype}; expected a matrix of floats")
    return array.astype(np.float32, copy=False)


def _read_column(path: Path, column: str) -> list[Any]:
    found = []
    for where, row in iterate_rows(str(path), "train", None):
        if isinstance(row, DataError):
            raise row
        if column not in row:
            raise DataError(f"{where}: no column {column!r}; it has {', '.join(map(repr, row))}; set `id_column` to the one that holds ids")
        found.append(row[column])
    return found
