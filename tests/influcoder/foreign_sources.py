"""What Bergson 2.5 and Kronfluence 1.0 leave on disk, written by hand from their documented layouts."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

PROJECTION = "projection_dim: 1\nprojection_type: rademacher\nprojection_target: per_module\nprojection_seed: null\n"


def write_bergson(
    folder: Path,
    rows: Sequence[Sequence[float]],
    *,
    sizes: Mapping[str, int] | None = None,
    ids: Sequence[str] | None = None,
    payload: bytes | None = None,
    **info: Any,
) -> Path:
    """Write an index of float32 rows.

    Args:
        folder: of the index.
        rows: gradients.
        sizes: coordinates a module; one module by default.
        ids: column `id` of data.hf; None leaves it out, as Bergson's default does.
        payload: other bytes of gradients.bin.
        info: other entries of info.json; None takes one out.
    """
    (folder / "data.hf").mkdir(parents=True)
    flat = [value for row in rows for value in row]
    (folder / "gradients.bin").write_bytes(struct.pack(f"<{len(flat)}f", *flat) if payload is None else payload)
    content = {"attribute_tokens": False, "num_items": len(rows), "num_grads": len(rows), "base_dtype": "float32"}
    content |= {"grad_sizes": dict(sizes or {"gradients": len(rows[0])})} | info
    (folder / "info.json").write_text(json.dumps({name: value for name, value in content.items() if value is not None}))
    (folder / "processor_config.yaml").write_text(PROJECTION)
    (folder / "normalizers.pth").write_bytes(b"a pickle that nobody opens")
    columns: dict[str, list[Any]] = {"length": [7] * len(rows), "loss": [0.5] * len(rows)}
    write_data(folder / "data.hf", columns | ({} if ids is None else {"id": list(ids)}))
    return folder


def write_data(folder: Path, columns: Mapping[str, Sequence[Any]], **state: Any) -> None:
    """Write a `datasets` folder of two files whose names are not in the order of their rows."""
    half = len(next(iter(columns.values()))) // 2
    names = ["second-by-name.arrow", "first-by-name.arrow"]
    for name, part in zip(names, (slice(half), slice(half, None)), strict=True):
        table = pa.table({column: list(values[part]) for column, values in columns.items()})
        with pa.ipc.new_stream(str(folder / name), table.schema) as stream:
            stream.write_table(table)
    content = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "loss", "_split": "train"} | state
    (folder / "state.json").write_text(json.dumps(content))


def write_safetensors(path: Path, tensors: Mapping[str, tuple[str, Sequence[int], bytes]]) -> Path:
    """Write (dtype, shape, bytes) tensors: the header's length, the header as JSON, the bytes."""
    header, place = {}, 0
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [place, place + len(content)]}
        place += len(content)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(content for _, _, content in tensors.values()))
    return path


def f32(rows: Sequence[Sequence[float]]) -> tuple[str, list[int], bytes]:
    """Return a float32 matrix as `write_safetensors` takes it."""
    flat = [value for row in rows for value in row]
    return "F32", [len(rows), len(rows[0])], struct.pack(f"<{len(flat)}f", *flat)
