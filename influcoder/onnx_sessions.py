"""What runs a graph: onnxruntime, or OpenVINO on a CPU, each as `run(feed)`, one thread a call.

A CPU is filled by as many calls at a time as it has cores, each on a batch of its own, not by threads that share a batch and wait for
each other: 1.2 times the rows a second on two cores, and an embedding does not depend on how many cores there were.
"""

from __future__ import annotations

import queue
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from influcoder.errors import ConfigError, MissingExtraError, require

Feed = Mapping[str, NDArray[np.int64]]
OPENVINO = "OpenVINO"
"""named as an execution provider, though it is a package of its own: onnxruntime's wheel for it would replace onnxruntime"""


class Session(Protocol):
    """A graph, ready to run from several threads at once."""

    provider: str
    """the execution provider that was really taken"""

    def run(self, feed: Feed) -> NDArray[np.float32]:
        """Return the graph's one output."""


class OnnxRuntimeSession:
    """A graph on onnxruntime."""

    def __init__(self, path: Path, providers: Sequence[str] | None) -> None:
        onnxruntime = _require_onnxruntime()
        offered = onnxruntime.get_available_providers()
        providers = providers or [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in offered]
        unknown = [name for name in providers if name not in offered]
        if unknown:
            raise ConfigError(
                f"providers: onnxruntime does not offer {unknown[0]!r}; it has {', '.join(offered)}, and {OPENVINO} stands alone; "
                "name one of those"
            )
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors only
        options.intra_op_num_threads = 1
        options.enable_mem_pattern = False  # a plan of the memory for every shape, kept for good: lengths vary, and it would grow
        self._session = onnxruntime.InferenceSession(str(path), options, providers=list(providers))
        self.provider = str(self._session.get_providers()[0])

    def run(self, feed: Feed) -> NDArray[np.float32]:
        """Return the graph's one output."""
        output: NDArray[np.float32] = self._session.run(None, feed)[0]
        return output.astype(np.float32, copy=False)


class OpenVinoSession:
    """A graph on OpenVINO's CPU plug-in, in float32 or bfloat16."""

    provider = OPENVINO

    def __init__(self, path: Path, threads: int, *, bfloat16: bool) -> None:
        openvino = require("openvino", "openvino")
        wanted = "bf16" if bfloat16 else "f32"
        settings = {"INFERENCE_PRECISION_HINT": wanted, "NUM_STREAMS": str(threads), "INFERENCE_NUM_THREADS": str(threads)}
        compiled = openvino.Core().compile_model(str(path), "CPU", settings)
        if bfloat16 and "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise ConfigError("variant: bf16; this processor has no bfloat16 (AVX512_BF16 or AMX); take fp32 or int8")
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(threads):
            self._idle.put(compiled.create_infer_request())

    def run(self, feed: Feed) -> NDArray[np.float32]:
        """Return the graph's one output."""
        request = self._idle.get()
        try:
            return np.array(request.infer(dict(feed))[0], np.float32)
        finally:
            self._idle.put(request)


def load_session(path: Path, providers: Sequence[str] | None, threads: int, *, bfloat16: bool) -> Session:
    """Load a graph that was checked.

    Args:
        path: of the graph.
        providers: onnxruntime's, best first, or OpenVINO alone; None takes CUDA when onnxruntime offers it, else the CPU.
        threads: calls at a time, at most.
        bfloat16: multiply in bfloat16, which OpenVINO alone does.

    Raises:
        ConfigError: when a provider is not offered, or has no bfloat16.
        MissingExtraError: when the runtime is not installed.
    """
    if bfloat16 and providers not in (None, [OPENVINO]):
        raise ConfigError(f"variant: bf16 with providers {', '.join(providers or ())}; expected {OPENVINO}, or none named")
    if bfloat16 or providers == [OPENVINO]:
        return OpenVinoSession(path, threads, bfloat16=bfloat16)
    return OnnxRuntimeSession(path, providers)


def _require_onnxruntime() -> ModuleType:
    try:
        return require("onnxruntime", "cpu")
    except MissingExtraError as error:
        raise MissingExtraError(f"{error} (or 'influcoder[gpu]' for NVIDIA; never both)") from error
