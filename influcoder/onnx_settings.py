"""What an exported encoder folder says of its graphs: `onnx/encoder.json`, and which file a variant is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from influcoder.errors import RunError
from influcoder.onnx_checks import check_graph
from influcoder.runs import sha256_of_file, write_text_atomic

GRAPH_FOLDER = "onnx"
SETTINGS_FILE = "encoder.json"
SCHEMA_VERSION = 1
Variant = Literal["fp32", "bf16", "fp16", "int8"]
GRAPH_FILES: dict[str, str] = {"fp32": "model.onnx", "bf16": "model.onnx", "fp16": "model_fp16.onnx", "int8": "model_int8.onnx"}
"""bf16 is the float32 graph, multiplied in bfloat16 by OpenVINO"""


@dataclass(frozen=True, kw_only=True)
class GraphSettings:
    """`encoder.json`: what feeding the graph takes."""

    max_seq_length: int
    """longer texts are cut to so many tokens, special ones included"""
    dim: int
    """numbers in an embedding"""
    inputs: tuple[str, ...]
    """the graph's inputs, in order"""
    pad_token_id: int
    tokenizer: str
    """file name of the fast tokenizer, in the encoder folder"""
    sha256: str
    """of model.onnx: the encoder's fingerprint"""
    special_tokens: bool = True
    """whether the tokenizer adds the tokens that it puts around texts; a table of token vectors takes none"""
    variants: Mapping[str, str] = field(default_factory=dict)
    """the other variants that were accepted, and the SHA-256 of their graphs"""


def save_settings(folder: Path, settings: GraphSettings) -> None:
    """Write `encoder.json` into the graph's folder."""
    write_text_atomic(folder / SETTINGS_FILE, json.dumps({"schema_version": SCHEMA_VERSION, **asdict(settings)}, indent=2) + "\n")


def load_settings(folder: Path, graph_folder: str = GRAPH_FOLDER) -> GraphSettings:
    """Read `encoder.json` of an encoder folder.

    Raises:
        RunError: when the encoder was not exported, or the file is unreadable or of another version.
    """
    path = folder / graph_folder / SETTINGS_FILE
    if not folder.is_dir():
        raise RunError(f"{folder}: no such folder; expected an encoder, as a student run holds it; check the path")
    if not path.is_file():
        raise RunError(
            f"{folder}: no {graph_folder}/{SETTINGS_FILE}; expected an exported encoder; run: influcoder export --encoder {folder}"
        )
    try:
        content = json.loads(path.read_text())
        version = content.pop("schema_version")
        if version != SCHEMA_VERSION:
            raise RunError(
                f"{path}: schema {version!r}, expected {SCHEMA_VERSION}; use the influcoder release that wrote it, or export again"
            )
        return GraphSettings(**content | {"inputs": tuple(content["inputs"])})
    except (OSError, json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{path}: not readable ({error}); expected the record of an exported encoder; export it again") from error


def graph_file(folder: Path, settings: GraphSettings, variant: Variant) -> tuple[Path, str]:
    """Return a variant's file and checksum, when it is whole and safe to load."""
    path = folder / GRAPH_FILES[variant]
    expected = settings.sha256 if variant == "fp32" else settings.variants.get(variant)
    if expected is None:
        raise RunError(
            f"{folder}: variant {variant} was not exported or not accepted; it has {', '.join(['fp32', *settings.variants])}; "
            f"take one of those, or remove {folder} and export again with --variants"
        )
    if not path.is_file():
        raise RunError(f"{path}: missing; expected the exported graph; export the encoder again")
    found = sha256_of_file(path)
    if found != expected:
        raise RunError(
            f"{path}: checksum {found[:12]}, expected {expected[:12]}; the graph is corrupt or another's; export the encoder again"
        )
    check_graph(path)
    return path, expected
