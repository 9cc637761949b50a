"""Scores that are held against retraining: of teacher runs, of encoders, and of the floors, all of the teacher's queries and rows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from eval.data import TeacherRun, check_same_questions, load_teacher
from eval.encoders import Embedder, encoder_scores
from eval.floors import bm25_scores, decoder_scores, random_scores
from eval.judged import Fold, Judged
from eval.methods import Role
from eval.truth.config import MethodConfig, TruthConfig
from influcoder.errors import RunError
from influcoder.influence.decoder import load_decoder

Scores = NDArray[np.float32]


@dataclass(frozen=True)
class Method:
    """One line of the tables."""

    role: Role
    scores: Scores
    """(S, Q, N): S seeds, the teacher's queries, its rows"""


def ask_methods(config: TruthConfig, teacher: TeacherRun) -> dict[str, Method]:
    """Ask every method for all queries and rows.

    Raises:
        RunError: when a run is of other rows or queries, or an encoder saw the rows.
    """
    seeds = teacher.record["seeds"]
    found = {"teacher": Method("teacher", _stacked(teacher, seeds[:1]))}
    if len(seeds) > 1:
        found["teacher_second_seed"] = Method("ceiling", _stacked(teacher, seeds[1:]))
    judged = _everything(teacher)
    embedder = Embedder(config.device)
    for name, method in config.methods.items():
        found[name] = Method(method.role, _ask(name, method, teacher, judged, embedder))
    if config.floors:
        found |= _floors(config, teacher, judged)
    return found


def _ask(name: str, method: MethodConfig, teacher: TeacherRun, judged: Judged, embedder: Embedder) -> Scores:
    if method.teacher is not None:
        run = load_teacher(Path(method.teacher))
        check_same_questions(name, run, teacher)
        return _stacked(run, run.record["seeds"] if method.seed is None else [method.seed])
    assert method.encoder is not None  # MethodConfig.__post_init__
    _check_unseen(name, Path(method.encoder), teacher)
    return encoder_scores(embedder, Path(method.encoder), judged).asked.astype(np.float32)


def _check_unseen(name: str, encoder: Path, teacher: TeacherRun) -> None:
    """Refuse an encoder whose run was fitted on some of the rows, as its split tells."""
    path = encoder.parent / "split.parquet"
    if not path.exists():
        return
    split = pq.read_table(path, columns=["id", "part"]).to_pydict()
    fitted = {row_id for row_id, part in zip(split["id"], split["part"], strict=True) if part != "test"}
    seen = [row.id for row in teacher.rows if row.id in fitted]
    if seen:
        raise RunError(
            f"methods.{name}: {encoder} was fitted on {len(seen)} of the {len(teacher.rows)} rows, {seen[0]!r} the first; "
            "expected a student of other rows; distil from a teacher run without them"
        )


def _stacked(run: TeacherRun, seeds: list[int]) -> Scores:
    return np.stack([run.scores(seed).values for seed in seeds])


def _floors(config: TruthConfig, teacher: TeacherRun, judged: Judged) -> dict[str, Method]:
    floors = {"bm25": bm25_scores(judged), "bm25_response": bm25_scores(judged, response_only=True)}
    if teacher.has_decoder:
        floors |= decoder_scores(partial(load_decoder, teacher.decoder_config(config.device), [], 0), judged)
    floors["random"] = random_scores(judged, config.seed)
    return {name: Method("floor", scores.asked.astype(np.float32)) for name, scores in floors.items() if name != "loss"}


def _everything(teacher: TeacherRun) -> Judged:
    """Put all rows into one fold, without fidelity queries: the task queries ask alone."""
    if not teacher.queries:
        raise RunError(f"{teacher.folder}: has no queries; expected some, whose losses the retrained models are asked for; give queries")
    none = np.empty(0, np.int64)
    return Judged(rows=teacher.rows, folds=(Fold(queries=none, candidates=np.arange(len(teacher.rows))),), task_queries=teacher.queries)
