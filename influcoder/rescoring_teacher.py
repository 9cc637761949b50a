"""The teacher run that scores a short-list: what it holds, what it can compute, and whether that is still the same.

Rows that it has seen have their features in it (`run_features.py`); those of others are computed, which takes torch and the decoder
(`influence/teacher_features.py`, imported when it comes to that). Both are of the teacher's first seed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from influcoder.errors import ConfigError, RunError, require
from influcoder.examples import Example
from influcoder.run_features import RunFeatures, Vectors, load_run_features
from influcoder.runs import open_run, sha256_of_file
from influcoder.text_format import TextFormat, load_text_format

CHECK_ROWS = 8
"""rows of the run whose features are computed again before all else"""
TOLERANCE, HALF_TOLERANCE = 0.02, 0.15
"""largest ||difference|| / ||feature|| of these: float16 on the disk and another order of sums; with 16-bit weights `self_check.HALF_TOLERANCE`"""
REFUSED = {"f_influence": "measures its rows' gradients against each other at every point and keeps none of that"}
"""methods whose features of a new row a finished run cannot tell, and why"""


@dataclass(frozen=True, kw_only=True)
class Rescore:
    """Score a short-list of each query again with the teacher's own features; takes torch, and the decoder."""

    teacher: str
    """folder of a complete teacher run, its decoder still where run.json says"""
    rows: int
    """short-list of each query at either end, at least top_k: the longer, the nearer to the teacher's own ranking, and the dearer"""
    device: str = "auto"
    """where the decoder goes; auto takes a GPU when there is one"""

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise ConfigError(f"rescore.rows: {self.rows}; expected at least 1")


class Computing(Protocol):
    """What computes features: `influence.teacher_features.TeacherFeatures`."""

    def of_queries(self, queries: Sequence[Example]) -> Vectors:
        """Return what asks, (Q, D)."""

    def of_rows(self, rows: Sequence[Example]) -> Vectors:
        """Return what is asked, (R, D); NaN for a row that has no feature."""


@dataclass
class RescoringTeacher:
    """A teacher run, its decoder not yet loaded."""

    folder: Path
    record: dict[str, Any]
    """run.json"""
    device: str
    _computing: Computing | None = None

    @property
    def fingerprint(self) -> str:
        """16 hex digits that identify the run."""
        return sha256_of_file(self.folder / "run.json")[:16]

    @property
    def facts(self) -> dict[str, Any]:
        """What an attribution's run.json says of it."""
        kept = {name: self.record[name] for name in ("method", "normalise", "decoder_fingerprint")}
        return {"teacher": str(self.folder), **kept, "seed": self.record["seeds"][0]}

    @cached_property
    def seen(self) -> RunFeatures:
        """Features of the run's own rows."""
        return load_run_features(self.folder, self.record["seeds"][0])

    @property
    def computing(self) -> Computing:
        """What computes those of other rows; loads the decoder."""
        if self._computing is None:
            for module in ("torch", "transformers"):
                require(module, "train")
            from influcoder.influence.teacher_features import load_teacher_features

            self._computing = load_teacher_features(self.folder, self.record, self.device)
        return self._computing

    def release(self) -> None:
        """Let go of the decoder."""
        self._computing = None

    def check(self) -> float:
        """Compute some of the run's own rows again; return rows a second.

        Raises:
            MissingExtraError: when torch is not installed.
            ConfigError: when the decoder cannot be loaded.
            RunError: when it is another by now, or their features are not those that the run holds.
        """
        rows, computing = self.seen.rows[: min(CHECK_ROWS, self.seen.manifest.shard_rows)], self.computing
        computing.of_rows(rows[:1])  # the first pass sets things up: no part of the price of a row
        started = time.monotonic()
        found = computing.of_rows(rows)
        seconds, kept = time.monotonic() - started, self.seen.vectors(0, rows)
        difference = float((np.linalg.norm(found - kept, axis=1) / np.linalg.norm(kept, axis=1)).max())
        tolerance = TOLERANCE if self.record["decoder_dtype"] == "float32" else HALF_TOLERANCE
        if not difference <= tolerance:  # NaN too
            raise RunError(
                f"{self.folder}: features of its first rows, computed again, differ from those it holds by {difference:.2g} of their length; "
                f"expected at most {tolerance}; its basis, Fisher or checkpoints are not those that made them; run the teacher again"
            )
        return len(rows) / seconds


def open_teacher(config: Rescore, text_format: TextFormat) -> RescoringTeacher:
    """Open a run; nothing large is read.

    Args:
        config: which run.
        text_format: of the encoder.

    Raises:
        RunError: when it is not a complete teacher run, its method cannot be asked about new rows, or it cuts texts otherwise than the encoder.
    """
    folder = Path(config.teacher)
    record, budgets = open_run(folder, "teacher"), load_text_format(folder).budgets
    why = REFUSED.get(record["method"]) or (
        "has features made elsewhere, where alone new ones can be" if "gradients" not in record else None
    )
    if why is not None:
        raise RunError(
            f"rescore.teacher: {folder}: its method, {record['method']}, {why}; expected influcoder, tracin, less, logra, trackstar or ekfac; "
            "name such a run of the same decoder, or leave rescore out"
        )
    if budgets != text_format.budgets:
        raise RunError(
            f"rescore.teacher: {folder}: cuts texts to {budgets} characters, the encoder to {text_format.budgets}; expected the same; "
            "name the encoder's own teacher, or one with its text budgets"
        )
    return RescoringTeacher(folder, record, config.device)
