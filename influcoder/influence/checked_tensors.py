"""One safetensors file that counts only with its commit record, and a reader that refuses what was changed since.

NAME.safetensors    tensors
NAME.json           written after it: checksum, and what the tensors are of
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import safetensors
from safetensors.torch import load_file, save_file
from torch import Tensor

from influcoder.errors import RunError
from influcoder.runs import sha256_of_file, write_json_atomic


def commit_tensors(path: Path, tensors: Mapping[str, Tensor], of: str) -> None:
    """Write and commit: data, fsync, rename, then the record.

    Args:
        path: of the .safetensors file.
        tensors: on any device.
        of: what they were computed from, a fingerprint; readers ask for the same.

    Raises:
        RunError: when it cannot be written.
    """
    writing = path.with_name(f".{path.name}.writing")
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, writing)
        with writing.open("rb") as stream:
            os.fsync(stream.fileno())
        os.replace(writing, path)
        write_json_atomic(_record(path), {"sha256": sha256_of_file(path), "of": of})
    except (OSError, safetensors.SafetensorError) as error:
        writing.unlink(missing_ok=True)
        raise RunError(
            f"{path}: cannot be written ({error}); what was committed before is kept; mend that and run the same command again"
        ) from error


def is_committed(path: Path, of: str) -> bool:
    """Return whether the file is whole.

    Raises:
        RunError: when it is whole and of something else.
    """
    if not _record(path).exists():
        return False
    _check(path, of)
    return True


def read_tensors(path: Path, of: str | None = None) -> dict[str, Tensor]:
    """Read what `commit_tensors` wrote, in order of name.

    Args:
        path: of the .safetensors file.
        of: what it should be of; None takes any.

    Raises:
        RunError: when it is missing, changed, or of something else.
    """
    _check(path, of)
    try:
        return dict(sorted(load_file(path).items()))
    except (OSError, safetensors.SafetensorError) as error:
        raise RunError(f"{path}: not readable as safetensors ({error}); remove it and run the same command again") from error


def remove_tensors(path: Path) -> None:
    """Remove a file that has served; its record first, without which it does not count."""
    _record(path).unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def _record(path: Path) -> Path:
    return path.with_suffix(".json")


def _check(path: Path, of: str | None) -> None:
    try:
        record = json.loads(_record(path).read_text(encoding="utf-8"))
        expected, whose, found = record["sha256"], record["of"], sha256_of_file(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path}: missing or not committed ({error}); remove it and run the same command again") from error
    if found != expected:
        raise RunError(f"{path}: checksum {found[:12]}, expected {expected[:12]}; it was changed; remove it and run the same command again")
    if of is not None and whose != of:
        raise RunError(f"{path}: of {whose}, expected {of}; it belongs to another job; remove {path.parent}, or choose another folder")
