"""Opens the two runs that are judged and refuses runs that do not belong together.

A student belongs to a teacher when both name the same rows, decoder, method and target seed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from influcoder.errors import RunError
from influcoder.examples import Example, fingerprint, load_examples
from influcoder.features import Features, load_features
from influcoder.influence.decoder import DecoderConfig, recorded_decoder
from influcoder.runs import open_run
from influcoder.scores import Scores, load_scores
from influcoder.text_format import TextFormat, load_text_format


@dataclass(frozen=True, kw_only=True)
class TeacherRun:
    """A teacher run, its features not yet loaded."""

    folder: Path
    record: dict[str, Any]
    """run.json"""
    text_format: TextFormat
    rows: list[Example]
    queries: list[Example]
    """task queries; empty when the teacher was given none"""

    @property
    def has_decoder(self) -> bool:
        """Whether the run knows a decoder; one made of another tool's features may not."""
        return self.record.get("decoder_path") is not None

    def features(self, seed: int, side: str) -> Features:
        """Load the features of `side` (rows, queries, or rows_as_queries where the method tells these from rows).

        Raises:
            RunError: when they are corrupt or belong to other rows.
        """
        folder = self.folder / "features" / f"seed-{seed}" / side
        features = load_features(folder)
        expected = fingerprint(self.queries if side == "queries" else self.rows)
        if features.manifest.rows_fingerprint != expected:
            raise RunError(
                f"{folder}: features of rows {features.manifest.rows_fingerprint}, expected {expected} as in {self.folder / side.split('_')[0]}.parquet; "
                "run the teacher again"
            )
        return features

    def asking(self, seed: int) -> Features:
        """Load the features of the rows as queries."""
        asymmetric = (self.folder / "features" / f"seed-{seed}" / "rows_as_queries").exists()
        return self.features(seed, "rows_as_queries" if asymmetric else "rows")

    def scores(self, seed: int) -> Scores:
        """Load the task queries' scores of all rows.

        Raises:
            RunError: when they are missing or belong to other queries or rows.
        """
        folder = self.folder / "scores" / f"seed-{seed}"
        scores = load_scores(folder)
        scores.check_ids([query.id for query in self.queries], [row.id for row in self.rows], str(folder))
        return scores

    def decoder_config(self, device: str) -> DecoderConfig:
        """Return how to load the decoder whose gradients were taken: from inside the run, or by hub id or folder."""
        return recorded_decoder(self.folder, self.record, device)


@dataclass(frozen=True, kw_only=True)
class StudentRun:
    """A student run, its encoder not yet loaded."""

    folder: Path
    record: dict[str, Any]
    """run.json"""
    parts: NDArray[np.str_]
    """train, validation or test, by row of the teacher's pool"""


def load_teacher(folder: Path) -> TeacherRun:
    """Open a teacher run.

    Raises:
        RunError: when it is missing, unfinished, or its rows are not the ones that it recorded.
    """
    record = open_run(folder, "teacher")
    if not record.get("rows_ask", True):
        raise RunError(
            f"{folder}: made of scores of other queries, so that no row of it can ask; expected features; eval judges rows by rows"
        )
    rows = load_examples(folder / "rows.parquet")
    if fingerprint(rows) != record["rows_fingerprint"]:
        raise RunError(
            f"{folder / 'rows.parquet'}: rows {fingerprint(rows)}, expected {record['rows_fingerprint']} as in run.json; "
            "run the teacher again"
        )
    queries = folder / "queries.parquet"
    return TeacherRun(
        folder=folder,
        record=record,
        text_format=load_text_format(folder),
        rows=rows,
        queries=load_examples(queries) if queries.exists() else [],
    )


def check_same_questions(name: str, run: TeacherRun, teacher: TeacherRun) -> None:
    """Refuse another teacher of other rows or queries.

    Raises:
        RunError: naming what differs.
    """
    for side in ("rows_fingerprint", "queries_fingerprint"):
        mine, theirs = run.record.get(side), teacher.record.get(side)
        if mine != theirs:
            raise RunError(
                f"teachers.{name}: {run.folder}: {side} is {mine!r}, but {teacher.folder} has {theirs!r}; expected the same data"
            )


def load_student(folder: Path, teacher: TeacherRun) -> StudentRun:
    """Open a student run that was distilled from `teacher`.

    Raises:
        RunError: when it is missing, unfinished, or belongs to other rows, another teacher or another text format.
    """
    record = {"seed": 0, "folds": None, "fold": 0, "shuffle_target": False} | open_run(folder, "student")
    if record.get("asks", "rows") != "rows":
        raise RunError(f"{folder}: a student of the teacher's queries (asks: {record['asks']}); expected one whose rows ask, as eval's do")
    expected = {
        "rows_fingerprint": teacher.record["rows_fingerprint"],
        "decoder_fingerprint": teacher.record["decoder_fingerprint"],
        "teacher_method": teacher.record["method"],
        "teacher_seed": teacher.record["seeds"][0],
    }
    for name, theirs in expected.items():
        if record.get(name) != theirs:
            raise RunError(
                f"{folder}: {name} is {record.get(name)!r}, but {teacher.folder} has {theirs!r}; expected a student of that teacher; "
                "give both runs of one pipeline, or run the student again"
            )
    text_format = load_text_format(folder / "encoder")
    if text_format.budgets != teacher.text_format.budgets:
        raise RunError(
            f"{folder / 'encoder'}: cuts texts to {text_format.budgets} characters, but {teacher.folder} to "
            f"{teacher.text_format.budgets}; expected the same; run the student again"
        )
    return StudentRun(folder=folder, record=record, parts=_load_parts(folder / "split.parquet", teacher))


def _load_parts(path: Path, teacher: TeacherRun) -> NDArray[np.str_]:
    try:
        table = pq.read_table(path, columns=["id", "part"]).to_pydict()
    except (OSError, pa.ArrowInvalid) as error:
        raise RunError(f"{path}: cannot be read ({error}); expected columns id and part; run the student again") from error
    if table["id"] != [row.id for row in teacher.rows]:
        raise RunError(
            f"{path}: {len(table['id'])} ids that are not, in order, the {len(teacher.rows)} of {teacher.folder / 'rows.parquet'}; "
            "run the student again"
        )
    return np.array(table["part"], dtype=np.str_)
