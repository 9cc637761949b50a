"""The only reader of labels in the project: no other stage names their columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eval.config import LabelsConfig
from influcoder.errors import DataError
from influcoder.examples import Example
from influcoder.file_formats import Row
from influcoder.readers import read_columns

YES, NO = {"1", "1.0", "true"}, {"0", "0.0", "false"}
"""how files of any kind write a truth value, lower-cased"""


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Answers about some rows, in the rows' order."""

    positive: NDArray[np.bool_] | None = None
    groups: NDArray[np.str_] | None = None


def load_labels(config: LabelsConfig | None, rows: Sequence[Example]) -> Labels:
    """Read the labels of `rows`.

    Raises:
        DataError: when a row has no label, or a truth value is none.
    """
    if config is None:
        return Labels()
    found = read_columns(config.source, tuple(name for name in (config.positive, config.group) if name is not None))
    where = ", ".join(config.source.paths)
    missing = [row.id for row in rows if row.id not in found]
    if missing:
        raise DataError(
            f"{where}: no label for row {missing[0]!r} ({len(missing)} of {len(rows)} test rows have none); "
            "expected every row of the teacher's pool; name all its files, and the same id column"
        )
    ordered = [(row.id, found[row.id]) for row in rows]
    return Labels(
        positive=None
        if config.positive is None
        else np.array([_truth(row, config.positive, f"{where}: row {name!r}") for name, row in ordered]),
        groups=None if config.group is None else np.array([str(row[config.group]) for _, row in ordered], dtype=np.str_),
    )


def _truth(row: Row, column: str, where: str) -> bool:
    written = str(row[column]).strip().lower()
    if written not in YES | NO:
        raise DataError(f"{where}: column {column!r} holds {row[column]!r}; expected 1, 0, true or false")
    return written in YES
