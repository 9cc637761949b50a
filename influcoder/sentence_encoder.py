"""Load an encoder folder that may hold modules of this package, with sentence-transformers' own gate for all others.

sentence-transformers imports a class outside itself only with `trust_remote_code`, which would also run code that lies in the folder.
Ours are no code of the folder's: they are taken from the installed package, by name.
"""

from __future__ import annotations

import json
from pathlib import Path

from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Transformer
from sentence_transformers.sentence_transformer.modules import Normalize

from influcoder.error_pooling import ErrorPooling
from influcoder.errors import RunError

MODULES = {f"{module.__module__}.{module.__qualname__}": module for module in (Transformer, ErrorPooling, Dense, Normalize)}


def load_sentence_encoder(folder: Path, device: str = "cpu") -> SentenceTransformer:
    """Return the encoder of a folder.

    Raises:
        RunError: when an encoder with a module of this package has one that it never has.
    """
    path = folder / "modules.json"
    entries = json.loads(path.read_text()) if path.is_file() else []
    if not any(str(entry.get("type", "")).startswith("influcoder.") for entry in entries):
        return SentenceTransformer(str(folder), device=device, local_files_only=True)
    unknown = [entry["type"] for entry in entries if entry["type"] not in MODULES]
    if unknown:
        raise RunError(f"{path}: module {unknown[0]!r}; expected only {', '.join(MODULES)}; use the influcoder release that wrote it")
    modules = [MODULES[entry["type"]].load(str(folder), subfolder=entry["path"], local_files_only=True) for entry in entries]
    return SentenceTransformer(modules=modules, device=device)
