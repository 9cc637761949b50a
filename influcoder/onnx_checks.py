"""Is a file an ONNX graph that is safe to hand to a runtime? Read as protobuf wire format, without the `onnx` package.

An ONNX file can name other files to take weights from, by any path; declare lengths that it does not have; or ask for operators of
its own. None of these is in a graph that influcoder wrote, so none is accepted. Only the parts where such things stand are visited,
weights are passed over. Field numbers: onnx.proto3, IR version 10; wire format: protobuf's encoding guide.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

from influcoder.errors import RunError

MAX_BYTES = 2 << 30
"""a protobuf message ends there"""
OPSETS = range(17, 25)
"""versions of the standard operators that our exporter has written or may write; LayerNormalization came with 17"""
DOMAINS = {"", "ai.onnx", "com.microsoft"}
"""com.microsoft: onnxruntime's own operators, in quantised graphs"""
ADVICE = "expected a graph that influcoder wrote; export the encoder again, and do not run this one"

# message -> field number -> message inside
INSIDE = {
    "model": {7: "graph", 8: "opset", 20: "training", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "function": {7: "node", 9: "opset", 11: "attribute"},
    "training": {1: "graph", 2: "graph"},
}
EXTERNAL_DATA, DATA_LOCATION = 13, 14
"""fields of a tensor"""
OPSET_DOMAIN, OPSET_VERSION = 1, 2


def check_graph(path: Path) -> None:
    """Accept an ONNX file whose weights are inside, whose lengths are true, and whose operators are standard ones.

    Raises:
        RunError: when it is no such file, in one line that says what is wrong with it.
    """
    size = path.stat().st_size
    if not 0 < size < MAX_BYTES:
        raise RunError(f"{path}: {size:,} bytes; expected more than none and less than 2 GiB; {ADVICE}")
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        versions = []
        try:
            for kind, fields in _messages(data, "model", 0, size):
                if kind == "tensor" and (EXTERNAL_DATA in fields or fields.get(DATA_LOCATION, 0) != 0):
                    raise RunError(f"{path}: a tensor lies in another file, which the graph names; {ADVICE}")
                if kind == "opset":
                    versions.append((fields.get(OPSET_DOMAIN, b""), fields.get(OPSET_VERSION, 0)))
        except (IndexError, RecursionError) as error:
            raise RunError(f"{path}: no ONNX graph: a length in it goes past its end; {ADVICE}") from error
    _check_versions(path, versions)


def _check_versions(path: Path, versions: list[tuple[bytes | int, bytes | int]]) -> None:
    if not versions:
        raise RunError(f"{path}: no ONNX graph: it names no operator set; {ADVICE}")
    for domain, version in versions:
        name = domain.decode(errors="replace") if isinstance(domain, bytes) else str(domain)
        if name not in DOMAINS:
            raise RunError(f"{path}: wants operators of {name[:60]!r}; expected the standard ones and com.microsoft; {ADVICE}")
        if name != "com.microsoft" and version not in OPSETS:
            raise RunError(f"{path}: opset {version!r}; expected {OPSETS.start} to {OPSETS.stop - 1}; {ADVICE}")


def _messages(data: mmap.mmap, kind: str, start: int, end: int) -> Iterator[tuple[str, dict[int, bytes | int]]]:
    """Yield a message and those inside, each as its short fields: numbers, and the first bytes of strings."""
    fields: dict[int, bytes | int] = {}
    inside = INSIDE.get(kind, {})
    while start < end:
        key, start = _varint(data, start, end)
        number, wire = key >> 3, key & 7
        if wire == 0:
            fields[number], start = _varint(data, start, end)
        elif wire == 2:
            length, start = _varint(data, start, end)
            if number in inside:
                yield from _messages(data, inside[number], start, start + length)
            else:
                fields[number] = data[start : start + min(length, 64)]
            start += length
        elif wire in (1, 5):
            start += 8 if wire == 1 else 4
        else:  # groups are not in proto3
            raise IndexError(wire)
    if start > end:
        raise IndexError(start)
    yield kind, fields


def _varint(data: mmap.mmap, start: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while start < end and shift < 70:
        byte = data[start]
        value |= (byte & 127) << shift
        start, shift = start + 1, shift + 7
        if byte < 128:
            return value, start
    raise IndexError(start)
