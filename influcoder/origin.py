"""Whose ranking an encoder imitates, as its folder says."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from influcoder.calibration import FIDELITY_FILE
from influcoder.errors import RunError


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What a student run wrote of its teacher."""

    decoder_fingerprint: str
    """of the weights of the decoder, 16 hex digits (`influence/decoder.py`)"""
    method: str


def load_origin(encoder: Path) -> Origin | None:
    """Return what an encoder folder says of its teacher; None when it was made elsewhere and says nothing.

    Raises:
        RunError: when `fidelity.json` is not readable.
    """
    path = encoder / FIDELITY_FILE
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found, method = content.get("decoder_fingerprint"), content.get("teacher_method")
    except (OSError, ValueError, AttributeError) as error:
        raise RunError(f"{path}: not readable ({error}); expected what a student run says of itself; distil again") from error
    return None if found is None else Origin(decoder_fingerprint=str(found), method=str(method))
