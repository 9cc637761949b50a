"""Whether an encoder speaks of the decoder that is to be explained: a student imitates one checkpoint, and says which."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from influcoder.errors import require
from influcoder.origin import Origin, load_origin
from influcoder.runs import open_run


def warn(encoder: Path, checkpoint: str | None, teacher: dict[str, Any] | None) -> list[str]:
    """Print one line on stderr for each thing that speaks of another decoder or method than is meant, and return them.

    Args:
        encoder: folder of the student.
        checkpoint: the decoder that is to be explained: folder, hub id, teacher run or fingerprint; None asks nothing.
        teacher: run.json of the teacher that scores the short-list again, with its folder as `teacher`; None without a second stage.

    Raises:
        MissingExtraError: when the checkpoint has to be loaded and torch is not installed.
        ConfigError: when it cannot be loaded.
        RunError: when a record cannot be read.
    """
    if checkpoint is None and teacher is None:
        return []
    origin = load_origin(encoder)
    found = [] if checkpoint is None else _of_checkpoint(encoder, origin, checkpoint, teacher)
    found += [] if teacher is None else _of_teacher(encoder, origin, teacher)
    for line in found:
        tqdm.write(f"warning: {line}", file=sys.stderr)
    return found


def _of_checkpoint(encoder: Path, origin: Origin | None, checkpoint: str, teacher: dict[str, Any] | None) -> list[str]:
    if origin is None:
        return [
            f"{encoder}: does not say which decoder it imitates (no fidelity.json); whether its scores speak of {checkpoint} is not known"
        ]
    found = []
    if not is_of(checkpoint, origin.decoder_fingerprint):
        found.append(
            f"{encoder}: imitates the decoder of fingerprint {origin.decoder_fingerprint}, and not {checkpoint}; its scores speak of that one; "
            "distil a teacher of the checkpoint that you mean"
        )
    if teacher is not None and not is_of(checkpoint, teacher["decoder_fingerprint"]):
        found.append(f"{teacher['teacher']}: of the decoder of fingerprint {teacher['decoder_fingerprint']}, and not of {checkpoint}")
    return found


def _of_teacher(encoder: Path, origin: Origin | None, teacher: dict[str, Any]) -> list[str]:
    if origin is None:
        return [
            f"{encoder}: does not say whose ranking it imitates (no fidelity.json); how much of {teacher['teacher']}'s it finds is not known"
        ]
    mine, theirs = (origin.decoder_fingerprint, origin.method), (teacher["decoder_fingerprint"], teacher["method"])
    if mine == theirs:
        return []
    return [
        f"{encoder}: imitates {mine[1]} of decoder {mine[0]}, and {teacher['teacher']} is {theirs[1]} of {theirs[0]}: topk.parquet speaks of "
        "the second, its short-list and all else of the first, and how much the short-list misses has not been measured"
    ]


def is_of(checkpoint: str, fingerprint: str) -> bool:
    """Return whether a folder, hub id, teacher run or fingerprint stands for the decoder of that fingerprint; a model's weights are read."""
    if re.fullmatch(r"[0-9a-f]{16}", checkpoint):
        return checkpoint == fingerprint
    if (Path(checkpoint) / "run.json").is_file():
        return bool(open_run(Path(checkpoint), "teacher")["decoder_fingerprint"] == fingerprint)
    for module in ("torch", "transformers"):
        require(module, "train")
    from influcoder.influence.decoder import fingerprints

    return any(found == fingerprint for found in fingerprints(checkpoint))
