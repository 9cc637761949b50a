"""Smaller numbers in a graph: float16 for GPUs, int8 for CPUs. What they cost in ranking is measured by whoever asks for one.

**int8**: weights by output channel when the graph is written, activations by tensor as they come (onnxruntime's dynamic quantisation).
A few layers lose nearly all of what is lost, those whose inputs have outliers: they are found by quantising each alone, and as many of
the worst as it takes stay in float32. MiniLM with every layer in int8 ranks at .991 of itself, without its 6 worst at .996.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx
from tqdm import tqdm

from influcoder.errors import RunError, require

TARGET = 0.995
"""agreement on the calibration rows that int8 aims at: more than the gate asks for on others"""


def write_fp16(source: Path, target: Path) -> None:
    """Write the graph `source` in float16, with float32 outputs."""
    float16 = require("onnxruntime.transformers.float16", "cpu")
    with _no_logging():
        onnx.save(float16.convert_float_to_float16(onnx.load(source), keep_io_types=True), target)


def write_int8(source: Path, target: Path, agreement: Callable[[], float]) -> list[str]:
    """Write the graph `source` in int8; return the layers that stayed in float32.

    Args:
        source: float32 graph.
        target: file to write, again and again until it is good.
        agreement: of the graph that lies at `target` with the float32 one, at most 1, on calibration rows.

    Raises:
        RunError: when there is nothing to quantise, or half of the layers would have to stay as they are.
    """
    layers = _layers(source)
    if not layers:
        raise RunError(f"{source}: multiplies with no weights; int8 would change nothing; leave it out of --variants")
    _quantise(source, target, [])
    if agreement() >= TARGET:
        return []
    worst = _by_damage(source, target, layers, agreement)
    count = 1
    while count <= len(layers) // 2:
        _quantise(source, target, worst[:count])
        if agreement() >= TARGET:
            return worst[:count]
        count = max(count + 1, round(1.5 * count))
    raise RunError(f"{source}: ranks otherwise in int8 even where half of its layers stay in float32; leave it out of --variants")


def _by_damage(source: Path, target: Path, layers: Sequence[str], agreement: Callable[[], float]) -> list[str]:
    """Return the layers, first the one that costs most when it alone is quantised."""
    found = {}
    for layer in tqdm(layers, desc="int8: layers alone", unit="layer"):
        _quantise(source, target, [other for other in layers if other != layer])
        found[layer] = agreement()
    return sorted(layers, key=lambda layer: found[layer])


def _layers(source: Path) -> list[str]:
    """Return the names of the nodes that multiply with constant weights."""
    graph = onnx.load(source).graph
    constants = {tensor.name for tensor in graph.initializer}
    return [node.name for node in graph.node if node.op_type in ("MatMul", "Gemm") and node.input[1] in constants]


def _quantise(source: Path, target: Path, left_out: Sequence[str]) -> None:
    quantization = require("onnxruntime.quantization", "cpu")
    with _no_logging():
        quantization.quantize_dynamic(
            source,
            target,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            weight_type=quantization.QuantType.QInt8,
            nodes_to_exclude=list(left_out),
            extra_options={"MatMulConstBOnly": True},
        )


@contextmanager
def _no_logging() -> Iterator[None]:
    """Mute the root logger, to which onnxruntime's tools give advice for images."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
