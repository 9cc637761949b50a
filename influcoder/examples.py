"""Training examples and queries: the one in-memory form of a row.

A row is a conversation whose last turn is the response. `prompt`/`response` columns give a context of one user turn,
`messages` any number of turns, and plain `text` no context at all: then the whole text is the response.
The loss, hence the influence, is on the response only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from influcoder.errors import DataError, RunError

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """One turn of a conversation."""

    role: str
    """system, user or assistant"""
    content: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One training row or query."""

    id: str
    """given by the data, else the content hash"""
    context: tuple[Turn, ...]
    """turns before the response; empty for plain text"""
    response: str
    """what the loss is on; never empty"""
    contributor: str | None = None
    """who gave the row; None when the data do not say"""
    weight: float = 1.0
    """for queries: +1 behaviour to look for, -1 contrast to look away from; unused for training rows"""

    @property
    def prompt(self) -> str:
        """The context as plain text: the turn itself when there is one, else one `role: content` line a turn."""
        if len(self.context) == 1:
            return self.context[0].content
        return "\n".join(f"{turn.role}: {turn.content}" for turn in self.context)


def content_hash(context: Sequence[Turn], response: str) -> str:
    """Return 16 hex digits that identify a row's content, whatever its id."""
    payload = json.dumps([[turn.role, turn.content] for turn in context] + [response], ensure_ascii=False)
    return hashlib.sha256(payload.encode()).hexdigest()[:16]


def fingerprint(examples: Sequence[Example]) -> str:
    """Return 16 hex digits that identify these rows in this order: ids, contents, weights."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(f"{example.id}\0{content_hash(example.context, example.response)}\0{example.weight}\n".encode())
    return digest.hexdigest()[:16]


def check_unique(examples: Sequence[Example], where: str) -> None:
    """Refuse duplicate ids.

    Raises:
        DataError: naming the id and both row numbers.
    """
    first: dict[str, int] = {}
    for row, example in enumerate(examples, 1):
        if example.id in first:
            raise DataError(
                f"{where}: id {example.id!r} stands in row {first[example.id]} and row {row}; "
                "expected every id once (a row without one is named by its content); rename or drop one"
            )
        first[example.id] = row


def write_examples(path: Path, examples: Sequence[Example]) -> None:
    """Write rows as parquet in our own schema, to be read back by `load_examples`."""
    table = pa.table(
        {
            "id": pa.array([example.id for example in examples], pa.string()),
            "context": pa.array(
                [[{"role": turn.role, "content": turn.content} for turn in example.context] for example in examples],
                pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())])),
            ),
            "response": pa.array([example.response for example in examples], pa.string()),
            "contributor": pa.array([example.contributor for example in examples], pa.string()),
            "weight": pa.array([example.weight for example in examples], pa.float64()),
        }
    )
    pq.write_table(table, path)


def load_examples(path: Path) -> list[Example]:
    """Read rows written by `write_examples`.

    Raises:
        RunError: when the file is missing or not of that schema.
    """
    try:
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
        return [
            Example(
                id=row["id"],
                context=tuple(Turn(role=turn["role"], content=turn["content"]) for turn in row["context"]),
                response=row["response"],
                contributor=row["contributor"],
                weight=row["weight"],
            )
            for row in rows
        ]
    except (OSError, pa.ArrowException, KeyError, TypeError) as error:
        raise RunError(
            f"{path}: cannot be read as rows of a run ({error}); expected the parquet file that the teacher wrote; run the teacher again"
        ) from error
