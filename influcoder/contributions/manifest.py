"""`contributions.json`: what was valued, by what, how, and who gets what, in canonical JSON without a row of the data."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import influcoder
from influcoder.contributions.canonical_json import fixed_decimal, plain_decimal
from influcoder.contributions.ledger import Line
from influcoder.contributions.values import ValueSettings
from influcoder.runs import git_commit, sha256_of_file

MANIFEST_FILE = "contributions.json"
SIGNATURE_FILE = "signature.json"
SECRET_FILE = "secret.hex"
SCHEMA_VERSION = 1
DECIMAL_SETTINGS = ("near_duplicate_jaccard", "near_duplicate_cosine", "cap_quantile", "confidence")
PACKAGES = ("numpy", "onnxruntime", "onnxruntime-gpu", "tokenizers", "datasketch")


def describe(
    *,
    made_utc: str,
    model: dict[str, str],
    data: dict[str, Any],
    queries: dict[str, Any],
    settings: ValueSettings,
    top: int | None,
    provider: str,
) -> dict[str, Any]:
    """Return the part of the manifest that says what was valued and how."""
    return {
        "schema_version": SCHEMA_VERSION,
        "made_utc": made_utc,
        "code": {"influcoder": influcoder.__version__, "git_commit": git_commit(), "packages": _packages(), "provider": provider},
        "model": model,
        "data": data,
        "queries": queries,
        "settings": write_settings(settings) | {"top": top},
    }


def outcome(lines: Sequence[Line], budget: int, cap: int) -> dict[str, Any]:
    """Return the part that says who gets what; `cap` in billionths."""
    paid = sum(line.reward for line in lines)
    return {
        "status": "paid" if paid else "nothing paid",
        "budget": str(budget),
        "paid": str(paid),
        "cap": fixed_decimal(cap),
        "contributors": [line.canonical() for line in lines],
    }


def file_hashes(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """Return the SHA-256 of files of a report."""
    return {name: sha256_of_file(folder / name) for name in names}


def write_settings(settings: ValueSettings) -> dict[str, Any]:
    """Return the settings without floats."""
    content = asdict(settings)
    return content | {name: plain_decimal(content[name]) for name in DECIMAL_SETTINGS if content[name] is not None}


def read_settings(content: dict[str, Any]) -> tuple[ValueSettings, int | None]:
    """Return the settings and `top` that a manifest holds.

    Raises:
        KeyError, TypeError, ValueError: when they are not settings.
    """
    content = {**content}
    top: int | None = content.pop("top")
    if top is not None and (not isinstance(top, int) or top < 1):
        raise ValueError(f"settings.top: {top!r}; expected at least 1, or null")
    numbers = {name: float(content[name]) for name in DECIMAL_SETTINGS if content[name] is not None}
    return ValueSettings(**content | numbers), top


def _packages() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
