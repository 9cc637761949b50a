"""Rank training rows by their influence on a behaviour, with a text encoder distilled from gradients.

Names are resolved when first used, so that `import influcoder` imports neither torch nor onnxruntime.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from influcoder.aggregation import aggregate
    from influcoder.attribution import AttributionConfig, attribute
    from influcoder.errors import InflucoderError
    from influcoder.examples import Example
    from influcoder.onnx_encoder import OnnxEncoder
    from influcoder.onnx_export import export_encoder
    from influcoder.readers import Columns, DataSource, read_examples
    from influcoder.text_format import render

    __version__: str

__all__ = [
    "AttributionConfig",
    "Columns",
    "DataSource",
    "Example",
    "InflucoderError",
    "OnnxEncoder",
    "__version__",
    "aggregate",
    "attribute",
    "export_encoder",
    "read_examples",
    "render",
]

_MODULES = {
    "AttributionConfig": "attribution",
    "Columns": "readers",
    "DataSource": "readers",
    "Example": "examples",
    "InflucoderError": "errors",
    "OnnxEncoder": "onnx_encoder",
    "aggregate": "aggregation",
    "attribute": "attribution",
    "export_encoder": "onnx_export",
    "read_examples": "readers",
    "render": "text_format",
}


def __getattr__(name: str) -> object:
    if name == "__version__":
        return _version()
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(__name__)
    except PackageNotFoundError:
        return "0.0.0+checkout"
